"""Stages 1 and 2 on the frozen encoder's features: projector alignment, instruction tuning.

Features are computed once a picture; each use of a picture asks new questions about it. Alignment
starts by regressing the projector onto the symbols that the language model already reads (`dense`
rows embedded by `Symbols`), then goes on with the answers' loss.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast

from finetune.pretrain import patch_targets
from finetune.pretrain.curriculum import (
    CountTargets,
    ReferentTargets,
    SkillSampler,
    batch_plan_at,
    make_question_batch,
    questions_without_picture,
    referent_targets,
    scene_questions,
)
from finetune.pretrain.exam import Exam, Seer, evaluate_world
from finetune.pretrain.language import Census, Referents, Symbols, step_loss, told
from finetune.pretrain.optim import (
    MuonAdam,
    Training,
    broadcast_weights,
    fast_autocast,
    rank,
    rate_at,
)
from finetune.pretrain.scene_pool import pixels
from finetune.pretrain.sequences import (
    PackedBatch,
    Packer,
    PictureConversations,
    branches,
    turns_of,
)
from finetune.pretrain.world import QA, Scene
from finetune.pretrain.world.mixture import World
from finetune.pretrain.world.pairs import comparable, compare


@dataclass
class Gallery:
    """`capacity` scenes with their features and symbols, the oldest replaced first."""

    seer: Seer
    capacity: int
    world: World
    next_seed: int = 0
    scenes: list[Scene] = field(default_factory=list)
    drawn: int = 0

    def refill(self, count: int) -> None:
        drawn = []
        for seed in range(self.next_seed, self.next_seed + count):
            scene = self.world.make_scene(seed)
            drawn.append((scene, pixels(self.world.draw(scene))))
        seen = self.seer.features(np.stack([picture for _, picture in drawn]))
        rows = torch.from_numpy(np.stack([patch_targets.patches(scene) for scene, _ in drawn]))
        if not self.scenes:
            self.seen = seen.new_zeros(self.capacity, *seen.shape[1:])
            self.rows = rows.new_zeros(self.capacity, *rows.shape[1:])
        for k, (scene, _) in enumerate(drawn):
            slot = (self.drawn + k) % self.capacity
            self.seen[slot], self.rows[slot] = seen[k], rows[k]
            if slot == len(self.scenes):
                self.scenes.append(scene)
            else:
                self.scenes[slot] = scene
        self.next_seed += count
        self.drawn += count

    def pair(self, rng: np.random.Generator) -> tuple[int, int] | None:
        """Slots of two scenes that can be compared, if some are found at once."""
        found: dict[str, int] = {}
        for slot in rng.integers(0, len(self.scenes), 30).tolist():
            scene = self.scenes[slot]
            if comparable(scene):
                other = found.setdefault(scene.room, slot)
                if other != slot:
                    return other, slot
        return None


@dataclass(frozen=True)
class Batch:
    """Packed questions, the projected pictures (or symbols) in order [visual tokens, width], and
    what the questions turn on.
    """

    packed: PackedBatch
    visual: torch.Tensor
    sought: ReferentTargets
    totals: CountTargets
    skills: list[list[str]]


def ask_scenes(
    world: World, shown: list[tuple[Scene, ...]], seed: int, most: int, sampler: SkillSampler
) -> tuple[list[PictureConversations], list[list[QA]]]:
    """At most `most` fresh questions about each scene or pair of scenes, and a row of talk."""
    rows: list[PictureConversations] = []
    asked: list[list[QA]] = []
    for k, scenes in enumerate(shown):
        rng = random.Random(f"ask-{seed}-{k}")
        if len(scenes) == 2:
            qas = compare(scenes[0], scenes[1], rng)
        else:
            qas = scene_questions(world, scenes[0], rng, "train", 2)
        made = branches(sampler.sample(qas, rng, most), rng)
        rows.append(([patch_targets.PATCHES] * len(scenes), [turns for turns, _ in made]))
        asked.append([qa for _, qa in made])
    rng = random.Random(f"talk-{seed}")
    rows.append(((), [turns_of(qa, rng) for qa in questions_without_picture(rng, "train", 4)]))
    return rows, asked


def regress(
    seer: Seer, symbols: Symbols, gallery: Gallery, steps: int, rng: np.random.Generator
) -> float:
    """Warm start: the projector learns to write the symbols; returns the last relative error."""
    optimiser = MuonAdam([seer.projector])
    share = 1.0
    for step in range(steps):
        slots = torch.from_numpy(rng.integers(0, len(gallery.scenes), 64))
        rows = gallery.rows[slots].long().to(seer.device)
        with torch.no_grad():
            wanted = symbols(rows, grid=True).float()
        with fast_autocast(seer.device):
            said = seer.projector(gallery.seen[slots]).float()
        judged = rows[..., patch_targets.OWNED] != 2
        loss = F.mse_loss(said[judged], wanted[judged])
        share = loss.item() / wanted[judged].var().item()
        (loss / wanted[judged].var()).backward()
        optimiser.step(rate_at(step / steps, step, warmup=20))
    return share


def align(
    out: Path,
    name: str,
    seer: Seer,
    symbols: Symbols,
    referents: Referents,
    census: Census,
    tokenizer: PreTrainedTokenizerFast,
    world: World,
    minutes: float,
    *,
    seed: int = 0,
    rate: float = 1.0,
    scale: float = 1.0,
    capacity: int = 8000,
    score_every: float = 240,
) -> None:
    """The language model meets the encoder: projector and LLM train on answers, in place.

    Every third step goes on with symbols: they are noiseless, and what is learned on them
    (relations, counting) carries over. The state is kept in `out/<name>.pt`; a fresh start begins
    with `regress`. Processes that were put together (`optim.together`) train as one.
    """
    packer = Packer(tokenizer)
    parts = {
        "projector": seer.projector,
        "language": seer.language,
        "symbols": symbols,
        "referents": referents,
        "census": census,
    }
    training = Training(out / f"{name}.pt", minutes, parts, rate)
    if training.progress >= 1:
        return
    first = training.kept.get("next_seed", 50_000_000 * (seed + 1)) + 10_000_000 * rank()
    gallery = Gallery(seer, capacity, world, next_seed=first)
    gallery.refill(min(capacity, round(800 * scale)))
    number = training.kept.get("number", 2_000_000_000 * (seed + 1)) + 200_000_000 * rank()
    sampler = SkillSampler(training.kept.get("right", {}))
    rng = np.random.default_rng((seed, training.step, rank()))
    broadcast_weights(parts.values())
    if training.fresh:
        share = regress(seer, symbols, gallery, round(250 * scale), rng)
        print(f"{name} projector starts with {share:.3f} of the symbols' variance unexplained")
    batch = max(2, round(12 * scale))
    losses: dict[bool, list[float]] = {False: [], True: []}
    while training.progress < 1:
        seen = training.step % 3 != 0
        if seen:
            gallery.refill(max(1, batch // 3))
            asked = gallery_batch(gallery, packer, batch, rng, sampler)
        else:
            asked, number = symbol_batch(
                symbols, packer, world, number, training.step, scale, sampler
            )
        with fast_autocast(seer.device):
            whole, loss, hits = step_loss(
                seer.language, referents, census,
                asked.packed, asked.visual, asked.sought, asked.totals,
            )  # fmt: skip
        training.learn(whole, warmup=60)
        sampler.update(hits, asked.skills)
        losses[seen].append(loss)
        if rank():
            continue
        if training.step % 200 == 0:
            means = {k: np.mean(v[-100:]) for k, v in losses.items()}
            print(
                f"{name} {training.clock.elapsed / 60:.1f} min step {training.step} "
                f"loss {means[True]:.3f}, on symbols {means[False]:.3f}",
                flush=True,
            )
        if training.due("score", score_every):
            scores = evaluate_world(seer, packer, Exam(world, 80))
            print(f"{name} score {told(scores)}", flush=True)
        if training.due("save", 120):
            training.save(number=number, next_seed=gallery.next_seed, right=sampler.accuracy)


def gallery_batch(
    gallery: Gallery,
    packer: Packer,
    batch: int,
    rng: np.random.Generator,
    sampler: SkillSampler,
) -> Batch:
    """New questions about pictures of the gallery, and the pictures' projected features."""
    seer = gallery.seer
    slots = rng.integers(0, len(gallery.scenes), batch).tolist()
    shown: list[tuple[int, ...]] = [(slot,) for slot in slots]
    if rng.random() < 0.25:  # several at once: one makes every row's prefix as long as its own
        pairs = [pair for _ in range(batch // 4) if (pair := gallery.pair(rng))]
        shown = shown[len(pairs) :] + pairs
    scenes = [tuple(gallery.scenes[slot] for slot in slots) for slots in shown]
    rows, asked = ask_scenes(gallery.world, scenes, int(rng.integers(1 << 40)), 9, sampler)
    with fast_autocast(seer.device):
        visual = seer.projector(gallery.seen[[slot for slots in shown for slot in slots]])
    return Batch(
        packer.pack(rows, limit=256).to(seer.device),
        visual.flatten(0, 1),
        referent_targets(asked, [shown[0].room for shown in scenes]),
        {
            row: patch_targets.census(shown[0])
            for row, shown in enumerate(scenes)
            if len(shown) == 1
        },
        [[qa.skill for qa in qas] for qas in asked],
    )


def symbol_batch(
    symbols: Symbols,
    packer: Packer,
    world: World,
    number: int,
    step: int,
    scale: float,
    sampler: SkillSampler,
) -> tuple[Batch, int]:
    """A batch of stage 0b's last kind: mostly compact, now and then a grid."""
    grid = step % 15 == 0
    course = batch_plan_at(1.0, 0 if grid else 1, 1.0, scale)
    batch, number = make_question_batch(packer, number, world, course, sampler=sampler)
    device = symbols.owned.weight.device
    with fast_autocast(device.type):
        visual = symbols(batch.rows.to(device), grid)
    packed = batch.packed.to(str(device))
    asked = Batch(packed, visual.flatten(0, -2), batch.referents, batch.counts, batch.skills)
    return asked, number
