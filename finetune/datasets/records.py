"""One record of any format → one `Row`. The format is told by the record's keys, never by the
file's name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetune.datasets.pictures import Context, picture_from, pictures_beside, pictures_of
from finetune.datasets.rows import BadRow, PictureSource, Row, Turn, TurnPart
from finetune.datasets.values import (
    answers_of,
    check_text,
    count,
    first,
    missing,
    parse_if_text,
    short,
)
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
    "developer": "system",
}
QUESTION_KEYS = ("question", "query", "prompt", "instruction")
ANSWER_KEYS = ("multiple_choice_answer", "answer", "answers", "response", "output", "label")


def read_record(record: Any, number: int, context: Context) -> Row:
    """Turns a record into a row.

    Raises:
        BadRow: what is missing or wrong, and how to mend it.
    """
    match record:  # Victor Zhou's easy-VQA (2019): [question, answer, number of the picture]
        case [str(question), answer, int(picture)]:
            record = {"question": question, "answer": answer, "image": f"{picture}.png"}
    if not isinstance(record, Mapping):
        raise BadRow(f"The row is {short(record)}, not an object with keys.")
    record = {str(key).strip(): value for key, value in record.items()}
    keys = {key.lower(): key for key in record}
    pictures = pictures_of(record, number, context)
    references: tuple[tuple[str, ...], ...] | None = None
    if any(key in keys for key in ("conversations", "conversation", "messages")):
        name = next(keys[k] for k in ("conversations", "conversation", "messages") if k in keys)
        turns = _from_messages(record[name], pictures, context)
    elif "texts" in keys and isinstance(record[keys["texts"]], Sequence):
        turns = _from_cauldron(record[keys["texts"]], pictures, context)
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
    for position, turn in enumerate(turns, 1):
        check_text(turn.text, f"Message {position}")
    for answer in (answer for answers in references for answer in answers):
        check_text(answer, "An answer")
    identity = next((record[keys[k]] for k in ("id", "question_id") if k in keys), number)
    return Row(
        id=_printable(str(identity)),
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
    messages = parse_if_text(messages)
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise BadRow(f"The conversation is {short(messages)}.", "It must be a list of messages.")
    waiting = list(pictures)
    turns = []
    for position, message in enumerate(messages, 1):
        where = f"Message {position}"
        if not isinstance(message, Mapping):
            raise BadRow(f"{where} is {short(message)}, not an object.")
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
        if beside := pictures_beside(message, context, where):
            pieces = _with_pictures_beside(content, beside, where, context)
        else:
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
            f"The row has {count(given, 'picture')} but {count(taken, PLACEHOLDER)}.",
            f"Write {PLACEHOLDER} once for each picture, where it belongs.",
        )
    return tuple(turns)


def _with_pictures_beside(
    content: Any, beside: list[PictureSource], where: str, context: Context
) -> list[TurnPart]:
    """Of a message with pictures of its own: in front of its text, or where it says."""
    if isinstance(content, str) and PLACEHOLDER not in content:
        return [*beside, content]
    waiting = list(beside)
    pieces = _pieces(content, waiting, True, where, context)
    if waiting:
        given = count(len(beside), "picture")
        raise BadRow(
            f"{where} has {given} but {count(len(beside) - len(waiting), PLACEHOLDER)}.",
            f"Write {PLACEHOLDER} once for each picture, or not at all.",
        )
    return pieces


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

    def split(text: str) -> list[TurnPart]:
        texts = text.split(PLACEHOLDER)
        pieces: list[TurnPart] = [texts[0]]
        for further in texts[1:]:
            pieces += [take(), further]
        return pieces

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
            value = next(
                (part[k] for k in ("image", "image_url", "path", "url") if part.get(k)), None
            )
            if isinstance(value, Mapping) and "url" in value:
                value = value["url"]
            pieces.append(take() if value is None else picture_from(value, context, where))
        else:
            raise BadRow(
                f"{where} has a part {short(part)}.", 'Parts have the type "text" or "image".'
            )
    marks = sum(piece.count(PLACEHOLDER) for piece in pieces if isinstance(piece, str))
    given = sum(isinstance(piece, PictureSource) for piece in pieces)
    if not given:
        return [found for piece in pieces for found in split(str(piece))]
    if marks not in (0, given):
        raise BadRow(
            f"{where} has {count(given, 'picture')} but {count(marks, PLACEHOLDER)}.",
            f"Write {PLACEHOLDER} once for each picture, or not at all.",
        )
    # Written as parts and in the text: the chat sends the parts alone.
    return [p.replace(PLACEHOLDER, "") if isinstance(p, str) else p for p in pieces]


def _from_cauldron(texts: Any, pictures: list[PictureSource], context: Context) -> tuple[Turn, ...]:
    """HuggingFaceM4/the_cauldron: `texts` of user and assistant, all pictures before the first
    question where the text does not place them."""
    messages: list[dict[str, str]] = []
    for position, exchange in enumerate(texts, 1):
        given = exchange if isinstance(exchange, Mapping) else {}
        if not all(isinstance(given.get(role), str) for role in ("user", "assistant")):
            raise BadRow(
                f'Text {position} is {short(exchange)}; it needs "user" and "assistant", as text.'
            )
        messages += [{"role": role, "content": given[role]} for role in ("user", "assistant")]
    if not messages:
        return ()
    if not any(PLACEHOLDER in message["content"] for message in messages):
        messages[0]["content"] = PLACEHOLDER * len(pictures) + messages[0]["content"]
    return _from_messages(messages, pictures, context)


def _from_question(
    record: Mapping[str, Any], keys: Mapping[str, str], pictures: list[PictureSource]
) -> tuple[tuple[Turn, ...], tuple[tuple[str, ...], ...]]:
    """One question with one or more annotators' answers."""
    question = first(record, keys, QUESTION_KEYS)
    if missing(question) or not str(question).strip():
        raise BadRow("There is no question.", f"Name its column one of {', '.join(QUESTION_KEYS)}.")
    given = {key: record[keys[key]] for key in ANSWER_KEYS if key in keys}
    given = {key: value for key, value in given.items() if not missing(value)}
    if not given:
        raise BadRow("There is no answer.", f"Name its column one of {', '.join(ANSWER_KEYS)}.")
    choices = first(record, keys, ("choices", "options"))
    read = [answers_of(v, choices, several=key == "answers") for key, v in given.items()]
    answers, target = max(read, key=len), read[0]
    if not answers or not target:
        raise BadRow("The answer is empty.", "Fill it in, or remove the row.")
    chosen = Counter(target).most_common(1)[0][0]
    marks = str(question).count(PLACEHOLDER)
    if marks and marks != len(pictures):
        raise BadRow(
            f"The row has {count(len(pictures), 'picture')} but {count(marks, PLACEHOLDER)}.",
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


def _label(record: Mapping[str, Any], keys: Mapping[str, str], name: str) -> str:
    value = record[keys[name]] if name in keys else None
    return _printable(value) if isinstance(value, str) else ""


def _printable(text: str) -> str:
    """With a question mark for half a character, which no file takes."""
    return text.encode("utf-8", "replace").decode()
