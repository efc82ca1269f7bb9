"""Checkpoint + data → metrics: every question answered, scored, and kept with its exact prompt."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data.read import PictureSource
from finetune.evaluation import metrics
from finetune.evaluation.metrics import PairedTest, Scores, by_type, paired_test
from finetune.evaluation.predictions import Prediction, PredictionsFile
from finetune.evaluation.questions import (
    Data,
    EvalQuestions,
    Question,
    evaluation_identity,
    evenly_spaced,
    load_questions,
)
from vqa_app.errors import DataError, ImageError, UsageError
from vqa_app.pictures.picture import Picture, blank_like

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from vqa_app.checkpoints.loader import LoadedModel
    from vqa_app.models.architecture import Capabilities

MAX_NEW_TOKENS = 64
MEASURED_LOSSES = 1000
"""Loss and image gain are measured at so many questions, spread evenly: enough for a mean."""
_CHUNK = 512
"""Questions rendered and answered together, and saved."""
_CHUNK_PIXELS = 64_000_000
"""A chunk ends where its pictures have more: they are in memory, and as many blank ones."""


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


def summarize_predictions(
    model: str, predictions: Sequence[Prediction], seconds: float
) -> EvalResult:
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
    capabilities: Capabilities,
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
        chunk = _answer_chunk(
            model, processor, capabilities, asked, pictures, max_new_tokens, measured
        )
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
                picture = pictures[source.key] = _opened(source, question)
                pixels += picture.image.width * picture.image.height
        if len(chunk) == _CHUNK or pixels > _CHUNK_PIXELS or number == len(questions):
            yield chunk, pictures
            chunk, pictures, pixels = [], {}, 0


def _opened(source: PictureSource, question: Question) -> Picture:
    try:
        return source.open()
    except ImageError as error:
        raise DataError(f"{question.row.place}: {error.problem}", error.hint) from error


def _answer_chunk(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    capabilities: Capabilities,
    questions: Sequence[Question],
    pictures: Mapping[str, Picture],
    max_new_tokens: int,
    measured: Collection[str] | None,
) -> list[Prediction]:
    from vqa_app.engine.batched import answer_losses, answer_prompts
    from vqa_app.prompts.prompt import encode, template_text

    asked = [question.conversation(pictures) for question in questions]
    prompts = [encode(processor, conversation, answer_next=True) for conversation in asked]
    answers = answer_prompts(model, processor, capabilities, prompts, max_new_tokens=max_new_tokens)
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
        for i, loss in zip(
            indices, answer_losses(model, processor, capabilities, rendered), strict=True
        ):
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
    data: EvalQuestions | Data,
    *,
    images: Sequence[str | Path] = (),
    out: str | Path | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    limit: int | None = None,
    history: bool = False,
    losses: int = MEASURED_LOSSES,
    max_bad: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> EvalResult:
    """Answers every question of some data and scores the answers.

    Args:
        model: loaded, or what `load_model` takes (a run directory too).
        data: rows, files in any format that can be trained on, or the result of `load_questions`
            (`images`, `limit`, `history` and `max_bad` are then ignored).
        images: folders that picture paths in the files are relative to.
        out: JSONL file for the predictions, written as they are made; an interrupted evaluation of
            the same model, data and pictures goes on there. Scores go beside it (`.summary.json`).
        limit: ask only so many questions, spread evenly.
        losses: measure loss and image gain at so many questions, spread evenly.
        max_bad: how many bad rows may be left out.
        on_progress: told how many of how many questions are answered.

    Raises:
        DataError: more bad rows than that, or no rows.
        UsageError: `out` holds another evaluation.
    """
    from vqa_app.checkpoints.loader import LoadedModel, load_model

    if not isinstance(data, EvalQuestions):
        data = load_questions(data, images, history=history, limit=limit, max_bad=max_bad)
    questions = data.questions
    loaded = model if isinstance(model, LoadedModel) else load_model(str(model))
    started = time.monotonic()
    identity = evaluation_identity(questions, max_new_tokens, losses) | _who_answers(loaded)
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
        loaded.capabilities,
        todo,
        max_new_tokens=max_new_tokens,
        measured={question.id for question in evenly_spaced(questions, losses)},
        on_chunk=report,
    )
    predictions = [done[question.id] for question in questions]
    result = summarize_predictions(loaded.label, predictions, time.monotonic() - started)
    if kept:
        kept.finish(result.to_json())
    return result


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


def _who_answers(loaded: LoadedModel) -> dict[str, Any]:
    """What must be the same of the model for an evaluation to go on."""
    from vqa_app.prompts.prompt import prompt_hash

    return {
        "model": loaded.name,
        "adapter": loaded.adapter,
        "fingerprint": loaded.fingerprint,
        "prompt": prompt_hash(loaded.processor),
        "dtype": str(loaded.model.dtype),
        "quantization": loaded.quantization,
    }
