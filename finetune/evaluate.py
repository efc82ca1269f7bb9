"""Checkpoint + data → metrics: every question answered, scored, and kept with its exact prompt.

Each question of a row with several turns is asked alone, with the pictures shown up to it: the
turns of VQA data are separate questions about one picture, and a right answer that stands above the
next question gives away more than the picture does. For real dialogues, whose questions lean on
earlier turns, `history` puts those turns with their right answers in front.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import metrics
from finetune.metrics import PairedTest, Scores, by_type, paired_test, question_type
from finetune.predictions import Prediction, PredictionsFile
from vqa_app.conversation import Conversation, Message
from vqa_app.errors import DataError, UsageError
from vqa_app.images import Picture, blank_like

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from finetune.datasets import Row
    from vqa_app.loading import LoadedModel

MAX_NEW_TOKENS = 64
MEASURED_LOSSES = 1000
"""Loss and image gain are measured at so many questions, spread evenly: enough for a mean."""
_CHUNK = 512
"""Questions rendered and answered together, and saved."""
_CHUNK_PIXELS = 64_000_000
"""A chunk ends where its pictures have more: they are in memory, and as many blank ones."""


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


def questions_of(rows: Iterable[Row], *, history: bool = False) -> list[Question]:
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


@dataclass(frozen=True)
class EvalResult:
    """What a model is worth on some questions."""

    model: str
    scores: Scores
    types: dict[str, tuple[int, float]]
    """Question type to number of questions and VQA accuracy."""
    loss: float | None
    """Teacher-forced, nats per answer token."""
    image_gain: float | None
    """Mean over the questions with pictures. About 0: it would say this about any picture."""
    seconds: float
    predictions: tuple[Prediction, ...] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Everything but the predictions."""
        values = {key: value for key, value in vars(self).items() if key != "predictions"}
        types = {kind: {"questions": n, "vqa_accuracy": a} for kind, (n, a) in self.types.items()}
        return values | {"scores": asdict(self.scores), "types": types}


def summarize(model: str, predictions: Sequence[Prediction], seconds: float) -> EvalResult:
    """Means over predictions.

    Raises:
        DataError: there are none.
    """
    if not predictions:
        raise DataError("There are no questions to evaluate.", "Check the data file.")
    losses = [(p.loss, p.answer_tokens) for p in predictions if p.loss is not None]
    gains = [p.image_gain for p in predictions if p.image_gain is not None]
    tokens = sum(count or 0 for _, count in losses)
    return EvalResult(
        model=model,
        scores=metrics.score((p.prediction, p.answers) for p in predictions),
        types=by_type([p.type for p in predictions], [p.vqa_accuracy for p in predictions]),
        loss=math.fsum(loss * (n or 0) for loss, n in losses) / tokens if tokens else None,
        image_gain=math.fsum(gains) / len(gains) if gains else None,
        seconds=seconds,
        predictions=tuple(predictions),
    )


def answer_questions(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    measured: Collection[str] | None = None,
    on_chunk: Callable[[list[Prediction]], None] | None = None,
) -> list[Prediction]:
    """Answers and scores questions in their order.

    Args:
        measured: ids of the questions where the loss of the right answer is measured too, with and
            without the pictures; None is all of them.
        on_chunk: told of every few hundred predictions as they are made; what it raises ends it.
    """
    predictions: list[Prediction] = []
    for asked, pictures in _chunks(questions):
        chunk = _answer_chunk(model, processor, asked, pictures, max_new_tokens, measured)
        predictions += chunk
        if on_chunk:
            on_chunk(chunk)
    return predictions


def _chunks(questions: Sequence[Question]) -> Iterator[tuple[list[Question], dict[str, Picture]]]:
    """With their pictures, opened."""
    chunk: list[Question] = []
    pictures: dict[str, Picture] = {}
    pixels = 0
    for number, question in enumerate(questions, 1):
        chunk.append(question)
        for source in question.row.pictures:
            if source.key not in pictures:
                picture = pictures[source.key] = source.open()
                pixels += picture.image.width * picture.image.height
        if len(chunk) == _CHUNK or pixels > _CHUNK_PIXELS or number == len(questions):
            yield chunk, pictures
            chunk, pictures, pixels = [], {}, 0


def _answer_chunk(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    questions: Sequence[Question],
    pictures: Mapping[str, Picture],
    max_new_tokens: int,
    measured: Collection[str] | None,
) -> list[Prediction]:
    from finetune.answering import answer_all, answer_losses
    from vqa_app.prompting import encode, template_text

    asked = [question.conversation(pictures) for question in questions]
    prompts = [encode(processor, conversation, answer_next=True) for conversation in asked]
    answers = answer_all(model, processor, prompts, max_new_tokens=max_new_tokens)
    seen: list[Any] = [None] * len(questions)
    blank: list[Any] = [None] * len(questions)
    blanks = {key: blank_like(picture) for key, picture in pictures.items()}
    chosen = [i for i, q in enumerate(questions) if measured is None or q.id in measured]
    for losses, shown, indices in (
        (seen, pictures, chosen),
        (blank, blanks, [i for i in chosen if asked[i].pictures]),
    ):
        finished = [questions[i].finished(shown) for i in indices]
        rendered = [encode(processor, c, answer_next=False) for c in finished]
        for i, loss in zip(indices, answer_losses(model, processor, rendered), strict=True):
            losses[i] = loss
    return [
        Prediction(
            id=question.id,
            source=question.row.place,
            pictures=tuple(picture.name for picture in conversation.pictures),
            type=question.type,
            question=question.text,
            answers=question.answers,
            prediction=answer,
            vqa_accuracy=metrics.vqa_accuracy(answer, question.answers),
            loss=with_pictures and with_pictures.per_token,
            answer_tokens=with_pictures and with_pictures.tokens,
            image_gain=without and without.per_token - with_pictures.per_token,
            prompt=template_text(processor, conversation, answer_next=True),
        )
        for question, conversation, answer, with_pictures, without in zip(
            questions, asked, answers, seen, blank, strict=True
        )
    ]


def evaluate(
    model: LoadedModel | str | Path,
    data: Sequence[Row] | str | Path | Sequence[str | Path],
    *,
    images: Sequence[str | Path] = (),
    out: str | Path | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    limit: int | None = None,
    history: bool = False,
    losses: int = MEASURED_LOSSES,
    on_progress: Callable[[int, int], None] | None = None,
) -> EvalResult:
    """Answers every question of some data and scores the answers.

    Args:
        model: loaded, or what `load_model` takes (a run directory too).
        data: rows, or files in any format that can be trained on.
        images: folders that picture paths in the files are relative to.
        out: JSONL file for the predictions, written as they are made; an interrupted evaluation of
            the same model and data goes on there. Scores go beside it (`.summary.json`).
        limit: ask only so many questions, spread evenly.
        losses: measure loss and image gain at so many questions, spread evenly.
        on_progress: told how many of how many questions are answered.

    Raises:
        DataError: bad rows, or none.
        UsageError: `out` holds another evaluation.
    """
    from vqa_app.loading import LoadedModel, load_model

    rows = rows_of(data, images)
    loaded = model if isinstance(model, LoadedModel) else load_model(str(model))
    questions = spread(questions_of(rows, history=history), limit)
    label = f"{loaded.name} + {loaded.adapter}" if loaded.adapter else loaded.name
    started = time.monotonic()
    identity = what_is_asked(questions, max_new_tokens, losses) | _identity(loaded)
    kept = PredictionsFile(Path(out), identity) if out else None
    done = {p.id: p for p in kept.resume()} if kept else {}
    todo = [question for question in questions if question.id not in done]

    def report(chunk: list[Prediction]) -> None:
        done.update((p.id, p) for p in chunk)
        if kept:
            kept.append(chunk)
        if on_progress:
            on_progress(len(done), len(questions))

    if on_progress:
        on_progress(len(done), len(questions))
    answer_questions(
        loaded.model,
        loaded.processor,
        todo,
        max_new_tokens=max_new_tokens,
        measured={question.id for question in spread(questions, losses)},
        on_chunk=report,
    )
    predictions = [done[question.id] for question in questions]
    result = summarize(label, predictions, time.monotonic() - started)
    if kept:
        kept.finish(result.to_json())
    return result


def spread(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """At most `limit` of the questions, taken evenly from beginning to end."""
    if limit is None or limit >= len(questions):
        return list(questions)
    return [questions[i * len(questions) // limit] for i in range(limit)]


def compare(first: EvalResult, second: EvalResult) -> PairedTest:
    """Whether the first model's VQA accuracy differs from the second's on the same questions.

    Raises:
        UsageError: they answered different questions.
    """
    others = {p.id: p.vqa_accuracy for p in second.predictions}
    if others.keys() != {p.id for p in first.predictions}:
        raise UsageError("The two evaluations asked different questions.", "Use the same data.")
    mine = [p.vqa_accuracy for p in first.predictions]
    return paired_test(mine, [others[p.id] for p in first.predictions])


def rows_of(
    data: Sequence[Row] | str | Path | Sequence[str | Path], images: Sequence[str | Path] = ()
) -> Sequence[Row]:
    """The rows of data as `evaluate` takes it.

    Raises:
        DataError: bad rows.
    """
    from finetune.datasets import Row, read_rows

    if not isinstance(data, (str, Path)) and all(isinstance(row, Row) for row in data):
        return data  # type: ignore[return-value]
    read = read_rows(data, images)  # type: ignore[arg-type]
    if read.problems:
        raise DataError(
            f"{len(read.problems):,} problems, the first: {read.problems[0]}",
            "`vqa-app check-data` lists all of them.",
        )
    return read.rows


def what_is_asked(
    questions: Sequence[Question], max_new_tokens: int, losses: int
) -> dict[str, Any]:
    """What must be the same for an evaluation to go on where it stopped, but for the model."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(json.dumps([question.id, question.text, question.answers]).encode())
    return {
        "questions": digest.hexdigest()[:16],
        "history": any(question.history for question in questions),
        "max_new_tokens": max_new_tokens,
        "losses": losses,
    }


def _identity(loaded: LoadedModel) -> dict[str, Any]:
    """Of the model that answers."""
    return {
        "model": loaded.name,
        "adapter": loaded.adapter,
        "fingerprint": loaded.fingerprint,
        "dtype": str(loaded.model.dtype),
        "quantization": loaded.quantization,
    }
