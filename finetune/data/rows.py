"""Rows of instruction data, the common form of every input format.

A row is a conversation whose pictures are opened only when they are needed.
"""

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
    """The reason why a row, or a whole file, cannot be used, and how to fix it."""

    file: str
    row: int | None
    """Line number in JSONL and CSV (the header is line 1), position from 1 in other formats; None
    for a whole file."""
    message: str
    hint: str = ""
    note: bool = False
    """Information only; nothing is wrong with the data."""

    @property
    def location(self) -> str:
        """The row in words, such as "row 1,234"; empty for a whole file."""
        return "" if self.row is None else f"row {self.row:,}"

    def __str__(self) -> str:
        place = f"{self.file}, {self.location}" if self.location else self.file
        return f"{place}: {self.message}" + (f" {self.hint}" if self.hint else "")

    def to_json(self) -> dict[str, Any]:
        """Return the line that the file of skipped rows holds for this problem."""
        return {"file": self.file, "row": self.row, "what": self.message, "hint": self.hint}


class BadRow(Exception):
    """An error in one row; the reader adds the file and row number and makes it a `Problem`."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class StoredPicture(Protocol):
    """A picture inside a larger file, such as a table cell."""

    def read(self) -> bytes:
        """Return the content of the picture file."""


@dataclass(frozen=True)
class PictureSource:
    """Where a picture is stored. Sources with equal `key` are the same picture."""

    name: str
    key: str
    origin: Path | bytes | str | StoredPicture = field(compare=False, repr=False)
    """A path, the content of a picture file, a `data:` URI, or an object that reads it."""

    @classmethod
    def file(cls, path: Path) -> PictureSource:
        """Make the source of a picture file."""
        return cls(path.name, str(path), path)

    @classmethod
    def data(cls, content: bytes | str, name: str) -> PictureSource:
        """Make the source of a picture embedded in the data, as bytes or a `data:` URI."""
        raw = content.encode() if isinstance(content, str) else content
        return cls(name, hashlib.sha256(raw).hexdigest(), content)

    def open(self) -> Picture:
        """Read and normalise the picture.

        Raises:
            ImageError: The file cannot be read or is not a picture.
        """
        from vqa_app.pictures.picture import STORED_PICTURE_LIMITS, open_picture

        origin = self.origin
        content = origin if isinstance(origin, (Path, bytes, str)) else origin.read()
        # The limits for uploads do not apply: a JPEG that was accepted as an upload may be larger
        # as the PNG that we store.
        return open_picture(content, name=self.name, limits=STORED_PICTURE_LIMITS)


TurnPart: TypeAlias = "str | PictureSource"


@dataclass(frozen=True)
class Turn:
    """One message of a row: text and pictures in the order in which the model reads them."""

    role: Role
    parts: tuple[TurnPart, ...]
    trained: bool = True
    """Whether an answer is trained. One that is not is context for later turns, and is neither
    trained nor asked for in an evaluation."""

    @property
    def text(self) -> str:
        """The text without the pictures."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def pictures(self) -> tuple[PictureSource, ...]:
        """The pictures in order."""
        return tuple(part for part in self.parts if isinstance(part, PictureSource))


@dataclass(frozen=True)
class Row:
    """One conversation: an optional system turn, then alternating user and assistant turns."""

    id: str
    file: str
    number: int
    """See `Problem.row`."""
    turns: tuple[Turn, ...]
    references: tuple[tuple[str, ...], ...]
    """Per trained answer, the answers that count as correct: the turn's own text, or the answers of
    all annotators."""
    question_type: str = ""
    answer_type: str = ""
    weight: float = 1.0
    """How often the row is shown per epoch."""

    @cached_property
    def pictures(self) -> tuple[PictureSource, ...]:
        """The pictures of all turns, in order."""
        return tuple(picture for turn in self.turns for picture in turn.pictures)

    @property
    def place(self) -> str:
        """File and row number for messages."""
        return f"{self.file}, row {self.number:,}"

    def conversation(self) -> Conversation:
        """Open the pictures, each once, and return the row as a conversation.

        Raises:
            ImageError: A picture cannot be read.
        """
        sources = {source.key: source for source in self.pictures}
        pictures = {key: source.open() for key, source in sources.items()}
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

    def problem(self, message: str, hint: str = "") -> Problem:
        """Return a problem located at this row."""
        return Problem(self.file, self.number, message, hint)


@dataclass(frozen=True)
class ReadRows:
    """The result of reading data: the usable rows, the problems, and notes."""

    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...] = ()
