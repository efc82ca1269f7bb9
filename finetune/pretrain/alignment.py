"""Alignment: train projector and language model on the frozen encoder's features.

The features of a picture are computed once and used with several sets of questions. The projector
is first fitted to the symbol embeddings that the language model has been trained on (rows of
`patch_targets` embedded by `SymbolEmbedding`); then both are trained on the answers' loss.
"""

import random
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

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
from finetune.pretrain.exam import Exam, VisionLanguageModel, evaluate_world
from finetune.pretrain.language import (
    CountHead,
    ReferentHeads,
    SymbolEmbedding,
    format_scores,
    step_loss,
)
from finetune.pretrain.optim import (
    MuonAdam,
    StageConfig,
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
class FeaturePool:
    """Up to `capacity` scenes with features and patch targets; the oldest is replaced first."""

    model: VisionLanguageModel
    capacity: int
    world: World
    next_seed: int = 0
    scenes: list[Scene] = field(default_factory=list)
    drawn: int = 0

    def refill(self, count: int) -> None:
        """Draw `count` new scenes into the pool."""
        drawn = []
        for seed in range(self.next_seed, self.next_seed + count):
            scene = self.world.make_scene(seed)
            drawn.append((scene, pixels(self.world.draw(scene))))
        features = self.model.features(np.stack([picture for _, picture in drawn]))
        rows = torch.from_numpy(np.stack([patch_targets.patches(scene) for scene, _ in drawn]))
        if not self.scenes:
            self.features = features.new_zeros(self.capacity, *features.shape[1:])
            self.rows = rows.new_zeros(self.capacity, *rows.shape[1:])
        for k, (scene, _) in enumerate(drawn):
            slot = (self.drawn + k) % self.capacity
            self.features[slot], self.rows[slot] = features[k], rows[k]
            if slot == len(self.scenes):
                self.scenes.append(scene)
            else:
                self.scenes[slot] = scene
        self.next_seed += count
        self.drawn += count

    def pair(self, rng: np.random.Generator) -> tuple[int, int] | None:
        """Return the slots of two scenes of one room that can be compared, if 30 tries find any."""
        found: dict[str, int] = {}
        for slot in rng.integers(0, len(self.scenes), 30).tolist():
            scene = self.scenes[slot]
            if comparable(scene):
                other = found.setdefault(scene.room, slot)
                if other != slot:
                    return other, slot
        return None


@dataclass(frozen=True)
class AlignmentBatch:
    """A packed batch of questions, with the targets of the auxiliary heads.

    `visual` [visual tokens, width] holds the projected pictures or embedded symbols in order.
    """

    packed: PackedBatch
    visual: torch.Tensor
    referents: ReferentTargets
    counts: CountTargets
    skills: list[list[str]]


def make_conversations(
    world: World, shown: list[tuple[Scene, ...]], seed: int, most: int, sampler: SkillSampler
) -> tuple[list[PictureConversations], list[list[QA]]]:
    """Make up to `most` questions about each scene or pair, and a row without a picture."""
    rows: list[PictureConversations] = []
    questions: list[list[QA]] = []
    for k, scenes in enumerate(shown):
        rng = random.Random(f"ask-{seed}-{k}")
        if len(scenes) == 2:
            qas = compare(scenes[0], scenes[1], rng)
        else:
            qas = scene_questions(world, scenes[0], rng, "train", 2)
        made = branches(sampler.sample(qas, rng, most), rng)
        rows.append(([patch_targets.PATCHES] * len(scenes), [turns for turns, _ in made]))
        questions.append([qa for _, qa in made])
    rng = random.Random(f"talk-{seed}")
    rows.append(((), [turns_of(qa, rng) for qa in questions_without_picture(rng, "train", 4)]))
    return rows, questions


def warm_start_projector(
    model: VisionLanguageModel,
    symbols: SymbolEmbedding,
    pool: FeaturePool,
    steps: int,
    rng: np.random.Generator,
) -> float:
    """Fit the projector to the symbol embeddings, and return the last relative error."""
    optimiser = MuonAdam([model.projector])
    share = 1.0
    for step in range(steps):
        slots = torch.from_numpy(rng.integers(0, len(pool.scenes), 64))
        rows = pool.rows[slots].long().to(model.device)
        with torch.no_grad():
            targets = symbols(rows, grid=True).float()
        with fast_autocast(model.device):
            outputs = model.projector(pool.features[slots]).float()
        judged = rows[..., patch_targets.OWNED] != 2
        loss = F.mse_loss(outputs[judged], targets[judged])
        share = loss.item() / targets[judged].var().item()
        (loss / targets[judged].var()).backward()
        optimiser.step(rate_at(step / steps, step, warmup=20))
    return share


def align(
    stage: StageConfig,
    name: str,
    model: VisionLanguageModel,
    symbols: SymbolEmbedding,
    referent_heads: ReferentHeads,
    count_head: CountHead,
    *,
    rate: float = 1.0,
    scale: float = 1.0,
    capacity: int = 8000,
    score_every: float = 240,
) -> None:
    """Train projector and language model on answers, in place.

    Every third step uses symbolic pictures: they are free of noise, and skills learned on them
    (relations, counting) transfer. The state is saved in `<name>.pt`; a new run begins with
    `warm_start_projector`. Processes joined by `optim.join_group` train in parallel.
    """
    packer = Packer(stage.tokenizer)
    parts = {
        "projector": model.projector,
        "language": model.language,
        "symbols": symbols,
        "referents": referent_heads,
        "census": count_head,
    }
    training = Training(stage.out / f"{name}.pt", stage.minutes, parts, rate)
    if training.progress >= 1:
        return
    first = training.kept.get("next_seed", 50_000_000 * (stage.seed + 1)) + 10_000_000 * rank()
    pool = FeaturePool(model, capacity, stage.world, next_seed=first)
    pool.refill(min(capacity, round(800 * scale)))
    number = training.kept.get("number", 2_000_000_000 * (stage.seed + 1)) + 200_000_000 * rank()
    sampler = SkillSampler(training.kept.get("right", {}))
    rng = np.random.default_rng((stage.seed, training.step, rank()))
    broadcast_weights(parts.values())
    if training.fresh:
        share = warm_start_projector(model, symbols, pool, round(250 * scale), rng)
        print(f"{name} projector: {share:.3f} of the symbols' variance unexplained at the start")
    batch = max(2, round(12 * scale))
    losses: dict[bool, list[float]] = {False: [], True: []}
    while training.progress < 1:
        with_features = training.step % 3 != 0
        if with_features:
            pool.refill(max(1, batch // 3))
            questions = picture_batch(pool, packer, batch, rng, sampler)
        else:
            questions, number = symbol_batch(
                symbols, packer, stage.world, number, training.step, scale, sampler
            )
        with fast_autocast(model.device):
            whole, loss, hits = step_loss(
                model.language, referent_heads, count_head,
                questions.packed, questions.visual, questions.referents, questions.counts,
            )  # fmt: skip
        training.learn(whole, warmup=60)
        sampler.update(hits, questions.skills)
        losses[with_features].append(loss)
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
            scores = evaluate_world(model, packer, Exam(stage.world, 80))
            print(f"{name} score {format_scores(scores)}", flush=True)
        if training.due("save", 120):
            training.save(number=number, next_seed=pool.next_seed, right=sampler.accuracy)


def picture_batch(
    pool: FeaturePool,
    packer: Packer,
    batch: int,
    rng: np.random.Generator,
    sampler: SkillSampler,
) -> AlignmentBatch:
    """Make a batch of new questions about pictures of the pool, with projected features."""
    model = pool.model
    slots = rng.integers(0, len(pool.scenes), batch).tolist()
    shown: list[tuple[int, ...]] = [(slot,) for slot in slots]
    if rng.random() < 0.25:  # several pairs: a single one would pad every row to its length
        pairs: list[tuple[int, ...]] = [pair for _ in range(batch // 4) if (pair := pool.pair(rng))]
        shown = shown[len(pairs) :] + pairs
    scenes = [tuple(pool.scenes[slot] for slot in slots) for slots in shown]
    rows, questions = make_conversations(pool.world, scenes, int(rng.integers(1 << 40)), 9, sampler)
    with fast_autocast(model.device):
        visual = model.projector(pool.features[[slot for slots in shown for slot in slots]])
    return AlignmentBatch(
        packer.pack(rows, limit=256).to(model.device),
        visual.flatten(0, 1),
        referent_targets(questions, [shown[0].room for shown in scenes]),
        {
            row: patch_targets.object_counts(shown[0])
            for row, shown in enumerate(scenes)
            if len(shown) == 1
        },
        [[qa.skill for qa in qas] for qas in questions],
    )


def symbol_batch(
    symbols: SymbolEmbedding,
    packer: Packer,
    world: World,
    number: int,
    step: int,
    scale: float,
    sampler: SkillSampler,
) -> tuple[AlignmentBatch, int]:
    """Make a batch as at the end of stage 0b: lists of objects, or a grid every 15th step."""
    grid = step % 15 == 0
    plan = batch_plan_at(1.0, 0 if grid else 1, 1.0, scale)
    batch, number = make_question_batch(packer, number, world, plan, sampler=sampler)
    device = symbols.owned.weight.device
    with fast_autocast(device.type):
        visual = symbols(batch.rows.to(device), grid)
    packed = batch.packed.to(str(device))
    made = AlignmentBatch(
        packed, visual.flatten(0, -2), batch.referents, batch.counts, batch.skills
    )
    return made, number
