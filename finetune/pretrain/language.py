"""Stage 0b: the language model learns the world's questions on symbols instead of pixels.

First every object is one token (shuffled), then the picture is the encoder's grid of
patches, each an embedding of what `dense` says is under it. What the encoder has to add later is
only the same information in its own code, which the projector translates.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from finetune.kernels import shared_prefix
from finetune.pretrain import patch_targets
from finetune.pretrain.curriculum import (
    MAX_REFERENTS,
    BatchPlan,
    CountTargets,
    ReferentTargets,
    SkillSampler,
    batch_plan_at,
    make_question_batch,
)
from finetune.pretrain.model import language_config
from finetune.pretrain.optim import Training, fast_autocast
from finetune.pretrain.sequences import Hits, PackedBatch, Packer, answer_hits, answer_starts
from finetune.pretrain.world.mixture import World


class Symbols(nn.Module):
    """A row of `dense` as one embedding; `grid` adds where the patch is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.owned = nn.Embedding(3, width)
        self.centre = nn.Embedding(2, width)
        self.classes = nn.ModuleList(nn.Embedding(n, width) for n in patch_targets.CLASSES.values())
        self.places = nn.Linear(patch_targets.GEOMETRY, width)
        self.cells = nn.Embedding(patch_targets.PATCHES, width)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.04)
        nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, rows: torch.Tensor, grid: bool) -> torch.Tensor:
        """Rows [..., COLUMNS] long -> [..., width]. Patches not to be judged count as ground."""
        mine = (rows[..., patch_targets.OWNED] == 1)[..., None]
        told = self.centre(rows[..., patch_targets.CENTRE]) + self.places(
            patch_targets.geometry(rows)
        )
        for column, table in zip(patch_targets.CLASSES, self.classes, strict=True):
            told = told + table(rows[..., column])
        out = told * mine + self.owned(rows[..., patch_targets.OWNED] % 2)
        return out + self.cells.weight if grid else out


States = tuple[torch.Tensor, ...]
"""Before the first layer, after the first, ...: each [rows, length, width]."""


class Referents(nn.Module):
    """Throw-away heads that say what a question turns on, before it is answered.

    They read the token that the answer follows, after layer `LAYER`: `MAX_REFERENTS` name an
    object each, taught what `dense` says of it, and `NUMBERS` say how many objects fit a
    description. Without them the language model takes long to find an object by its description,
    and longer to compare two or to count: an answer alone says little about what was missed.
    """

    LAYER = 3
    NUMBERS = 2
    MOST = 10
    """What is counted to."""
    COLUMNS = (patch_targets.KIND, patch_targets.COLOUR, patch_targets.SIZE, patch_targets.FILL)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [
            *(patch_targets.CLASSES[column] for column in self.COLUMNS),
            patch_targets.GEOMETRY,
        ]
        self.norm = nn.RMSNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, sum(self.sizes)) for _ in range(MAX_REFERENTS))
        self.numbers = nn.ModuleList(nn.Linear(width, self.MOST + 1) for _ in range(self.NUMBERS))

    def loss(self, states: States, packed: PackedBatch, sought: ReferentTargets) -> torch.Tensor:
        """The objects' mean and the numbers'."""
        hidden = states[min(self.LAYER, len(states) - 1)]
        starts = answer_starts(packed)
        # Every parameter takes part in every step, as processes that train together have to agree.
        total, count = sum(0 * p.sum() for p in self.parameters()), 0
        numbers = []

        def read(asked: list[tuple[int, int]]) -> torch.Tensor:
            where = torch.tensor([(row, starts[row, branch]) for row, branch in asked])
            return self.norm(hidden[where[:, 0], where[:, 1]])

        for k, head in enumerate(self.heads):
            found = {
                at: objects[k]
                for at, (objects, _) in sought.items()
                if at in starts and len(objects) > k
            }
            if not found:
                continue
            rows = torch.from_numpy(np.stack(list(found.values()))).long().to(hidden.device)
            said = head(read(list(found))).float()
            *classes, places = said.split(self.sizes, dim=-1)
            for column, logits in zip(self.COLUMNS, classes, strict=True):
                total = total + F.cross_entropy(logits, rows[:, column], reduction="sum")
            error = (places - patch_targets.geometry(rows)).square().mean(-1).sum()
            total, count = total + 4 * error, count + len(rows)
        for k, head in enumerate(self.numbers):
            fit = {
                at: min(counts[k], self.MOST)
                for at, (_, counts) in sought.items()
                if at in starts and len(counts) > k
            }
            if fit:
                wanted = torch.tensor(list(fit.values()), device=hidden.device)
                losses = F.cross_entropy(head(read(list(fit))).float(), wanted, reduction="none")
                numbers.append(losses)
        total = total / max(1, count)
        return total + 2 * torch.cat(numbers).mean() if numbers else total


class Census(nn.Module):
    """A throw-away head that counts a picture's objects, by kind, colour and fill, where it ends.

    It reads the token behind the picture, which sees all of it, after layer `LAYER`: questions that
    count then find there what single patches do not say.
    """

    LAYER = 2

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, patch_targets.CENSUS * (Referents.MOST + 1))

    def loss(self, states: States, packed: PackedBatch, totals: CountTargets) -> torch.Tensor:
        """What is there counts as much as the many kinds that are not."""
        nothing = sum(0 * p.sum() for p in self.parameters())
        if not totals:
            return nothing
        hidden = states[min(self.LAYER, len(states) - 1)]
        rows = torch.tensor(list(totals), device=hidden.device)
        ends = (packed.segments[rows] == 0).sum(1) - 1
        wanted = torch.from_numpy(np.stack(list(totals.values()))).to(hidden.device)
        said = self.head(self.norm(hidden[rows, ends])).float()
        losses = F.cross_entropy(
            said.view(wanted.numel(), -1),
            wanted.clamp(max=Referents.MOST).flatten(),
            reduction="none",
        )
        there = wanted.flatten() > 0
        return losses[there].mean() + losses[~there].mean()


def run_packed(
    model: LlamaForCausalLM, packed: PackedBatch, visual: torch.Tensor
) -> tuple[torch.Tensor, States]:
    """Hidden states of the last layer [rows, length, width], and what goes into each layer;
    `visual` [visual tokens of the batch, width].
    """
    embeds = model.get_input_embeddings()(packed.ids)
    embeds = embeds.masked_scatter(packed.visual[..., None], visual.to(embeds.dtype))
    device = embeds.device.type
    if torch.is_autocast_enabled(device):  # the residual stream too: a fifth faster on CPUs
        embeds = embeds.to(torch.get_autocast_dtype(device))
    model.set_attn_implementation(shared_prefix.NAME)
    out = model.model(
        inputs_embeds=embeds,
        position_ids=packed.positions,
        attention_mask=packed.ids.new_ones((1, 1, 1, 1), dtype=torch.bool),  # as it is: unused
        use_cache=False,
        branches=packed.branches(),
        output_hidden_states=True,
    )
    return out.last_hidden_state, out.hidden_states


def answer_loss(
    model: LlamaForCausalLM, hidden: torch.Tensor, packed: PackedBatch
) -> tuple[torch.Tensor, Hits]:
    """Mean cross-entropy of the answers' tokens (logits are computed for these alone), and which
    branches were answered rightly throughout.
    """
    wanted = packed.labels[:, 1:]
    answers = wanted != -100
    said = hidden[:, :-1][answers]
    spare = said.new_zeros(-len(said) % 128, said.shape[1])  # few shapes, as in `branch_layout`
    logits = model.lm_head(torch.cat((said, spare)))[: len(said)].float()
    best = torch.full_like(packed.ids, -1)
    best[:, :-1][answers] = logits.argmax(-1)
    return F.cross_entropy(logits, wanted[answers]), answer_hits(best, packed)


REFERENT_SHARE, CENSUS_SHARE = 0.3, 0.2
"""What the heads' losses count beside the answers'."""


def step_loss(
    model: LlamaForCausalLM,
    referents: Referents,
    census: Census,
    packed: PackedBatch,
    visual: torch.Tensor,
    sought: ReferentTargets,
    totals: CountTargets,
) -> tuple[torch.Tensor, float, Hits]:
    """What a step goes down, the answers' part of it, and which branches were answered rightly."""
    hidden, states = run_packed(model, packed, visual)
    loss, hits = answer_loss(model, hidden, packed)
    found = referents.loss(states, packed, sought)
    counted = census.loss(states, packed, totals)
    return loss + REFERENT_SHARE * found + CENSUS_SHARE * counted, loss.item(), hits


@torch.no_grad()
def symbolic_score(
    model: LlamaForCausalLM,
    symbols: Symbols,
    packer: Packer,
    world: World,
    scenes: int,
    grid: bool,
    device: str = "cpu",
) -> dict[str, tuple[float, int]]:
    """Skill -> (exact match, questions) on held-out scenes given as symbols."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, scenes, 20):
        course = BatchPlan(20, 12, grid)
        batch, _ = make_question_batch(packer, 1000 * start, world, course, "test")
        packed = batch.packed.to(device)
        with fast_autocast(device):
            visual = symbols(batch.rows.to(device), grid)
            hidden, _ = run_packed(model, packed, visual.flatten(0, -2))
            best = model.lm_head(hidden).argmax(-1)
        for (row, number), hit in answer_hits(best, packed).items():
            hits[batch.skills[row][number - 1]].append(hit)
    return {skill: (sum(h) / len(h), len(h)) for skill, h in sorted(hits.items())}


def told(scores: dict[str, tuple[float, int]]) -> str:
    """One line; a name in brackets is no skill and does not count for the mean."""
    skills = [score for name, score in scores.items() if not name.startswith("(")]
    mean = sum(s * n for s, n in skills) / max(1, sum(n for _, n in skills))
    return f"all {mean:.3f} | " + " ".join(f"{k} {s:.2f}" for k, (s, _) in scores.items())


def train_language(
    out: Path,
    tokenizer: PreTrainedTokenizerFast,
    world: World,
    minutes: float,
    *,
    seed: int = 0,
    tiny: bool = False,
    scale: float = 1.0,
    compact_share: float = 0.4,
    device: str = "cpu",
) -> tuple[LlamaForCausalLM, Symbols, Referents, Census]:
    """Train (or go on training) on symbolic pictures; the state is kept in `out/language.pt`.

    Batches are compact for the first `compact_share` of the time, every third is a grid after it;
    `scale` multiplies their sizes.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(language_config(len(tokenizer), tiny)).to(device)
    symbols = Symbols(model.config.hidden_size).to(device)
    referents = Referents(model.config.hidden_size).to(device)
    census = Census(model.config.hidden_size).to(device)
    parts = {"model": model, "symbols": symbols, "referents": referents, "census": census}
    training = Training(out / "language.pt", minutes, parts)
    packer = Packer(tokenizer)
    number = training.kept.get("number", 1_000_000 * (seed + 1))
    sampler = SkillSampler(training.kept.get("right", {}))
    losses: list[float] = []
    while training.progress < 1:
        course = batch_plan_at(training.progress, training.step, compact_share, scale)
        batch, number = make_question_batch(packer, number, world, course, sampler=sampler)
        packed = batch.packed.to(device)
        with fast_autocast(device):
            visual = symbols(batch.rows.to(device), course.grid).flatten(0, -2)
            whole, loss, hits = step_loss(
                model, referents, census, packed, visual, batch.referents, batch.counts
            )
        training.learn(whole)
        sampler.update(hits, batch.skills)
        losses.append(loss)
        if training.step % 200 == 0:
            print(
                f"language {training.clock.elapsed / 60:.1f} min step {training.step} "
                f"grid {course.grid} loss {np.mean(losses[-200:]):.3f}",
                flush=True,
            )
        if training.due("score", 240):
            for grid in (False, True):
                scores = symbolic_score(model, symbols, packer, world, 60, grid, device)
                print(f"language score grid {grid} {told(scores)}", flush=True)
        if training.due("save", 120):
            training.save(number=number, right=sampler.accuracy)
    return model.eval(), symbols, referents, census
