"""One record of any format → one `Row`. The format is told by the record's keys, never by the
file's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetune.data.cells import (
    answers_of,
    check_text,
    first,
    is_bookkeeping,
    missing,
    parse_if_text,
    short,
)
from finetune.data.messages import check_turns, from_messages, with_marks
from finetune.data.picture_columns import Context, note_unseen, pictures_of
from finetune.data.rows import BadRow, PictureSource, Row, Turn

QUESTION_KEYS = ("question", "query", "prompt", "instruction")
ANSWER_KEYS = (
    "multiple_choice_answer",
    "answer",
    "answers",
    "response",
    "output",
    "completion",
    "label",
    "correct_choice_idx",
    "direct_answers",
)
SEVERAL = ("answers", "direct_answers")
"""Keys of what several annotators wrote."""
CHOICE_KEYS = ("choices", "options")
LETTERS = tuple("abcdefgh")
"""Keys of single choices, as MMBench has them."""


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
    record = _Read({str(key).strip(): value for key, value in record.items()})
    keys = {key.lower(): key for key in record}
    pictures = pictures_of(record, context)
    references: tuple[tuple[str, ...], ...] | None = None
    if any(key in keys for key in ("conversations", "conversation", "messages")):
        name = next(keys[k] for k in ("conversations", "conversation", "messages") if k in keys)
        turns = from_messages(record[name], pictures, context)
    elif "texts" in keys and isinstance(record[keys["texts"]], Sequence):
        turns = _from_cauldron(record[keys["texts"]], pictures, context)
    elif any(key in keys for key in (*QUESTION_KEYS, *ANSWER_KEYS)):
        turns, references = _from_question(record, keys, pictures, context)
    else:
        _refuse_preferences(keys)
        found = ", ".join(map(repr, [*record][:12])) or "none"
        raise BadRow(
            f"No known format; the row's keys are {found}.",
            'Use "conversations" (LLaVA), "messages" (OpenAI), or "image", "question", "answer".',
        )
    if turns and turns[-1].role == "user":
        _refuse_preferences(keys)
    check_turns(turns)
    system = record[keys["system"]] if "system" in keys else None
    if isinstance(system, str) and system.strip():
        if turns[0].role != "system":
            turns = (Turn("system", (system,)), *turns)
        elif turns[0].text.strip() != system.strip():
            own = "the conversation has a system message of its own"
            context.remarks[f"The text under {keys['system']!r} is not shown: {own}"] += 1
    if references is None:
        references = tuple((turn.text,) for turn in turns if turn.role == "assistant")
    for position, turn in enumerate(turns, 1):
        check_text(turn.text, f"Message {position}")
    for answer in (answer for answers in references for answer in answers):
        check_text(answer, "An answer")
    for key in _unread(record):
        if not note_unseen(key, record[key], context) and not is_bookkeeping(key):
            context.unshown[key] += 1
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


class _Read(dict[str, Any]):
    """A record that knows which of its values were asked for."""

    def __init__(self, record: dict[str, Any]) -> None:
        super().__init__(record)
        self.keys_read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.keys_read.add(key)
        return super().__getitem__(key)


def _unread(record: _Read) -> list[str]:
    """Keys whose values never reach the model."""
    return [
        key
        for key, value in record.items()
        if (key not in record.keys_read or key.lower() in (*CHOICE_KEYS, *LETTERS))
        and not (missing(value) or isinstance(value, bool))
    ]


def _refuse_preferences(keys: Mapping[str, str]) -> None:
    """Raises:
    BadRow: the row without an answer has two, a better and a worse one, as for DPO.
    """
    if {"chosen", "rejected"} <= keys.keys():
        raise BadRow(
            "It has chosen and rejected answers, preferences; only answers are trained.",
            'Make what was chosen the answer: call it "answer", or the last of the messages.',
        )


def _from_cauldron(texts: Any, pictures: list[PictureSource], context: Context) -> tuple[Turn, ...]:
    """HuggingFaceM4/the_cauldron: `texts` of user and assistant, all pictures before the first
    question where the text does not place them.
    """
    messages: list[dict[str, str]] = []
    for position, exchange in enumerate(texts, 1):
        given = exchange if isinstance(exchange, Mapping) else {}
        if not all(isinstance(given.get(role), str) for role in ("user", "assistant")):
            raise BadRow(
                f'Text {position} is {short(exchange)}; it needs "user" and "assistant", as text.'
            )
        messages += _exchange(given["user"], given["assistant"])
    return from_messages(with_marks(messages, pictures), pictures, context) if messages else ()


def _from_question(
    record: Mapping[str, Any],
    keys: Mapping[str, str],
    pictures: list[PictureSource],
    context: Context,
) -> tuple[tuple[Turn, ...], tuple[tuple[str, ...], ...] | None]:
    """One question with one or more annotators' answers, and earlier turns where there are some;
    None where the answers are the messages' own.
    """
    given = {key: record[keys[key]] for key in ANSWER_KEYS if key in keys}
    given = {key: value for key, value in given.items() if not missing(value)}
    question = _question(record, keys)
    if not given:
        _refuse_preferences(keys)
        raise BadRow("There is no answer.", f"Name its column one of {', '.join(ANSWER_KEYS[:6])}.")
    if _are_messages(question):  # TRL's prompt and completion
        answer = next(iter(given.values()))
        answer = answer if _are_messages(answer) else [{"role": "assistant", "content": answer}]
        return from_messages([*question, *answer], pictures, context), None
    choices = _choices(record, keys)
    read = [answers_of(v, choices, several=key in SEVERAL) for key, v in given.items()]
    answers = sorted(max(read, key=len), key=lambda answer: not answer)  # what is blank, last
    target = [answer for answer in read[0] if answer]
    if not target:
        raise BadRow("The answer is empty.", "Fill it in, or remove the row.")
    earlier = _history(record, keys)
    chosen = Counter(target).most_common(1)[0][0]
    messages = [message for pair in (*earlier, (question, chosen)) for message in _exchange(*pair)]
    turns = from_messages(with_marks(messages, pictures), pictures, context)
    return turns, (*((answer,) for _, answer in earlier), tuple(answers))


def _question(record: Mapping[str, Any], keys: Mapping[str, str]) -> Any:
    """The question as text, with what stands under `input` behind an instruction; or messages."""
    named = [key for key in QUESTION_KEYS if key in keys]
    key = next((key for key in named if not missing(record[keys[key]])), "")
    parts = [record[keys[key]]] if key else []
    if key == "instruction":  # Alpaca and M3IT
        further = first(record, keys, ("input", "inputs"))
        parts += [] if missing(further) else [further]
    if len(parts) == 1 and _are_messages(parts[0]):
        return parts[0]
    for part in parts:
        if not isinstance(part, (str, int, float)):
            raise BadRow(f"The question is {short(part)}, not text.", "Write one text a row.")
    question = "\n".join(map(str, parts))
    if not question.strip():
        raise BadRow("There is no question.", f"Name its column one of {', '.join(QUESTION_KEYS)}.")
    return question


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and bool(value)
        and isinstance(value[0], Mapping)
        and ("role" in value[0] or "from" in value[0])
    )


def _history(record: Mapping[str, Any], keys: Mapping[str, str]) -> list[tuple[str, str]]:
    """ms-swift's and LLaMA-Factory's earlier turns: pairs of question and answer."""
    history = parse_if_text(first(record, keys, ("history",)))
    pairs = [] if missing(history) else history
    match pairs:
        case [*_] if all(
            isinstance(pair, Sequence) and [*map(type, pair)] == [str, str] for pair in pairs
        ):
            return [(question, answer) for question, answer in pairs]
    raise BadRow(
        f"The history is {short(history)}.", "It must be a list of pairs: question and answer."
    )


def _choices(record: Mapping[str, Any], keys: Mapping[str, str]) -> Any:
    """What may be chosen from."""
    choices = first(record, keys, CHOICE_KEYS)
    if choices is None and {"a", "b"} <= set(keys):
        letters = [record[keys[letter]] for letter in LETTERS if letter in keys]
        return [choice for choice in letters if not missing(choice)]
    return choices


def _exchange(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def with_weight(row: Row, weight: float) -> Row:
    return row if weight == row.weight else replace(row, weight=weight)


def _label(record: Mapping[str, Any], keys: Mapping[str, str], name: str) -> str:
    value = record[keys[name]] if name in keys else None
    return _printable(value) if isinstance(value, str) else ""


def _printable(text: str) -> str:
    """With a question mark for half a character, which no file takes."""
    return text.encode("utf-8", "replace").decode()
