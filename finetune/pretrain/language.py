"""Train the language model on symbolic pictures instead of pixels.

At first every object is one token, in random order. Later a picture is the encoder's grid of
patches, each an embedding of its row of `patch_targets`. The encoder later provides the same
information in its own representation, which the projector translates.
"""

from collections import defaultdict

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaForCausalLM

from finetune.kernels import shared_prefix
from finetune.pretrain import patch_targets
from finetune.pretrain.curriculum import (
    DIALOGUE_EVERY,
    MAX_REFERENTS,
    BatchPlan,
    CountTargets,
    ReferentTargets,
    SkillSampler,
    batch_plan_at,
    make_dialogue_batch,
    make_question_batch,
)
from finetune.pretrain.model import language_config
from finetune.pretrain.optim import (
    StageConfig,
    Training,
    broadcast_weights,
    fast_autocast,
    rank,
)
from finetune.pretrain.patch_grid import PatchGrid
from finetune.pretrain.sequences import Hits, PackedBatch, Packer, answer_hits, answer_starts
from finetune.pretrain.world.mixture import World


class SymbolEmbedding(nn.Module):
    """The embedding of a row of `patch_targets`; `grid` adds the position among `patches`."""

    def __init__(self, width: int, patches: int) -> None:
        super().__init__()
        self.owned = nn.Embedding(3, width)
        self.centre = nn.Embedding(2, width)
        self.classes = nn.ModuleList(nn.Embedding(n, width) for n in patch_targets.CLASSES.values())
        self.places = nn.Linear(patch_targets.GEOMETRY, width)
        self.cells = nn.Embedding(patches, width)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.04)
        nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, rows: torch.Tensor, grid: bool) -> torch.Tensor:
        """Embed rows [..., COLUMNS] long -> [..., width]; patches at edges count as background."""
        owned = (rows[..., patch_targets.OWNED] == 1)[..., None]
        described = self.centre(rows[..., patch_targets.CENTRE]) + self.places(
            patch_targets.geometry(rows)
        )
        for column, table in zip(patch_targets.CLASSES, self.classes, strict=True):
            described = described + table(rows[..., column])
        out = described * owned + self.owned(rows[..., patch_targets.OWNED] % 2)
        return out + self.cells.weight if grid else out


States = tuple[torch.Tensor, ...]
"""The hidden states before the first layer and after each layer: [rows, length, width] each."""


class ReferentHeads(nn.Module):
    """Auxiliary heads that predict the objects and counts that an answer depends on.

    They read the last token before the answer, after layer `LAYER`. `MAX_REFERENTS` heads predict
    the patch targets of one object each; `NUMBERS` heads predict how many objects fit a
    description. They are discarded after training. Without them the language model learns slowly
    to find objects by their descriptions, and more slowly still to compare or count them, because
    an answer alone carries little training signal.
    """

    LAYER = 3
    NUMBERS = 2
    MAX_COUNT = 10
    """The highest count; larger ones are clipped to it."""
    COLUMNS = (patch_targets.KIND, patch_targets.COLOUR, patch_targets.SIZE, patch_targets.FILL)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [
            *(patch_targets.CLASSES[column] for column in self.COLUMNS),
            patch_targets.GEOMETRY,
        ]
        self.norm = nn.RMSNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, sum(self.sizes)) for _ in range(MAX_REFERENTS))
        self.numbers = nn.ModuleList(
            nn.Linear(width, self.MAX_COUNT + 1) for _ in range(self.NUMBERS)
        )

    def loss(self, states: States, packed: PackedBatch, targets: ReferentTargets) -> torch.Tensor:
        """Return the mean loss per object plus the weighted mean loss per count."""
        hidden = states[min(self.LAYER, len(states) - 1)]
        starts = answer_starts(packed)
        # Every parameter gets a gradient in every step, as data-parallel training requires.
        total = torch.stack([0 * p.sum() for p in self.parameters()]).sum()
        count = 0
        numbers = []

        def states_of(questions: list[tuple[int, int]]) -> torch.Tensor:
            """Return the normalised states [questions, width] of (row, branch) pairs."""
            at = torch.tensor([(row, starts[row, branch]) for row, branch in questions])
            return self.norm(hidden[at[:, 0], at[:, 1]])

        for k, head in enumerate(self.heads):
            found = {
                at: objects[k]
                for at, (objects, _) in targets.items()
                if at in starts and len(objects) > k
            }
            if not found:
                continue
            rows = torch.from_numpy(np.stack(list(found.values()))).long().to(hidden.device)
            predictions = head(states_of(list(found))).float()
            *classes, places = predictions.split(self.sizes, dim=-1)
            for column, logits in zip(self.COLUMNS, classes, strict=True):
                total = total + F.cross_entropy(logits, rows[:, column], reduction="sum")
            error = (places - patch_targets.geometry(rows)).square().mean(-1).sum()
            total, count = total + 4 * error, count + len(rows)
        for k, head in enumerate(self.numbers):
            fit = {
                at: min(counts[k], self.MAX_COUNT)
                for at, (_, counts) in targets.items()
                if at in starts and len(counts) > k
            }
            if fit:
                labels = torch.tensor(list(fit.values()), device=hidden.device)
                logits = head(states_of(list(fit))).float()
                losses = F.cross_entropy(logits, labels, reduction="none")
                numbers.append(losses)
        total = total / max(1, count)
        return total + 2 * torch.cat(numbers).mean() if numbers else total


class CountHead(nn.Module):
    """An auxiliary head that counts a picture's objects by kind, colour and fill.

    It reads the last token of the picture, which attends to all of it, after layer `LAYER`, so
    that questions about counts find the totals there. It is discarded after training.
    """

    LAYER = 2

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, patch_targets.COUNT_CLASSES * (ReferentHeads.MAX_COUNT + 1))

    def loss(self, states: States, packed: PackedBatch, counts: CountTargets) -> torch.Tensor:
        """Return the loss; counts above zero and the many zeros have equal weight."""
        zero = torch.stack([0 * p.sum() for p in self.parameters()]).sum()
        if not counts:
            return zero
        hidden = states[min(self.LAYER, len(states) - 1)]
        rows = torch.tensor(list(counts), device=hidden.device)
        ends = (packed.segments[rows] == 0).sum(1) - 1
        labels = torch.from_numpy(np.stack(list(counts.values()))).to(hidden.device)
        logits = self.head(self.norm(hidden[rows, ends])).float()
        losses = F.cross_entropy(
            logits.view(labels.numel(), -1),
            labels.clamp(max=ReferentHeads.MAX_COUNT).flatten(),
            reduction="none",
        )
        present = labels.flatten() > 0
        return losses[present].mean() + losses[~present].mean()


def run_packed(
    model: LlamaForCausalLM, packed: PackedBatch, visual: torch.Tensor
) -> tuple[torch.Tensor, States]:
    """Return the last layer's output [rows, length, width] and all hidden states.

    `visual` [visual tokens of the batch, width] replaces the image tokens' embeddings.
    """
    embeds = model.get_input_embeddings()(packed.ids)
    embeds = embeds.masked_scatter(packed.visual[..., None], visual.to(embeds.dtype))
    device = embeds.device.type
    if torch.is_autocast_enabled(device):  # also for the residual stream: 20 % faster on CPUs
        embeds = embeds.to(torch.get_autocast_dtype(device))
    model.set_attn_implementation(shared_prefix.NAME)
    out = model.model(
        inputs_embeds=embeds,
        position_ids=packed.positions,
        # Unused: transformers passes masks with four dimensions on as they are.
        attention_mask=packed.ids.new_ones((1, 1, 1, 1), dtype=torch.bool),
        use_cache=False,
        branches=packed.branches(),
        output_hidden_states=True,
    )
    return out.last_hidden_state, out.hidden_states


def answer_loss(
    model: LlamaForCausalLM, hidden: torch.Tensor, packed: PackedBatch
) -> tuple[torch.Tensor, Hits]:
    """Return the mean cross-entropy of the answers' tokens and which answers are fully correct.

    Logits are computed for the answers' tokens only.
    """
    targets = packed.labels[:, 1:]
    answers = targets != -100
    states = hidden[:, :-1][answers]
    # Padded to few different shapes, as in `branch_layout`.
    padding = states.new_zeros(-len(states) % 128, states.shape[1])
    logits = model.lm_head(torch.cat((states, padding)))[: len(states)].float()
    best = torch.full_like(packed.ids, -1)
    best[:, :-1][answers] = logits.argmax(-1)
    return F.cross_entropy(logits, targets[answers]), answer_hits(best, packed)


REFERENT_SHARE, COUNT_SHARE = 0.3, 0.2
"""The weights of the auxiliary heads' losses; the answers' loss has weight 1."""


def step_loss(
    model: LlamaForCausalLM,
    referent_heads: ReferentHeads,
    count_head: CountHead,
    packed: PackedBatch,
    visual: torch.Tensor,
    referents: ReferentTargets,
    counts: CountTargets,
) -> tuple[torch.Tensor, float, Hits]:
    """Return the total loss, the answers' loss and which answers are correct."""
    hidden, states = run_packed(model, packed, visual)
    loss, hits = answer_loss(model, hidden, packed)
    referent_loss = referent_heads.loss(states, packed, referents)
    count_loss = count_head.loss(states, packed, counts)
    return loss + REFERENT_SHARE * referent_loss + COUNT_SHARE * count_loss, loss.item(), hits


@torch.no_grad()
def symbolic_score(
    model: LlamaForCausalLM,
    symbols: SymbolEmbedding,
    packer: Packer,
    world: World,
    grid: PatchGrid,
    scenes: int,
    as_grid: bool,
    device: str = "cpu",
) -> dict[str, tuple[float, int]]:
    """Return {skill: (exact match, questions)} on symbolic pictures of held-out scenes."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, scenes, 20):
        plan = BatchPlan(min(20, scenes - start), 12, as_grid)
        batch, _ = make_question_batch(packer, 1000 * start, world, grid, plan, "test")
        packed = batch.packed.to(device)
        with fast_autocast(device):
            visual = symbols(batch.rows.to(device), as_grid)
            hidden, _ = run_packed(model, packed, visual.flatten(0, -2))
            best = model.lm_head(hidden).argmax(-1)
        for (row, number), hit in answer_hits(best, packed).items():
            hits[batch.skills[row][number - 1]].append(hit)
    return {skill: (sum(h) / len(h), len(h)) for skill, h in sorted(hits.items())}


def format_scores(scores: dict[str, tuple[float, int]]) -> str:
    """Format scores as one line; names in brackets are not skills and left out of the mean."""
    skills = [score for name, score in scores.items() if not name.startswith("(")]
    mean = sum(s * n for s, n in skills) / max(1, sum(n for _, n in skills))
    return f"all {mean:.3f} | " + " ".join(f"{k} {s:.2f}" for k, (s, _) in scores.items())


def train_language(
    stage: StageConfig, *, scale: float = 1.0, compact_share: float = 0.4
) -> tuple[LlamaForCausalLM, SymbolEmbedding, ReferentHeads, CountHead]:
    """Train on symbolic pictures, or continue from the state in `language.pt`.

    Processes joined by `optim.join_group` train in parallel.

    Args:
        stage: Folder, rooms, steps, seed and device.
        scale: Multiplies the batch size and the number of held-out scenes.
        compact_share: The share of the steps in which every batch consists of lists of objects;
            later every third consists of grids.
    """
    torch.manual_seed(stage.seed)
    model = LlamaForCausalLM(language_config(len(stage.tokenizer), stage.tiny))
    model.to(stage.device)  # type: ignore[arg-type]  # `to` is wrapped, its types are lost
    width = model.config.hidden_size
    symbols = SymbolEmbedding(width, stage.grid.tokens).to(stage.device)
    referent_heads = ReferentHeads(width).to(stage.device)
    count_head = CountHead(width).to(stage.device)
    parts = {"model": model, "symbols": symbols, "referents": referent_heads, "census": count_head}
    training = Training(stage.out / "language.pt", stage.steps, parts)
    packer = Packer(stage.tokenizer)
    number = training.kept.get("number", 1_000_000 * (stage.seed + 1)) + 200_000_000 * rank()
    sampler = SkillSampler(training.kept.get("right", {}))
    broadcast_weights(parts.values())
    losses: list[float] = []
    scored = max(10, round(60 * scale))
    while training.progress < 1:
        plan = batch_plan_at(training.progress, training.step, compact_share, scale)
        # Dialogues need everything else, so they begin with the grids.
        if training.progress > compact_share and training.step % DIALOGUE_EVERY == 1:
            count = max(1, plan.scenes // 5)
            batch, number = make_dialogue_batch(
                packer, number, stage.world, stage.grid, plan, count
            )
        else:
            batch, number = make_question_batch(
                packer, number, stage.world, stage.grid, plan, sampler=sampler
            )
        packed = batch.packed.to(stage.device)
        with fast_autocast(stage.device):
            visual = symbols(batch.rows.to(stage.device), plan.grid).flatten(0, -2)
            whole, loss, hits = step_loss(
                model, referent_heads, count_head, packed, visual, batch.referents, batch.counts
            )
        training.learn(whole)
        sampler.update(hits, batch.skills)
        losses.append(loss)
        if rank():
            continue
        if training.step % 200 == 0:
            print(
                f"language {training.seconds / 60:.1f} min step {training.step} "
                f"grid {plan.grid} loss {np.mean(losses[-200:]):.3f}",
                flush=True,
            )
        if training.due("score", 600):
            for as_grid in (False, True):
                scores = symbolic_score(
                    model, symbols, packer, stage.world, stage.grid, scored, as_grid, stage.device
                )
                print(f"language score grid {as_grid} {format_scores(scores)}", flush=True)
        if training.due("save", 120):
            training.save(number=number, right=sampler.accuracy)
    return model.eval(), symbols, referent_heads, count_head
