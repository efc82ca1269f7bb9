"""An engine without a model, for tests of everything that uses the `Engine` protocol.

It answers word by word, at once or when it is released. It queues questions like the real engine
(both use `vqa_app.engine.scheduler`), raises errors on demand and records the questions.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from tests.waiting import PATIENCE
from vqa_app.engine.protocol import (
    Answer,
    AttentionMap,
    Delta,
    Event,
    FinishReason,
    GenerationOptions,
    ModelInfo,
    PictureInput,
    Status,
    TokenCount,
    TokenLogProbability,
)
from vqa_app.engine.scheduler import Cancelled, Scheduler
from vqa_app.errors import ContextOverflowError, ModelError
from vqa_app.prompts.conversation import Conversation

IMAGE_TOKENS = 16
GRID = 8
HELD_SECONDS = 2 * PATIENCE


def likely(word: str, count: int | None) -> tuple[TokenLogProbability, ...]:
    """Return the log probability of a word that has half of it, the next likeliest a third, ..."""
    if count is None:
        return ()
    top = tuple(
        _entry(word if rank == 0 else f"{word}{rank}", 1 / (2 + rank)) for rank in range(count)
    )
    return (replace(_entry(word, 0.5), top=top),)


def _entry(word: str, probability: float) -> TokenLogProbability:
    return TokenLogProbability(word, word.encode(), math.log(probability))


def describe(conversation: Conversation) -> str:
    """Return the default answer, which repeats the question."""
    question = conversation.messages[-1].text or "nothing"
    count = len(conversation.pictures)
    pictures = "no picture" if count == 0 else "one picture" if count == 1 else f"{count} pictures"
    return f"You asked {question!r} about {pictures}."


class FakeEngine:
    """A deterministic `vqa_app.engine.protocol.Engine`.

    Args:
        answer: See the attribute.
        delay: See the attribute.
        hold_after: Argument of a call of `hold` at the beginning.
        context_length: In tokens, which are words here, plus 16 for each picture.
        attention_maps: See the attribute.

    Attributes:
        answer: A text for every question, or a function of the conversation.
        delay: Seconds before each word.
        attention_maps: Whether `attention_map` works.
        dropped: Value of `dropped_messages` of each answer.
        dropped_turns: See `Answer`.
        error: Raised once, by the next answer, after `error_after` words.
        asked: Conversation and options of each question that was started.
        warmed: Each conversation that was warmed.
        begun: Set when an answer starts; clear it to use it again.
        closed: Whether `close` was called.
        system_prompts: See `ModelInfo`.
        low_detail: See `ModelInfo`.
        calibrated: See `Answer`.
        finish_reason: Of complete answers, instead of "stop".
    """

    def __init__(
        self,
        answer: str | Callable[[Conversation], str] = describe,
        *,
        delay: float = 0.0,
        hold_after: int | None = None,
        context_length: int = 4096,
        attention_maps: bool = True,
    ) -> None:
        self.answer, self.delay, self.attention_maps = answer, delay, attention_maps
        self._context_length = context_length
        self._scheduler = Scheduler()
        self._seen: set[str] = set()
        self.dropped = 0
        self.dropped_turns: tuple[int, ...] = ()
        self.error: BaseException | None = None
        self.error_after = 0
        self.asked: list[tuple[Conversation, GenerationOptions]] = []
        self.warmed: list[Conversation] = []
        self.begun = threading.Event()
        self.closed = False
        self.system_prompts, self.calibrated, self.low_detail = True, False, False
        self.finish_reason: FinishReason | None = None
        self._free_words, self._released = 0, threading.Event()
        if hold_after is None:
            self.release()
        else:
            self.hold(hold_after)

    def hold(self, after_words: int) -> None:
        """Stop every answer after this many words until `release`.

        An answer that is not released within minutes raises TimeoutError, unless it is cancelled.
        """
        self._free_words = after_words
        self._released.clear()

    def release(self) -> None:
        self._released.set()

    def reset(self) -> None:
        """Return to the state of an engine without arguments, after all questions are answered."""
        self.answer, self.delay, self.attention_maps, self.error = describe, 0.0, True, None
        self.dropped, self.system_prompts, self.finish_reason = 0, True, None
        self.calibrated, self.low_detail, self.dropped_turns = False, False, ()
        self.release()
        for _ in self._scheduler.stream(lambda cancelled: iter(())):
            pass

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            name="fake",
            adapter=None,
            architecture="FakeForConditionalGeneration",
            parameters=1_000_000,
            device="cpu",
            dtype="float32",
            quantization=None,
            context_length=self._context_length,
            attention_maps=self.attention_maps,
            defaults=GenerationOptions(max_new_tokens=64, temperature=0.0),
            system_prompts=self.system_prompts,
            low_detail=self.low_detail,
        )

    def stream(
        self,
        conversation: Conversation,
        options: GenerationOptions | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[Event]:
        options = options or self.info.defaults
        if options.system is not None:
            conversation = conversation.with_system(options.system)
        answered = False
        for event in self._scheduler.stream(
            lambda cancelled: self._generate(conversation, options, cancelled), cancel
        ):
            answered = isinstance(event, Answer)
            yield event
        if not answered:
            yield self._end(conversation, [], "cancelled", 0.0)

    def _generate(
        self, conversation: Conversation, options: GenerationOptions, cancelled: Cancelled
    ) -> Iterator[Event]:
        start = time.perf_counter()
        self.asked.append((conversation, options))
        yield Status("looking")
        if self.count_tokens(conversation).prompt > self._context_length:
            raise ContextOverflowError("The question is too long.", "Ask a shorter one.")
        text = self.answer if isinstance(self.answer, str) else self.answer(conversation)
        for stop in options.stop:
            text = text.split(stop)[0]
        words = re.findall(r"\s*\S+(?:\s+$)?", text)
        spoken: list[str] = []
        top = options.top_log_probabilities
        yield Status("answering")
        self.begun.set()
        for number, word in enumerate(words):
            self._wait(number, cancelled)
            if cancelled():
                yield self._end(conversation, spoken, "cancelled", time.perf_counter() - start, top)
                return
            if number >= self.error_after:
                self._fail()
            if number == options.max_new_tokens:
                yield self._end(conversation, spoken, "length", time.perf_counter() - start, top)
                return
            spoken.append(word)
            yield Delta(word, likely(word, top))
        self._fail()
        reason: FinishReason = self.finish_reason or "stop"
        yield self._end(conversation, spoken, reason, time.perf_counter() - start, top)

    def _wait(self, number: int, cancelled: Cancelled) -> None:
        if self.delay:
            time.sleep(self.delay)
        if number < self._free_words:
            return
        deadline = time.monotonic() + HELD_SECONDS
        while not cancelled() and not self._released.wait(0.01):
            if time.monotonic() > deadline:
                raise TimeoutError("A test did not release the answer that it holds.")

    def _fail(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error

    def _end(
        self,
        conversation: Conversation,
        words: list[str],
        reason: FinishReason,
        seconds: float,
        top: int | None = None,
    ) -> Answer:
        count = self.count_tokens(conversation)
        known = sum(picture.digest in self._seen for picture in conversation.pictures)
        self._seen.update(picture.digest for picture in conversation.pictures)
        return Answer(
            text="".join(words),
            finish_reason=reason,
            prompt_tokens=count.prompt,
            image_tokens=count.image,
            cached_tokens=known * IMAGE_TOKENS,
            new_tokens=len(words),
            seconds_to_first_token=seconds,
            tokens_per_second=0.0 if len(words) < 2 else 50.0,
            confidence=0.75 if words else 0.0,
            model="fake",
            dropped_messages=self.dropped,
            dropped_turns=self.dropped_turns,
            calibrated=self.calibrated,
            log_probabilities=tuple(entry for word in words for entry in likely(word, top)),
        )

    def warm(self, conversation: Conversation, cancel: threading.Event | None = None) -> None:
        def job(cancelled: Cancelled) -> Iterator[None]:
            if not cancelled():
                self.warmed.append(conversation)
                self._seen.update(picture.digest for picture in conversation.pictures)
            yield None

        for _ in self._scheduler.stream(job, cancel, background=True):
            pass

    def count_tokens(self, conversation: Conversation) -> TokenCount:
        image = IMAGE_TOKENS * len(conversation.pictures)
        words = sum(len(message.text.split()) for message in conversation.messages)
        pictures = tuple(PictureInput(IMAGE_TOKENS, 1, 32, 32) for _ in conversation.pictures)
        return TokenCount(prompt=words + image, image=image, pictures=pictures)

    def score(
        self,
        conversation: Conversation,
        choices: Sequence[str],
        cancel: threading.Event | None = None,
    ) -> list[float]:
        """Make each choice half as likely as the one before."""
        weights = [2.0**-position for position in range(len(choices))]
        return [weight / sum(weights) for weight in weights]

    def image_gain(
        self, conversation: Conversation, answer: str, cancel: threading.Event | None = None
    ) -> float:
        return 1.5 if conversation.pictures else 0.0

    def attention_map(
        self, conversation: Conversation, answer: str, cancel: threading.Event | None = None
    ) -> AttentionMap:
        """Return 8 × 8 maps whose peak moves by one cell with each word, along the rows."""
        if not self.attention_maps:
            raise ModelError("The fake engine has no attention maps.", "Create it with them.")
        tokens = tuple(re.findall(r"\s*\S+(?:\s+$)?", answer))
        maps = np.ones((len(tokens), GRID * GRID), dtype=np.float32)
        maps[np.arange(len(tokens)), np.arange(len(tokens)) % (GRID * GRID)] = 100.0
        maps = (maps / maps.sum(-1, keepdims=True)).reshape(len(tokens), GRID, GRID)
        return AttentionMap(tokens, tuple(maps for _ in conversation.pictures))

    def close(self) -> None:
        self.closed = True
        self._scheduler.close()

    def reopen(self) -> FakeEngine:
        """Return the engine, ready to answer even if it was closed: loaded again, so to speak."""
        if self.closed:
            self._scheduler, self.closed = Scheduler(), False
        return self
