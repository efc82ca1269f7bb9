"""Convert one record of any format to a `Row`; the format is recognised by the record's keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetune.data.cells import (
    check_encodable,
    first_value,
    is_metadata_key,
    is_missing,
    names_choices,
    parse_answers,
    parse_list,
    shorten,
    to_text,
)
from finetune.data.messages import (
    FILL_IN_HINT,
    add_placeholders,
    check_system_prompt,
    check_turns,
    parse_messages,
)
from finetune.data.picture_columns import Context, count_unused_picture, find_pictures
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
ANNOTATOR_KEYS = ("answers", "direct_answers")
"""Answer keys with one answer per annotator; `answers` may select choices instead."""
CONVERSATION_KEYS = ("conversations", "conversation", "messages")
CHOICE_KEYS = ("choices", "options")
LETTER_KEYS = tuple("abcdefgh")
_CORRECTION_KEYS = {"turn", "said", "created"}
"""Keys of single choices, as in MMBench."""


def read_record(record: Any, number: int, context: Context) -> Row:
    """Convert a record to a row.

    Args:
        record: An object, or easy-VQA's list.
        number: See `Problem.row`.
        context: The file of the record; notes are counted there.

    Raises:
        BadRow: Something is missing or wrong.
    """
    match record:  # easy-VQA (Victor Zhou, 2019): [question, answer, picture number]
        case [str(question), answer, int(picture)]:
            record = {"question": question, "answer": answer, "image": f"{picture}.png"}
    if not isinstance(record, Mapping):
        raise BadRow(f"The row is {shorten(record)}, not an object with keys.")
    values = {str(key).strip(): value for key, value in record.items()}
    if len(values) < len(record):
        raise BadRow("Two keys of the row differ only in the spaces around them.", "Rename one.")
    keys = _keys_by_lower_case(values)
    record = _TrackedRecord(values)
    pictures = find_pictures(record, context)
    references: tuple[tuple[str, ...], ...] | None = None
    if any(key in keys for key in CONVERSATION_KEYS):
        name = next(keys[key] for key in CONVERSATION_KEYS if key in keys)
        turns = parse_messages(record[name], pictures, context)
    elif "texts" in keys and isinstance(record[keys["texts"]], Sequence):
        turns = _parse_cauldron(record[keys["texts"]], pictures, context)
    elif any(key in keys for key in (*QUESTION_KEYS, *ANSWER_KEYS)):
        turns, references = _parse_question(record, keys, pictures, context)
    else:
        _refuse_preferences(keys)
        found = ", ".join(map(repr, [*record][:12])) or "none"
        raise BadRow(
            f"Unknown format; the row's keys are {found}.",
            'Use "conversations" (LLaVA), "messages" (OpenAI), or "image", "question", "answer".',
        )
    if turns and turns[-1].role == "user":
        _refuse_preferences(keys)
    check_turns(turns)
    turns = _add_system_turn(turns, record, keys, context)
    if references is None:
        answers = (turn for turn in turns if turn.role == "assistant" and turn.trained)
        references = tuple((turn.text,) for turn in answers)
    for position, turn in enumerate(turns, 1):
        check_encodable(turn.text, f"Message {position}")
    for answer in (answer for alternatives in references for answer in alternatives):
        check_encodable(answer, "An answer")
    for key in _unused_keys(record):
        if not count_unused_picture(key, record[key], context) and not is_metadata_key(key):
            context.unused_keys[key] += 1
    identity = next((record[keys[k]] for k in ("id", "question_id") if k in keys), number)
    return Row(
        id=_encodable(str(identity)),
        file=context.file,
        number=number,
        turns=turns,
        references=references,
        question_type=_text_value(record, keys, "question_type"),
        answer_type=_text_value(record, keys, "answer_type"),
    )


class _TrackedRecord(dict[str, Any]):
    """A record that remembers which of its values were read."""

    def __init__(self, record: dict[str, Any]) -> None:
        super().__init__(record)
        self.keys_read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.keys_read.add(key)
        return super().__getitem__(key)


def _keys_by_lower_case(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the record's keys by lower-case key.

    Raises:
        BadRow: Two keys differ only in their case, and have different values.
    """
    keys: dict[str, str] = {}
    for key, value in record.items():
        other = keys.setdefault(key.lower(), key)
        if other == key or is_missing(value) or value == record[other]:
            continue
        if not (is_missing(record[other]) or is_metadata_key(key)):
            raise BadRow(f"The row has both {other!r} and {key!r}.", "Rename one.")
        keys[key.lower()] = key
    return keys


def _unused_keys(record: _TrackedRecord) -> list[str]:
    """Return the keys whose values are not shown to the model."""
    return [
        key
        for key, value in record.items()
        if (key not in record.keys_read or key.lower() in (*CHOICE_KEYS, *LETTER_KEYS))
        and not (is_missing(value) or isinstance(value, bool) or _is_correction(value))
    ]


def _is_correction(value: Any) -> bool:
    """Return whether a value is what the page keeps with a corrected answer: its origin."""
    return isinstance(value, dict) and value.keys() == _CORRECTION_KEYS


def _refuse_preferences(keys: Mapping[str, str]) -> None:
    """Refuse a row without an answer that has a chosen and a rejected one, as for DPO.

    Raises:
        BadRow: The row has both.
    """
    if {"chosen", "rejected"} <= keys.keys():
        raise BadRow(
            "The row has preferences (chosen and rejected answers), which are not trained on.",
            'Name the chosen answer "answer", or make it the last message.',
        )


def _add_system_turn(
    turns: tuple[Turn, ...], record: Mapping[str, Any], keys: Mapping[str, str], context: Context
) -> tuple[Turn, ...]:
    """Put the record's system prompt first, unless the conversation has its own.

    Raises:
        BadRow: The prompt is no text, or has marks of pictures.
    """
    value = record[keys["system"]] if "system" in keys else None
    system = "" if is_missing(value) else to_text(value, "The system prompt")
    if not system.strip():
        return turns
    if turns[0].role != "system":
        check_system_prompt(system)
        return (Turn("system", (system,)), *turns)
    if turns[0].text.strip() != system.strip():
        reason = "the conversation has a system message of its own"
        context.remarks[f"The text under {keys['system']!r} is not shown: {reason}"] += 1
    return turns


def _parse_cauldron(
    texts: Sequence[Any], pictures: list[PictureSource], context: Context
) -> tuple[Turn, ...]:
    """Convert the `texts` of HuggingFaceM4/the_cauldron: pairs of user and assistant text."""
    messages: list[dict[str, str]] = []
    for position, exchange in enumerate(texts, 1):
        given = exchange if isinstance(exchange, Mapping) else {}
        if not all(isinstance(given.get(role), str) for role in ("user", "assistant")):
            raise BadRow(
                f'Text {position} is {shorten(exchange)}; it needs "user" and "assistant", as text.'
            )
        messages += _exchange(given["user"], given["assistant"])
    return (
        parse_messages(add_placeholders(messages, pictures), pictures, context) if messages else ()
    )


def _parse_question(
    record: Mapping[str, Any],
    keys: Mapping[str, str],
    pictures: list[PictureSource],
    context: Context,
) -> tuple[tuple[Turn, ...], tuple[tuple[str, ...], ...] | None]:
    """Convert a question with its answers and, if given, its history.

    Returns:
        The turns, and the references per answer; None if these are the answers themselves.
    """
    given = {key: record[keys[key]] for key in ANSWER_KEYS if key in keys}
    given = {key: value for key, value in given.items() if not is_missing(value)}
    question = _parse_question_text(record, keys)
    if not given:
        _refuse_preferences(keys)
        if any(key in keys for key in ANSWER_KEYS):
            raise BadRow("The answer is empty.", FILL_IN_HINT)
        raise BadRow("There is no answer.", f"Name its column one of {', '.join(ANSWER_KEYS[:6])}.")
    if _are_messages(question):  # TRL's prompt and completion
        answer = next(iter(given.values()))
        answer = answer if _are_messages(answer) else [{"role": "assistant", "content": answer}]
        return parse_messages([*question, *answer], pictures, context), None
    choices = _find_choices(record, keys)
    parsed = [
        parse_answers(
            value,
            choices,
            annotators=key in ANNOTATOR_KEYS
            and not (key == "answers" and names_choices(value, choices)),
        )
        for key, value in given.items()
    ]
    longest = max(parsed, key=lambda answers: len(answers))
    answers = sorted(longest, key=lambda answer: not answer)  # blank ones last
    candidates = [answer for answer in parsed[0] if answer]
    if not candidates:
        raise BadRow("The answer is empty.", FILL_IN_HINT)
    history = _parse_history(record, keys)
    target = Counter(candidates).most_common(1)[0][0]
    messages = [message for pair in (*history, (question, target)) for message in _exchange(*pair)]
    turns = parse_messages(add_placeholders(messages, pictures), pictures, context)
    return turns, (*((answer,) for _, answer in history), tuple(answers))


def _parse_question_text(record: Mapping[str, Any], keys: Mapping[str, str]) -> Any:
    """Return the question as text, an instruction followed by its input; or as messages."""
    names = [key for key in QUESTION_KEYS if key in keys]
    key = next((key for key in names if not is_missing(record[keys[key]])), "")
    parts = [record[keys[key]]] if key else []
    if key == "instruction":  # Alpaca and M3IT
        task_input = first_value(record, keys, ("input", "inputs"))
        parts += [] if is_missing(task_input) else [task_input]
    if len(parts) == 1 and _are_messages(parts[0]):
        return parts[0]
    question = "\n".join(to_text(part, "The question") for part in parts)
    if not question.strip() and names:
        raise BadRow("The question is empty.", FILL_IN_HINT)
    if not names:
        raise BadRow("There is no question.", f"Name its column one of {', '.join(QUESTION_KEYS)}.")
    return question


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and bool(value)
        and isinstance(value[0], Mapping)
        and ("role" in value[0] or "from" in value[0])
    )


def _parse_history(record: Mapping[str, Any], keys: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the earlier (question, answer) pairs, as ms-swift and LLaMA-Factory store them."""
    history = parse_list(first_value(record, keys, ("history",)))
    pairs = [] if is_missing(history) else history
    match pairs:
        case [*_] if all(
            isinstance(pair, Sequence) and [*map(type, pair)] == [str, str] for pair in pairs
        ):
            return [(question, answer) for question, answer in pairs]
    raise BadRow(
        f"The history is {shorten(history)}.", "It must be a list of pairs: question and answer."
    )


def _find_choices(record: Mapping[str, Any], keys: Mapping[str, str]) -> Any:
    """Return the choices of a multiple-choice question; None if there are none."""
    choices = first_value(record, keys, CHOICE_KEYS)
    if choices is None and {"a", "b"} <= set(keys):
        lettered = [record[keys[letter]] for letter in LETTER_KEYS if letter in keys]
        return [choice for choice in lettered if not is_missing(choice)]
    return choices


def _exchange(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def with_weight(row: Row, weight: float) -> Row:
    """Return the row with another weight."""
    return row if weight == row.weight else replace(row, weight=weight)


def _text_value(record: Mapping[str, Any], keys: Mapping[str, str], name: str) -> str:
    value = record[keys[name]] if name in keys else None
    return _encodable(value) if isinstance(value, str) else ""


def _encodable(text: str) -> str:
    """Replace unpaired surrogates, which cannot be written to a file, by question marks."""
    return text.encode("utf-8", "replace").decode()
