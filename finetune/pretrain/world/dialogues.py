"""Conversations of many turns, about one to three pictures that come one after another.

In between there is small talk, and questions about earlier pictures by their number.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from finetune.pretrain.world.mixture import World
from finetune.pretrain.world.pairs import comparable, compare
from finetune.pretrain.world.scene import QA, Scene, Split
from finetune.pretrain.world.wording.small_talk import small_talk, without_picture

ORDINALS = ("first", "second", "third")
LENGTHS = (3, 6, 10, 16, 24, 30)
"""The numbers of turns of dialogues; a few more come from questions that need earlier ones."""
ASIDE, EARLIER, COMPARISON = 0.12, 0.25, 0.12
"""The shares of turns of small talk, about an earlier picture, and about two together."""
_THE_PICTURE = re.compile(r"\b(?:the|this) (picture|image|photo|scene)\b")


@dataclass(frozen=True)
class DialogueTurn:
    """A question, and whether a new picture comes with it. The question has no `before`."""

    qa: QA
    new_picture: bool = False


@dataclass(frozen=True)
class Dialogue:
    """The pictures in the order in which they come, and the turns."""

    scenes: tuple[Scene, ...]
    turns: tuple[DialogueTurn, ...]


def with_ordinal(qa: QA, ordinal: str, rng: random.Random) -> QA | None:
    """Return a question about the first (second, ...) of several pictures.

    None if its wording does not allow it.
    """
    question = qa.question
    if qa.before or not question[:1].isalpha() or ". " in question:
        return None
    if _THE_PICTURE.search(question):
        question = _THE_PICTURE.sub(rf"the {ordinal} \1", question)
    elif question.endswith("?") and rng.random() < 0.5:
        question = f"{question[:-1]} in the {ordinal} picture?"
    else:
        question = f"In the {ordinal} picture, {question[:1].lower()}{question[1:]}"
    sentence = qa.sentence.replace("the picture", f"the {ordinal} picture")
    sentence = sentence.replace("The picture", f"The {ordinal} picture")
    return replace(qa, question=question, sentence=sentence)


class _Questions:
    """Questions about one scene, none of them twice while others are left."""

    def __init__(self, world: World, scene: Scene, rng: random.Random, split: Split) -> None:
        self._arguments = (scene, rng, split)
        self._world = world
        self._left: list[QA] = []

    def next(self) -> QA:
        """Return a question about the scene."""
        if not self._left:
            scene, rng, split = self._arguments
            self._left = self._world.ask(scene, rng, split)
            rng.shuffle(self._left)
        return self._left.pop()


def make_dialogue(
    world: World,
    scenes: Sequence[Scene],
    rng: random.Random,
    split: Split = "train",
    length: int | None = None,
) -> Dialogue:
    """Make a dialogue about pictures.

    Args:
        world: The rooms of the scenes.
        scenes: The pictures, up to three.
        rng: The source of randomness.
        split: Held-out wordings occur in "test" only.
        length: The number of turns; random if None. Turns that a question needs come on top.
    """
    length = length or rng.choice(LENGTHS)
    arrivals = _arrivals(len(scenes), length, rng)
    asked = [_Questions(world, scene, rng, split) for scene in scenes]
    turns: list[DialogueTurn] = []
    shown = position = 0
    while position < length or shown < len(scenes):
        if shown < len(scenes) and position >= arrivals[shown]:
            shown += 1
            first, *rest = _with_earlier_turns(asked[shown - 1].next())
            turns += [DialogueTurn(first, new_picture=True), *map(DialogueTurn, rest)]
        else:
            turns += map(DialogueTurn, _turn(scenes[:shown], asked[:shown], rng, split))
        position += 1
    return Dialogue(tuple(scenes), tuple(turns))


def _arrivals(count: int, length: int, rng: random.Random) -> list[int]:
    """Return the turns at which the pictures come; the first mostly at once."""
    later = range(1, max(length, count + 1))
    first = 0 if rng.random() < 0.85 else 1
    return [first, *sorted(max(first + 1, at) for at in rng.sample(later, count - 1))]


def _turn(
    scenes: Sequence[Scene], asked: Sequence[_Questions], rng: random.Random, split: Split
) -> list[QA]:
    """Return a question without a new picture, after those that it needs."""
    if not scenes:
        return [rng.choice((small_talk, small_talk, without_picture))(rng, split)]
    roll = rng.random()
    if roll < ASIDE:
        return [small_talk(rng, split)]
    if len(scenes) > 1 and roll < ASIDE + EARLIER:
        # Not always an earlier one: the last picture has a number, too.
        at = rng.randrange(len(scenes))
        qa = with_ordinal(asked[at].next(), ORDINALS[at], rng)
        if qa is not None:
            return [qa]
    first, *others = scenes
    can_compare = len(others) == 1 and first.room == others[0].room
    if (
        can_compare
        and roll > 1 - COMPARISON
        and comparable(first)
        and comparable(others[0])
        and (qas := compare(first, others[0], rng, split, 1))
    ):
        return qas
    return _with_earlier_turns(asked[-1].next())


def _with_earlier_turns(qa: QA) -> list[QA]:
    """Return a question after the earlier turns that it refers to."""
    return [*qa.before, replace(qa, before=())]
