"""The engine that runs a transformers model in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from math import exp
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from vqa_app.devices import clear_frames, device_error, is_out_of_memory, reclaim_memory
from vqa_app.engine.attention_map import attention_map
from vqa_app.engine.cache_budget import CacheBudget, shared_budget
from vqa_app.engine.cpu_decoder import MAX_ROWS
from vqa_app.engine.cpu_threads import release_threads
from vqa_app.engine.cpu_weights import optimize_layout
from vqa_app.engine.detokenizer import Detokenizer, TokenBytes
from vqa_app.engine.json_fields import field_confidences
from vqa_app.engine.model_view import model_view
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
from vqa_app.engine.repetition import RepetitionDetector
from vqa_app.engine.runtime import Generation, Runtime
from vqa_app.engine.sampling import Sampler, default_options, report_log_probabilities
from vqa_app.engine.scheduler import (
    Cancelled,
    DecodeStep,
    EncodeStep,
    Reservation,
    Scheduler,
    Steps,
)
from vqa_app.engine.scoring import image_gain, score
from vqa_app.engine.structured import JsonConstraint, JsonGrammars
from vqa_app.errors import ContextOverflowError, ModelError, UsageError
from vqa_app.models.quantized_linear import count_parameters
from vqa_app.prompts.conversation import Conversation, Message
from vqa_app.prompts.image_inputs import has_low_detail, resolution
from vqa_app.prompts.prompt import Prompt, count_text_tokens, encode, end_token_ids

if TYPE_CHECKING:
    from PIL.Image import Image

    from vqa_app.checkpoints.calibration import Calibration
    from vqa_app.checkpoints.loader import LoadedModel
    from vqa_app.pictures.picture import Picture

T = TypeVar("T")


@dataclass
class _Draft:
    """An answer while it is generated."""

    prompt_tokens: int = 0
    image_tokens: int = 0
    dropped_turns: tuple[int, ...] = ()
    cached_tokens: int = 0
    started: float = field(default_factory=time.perf_counter)
    first_token_time: float | None = None
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[torch.Tensor] = field(default_factory=list)
    end_log_probability: torch.Tensor | None = None
    """Of the token that ended the answer, if one did."""
    text_ends: list[int] = field(default_factory=list)
    """Length of the text after each token, for an answer that follows a schema."""
    reported: list[TokenLogProbability] = field(default_factory=list)
    """The tokens with their log probabilities, if the options ask for them."""

    def to_answer(
        self, reason: FinishReason, label: str, calibration: Calibration | None
    ) -> Answer:
        """Return the answer, with its statistics."""
        now = time.perf_counter()
        first = self.first_token_time or now
        count = len(self.tokens)
        total = sum(torch.stack(self.log_probabilities).tolist()) if count else 0.0
        confidence = exp(total / count) if count else 0.0
        calibrated = False
        end = self.end_log_probability
        if calibration is not None and count and end is not None:
            calibrated = calibration.covers(self.text)
            if calibrated:
                confidence = calibration.probability(total + end.item())
        fields = None
        if self.text_ends and reason == "stop":
            values = torch.stack(self.log_probabilities).tolist()
            fields = field_confidences(self.text, zip(self.text_ends, values, strict=False))
        return Answer(
            text=self.text,
            fields=fields,
            finish_reason=reason,
            prompt_tokens=self.prompt_tokens,
            image_tokens=self.image_tokens,
            cached_tokens=self.cached_tokens,
            new_tokens=count,
            seconds_to_first_token=first - self.started,
            tokens_per_second=(count - 1) / (now - first) if count > 1 else 0.0,
            confidence=confidence,
            dropped_messages=2 * len(self.dropped_turns),
            dropped_turns=self.dropped_turns,
            model=label,
            calibrated=calibrated,
            log_probabilities=tuple(self.reported),
        )


def _turns(conversation: Conversation) -> list[tuple[Message, ...]]:
    """Return the questions with their answers; the last question has none yet."""
    messages = conversation.dialogue
    return [messages[start : start + 2] for start in range(0, len(messages), 2)]


def _decode(
    generation: Generation, token: int, sampled: torch.Tensor
) -> Generator[DecodeStep, Any, torch.Tensor]:
    """Append a token together with those of other answers; return the logits of the next one."""
    logits: torch.Tensor = yield DecodeStep(generation, token, sampled)
    return logits


class LocalEngine:
    """A `vqa_app.engine.protocol.Engine` with a loaded model.

    The engine takes the model over: on a CPU it changes the layout of the weights, after which the
    model can only be used for inference, so save it before. Up to `MAX_ROWS` questions are answered
    at once, on a thread of the engine's own; others wait in the order of their arrival.

    Args:
        loaded: Result of `vqa_app.load_model`.
        cache_bytes: Memory for image features and for keys and values of earlier prompts, shared by
            all conversations; 0 reuses nothing. None shares a quarter of the device's free memory
            with the other engines on it.
        fast_decoding: Use faster weight layouts and the faster decoder on CPUs, where they apply.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        cache_bytes: int | None = None,
        fast_decoding: bool = True,
    ) -> None:
        model, processor = loaded.model, loaded.processor
        model.train(False)
        parameters = count_parameters(model)
        dtype = str(model.dtype).removeprefix("torch.")
        self._end_tokens = end_token_ids(model, processor)
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        self._grammars = JsonGrammars(processor.tokenizer, vocabulary)
        self._token_bytes = TokenBytes(processor.tokenizer)
        self._context_length = loaded.capabilities.context_length
        self._calibration = loaded.calibration
        if fast_decoding:
            optimize_layout(model)
        shared = shared_budget(model.device)
        self._budget = shared if cache_bytes is None else CacheBudget.fixed(cache_bytes)
        self._runtime = Runtime(
            model,
            processor,
            loaded.capabilities,
            budget=self._budget,
            fast_decoding=fast_decoding,
        )
        self._info = ModelInfo(
            name=loaded.name,
            adapter=loaded.adapter,
            architecture=type(model).__name__,
            parameters=parameters,
            device=str(model.device),
            dtype=dtype,
            quantization=loaded.quantization,
            context_length=self._context_length,
            attention_maps=loaded.capabilities.maps_attention,
            concurrency=MAX_ROWS,
            defaults=default_options(model),
            system_prompts=loaded.system_prompts,
            low_detail=has_low_detail(processor),
        )
        self._scheduler = Scheduler(
            decode=self._runtime.decode,
            encode=self._runtime.encode,
            concurrency=MAX_ROWS,
            memory=lambda: shared.limit,
            context=torch.inference_mode,
            on_idle=release_threads,
        )
        release_threads()  # loading used this thread's pool; from now on only the scheduler's is

    @property
    def info(self) -> ModelInfo:
        """See `Engine.info`."""
        return self._info

    def stream(
        self,
        conversation: Conversation,
        options: GenerationOptions | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[Event]:
        """See `Engine.stream`."""
        given = options or GenerationOptions()
        if given.system is not None:
            conversation = conversation.with_system(given.system)
        draft = _Draft()
        constraint = None if given.schema is None else self._grammars.constraint(given.schema)

        def job(
            cancelled: Cancelled,
        ) -> Iterator[Event | EncodeStep | DecodeStep | Reservation | None]:
            return self._answer(draft, conversation, given, constraint, cancelled)

        answered = False
        events: Iterator[Event] = self._scheduler.stream(job, cancel)
        for event in events:
            answered = isinstance(event, Answer)
            yield event
        if not answered:  # cancelled while waiting
            yield draft.to_answer("cancelled", self._info.label, None)

    def warm(self, conversation: Conversation, cancel: threading.Event | None = None) -> None:
        """See `Engine.warm`."""

        def job(cancelled: Cancelled) -> Steps[None]:
            with self._memory_guard():
                prompt = encode(
                    self._runtime.processor,
                    conversation,
                    answer_next=True,
                    question_incomplete=True,
                )
                if 0 < len(prompt) <= self._context_length:
                    yield from self._runtime.warm(prompt, cancelled)

        for _ in self._scheduler.stream(job, cancel, background=True):
            pass

    def count_tokens(self, conversation: Conversation) -> TokenCount:
        """See `Engine.count_tokens`."""
        prompt = encode(
            self._runtime.processor, conversation, answer_next=conversation.awaits_answer
        )
        shown = [resolution(self._runtime.processor, picture) for picture in prompt.pictures]
        pictures = tuple(
            PictureInput(end - start, *(size or (1, 0, 0)))
            for (start, end), size in zip(prompt.image_spans, shown, strict=True)
        )
        return TokenCount(len(prompt), prompt.image_tokens, pictures)

    def score(
        self,
        conversation: Conversation,
        choices: Sequence[str],
        cancel: threading.Event | None = None,
    ) -> list[float]:
        """See `Engine.score`."""
        if isinstance(choices, str) or not all(isinstance(choice, str) for choice in choices):
            raise UsageError(
                "Expected the answers to choose from as a list of strings.", 'Give ["yes", "no"].'
            )
        if not choices:
            raise UsageError("There are no answers to choose from.", "Give at least one.")
        return self._run(
            lambda: score(self._runtime, self._fit_answers(conversation, choices), choices), cancel
        )

    def image_gain(
        self, conversation: Conversation, answer: str, cancel: threading.Event | None = None
    ) -> float:
        """See `Engine.image_gain`."""
        return self._run(
            lambda: image_gain(self._runtime, self._fit_answers(conversation, [answer]), answer),
            cancel,
        )

    def attention_map(
        self, conversation: Conversation, answer: str, cancel: threading.Event | None = None
    ) -> AttentionMap:
        """See `Engine.attention_map`."""

        def compute() -> Steps[AttentionMap]:
            fitted = self._fit_answers(conversation, [answer])
            found = yield from attention_map(self._runtime, fitted, answer)
            empty = np.zeros((len(found.tokens), 1, 1), np.float32)
            left_out = len(conversation.pictures) - len(fitted.pictures)
            return replace(found, maps=(empty,) * left_out + found.maps)

        return self._run(compute, cancel)

    def model_view(self, picture: Picture) -> list[Image]:
        """Return a picture as the model receives it; not part of `Engine`."""
        return model_view(self._runtime.processor, picture)

    def close(self) -> None:
        """See `Engine.close`."""
        self._scheduler.close()
        self._runtime.close()

    def _run(self, steps: Callable[[], Steps[T]], cancel: threading.Event | None) -> T:
        """Run steps on the scheduler's thread, between those of answers."""

        def guarded() -> Steps[T]:
            with self._memory_guard():
                return (yield from self._retry(steps))

        return self._scheduler.run(guarded, cancel)

    def _retry(self, steps: Callable[[], Generator[Any, Any, T]]) -> Generator[Any, Any, T]:
        """Run steps; if memory runs out, free the caches and run them once more."""
        try:
            return (yield from steps())
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            clear_frames(error)
        # Outside the handler: the error's traceback holds what the first attempt had allocated.
        self._free_caches()
        return (yield from steps())

    def _step(
        self, generation: Generation, token: int, sampled: torch.Tensor
    ) -> Generator[DecodeStep, Any, torch.Tensor]:
        """Append a token; if memory runs out, free the other caches and repeat the step."""
        if not generation.repeats_steps:
            return (yield from _decode(generation, token, sampled))
        # Not a lambda: `clear_frames` would leave the variables that it encloses.
        return (yield from self._retry(partial(_decode, generation, token, sampled)))

    def _free_caches(self) -> None:
        """Free the caches of this engine and of all that share a device's budget."""
        self._budget.clear()
        reclaim_memory()

    def _answer(
        self,
        draft: _Draft,
        conversation: Conversation,
        options: GenerationOptions,
        constraint: JsonConstraint | None,
        cancelled: Cancelled,
    ) -> Generator[Event | EncodeStep | DecodeStep | Reservation | None, Any, None]:
        with self._memory_guard():
            room = min(options.max_new_tokens, self._context_length // 8)
            _, prompt, draft.dropped_turns = self._fit(conversation, room)
            draft.prompt_tokens, draft.image_tokens = len(prompt), prompt.image_tokens
            longest = min(len(prompt) + options.max_new_tokens, self._context_length)
            yield Reservation(self._runtime.kv_bytes(longest))
            draft.started = time.perf_counter()
            yield Status("looking")
            generation = yield from self._retry(lambda: self._runtime.prefill(prompt, cancelled))
            reason: FinishReason = "cancelled"
            if generation is not None:
                draft.cached_tokens = generation.cached_tokens
                reason = yield from self._generate(
                    draft, prompt, generation, options, constraint, cancelled
                )
        yield draft.to_answer(reason, self._info.label, self._calibration)

    def _fit_answers(self, conversation: Conversation, answers: Sequence[str]) -> Conversation:
        """Leave out turns until each of the answers fits into the context."""
        room = max(count_text_tokens(self._runtime.processor, answer) for answer in answers)
        return self._fit(conversation, room, room)[0]

    def _fit(
        self, conversation: Conversation, room: int, min_room: int = 1
    ) -> tuple[Conversation, Prompt, tuple[int, ...]]:
        """Leave out turns until there is room for an answer.

        The oldest turn without pictures goes first: a question about a picture cannot be answered
        without it. Turns with pictures go when no others are left, again the oldest first.

        Args:
            conversation: The whole conversation.
            room: Tokens to keep free for the answer.
            min_room: Tokens that must be free after the last message alone.

        Returns:
            The shortened conversation, its prompt and the numbers of the turns left out.

        Raises:
            ContextOverflowError: The last message alone leaves less than `min_room`.
        """
        limit = self._context_length
        *earlier, question = _turns(conversation) or [()]  # `encode` refuses an empty one
        kept = dict(enumerate(earlier))
        dropped: list[int] = []
        while True:
            messages = [message for turn in (*kept.values(), question) for message in turn]
            fitted = Conversation(tuple(messages)).with_system(conversation.system)
            prompt = encode(self._runtime.processor, fitted, answer_next=True)
            if len(prompt) + room <= limit:
                return fitted, prompt, tuple(dropped)
            if not kept:
                break
            dropped.append(min(kept, key=lambda number: (bool(kept[number][0].pictures), number)))
            del kept[dropped[-1]]
        if len(prompt) + min_room <= limit:
            return fitted, prompt, tuple(dropped)
        answer = f", the answer up to {min_room}" if min_room > 1 else ""
        raise ContextOverflowError(
            f"The question takes {len(prompt)} tokens, {prompt.image_tokens} of them for pictures"
            f"{answer}; the context of {self._info.name} is {limit}.",
            "Ask a shorter question, or about fewer pictures at once.",
        )

    @contextmanager
    def _memory_guard(self) -> Iterator[None]:
        """Turn errors of memory, which free the caches, and of the GPU into a `ModelError`."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if failure := device_error(error):  # for example of a laptop that has slept
                clear_frames(error)
                raise failure from error
            if not is_out_of_memory(error):
                raise
            clear_frames(error)
            self._free_caches()
            raise ModelError(
                f"There is not enough memory on {self._info.device} for this question.",
                "Ask about fewer or smaller pictures, or use --quantize 4bit.",
            ) from error

    def _require_numbers(self, logits: torch.Tensor) -> None:
        """Raise ModelError if a model computes NaN, of which no token can be chosen."""
        if not logits.isnan().any():
            return
        name, dtype = self._info.name, self._info.dtype
        hint = "Its weights may be damaged; download it again."
        if dtype == "float16":
            hint = "Its values may be too large for float16. Use --dtype float32."
        raise ModelError(f"{name} computes no numbers in {dtype}.", hint)

    def _generate(
        self,
        draft: _Draft,
        prompt: Prompt,
        generation: Generation,
        options: GenerationOptions,
        constraint: JsonConstraint | None,
        cancelled: Cancelled,
    ) -> Generator[Event | DecodeStep, torch.Tensor, FinishReason]:
        """Generate the answer; the generator's return value is why it ended."""
        ids = prompt.inputs["input_ids"].to(generation.logits.device)
        sampler = Sampler(self._runtime.model, options, ids, constraint)
        text = Detokenizer(self._runtime.processor.tokenizer, options.stop)
        limit = min(options.max_new_tokens, self._context_length - len(prompt))
        own_penalty = options.repetition_penalty in (None, self._info.defaults.repetition_penalty)
        chosen_penalty = options.presence_penalty or options.frequency_penalty
        repeats = own_penalty and not chosen_penalty and constraint is None
        loop = RepetitionDetector() if repeats else None
        logits = generation.logits[-1]
        streamed = 0
        self._require_numbers(logits)
        reason: FinishReason = "cancelled"
        while not cancelled():
            token, log_probability = sampler.sample(logits, limit - len(draft.tokens))
            if draft.first_token_time is None:
                draft.first_token_time = time.perf_counter()
                yield Status("answering")
            if token in self._end_tokens:
                draft.end_log_probability = log_probability
                reason = "stop"
                break
            draft.tokens.append(token)
            draft.log_probabilities.append(log_probability)
            if options.top_log_probabilities is not None:
                count = options.top_log_probabilities
                draft.reported.append(self._report(token, sampler.logits, count))
            if piece := text.push(token):
                draft.text = text.text
                yield Delta(piece, tuple(draft.reported[streamed:]))
                streamed = len(draft.reported)
            if constraint is not None:
                draft.text_ends.append(len(text.text))
            if text.stopped:
                draft.text_ends.clear()  # a stop string left a part of the JSON
                reason = "stop"
                break
            if constraint is not None and constraint.complete:
                reason = "stop"
                break
            if loop is not None and loop.push(token):
                reason = "repetition"
                break
            if len(draft.tokens) >= limit:
                reason = "length"
                break
            logits = yield from self._step(generation, token, sampler.token)
        # Not in a `finally`: after an error the content of the cache is unknown.
        generation.close(draft.tokens)
        rest = text.finish()
        if rest or len(draft.reported) > streamed:
            yield Delta(rest, tuple(draft.reported[streamed:]))
        draft.text = text.text
        return reason

    def _report(self, token: int, logits: torch.Tensor, count: int) -> TokenLogProbability:
        """Return a token and the `count` likeliest ones for logits [vocabulary]."""

        def entry(
            token: int, value: float, top: tuple[TokenLogProbability, ...] = ()
        ) -> TokenLogProbability:
            text = self._token_bytes(token)
            return TokenLogProbability(text.decode(errors="replace"), text, value, top)

        value, likeliest = report_log_probabilities(logits, token, count)
        return entry(token, value, tuple(entry(*other) for other in likeliest))
