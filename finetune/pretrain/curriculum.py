"""Batches of questions about symbolic pictures: what they hold, and which skills are asked how
often while a model learns (`Course`, `Emphasis`).
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from finetune.pretrain import patch_targets
from finetune.pretrain.scene_pool import draw_room
from finetune.pretrain.sequences import Hits, Packed, Packer, Row, branches, turns_of
from finetune.pretrain.world import QA, ROOMS, Scene, Split, make_scene
from finetune.pretrain.world.pairs import make_pair
from finetune.pretrain.world.wording.small_talk import small_talk, without_picture

OBJECTS = 4
"""At most so many of the objects that a question turns on are told."""
Sought = dict[tuple[int, int], tuple[list[np.ndarray], tuple[int, ...]]]
"""(row, branch) -> what its last question turns on: rows of `dense` of objects, and numbers."""


Totals = dict[int, np.ndarray]
"""Row -> `dense.census` of the picture, where it shows one."""


def sought_in(asked: Sequence[Sequence[QA]], rooms: Sequence[str]) -> Sought:
    """What the questions of each row, in the order of their branches, turn on.

    Objects that `dense` has no class for (a die is made of pips) are left out.
    """
    found: Sought = {}
    for row, (qas, room) in enumerate(zip(asked, rooms, strict=True)):
        for number, qa in enumerate(qas, 1):
            items = qa.about[:OBJECTS]
            if not all((room, item.kind) in patch_targets.KIND_INDEX for item in items):
                items = ()
            if items or qa.counts:
                found[row, number] = (
                    [patch_targets.item_row(room, item) for item in items],
                    qa.counts,
                )
    return found


def questions(scene: Scene, rng: random.Random, split: Split, rounds: int = 1) -> list[QA]:
    """The room's questions, and now and then small talk in between. More rounds give
    `Emphasis.chosen` more to choose from.
    """
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
    """Of `dense`: [objects, COLUMNS], of grids [scenes, PATCHES, COLUMNS]."""
    skills: list[list[str]]
    sought: Sought
    totals: Totals


@dataclass(frozen=True)
class Course:
    """What a batch is made of. Few questions of many scenes teach faster than the reverse, but a
    grid's 64 tokens are better shared; relations and descriptions are learned last.
    """

    scenes: int
    questions: int
    grid: bool
    most_objects: int = 99
    """In a picture; scenes with more are passed over."""
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
    totals: Totals = {}
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
            patch_targets.patches(scene)
            if course.grid
            else shuffled(patch_targets.objects(scene), number)
            for scene in scenes
        ]
        if split == "train":
            made = branches(qas, rng, course.short)
        else:
            made = [(turns_of(qa, rng), qa) for qa in qas]
        if len(scenes) == 1:
            totals[len(todo)] = patch_targets.census(scenes[0])
        todo.append(([len(table) for table in seen], [turns for turns, _ in made]))
        tables += seen
        asked.append([qa for _, qa in made])
        rooms.append(scenes[0].room)
    rng = random.Random(f"talk-{split}-{first}")
    talk = without_pictures(rng, split, max(1, course.scenes // 8))
    todo.append(((), [turns_of(qa, rng) for qa in talk]))
    skills = [[qa.skill for qa in qas] for qas in (*asked, talk)]
    rows = torch.from_numpy((np.stack if course.grid else np.concatenate)(tables)).long()
    packed = packer.pack(todo, course.limit)
    return Quiz(packed, rows, skills, sought_in(asked, rooms), totals), number


def shuffled(table: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(table)
