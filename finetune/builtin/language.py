"""Stage 0b: the language model learns the world's questions on symbols instead of pixels.

First every object is one token (shuffled, at most ten), then the picture is the encoder's grid of
patches, each an embedding of what `dense` says is under it. What the encoder has to add later is
only the same information in its own code, which the projector translates.
"""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from finetune import branching
from finetune.builtin import dense
from finetune.builtin.model import language_config
from finetune.builtin.optim import Clock, MuonAdam, load_state, rate_at, save_state
from finetune.builtin.packing import (
    Hits,
    Packed,
    Packer,
    Row,
    answer_hits,
    answer_starts,
    branches,
    turns_of,
)
from finetune.builtin.pictures import draw_room
from finetune.builtin.world import QA, ROOMS, Scene, Split, make_scene
from finetune.builtin.world.pairs import make_pair
from finetune.builtin.world.talk import small_talk, without_picture


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


class Referents(nn.Module):
    """Throw-away heads that say what a question turns on, before it is answered.

    They read the token that the answer follows, after layer `LAYER`: `OBJECTS` of them name an
    object each, taught what `dense` says of it, and `NUMBERS` say how many objects fit a
    description. Without them the language model takes long to find an object by its description,
    and longer to compare two or to count: an answer alone says little about what was missed.
    """

    LAYER = 3
    OBJECTS, NUMBERS = 4, 2
    MOST = 10
    """What is counted to."""
    COLUMNS = (dense.KIND, dense.COLOUR, dense.SIZE, dense.FILL)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [*(dense.CLASSES[column] for column in self.COLUMNS), dense.GEOMETRY]
        self.norm = nn.RMSNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, sum(self.sizes)) for _ in range(self.OBJECTS))
        self.numbers = nn.ModuleList(nn.Linear(width, self.MOST + 1) for _ in range(self.NUMBERS))

    def loss(self, hidden: torch.Tensor, packed: Packed, sought: "Sought") -> torch.Tensor:
        """`hidden` [rows, length, width] of layer `LAYER`; the objects' mean and the numbers'."""
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
            error = (places - dense.geometry(rows)).square().mean(-1).sum()
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


Sought = dict[tuple[int, int], tuple[list[np.ndarray], tuple[int, ...]]]
"""(row, branch) -> what its last question turns on: rows of `dense` of objects, and numbers."""


def sought_in(asked: Sequence[Sequence[QA]], rooms: Sequence[str]) -> Sought:
    """What the questions of each row, in the order of their branches, turn on.

    Objects that `dense` has no class for (a die is made of pips) are left out.
    """
    found: Sought = {}
    for row, (qas, room) in enumerate(zip(asked, rooms, strict=True)):
        for number, qa in enumerate(qas, 1):
            items = qa.about[: Referents.OBJECTS]
            if not all((room, item.kind) in dense.KIND_INDEX for item in items):
                items = ()
            if items or qa.counts:
                found[row, number] = [dense.item_row(room, item) for item in items], qa.counts
    return found


def run_packed(
    model: LlamaForCausalLM, packed: Packed, visual: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of the last layer and of `Referents.LAYER`, each [rows, length, width];
    `visual` [visual tokens of the batch, width]."""
    embeds = model.get_input_embeddings()(packed.ids)
    embeds = embeds.masked_scatter(packed.visual[..., None], visual.to(embeds.dtype))
    device = embeds.device.type
    if torch.is_autocast_enabled(device):  # the residual stream too: a fifth faster on CPUs
        embeds = embeds.to(torch.get_autocast_dtype(device))
    model.set_attn_implementation(branching.NAME)
    out = model.model(
        inputs_embeds=embeds,
        position_ids=packed.positions,
        attention_mask=packed.ids.new_ones((1, 1, 1, 1), dtype=torch.bool),  # as it is: unused
        use_cache=False,
        branches=packed.branches(),
        output_hidden_states=True,
    )
    layer = min(Referents.LAYER, model.config.num_hidden_layers)
    return out.last_hidden_state, out.hidden_states[layer]


def answer_loss(
    model: LlamaForCausalLM, hidden: torch.Tensor, packed: Packed
) -> tuple[torch.Tensor, Hits]:
    """Mean cross-entropy of the answers' tokens (logits are computed for these alone), and which
    branches were answered rightly throughout."""
    wanted = packed.labels[:, 1:]
    answers = wanted != -100
    said = hidden[:, :-1][answers]
    spare = said.new_zeros(-len(said) % 128, said.shape[1])  # few shapes, as in `branches_of`
    logits = model.lm_head(torch.cat((said, spare)))[: len(said)].float()
    best = torch.full_like(packed.ids, -1)
    best[:, :-1][answers] = logits.argmax(-1)
    return F.cross_entropy(logits, wanted[answers]), answer_hits(best, packed)


def questions(scene: Scene, rng: random.Random, split: Split, rounds: int = 1) -> list[QA]:
    """The room's questions, and now and then small talk in between. More rounds give
    `Emphasis.chosen` more to choose from."""
    asked = [qa for _ in range(rounds) for qa in ROOMS[scene.room].ask(scene, rng, split)]
    qas = list({(qa.question, qa.sentence): qa for qa in asked}.values())
    if rng.random() < 0.15:
        qas.insert(rng.randrange(len(qas) + 1), small_talk(rng, split))
    return qas


def without_pictures(rng: random.Random, split: Split, count: int = 6) -> list[QA]:
    """Talk for a row that has no picture."""
    return [rng.choice((small_talk, without_picture))(rng, split) for _ in range(count)]


@dataclass
class Quiz:
    """A batch of scenes with their questions, packed. `skills[row][branch - 1]`."""

    packed: Packed
    rows: torch.Tensor
    skills: list[list[str]]
    sought: Sought


@dataclass(frozen=True)
class Course:
    """What a batch is made of. Few questions of many scenes teach faster than the reverse, but a
    grid's 64 tokens are better shared; relations and descriptions are learned last."""

    scenes: int
    questions: int
    grid: bool
    most_objects: int = 99
    basic: float = 0.0
    """Share of questions outside `BASIC` that is left out."""
    short: float = 0.6
    """Share of single-word answers."""
    limit: int = 640
    """Tokens of a row; rows of about equal length waste nothing on padding."""


BASIC = {
    "existence",
    "negation",
    "colour",
    "shape",
    "count",
    "fill",
    "size",
    "position",
    "smalltalk",
}


REFERENT_SHARE = 0.3
"""What the heads' loss counts beside the answers'."""

LESS = {"caption": 0.5, "describe": 0.3, "pair": 0.7, "arithmetic": 0.4, "time": 0.5}
"""Skills that stay wrong for long whatever is done: they must not take all the room."""


@dataclass
class Emphasis:
    """How often each skill is taught: the more often, the more of its answers are wrong.

    `right`: skill -> running share of right answers.
    """

    right: dict[str, float] = field(default_factory=dict)

    def grade(self, hits: Hits, skills: Sequence[Sequence[str]]) -> None:
        """`skills[row][branch - 1]` of a batch; rows without any are of talk."""
        for (row, branch), hit in hits.items():
            if row < len(skills):
                skill = skills[row][branch - 1]
                before = self.right.get(skill, 0.5)
                self.right[skill] = before + 0.003 * (hit - before)

    def weight(self, skill: str) -> float:
        return max(0.05, (1 - self.right.get(skill, 0.5)) * LESS.get(skill, 1.0))

    def chosen(self, qas: Sequence[QA], rng: random.Random, count: int) -> list[QA]:
        """At most `count` of the questions, by weight (Efraimidis and Spirakis, 2006)."""
        keys = [rng.random() ** (1 / self.weight(qa.skill)) for qa in qas]
        order = sorted(range(len(qas)), key=keys.__getitem__, reverse=True)
        return [qas[k] for k in order[:count]]


def course_at(progress: float, step: int, compact_share: float, scale: float = 1.0) -> Course:
    """Simple questions first, then everything on few objects, then on many, then the grid."""

    def scenes(count: int) -> int:
        return max(2, round(count * scale))

    part = progress / compact_share
    if part < 0.15:
        return Course(scenes(24), 4, False, 4, 0.9, 0.9, limit=96)
    if part < 0.55:  # relations are learned between two or three objects
        return Course(scenes(28), 5, False, 3, short=0.75, limit=128)
    if part < 0.8:
        return Course(scenes(28), 5, False, 5, short=0.7, limit=128)
    if part < 1 or step % 3:
        return Course(scenes(28), 6, False, short=0.7, limit=128)
    return Course(scenes(12), 9, True, short=0.7, limit=256)


PAIR_EVERY = 12
"""Every so many rows of a batch ask about two pictures."""


def make_quiz(
    packer: Packer,
    first: int,
    weights: Mapping[str, float],
    course: Course,
    split: Split = "train",
    emphasis: Emphasis | None = None,
) -> tuple[Quiz, int]:
    """Scenes from number `first` on, as grids or as shuffled objects, and the next number."""
    emphasis = emphasis or Emphasis()
    todo: list[Row] = []
    tables, asked, rooms = [], [], []
    number = first
    while len(todo) < course.scenes:
        rng = random.Random(f"quiz-{split}-{number}")
        if split == "train" and len(todo) % PAIR_EVERY == PAIR_EVERY - 1:
            pair = make_pair(number, split)
            scenes, qas = pair.scenes, list(pair.questions)
        else:
            scene = make_scene(number, draw_room(number, weights), split)
            scenes, qas = (scene,), questions(scene, rng, split, 2 if split == "train" else 1)
        number += 1
        if not all(0 < len(scene.items) <= course.most_objects for scene in scenes):
            continue
        qas = [qa for qa in qas if qa.skill in BASIC or rng.random() >= course.basic]
        qas = emphasis.chosen(qas, rng, course.questions)
        seen = [
            dense.patches(scene) if course.grid else shuffled(dense.objects(scene), number)
            for scene in scenes
        ]
        if split == "train":
            made = branches(qas, rng, course.short)
        else:
            made = [(turns_of(qa, rng), qa) for qa in qas]
        todo.append(([len(table) for table in seen], [turns for turns, _ in made]))
        tables += seen
        asked.append([qa for _, qa in made])
        rooms.append(scenes[0].room)
    rng = random.Random(f"talk-{split}-{first}")
    talk = without_pictures(rng, split, max(1, course.scenes // 8))
    todo.append(((), [turns_of(qa, rng) for qa in talk]))
    skills = [[qa.skill for qa in qas] for qas in (*asked, talk)]
    rows = torch.from_numpy(np.concatenate(tables)).long()
    return Quiz(packer.pack(todo, course.limit), rows, skills, sought_in(asked, rooms)), number


def shuffled(table: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(table)


@torch.no_grad()
def symbolic_score(
    model: LlamaForCausalLM,
    symbols: Symbols,
    packer: Packer,
    weights: Mapping[str, float],
    scenes: int,
    grid: bool,
    device: str = "cpu",
) -> dict[str, tuple[float, int]]:
    """skill -> (exact match, questions) on held-out scenes given as symbols."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, scenes, 20):
        course = Course(20, 12, grid)
        quiz, _ = make_quiz(packer, 1000 * start, weights, course, "test")
        packed = quiz.packed.to(device)
        with torch.autocast(device, torch.bfloat16):
            visual = symbols(quiz.rows.view(-1, *shape_of(quiz, grid)).to(device), grid)
            hidden, _ = run_packed(model, packed, visual.flatten(0, -2))
            best = model.lm_head(hidden).argmax(-1)
        for (row, number), hit in answer_hits(best, packed).items():
            hits[quiz.skills[row][number - 1]].append(hit)
    return {skill: (sum(h) / len(h), len(h)) for skill, h in sorted(hits.items())}


def shape_of(quiz: Quiz, grid: bool) -> tuple[int, ...]:
    return (dense.PATCHES, dense.COLUMNS) if grid else (dense.COLUMNS,)


def told(scores: dict[str, tuple[float, int]]) -> str:
    """One line; a name in brackets is no skill and does not count for the mean."""
    skills = [score for name, score in scores.items() if not name.startswith("(")]
    mean = sum(s * n for s, n in skills) / max(1, sum(n for _, n in skills))
    return f"all {mean:.3f} | " + " ".join(f"{k} {s:.2f}" for k, (s, _) in scores.items())


def train_language(
    out: Path,
    tokenizer: PreTrainedTokenizerFast,
    weights: Mapping[str, float],
    minutes: float,
    *,
    seed: int = 0,
    tiny: bool = False,
    scale: float = 1.0,
    compact_share: float = 0.4,
    device: str = "cpu",
) -> tuple[LlamaForCausalLM, Symbols, Referents]:
    """Train (or go on training) on symbolic pictures; the state is kept in `out/language.pt`.

    Batches are compact for the first `compact_share` of the time, every third is a grid after it;
    `scale` multiplies their sizes.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(language_config(len(tokenizer), tiny)).to(device)
    symbols = Symbols(model.config.hidden_size).to(device)
    referents = Referents(model.config.hidden_size).to(device)
    optimiser = MuonAdam([model, symbols, referents])
    packer = Packer(tokenizer)
    clock, step, number = Clock(minutes), 0, 1_000_000 * (seed + 1)
    state = load_state(out / "language.pt")
    if state:
        model.load_state_dict(state["model"])
        symbols.load_state_dict(state["symbols"])
        referents.load_state_dict(state["referents"])
        if "optimiser" in state:
            optimiser.load_state_dict(state["optimiser"])
        step, clock.spent, number = state["step"], state["spent"], state["number"]
    emphasis = Emphasis(state["right"] if state else {})
    saved = scored = clock.elapsed
    losses: list[float] = []
    while clock.progress < 1:
        course = course_at(clock.progress, step, compact_share, scale)
        quiz, number = make_quiz(packer, number, weights, course, emphasis=emphasis)
        grid = course.grid
        packed = quiz.packed.to(device)
        with torch.autocast(device, torch.bfloat16):
            visual = symbols(quiz.rows.view(-1, *shape_of(quiz, grid)).to(device), grid)
            hidden, middle = run_packed(model, packed, visual.flatten(0, -2))
            loss, hits = answer_loss(model, hidden, packed)
            found = referents.loss(middle, packed, quiz.sought)
        (loss + REFERENT_SHARE * found).backward()
        optimiser.step(rate_at(clock.progress, step))
        emphasis.grade(hits, quiz.skills)
        losses.append(loss.item())
        step += 1
        if step % 200 == 0:
            print(
                f"language {clock.elapsed / 60:.1f} min step {step} grid {grid} tokens "
                f"{tuple(packed.ids.shape)} loss {np.mean(losses[-200:]):.3f}",
                flush=True,
            )
        if clock.elapsed - scored > 240 or clock.progress >= 1:
            scored = clock.elapsed
            for kind in (False, True):
                scores = symbolic_score(model, symbols, packer, weights, 60, kind, device)
                print(f"language score grid {kind} {told(scores)}", flush=True)
        if clock.elapsed - saved > 120 or clock.progress >= 1:
            saved = clock.elapsed
            save_state(
                out / "language.pt",
                {
                    "model": model.state_dict(),
                    "symbols": symbols.state_dict(),
                    "referents": referents.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "right": emphasis.right,
                    "step": step,
                    "spent": saved,
                    "number": number,
                },
            )
    return model.eval(), symbols, referents
