"""Evaluation during training: scores on held-out rows, and answers to the watch questions."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from finetune.data.samples import Sample
from finetune.evaluation.baselines import Baselines, BlindResult, FrequentAnswers
from finetune.evaluation.evaluate import (
    EvalResult,
    answer_questions,
    measure_blind,
    summarize_predictions,
)
from finetune.evaluation.questions import Question, evenly_spaced, make_questions
from finetune.evaluation.report import save_watch_answers
from finetune.progress import OnProgress, Progress
from finetune.training.device import Machine
from finetune.training.load_data import Data
from finetune.training.stage import StageRun
from vqa_app.devices import choose_dtype
from vqa_app.errors import UsageError
from vqa_app.models.architecture import Capabilities, overflows_in_float16, unwrap
from vqa_app.prompts.conversation import Conversation
from vqa_app.suggestions import suggest

DEFAULT_WATCH_QUESTIONS = 4
_EXTRA_TOKENS = 8
"""An answer may be this much longer than the longest reference."""


@dataclass(frozen=True)
class WatchQuestion:
    """A question that is answered at every evaluation."""

    conversation: Conversation
    expected: str = ""
    """The expected answer; empty if unknown."""
    references: tuple[str, ...] = ()
    """All answers that count as correct."""


@dataclass
class Evaluation:
    """The questions of every evaluation, and the results so far."""

    model: Any
    processor: Any
    capabilities: Capabilities
    questions: tuple[Question, ...]
    watch: tuple[WatchQuestion, ...]
    max_new_tokens: int
    run: Path
    on_progress: OnProgress
    machine: Machine
    """Each process answers a share of the questions, so all of them must evaluate."""
    served: torch.dtype = torch.float32
    """The precision in which the trained model will answer by default."""
    baselines: Baselines | None = None
    """What one gets on the questions without looking at the pictures."""
    results: dict[int, EvalResult] = field(default_factory=dict)
    """By step, since this process started."""

    @classmethod
    def of(cls, stage: StageRun) -> Evaluation | None:
        """Choose the questions of a stage.

        Returns:
            None if no rows are held out and no watch question is given, or if the model is sharded
            and cannot answer during training.
        """
        config, data, processor = stage.config, stage.data, stage.loaded.processor
        if config.fsdp or config.deepspeed:
            message = (
                "A sharded model is not evaluated during training; use `vqa-app eval` afterwards."
            )
            stage.announce("loading", message)
            return None
        held_out = data.held_out.samples
        if not (held_out or config.watch):
            return None
        rows = data.held_out if held_out else data.train
        questions = make_questions(rows.rows, history=_trained_in_dialogue(rows.samples))
        chosen = tuple(evenly_spaced(questions, config.eval_questions))
        watch = watch_questions(config.watch, config.images) or _default_watch_questions(questions)
        longest = max(_answer_length(processor, question) for question in chosen)
        baselines = None
        if held_out and (frequent := frequent_answers(data)):
            baselines = Baselines.of(chosen, frequent)
            stage.announce("loading", str(baselines))
        return cls(
            model=stage.trained.model,
            processor=processor,
            capabilities=stage.loaded.capabilities,
            questions=chosen if held_out else (),
            watch=watch,
            max_new_tokens=longest + _EXTRA_TOKENS,
            run=stage.run,
            on_progress=stage.on_progress,
            machine=stage.machine,
            served=served_dtype(stage.trained.model, stage.machine.device),
            baselines=baselines,
        )

    @contextlib.contextmanager
    def as_served(self) -> Iterator[None]:
        """Compute in the precision in which the trained model will answer.

        Weights that all train are fp32, but are served in 16 bits on a GPU.
        """
        if self.served == torch.float32:
            yield
            return
        with torch.autocast(self.machine.device.type, self.served):
            yield

    def at_step(self, step: int) -> dict[str, float]:
        """Answer all questions and return the scores; empty if no rows are held out."""
        scores = {}
        if self.questions:
            result = self.results[step] = self.result(self.machine.process, self.machine.processes)
            scores = scores_of(result)
        if self.machine.is_main:
            self._answer_watch_questions(step)
        return scores

    def result(self, process: int = 0, processes: int = 1) -> EvalResult:
        """Answer all questions.

        Args:
            process: Number of this process, from 0.
            processes: Number of processes that each answer a share; all of them must call this.
        """
        share = self.questions[process::processes]
        done = 0

        def report(chunk: Sequence[Any]) -> None:
            nonlocal done
            done += len(chunk) * processes
            total = len(self.questions)
            self.on_progress(Progress("evaluating", min(done, total), total))

        self.on_progress(Progress("evaluating", 0, len(self.questions)))
        with self.as_served():
            predictions = answer_questions(
                self.model,
                self.processor,
                self.capabilities,
                share,
                max_new_tokens=self.max_new_tokens,
                on_chunk=report,
            )
        if processes > 1:
            from accelerate.utils import gather_object

            predictions = gather_object(list(predictions))
            place = {question.id: number for number, question in enumerate(self.questions)}
            predictions.sort(key=lambda prediction: place[prediction.id])
        return summarize_predictions("", predictions, 0.0)

    def blind(self, result: EvalResult) -> BlindResult | None:
        """Answer some of the questions with grey pictures.

        Args:
            result: The answers with the pictures, by the same weights.
        """
        self.on_progress(Progress("evaluating", message="Answering with grey pictures."))
        with self.as_served():
            return measure_blind(
                self.model,
                self.processor,
                self.capabilities,
                self.questions,
                {p.id: p.vqa_accuracy for p in result.predictions},
                max_new_tokens=self.max_new_tokens,
            )

    def _answer_watch_questions(self, step: int) -> None:
        from vqa_app.engine.batched import answer_prompts
        from vqa_app.prompts.prompt import encode

        prompts = [encode(self.processor, w.conversation, answer_next=True) for w in self.watch]
        with self.as_served():
            answers = answer_prompts(
                self.model,
                self.processor,
                self.capabilities,
                prompts,
                max_new_tokens=self.max_new_tokens,
            )
        save_watch_answers(
            self.run,
            step,
            [
                (w.conversation.messages[-1].text, w.expected, answer, w.conversation.pictures)
                for w, answer in zip(self.watch, answers, strict=True)
            ],
            [w.references for w in self.watch],
        )


def served_dtype(model: Any, device: torch.device) -> torch.dtype:
    """Return the precision in which `load_model` loads a trained model by default."""
    base = unwrap(model)
    overflows = overflows_in_float16(base.config)
    return choose_dtype("auto", device, base.num_parameters(), overflows=overflows)


def frequent_answers(data: Data) -> FrequentAnswers | None:
    """Return the most frequent answers of the training rows."""
    return FrequentAnswers.of(make_questions(data.train.rows), "the training rows")


def scores_of(result: EvalResult) -> dict[str, float]:
    """Return vqa_accuracy, loss and, if there are pictures, image_gain."""
    scores = {"vqa_accuracy": result.scores.vqa_accuracy, "loss": result.loss or 0.0}
    return scores | ({"image_gain": result.image_gain} if result.image_gain is not None else {})


def watch_questions(texts: Sequence[str], images: Sequence[str]) -> tuple[WatchQuestion, ...]:
    """Read the config's watch questions.

    Args:
        texts: Each as `picture.png: question?`.
        images: Folders that pictures may be in.

    Raises:
        UsageError: One of them names no existing picture.
        ImageError: A picture cannot be read.
    """
    return tuple(_read_watch_question(text, images) for text in texts)


def _read_watch_question(text: str, images: Sequence[str]) -> WatchQuestion:
    """Read `picture.png: question?`; both the file's name and the question may contain colons."""
    from vqa_app.pictures.picture import STORED_PICTURE_LIMITS, open_picture

    for place, letter in enumerate(text):
        if letter == ":" and (question := text[place + 1 :].strip()):
            for folder in ("", *images):
                path = Path(os.path.expanduser(folder), os.path.expanduser(text[:place]))
                if os.path.isfile(path):  # also False if the text is too long for a file name
                    picture = open_picture(path, limits=STORED_PICTURE_LIMITS)
                    return WatchQuestion(Conversation.ask(question, [picture]))
    otherwise = "Write it as `picture.png: question?`."
    name, _, question = text.rpartition(":")
    if name and not question.strip():
        raise UsageError(f"The watch question {text!r} has no question.", otherwise)
    hints = (suggest(Path(folder, name), path=Path.is_file) for folder in ("", *images))
    raise UsageError(
        f"The watch question {text!r} names no existing picture.",
        next(filter(None, hints), otherwise),
    )


def _default_watch_questions(questions: Sequence[Question]) -> tuple[WatchQuestion, ...]:
    chosen = []
    for question in evenly_spaced(questions, DEFAULT_WATCH_QUESTIONS):
        pictures = {source.key: source.open() for source in question.row.pictures}
        expected = question.row.turns[question.turn].text
        chosen.append(WatchQuestion(question.conversation(pictures), expected, question.answers))
    return tuple(chosen)


def _trained_in_dialogue(samples: Sequence[Sample]) -> bool:
    """Return whether most conversations are trained as dialogues, each turn after the earlier ones.

    Held-out questions are then asked in the same way.
    """
    several = [sample for sample in samples if len(sample.row.references) > 1]
    return 2 * sum(sample.segments is None for sample in several) > len(several)


def _answer_length(processor: Any, question: Question) -> int:
    """Return the number of tokens of the row's own answer."""
    answer = question.row.turns[question.turn].text
    return len(processor.tokenizer(answer, add_special_tokens=False)["input_ids"])
