"""Batches of questions about symbolic pictures, and how they change in the course of training.

`batch_plan_at` schedules how difficult batches are; `SkillSampler` decides how often each skill is
asked.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from finetune.pretrain import patch_targets
from finetune.pretrain.patch_grid import PatchGrid
from finetune.pretrain.sequences import (
    PICTURE,
    Hits,
    PackedBatch,
    Packer,
    PictureConversations,
    Turns,
    branches,
    turns_of,
)
from finetune.pretrain.world import QA, Scene, Split
from finetune.pretrain.world.dialogues import Dialogue, make_dialogue
from finetune.pretrain.world.mixture import World
from finetune.pretrain.world.pairs import make_pair
from finetune.pretrain.world.wording.small_talk import small_talk, without_picture

MAX_REFERENTS = 4
"""The most objects of a question that serve as targets."""
ReferentTargets = dict[tuple[int, int], tuple[list[np.ndarray], tuple[int, ...]]]
"""(row, branch) -> the objects (rows of patch targets) and counts that the answer depends on."""
CountTargets = dict[int, np.ndarray]
"""Row -> `patch_targets.object_counts` of its picture, if it has exactly one drawn picture."""


def referent_targets(questions: Sequence[Sequence[QA]], rooms: Sequence[str]) -> ReferentTargets:
    """Return what the answers of each row's questions, one per branch, depend on.

    Objects without a class of their own are left out, such as a die, which consists of its pips.
    """
    found: ReferentTargets = {}
    for row, (qas, room) in enumerate(zip(questions, rooms, strict=True)):
        for number, qa in enumerate(qas, 1):
            items = qa.about[:MAX_REFERENTS]
            if not all((room, item.kind) in patch_targets.KIND_INDEX for item in items):
                items = ()
            if items or qa.counts:
                found[row, number] = (
                    [patch_targets.item_row(room, item) for item in items],
                    qa.counts,
                )
    return found


def scene_questions(
    world: World, scene: Scene, rng: random.Random, split: Split, rounds: int = 1
) -> list[QA]:
    """Return the room's questions, sometimes with small talk in between.

    More `rounds` give `SkillSampler.sample` more to choose from.
    """
    made = [qa for _ in range(rounds) for qa in world.ask(scene, rng, split)]
    qas = list({(qa.question, qa.sentence): qa for qa in made}.values())
    if rng.random() < 0.15:
        qas.insert(rng.randrange(len(qas) + 1), small_talk(rng, split))
    return qas


def questions_without_picture(rng: random.Random, split: Split, count: int = 6) -> list[QA]:
    """Return questions for a row that has no picture."""
    return [rng.choice((small_talk, without_picture))(rng, split) for _ in range(count)]


@dataclass
class QuestionBatch:
    """A packed batch of questions about scenes.

    `rows` are the patch targets that stand for the pictures: [objects, COLUMNS], or
    [scenes, patches, COLUMNS] for grids. `skills[row][branch - 1]` is the skill of a branch.
    """

    packed: PackedBatch
    rows: torch.Tensor
    skills: list[list[str]]
    referents: ReferentTargets
    counts: CountTargets


@dataclass(frozen=True)
class BatchPlan:
    """What a batch contains.

    Few questions about many scenes train faster than many about few, except where the many tokens
    of a grid are shared by them. Relations and descriptions are learned last.
    """

    scenes: int
    questions: int
    grid: bool
    most_objects: int = 99
    """The most objects in a picture; scenes with more are skipped."""
    basic: float = 0.0
    """The share of questions outside `BASIC` that is left out."""
    short: float = 0.6
    """The share of single-word answers."""
    limit: int = 560
    """The most tokens of a row's conversations; rows of similar length need little padding."""


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


SKILL_FACTORS = {
    "caption": 0.5,
    "overview": 0.5,
    "describe": 0.3,
    "pair": 0.7,
    "arithmetic": 0.4,
    "time": 0.5,
}
"""Factors of `SkillSampler.weight` for skills that improve slowly, so that they do not dominate."""


@dataclass
class SkillSampler:
    """Samples questions so that skills with more wrong answers are asked more often.

    `accuracy` is the running share of correct answers of each skill.
    """

    accuracy: dict[str, float] = field(default_factory=dict)

    def update(self, hits: Hits, skills: Sequence[Sequence[str]]) -> None:
        """Update the accuracy with the results of a batch; `skills[row][branch - 1]`.

        Rows without an entry in `skills` are ignored.
        """
        for (row, branch), hit in hits.items():
            if row < len(skills):
                skill = skills[row][branch - 1]
                before = self.accuracy.get(skill, 0.5)
                self.accuracy[skill] = before + 0.003 * (hit - before)

    def weight(self, skill: str) -> float:
        """Return how often a skill is sampled, relative to others."""
        return max(0.05, (1 - self.accuracy.get(skill, 0.5)) * SKILL_FACTORS.get(skill, 1.0))

    def sample(self, qas: Sequence[QA], rng: random.Random, count: int) -> list[QA]:
        """Return up to `count` questions by weight, without replacement.

        The method is that of Efraimidis and Spirakis (2006).
        """
        keys = [rng.random() ** (1 / self.weight(qa.skill)) for qa in qas]
        order = sorted(range(len(qas)), key=keys.__getitem__, reverse=True)
        return [qas[k] for k in order[:count]]


def batch_plan_at(
    progress: float, step: int, compact_share: float, scale: float = 1.0
) -> BatchPlan:
    """Return the plan for a moment of training, from easy to difficult.

    Simple questions come first, then all questions about few objects, then about many, then grids.

    Args:
        progress: The share of the training time that has passed.
        step: The number of the step.
        compact_share: The share of the training time before grids are used.
        scale: Multiplies the number of scenes.
    """

    def scenes(count: int) -> int:
        return max(2, round(count * scale))

    part = progress / compact_share
    if part < 0.15:
        return BatchPlan(scenes(24), 4, False, 4, 0.9, 0.9, limit=80)
    if part < 0.55:  # relations are learned best between two or three objects
        return BatchPlan(scenes(28), 5, False, 3, short=0.75, limit=112)
    if part < 0.8:
        return BatchPlan(scenes(28), 5, False, 5, short=0.7, limit=112)
    if part < 1 or step % 3:
        return BatchPlan(scenes(28), 6, False, short=0.7, limit=112)
    return BatchPlan(scenes(12), 9, True, short=0.7, limit=180)


PAIR_EVERY = 12
"""One in this many rows of a batch asks about two pictures. Of grids, whose many tokens pad every
row to the length of two pictures, every fourth batch has four times as many."""


def make_question_batch(
    packer: Packer,
    first: int,
    world: World,
    grid: PatchGrid,
    plan: BatchPlan,
    split: Split = "train",
    sampler: SkillSampler | None = None,
) -> tuple[QuestionBatch, int]:
    """Make a batch about scenes from number `first` on, and return the next number.

    The scenes are represented as grids of patches or as shuffled lists of objects.
    """
    sampler = sampler or SkillSampler()
    to_pack: list[PictureConversations] = []
    tables, questions, rooms = [], [], []
    counts: CountTargets = {}
    number = first
    pair_every = PAIR_EVERY
    if plan.grid:
        pair_every = PAIR_EVERY // 4 if random.Random(first).random() < 0.25 else 10**6
    while len(to_pack) < plan.scenes:
        rng = random.Random(f"quiz-{split}-{number}")
        if split == "train" and len(to_pack) % pair_every == pair_every - 1:
            pair = make_pair(number, split, rooms=world.rooms)
            scenes: tuple[Scene, ...] = pair.scenes
            qas = list(pair.questions)
        else:
            scene = world.make_scene(number, split)
            scenes = (scene,)
            qas = scene_questions(world, scene, rng, split, 2 if split == "train" else 1)
        number += 1
        if not all(0 < len(scene.items) <= plan.most_objects for scene in scenes):
            continue
        qas = [qa for qa in qas if qa.skill in BASIC or rng.random() >= plan.basic]
        qas = sampler.sample(qas, rng, plan.questions)
        shown = [symbols_of(scene, grid, plan.grid, number) for scene in scenes]
        if split == "train":
            made = branches(qas, rng, plan.short)
        else:
            made = [(turns_of(qa, rng), qa) for qa in qas]
        if is_counted(scenes):
            counts[len(to_pack)] = patch_targets.object_counts(scenes[0])
        conversations = [turns for turns, _ in made]
        to_pack.append(PictureConversations([len(table) for table in shown], conversations))
        tables += shown
        questions.append([qa for _, qa in made])
        rooms.append(scenes[0].room)
    rng = random.Random(f"talk-{split}-{first}")
    talk = questions_without_picture(rng, split, max(1, plan.scenes // 8))
    to_pack.append(PictureConversations((), [turns_of(qa, rng) for qa in talk]))
    skills = [[qa.skill for qa in qas] for qas in (*questions, talk)]
    rows = torch.from_numpy((np.stack if plan.grid else np.concatenate)(tables)).long()
    packed = packer.pack(to_pack, plan.limit)
    targets = referent_targets(questions, rooms)
    return QuestionBatch(packed, rows, skills, targets, counts), number


def symbols_of(scene: Scene, grid: PatchGrid, as_grid: bool, seed: int) -> np.ndarray:
    """Return a symbolic picture: the patches of the grid, or the objects in random order."""
    if as_grid:
        return grid.targets(scene)
    return np.random.default_rng(seed).permutation(patch_targets.objects(scene))


def is_counted(scenes: Sequence[Scene]) -> bool:
    """Return whether the objects of a row's pictures are a target of `CountHead`.

    A photograph shows more than its labelled object.
    """
    return len(scenes) == 1 and scenes[0].room != "photos"


DIALOGUE_EVERY = 5
"""Every how many batches one consists of dialogues, which are much longer than other rows."""
LONGEST_DIALOGUE = 900
"""The most tokens of a dialogue without those of its pictures; the rest is cut off."""


def pack_dialogue(
    packer: Packer,
    dialogue: Dialogue,
    sizes: Sequence[int],
    rng: random.Random,
    plain: bool = False,
) -> PictureConversations:
    """Return a dialogue as a row: a picture of its first question stands in the prefix.

    Args:
        packer: Used to count tokens.
        dialogue: The pictures and questions; at least the first question is kept.
        sizes: The number of tokens of each picture.
        rng: The source of randomness.
        plain: Whether to leave out typing noise.
    """
    short = rng.choice((True, False, False, None))
    turns: Turns = []
    arrived: list[int] = []
    tokens = 0
    for turn in dialogue.turns:
        ((question, answer),) = turns_of(turn.qa, rng, short, plain)
        tokens += len(packer.branch([(question, answer)])[0])
        if turns and tokens > LONGEST_DIALOGUE:
            break
        if turn.new_picture:
            question = question if not turns else PICTURE + question
            arrived.append(len(turns))
        turns.append((question, answer))
    before = 1 if arrived and arrived[0] == 0 else 0
    return PictureConversations(sizes[:before], [turns], sizes[before : len(arrived)])


def make_dialogue_batch(
    packer: Packer, first: int, world: World, grid: PatchGrid, plan: BatchPlan, count: int
) -> tuple[QuestionBatch, int]:
    """Make a batch of `count` dialogues about symbolic pictures, and return the next number."""
    rows: list[PictureConversations] = []
    tables: list[np.ndarray] = []
    number = first
    while len(rows) < count:
        rng = random.Random(f"dialogue-{number}")
        scenes = []
        for _ in range(rng.choice((1, 2, 2, 3))):
            scene = world.make_scene(number)
            number += 1
            if scene.items:
                scenes.append(scene)
        if not scenes:
            continue
        shown = [symbols_of(scene, grid, plan.grid, number) for scene in scenes]
        dialogue = make_dialogue(world, scenes, rng)
        row = pack_dialogue(packer, dialogue, [len(table) for table in shown], rng)
        tables += shown[: len(row.pictures) + len(row.later)]
        rows.append(row)
    symbols = torch.from_numpy((np.stack if plan.grid else np.concatenate)(tables)).long()
    skills = [["dialogue"]] * count
    return QuestionBatch(packer.pack(rows), symbols, skills, {}, {}), number
