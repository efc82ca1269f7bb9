"""Responses of chat completions: whole, or as a stream of server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast
from uuid import uuid4

from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from vqa_app.engine.protocol import TokenLogProbability
from vqa_app.serving.openai_errors import to_api_error
from vqa_app.serving.openai_schema import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChatRequest,
    Choice,
    ChunkChoice,
    FinishReason,
    Logprobs,
    MessageDelta,
    PromptTokensDetails,
    TokenLogprob,
    TopLogprob,
    Usage,
    VqaResult,
)

PING_SECONDS = 10.0
"""Longest silence of a stream, and longest time until its headers are sent."""


@dataclass(frozen=True)
class Piece:
    """The next text of an answer."""

    index: int
    text: str
    log_probabilities: tuple[TokenLogProbability, ...] = ()


@dataclass(frozen=True)
class Finish:
    """The end of an answer, with its token counts."""

    index: int
    reason: FinishReason
    prompt_tokens: int | None
    """Counts are None where a server elsewhere does not send them."""
    cached_tokens: int | None
    new_tokens: int | None
    vqa: VqaResult | None


@dataclass(frozen=True)
class Started:
    """The prompt was read, so the request is valid; text follows."""


@dataclass(frozen=True)
class End:
    """The end of all answers, with what went wrong."""

    error: BaseException | None = None


Event: TypeAlias = Piece | Finish | Started


async def first_events(events: asyncio.Queue[Event | End]) -> list[Event]:
    """Wait until the prompt was read, or for `PING_SECONDS`.

    So a request that is refused gets an error status instead of a stream.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PING_SECONDS):
            async for event in follow(events):
                return [event]
    return []


async def follow(
    events: asyncio.Queue[Event | End], first: Sequence[Event] = ()
) -> AsyncIterator[Event]:
    """Yield events until the end; raise the error there, if any."""
    for event in first:
        yield event
    while not isinstance(item := await events.get(), End):
        yield item
    if item.error is not None:
        raise item.error


class Completion:
    """Makes OpenAI's responses of the events of a request."""

    def __init__(self, chat: ChatRequest, model: str) -> None:
        self._chat, self._model = chat, model
        self._id = f"chatcmpl-{uuid4().hex}"
        self._created = int(time.time())
        self._texts = [""] * chat.n
        self._tokens: list[list[TokenLogprob]] = [[] for _ in range(chat.n)]
        self._ends: dict[int, Finish] = {}

    def add(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, Piece):
            self._texts[event.index] += event.text
            self._tokens[event.index] += _logprobs(event.log_probabilities)
        elif isinstance(event, Finish):
            self._ends[event.index] = event

    def whole(self) -> ChatCompletion:
        """Return the response after all events."""
        choices = [
            Choice(
                index=index,
                message=AnswerMessage(content=text),
                logprobs=Logprobs(content=self._tokens[index]) if self._chat.logprobs else None,
                finish_reason=self._ends[index].reason,
                vqa=self._ends[index].vqa,
            )
            for index, text in enumerate(self._texts)
        ]
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=self._usage(),
        )

    def _usage(self) -> Usage | None:
        """Return the token counts, if they are known.

        The prompt counts once, however many answers there are.
        """
        ends = self._ends.values()
        prompts = [end.prompt_tokens for end in ends if end.prompt_tokens is not None]
        counts = [end.new_tokens for end in ends if end.new_tokens is not None]
        cached = [end.cached_tokens for end in ends if end.cached_tokens is not None]
        if not prompts or len(counts) < len(ends):
            return None
        return Usage(
            prompt_tokens=max(prompts),
            completion_tokens=sum(counts),
            total_tokens=max(prompts) + sum(counts),
            prompt_tokens_details=PromptTokensDetails(cached_tokens=min(cached))
            if cached
            else None,
        )

    async def chunks(self, events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
        """Yield the events of a streamed response."""
        for index in range(self._chat.n):
            yield self._chunk(index, MessageDelta(role="assistant", content=""))
        try:
            async for event in events:
                self.add(event)
                if isinstance(event, Piece):
                    yield self._chunk(
                        event.index,
                        MessageDelta(content=event.text),
                        logprobs=Logprobs(content=_logprobs(event.log_probabilities))
                        if self._chat.logprobs
                        else None,
                    )
                elif isinstance(event, Finish):
                    yield self._chunk(
                        event.index, MessageDelta(), finish_reason=event.reason, vqa=event.vqa
                    )
        except Exception as error:
            yield _sse(to_api_error(error).body())
            return
        options = self._chat.stream_options
        usage = self._usage() if options is not None and options.include_usage else None
        if usage is not None:
            yield _sse(self._event([], usage))
        yield b"data: [DONE]\n\n"

    def _chunk(self, index: int, delta: MessageDelta, **details: Any) -> bytes:
        return _sse(self._event([ChunkChoice(index=index, delta=delta, **details)]))

    def _event(self, choices: list[ChunkChoice], usage: Usage | None = None) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )


class EventStream(StreamingResponse):
    """Server-sent events, with a comment after each `PING_SECONDS` of silence.

    Args:
        content: The events.
        end: Called once with 200, or with 499 if the client went away before the last event.
    """

    def __init__(self, content: AsyncIterator[bytes], end: Callable[[int], None]) -> None:
        self._complete = False
        super().__init__(
            self._with_pings(content),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end(200 if self._complete else 499)

    async def _with_pings(self, content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        waiting: asyncio.Future[bytes] | None = None
        try:
            while True:
                waiting = waiting or asyncio.ensure_future(cast(Any, anext(content)))
                done, _ = await asyncio.wait({waiting}, timeout=PING_SECONDS)
                if not done:
                    yield b": ping\n\n"
                    continue
                try:
                    piece = waiting.result()
                except StopAsyncIteration:
                    self._complete = True
                    return
                waiting = None
                yield piece
        finally:
            if waiting is not None:
                waiting.cancel()


def _logprobs(tokens: Sequence[TokenLogProbability]) -> list[TokenLogprob]:
    return [
        TokenLogprob(
            token=token.token,
            bytes=list(token.bytes),
            logprob=token.log_probability,
            top_logprobs=[
                TopLogprob(token=t.token, bytes=list(t.bytes), logprob=t.log_probability)
                for t in token.top
            ],
        )
        for token in tokens
    ]


def _sse(value: BaseModel) -> bytes:
    return b"data: " + value.model_dump_json().encode() + b"\n\n"
