"""Messages and conversations: pure values, no torch, JSON in and out.

The JSON form is the one Hugging Face chat templates and the OpenAI API share, a list of
`{"role": ..., "content": [{"type": "text", "text": ...}, {"type": "image", "sha256": ...}]}`.
A picture stands in it by its digest; who reads it back says where the pictures are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from vqa_app.errors import DataError, UsageError
from vqa_app.pictures.picture import Picture, PictureSource, open_picture

Role: TypeAlias = Literal["system", "user", "assistant"]
Part: TypeAlias = "str | Picture"

SHORT_STYLE = "\nAnswer the question using a single word or phrase."
"""LLaVA-1.5's instruction for short answers, behind a question (Liu et al., 2023b, table 7). The
built-in model has learned it as one token."""


@dataclass(frozen=True)
class Message:
    """What one side said: text and pictures in the order in which they stand."""

    role: Role
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise DataError(
                f"A message has the role {self.role!r}.", f"Roles are {', '.join(get_args(Role))}."
            )
        for part in self.parts:
            if not isinstance(part, (str, Picture)):
                raise UsageError(
                    f"A message holds a {type(part).__name__}: {str(part)[:80]}",
                    "It may hold texts, and pictures that were opened with open_picture.",
                )
        if self.role != "user" and self.pictures:
            raise DataError(f"A {self.role} message holds a picture.", "Only users send pictures.")

    @classmethod
    def user(cls, text: str, pictures: Sequence[PictureSource] | PictureSource = ()) -> Message:
        """A question; its pictures stand before the text, as LLaVA was trained.

        Args:
            pictures: one or several; what is no `Picture` yet goes through `open_picture`.

        Raises:
            ImageError: one of them cannot be used.
        """
        several = pictures if isinstance(pictures, (list, tuple)) else (pictures,)
        opened = tuple(open_picture(picture) for picture in several)
        return cls("user", (*opened, text) if text != "" else opened)

    @classmethod
    def assistant(cls, text: str) -> Message:
        return cls("assistant", (text,))

    @classmethod
    def system(cls, text: str) -> Message:
        return cls("system", (text,))

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return tuple(part for part in self.parts if isinstance(part, Picture))

    def to_json(self) -> dict[str, Any]:
        content = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image", "sha256": part.digest}
            for part in self.parts
        ]
        return {"role": self.role, "content": content}

    @classmethod
    def from_json(cls, data: Any, picture: Callable[[str], Picture]) -> Message:
        """Reads one message.

        Args:
            data: what `to_json` wrote; `content` may also be a plain string.
            picture: gives the picture of a SHA-256 digest; raises `ImageError` where it has none.

        Raises:
            DataError: the value is not a message.
        """
        if not isinstance(data, dict) or not isinstance(data.get("role"), str):
            raise DataError(f"Not a message: {str(data)[:80]}", 'It needs "role" and "content".')
        content = data.get("content")
        if isinstance(content, str):
            return cls(data["role"], (content,))
        if not isinstance(content, list):
            raise DataError(f"A {data['role']} message has no content.", 'Add "content".')
        parts: list[Part] = []
        for part in content:
            match part:
                case {"type": "text", "text": str(text)}:
                    parts.append(text)
                case {"type": "image", "sha256": str(digest)}:
                    parts.append(picture(digest))
                case _:
                    raise DataError(
                        f"Unknown part in a {data['role']} message: {str(part)[:80]}",
                        'Parts are {"type": "text", "text": ...} or'
                        ' {"type": "image", "sha256": ...}.',
                    )
        return cls(data["role"], tuple(parts))


@dataclass(frozen=True)
class Conversation:
    """An optional system message, then user and assistant in turn."""

    messages: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        expected: Role = "user"
        for position, message in enumerate(self.messages):
            if message.role == "system" and position == 0:
                continue
            if message.role != expected:
                raise DataError(
                    f"Message {position + 1} is from the {message.role}, expected the {expected}.",
                    "User and assistant take turns; a system message may only come first.",
                )
            expected = "assistant" if expected == "user" else "user"

    @classmethod
    def ask(
        cls,
        question: str,
        pictures: Sequence[PictureSource] | PictureSource = (),
        system: str | None = None,
    ) -> Conversation:
        """The conversation that opens with one question; see `Message.user`."""
        opening = (Message.system(system),) if system else ()
        return cls((*opening, Message.user(question, pictures)))

    def then(self, *messages: Message) -> Conversation:
        """This conversation with more messages."""
        return replace(self, messages=(*self.messages, *messages))

    def with_system(self, text: str | None) -> Conversation:
        """This conversation with its system message set, or removed for None or an empty text."""
        opening = (Message.system(text),) if text else ()
        return Conversation((*opening, *self.dialogue))

    @property
    def system(self) -> str | None:
        first = self.messages[0] if self.messages else None
        return first.text if first is not None and first.role == "system" else None

    @property
    def dialogue(self) -> tuple[Message, ...]:
        """The messages without the system message."""
        return self.messages[1:] if self.system is not None else self.messages

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Every picture, in reading order; one that is shown twice stands twice."""
        return tuple(picture for message in self.messages for picture in message.pictures)

    @property
    def awaits_answer(self) -> bool:
        return bool(self.messages) and self.messages[-1].role == "user"

    def to_json(self) -> list[dict[str, Any]]:
        return [message.to_json() for message in self.messages]

    @classmethod
    def from_json(cls, data: Iterable[Any], picture: Callable[[str], Picture]) -> Conversation:
        """Reads what `to_json` wrote; see `Message.from_json`."""
        if not isinstance(data, list):
            raise DataError("A conversation must be a list of messages.", "See `Message.to_json`.")
        return cls(tuple(Message.from_json(message, picture) for message in data))
