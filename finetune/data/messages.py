"""Messages → turns: who speaks, and where in the text the pictures stand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.data.cells import is_bookkeeping, missing, parse_if_text, short
from finetune.data.picture_columns import Context, picture_columns, picture_from, pictures_beside
from finetune.data.rows import BadRow, PictureSource, Turn, TurnPart
from finetune.progress import pluralize
from vqa_app.prompts.conversation import Role

PLACEHOLDER = "<image>"

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
_MARK = re.compile(r"<image>|<image (\d+)>|(?:Picture \d+: *)?<img>(.*?)</img>")
"""A picture's place: LLaVA's, MMMU's, and Qwen-VL's, which holds the path."""
_SAID = ("from", "role", "value", "content")
_OTHER_MARK = re.compile(r"\A\s*(<video>|<audio>|<image_?\d+>)|(<video>|<audio>)\s*\Z")


def from_messages(
    messages: Any, pictures: list[PictureSource], context: Context
) -> tuple[Turn, ...]:
    """LLaVA, ShareGPT and OpenAI conversations."""
    messages = parse_if_text(messages)
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise BadRow(f"The conversation is {short(messages)}.", "It must be a list of messages.")
    waiting = list(pictures)
    turns: list[Turn] = []
    unread: set[str] = set()
    for position, message in enumerate(messages, 1):
        where = f"Message {position}"
        if not isinstance(message, Mapping):
            raise BadRow(f"{where} is {short(message)}, not an object.")
        speaker = message.get("from", message.get("role"))
        content = message.get("value", message.get("content"))
        if speaker is None or content is None:
            lacking = '"from" (or "role")' if speaker is None else '"value" (or "content")'
            raise BadRow(
                f"{where} has no {lacking}.", f"Its keys are {', '.join(message) or 'none'}."
            )
        role = ROLES.get(str(speaker).lower())
        if role is None:
            raise BadRow(f"{where} is from {speaker!r}.", f"Known are {', '.join(ROLES)}.")
        beside: list[PictureSource] = []
        further = {k: v for k, v in message.items() if k not in _SAID and not missing(v)}
        if further:
            beside = pictures_beside(further, context, where)
            unread |= _unread(further, role, where)
        if beside:
            pieces = _with_pictures_beside(content, beside, where, context)
        else:
            pieces = _pieces(content, waiting, len(pictures), where, context)
        if role == "user":
            turns.append(Turn(role, join_user_parts(pieces)))
        elif any(isinstance(piece, PictureSource) for piece in pieces):
            raise BadRow(
                f"{where} ({speaker}) holds a picture.", "Only user turns may hold pictures."
            )
        else:
            turns.append(Turn(role, tuple(pieces)))
    context.unshown.update(unread)
    if waiting and "role" in messages[0] and not any(turn.pictures for turn in turns):
        # TRL's: no <image>, no part; all pictures go before the first question.
        for place, turn in enumerate(turns):
            if turn.role == "user":
                turns[place] = Turn("user", join_user_parts([*waiting, *turn.parts]))
                told = "No message says where the pictures stand; they are shown first"
                context.remarks[told] += 1
                return tuple(turns)
    if waiting:
        raise _other_count("The row", len(pictures), len(pictures) - len(waiting))
    return tuple(turns)


def _unread(message: Mapping[str, Any], role: Role, where: str) -> set[str]:
    """What of a message, beside who speaks and what, never reaches the model.

    Raises:
        BadRow: an answer that is not to be trained, as OpenAI ("weight"), ms-swift ("loss") and
            axolotl ("train", "training") mark it.
    """
    if role == "assistant":
        weight = message.get("weight")
        marks = [key for key in ("loss", "train", "training") if message.get(key) is False]
        if isinstance(weight, (int, float)) and weight != 1:
            marks.append("weight")
        if marks:
            raise BadRow(
                f"{where} says {marks[0]!r}: {message[marks[0]]}; here all answers are trained.",
                "End the conversation before its question, or remove the row.",
            )
    keys = {
        key
        for key, value in message.items()
        if not (isinstance(value, bool) or is_bookkeeping(str(key)))
    }
    return {f"message.{key}" for key in keys.difference(picture_columns(message) if keys else ())}


def with_marks(
    messages: list[dict[str, str]], pictures: Sequence[PictureSource]
) -> list[dict[str, str]]:
    """Messages with all pictures before the first question, where no text says where they stand."""
    if any(_MARK.search(message["content"]) for message in messages):
        return messages
    opening = {**messages[0], "content": PLACEHOLDER * len(pictures) + messages[0]["content"]}
    return [opening, *messages[1:]]


def join_user_parts(pieces: Sequence[TurnPart]) -> tuple[TurnPart, ...]:
    """A user turn as serving builds it: no line breaks around pictures, and one picture stands
    first.

    LLaVA's own preprocessing does the same (`preprocess_multimodal` in haotian-liu/LLaVA).
    """
    parts: list[TurnPart] = []
    for position, piece in enumerate(pieces):
        if isinstance(piece, str):
            if position > 0 and isinstance(pieces[position - 1], PictureSource):
                piece = piece.lstrip()
            if position + 1 < len(pieces) and isinstance(pieces[position + 1], PictureSource):
                piece = piece.rstrip()
        if piece != "":
            parts.append(piece)
    if len(parts) == 2 and isinstance(parts[1], PictureSource) and isinstance(parts[0], str):
        parts.reverse()
    return tuple(parts)


def check_turns(turns: tuple[Turn, ...]) -> None:
    dialogue = turns[1:] if turns and turns[0].role == "system" else turns
    if not dialogue:
        raise BadRow("The conversation is empty.", "Remove the row.")
    for position, turn in enumerate(dialogue):
        expected = "user" if position % 2 == 0 else "assistant"
        if turn.role != expected:
            number = position + 1 + len(turns) - len(dialogue)
            raise BadRow(
                f"Message {number} is from the {turn.role}, expected the {expected}.",
                "User and assistant take turns, the user first; system messages open a row.",
            )
        if turn.role == "assistant" and not turn.text.strip():
            raise BadRow(f"Answer {position // 2 + 1} is empty.", "Fill it in, or remove the row.")
        if turn.role == "user" and not turn.parts:
            raise BadRow(
                f"Question {position // 2 + 1} is empty.", "Fill it in, or remove the row."
            )
    if len(dialogue) % 2:
        raise BadRow("The last question has no answer.", "Add the answer, or remove the question.")


def _other_count(where: str, given: int, marks: int) -> BadRow:
    return BadRow(
        f"{where} has {pluralize(given, 'picture')} but {marks} {PLACEHOLDER}.",
        f"Write {PLACEHOLDER} once for each picture, where it belongs.",
    )


def _with_pictures_beside(
    content: Any, beside: list[PictureSource], where: str, context: Context
) -> list[TurnPart]:
    """Of a message with pictures of its own: in front of its text, or where it says."""
    if isinstance(content, str) and not _MARK.search(content):
        return [*beside, content]
    waiting = list(beside)
    pieces = _pieces(content, waiting, len(beside), where, context)
    if waiting:
        raise _other_count(where, len(beside), len(beside) - len(waiting))
    return pieces


def _pieces(
    content: Any, waiting: list[PictureSource], of: int, where: str, context: Context
) -> list[TurnPart]:
    """Text and pictures of one message; takes placeholders' pictures from the front of `waiting`,
    which held `of` in the beginning.
    """

    def take(
        number: str | int | None = None, part: Mapping[str, Any] | None = None
    ) -> PictureSource:
        if not waiting and part is not None:
            raise BadRow(
                f"{where} has an image part without a picture; its keys are {', '.join(part)}.",
                'Give its file under "image", or list it under "images" beside the messages.',
            )
        if not waiting:
            raise BadRow(
                f"{where} has a {PLACEHOLDER} for which there is no picture"
                + ("." if of else ": the row has none."),
                f'List the pictures under "image", or remove the {PLACEHOLDER}.',
            )
        if number is not None and int(number) != (place := of - len(waiting) + 1):
            if part is not None:
                raise BadRow(
                    f"{where} has an image part with index {part['index']} where {place - 1} is "
                    "next.",
                    "List the pictures in the order in which the parts name them.",
                )
            raise BadRow(
                f"{where} has <image {number}> where picture {place} is next.",
                f"Name each picture once, in order, or write {PLACEHOLDER}.",
            )
        return waiting.pop(0)

    def split(text: str) -> list[TurnPart]:
        if other := _OTHER_MARK.search(text):
            raise BadRow(
                f"{where} holds {other[0].strip()}.", f"Only pictures are read, at {PLACEHOLDER}."
            )
        pieces: list[TurnPart] = []
        start = 0
        for mark in _MARK.finditer(text):
            number, path = mark.groups()
            picture = take(number) if path is None else picture_from(path, context, where)
            pieces += [text[start : mark.start()], picture]
            start = mark.end()
        return [*pieces, text[start:]]

    if isinstance(content, str):
        return split(content)
    if not isinstance(content, Sequence):
        raise BadRow(f"{where} has the content {short(content)}.", "Give text or a list of parts.")
    pieces: list[TurnPart] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(part, str):
            pieces.append(part)
        elif kind in ("text", "input_text", "output_text"):
            pieces.append(str(part.get("text") or ""))
        elif kind in ("image", "image_url", "input_image"):
            value = _value_of(part)
            place = part.get("index")
            number = place + 1 if value is None and isinstance(place, int) else None
            pieces.append(
                take(number, part) if value is None else picture_from(value, context, where)
            )
        else:
            raise BadRow(
                f"{where} has a part {short(part)}.", 'Parts have the type "text" or "image".'
            )
    marks = sum(piece.count(PLACEHOLDER) for piece in pieces if isinstance(piece, str))
    given = sum(isinstance(piece, PictureSource) for piece in pieces)
    if not given:
        return [found for piece in pieces for found in split(str(piece))]
    if marks not in (0, given):
        raise _other_count(where, given, marks)
    # Written as parts and in the text: the chat sends the parts alone.
    return [p.replace(PLACEHOLDER, "") if isinstance(p, str) else p for p in pieces]


def _value_of(part: Mapping[str, Any]) -> Any:
    """The picture that an image part gives itself; None where it stands elsewhere."""
    keys = ("image", "image_url", "path", "url", "source", "data")
    value = next((part[key] for key in keys if part.get(key)), None)
    if not isinstance(value, Mapping):
        return value
    if value.get("type") == "base64":  # Anthropic's
        return f"data:{value.get('media_type') or 'image/png'};base64,{value.get('data') or ''}"
    return value.get("url", value)
