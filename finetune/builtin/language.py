"""Stage 0b: the language model learns the world's questions on symbols instead of pixels.

First every object is one token (shuffled, at most ten), then the picture is the encoder's grid of
patches, each an embedding of what `dense` says is under it. What the encoder has to add later is
only the same information in its own code, which the projector translates.
"""

import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from finetune.builtin import dense
from finetune.builtin.model import language_config
from finetune.builtin.optim import Clock, MuonAdam, load_state, rate_at, save_state
from finetune.builtin.packing import Packed, Packer, answer_hits, branches, turns_of
from finetune.builtin.pictures import draw_room
from finetune.builtin.world import ROOMS, make_scene


class Symbols(nn.Module):
    """A row of `dense` as one embedding; `grid` adds where the patch is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.owned = nn.Embedding(3, width)
        self.centre = nn.Embedding(2, width)
        self.classes = nn.ModuleList(nn.Embedding(n, width) for n in dense.CLASSES.values())
        self.places = nn.Linear(dense.GEOMETRY, width)
        self.cells = nn.Embedding(dense.PATCHES, width)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.04)
        nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, rows: torch.Tensor, grid: bool) -> torch.Tensor:
        """rows [..., COLUMNS] long -> [..., width]. Patches not to be judged count as ground."""
        mine = (rows[..., dense.OWNED] == 1)[..., None]
        told = self.centre(rows[..., dense.CENTRE]) + self.places(dense.geometry(rows))
        for column, table in zip(dense.CLASSES, self.classes, strict=True):
            told = told + table(rows[..., column])
        out = told * mine + self.owned(rows[..., dense.OWNED] % 2)
        return out + self.cells.weight if grid else out


def run_packed(model: LlamaForCausalLM, packed: Packed, visual: torch.Tensor) -> torch.Tensor:
    """Hidden states [rows, length, width]; `visual` [visual tokens of the batch, width]."""
    embeds = model.get_input_embeddings()(packed.ids)
    embeds = embeds.masked_scatter(packed.visual[..., None], visual.to(embeds.dtype))
    model.set_attn_implementation("packed")
    return model.model(inputs_embeds=embeds, position_ids=packed.positions, use_cache=False,
                       plan=packed.plan()).last_hidden_state


def answer_loss(model: LlamaForCausalLM, hidden: torch.Tensor, packed: Packed) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens; logits are computed for these alone."""
    wanted = packed.labels[:, 1:]
    chosen = wanted != -100
    logits = model.lm_head(hidden[:, :-1][chosen])
    return F.cross_entropy(logits.float(), wanted[chosen])


@dataclass
class Quiz:
    """A batch of scenes with their questions, packed. `skills[row][branch - 1]`."""

    packed: Packed
    rows: torch.Tensor
    skills: list[list[str]]


def make_quiz(packer: Packer, seeds: range, weights: dict[str, float], grid: bool,
              split: str = "train") -> Quiz:
    """Scenes `seeds`, as grids or as shuffled objects. rows: [all visual tokens, COLUMNS]."""
    todo, tables, skills = [], [], []
    for seed in seeds:
        scene = make_scene(seed, draw_room(seed, weights), split)
        rng = random.Random(f"quiz-{split}-{seed}")
        qas = ROOMS[scene.room].ask(scene, rng, split)
        table = dense.patches(scene) if grid else rng_shuffled(dense.objects(scene), seed)
        if not len(table):
            continue
        if split == "train":
            conversations = branches(qas, rng)
        else:
            conversations = [turns_of(qa, rng) for qa in qas]
        todo.append((len(table), conversations))
        tables.append(table)
        skills.append([qa.skill for qa in qas])
    rows = torch.from_numpy(np.concatenate(tables)).long()
    return Quiz(packer.pack(todo), rows, skills)


def rng_shuffled(table: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(table)


@torch.no_grad()
def symbolic_score(model: LlamaForCausalLM, symbols: Symbols, packer: Packer,
                   weights: dict[str, float], scenes: int, grid: bool, device: str = "cpu",
                   ) -> dict[str, tuple[float, int]]:
    """skill -> (exact match, questions) on held-out scenes given as symbols."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, scenes, 20):
        quiz = make_quiz(packer, range(start, start + 20), weights, grid, "test")
        packed = quiz.packed.to(device)
        with torch.autocast(device, torch.bfloat16):
            visual = symbols(quiz.rows.view(-1, *shape_of(quiz, grid)).to(device), grid)
            hidden = run_packed(model, packed, visual.flatten(0, -2))
            best = model.lm_head(hidden).argmax(-1)
        for (row, number), hit in answer_hits(best, packed).items():
            hits[quiz.skills[row][number - 1]].append(hit)
    return {skill: (sum(h) / len(h), len(h)) for skill, h in sorted(hits.items())}


def shape_of(quiz: Quiz, grid: bool) -> tuple[int, ...]:
    return (dense.PATCHES, dense.COLUMNS) if grid else (dense.COLUMNS,)


def told(scores: dict[str, tuple[float, int]]) -> str:
    total = sum(n for _, n in scores.values())
    mean = sum(s * n for s, n in scores.values()) / max(1, total)
    return f"all {mean:.3f} | " + " ".join(f"{k} {s:.2f}" for k, (s, _) in scores.items())


def train_language(out: Path, tokenizer: PreTrainedTokenizerFast, weights: dict[str, float],
                   minutes: float, *, seed: int = 0, tiny: bool = False, batch: int = 20,
                   compact_share: float = 0.4, device: str = "cpu",
                   ) -> tuple[LlamaForCausalLM, Symbols]:
    """Train (or go on training) on symbolic pictures; the state is kept in `out/language.pt`.

    Batches are compact for the first `compact_share` of the time, grids (nine in ten) after it.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(language_config(len(tokenizer), tiny)).to(device)
    symbols = Symbols(model.config.hidden_size).to(device)
    optimiser = MuonAdam([model, symbols])
    packer = Packer(tokenizer)
    clock, step, number = Clock(minutes), 0, 1_000_000 * (seed + 1)
    state = load_state(out / "language.pt")
    if state:
        model.load_state_dict(state["model"])
        symbols.load_state_dict(state["symbols"])
        if "optimiser" in state:
            optimiser.load_state_dict(state["optimiser"])
        step, clock.spent, number = state["step"], state["spent"], state["number"]
    saved = scored = clock.elapsed
    losses: list[float] = []
    while clock.progress < 1:
        grid = clock.progress > compact_share and step % 10 != 0
        quiz = make_quiz(packer, range(number, number + batch), weights, grid)
        number += batch
        packed = quiz.packed.to(device)
        with torch.autocast(device, torch.bfloat16):
            visual = symbols(quiz.rows.view(-1, *shape_of(quiz, grid)).to(device), grid)
            hidden = run_packed(model, packed, visual.flatten(0, -2))
            loss = answer_loss(model, hidden, packed)
        loss.backward()
        optimiser.step(rate_at(clock.progress, step))
        losses.append(loss.item())
        step += 1
        if step % 50 == 0:
            print(f"language {clock.elapsed / 60:.1f} min step {step} grid {grid} tokens "
                  f"{tuple(packed.ids.shape)} loss {np.mean(losses[-50:]):.3f}", flush=True)
        if clock.elapsed - scored > 240 or clock.progress >= 1:
            scored = clock.elapsed
            for kind in (False, True):
                scores = symbolic_score(model, symbols, packer, weights, 60, kind, device)
                print(f"language score grid {kind} {told(scores)}", flush=True)
        if clock.elapsed - saved > 120 or clock.progress >= 1:
            saved = clock.elapsed
            save_state(out / "language.pt", {
                "model": model.state_dict(), "symbols": symbols.state_dict(),
                "optimiser": optimiser.state_dict(), "step": step, "spent": saved,
                "number": number})
    return model.eval(), symbols
