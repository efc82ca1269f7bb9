"""One record of any format → one `Row`. The format is told by the record's keys, never by the
file's name."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.datasets.rows import BadRow, PictureSource, Row, Turn, TurnPart
from vqa_app.conversation import Role

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
}
IMAGE_KEYS = ("image", "images", "image_path", "img", "picture", "file_name", "filename", "photo")
QUESTION_KEYS = ("question", "query", "prompt", "instruction")
ANSWER_KEYS = ("multiple_choice_answer", "answer", "answers", "response", "output", "label")


@dataclass(frozen=True)
class Context:
    """What a record alone does not say."""

    file: str
    roots: tuple[Path, ...]
    """Resolved folders that picture paths are relative to, first match wins."""
    stored_picture: Callable[[int, str, int], PictureSource] | None = None
    """For tables with picture columns: (row, column, position) → picture, read again when
    needed."""


def read_record(record: Any, number: int, context: Context) -> Row:
    """Turns a record into a row.

    Raises:
        BadRow: what is missing or wrong, and how to mend it.
    """
    match record:  # Victor Zhou's easy-VQA (2019): [question, answer, number of the picture]
        case [str(question), answer, int(picture)]:
            record = {"question": question, "answer": answer, "image": f"{picture}.png"}
    if not isinstance(record, Mapping):
        raise BadRow(f"The row is {_short(record)}, not an object with keys.")
    record = {str(key).strip(): value for key, value in record.items()}
    keys = {key.lower(): key for key in record}
    pictures = _pictures(record, keys, number, context)
    references: tuple[tuple[str, ...], ...] | None = None
    if any(key in keys for key in ("conversations", "conversation", "messages")):
        name = next(keys[k] for k in ("conversations", "conversation", "messages") if k in keys)
        turns = _from_messages(record[name], pictures, context)
    elif "texts" in keys and isinstance(record[keys["texts"]], Sequence):
        turns = _from_cauldron(record[keys["texts"]], pictures)
    elif any(key in keys for key in (*QUESTION_KEYS, *ANSWER_KEYS)):
        turns, references = _from_question(record, keys, pictures)
    else:
        found = ", ".join(map(repr, record)) or "none"
        raise BadRow(
            f"No known format; the row's keys are {found}.",
            'Use "conversations" (LLaVA), "messages" (OpenAI), or "image", "question", "answer".',
        )
    _check_turns(turns)
    system = record[keys["system"]] if "system" in keys else None
    if isinstance(system, str) and system.strip() and turns[0].role != "system":
        turns = (Turn("system", (system,)), *turns)
    if references is None:
        references = tuple((turn.text,) for turn in turns if turn.role == "assistant")
    identity = next((record[keys[k]] for k in ("id", "question_id") if k in keys), number)
    return Row(
        id=str(identity),
        file=context.file,
        number=number,
        turns=turns,
        references=references,
        question_type=_label(record, keys, "question_type"),
        answer_type=_label(record, keys, "answer_type"),
    )


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


def _from_messages(
    messages: Any, pictures: list[PictureSource], context: Context
) -> tuple[Turn, ...]:
    """LLaVA, ShareGPT and OpenAI conversations."""
    messages = _parse_if_text(messages)
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise BadRow(f"The conversation is {_short(messages)}.", "It must be a list of messages.")
    waiting = list(pictures)
    turns = []
    for position, message in enumerate(messages, 1):
        where = f"Message {position}"
        if not isinstance(message, Mapping):
            raise BadRow(f"{where} is {_short(message)}, not an object.")
        speaker = message.get("from", message.get("role"))
        content = message.get("value", message.get("content"))
        if speaker is None or content is None:
            missing = '"from" (or "role")' if speaker is None else '"value" (or "content")'
            raise BadRow(
                f"{where} has no {missing}.", f"Its keys are {', '.join(message) or 'none'}."
            )
        role = ROLES.get(str(speaker).lower())
        if role is None:
            raise BadRow(f"{where} is from {speaker!r}.", f"Known are {', '.join(ROLES)}.")
        pieces = _pieces(content, waiting, bool(pictures), where, context)
        if role == "user":
            turns.append(Turn(role, join_user_parts(pieces)))
        elif any(isinstance(piece, PictureSource) for piece in pieces):
            raise BadRow(
                f"{where} ({speaker}) holds a picture.", "Only user turns may hold pictures."
            )
        else:
            turns.append(Turn(role, tuple(pieces)))
    if waiting:
        given, taken = len(pictures), len(pictures) - len(waiting)
        raise BadRow(
            f"The row has {_count(given, 'picture')} but {_count(taken, PLACEHOLDER)}.",
            f"Write {PLACEHOLDER} once for each picture, where it belongs.",
        )
    return tuple(turns)


def _pieces(
    content: Any, waiting: list[PictureSource], has_pictures: bool, where: str, context: Context
) -> list[TurnPart]:
    """Text and pictures of one message; takes placeholders' pictures from the front of
    `waiting`."""

    def take() -> PictureSource:
        if not waiting:
            raise BadRow(
                f"{where} has a {PLACEHOLDER} for which there is no picture"
                + ("." if has_pictures else ": the row has none."),
                f'List the pictures under "image", or remove the {PLACEHOLDER}.',
            )
        return waiting.pop(0)

    if isinstance(content, str):
        texts = content.split(PLACEHOLDER)
        pieces: list[TurnPart] = [texts[0]]
        for text in texts[1:]:
            pieces += [take(), text]
        return pieces
    if not isinstance(content, Sequence):
        raise BadRow(f"{where} has the content {_short(content)}.", "Give text or a list of parts.")
    pieces = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(part, str):
            pieces.append(part)
        elif kind in ("text", "input_text", "output_text"):
            pieces.append(str(part.get("text") or ""))
        elif kind in ("image", "image_url", "input_image"):
            value = next(
                (part[k] for k in ("image", "image_url", "path", "url") if part.get(k)), None
            )
            if isinstance(value, Mapping) and "url" in value:
                value = value["url"]
            pieces.append(take() if value is None else picture_from(value, context, where))
        else:
            raise BadRow(
                f"{where} has a part {_short(part)}.", 'Parts have the type "text" or "image".'
            )
    return pieces


def _from_cauldron(texts: Any, pictures: list[PictureSource]) -> tuple[Turn, ...]:
    """HuggingFaceM4/the_cauldron: `texts` of user and assistant, all pictures before the first
    question."""
    turns: list[Turn] = []
    for position, exchange in enumerate(texts, 1):
        if not isinstance(exchange, Mapping) or not {"user", "assistant"} <= set(exchange):
            raise BadRow(f'Text {position} is {_short(exchange)}; it needs "user" and "assistant".')
        before = pictures if position == 1 else []
        turns.append(Turn("user", join_user_parts([*before, str(exchange["user"])])))
        turns.append(Turn("assistant", (str(exchange["assistant"]),)))
    return tuple(turns)


def _from_question(
    record: Mapping[str, Any], keys: Mapping[str, str], pictures: list[PictureSource]
) -> tuple[tuple[Turn, ...], tuple[tuple[str, ...], ...]]:
    """One question with one or more annotators' answers."""
    question = _first(record, keys, QUESTION_KEYS)
    if question is None or not str(question).strip():
        raise BadRow("There is no question.", f"Name its column one of {', '.join(QUESTION_KEYS)}.")
    values = [record[keys[key]] for key in ANSWER_KEYS if key in keys]
    values = [value for value in values if value not in (None, "")]
    if not values:
        raise BadRow("There is no answer.", f"Name its column one of {', '.join(ANSWER_KEYS)}.")
    answers = max((_answers(value) for value in values), key=len)
    target = _answers(values[0])
    if not answers or not target:
        raise BadRow("The answer is empty.", "Fill it in, or remove the row.")
    chosen = Counter(target).most_common(1)[0][0]
    marks = str(question).count(PLACEHOLDER)
    if marks and marks != len(pictures):
        raise BadRow(
            f"The row has {_count(len(pictures), 'picture')} but {_count(marks, PLACEHOLDER)}.",
            f"Write {PLACEHOLDER} once for each picture, or not at all.",
        )
    pieces: list[TurnPart] = []
    if marks:
        texts = str(question).split(PLACEHOLDER)
        pieces = [texts[0]]
        for picture, text in zip(pictures, texts[1:], strict=True):
            pieces += [picture, text]
    else:
        pieces = [*pictures, str(question)]
    turns = (Turn("user", join_user_parts(pieces)), Turn("assistant", (chosen,)))
    return turns, (tuple(answers),)


def _answers(value: Any) -> list[str]:
    """Answers from text, number, list, or VQA v2's list of objects."""
    value = _parse_if_text(value)
    if isinstance(value, Mapping):
        value = value.get("answer", value.get("text"))
    if isinstance(value, (list, tuple)):
        return [answer for item in value for answer in _answers(item)]
    if value is None:
        return []
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    return [str(value)] if str(value).strip() else []


def _pictures(
    record: Mapping[str, Any], keys: Mapping[str, str], number: int, context: Context
) -> list[PictureSource]:
    column = next((keys[key] for key in IMAGE_KEYS if key in keys and record[keys[key]]), None)
    if column is None:
        for key, value in record.items():
            if _names_picture(value):
                raise BadRow(
                    f"{key!r} holds a picture's name, {_short(value)}, but is not a known key.",
                    f"Call it one of {', '.join(IMAGE_KEYS)}.",
                )
        return []
    value = _parse_if_text(record[column])
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    found = []
    for position, item in enumerate(values):
        if context.stored_picture and isinstance(item, Mapping) and item.get("bytes") is not None:
            found.append(context.stored_picture(number, column, position))
        else:
            found.append(picture_from(item, context, f"Picture {position + 1}"))
    return found


def picture_from(value: Any, context: Context, where: str) -> PictureSource:
    """A picture from a path, a `data:` URI, or Hugging Face's {"bytes", "path"}.

    Raises:
        BadRow: a web address, a missing file, or one outside the picture folders.
    """
    if isinstance(value, Mapping):
        data = value.get("bytes")
        if isinstance(data, bytes):
            return PictureSource.data(data, str(value.get("path") or "picture"))
        value = value.get("path") or value.get("url")
    if not isinstance(value, str):
        raise BadRow(f"{where} is {_short(value)}.", "Give a path relative to the picture folder.")
    if value.startswith("data:"):
        return PictureSource.data(value, "picture")
    if re.match(r"https?://", value):
        raise BadRow(f"{where} is a web address, {_short(value)}.", "Download it; give its path.")
    return PictureSource.file(find_picture(value.removeprefix("file://"), context.roots))


def _names_picture(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_names_picture, value))
    if isinstance(value, Mapping):
        return isinstance(value.get("bytes"), bytes) or _names_picture(value.get("path"))
    ending = r"[^\s]\.(png|jpe?g|webp|gif|bmp|tiff?|avif|heic)$"
    return isinstance(value, str) and len(value) < 300 and bool(re.search(ending, value, re.I))


def find_picture(path: str, roots: Sequence[Path]) -> Path:
    """The file that `path` names in the first root that has it.

    Raises:
        BadRow: it is in none of them, or points out of all of them.
    """
    outside = True
    for root in roots:
        candidate = Path(path) if Path(path).is_absolute() else root / path
        try:
            candidate = candidate.resolve()
            if not candidate.is_relative_to(root):
                continue
            outside = False
            if candidate.is_file():
                return candidate
        except (OSError, ValueError) as error:  # too long, or with a null byte
            raise BadRow(
                f"{_short(path)} is not a path.", "Write base64 as data:image/png;base64,..."
            ) from error
    folders = " or ".join(map(str, roots))
    if outside:
        raise BadRow(
            f"The picture {path} lies outside the picture folder {folders}.",
            "Move it in, or name the folder that holds it with --images.",
        )
    raise BadRow(f"There is no picture {path} in {folders}.", "Check the name, or give --images.")


def _check_turns(turns: tuple[Turn, ...]) -> None:
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


def with_weight(row: Row, weight: float) -> Row:
    return row if weight == row.weight else replace(row, weight=weight)


def _first(record: Mapping[str, Any], keys: Mapping[str, str], names: Sequence[str]) -> Any:
    return next((record[keys[name]] for name in names if name in keys), None)


def _label(record: Mapping[str, Any], keys: Mapping[str, str], name: str) -> str:
    value = record[keys[name]] if name in keys else None
    return value if isinstance(value, str) else ""


def _parse_if_text(value: Any) -> Any:
    """Lists inside CSV cells are JSON."""
    if isinstance(value, str) and value.lstrip().startswith("[") and value.rstrip().endswith("]"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 or what.startswith("<") else "s")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
