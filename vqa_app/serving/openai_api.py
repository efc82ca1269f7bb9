"""OpenAI's API: chat completions with pictures, embeddings, and the list of models.

Each request is answered in threads of its own, because engines block; the event loop only passes
pieces on. Setting a request's cancel event ends its answers within one token: so does a client that
goes away, and the server's shutdown.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar, cast

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response

from vqa_app.engine.heatmap import draw_overlay, whole_answer
from vqa_app.engine.protocol import (
    NOT_SURE,
    Answer,
    Delta,
    Engine,
    GenerationOptions,
    ModelInfo,
    Status,
    vary,
)
from vqa_app.errors import ImageError, VqaError
from vqa_app.pictures.download import fetch_for_visitor
from vqa_app.pictures.picture import ImageLimits, Picture, at_low_detail, open_picture
from vqa_app.prompts.conversation import Conversation, Message, Part, Role
from vqa_app.serving.embeddings import Embedder, load_builtin
from vqa_app.serving.engine_pool import ModelChoice, ModelStatus, Phase
from vqa_app.serving.guard import METRICS_PATH
from vqa_app.serving.metrics import Metrics
from vqa_app.serving.model_choices import BUILTIN
from vqa_app.serving.openai_errors import AnswerStopped, ApiError, to_api_error
from vqa_app.serving.openai_responses import (
    Completion,
    End,
    Event,
    EventStream,
    Finish,
    Piece,
    Started,
    first_events,
    follow,
)
from vqa_app.serving.openai_schema import (
    ChatRequest,
    ChoiceProbability,
    EmbeddingList,
    EmbeddingRequest,
    ImageUrl,
    ModelCard,
    ModelList,
    VqaResult,
    explain,
)
from vqa_app.serving.picture_memory import PictureMemory

log = logging.getLogger(__name__)

DEFAULT_MAX_TOKENS = 1024
"""Longest answer of a request that does not say."""
MAX_ANSWERS = 72
"""Answers that are generated or wait; further requests are refused with 429."""
MAX_BODY = 64 * 2**20
"""Largest body of a request, in bytes."""
MAX_PIXELS = 100_000_000
"""Pixels of all pictures of a request together, which take three bytes each while it waits."""
MAX_HELD_PIXELS = 300_000_000
"""Pixels of the requests in progress; while there are more, further requests wait with decoding."""
MAX_PREPARING = 4
"""Requests whose pictures are decoded at once, which takes memory and a core."""
LOAD_TIMEOUT = 600
"""Seconds that a request waits for its model to load."""
RETRY_SECONDS = 2
"""What a client is told to wait when the queue is full."""


class Models(Protocol):
    """The models that one owner may use: a `vqa_app.serving.engine_pool.EnginePool` or a part."""

    def choices(self) -> list[ModelChoice]:
        """Return all models; they may have to be downloaded first."""
        ...

    def status(self, key: str | None = None) -> ModelStatus:
        """Return the loading state of a model, or of the default for None."""
        ...

    def start_loading(self, key: str | None = None) -> None:
        """Start to load a model, unless it is already loaded or loading."""
        ...

    def lease(
        self, key: str | None = None, timeout: float | None = None
    ) -> AbstractContextManager[Engine]:
        """Wait for an engine, and keep it while it is in use."""
        ...


def model_names(choice: ModelChoice) -> list[str]:
    """Return the names of a model in requests; the first stands in the list of models.

    A hub model has its hub id, a folder its name: paths and addresses are not revealed.
    """
    if choice.key == BUILTIN.key:
        return [BUILTIN.source]
    on_hub = (
        "/" in choice.source and "://" not in choice.source and not Path(choice.source).exists()
    )
    if on_hub and choice.adapter is None:
        return [choice.source, choice.label]
    return [choice.label]


Emit: TypeAlias = Callable[[Event], None]
R = TypeVar("R", bound=BaseModel)


class ChatApi:
    """Answers chat completions.

    Args:
        models: Returns the models that an owner may use; see `vqa_app.serving.guard.Guard`.
        media_hosts: Hosts from which pictures are fetched.
        limits: Limits of pictures.
        max_answers: See `MAX_ANSWERS`.
        embedder: Makes embeddings; by default with the towers of the built-in model.
    """

    def __init__(
        self,
        models: Callable[[str], Models],
        *,
        media_hosts: Collection[str] = (),
        limits: ImageLimits | None = None,
        max_answers: int = MAX_ANSWERS,
        embedder: Embedder | None = None,
    ) -> None:
        self._models = models
        self._media_hosts = frozenset(media_hosts)
        self._limits = limits or ImageLimits()
        self._max_answers = max_answers
        self._embedder = embedder or Embedder(load_builtin)
        self._lock = threading.Lock()
        self._cancels: dict[threading.Event, int] = {}
        """Requests in progress, with the number of their answers."""
        self._preparing = threading.BoundedSemaphore(MAX_PREPARING)
        # Not asyncio's threads: chats would wait for them.
        self._embedding = ThreadPoolExecutor(1, "embedding")
        self._pictures = PictureMemory(MAX_HELD_PIXELS)
        self.metrics = Metrics()

    @property
    def answers_in_progress(self) -> int:
        """Number of answers that are generated or wait."""
        with self._lock:
            return sum(self._cancels.values())

    def stop_all(self) -> None:
        """End all answers within one token."""
        with self._lock:
            for cancel in self._cancels:
                cancel.set()

    @contextmanager
    def answering(self) -> Iterator[threading.Event]:
        """Count an answer that comes by another way until the block ends; yield its cancel event.

        Raises:
            ApiError: There are too many answers in progress.
        """
        cancel = self._reserve(1)
        try:
            yield cancel
        finally:
            with self._lock:
                del self._cancels[cancel]

    def phase(self) -> Phase:
        """Return how far the default model is loaded."""
        return self._models("").status().phase

    def model_list(self, owner: str) -> ModelList:
        """Return the models that are on this machine."""
        names = [model_names(choice)[0] for choice in self._models(owner).choices() if choice.here]
        return ModelList(data=[ModelCard(id=name) for name in dict.fromkeys(names)])

    async def complete(self, request: Request) -> Response:
        """Answer `POST /v1/chat/completions`."""
        return await self._counted(self._complete, request)

    async def embed(self, request: Request) -> Response:
        """Answer `POST /v1/embeddings`."""
        return await self._counted(self._embed, request)

    async def _counted(
        self, answer: Callable[[Request, float], Awaitable[Response]], request: Request
    ) -> Response:
        """Answer a request and count it."""
        started = time.perf_counter()
        self.metrics.start()
        status = 500
        try:
            response = await answer(request, started)
            status = response.status_code
            return response
        except ClientDisconnect:
            status = 499
            raise
        except Exception as error:
            refusal = to_api_error(error)
            status = refusal.status
            raise refusal from error
        finally:
            if not (status == 200 and isinstance(response, EventStream)):
                self.metrics.end(status, time.perf_counter() - started)

    async def _complete(self, request: Request, started: float) -> Response:
        body = await request.body()
        chat = await asyncio.to_thread(_parse, ChatRequest, body)
        del body
        models = self._models(request.state.owner)
        choice = await asyncio.to_thread(_find_model, models, chat.model)
        events: asyncio.Queue[Event | End] = asyncio.Queue()
        cancel = self._reserve(chat.n)
        loop = asyncio.get_running_loop()

        def emit(event: Event | End) -> None:
            with contextlib.suppress(RuntimeError):  # the server has stopped
                loop.call_soon_threadsafe(events.put_nowait, event)

        def work() -> None:
            error: BaseException | None = None
            try:
                self._answer(chat, models, choice, emit, cancel)
            except CancelledError:
                error = AnswerStopped()
            except BaseException as raised:
                error = raised
            finally:
                with self._lock:
                    del self._cancels[cancel]
                emit(End(error))

        threading.Thread(target=work, name="chat-completion", daemon=True).start()
        watcher = asyncio.create_task(_cancel_when_gone(request, cancel))
        completion = Completion(chat, model_names(choice)[0])
        try:
            if not chat.stream:
                async for event in follow(events):
                    completion.add(event)
                return _json(completion.whole())
            first = await first_events(events)
        except AnswerStopped:
            gone = watcher.done()
            watcher.cancel()
            raise ClientDisconnect if gone else ApiError(503, "The server is stopping.") from None
        except BaseException:
            cancel.set()
            watcher.cancel()
            raise
        finally:
            if not chat.stream:
                watcher.cancel()

        def end(status: int) -> None:
            cancel.set()
            watcher.cancel()
            self.metrics.end(status, time.perf_counter() - started)

        return EventStream(completion.chunks(follow(events, first)), end)

    async def _embed(self, request: Request, started: float) -> Response:
        asked = await asyncio.to_thread(_parse, EmbeddingRequest, await request.body())
        models = self._models(request.state.owner)
        choice = await asyncio.to_thread(_find_model, models, asked.model)
        self._embedder.check(choice, model_names(choice)[0])
        cancel = self._reserve(1)

        def work() -> EmbeddingList:
            if cancel.is_set():
                raise AnswerStopped
            with self._preparing:
                inputs = self._open_inputs(asked)
            return self._embedder.embed(asked, inputs, model_names(choice)[0])

        watcher = asyncio.create_task(_cancel_when_gone(request, cancel))
        try:
            loop = asyncio.get_running_loop()
            return _json(await loop.run_in_executor(self._embedding, work))
        finally:
            watcher.cancel()
            with self._lock:
                del self._cancels[cancel]

    def _reserve(self, answers: int) -> threading.Event:
        """Return the cancel event of a request, which counts until it is removed.

        Raises:
            ApiError: There are too many answers in progress.
        """
        cancel = threading.Event()
        with self._lock:
            if sum(self._cancels.values()) + answers > self._max_answers:
                raise ApiError(
                    429,
                    f"The queue is full: at most {self._max_answers} answers are in progress or"
                    " wait.",
                    code="rate_limit_exceeded",
                    headers={"retry-after": str(RETRY_SECONDS)},
                )
            self._cancels[cancel] = answers
        return cancel

    # -- in the request's own thread ---------------------------------------------------------------

    def _answer(
        self,
        chat: ChatRequest,
        models: Models,
        choice: ModelChoice,
        emit: Emit,
        cancel: threading.Event,
    ) -> None:
        """Answer a request, and emit the pieces of its answers."""
        models.start_loading(choice.key)
        with models.lease(choice.key, LOAD_TIMEOUT) as engine, contextlib.ExitStack() as held:
            if chat.vqa.attention and not engine.info.attention_maps:
                raise ApiError(
                    400,
                    f"{choice.label} does not support attention maps.",
                    param="vqa.attention",
                    code="unsupported_parameter",
                )
            with self._preparing if chat.picture_count else contextlib.nullcontext():
                if chat.picture_count:
                    self._pictures.wait(cancel)
                conversation = self._conversation(chat, engine.info)
                sizes = [picture.image.size for picture in conversation.pictures]
                held.enter_context(self._pictures.hold(sum(w * h for w, h in sizes)))
            if chat.vqa.choices is not None:
                self._choose(engine, conversation, chat, chat.vqa.choices, emit, cancel)
                return
            first = _options(chat, engine.info)
            chosen = replace(first, temperature=chat.temperature)
            options = [first] + [vary(chosen, engine.info.defaults, k) for k in range(1, chat.n)]
            if chat.n == 1:
                self._stream(0, engine, conversation, first, chat, emit, cancel)
                return
            with ThreadPoolExecutor(chat.n) as threads:
                answers = [
                    threads.submit(
                        self._stream, index, engine, conversation, each, chat, emit, cancel
                    )
                    for index, each in enumerate(options)
                ]
                for answer in answers:
                    answer.add_done_callback(
                        lambda done: cancel.set() if done.exception() else None
                    )
            errors = [error for answer in answers if (error := answer.exception()) is not None]
            if errors:
                stopped = (AnswerStopped, CancelledError)
                raise next((e for e in errors if not isinstance(e, stopped)), errors[0])

    def _stream(
        self,
        index: int,
        engine: Engine,
        conversation: Conversation,
        options: GenerationOptions,
        chat: ChatRequest,
        emit: Emit,
        cancel: threading.Event,
    ) -> None:
        """Emit the pieces and the end of one answer."""
        answer: Answer | None = None
        withholds = chat.vqa.abstain is not None
        with contextlib.closing(cast(Any, engine.stream(conversation, options, cancel))) as stream:
            for event in stream:
                if isinstance(event, Answer):
                    answer = event
                elif isinstance(event, Delta) and not withholds:
                    emit(Piece(index, event.text, event.log_probabilities))
                elif isinstance(event, Status) and event.state == "answering":
                    emit(Started())
        assert answer is not None, "a stream ends with its Answer"
        self.metrics.add_answer(
            prompt=answer.prompt_tokens or 0,
            cached=answer.cached_tokens or 0,
            generated=answer.new_tokens or 0,
            seconds=answer.seconds_to_first_token,
        )
        if answer.finish_reason == "cancelled":
            raise AnswerStopped
        result = VqaResult(calibrated=answer.calibrated) if chat.vqa.confidence else VqaResult()
        shown = self._judge(result, answer.text, answer.confidence, chat)
        if withholds:
            emit(Piece(index, shown))
        if answer.dropped_messages:
            result.dropped_messages = answer.dropped_messages
        self._examine(result, engine, conversation, answer.text, chat, cancel)
        emit(
            Finish(
                index,
                "length" if answer.finish_reason == "length" else "stop",
                answer.prompt_tokens,
                answer.cached_tokens,
                answer.new_tokens,
                result if result.model_dump() else None,
            )
        )

    def _choose(
        self,
        engine: Engine,
        conversation: Conversation,
        chat: ChatRequest,
        choices: Sequence[str],
        emit: Emit,
        cancel: threading.Event,
    ) -> None:
        """Emit the most probable of the given answers; no token is generated."""
        shares = engine.score(conversation, choices, cancel)
        best = max(range(len(choices)), key=shares.__getitem__)
        result = VqaResult(
            choices=[
                ChoiceProbability(text=text, probability=share)
                for text, share in zip(choices, shares, strict=True)
            ]
        )
        emit(Piece(0, self._judge(result, choices[best], shares[best], chat)))
        self._examine(result, engine, conversation, choices[best], chat, cancel)
        prompt = engine.count_tokens(conversation).prompt
        emit(Finish(0, "stop", prompt, None, 0, result))

    def _judge(
        self, result: VqaResult, text: str, confidence: float | None, chat: ChatRequest
    ) -> str:
        """Return the answer to show: another if the model is less sure than was asked for.

        Raises:
            ApiError: It is not known how sure the model is, and `abstain` depends on it.
        """
        if chat.vqa.confidence:
            result.confidence = confidence
        if chat.vqa.abstain is None:
            return text
        if confidence is None:
            raise ApiError(
                400,
                "This model's server does not say how sure the model is.",
                param="vqa.abstain",
                code="unsupported_parameter",
            )
        result.abstained = confidence < chat.vqa.abstain
        if not result.abstained:
            return text
        result.would_have_said = text
        return NOT_SURE

    def _examine(
        self,
        result: VqaResult,
        engine: Engine,
        conversation: Conversation,
        answer: str,
        chat: ChatRequest,
        cancel: threading.Event,
    ) -> None:
        """Add what was asked for about the effect of the pictures on an answer."""
        if chat.vqa.image_gain:
            result.image_gain = engine.image_gain(conversation, answer, cancel)
        if chat.vqa.attention:
            attention = engine.attention_map(conversation, answer, cancel)
            result.attention = [
                _png_uri(picture, whole_answer(attention, number))
                for number, picture in enumerate(conversation.pictures)
            ]

    def _conversation(self, chat: ChatRequest, model: ModelInfo) -> Conversation:
        """Return the conversation of a request, with its pictures.

        Messages of one role in a row are joined, as are system messages at the beginning. Pictures
        that follow all text of a message, as in OpenAI's own examples, are put before it: so models
        were trained, and so `Message.user` has them.
        """
        messages: list[Message] = []
        pixels = _PixelSum(max(MAX_PIXELS, self._limits.max_pixels))
        for number, message in enumerate(chat.messages):
            role: Role = "system" if message.role == "developer" else message.role
            parts: list[Part] = []
            for position, part in enumerate(message.content):
                field = f"messages[{number}].content[{position}].image_url"
                if part.image_url is not None:
                    picture = self._picture(part.image_url, model.low_detail, field)
                    pixels.add(picture, field)
                    parts.append(picture)
                else:
                    parts.append(part.text or "")
            texts = sum(isinstance(part, str) for part in parts)
            if all(isinstance(part, str) for part in parts[:texts]):
                parts = [*parts[texts:], *parts[:texts]]
            with _blaming(f"messages[{number}]"):
                if messages and messages[-1].role == role:
                    messages[-1] = Message(role, (*messages[-1].parts, "\n\n", *parts))
                else:
                    messages.append(Message(role, tuple(parts)))
        with _blaming("messages"):
            conversation = Conversation(tuple(messages))
            if not conversation.awaits_answer:
                raise ApiError(400, "messages: the last one is not the user's.", param="messages")
            return conversation

    def _open_inputs(self, asked: EmbeddingRequest) -> list[str | Picture]:
        """Return the texts and pictures of a request for embeddings."""
        pixels = _PixelSum(max(MAX_PIXELS, self._limits.max_pixels))
        inputs: list[str | Picture] = []
        for number, part in enumerate(asked.parts):
            if part.image_url is None:
                inputs.append(part.text or "")
                continue
            field = f"{asked.name_of(number)}.image_url"
            picture = self._picture(part.image_url, False, field)
            pixels.add(picture, field)
            inputs.append(picture)
        return inputs

    def _picture(self, source: ImageUrl, has_low_detail: bool, field: str) -> Picture:
        if source.detail == "low" and not has_low_detail:
            raise ApiError(
                400,
                f"{field}.detail: this model has no low detail; use auto or high.",
                param=f"{field}.detail",
                code="unsupported_parameter",
            )
        with _blaming(f"{field}.url"):
            scheme = source.url.partition(":")[0].lower()
            name = "picture"
            data: bytes | str = source.url
            if scheme in ("http", "https") and self._media_hosts:
                data, name = fetch_for_visitor(
                    source.url, self._media_hosts, self._limits.max_bytes
                )
            elif scheme != "data":
                raise ImageError(
                    "Expected a picture as a data: URI, like data:image/png;base64,...",
                    "This server fetches from no address, and opens no file."
                    if not self._media_hosts
                    else "Addresses must begin with http:// or https://.",
                )
            picture = open_picture(data, name=name, limits=self._limits)
        return at_low_detail(picture) if source.detail == "low" else picture


class _PixelSum:
    """Adds up the pixels of a request's pictures.

    Args:
        most: How many there may be.
    """

    def __init__(self, most: int) -> None:
        self._most, self._sum = most, 0

    def add(self, picture: Picture, field: str) -> None:
        """Add a picture.

        Raises:
            ApiError: There are too many pixels.
        """
        self._sum += picture.image.width * picture.image.height
        if self._sum > self._most:
            raise ApiError(
                413,
                f"{field}: the pictures up to this one have {self._sum / 1e6:.3g} megapixels"
                f" together, at most {self._most / 1e6:.3g}. Send fewer or smaller ones.",
                param=field,
            )


def openai_routes(api: ChatApi) -> APIRouter:
    """Return the routes below `/v1`."""
    router = APIRouter(prefix="/v1", route_class=_ApiRoute)

    @router.post("/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await api.complete(request)

    @router.post("/embeddings")
    async def embeddings(request: Request) -> Response:
        return await api.embed(request)

    @router.get("/models")
    def models(request: Request) -> Response:
        return _json(api.model_list(request.state.owner))

    @router.get("/models/{name:path}")
    def model(request: Request, name: str) -> Response:
        for card in api.model_list(request.state.owner).data:
            if card.id == name:
                return _json(card)
        raise _unknown_model(name)

    @router.api_route(
        "/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
    )
    def unknown(request: Request, path: str) -> Response:
        known = {"chat/completions": "POST", "embeddings": "POST", "models": "GET"}
        if path in known:
            raise ApiError(
                405, f"{request.method} is not allowed here.", headers={"allow": known[path]}
            )
        raise ApiError(404, f"There is no /v1/{path[:80]} on this server.", code="unknown_url")

    return router


def operation_routes(api: ChatApi) -> APIRouter:
    """Return the routes for whoever operates the server: health, readiness and metrics."""
    router = APIRouter()

    @router.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/readyz")
    def readyz(response: Response) -> dict[str, str]:
        phase = api.phase()
        # A model that was unloaded because nobody asked ("absent") is loaded for the next question.
        response.status_code = 200 if phase in ("ready", "absent") else 503
        return {"status": phase}

    router.include_router(metrics_routes(api))
    return router


def metrics_routes(api: ChatApi) -> APIRouter:
    """Return the route for the counters of OpenAI's API."""
    router = APIRouter()

    @router.get(METRICS_PATH)
    def metrics() -> Response:
        return PlainTextResponse(
            api.metrics.text(api.answers_in_progress),
            media_type="text/plain; version=0.0.4; charset=utf-8",
        )

    return router


class _ApiRoute(APIRoute):
    """A route whose errors have OpenAI's form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except ClientDisconnect:
                return Response(status_code=499)
            except Exception as error:
                return to_api_error(error).response()

        return handle


@contextmanager
def _blaming(field: str) -> Iterator[None]:
    """Name the field of a request in errors about its value."""
    try:
        yield
    except ApiError:
        raise
    except VqaError as error:
        reason = to_api_error(error)
        raise ApiError(400, f"{field}: {reason.message}", param=field) from error


def _parse(kind: type[R], body: bytes) -> R:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        message, field = explain(error)
        raise ApiError(400, message, param=field) from None


def _find_model(models: Models, name: str) -> ModelChoice:
    for choice in models.choices():
        if choice.here and name in (*model_names(choice), choice.key):
            return choice
    raise _unknown_model(name)


def _unknown_model(name: str) -> ApiError:
    return ApiError(
        404,
        f"There is no model {name[:200]!r} on this server. GET /v1/models lists those there are.",
        param="model",
        code="model_not_found",
    )


def _options(chat: ChatRequest, model: ModelInfo) -> GenerationOptions:
    """Return the options of a request; what it leaves open is the model's."""
    longest = chat.max_completion_tokens or chat.max_tokens or DEFAULT_MAX_TOKENS
    chosen: dict[str, Any] = {
        "temperature": chat.temperature,
        "top_p": None if chat.top_p is None else max(chat.top_p, 1e-6),
        "top_k": None if chat.top_k is None else max(chat.top_k, 0),
        "repetition_penalty": chat.repetition_penalty,
        "presence_penalty": chat.presence_penalty,
        "frequency_penalty": chat.frequency_penalty,
        "seed": chat.seed,
        "stop": tuple(chat.stop) if chat.stop else None,
        "schema": chat.schema_text,
    }
    return replace(
        model.defaults,
        max_new_tokens=min(longest, model.context_length or longest),
        top_log_probabilities=(chat.top_logprobs or 0) if chat.logprobs else None,
        **{name: value for name, value in chosen.items() if value is not None},
    )


def _png_uri(picture: Picture, weights: Any) -> str:
    file = BytesIO()
    draw_overlay(picture.image, weights).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


async def _cancel_when_gone(request: Request, cancel: threading.Event) -> None:
    """Set the event as soon as the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    cancel.set()


def _json(value: BaseModel) -> Response:
    return Response(value.model_dump_json(), media_type="application/json")
