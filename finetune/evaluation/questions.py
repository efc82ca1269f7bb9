"""The questions of an evaluation, checked before the first one is answered.

Each question of a row with several turns is asked alone, with the pictures shown up to it: the
turns of VQA data are independent questions about one picture, and the correct answers to earlier
questions reveal more than the picture does. For real dialogues, whose questions refer to earlier
turns, `history` puts those turns with their correct answers before the question.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from finetune.data.preflight import raise_for_problems
from finetune.data.read import FOR_TESTING, PictureSource, Problem, ReadRows, Row, read_rows
from finetune.evaluation.metrics import question_type
from finetune.parallel import parallel_map
from vqa_app.errors import ImageError
from vqa_app.pictures.picture import Picture
from vqa_app.prompts.conversation import Conversation, Message, Part

QuestionSource: TypeAlias = "Sequence[Row] | str | Path | Sequence[str | Path]"
"""Rows, or files in any format that can be trained on. Of files with several splits, test is read,
or else validation."""


@dataclass(frozen=True)
class Question:
    """One question of a row."""

    id: str
    row: Row
    turn: int
    """Index of the answer in `row.turns`."""
    answers: tuple[str, ...]
    """The answers that count as correct."""
    type: str
    history: bool
    """Whether the earlier turns are put before the question."""
    instruction: str = ""
    """Appended to the question for the model; see `answer_style`."""

    @property
    def text(self) -> str:
        """The question's text."""
        return self.row.turns[self.turn - 1].text.strip()

    @property
    def pictures(self) -> tuple[PictureSource, ...]:
        """The pictures shown up to the question."""
        return tuple(p for turn in self.row.turns[: self.turn] for p in turn.pictures)

    @property
    def picture_keys(self) -> tuple[str, ...]:
        """The keys of the pictures; equal for questions about the same pictures."""
        return tuple(picture.key for picture in self.pictures)

    def conversation(self, pictures: Mapping[str, Picture]) -> Conversation:
        """Return the conversation that ends with the question.

        Args:
            pictures: The opened pictures by key.
        """
        messages = [
            Message(
                turn.role, tuple(p if isinstance(p, str) else pictures[p.key] for p in turn.parts)
            )
            for turn in self.row.turns[: self.turn]
        ]
        if self.instruction:
            messages[-1] = Message("user", _append(messages[-1].parts, self.instruction))
        if self.history:
            return Conversation(tuple(messages))
        opening = [message for message in messages[:1] if message.role == "system"]
        earlier = [picture for message in messages[:-1] for picture in message.pictures]
        question = Message("user", (*earlier, *messages[-1].parts))
        return Conversation((*opening, question))

    def answered_conversation(self, pictures: Mapping[str, Picture]) -> Conversation:
        """Return the conversation with the question and the row's answer."""
        answer = Message.assistant(self.row.turns[self.turn].text)
        return self.conversation(pictures).then(answer)


def _append(parts: tuple[Part, ...], instruction: str) -> tuple[Part, ...]:
    """Append an instruction to the parts of a question."""
    if isinstance(last := parts[-1], str):
        return (*parts[:-1], last.rstrip() + instruction)
    return (*parts, instruction)


def make_questions(rows: Iterable[Row], *, history: bool = False) -> list[Question]:
    """Return every question of the rows; questions about the same pictures are adjacent.

    Answers that are not to be trained are not asked for: they are not known to be correct.

    Args:
        rows: The rows.
        history: Whether to put earlier turns with their correct answers before a question.
    """
    questions = []
    id_counts: Counter[str] = Counter()
    for row in rows:
        answered = [
            i for i, turn in enumerate(row.turns) if turn.role == "assistant" and turn.trained
        ]
        for number, (turn, answers) in enumerate(zip(answered, row.references, strict=True), 1):
            name = f"{row.id}#{number}" if len(answered) > 1 else row.id
            id_counts[name] += 1
            if id_counts[name] > 1:
                name = f"{name} ({id_counts[name]})"
            kind = row.question_type or question_type(row.turns[turn - 1].text)
            questions.append(Question(name, row, turn, answers, kind, history))
    first: dict[tuple[str, ...], int] = {}
    for question in questions:
        first.setdefault(question.picture_keys, len(first))
    return sorted(questions, key=lambda question: first[question.picture_keys])


def evenly_spaced(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """Return at most `limit` questions, evenly spaced from beginning to end."""
    if limit is None or limit >= len(questions):
        return list(questions)
    return [questions[i * len(questions) // limit] for i in range(limit)]


@dataclass(frozen=True)
class EvalQuestions:
    """Questions whose pictures are known to be readable."""

    questions: tuple[Question, ...]
    problems: tuple[Problem, ...]
    """The problems of rows that were skipped."""
    notes: tuple[Problem, ...] = ()


def load_questions(
    data: QuestionSource,
    images: Sequence[str | Path] = (),
    *,
    history: bool = False,
    limit: int | None = None,
    max_bad: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> EvalQuestions:
    """Read the questions of some data and open every picture.

    A damaged picture is thus reported at once, not after hours of answers.

    Args:
        data: Rows or files.
        images: Folders that picture paths in files are relative to.
        history: See `make_questions`.
        limit: The maximum number of questions, chosen evenly.
        max_bad: The number of bad rows that may be skipped.
        on_progress: Called with the number of pictures opened and the total.

    Raises:
        DataError: There are more bad rows than allowed; the message names the first.
    """
    read = _read(data, images)
    questions = evenly_spaced(make_questions(read.rows, history=history), limit)
    errors_by_key = _find_unreadable(questions, on_progress)
    bad: dict[int, Problem] = {}
    for row in {id(question.row): question.row for question in questions}.values():
        errors = [errors_by_key[p.key] for p in row.pictures if p.key in errors_by_key]
        if errors:
            bad[id(row)] = row.problem(errors[0].problem, errors[0].hint)
    problems = (*read.problems, *bad.values())
    raise_for_problems(problems, max_bad)
    return EvalQuestions(tuple(q for q in questions if id(q.row) not in bad), problems, read.notes)


def _read(data: QuestionSource, images: Sequence[str | Path]) -> ReadRows:
    if isinstance(data, (str, Path)):
        return read_rows(data, images, FOR_TESTING)
    rows = tuple(item for item in data if isinstance(item, Row))
    if len(rows) == len(data):
        return ReadRows(rows, ())
    return read_rows([item for item in data if not isinstance(item, Row)], images, FOR_TESTING)


def _find_unreadable(
    questions: Sequence[Question], on_progress: Callable[[int, int], None] | None
) -> dict[str, ImageError]:
    """Return the errors of pictures that cannot be opened, by key."""

    def try_open(source: PictureSource) -> ImageError | None:
        try:
            source.open()
        except ImageError as error:
            return error
        return None

    sources = {source.key: source for q in questions for source in q.row.pictures}
    errors: dict[str, ImageError] = {}
    results = parallel_map(try_open, list(sources.values()))
    for done, (key, error) in enumerate(zip(sources, results, strict=True), 1):
        if error is not None:
            errors[key] = error
        if on_progress:
            on_progress(done, len(sources))
    return errors


def evaluation_identity(
    questions: Sequence[Question],
    max_new_tokens: int,
    losses: int,
    log_probabilities: bool = False,
) -> dict[str, Any]:
    """Return what identifies an evaluation besides the model; it must be equal to continue one."""
    digest = hashlib.sha256()
    versions: dict[str, str] = {}
    for question in questions:
        for source in question.row.pictures:
            if source.key not in versions:
                versions[source.key] = _picture_version(source)
        shown = [versions[key] for key in question.picture_keys]
        content = [question.id, question.text, question.answers, shown]
        digest.update(json.dumps(content).encode())
    return {
        "questions": digest.hexdigest()[:16],
        "history": any(question.history for question in questions),
        "max_new_tokens": max_new_tokens,
        "losses": losses,
        **({"log_probabilities": True} if log_probabilities else {}),
    }


def _picture_version(source: PictureSource) -> str:
    """Return a string that changes when the picture does, without decoding it."""
    origin = source.origin
    if isinstance(origin, (bytes, str)):
        return source.key  # a hash of the content
    if not isinstance(origin, Path):
        return hashlib.sha256(origin.read()).hexdigest()
    try:
        file = origin.stat()
    except OSError:  # reported when it is opened
        return source.key
    return f"{source.key} {file.st_size} {file.st_mtime_ns}"
