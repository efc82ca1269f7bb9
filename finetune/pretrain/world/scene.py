"""The values that the world is made of: what stands in a picture, and what is asked about it.

A `Room` makes scenes of one kind (shapes, things, writing, ...). A `Scene` is a pure value that
says everything about a picture; drawing it and asking about it are functions of the scene alone,
so that everything is repeatable from a seed and nothing has to be read back from pixels.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from PIL import Image

Split = Literal["train", "test"]
Box = tuple[float, float, float, float]
FILLS = ("solid", "outlined", "striped")
SIZES = ("small", "big")


@dataclass(frozen=True)
class Item:
    """One object of a scene, as the encoder's heads and the questions know it.

    `box` is (left, top, right, bottom) in fractions of the picture, 0..1, of what is drawn.
    Attributes that an object does not have are empty strings. `order` is the reading order
    of letters and digits (0, 1, ...), -1 where there is none.
    """

    kind: str
    box: Box
    colour: str = ""
    size: str = ""
    fill: str = ""
    name: str = ""
    order: int = -1
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def centre(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    @property
    def area(self) -> float:
        left, top, right, bottom = self.box
        return max(0.0, right - left) * max(0.0, bottom - top)

    @property
    def word(self) -> str:
        """What people call it: `name` where it differs from `kind`."""
        return self.name or self.kind


@dataclass(frozen=True)
class Scene:
    """One picture's whole truth. `seed` feeds what is random in drawing and nothing else."""

    room: str
    layout: str
    width: int
    height: int
    items: tuple[Item, ...]
    seed: int
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class QA:
    """A question and its answer in both styles.

    `short` is a word or phrase without a full stop ("" where only a sentence can answer, as in a
    description); `sentence` is a whole sentence. `before` are earlier turns of the same
    conversation (a follow-up's pronouns refer to them). The style instruction of LLaVA-1.5 is
    added later (`phrasing.dress`): questions here never contain it. `about` are the objects that
    the question turns on, in order, where it is that simple: what has to be found first. `counts`
    are how many objects fit each description in the question, where it turns on that.
    """

    skill: str
    question: str
    short: str
    sentence: str
    before: tuple["QA", ...] = ()
    about: tuple[Item, ...] = ()
    counts: tuple[int, ...] = ()


class Room(Protocol):
    """A kind of picture. Implementations keep no state: everything comes from the arguments."""

    name: str
    kinds: tuple[str, ...]
    """Every `Item.kind` the room draws, in a fixed order (append only): the encoder's classes."""

    def make(self, rng: random.Random, split: Split) -> Scene:
        """A new scene. With split "train" nothing held out may occur in it."""
        ...

    def draw(self, scene: Scene) -> Image.Image:
        """RGB, `scene.width` x `scene.height`; the same scene gives the same pixels."""
        ...

    def ask(self, scene: Scene, rng: random.Random, split: Split) -> list[QA]:
        """Some eight to fifteen varied questions; held-out phrasings only with "test"."""
        ...
