"""What every format becomes: rows of turns whose pictures are opened only when they are needed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from vqa_app.prompts.conversation import Conversation, Message, Role

if TYPE_CHECKING:
    from vqa_app.pictures.picture import Picture


@dataclass(frozen=True)
class Problem:
    """Why a row, or a whole file when `row` is None, cannot be used, and how to mend it."""

    file: str
    row: int | None
    """Line number in JSONL and CSV (with the header counted), position from 1 in every other
    format."""
    message: str
    hint: str = ""
    note: bool = False
    """Worth knowing, but nothing is wrong with the data."""

    @property
    def location(self) -> str:
        """The row in words, empty for a whole file."""
        return "" if self.row is None else f"row {self.row:,}"

    def __str__(self) -> str:
        where = f"{self.file}, {self.location}" if self.location else self.file
        return f"{where}: {self.message}" + (f" {self.hint}" if self.hint else "")

    def to_json(self) -> dict[str, Any]:
        return {"file": self.file, "row": self.row, "what": self.message, "hint": self.hint}


class BadRow(Exception):
    """Raised while one row is read; becomes a `Problem` with the row's place."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.message = what
        self.hint = hint


class Stored(Protocol):
    """A picture inside something larger, such as a table's cell."""

    def read(self) -> bytes: ...


@dataclass(frozen=True)
class PictureSource:
    """Where a picture lies. Two sources with the same `key` are the same picture."""

    name: str
    key: str
    origin: Path | bytes | str | Stored = field(compare=False, repr=False)
    """A file, its content, a `data:` URI, or something that reads it."""

    @classmethod
    def file(cls, path: Path) -> PictureSource:
        return cls(path.name, str(path), path)

    @classmethod
    def data(cls, content: bytes | str, name: str) -> PictureSource:
        """A picture that stands in the data itself, as bytes or a `data:` URI."""
        raw = content.encode() if isinstance(content, str) else content
        return cls(name, hashlib.sha256(raw).hexdigest(), content)

    def open(self) -> Picture:
        """Reads and normalises the picture.

        Raises:
            ImageError: it cannot be read or is not a picture.
        """
        from vqa_app.pictures.picture import STORED_PICTURE_LIMITS, open_picture

        origin = self.origin
        content = origin if isinstance(origin, (Path, bytes, str)) else origin.read()
        # A photo that the browser let in as a JPEG lies here as our PNG.
        return open_picture(content, name=self.name, limits=STORED_PICTURE_LIMITS)


TurnPart: TypeAlias = "str | PictureSource"


@dataclass(frozen=True)
class Turn:
    role: Role
    parts: tuple[TurnPart, ...]

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def pictures(self) -> tuple[PictureSource, ...]:
        return tuple(part for part in self.parts if isinstance(part, PictureSource))


@dataclass(frozen=True)
class Row:
    """One conversation of the data: an optional system turn, then user and assistant in turn,
    ending with an answer.
    """

    id: str
    file: str
    number: int
    """As `Problem.row`."""
    turns: tuple[Turn, ...]
    references: tuple[tuple[str, ...], ...]
    """For each answer, in order, the answers that count as right: the answer itself, or all
    annotators'."""
    question_type: str = ""
    answer_type: str = ""
    weight: float = 1.0
    """How often an epoch shows this row."""

    @cached_property
    def pictures(self) -> tuple[PictureSource, ...]:
        return tuple(picture for turn in self.turns for picture in turn.pictures)

    @property
    def place(self) -> str:
        return f"{self.file}, row {self.number:,}"

    def conversation(self) -> Conversation:
        """The row with its pictures opened; one that stands twice is read once.

        Raises:
            ImageError: a picture cannot be read.
        """
        opened = {source.key: source for source in self.pictures}
        pictures = {key: source.open() for key, source in opened.items()}
        return Conversation(
            tuple(
                Message(
                    turn.role,
                    tuple(
                        part if isinstance(part, str) else pictures[part.key] for part in turn.parts
                    ),
                )
                for turn in self.turns
            )
        )

    def problem(self, what: str, hint: str = "") -> Problem:
        return Problem(self.file, self.number, what, hint)


@dataclass(frozen=True)
class ReadRows:
    """What reading gave: the good rows, and everything that was wrong."""

    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...] = ()
