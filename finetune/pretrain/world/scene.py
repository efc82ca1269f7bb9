"""The data types of the world: objects, scenes, questions with answers, and rooms.

A `Room` makes scenes of one kind (shapes, things, writing, ...). A `Scene` is an immutable value
that describes a picture completely. Drawing it and asking about it are functions of the scene
alone, so everything can be reproduced from a seed and nothing is read back from pixels.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from PIL import Image

Split = Literal["train", "test"]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""
Size = tuple[int, int]
"""Width and height in pixels."""
FILLS = ("solid", "outlined", "striped")
SIZES = ("small", "big")


def to_fractions(box: Box, size: Size) -> Box:
    """Return a pixel box in fractions of a picture of the given size."""
    (left, top, right, bottom), (width, height) = box, size
    return left / width, top / height, right / width, bottom / height


def to_pixels(box: Box, size: Size) -> Box:
    """Return a box in fractions of a picture of the given size in pixels."""
    (left, top, right, bottom), (width, height) = box, size
    return left * width, top * height, right * width, bottom * height


@dataclass(frozen=True)
class Item:
    """One object of a scene, as the questions and the encoder's training targets see it.

    `box` encloses what is drawn, in fractions (0..1) of the picture's width and height. Attributes
    that an object does not have are empty strings. `order` is the reading order of letters and
    digits (0, 1, ...) and -1 for other objects. `extra` holds what the room needs for drawing.
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
        """The box's centre (x, y), in fractions of the picture."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    @property
    def area(self) -> float:
        """The box's area, as a fraction of the picture."""
        left, top, right, bottom = self.box
        return max(0.0, right - left) * max(0.0, bottom - top)

    @property
    def word(self) -> str:
        """What people call the object: `name` if it has one, else `kind`."""
        return self.name or self.kind


@dataclass(frozen=True)
class Scene:
    """The complete description of one picture; `seed` is used for random details of drawing."""

    room: str
    layout: str
    width: int
    height: int
    items: tuple[Item, ...]
    seed: int
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class QA:
    """A question and its answer in two styles.

    `short` is a word or phrase without a full stop, or "" if only a sentence can answer, as in a
    description; `sentence` is a whole sentence. `before` are earlier turns of the same
    conversation, which a follow-up's pronouns refer to. `question` never contains the style
    instruction of LLaVA-1.5; `wording.phrasing.to_turn` adds it.

    Where the answer depends on particular objects or numbers, `about` lists those objects in order
    and `counts` how many objects match each description in the question. They serve as targets of
    auxiliary losses.
    """

    skill: str
    question: str
    short: str
    sentence: str
    before: tuple["QA", ...] = ()
    about: tuple[Item, ...] = ()
    counts: tuple[int, ...] = ()


class Room(Protocol):
    """A kind of picture. Implementations are stateless: results depend on the arguments alone."""

    @property
    def name(self) -> str:
        """The room's name, as in `Scene.room`."""
        ...

    @property
    def kinds(self) -> tuple[str, ...]:
        """Every `Item.kind` of the room; append only, positions are classes of the encoder."""
        ...

    def make(self, rng: random.Random, split: Split) -> Scene:
        """Make a random scene; one of the split "train" contains nothing that is held out."""
        ...

    def draw(self, scene: Scene) -> Image.Image:
        """Draw a scene in RGB at its size; the same scene gives the same pixels."""
        ...

    def ask(self, scene: Scene, rng: random.Random, split: Split) -> list[QA]:
        """Return some eight to fifteen different questions; held-out wordings only in "test"."""
        ...
