"""The questions of an evaluation, looked at before the first one is asked.

Each question of a row with several turns is asked alone, with the pictures shown up to it: the
turns of VQA data are separate questions about one picture, and a right answer that stands above the
next question gives away more than the picture does. For real dialogues, whose questions lean on
earlier turns, `history` puts those turns with their right answers in front.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from finetune.data.preflight import raise_for_problems
from finetune.data.read import FOR_TESTING, PictureSource, Problem, ReadRows, Row, read_rows
from finetune.evaluation.metrics import question_type
from finetune.parallel import parallel_map
from vqa_app.errors import ImageError
from vqa_app.pictures.picture import Picture
from vqa_app.prompts.conversation import Conversation, Message

Data: TypeAlias = "Sequence[Row] | str | Path | Sequence[str | Path]"
"""Rows, or files in any format that can be trained on; of several splits test, or validation."""


@dataclass(frozen=True)
class Question:
    """One question of a row; its pictures are opened when it is asked."""

    id: str
    row: Row
    turn: int
    """Position of its answer in `row.turns`."""
    answers: tuple[str, ...]
    """What counts as right."""
    type: str
    history: bool

    @property
    def text(self) -> str:
        return self.row.turns[self.turn - 1].text.strip()

    @property
    def picture_key(self) -> tuple[str, ...]:
        """Equal for questions about the same pictures."""
        return tuple(p.key for turn in self.row.turns[: self.turn] for p in turn.pictures)

    def conversation(self, pictures: dict[str, Picture]) -> Conversation:
        """The question as asked; `pictures` are the opened ones by key."""
        messages = [
            Message(
                turn.role, tuple(p if isinstance(p, str) else pictures[p.key] for p in turn.parts)
            )
            for turn in self.row.turns[: self.turn]
        ]
        if self.history:
            return Conversation(tuple(messages))
        opening = [message for message in messages[:1] if message.role == "system"]
        earlier = [picture for message in messages[:-1] for picture in message.pictures]
        asked = Message("user", (*earlier, *messages[-1].parts))
        return Conversation((*opening, asked))

    def finished(self, pictures: dict[str, Picture]) -> Conversation:
        """The question with the row's own answer."""
        answer = Message.assistant(self.row.turns[self.turn].text)
        return self.conversation(pictures).then(answer)


def make_questions(rows: Iterable[Row], *, history: bool = False) -> list[Question]:
    """Every question of the rows, those about the same pictures side by side.

    Args:
        history: ask follow-ups with the earlier turns and their right answers in front.
    """
    questions = []
    seen: Counter[str] = Counter()
    for row in rows:
        answered = [i for i, turn in enumerate(row.turns) if turn.role == "assistant"]
        for number, (turn, answers) in enumerate(zip(answered, row.references, strict=True), 1):
            name = f"{row.id}#{number}" if len(answered) > 1 else row.id
            seen[name] += 1
            if seen[name] > 1:
                name = f"{name} ({seen[name]})"
            kind = row.question_type or question_type(row.turns[turn - 1].text)
            questions.append(Question(name, row, turn, answers, kind, history))
    first: dict[tuple[str, ...], int] = {}
    for question in questions:
        first.setdefault(question.picture_key, len(first))
    return sorted(questions, key=lambda question: first[question.picture_key])


def evenly_spaced(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """At most `limit` of the questions, taken evenly from beginning to end."""
    if limit is None or limit >= len(questions):
        return list(questions)
    return [questions[i * len(questions) // limit] for i in range(limit)]


@dataclass(frozen=True)
class EvalQuestions:
    """Questions whose pictures can be opened."""

    questions: tuple[Question, ...]
    problems: tuple[Problem, ...]
    """The rows that were left out."""
    notes: tuple[Problem, ...] = ()


def load_questions(
    data: Data,
    images: Sequence[str | Path] = (),
    *,
    history: bool = False,
    limit: int | None = None,
    max_bad: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> EvalQuestions:
    """The questions of some data; every picture is opened, so that a damaged one is told now and
    not after hours of answers.

    Args:
        images: folders that picture paths in files are relative to.
        history: see `make_questions`.
        limit: at most so many questions, spread evenly.
        max_bad: how many bad rows may be left out.
        on_progress: told how many of how many pictures are opened.

    Raises:
        DataError: more bad rows than that; the first is named.
    """
    read = _read(data, images)
    questions = evenly_spaced(make_questions(read.rows, history=history), limit)
    unreadable = _unreadable(questions, on_progress)
    bad: dict[int, Problem] = {}
    for row in {id(question.row): question.row for question in questions}.values():
        errors = [unreadable[p.key] for p in row.pictures if p.key in unreadable]
        if errors:
            bad[id(row)] = row.problem(errors[0].problem, errors[0].hint)
    problems = (*read.problems, *bad.values())
    raise_for_problems(problems, max_bad)
    return EvalQuestions(tuple(q for q in questions if id(q.row) not in bad), problems, read.notes)


def _read(data: Data, images: Sequence[str | Path]) -> ReadRows:
    if not isinstance(data, (str, Path)) and all(isinstance(row, Row) for row in data):
        return ReadRows(tuple(data), ())  # type: ignore[arg-type]
    return read_rows(data, images, FOR_TESTING)  # type: ignore[arg-type]


def _unreadable(
    questions: Sequence[Question], on_progress: Callable[[int, int], None] | None
) -> dict[str, ImageError]:
    """Why pictures cannot be opened, by key."""

    def look(source: PictureSource) -> ImageError | None:
        try:
            source.open()
        except ImageError as error:
            return error
        return None

    sources = {source.key: source for q in questions for source in q.row.pictures}
    found: dict[str, ImageError] = {}
    looked = parallel_map(look, list(sources.values()))
    for done, (key, error) in enumerate(zip(sources, looked, strict=True), 1):
        if error is not None:
            found[key] = error
        if on_progress:
            on_progress(done, len(sources))
    return found


def evaluation_identity(
    questions: Sequence[Question], max_new_tokens: int, losses: int
) -> dict[str, Any]:
    """What must be the same for an evaluation to go on where it stopped, but for the model."""
    digest = hashlib.sha256()
    versions: dict[str, str] = {}
    for question in questions:
        for source in question.row.pictures:
            if source.key not in versions:
                versions[source.key] = _version(source)
        shown = [versions[key] for key in question.picture_key]
        content = [question.id, question.text, question.answers, shown]
        digest.update(json.dumps(content).encode())
    return {
        "questions": digest.hexdigest()[:16],
        "history": any(question.history for question in questions),
        "max_new_tokens": max_new_tokens,
        "losses": losses,
    }


def _version(source: PictureSource) -> str:
    """Another one where the picture is another, as far as can be told without decoding it."""
    origin = source.origin
    if isinstance(origin, (bytes, str)):
        return source.key  # a hash of the content
    if not isinstance(origin, Path):
        return hashlib.sha256(origin.read()).hexdigest()
    try:
        file = origin.stat()
    except OSError:  # told when it is opened
        return source.key
    return f"{source.key} {file.st_size} {file.st_mtime_ns}"
