"""Held-out rows, asked while a model trains: accuracy, loss, image gain, and a few questions to
watch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.config import FinetuneConfig
from finetune.data.samples import Sample
from finetune.evaluation.evaluate import EvalResult, answer_questions, summarize_predictions
from finetune.evaluation.questions import Question, evenly_spaced, make_questions
from finetune.evaluation.report import save_watch_answers
from finetune.progress import OnProgress, Progress
from finetune.training.stage import StageRun
from vqa_app.errors import UsageError
from vqa_app.models.architecture import Capabilities
from vqa_app.prompts.conversation import Conversation

WATCHED = 4
_SPARE_TOKENS = 8


@dataclass(frozen=True)
class Watched:
    """A question whose answers are kept through the run."""

    conversation: Conversation
    expected: str = ""
    """Empty where nobody knows."""
    references: tuple[str, ...] = ()
    """All that counts as right."""


@dataclass
class Evaluation:
    """What is asked at every evaluation, and what came out."""

    model: Any
    processor: Any
    capabilities: Capabilities
    questions: tuple[Question, ...]
    watched: tuple[Watched, ...]
    max_new_tokens: int
    run: Path
    tell: OnProgress
    process: int = 0
    processes: int = 1
    """Each answers its share, so all have to ask."""
    results: dict[int, EvalResult] = field(default_factory=dict)
    """By step, of this session."""

    @classmethod
    def of(cls, stage: StageRun) -> Evaluation | None:
        """None where there is nothing to ask: no rows are held out and no question is given to
        watch; or where the model is sharded and cannot answer in between.
        """
        config, data, processor = stage.config, stage.data, stage.loaded.processor
        if config.fsdp or config.deepspeed:
            message = "A sharded model is not evaluated while it trains; `vqa-app eval` does later."
            stage.tell(Progress("loading", message=message))
            return None
        held_out = data.held_out.samples
        if not (held_out or config.watch):
            return None
        known = data.held_out if held_out else data.train
        questions = make_questions(known.rows, history=_in_dialogue(known.samples))
        chosen = tuple(evenly_spaced(questions, config.eval_questions))
        return cls(
            stage.frozen.model,
            processor,
            stage.loaded.capabilities,
            chosen if held_out else (),
            watched(config) or _chosen_to_watch(questions),
            max(_answer_length(processor, question) for question in chosen) + _SPARE_TOKENS,
            stage.run,
            stage.tell,
            stage.process,
            stage.processes,
        )

    def at_step(self, step: int) -> dict[str, float]:
        """Answers and scores, every process its share; no scores where nothing is held out."""
        scores = {}
        if self.questions:
            result = self.results[step] = self.result(self.process, self.processes)
            scores = scores_of(result)
        if self.process == 0:
            self._watch(step)
        return scores

    def result(self, process: int = 0, processes: int = 1) -> EvalResult:
        """Of all questions. With several processes each answers its share, so all have to ask."""
        mine = self.questions[process::processes]
        done = 0

        def report(chunk: Sequence[Any]) -> None:
            nonlocal done
            done += len(chunk) * processes
            self.tell(Progress("evaluating", min(done, len(self.questions)), len(self.questions)))

        self.tell(Progress("evaluating", 0, len(self.questions)))
        predictions = answer_questions(
            self.model,
            self.processor,
            self.capabilities,
            mine,
            max_new_tokens=self.max_new_tokens,
            on_chunk=report,
        )
        if processes > 1:
            from accelerate.utils import gather_object

            predictions = gather_object(list(predictions))
            place = {question.id: number for number, question in enumerate(self.questions)}
            predictions.sort(key=lambda prediction: place[prediction.id])
        return summarize_predictions("", predictions, 0.0)

    def _watch(self, step: int) -> None:
        from vqa_app.engine.batched import answer_prompts
        from vqa_app.prompts.prompt import encode

        prompts = [encode(self.processor, w.conversation, answer_next=True) for w in self.watched]
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
                for w, answer in zip(self.watched, answers, strict=True)
            ],
            [w.references for w in self.watched],
        )


def scores_of(result: EvalResult) -> dict[str, float]:
    """vqa_accuracy, loss and, where there are pictures, image_gain."""
    found = {"vqa_accuracy": result.scores.vqa_accuracy, "loss": result.loss or 0.0}
    return found | ({"image_gain": result.image_gain} if result.image_gain is not None else {})


def _in_dialogue(samples: Sequence[Sample]) -> bool:
    """Whether follow-up questions are trained behind the earlier turns; then they are asked so."""
    several = [sample for sample in samples if len(sample.row.references) > 1]
    return 2 * sum(sample.segments is None for sample in several) > len(several)


def watched(config: FinetuneConfig) -> tuple[Watched, ...]:
    """The questions that were given to watch.

    Raises:
        UsageError: one names no picture.
        ImageError: a picture cannot be read.
    """
    return tuple(_given(text, config.images) for text in config.watch)


def _chosen_to_watch(questions: Sequence[Question]) -> tuple[Watched, ...]:
    found = []
    for question in evenly_spaced(questions, WATCHED):
        pictures = {source.key: source.open() for source in question.row.pictures}
        expected = question.row.turns[question.turn].text
        found.append(Watched(question.conversation(pictures), expected, question.answers))
    return tuple(found)


def _given(text: str, images: Sequence[str]) -> Watched:
    """`picture.png: question?`; the picture's name may hold colons, the question too."""
    from vqa_app.pictures.picture import STORED_PICTURE_LIMITS, open_picture

    for place, letter in enumerate(text):
        if letter == ":" and (asked := text[place + 1 :].strip()):
            for folder in ("", *images):
                path = Path(os.path.expanduser(folder), os.path.expanduser(text[:place]))
                if os.path.isfile(path):  # where it is too long for a name, too
                    picture = open_picture(path, limits=STORED_PICTURE_LIMITS)
                    return Watched(Conversation.ask(asked, [picture]))
    raise UsageError(
        f"The watch question {text!r} names no picture that is there.",
        "Write it as `picture.png: question?`.",
    )


def _answer_length(processor: Any, question: Question) -> int:
    """Tokens of its first reference."""
    answer = question.row.turns[question.turn].text
    return len(processor.tokenizer(answer, add_special_tokens=False)["input_ids"])
