"""Evaluate a model: answer every question, score the answers, and keep them with their prompts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from finetune.data.read import PictureSource
from finetune.evaluation import metrics
from finetune.evaluation.answer_style import (
    AnswerStyle,
    ask_for_short_answers,
    expect_short_answers,
)
from finetune.evaluation.baselines import Baselines, BlindResult, FrequentAnswers, to_json
from finetune.evaluation.metrics import PairedTest, Scores, by_type, paired_test
from finetune.evaluation.predictions import Prediction, PredictionsFile
from finetune.evaluation.questions import (
    EvalQuestions,
    Question,
    QuestionSource,
    evaluation_identity,
    evenly_spaced,
    load_questions,
)
from vqa_app.checkpoints.manifest import is_finished
from vqa_app.engine.protocol import Answer, GenerationOptions
from vqa_app.engine.remote import RemoteEngine
from vqa_app.errors import DataError, ImageError, UsageError
from vqa_app.numeric import LARGEST, checked_integer
from vqa_app.pictures.picture import Picture, blank_like

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from vqa_app.checkpoints.loader import LoadedModel
    from vqa_app.models.architecture import Capabilities
    from vqa_app.prompts.conversation import Conversation

MAX_NEW_TOKENS = 64
BLIND_QUESTIONS = 200
"""Number of questions, evenly spaced, that are also answered with grey pictures."""
MEASURED_LOSSES = 1000
"""Number of questions, evenly spaced, whose loss and image gain are measured."""
_REMOTE_CHUNK = 4
"""Questions in a chunk for each that a server elsewhere answers at once."""
_CHUNK = 512
"""Questions that are answered together and then saved."""
_CHUNK_PIXELS = 64_000_000
"""Pixels of a chunk's pictures, which are in memory together with blank ones of the same size."""


@dataclass(frozen=True)
class EvalResult:
    """Metrics of a model on a set of questions."""

    model: str
    scores: Scores
    types: dict[str, tuple[int, float]]
    """By question type, the number of questions and the VQA accuracy."""
    loss: float | None
    """Loss of the correct answers (teacher forcing), in nats per answer token."""
    image_gain: float | None
    """Mean over the questions with pictures. If it is near 0, the model ignores the pictures."""
    seconds: float
    predictions: tuple[Prediction, ...] = field(repr=False)
    baselines: Baselines | None = None
    """What one gets without looking at the pictures; None during training."""
    blind: BlindResult | None = None
    """The same model with grey pictures; None if that was not measured."""
    answer_style: AnswerStyle = "as-written"
    """How the questions were asked: `short` or `as-written`."""

    def to_json(self) -> dict[str, Any]:
        """Return everything but the predictions."""
        values = {key: value for key, value in vars(self).items() if key != "predictions"}
        values |= to_json(self.baselines, self.blind)
        types = {kind: {"questions": n, "vqa_accuracy": a} for kind, (n, a) in self.types.items()}
        return values | {"scores": asdict(self.scores), "types": types}


def summarize_predictions(
    model: str, predictions: Sequence[Prediction], seconds: float
) -> EvalResult:
    """Average the metrics of predictions.

    Raises:
        DataError: There are no predictions.
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
    log_probabilities: bool = False,
    on_chunk: Callable[[list[Prediction]], None] | None = None,
) -> list[Prediction]:
    """Answer questions greedily and score the answers.

    Args:
        model: The model.
        processor: Its processor.
        capabilities: What its architecture supports.
        questions: The questions; the predictions are in the same order.
        max_new_tokens: The longest answer.
        measured: Ids of the questions for which the loss of the correct answer is measured, with
            the pictures and with blank ones; None for all.
        log_probabilities: Whether to measure the log probability of each prediction.
        on_chunk: Called with every few hundred predictions; an exception ends the evaluation.

    Raises:
        DataError: A picture cannot be read.
    """
    predictions: list[Prediction] = []
    for chunk, pictures in _chunks(questions):
        answered = _answer_chunk(
            model,
            processor,
            capabilities,
            chunk,
            pictures,
            max_new_tokens,
            measured,
            log_probabilities,
        )
        predictions += answered
        if on_chunk:
            on_chunk(answered)
    return predictions


def measure_blind(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    capabilities: Capabilities,
    questions: Sequence[Question],
    accuracies: Mapping[str, float],
    *,
    limit: int = BLIND_QUESTIONS,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> BlindResult | None:
    """Answer questions with grey pictures instead of their own.

    Args:
        model: The model.
        processor: Its processor.
        capabilities: What its architecture supports.
        questions: The questions, of which those without pictures are left out.
        accuracies: VQA accuracy with the pictures, by the question's id.
        limit: The maximum number of questions, chosen evenly.
        max_new_tokens: The longest answer.

    Returns:
        None if no question is answered.
    """
    from vqa_app.engine.batched import answer_prompts
    from vqa_app.prompts.prompt import encode

    def answer(conversations: Sequence[Conversation]) -> list[str]:
        prompts = [encode(processor, one, answer_next=True) for one in conversations]
        return answer_prompts(
            model, processor, capabilities, prompts, max_new_tokens=max_new_tokens
        )

    return _measure_blind(answer, questions, accuracies, limit)


def _measure_blind(
    answer: Callable[[Sequence[Conversation]], list[str]],
    questions: Sequence[Question],
    accuracies: Mapping[str, float],
    limit: int,
) -> BlindResult | None:
    """Answer questions with grey pictures; see `measure_blind`."""
    chosen = evenly_spaced([question for question in questions if question.pictures], limit)
    if not chosen:
        return None
    started = time.monotonic()
    blind: list[float] = []
    for chunk, pictures in _chunks(chosen):
        grey = {key: blank_like(picture) for key, picture in pictures.items()}
        answers = answer([question.conversation(grey) for question in chunk])
        blind += [
            metrics.vqa_accuracy(text, question.answers)
            for text, question in zip(answers, chunk, strict=True)
        ]
    return BlindResult(
        questions=len(chosen),
        accuracy=math.fsum(blind) / len(chosen),
        with_pictures=math.fsum(accuracies[question.id] for question in chosen) / len(chosen),
        seconds=time.monotonic() - started,
    )


def _answer_on_server(
    engine: RemoteEngine,
    questions: Sequence[Question],
    max_new_tokens: int,
    on_chunk: Callable[[list[Prediction]], None],
) -> None:
    """Let a server answer questions greedily, as many at once as it may be asked."""
    for chunk, pictures in _chunks(questions, _REMOTE_CHUNK * engine.info.concurrency):
        conversations = [question.conversation(pictures) for question in chunk]
        answers = _greedy_answers(engine, conversations, max_new_tokens)
        on_chunk(
            [
                _prediction(
                    question,
                    conversation,
                    answer.text.strip(),
                    token_confidence=answer.confidence,
                )
                for question, conversation, answer in zip(
                    chunk, conversations, answers, strict=True
                )
            ]
        )


def _prediction(
    question: Question, conversation: Conversation, answer: str, **measured: Any
) -> Prediction:
    """Return the line of the predictions file for an answer, with what was measured about it."""
    return Prediction(
        id=question.id,
        source=question.row.place,
        pictures=tuple(picture.name for picture in conversation.pictures),
        type=question.type,
        question=question.text,
        answers=question.answers,
        prediction=answer,
        vqa_accuracy=metrics.vqa_accuracy(answer, question.answers),
        **measured,
    )


def _greedy_answers(
    engine: RemoteEngine, conversations: Sequence[Conversation], max_new_tokens: int
) -> list[Answer]:
    options = GenerationOptions(max_new_tokens=max_new_tokens, temperature=0.0)

    def answer(conversation: Conversation) -> Answer:
        *_, last = engine.stream(conversation, options)
        assert isinstance(last, Answer), "a stream ends with its Answer"
        return last

    pool = ThreadPoolExecutor(engine.info.concurrency)
    try:
        return list(pool.map(answer, conversations))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _chunks(
    questions: Sequence[Question], size: int | None = None
) -> Iterator[tuple[list[Question], dict[str, Picture]]]:
    """Yield chunks of questions with their opened pictures by key."""
    chunk: list[Question] = []
    pictures: dict[str, Picture] = {}
    pixels = 0
    for number, question in enumerate(questions, 1):
        chunk.append(question)
        for source in question.row.pictures:
            if source.key not in pictures:
                picture = pictures[source.key] = _open_picture(source, question)
                pixels += picture.image.width * picture.image.height
        if len(chunk) == (size or _CHUNK) or pixels > _CHUNK_PIXELS or number == len(questions):
            yield chunk, pictures
            chunk, pictures, pixels = [], {}, 0


def _open_picture(source: PictureSource, question: Question) -> Picture:
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
    log_probabilities: bool,
) -> list[Prediction]:
    from vqa_app.engine.batched import answer_losses, answer_prompts
    from vqa_app.prompts.conversation import Message
    from vqa_app.prompts.prompt import encode, template_text

    conversations = [question.conversation(pictures) for question in questions]
    prompts = [encode(processor, conversation, answer_next=True) for conversation in conversations]
    answers = answer_prompts(model, processor, capabilities, prompts, max_new_tokens=max_new_tokens)
    picture_losses: list[Any] = [None] * len(questions)
    blank_losses: list[Any] = [None] * len(questions)
    blanks = {key: blank_like(picture) for key, picture in pictures.items()}
    chosen = [i for i, q in enumerate(questions) if measured is None or q.id in measured]
    for losses, shown, indices in (
        (picture_losses, pictures, chosen),
        (blank_losses, blanks, [i for i in chosen if conversations[i].pictures]),
    ):
        answered = [questions[i].answered_conversation(shown) for i in indices]
        encoded = [
            encode(processor, c, answer_next=False).with_last_answer_only() for c in answered
        ]
        measurements = answer_losses(model, processor, capabilities, encoded)
        for i, loss in zip(indices, measurements, strict=True):
            losses[i] = loss
    own_losses: list[Any] = [None] * len(questions)
    if log_probabilities:
        spoken = [i for i, answer in enumerate(answers) if answer]
        said = [conversations[i].then(Message.assistant(answers[i])) for i in spoken]
        encoded = [encode(processor, conversation, answer_next=False) for conversation in said]
        measurements = answer_losses(model, processor, capabilities, encoded)
        for i, loss in zip(spoken, measurements, strict=True):
            own_losses[i] = loss
    return [
        _prediction(
            question,
            conversation,
            answer,
            loss=loss and loss.per_token,
            answer_tokens=loss and loss.tokens,
            image_gain=blank and blank.per_token - loss.per_token,
            log_probability=own and -own.nats,
            token_confidence=own and math.exp(-own.per_token),
            prompt=template_text(processor, conversation, answer_next=True),
        )
        for question, conversation, answer, loss, blank, own in zip(
            questions, conversations, answers, picture_losses, blank_losses, own_losses, strict=True
        )
    ]


def evaluate(
    model: LoadedModel | RemoteEngine | str | Path,
    data: EvalQuestions | QuestionSource,
    *,
    images: Sequence[str | Path] = (),
    out: str | Path | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    limit: int | None = None,
    history: bool = False,
    losses: int | None = None,
    log_probabilities: bool = False,
    blind: int = BLIND_QUESTIONS,
    answer_style: AnswerStyle = "auto",
    max_bad: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> EvalResult:
    """Answer every question of some data and score the answers.

    Args:
        model: A loaded model, a name for `load_model`, such as a run directory, or the engine of a
            server elsewhere, which answers but measures no losses.
        data: Rows, files in any format that can be trained on, or the result of `load_questions`
            (then `images`, `limit`, `history` and `max_bad` are ignored).
        images: Folders that picture paths in files are relative to.
        out: JSONL file for the predictions, written as they are made. An interrupted evaluation of
            the same model, data and pictures is continued. The scores are written next to it
            (`.summary.json`).
        max_new_tokens: The longest answer.
        limit: The maximum number of questions, chosen evenly.
        history: Whether to put earlier turns with their correct answers before a question.
        losses: The number of questions, chosen evenly, whose loss and image gain are measured;
            None for `MEASURED_LOSSES`, or none on a server.
        log_probabilities: Whether to measure the log probability of each prediction, to calibrate
            with.
        blind: The number of questions, chosen evenly, that are also answered with grey pictures; 0
            leaves this out.
        answer_style: Whether the questions are asked with an instruction for short answers; see
            `AnswerStyle`.
        max_bad: The number of bad rows that may be skipped.
        on_progress: Called with the number of questions answered and the total.

    Raises:
        DataError: There are more bad rows than allowed, or no rows.
        UsageError: `out` has predictions of another evaluation, there is no such style, or a server
            is asked for what needs the weights.
    """
    from vqa_app.checkpoints.loader import LoadedModel, load_model

    max_new_tokens = checked_integer("max_new_tokens", max_new_tokens, 1, LARGEST)
    on_server = isinstance(model, RemoteEngine)
    if losses is None:
        losses = 0 if on_server else MEASURED_LOSSES
    losses = checked_integer("losses", losses, 0, LARGEST)
    if isinstance(model, RemoteEngine) and (losses or log_probabilities):
        what = "losses and image gains" if losses else "log probabilities"
        raise UsageError(
            f"{model.info.label} is on a server: {what} need the weights.",
            "Leave them out, or evaluate a model of this machine.",
        )
    blind = checked_integer("blind", blind, 0, LARGEST)
    max_bad = checked_integer("max_bad", max_bad, 0, LARGEST)
    if limit is not None:
        limit = checked_integer("limit", limit, 1, LARGEST)
    if answer_style not in get_args(AnswerStyle):
        raise UsageError(
            f"There is no answer style {answer_style!r}.",
            f"Choose one of {', '.join(get_args(AnswerStyle))}.",
        )
    if not isinstance(data, EvalQuestions):
        data = load_questions(data, images, history=history, limit=limit, max_bad=max_bad)
    questions: Sequence[Question] = data.questions
    answering = model if isinstance(model, (RemoteEngine, LoadedModel)) else load_model(str(model))
    started = time.monotonic()
    identity = evaluation_identity(questions, max_new_tokens, losses, log_probabilities)
    if isinstance(answering, RemoteEngine):
        identity |= {"model": answering.info.name}
    else:
        identity |= _model_identity(answering)
    is_run = isinstance(answering, LoadedModel) and _is_run(answering)
    short = answer_style == "short" or (
        answer_style == "auto" and not is_run and expect_short_answers(questions)
    )
    if short:
        questions = ask_for_short_answers(questions)
        identity["answer_style"] = "short"
    file = PredictionsFile(Path(out), identity) if out else None
    done = {p.id: p for p in file.resume()} if file else {}
    remaining = [question for question in questions if question.id not in done]

    def save(chunk: list[Prediction]) -> None:
        done.update((p.id, p) for p in chunk)
        if file:
            file.append(chunk)
        if on_progress:
            on_progress(len(done), len(questions))

    if on_progress:
        on_progress(len(done), len(questions))
    if isinstance(answering, RemoteEngine):
        label = answering.info.label
        _answer_on_server(answering, remaining, max_new_tokens, save)
    else:
        label = answering.label
        answer_questions(
            answering.model,
            answering.processor,
            answering.capabilities,
            remaining,
            max_new_tokens=max_new_tokens,
            measured={question.id for question in evenly_spaced(questions, losses)},
            log_probabilities=log_probabilities,
            on_chunk=save,
        )
    predictions = [done[question.id] for question in questions]
    result = summarize_predictions(label, predictions, time.monotonic() - started)
    accuracies = {p.id: p.vqa_accuracy for p in predictions}
    if isinstance(answering, RemoteEngine):
        frequent = FrequentAnswers.of(questions, "these questions themselves")
        asked = answering  # for the closure, where its type would be unknown
        blind_result = _measure_blind(
            lambda grey: [a.text.strip() for a in _greedy_answers(asked, grey, max_new_tokens)],
            questions,
            accuracies,
            blind,
        )
    else:
        frequent = _frequent_answers(answering, questions)
        blind_result = measure_blind(
            answering.model,
            answering.processor,
            answering.capabilities,
            questions,
            accuracies,
            limit=blind,
            max_new_tokens=max_new_tokens,
        )
    result = replace(
        result,
        baselines=Baselines.of(questions, frequent) if frequent else None,
        blind=blind_result,
        answer_style="short" if short else "as-written",
    )
    if file:
        file.finish(result.to_json())
    return result


def _folders(loaded: LoadedModel) -> tuple[Path, Path]:
    """Return the folders of a model that may be a run's."""
    return loaded.source, Path(loaded.adapter or loaded.source)


def _is_run(loaded: LoadedModel) -> bool:
    """Return whether a model was trained here, on questions as they are written."""
    return any(map(is_finished, _folders(loaded)))


def _frequent_answers(loaded: LoadedModel, questions: Sequence[Question]) -> FrequentAnswers | None:
    """Return the frequent answers of the rows that a run trained on, or else of the questions."""
    for run in _folders(loaded):
        if (found := FrequentAnswers.load(run)) is not None:
            return found
    return FrequentAnswers.of(questions, "these questions themselves")


def compare(first: EvalResult, second: EvalResult) -> PairedTest:
    """Test whether two models' VQA accuracies on the same questions differ.

    Raises:
        UsageError: They answered different questions.
    """
    second_accuracy = {p.id: p.vqa_accuracy for p in second.predictions}
    if second_accuracy.keys() != {p.id for p in first.predictions}:
        raise UsageError("The two evaluations asked different questions.", "Use the same data.")
    return paired_test(
        [p.vqa_accuracy for p in first.predictions],
        [second_accuracy[p.id] for p in first.predictions],
    )


def _model_identity(loaded: LoadedModel) -> dict[str, Any]:
    """Return what identifies the model of an evaluation; it must be equal to continue one."""
    from vqa_app.prompts.prompt import prompt_hash

    return {
        "model": loaded.name,
        "adapter": loaded.adapter,
        "fingerprint": loaded.fingerprint,
        "prompt": prompt_hash(loaded.processor),
        "dtype": str(loaded.model.dtype),
        "quantization": loaded.quantization,
    }
