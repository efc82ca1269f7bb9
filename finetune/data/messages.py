"""Convert messages to turns: who speaks, and where in the text the pictures belong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.data.cells import (
    is_metadata_key,
    is_missing,
    parse_list,
    shorten,
    to_text,
)
from finetune.data.picture_columns import (
    Context,
    find_message_pictures,
    picture_columns,
    resolve_picture,
)
from finetune.data.picture_marks import (
    PLACEHOLDER,
    PictureMark,
    count_marks,
    find_foreign,
    replace_marks,
    split_at_marks,
)
from finetune.data.rows import BadRow, PictureSource, Turn, TurnPart
from finetune.progress import pluralize
from vqa_app.prompts.conversation import Role

FILL_IN_HINT = "Fill it in, or remove the row."

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "system",
}
_TRAINED_MARKS = ("weight", "loss", "loss_scale", "train", "training")
"""What OpenAI and Mistral, ms-swift and XTuner, and axolotl call whether an answer is trained."""
_MASKED_MARK = "masked"
"""What torchtune calls the opposite."""
_PART_MARKS = ("train_detail", "training_detail")
"""Where axolotl marks parts of an answer."""
_YES_OR_NO = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_TEXT_KEYS = ("from", "role", "value", "content")
_TEXT_PARTS = ("text", "input_text", "output_text")


def parse_messages(
    messages: Any, pictures: list[PictureSource], context: Context
) -> tuple[Turn, ...]:
    """Convert a LLaVA, ShareGPT or OpenAI conversation to turns.

    Args:
        messages: The list of messages, or JSON of one.
        pictures: The row's pictures, which placeholders refer to in order.
        context: The file of the row.

    Raises:
        BadRow: A message is malformed, or placeholders and pictures do not match.
    """
    messages = parse_list(messages)
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise BadRow(f"The conversation is {shorten(messages)}.", "It must be a list of messages.")
    row_pictures = _Pictures(pictures)
    turns: list[Turn] = []
    unused: set[str] = set()
    for position, message in enumerate(messages, 1):
        where = f"Message {position}"
        role, content = _role_and_content(message, where)
        own_pictures: list[PictureSource] = []
        other = {k: v for k, v in message.items() if k not in _TEXT_KEYS and not is_missing(v)}
        if other:
            own_pictures = find_message_pictures(other, context, where)
            unused |= _unused_keys(other)
        if own_pictures:
            parts = _place_own_pictures(content, own_pictures, where, context)
        else:
            parts = _parse_content(content, row_pictures, where, context)
        if role == "user":
            turns.append(Turn(role, join_user_parts(parts)))
        elif any(isinstance(part, PictureSource) for part in parts):
            raise BadRow(
                f"{where} ({role}) contains a picture.", "Only user messages may contain pictures."
            )
        else:
            trained = role != "assistant" or _is_trained(message, where)
            turns.append(Turn(role, tuple(_join_texts(parts)), trained))
    context.unused_keys.update(unused)
    remaining = row_pictures.remaining
    if remaining and "role" in messages[0] and not any(turn.pictures for turn in turns):
        # TRL marks no positions: all pictures go before the first question.
        for position, turn in enumerate(turns):
            if turn.role == "user":
                turns[position] = Turn("user", join_user_parts([*remaining, *turn.parts]))
                remark = "No message marks where the pictures belong; they are shown first"
                context.remarks[remark] += 1
                return tuple(turns)
    if remaining:
        raise _count_mismatch("The row", len(pictures), len(pictures) - len(remaining))
    return tuple(turns)


def _role_and_content(message: Any, where: str) -> tuple[Role, Any]:
    if not isinstance(message, Mapping):
        raise BadRow(f"{where} is {shorten(message)}, not an object.")
    # Tables have all keys in every message, null where a message has none.
    speaker = message.get("role") if message.get("from") is None else message["from"]
    content = message.get("content") if message.get("value") is None else message["value"]
    if speaker is None or content is None:
        missing = '"from" (or "role")' if speaker is None else '"value" (or "content")'
        raise BadRow(f"{where} has no {missing}.", f"Its keys are {', '.join(message) or 'none'}.")
    role = ROLES.get(str(speaker).lower())
    if role is None:
        raise BadRow(
            f"{where} has the unknown role {speaker!r}.", f"Known roles are {', '.join(ROLES)}."
        )
    return role, content


def _is_trained(message: Mapping[str, Any], where: str) -> bool:
    """Return whether an answer is to be trained, as the data marks it.

    Raises:
        BadRow: A mark says neither yes nor no, such as the weight 0.5.
    """
    trained = True
    for key, value in message.items():
        if key in _PART_MARKS and not is_missing(value):
            hint = "Mark whole answers, or remove the key."
            raise BadRow(f"{where} has {key!r}, which marks parts of an answer.", hint)
        if key not in (*_TRAINED_MARKS, _MASKED_MARK) or is_missing(value):
            continue
        answer = _YES_OR_NO.get(str(value).lower())
        if answer is None:
            raise BadRow(
                f"{where} has {key!r}: {shorten(value)}, but an answer is trained or not.",
                "Write 1 or 0, or true or false.",
            )
        trained &= answer != (key == _MASKED_MARK)
    return trained


def _unused_keys(message: Mapping[str, Any]) -> set[str]:
    """Return the keys of a message that are not shown to the model."""
    keys = {
        key
        for key, value in message.items()
        if not (
            isinstance(value, bool)
            or is_metadata_key(str(key))
            or key in (*_TRAINED_MARKS, _MASKED_MARK)
        )
    }
    return {f"message.{key}" for key in keys.difference(picture_columns(message) if keys else ())}


def add_placeholders(
    messages: list[dict[str, str]], pictures: Sequence[PictureSource]
) -> list[dict[str, str]]:
    """Put placeholders for all pictures before the first question, unless the text has some."""
    if any(count_marks(message["content"]) for message in messages):
        return messages
    opening = {**messages[0], "content": PLACEHOLDER * len(pictures) + messages[0]["content"]}
    return [opening, *messages[1:]]


def join_user_parts(parts: Sequence[TurnPart]) -> tuple[TurnPart, ...]:
    """Build a user turn as serving does: no line breaks around pictures, a single picture first.

    LLaVA's preprocessing does the same (`preprocess_multimodal` in haotian-liu/LLaVA).
    """
    parts = _join_texts(parts)
    joined: list[TurnPart] = []
    for position, part in enumerate(parts):
        if isinstance(part, str):
            if position > 0 and isinstance(parts[position - 1], PictureSource):
                part = part.lstrip()
            if position + 1 < len(parts) and isinstance(parts[position + 1], PictureSource):
                part = part.rstrip()
        if part != "":
            joined.append(part)
    if len(joined) == 2 and isinstance(joined[1], PictureSource) and isinstance(joined[0], str):
        joined.reverse()
    return tuple(joined)


def _join_texts(parts: Sequence[TurnPart]) -> list[TurnPart]:
    """Join adjacent texts, as chat templates do."""
    joined: list[TurnPart] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def check_turns(turns: tuple[Turn, ...]) -> None:
    """Check that user and assistant alternate and that no turn is empty.

    Raises:
        BadRow: They do not, or one is.
    """
    dialogue = turns[1:] if turns and turns[0].role == "system" else turns
    if not dialogue:
        raise BadRow("The conversation is empty.", "Remove the row.")
    for position, turn in enumerate(dialogue):
        expected = "user" if position % 2 == 0 else "assistant"
        if turn.role != expected:
            number = position + 1 + len(turns) - len(dialogue)
            raise BadRow(
                f"Message {number} is from the {turn.role}, expected the {expected}.",
                "User and assistant must alternate, the user first; only the first message may be "
                "a system message.",
            )
        if turn.role == "assistant" and not turn.text.strip():
            raise BadRow(f"Answer {position // 2 + 1} is empty.", FILL_IN_HINT)
        if turn.role == "user" and not turn.parts:
            raise BadRow(f"Question {position // 2 + 1} is empty.", FILL_IN_HINT)
    if len(dialogue) % 2:
        raise BadRow("The last question has no answer.", "Add the answer, or remove the question.")
    if not any(turn.trained for turn in dialogue if turn.role == "assistant"):
        raise BadRow("Every answer of the row is marked as not to be trained.", "Remove the row.")


def _count_mismatch(where: str, pictures: int, marks: int) -> BadRow:
    return BadRow(
        f"{where} has {pluralize(pictures, 'picture')} but {marks} {PLACEHOLDER}.",
        f"Write {PLACEHOLDER} once for each picture, where it belongs.",
    )


class _Pictures:
    """The pictures of a row or message, handed out in order to the marks that stand for them."""

    def __init__(self, pictures: Sequence[PictureSource]) -> None:
        self.remaining = list(pictures)
        self._total = len(pictures)
        self._first_number = 1

    def take(self, mark: PictureMark, where: str) -> PictureSource:
        """Return the next picture, which the mark must name if it has a number.

        Raises:
            BadRow: There is none, or the mark names another.
        """
        if not self.remaining:
            raise BadRow(
                f"{where} has {mark.text} for which there is no picture"
                + ("." if self._total else ": the row has none."),
                f'List the pictures under "image", or remove {mark.text}.',
            )
        taken = self._total - len(self.remaining)
        if mark.number is not None:
            if not taken:  # MiniCPM-V counts from 0
                self._first_number = min(mark.number, 1)
            if mark.number < self._first_number:
                raise BadRow(
                    f"{where} has {mark.text}, the first picture, behind another.",
                    f"Name each picture once, in order, or write {PLACEHOLDER}.",
                )
            if mark.number != (expected := taken + self._first_number):
                right = re.sub(r"\d+", lambda m: str(expected).zfill(len(m[0])), mark.text)
                raise BadRow(
                    f"{where} has {mark.text}; expected {right}.",
                    f"Name each picture once, in order, or write {PLACEHOLDER}.",
                )
        return self.remaining.pop(0)

    def take_for_part(self, part: Mapping[str, Any], where: str) -> PictureSource:
        """Return the next picture, which the image part must name if it has an index.

        Raises:
            BadRow: There is none, or the part names another.
        """
        if not self.remaining:
            raise BadRow(
                f"{where} has an image part without a picture; its keys are {', '.join(part)}.",
                'Give its file under "image", or list it under "images" next to the messages.',
            )
        index, expected = part.get("index"), self._total - len(self.remaining)
        if isinstance(index, int) and index != expected:
            raise BadRow(
                f"{where} has an image part with index {index}; expected {expected}.",
                "List the pictures in the order in which the parts name them.",
            )
        return self.remaining.pop(0)


def _place_own_pictures(
    content: Any, pictures: list[PictureSource], where: str, context: Context
) -> list[TurnPart]:
    """Put a message's own pictures at its marks, or before its text if it has none."""
    if isinstance(content, str) and not count_marks(content):
        return [*pictures, *_split_text(content, _Pictures(()), where, context)]
    own = _Pictures(pictures)
    parts = _parse_content(content, own, where, context)
    if own.remaining:
        raise _count_mismatch(where, len(pictures), len(pictures) - len(own.remaining))
    return parts


def _split_text(text: str, pictures: _Pictures, where: str, context: Context) -> list[TurnPart]:
    """Put pictures in place of the marks in a text.

    Raises:
        BadRow: Marks and pictures do not match, or the text has a placeholder of another kind.
    """
    parts: list[TurnPart] = []
    for piece in split_at_marks(text):
        if isinstance(piece, PictureMark):
            source = resolve_picture(piece.path, context, where) if piece.path else None
            parts.append(source or pictures.take(piece, where))
        elif foreign := find_foreign(piece):
            found, hint = foreign
            raise BadRow(f"{where} contains {found}.", hint)
        else:
            parts.append(piece)
    return parts


def check_system_prompt(text: str) -> None:
    """Check that a system prompt next to the conversation has no marks.

    Raises:
        BadRow: It has the mark of a picture, or a placeholder of another kind.
    """
    for piece in split_at_marks(text):
        if isinstance(piece, PictureMark):
            raise BadRow(
                f"The system prompt contains {piece.text}, the mark of a picture.",
                "Only user messages may contain pictures.",
            )
        if foreign := find_foreign(piece):
            found, hint = foreign
            raise BadRow(f"The system prompt contains {found}.", hint)


def _parse_content(
    content: Any, pictures: _Pictures, where: str, context: Context
) -> list[TurnPart]:
    """Return the text and pictures of one message.

    Args:
        content: The text, or a list of parts.
        pictures: The pictures not yet placed.
        where: The message's name for error messages.
        context: The file of the row.

    Raises:
        BadRow: The content is malformed, or its marks and pictures do not match.
    """
    if isinstance(content, str) or not isinstance(content, (list, tuple)):
        return _split_text(to_text(content, where), pictures, where, context)
    texts = [part for part in content if _has_text(part)]
    if len(texts) > 1 and any(isinstance(part, str) for part in texts):
        raise BadRow(
            f"{where} is a list of {len(texts)} texts: {shorten(content)}.",
            "Write it as one text.",
        )
    parts: list[TurnPart] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(part, str):
            parts.append(part)
        elif kind in _TEXT_PARTS:
            parts.append(to_text(part.get("text"), f"A text part of {where.lower()}"))
        elif kind in ("image", "image_url", "input_image"):
            value = _part_value(part)
            parts.append(
                pictures.take_for_part(part, where)
                if value is None
                else resolve_picture(value, context, where)
            )
        else:
            raise BadRow(
                f"{where} has a part {shorten(part)}.", 'The type must be "text" or "image".'
            )
    marks = sum(count_marks(part) for part in parts if isinstance(part, str))
    shown = [part for part in parts if isinstance(part, PictureSource)]
    if shown and marks not in (0, len(shown)):
        raise _count_mismatch(where, len(shown), marks)
    # Pictures that are both parts and marks are placed at the marks.
    at_marks = _Pictures(shown) if shown and marks else pictures
    placed: list[TurnPart] = []
    for part in parts:
        if isinstance(part, str):
            placed += _split_text(part, at_marks, where, context)
        elif not marks:
            placed.append(part)
    return placed


def _has_text(part: Any) -> bool:
    """Return whether a part is text, as a string or an object, other than marks of pictures."""
    if isinstance(part, Mapping) and part.get("type") in _TEXT_PARTS:
        part = part.get("text")
    return isinstance(part, str) and bool(replace_marks(part, "").strip())


def _part_value(part: Mapping[str, Any]) -> Any:
    """Return the picture that an image part names or contains; None if it is listed elsewhere."""
    keys = ("image", "image_url", "path", "url", "source", "data")
    value = next((part[key] for key in keys if part.get(key)), None)
    if not isinstance(value, Mapping):
        return value
    if value.get("type") == "base64":  # Anthropic
        return f"data:{value.get('media_type') or 'image/png'};base64,{value.get('data') or ''}"
    return value.get("url", value)
