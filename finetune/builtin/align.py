"""Stages 1 and 2 on the frozen encoder's features: projector alignment, instruction tuning.

Features are computed once a picture; each use of a picture asks new questions about it. Alignment
starts by regressing the projector onto the symbols that the language model already reads (`dense`
rows embedded by `Symbols`), then goes on with the answers' loss.
"""

import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, SiglipModel

from finetune.builtin import dense
from finetune.builtin.language import (
    Symbols,
    answer_loss,
    course_at,
    make_quiz,
    questions,
    run_packed,
    shape_of,
    told,
    without_pictures,
)
from finetune.builtin.optim import Clock, MuonAdam, load_state, rate_at, save_state
from finetune.builtin.packing import Packed, Packer, Turns, answer_hits, branches, turns_of
from finetune.builtin.pictures import draw_room, normalised, pixels
from finetune.builtin.world import ROOMS, Scene, Split, make_scene


@torch.no_grad()
def features(encoder: SiglipModel, images: np.ndarray, device: str) -> torch.Tensor:
    """What the projector is given: uint8 [n, SIZE, SIZE, 3] -> [n, patches, width] bf16.

    That is the last layer's output before the final norm, as LLaVA takes it; the norm hardly
    matters (every token has about the same scale).
    """
    with torch.autocast(device, torch.bfloat16):
        pixel_values = normalised(torch.from_numpy(images).to(device))
        seen = encoder.vision_model(pixel_values=pixel_values, output_hidden_states=True)
    return seen.hidden_states[-1].bfloat16()


@dataclass
class Gallery:
    """`capacity` scenes with their features and symbols, the oldest replaced first."""

    encoder: SiglipModel
    capacity: int
    weights: Mapping[str, float]
    split: Split = "train"
    next_seed: int = 0
    device: str = "cpu"
    scenes: list[Scene] = field(default_factory=list)
    drawn: int = 0

    def refill(self, count: int) -> None:
        drawn = []
        for seed in range(self.next_seed, self.next_seed + count):
            scene = make_scene(seed, draw_room(seed, self.weights), self.split)
            drawn.append((scene, pixels(ROOMS[scene.room].draw(scene))))
        seen = features(self.encoder, np.stack([picture for _, picture in drawn]), self.device)
        rows = torch.from_numpy(np.stack([dense.patches(scene) for scene, _ in drawn]))
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


def ask_scenes(
    scenes: list[Scene],
    seed: int,
    split: Split,
    most: int = 99,
) -> tuple[list[tuple[int, list[Turns]]], list[list[str]]]:
    """At most `most` fresh questions about each scene: rows for the packer, and branches' skills."""
    rows, skills = [], []
    for k, scene in enumerate(scenes):
        rng = random.Random(f"ask-{split}-{seed}-{k}")
        qas = questions(scene, rng, split)
        qas = rng.sample(qas, min(most, len(qas)))
        made = branches(qas, rng) if split == "train" else [turns_of(qa, rng) for qa in qas]
        rows.append((dense.PATCHES, made))
        skills.append([qa.skill for qa in qas])
    rng = random.Random(f"talk-{split}-{seed}")
    talk = without_pictures(rng, split)
    rows.append((0, [turns_of(qa, rng) for qa in talk]))
    return rows, [*skills, [qa.skill for qa in talk]]


@torch.no_grad()
def picture_score(
    encoder: SiglipModel,
    projector: nn.Module,
    language: LlamaForCausalLM,
    packer: Packer,
    weights: Mapping[str, float],
    scenes: int,
    *,
    first_seed: int = 0,
    blind: bool = False,
    device: str = "cpu",
) -> dict[str, tuple[float, int]]:
    """skill -> (exact match, questions) on held-out pictures; `blind` shows blank ones."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for start in range(first_seed, first_seed + scenes, 20):
        made = [make_scene(s, draw_room(s, weights), "test") for s in range(start, start + 20)]
        images = np.stack([pixels(ROOMS[scene.room].draw(scene)) for scene in made])
        if blind:
            images = np.full_like(images, 255)
        rows, skills = ask_scenes(made, start, "test")
        packed = packer.pack(rows).to(device)
        with torch.autocast(device, torch.bfloat16):
            visual = projector(features(encoder, images, device))
            best = language.lm_head(run_packed(language, packed, visual.flatten(0, 1))).argmax(-1)
        for (row, number), hit in answer_hits(best, packed).items():
            hits[skills[row][number - 1]].append(hit)
    return {skill: (sum(h) / len(h), len(h)) for skill, h in sorted(hits.items())}


def regress(
    projector: nn.Module, symbols: Symbols, gallery: Gallery, steps: int, rng: np.random.Generator
) -> float:
    """Warm start: the projector learns to write the symbols; returns the last relative error."""
    optimiser = MuonAdam([projector])
    share = 1.0
    for step in range(steps):
        slots = torch.from_numpy(rng.integers(0, len(gallery.scenes), 64))
        rows = gallery.rows[slots].long().to(gallery.device)
        with torch.no_grad():
            wanted = symbols(rows, grid=True).float()
        with torch.autocast(gallery.device, torch.bfloat16):
            said = projector(gallery.seen[slots]).float()
        judged = rows[..., dense.OWNED] != 2
        loss = F.mse_loss(said[judged], wanted[judged])
        share = loss.item() / wanted[judged].var().item()
        (loss / wanted[judged].var()).backward()
        optimiser.step(rate_at(step / steps, step, warmup=20))
    return share


def align(
    out: Path,
    name: str,
    encoder: SiglipModel,
    projector: nn.Module,
    language: LlamaForCausalLM,
    symbols: Symbols,
    tokenizer: PreTrainedTokenizerFast,
    weights: Mapping[str, float],
    minutes: float,
    *,
    seed: int = 0,
    rate: float = 1.0,
    scale: float = 1.0,
    capacity: int = 8000,
    device: str = "cpu",
    score_every: float = 240,
) -> None:
    """The language model meets the encoder: projector and LLM train on answers, in place.

    Every second step goes on with symbols, which are quicker to compute: what is learned on them
    (relations, counting) carries over. The state is kept in `out/<name>.pt`; a fresh start begins
    with `regress`.
    """
    packer = Packer(tokenizer)
    modules = [projector, language, symbols]
    gallery = Gallery(encoder, capacity, weights, next_seed=50_000_000 * (seed + 1), device=device)
    clock, step, number = Clock(minutes), 0, 200_000_000 * (seed + 1)
    state = load_state(out / f"{name}.pt")
    if state:
        for module, key in zip(modules, ("projector", "language", "symbols"), strict=True):
            module.load_state_dict(state[key])
        step, clock.spent, number = state["step"], state["spent"], state["number"]
        gallery.next_seed = state["next_seed"]
    if clock.progress >= 1:
        return
    gallery.refill(min(capacity, round(1500 * scale)))
    rng = np.random.default_rng((seed, step))
    if not state:
        share = regress(projector, symbols, gallery, round(250 * scale), rng)
        print(f"{name} projector starts with {share:.3f} of the symbols' variance unexplained")
    optimiser = MuonAdam(modules, rate)
    if state and "optimiser" in state:
        optimiser.load_state_dict(state["optimiser"])
    batch = max(2, round(12 * scale))
    saved = scored = clock.elapsed
    losses: dict[bool, list[float]] = {False: [], True: []}
    while clock.progress < 1:
        seen = step % 2 == 0
        if seen:
            gallery.refill(max(1, batch // 2))
            packed, visual = gallery_batch(gallery, packer, projector, batch, rng)
        else:
            packed, visual, number = symbol_batch(symbols, packer, weights, number, step, scale)
        with torch.autocast(device, torch.bfloat16):
            hidden = run_packed(language, packed, visual)
            loss = answer_loss(language, hidden, packed)
        loss.backward()
        optimiser.step(rate_at(clock.progress, step, warmup=60))
        losses[seen].append(loss.item())
        step += 1
        if step % 200 == 0:
            means = {k: np.mean(v[-100:]) for k, v in losses.items()}
            print(
                f"{name} {clock.elapsed / 60:.1f} min step {step} loss {means[True]:.3f}, "
                f"on symbols {means[False]:.3f}",
                flush=True,
            )
        if clock.elapsed - scored > score_every or clock.progress >= 1:
            scored = clock.elapsed
            scores = picture_score(encoder, projector, language, packer, weights, 80, device=device)
            print(f"{name} score {told(scores)}", flush=True)
        if clock.elapsed - saved > 120 or clock.progress >= 1:
            saved = clock.elapsed
            save_state(
                out / f"{name}.pt",
                {
                    "projector": projector.state_dict(),
                    "language": language.state_dict(),
                    "symbols": symbols.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "step": step,
                    "spent": saved,
                    "number": number,
                    "next_seed": gallery.next_seed,
                },
            )


def gallery_batch(
    gallery: Gallery, packer: Packer, projector: nn.Module, batch: int, rng: np.random.Generator
) -> tuple[Packed, torch.Tensor]:
    """New questions about pictures of the gallery, and the pictures' projected features."""
    slots = rng.integers(0, len(gallery.scenes), batch)
    seed = int(rng.integers(1 << 40))
    rows, _ = ask_scenes([gallery.scenes[s] for s in slots], seed, "train", most=9)
    with torch.autocast(gallery.device, torch.bfloat16):
        visual = projector(gallery.seen[torch.from_numpy(slots)])
    return packer.pack(rows, limit=256).to(gallery.device), visual.flatten(0, 1)


def symbol_batch(
    symbols: Symbols,
    packer: Packer,
    weights: Mapping[str, float],
    number: int,
    step: int,
    scale: float,
) -> tuple[Packed, torch.Tensor, int]:
    """A batch of stage 0b's last kind: mostly compact, now and then a grid."""
    grid = step % 10 == 1
    course = course_at(1.0, 0 if grid else 1, 0.0, scale)
    quiz, number = make_quiz(packer, number, weights, course)
    device = symbols.owned.weight.device
    with torch.autocast(device.type, torch.bfloat16):
        visual = symbols(quiz.rows.view(-1, *shape_of(quiz, grid)).to(device), grid)
    return quiz.packed.to(str(device)), visual.flatten(0, -2), number
