"""Messages and conversations: immutable values without torch, which convert to and from JSON.

The JSON form is the one that Hugging Face chat templates and the OpenAI API share, a list of
`{"role": ..., "content": [{"type": "text", "text": ...}, {"type": "image", "sha256": ...}]}`.
It refers to a picture by its digest; the reader supplies a function that finds the picture.
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
"""LLaVA-1.5's instruction for short answers, appended to a question (Liu et al., 2023b, table 7).
It is a single token of the built-in model's vocabulary."""


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates by `?`.

    JSON can hold them, and so can the arguments of a command, but not UTF-8 files, databases and
    tokenizers.
    """
    return text.encode(errors="replace").decode()


@dataclass(frozen=True)
class Message:
    """One turn of a conversation: its text and pictures, in order."""

    role: Role
    parts: tuple[Part, ...]
    """Text and pictures. Lone surrogates in text are replaced: no tokenizer accepts them."""

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise DataError(
                f"A message has the role {self.role!r}.", f"Roles are {', '.join(get_args(Role))}."
            )
        for part in self.parts:
            if not isinstance(part, (str, Picture)):
                raise UsageError(
                    f"Expected text or a picture in a message, got a {type(part).__name__}:"
                    f" {str(part)[:80]}",
                    "Open pictures with open_picture first.",
                )
        if self.role != "user" and self.pictures:
            raise DataError(f"A {self.role} message contains a picture.", "Only user messages may.")
        parts = tuple(replace_surrogates(p) if isinstance(p, str) else p for p in self.parts)
        object.__setattr__(self, "parts", parts)  # the dataclass is frozen

    @classmethod
    def user(cls, text: str, pictures: Sequence[PictureSource] | PictureSource = ()) -> Message:
        """Return a user message with its pictures before the text, as LLaVA was trained.

        Args:
            text: The question.
            pictures: One picture or several. Anything but a `Picture` is passed to `open_picture`.

        Raises:
            ImageError: One of the pictures cannot be used.
        """
        several = pictures if isinstance(pictures, (list, tuple)) else (pictures,)
        opened = tuple(open_picture(picture) for picture in several)
        return cls("user", (*opened, text) if text != "" else opened)

    @classmethod
    def assistant(cls, text: str) -> Message:
        """Return an answer of the model."""
        return cls("assistant", (text,))

    @classmethod
    def system(cls, text: str) -> Message:
        """Return a system message."""
        return cls("system", (text,))

    @property
    def text(self) -> str:
        """All text of the message."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures of the message."""
        return tuple(part for part in self.parts if isinstance(part, Picture))

    def to_json(self) -> dict[str, Any]:
        """Return the message as JSON, with pictures by their digests."""
        content = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image", "sha256": part.digest}
            for part in self.parts
        ]
        return {"role": self.role, "content": content}

    @classmethod
    def from_json(cls, data: Any, picture: Callable[[str], Picture]) -> Message:
        """Read one message.

        Args:
            data: The value that `to_json` returned. `content` may also be a plain string.
            picture: Returns the picture with a SHA-256 digest, or raises `ImageError`.

        Raises:
            DataError: The value is not a message.
        """
        if not isinstance(data, dict) or not isinstance(data.get("role"), str):
            raise DataError(
                f"Expected a message, got {str(data)[:80]}", 'A message has "role" and "content".'
            )
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
    """An optional system message, followed by alternating user and assistant messages."""

    messages: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        expected: Role = "user"
        for position, message in enumerate(self.messages):
            if message.role == "system" and position == 0:
                continue
            if message.role != expected:
                raise DataError(
                    f"Message {position + 1} has the role {message.role!r}, expected {expected!r}.",
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
        """Return a conversation that consists of one question; see `Message.user`."""
        opening = (Message.system(system),) if system else ()
        return cls((*opening, Message.user(question, pictures)))

    def then(self, *messages: Message) -> Conversation:
        """Return this conversation with messages appended."""
        return replace(self, messages=(*self.messages, *messages))

    def with_system(self, text: str | None) -> Conversation:
        """Return this conversation with another system message, or none if `text` is empty."""
        opening = (Message.system(text),) if text else ()
        return Conversation((*opening, *self.dialogue))

    @property
    def system(self) -> str | None:
        """Text of the system message, if there is one."""
        first = self.messages[0] if self.messages else None
        return first.text if first is not None and first.role == "system" else None

    @property
    def dialogue(self) -> tuple[Message, ...]:
        """The messages without the system message."""
        return self.messages[1:] if self.system is not None else self.messages

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Every picture in reading order; a picture shown twice is listed twice."""
        return tuple(picture for message in self.messages for picture in message.pictures)

    @property
    def awaits_answer(self) -> bool:
        """Whether the last message is a question."""
        return bool(self.messages) and self.messages[-1].role == "user"

    def to_json(self) -> list[dict[str, Any]]:
        """Return the messages as JSON; see `Message.to_json`."""
        return [message.to_json() for message in self.messages]

    @classmethod
    def from_json(cls, data: Iterable[Any], picture: Callable[[str], Picture]) -> Conversation:
        """Read the value that `to_json` returned; see `Message.from_json`."""
        if not isinstance(data, list):
            raise DataError("Expected a list of messages.", "See `Message.to_json`.")
        return cls(tuple(Message.from_json(message, picture) for message in data))
