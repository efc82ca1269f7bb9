"""The engine that runs a transformers model in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import exp
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from vqa_app.devices import is_out_of_memory
from vqa_app.engine.attention_map import attention_map
from vqa_app.engine.cpu_threads import release_threads
from vqa_app.engine.cpu_weights import lay_out
from vqa_app.engine.detokenizer import TextStream
from vqa_app.engine.model_view import model_view
from vqa_app.engine.protocol import (
    Answer,
    AttentionMap,
    Delta,
    Event,
    FinishReason,
    GenerationOptions,
    ModelInfo,
    Status,
    TokenCount,
)
from vqa_app.engine.runtime import Reading, Runtime
from vqa_app.engine.sampling import Sampler, default_options
from vqa_app.engine.scoring import image_gain, score
from vqa_app.engine.worker import Cancelled, Worker
from vqa_app.errors import ContextOverflowError, ModelError, UsageError
from vqa_app.prompts.conversation import Conversation
from vqa_app.prompts.prompt import Prompt, count_text_tokens, encode, end_token_ids

if TYPE_CHECKING:
    from PIL.Image import Image

    from vqa_app.checkpoints.loader import LoadedModel
    from vqa_app.pictures.picture import Picture

CACHE_BYTES = 2 << 30
FEATURE_BYTES = 256 << 20

T = TypeVar("T")


@dataclass
class _Draft:
    """An answer on its way."""

    prompt: Prompt | None = None
    dropped: int = 0
    cached: int = 0
    began: float = field(default_factory=time.perf_counter)
    first: float | None = None
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[torch.Tensor] = field(default_factory=list)

    def end(self, reason: FinishReason, label: str) -> Answer:
        now = time.perf_counter()
        first = self.first or now
        count = len(self.tokens)
        total = sum(torch.stack(self.log_probabilities).tolist()) if count else 0.0
        return Answer(
            text=self.text,
            finish_reason=reason,
            prompt_tokens=len(self.prompt) if self.prompt else 0,
            image_tokens=self.prompt.image_tokens if self.prompt else 0,
            cached_tokens=self.cached,
            new_tokens=count,
            seconds_to_first_token=first - self.began,
            tokens_per_second=(count - 1) / (now - first) if count > 1 else 0.0,
            confidence=exp(total / count) if count else 0.0,
            dropped_messages=self.dropped,
            model=label,
        )


class LocalEngine:
    """Implements `vqa_app.engine.protocol.Engine` with a loaded model.

    The model is the engine's from then on: on a CPU its weights are laid out anew, after which it
    can answer and no more; save it before. Questions are answered one at a time, in order, on a
    thread of the engine's own.

    Args:
        loaded: what `vqa_app.load_model` gave.
        cache_bytes: for keys and values of earlier prompts, shared by all conversations; 0 reuses
            nothing.
        feature_bytes: for picture features; 0 keeps none.
        fast_decoding: prepacked weights and the lean decoder, where they apply.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        cache_bytes: int = CACHE_BYTES,
        feature_bytes: int = FEATURE_BYTES,
        fast_decoding: bool = True,
    ) -> None:
        model, processor = loaded.model.eval(), loaded.processor
        parameters = sum(parameter.numel() for parameter in model.parameters())
        dtype = str(model.dtype).removeprefix("torch.")
        self._ends = end_token_ids(model, processor)
        if fast_decoding:
            lay_out(model)
        self._runtime = Runtime(
            model,
            processor,
            loaded.capabilities,
            cache_bytes=cache_bytes,
            feature_bytes=feature_bytes,
            lean=fast_decoding,
        )
        self._info = ModelInfo(
            name=loaded.name,
            adapter=loaded.adapter,
            architecture=type(model).__name__,
            parameters=parameters,
            device=str(model.device),
            dtype=dtype,
            quantization=loaded.quantization,
            context_length=loaded.capabilities.context_length,
            attention_maps=loaded.capabilities.maps_attention,
            defaults=default_options(model),
        )
        self._worker = Worker(context=torch.inference_mode, rest=release_threads)
        release_threads()  # those that loading took; from here on the worker's are wanted

    @property
    def info(self) -> ModelInfo:
        return self._info

    def stream(
        self,
        conversation: Conversation,
        options: GenerationOptions | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[Event]:
        options = options or GenerationOptions()
        if options.system is not None:
            conversation = conversation.with_system(options.system)
        draft = _Draft()
        answered = False
        for event in self._worker.stream(
            lambda cancelled: self._answer(draft, conversation, options, cancelled), cancel
        ):
            answered = isinstance(event, Answer)
            yield event
        if not answered:  # cancelled while in line
            yield draft.end("cancelled", self._info.label)

    def warm(self, conversation: Conversation, cancel: threading.Event | None = None) -> None:
        def job(cancelled: Cancelled) -> Iterator[None]:
            prompt = encode(
                self._runtime.processor, conversation, answer_next=True, question_incomplete=True
            )
            if 0 < len(prompt) <= self._info.context_length:
                yield from self._runtime.warm(prompt, cancelled)

        for _ in self._worker.stream(job, cancel, background=True):
            pass

    def count_tokens(self, conversation: Conversation) -> TokenCount:
        prompt = encode(
            self._runtime.processor, conversation, answer_next=conversation.awaits_answer
        )
        return TokenCount(len(prompt), prompt.image_tokens)

    def score(self, conversation: Conversation, choices: Sequence[str]) -> list[float]:
        if isinstance(choices, str) or not all(isinstance(choice, str) for choice in choices):
            raise UsageError("Answers to choose from are a list of texts.", 'Give ["yes", "no"].')
        if not choices:
            raise UsageError("There are no answers to choose from.", "Give at least one.")
        return self._call(
            lambda: score(self._runtime, self._fit_for(conversation, choices), choices)
        )

    def image_gain(self, conversation: Conversation, answer: str) -> float:
        return self._call(
            lambda: image_gain(self._runtime, self._fit_for(conversation, [answer]), answer)
        )

    def attention_map(self, conversation: Conversation, answer: str) -> AttentionMap:
        def mapped() -> AttentionMap:
            kept = self._fit_for(conversation, [answer])
            found = attention_map(self._runtime, kept, answer)
            unseen = np.zeros((len(found.tokens), 1, 1), np.float32)
            left_out = len(conversation.pictures) - len(kept.pictures)
            return replace(found, maps=(unseen,) * left_out + found.maps)

        return self._call(mapped)

    def model_view(self, picture: Picture) -> list[Image]:
        """What the model is given of a picture; see `engine.model_view`. Beyond the protocol."""
        return model_view(self._runtime.processor, picture)

    def close(self) -> None:
        self._worker.close()
        self._runtime.close()

    def _call(self, function: Callable[[], T]) -> T:
        def guarded() -> T:
            with self._memory_guard():
                return function()

        return self._worker.call(guarded)

    def _answer(
        self,
        draft: _Draft,
        conversation: Conversation,
        options: GenerationOptions,
        cancelled: Cancelled,
    ) -> Iterator[Event | None]:
        draft.began = time.perf_counter()
        yield Status("looking")
        with self._memory_guard():
            room = min(options.max_new_tokens, self._info.context_length // 8)
            _, draft.prompt, draft.dropped = self._fit(conversation, room)
            reading = yield from self._runtime.read(draft.prompt, cancelled)
            reason: FinishReason = "cancelled"
            if reading is not None:
                reason = yield from self._write(draft, reading, options, cancelled)
        yield draft.end(reason, self._info.label)

    def _fit_for(self, conversation: Conversation, answers: Sequence[str]) -> Conversation:
        """The conversation, without as many of the oldest turns as it takes for each of the answers
        to fit behind it.
        """
        room = max(count_text_tokens(self._runtime.processor, answer) for answer in answers)
        return self._fit(conversation, room, room)[0]

    def _fit(
        self, conversation: Conversation, room: int, least: int = 1
    ) -> tuple[Conversation, Prompt, int]:
        """What of a conversation the model reads: without as many of the oldest turns as it takes
        to leave room for an answer, in tokens; its prompt; and how many messages were left out.

        Raises:
            ContextOverflowError: the last message alone leaves less than the least room.
        """
        limit = self._info.context_length
        dropped = 0
        while True:
            prompt = encode(self._runtime.processor, conversation, answer_next=True)
            if len(prompt) + room <= limit:
                return conversation, prompt, dropped
            turns = conversation.dialogue
            if len(turns) < 3:
                break
            conversation = Conversation(turns[2:]).with_system(conversation.system)
            dropped += 2
        if len(prompt) + least <= limit:
            return conversation, prompt, dropped
        answer = f", the answer up to {least}" if least > 1 else ""
        raise ContextOverflowError(
            f"The question takes {len(prompt)} tokens, {prompt.image_tokens} of them for pictures"
            f"{answer}; {self._info.name} has room for {limit}.",
            "Ask a shorter question, or about fewer pictures at once.",
        )

    @contextmanager
    def _memory_guard(self) -> Iterator[None]:
        """Turns a full memory into an error that says so, and frees what the caches hold."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._runtime.forget()
            raise ModelError(
                f"There is not enough memory on {self._info.device} for this question.",
                "Ask about fewer or smaller pictures, or use --quantize 4bit.",
            ) from error

    def _write(
        self, draft: _Draft, reading: Reading, options: GenerationOptions, cancelled: Cancelled
    ) -> Generator[Event, None, FinishReason]:
        """Generates the answer; the generator's value is why it ended."""
        prompt = draft.prompt
        draft.cached = reading.cached_tokens
        ids = prompt.inputs["input_ids"].to(reading.logits.device)
        sampler = Sampler(self._runtime.model, options, ids)
        text = TextStream(self._runtime.processor.tokenizer, options.stop)
        limit = min(options.max_new_tokens, self._info.context_length - len(prompt))
        logits = reading.logits[-1]
        reason: FinishReason = "cancelled"
        while not cancelled():
            token, log_probability = sampler.pick(logits)
            if draft.first is None:
                draft.first = time.perf_counter()
                yield Status("answering")
            if token in self._ends:
                reason = "stop"
                break
            draft.tokens.append(token)
            draft.log_probabilities.append(log_probability)
            if piece := text.push(token):
                draft.text = text.text
                yield Delta(piece)
            if text.stopped or len(draft.tokens) >= limit:
                reason = "stop" if text.stopped else "length"
                break
            logits = reading.step(token)
        # Not in a `finally`: after an error nobody knows what the cache holds, and it is dropped.
        reading.close(draft.tokens)
        if rest := text.finish():
            yield Delta(rest)
        draft.text = text.text
        return reason
