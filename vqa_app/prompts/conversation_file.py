"""The JSON file to which the shell and the browser export conversations.

A file holds a tree of turns, each a question with its answer, because a question may be edited or
answered again in the browser. Pictures are stored once, by the digest of their pixels.
"""

from __future__ import annotations

import base64
import itertools
import json
from io import BytesIO
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from vqa_app.errors import DataError, ImageError
from vqa_app.pictures.picture import Picture
from vqa_app.prompts.conversation import Conversation, replace_surrogates

FORMAT = "vqa-app conversation"
VERSION = 1
MAX_TURNS = 2000

State: TypeAlias = Literal["answering", "answered", "stopped", "failed"]
Verdict: TypeAlias = Literal["right", "wrong"]

_FINAL_STATES = ("answered", "stopped", "failed")
_FACTS: dict[str, type] = {
    "style": str, "model": str, "finish": str, "error": str, "confidence": float, "gain": float,
    "prompt_tokens": int, "new_tokens": int, "image_tokens": int, "cached_tokens": int,
    "context": int, "dropped": int, "calibrated": bool, "temperature": float, "seconds": float,
    "speed": float, "unknown_picture": bool, "dropped_turns": list, "correction": str,
}  # fmt: skip
_LONGEST_FACT = {"error": 1000, "correction": 4001}
"""Characters of a fact; 200 if it is not listed."""
_LONGEST_SYSTEM = 4000
_LARGEST_FACT = 1e9
_LONGEST_ID = 200
_MAX_CHANGES = 10


def _line(value: object) -> str:
    """Return a value as one line of at most 120 characters."""
    return " ".join(replace_surrogates(str(value or "")).split())[:120]


def _checked(text: str) -> str:
    if text != replace_surrogates(text):
        raise ValueError("The text contains unpaired surrogates.")
    return text


def _known_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """Keep the facts that are known and have a plausible value.

    NaN is dropped as well, because browsers do not read it as JSON.
    """
    return {name: value for name, value in facts.items() if _is_fact(name, value)}


def _is_fact(name: str, value: object) -> bool:
    kind = _FACTS.get(name)
    if kind is str:
        longest = _LONGEST_FACT.get(name, 200)
        return (
            isinstance(value, str) and len(value) < longest and value == replace_surrogates(value)
        )
    if kind is list:
        return (
            isinstance(value, list)
            and len(value) <= MAX_TURNS
            and all(_is_turn(item) for item in value)
        )
    if kind is bool:
        return isinstance(value, bool)
    kinds = (int, float) if kind is float else (int,)
    return (
        kind is not None
        and isinstance(value, kinds)
        and not isinstance(value, bool)
        and -_LARGEST_FACT < value < _LARGEST_FACT
    )


def _is_turn(value: object) -> bool:
    """Return whether a value is the id of a turn, or its position as in files of version 0.2.0."""
    if isinstance(value, str):
        return len(value) <= _LONGEST_ID
    return type(value) is int and 0 <= value < MAX_TURNS


def _known_changes(value: object) -> list[str]:
    """Keep the texts of a list, shortened; older files have none."""
    texts = value[:_MAX_CHANGES] if isinstance(value, list | tuple) else []
    return [replace_surrogates(text)[:200] for text in texts if isinstance(text, str)]


def _known_system(value: object) -> str | None:
    """Return a system prompt of plausible length; None is none of its own."""
    text = replace_surrogates(value) if isinstance(value, str) else None
    return text if text is not None and len(text) <= _LONGEST_SYSTEM else None


def _decoded(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("Expected base64.")
    return base64.b64decode(value, validate=True)


_Text: TypeAlias = Annotated[str, AfterValidator(_checked)]


class FileTurn(BaseModel):
    """A question with its answer."""

    id: Annotated[_Text, Field(max_length=_LONGEST_ID)]
    parent: Annotated[str | None, BeforeValidator(lambda value: str(value) if value else None)] = (
        None
    )
    """The turn that this one follows; None for a first question."""
    shown: Annotated[bool, BeforeValidator(bool)] = False
    """Whether the turn is on the branch that the browser shows."""
    question: _Text
    pictures: list[str] = []
    """Digests."""
    answer: _Text
    state: Annotated[
        State, BeforeValidator(lambda value: value if value in _FINAL_STATES else "stopped")
    ] = "stopped"
    """An answer that is still being written is exported as `stopped`."""
    verdict: Annotated[
        Verdict | None, BeforeValidator(lambda value: value if value in get_args(Verdict) else None)
    ] = None
    """`right` or `wrong`, if the user said so."""
    facts: Annotated[dict[str, Any], AfterValidator(_known_facts)] = {}
    """The model, the confidence, token counts and the like."""


_Pixels: TypeAlias = Annotated[int, Field(ge=0, le=10**6)]


class FileRegion(BaseModel):
    """Which region of another picture a picture is."""

    of: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Digest of the whole picture, which the file may lack."""
    name: Annotated[str, BeforeValidator(_line)]
    """Name of the whole picture."""
    box: tuple[_Pixels, _Pixels, _Pixels, _Pixels]
    """Left, top, right, bottom."""
    whole: tuple[Annotated[_Pixels, Field(gt=0)], Annotated[_Pixels, Field(gt=0)]]
    """Width and height of the whole picture."""

    @model_validator(mode="after")
    def _check_box(self) -> FileRegion:
        left, top, right, bottom = self.box
        if not (left < right <= self.whole[0] and top < bottom <= self.whole[1]):
            raise ValueError("The region is not within the picture.")
        return self


def _known_region(value: object) -> FileRegion | None:
    """Return a region, or None if it is not plausible; older files have none."""
    try:
        return FileRegion.model_validate(value)
    except ValidationError:
        return None


class FilePicture(BaseModel):
    """A picture as an image file."""

    name: Annotated[str, BeforeValidator(_line)]
    changes: Annotated[list[str], BeforeValidator(_known_changes)] = []
    """Descriptions of what normalisation changed."""
    region: Annotated[FileRegion | None, BeforeValidator(_known_region)] = None
    """What it is a region of, if it is one."""
    data: Annotated[
        bytes,
        BeforeValidator(_decoded),
        PlainSerializer(lambda data: base64.b64encode(data).decode()),
    ]


class ConversationFile(BaseModel):
    """The content of an exported file."""

    title: Annotated[str, BeforeValidator(_line)] = ""
    system: Annotated[str | None, BeforeValidator(_known_system)] = None
    """The conversation's own system prompt, if it has one."""
    turns: list[FileTurn]
    pictures: dict[str, FilePicture]
    """By digest."""

    def to_json(self) -> str:
        """Return the text of the file."""
        document = {"format": FORMAT, "version": VERSION, **self.model_dump()}
        return json.dumps(document, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(
        cls, data: bytes, *, max_question: int, max_answer: int, max_pictures: int
    ) -> ConversationFile:
        """Read a file, which may have been written by anybody.

        Args:
            data: The content of the file.
            max_question: Most characters of a question.
            max_answer: Most characters of an answer.
            max_pictures: Most pictures of a question.

        Raises:
            DataError: The file is not an exported conversation.
            ImageError: A picture in it is damaged.
        """
        document = _document(data)
        turns = document.get("turns")
        if not isinstance(turns, list) or not turns:
            raise DataError("This file contains no questions.", "Choose a file exported here.")
        if len(turns) > MAX_TURNS:
            raise DataError(
                f"This file contains {len(turns):,} questions; the limit is {MAX_TURNS:,}.",
                "Choose a file exported here.",
            )
        try:
            file = cls(
                title=document.get("title", ""),
                system=document.get("system"),
                turns=turns,
                pictures={},
            )
        except ValidationError as error:
            raise _damaged_question(int(error.errors()[0]["loc"][1])) from error
        for number, turn in enumerate(file.turns):
            if (
                len(turn.question) > max_question
                or len(turn.answer) > max_answer
                or len(turn.pictures) > max_pictures
            ):
                raise _damaged_question(number)
        used = {digest for turn in file.turns for digest in turn.pictures}
        pictures = document.get("pictures")
        try:
            for digest, entry in pictures.items() if isinstance(pictures, dict) else ():
                if digest in used:
                    file.pictures[digest] = FilePicture.model_validate(entry)
        except ValidationError as error:
            raise ImageError("A picture in the file is damaged.", "Export it again.") from error
        return file

    @classmethod
    def of(cls, conversation: Conversation, model: str) -> ConversationFile:
        """Return a file of a finished conversation.

        Args:
            conversation: Questions, each followed by its answer.
            model: Name of the model that answered.
        """
        messages = conversation.dialogue
        turns = [
            FileTurn(
                id=str(index),
                parent=str(index - 2) if index else None,
                shown=True,
                question=replace_surrogates(question.text),
                pictures=[picture.digest for picture in question.pictures],
                answer=replace_surrogates(answer.text),
                state="answered",
                facts={"model": model},
            )
            for index, (question, answer) in enumerate(itertools.pairwise(messages))
            if question.role == "user"
        ]
        return cls(
            title=messages[0].text[:80] if messages else "",
            turns=turns,
            pictures={
                picture.digest: FilePicture(
                    name=picture.name, changes=list(picture.changes), data=_png(picture)
                )
                for picture in conversation.pictures
            },
        )


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError("This file is not JSON.", "Choose a file exported here.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DataError("This file contains no conversation.", "Choose a JSON file exported here.")
    if document.get("version") != VERSION:
        raise DataError("This file was exported by another version.", "Export it again.")
    return document


def _damaged_question(index: int) -> DataError:
    return DataError(f"Question {index + 1} of the file is damaged.", "Export it again.")


def _png(picture: Picture) -> bytes:
    buffer = BytesIO()
    picture.image.save(buffer, "PNG")
    return buffer.getvalue()
