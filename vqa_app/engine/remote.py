"""The engine that asks a server with OpenAI's API: vLLM, Ollama, llama-server, OpenAI, our own.

Imports neither torch nor transformers, and httpx only when an engine is made. What such a server
cannot give, such as attention maps, is refused with the reason; what it does not send, such as
token counts, is None.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import io
import ipaddress
import itertools
import json
import queue
import random
import re
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, wait
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import exp, isfinite
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from urllib.parse import unquote, urlsplit

from PIL import Image

from vqa_app.engine.json_fields import field_confidences
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
from vqa_app.errors import ContextOverflowError, ImageError, ModelError, UsageError
from vqa_app.files import JSON_ERRORS
from vqa_app.numeric import checked_float, checked_integer
from vqa_app.pictures.picture import Picture, digest_of
from vqa_app.prompts.conversation import Conversation, Message, replace_surrogates
from vqa_app.proxies import proxy_problem
from vqa_app.version import __version__

if TYPE_CHECKING:
    import httpx

CONCURRENCY = 8
MAX_SIDE = 2048
"""Longer side of a picture that is sent, in pixels: from this size on OpenAI shrinks it itself."""
TIMEOUT = 300.0
"""Seconds to wait for the next piece of a response. Reading a picture may take minutes on a CPU."""
CONNECT_TIMEOUT = 10.0
ATTEMPTS = 5
"""How often a request is sent at most while the server is busy or failing."""
MAX_WAIT = 60.0
"""Longest wait before another attempt, in seconds. Who asks for more wants to be left alone."""

_FIRST_WAIT = 0.5
_POLL_SECONDS = 0.05
"""How often the consumer of a stream looks whether it is cancelled."""
_PNG_BYTES = 1 << 20
"""Largest PNG that is sent. Drawings and screenshots stay below and arrive exactly; photographs go
as JPEG."""
_JPEG_QUALITY = 95
_KEPT_PICTURES = 16
"""Encoded pictures that are remembered: every question of a chat sends them again."""
_MAX_LINE = 16 << 20
"""Bytes of the longest line of a response; a server that sends more does not speak the API."""
_MAX_ERROR = 64 << 10
_LISTED_MODELS = 20

_BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Status codes after which the same request may succeed."""
_LOGPROBS, _USAGE, _MAX_TOKENS = "logprobs", "stream_options", "max_tokens"
_TOP_LOGPROBS = "top_logprobs"
_OPTIONAL = (_LOGPROBS, _USAGE, _MAX_TOKENS)
"""Fields of a request without which a server that refuses them is asked again."""
_CHOICES = "vqa"
"""Field of requests and responses for the extensions of our own servers."""
_CONTEXT = re.compile(
    r"context.?length|context.?window|context size|maximum context|max_model_len|too many tokens"
    r"|prompt is too long|input is too long|too long for|maximum number of tokens",
    re.IGNORECASE,
)
_VISION = re.compile(
    r"image|vision|multi.?modal|mmproj|content.{0,40}(string|text)|modalit",
    re.IGNORECASE | re.DOTALL,
)
_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")
"""What lines of a stream of server-sent events begin with."""

T = TypeVar("T")


def is_remote(name: str) -> bool:
    """Return whether the name of a model is the address of a server."""
    return name[:7].lower() == "http://" or name[:8].lower() == "https://"


@dataclass(frozen=True)
class RemoteServer:
    """A server with OpenAI's API, and how it is used."""

    address: str
    """Such as `http://host:8000/v1`; requests go to `/chat/completions` below it."""
    model: str | None = None
    """None takes the server's only model."""
    key: str | None = field(default=None, repr=False)
    """Sent as a bearer token; never part of a message."""
    concurrency: int = CONCURRENCY
    """How many questions are in flight at once; others wait in line."""
    timeout: float = TIMEOUT
    """Seconds to wait for the next piece of a response."""
    max_side: int = MAX_SIDE
    """Longer side of a picture that is sent, in pixels; larger ones are shrunk."""

    def __post_init__(self) -> None:
        """Check the values, and complete the address.

        Raises:
            UsageError: One of them cannot be used.
        """
        address = _checked_address(self.address)
        key = (self.key or "").strip() or None
        if key is not None and not re.fullmatch(r"[!-~]+", key):  # neither shown nor sent
            raise UsageError(
                "The key of the server has characters that no key has.",
                "Copy it again, without spaces and line breaks.",
            )
        values = {
            "address": address,
            "key": key,
            "concurrency": checked_integer("concurrency", self.concurrency, 1, 1024),
            "timeout": checked_float("timeout", self.timeout, 0.1, 86400.0),
            "max_side": checked_integer("max_side", self.max_side, 16, 1 << 16),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    @classmethod
    def parse(cls, name: str, key: str | None = None) -> RemoteServer:
        """Read the name of a model as `--model` takes it: `http://host:8000/v1#model`.

        Raises:
            UsageError: It is not an address that can be used.
        """
        address, _, model = name.partition("#")
        return cls(address, unquote(replace_surrogates(model)).strip() or None, key)

    @property
    def host(self) -> str:
        """Host and port, for messages."""
        return urlsplit(self.address).netloc

    @property
    def name(self) -> str:
        """The name from which `parse` reads this server, without its key."""
        return f"{self.address}#{self.model}" if self.model else self.address


def _checked_address(text: str) -> str:
    """Return the address of an API without a slash at its end.

    Raises:
        UsageError: It is not an http or https address, or has parts that would be lost.
    """
    example = "Write it like http://host:8000/v1#model."
    try:
        parts = urlsplit(text.strip())
        parts.port  # noqa: B018  raises if it is no number
        host = parts.hostname
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host or not text.isprintable():
        shown = "" if "@" in text else f" {text[:80]!r}"  # there may be a password before the @
        raise UsageError(f"The address{shown} of the server cannot be used.", example)
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            f"The address of {host} contains a user name or a password.",
            "Put the key into the environment variable VQA_API_KEY.",
        )
    if parts.query:
        raise UsageError(f"The address of {host} contains a query (?...).", example)
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def shrunk(picture: Picture, max_side: int = MAX_SIDE) -> Picture:
    """Return a picture as it is sent: with a note in `changes` if it is smaller than it was."""
    if max(picture.image.size) <= max_side:
        return picture
    image = picture.image.copy()
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    change = f"shrunk to {image.width:,} × {image.height:,} pixels for the server"
    return replace(
        picture, image=image, digest=digest_of(image), changes=(*picture.changes, change)
    )


def data_uri(picture: Picture) -> str:
    """Return a picture as a `data:` URI: PNG if that is small, otherwise JPEG."""
    stream = io.BytesIO()
    picture.image.save(stream, "PNG", compress_level=1)
    kind = "png"
    if stream.tell() > _PNG_BYTES:
        stream, kind = io.BytesIO(), "jpeg"
        picture.image.save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return f"data:image/{kind};base64," + base64.b64encode(stream.getvalue()).decode()


@dataclass(frozen=True)
class Choice:
    """Which of some given answers a server chose."""

    text: str
    probabilities: tuple[float, ...] | None
    """Of all answers in their order; None if the server only says which one it chose."""
    method: str
    """`vqa.choices` if the server scored the answers, `response_format` if it was made to write one
    of them, `text` if it wrote one without being made to."""


@dataclass
class _Draft:
    """An answer while it arrives."""

    started: float = field(default_factory=time.perf_counter)
    first_token_time: float | None = None
    streamed: bool = True
    text: str = ""
    surrogate: str = ""
    """First half of a character whose other half is in the next piece."""
    finish_reason: str | None = None
    log_probabilities: list[TokenLogProbability] = field(default_factory=list)
    usage: Mapping[str, Any] = field(default_factory=dict)
    dropped_turns: tuple[int, ...] = ()

    @property
    def has_begun(self) -> bool:
        """Whether the consumer has received a part of the answer."""
        return self.first_token_time is not None

    def push(self, piece: str, *, last: bool = False) -> str:
        """Add a piece, and return what is new in whole characters."""
        text = self.surrogate + piece
        self.surrogate = ""
        if text and "\ud800" <= text[-1] <= "\udbff" and not last:
            text, self.surrogate = text[:-1], text[-1]
        joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        whole = replace_surrogates(joined)
        if whole and self.first_token_time is None:
            self.first_token_time = time.perf_counter()
        self.text += whole
        return whole

    def to_answer(self, reason: FinishReason, label: str, options: GenerationOptions) -> Answer:
        """Return the answer, with what the server says about it."""
        now = time.perf_counter()
        first = self.first_token_time or now
        known = [token.log_probability for token in self.log_probabilities]
        follows_schema = options.schema is not None and reason == "stop" and bool(known)
        reports_tokens = options.top_log_probabilities is not None
        count = _count(self.usage, "completion_tokens")
        if count is None and known:
            count = len(known)
        is_timed = self.streamed and count is not None and count > 1 and now > first
        return Answer(
            text=self.text,
            finish_reason=reason,
            prompt_tokens=_count(self.usage, "prompt_tokens"),
            image_tokens=_count(self.usage, "prompt_tokens_details", "image_tokens"),
            cached_tokens=_count(self.usage, "prompt_tokens_details", "cached_tokens"),
            new_tokens=count,
            seconds_to_first_token=first - self.started,
            tokens_per_second=((count or 1) - 1) / (now - first) if is_timed else 0.0,
            confidence=exp(sum(known) / len(known)) if known else None,
            dropped_messages=2 * len(self.dropped_turns),
            dropped_turns=self.dropped_turns,
            model=label,
            fields=self._field_confidences() if follows_schema else None,
            log_probabilities=tuple(self.log_probabilities) if reports_tokens else (),
        )

    def _field_confidences(self) -> dict[str, float] | None:
        """Return how sure the model is of each value of a JSON answer; None if unknown."""
        spelled = b"".join(token.bytes for token in self.log_probabilities)
        if not spelled.startswith(self.text.encode()):
            return None
        decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        lengths = [len(decoder.decode(token.bytes)) for token in self.log_probabilities]
        values = [token.log_probability for token in self.log_probabilities]
        return field_confidences(self.text, zip(itertools.accumulate(lengths), values, strict=True))


def _count(usage: Any, *path: str) -> int | None:
    """Return a number of tokens from a server's usage; None if it does not say."""
    for name in path:
        usage = usage.get(name) if isinstance(usage, Mapping) else None
    return usage if isinstance(usage, int) and not isinstance(usage, bool) and usage >= 0 else None


class _StatusError(ModelError):
    """A response with a status that is no success."""

    def __init__(self, problem: str, hint: str, status: int, temporary: bool = False) -> None:
        super().__init__(problem, hint)
        self.status = status
        self.temporary = temporary


class _TemporaryError(Exception):
    """A failure after which the same request may succeed.

    Args:
        error: What to tell the user if it does not.
        wait: How many seconds the server asks to wait; None if it does not say.
    """

    def __init__(self, error: ModelError, wait: float | None = None) -> None:
        super().__init__(error.problem)
        self.error = error
        self.wait = wait


class _RefusedField(Exception):
    """A server refuses an optional field of the request, which is named in `args`."""


class RemoteEngine:
    """A `vqa_app.engine.protocol.Engine` whose model runs on a server with OpenAI's API.

    Requests run on an event loop in a thread of the engine's own, so that cancelling one closes its
    connection at once.

    Args:
        server: The server. Its list of models is read at once.

    Raises:
        ModelError: The server cannot be reached, or does not accept the key.
        UsageError: It has several models, and none is named.
    """

    def __init__(self, server: RemoteServer) -> None:
        import httpx

        self._server = server
        is_local = _is_this_machine(server.address)
        if not is_local and (problem := proxy_problem()):
            raise ModelError(*problem)
        headers = {"User-Agent": f"vqa-app/{__version__}"}
        if server.key:
            headers["Authorization"] = f"Bearer {server.key}"
        self._client = httpx.AsyncClient(
            base_url=server.address + "/",
            headers=headers,
            timeout=httpx.Timeout(server.timeout, connect=CONNECT_TIMEOUT),
            limits=httpx.Limits(max_connections=None),
            trust_env=not is_local,  # a proxy cannot reach this machine
            verify=server.address.startswith("https"),  # certificates take long to load
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="remote", daemon=True)
        self._thread.start()
        self._closed = False
        self._places = asyncio.Semaphore(server.concurrency)
        self._waiting = 0
        self._is_ours = False
        """Whether the server is one of vqa-app, which has extensions."""
        self._listed: tuple[str, ...] = ()
        """Names of all models of the server, if it lists them."""
        self._refused: frozenset[str] = frozenset()
        """Optional fields that this server does not take, or takes without effect."""
        self._uris: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()
        try:
            self._model, context_length = self._run(self._find_model())
        except BaseException:
            self.close()
            raise
        self._info = ModelInfo(
            name=f"{server.address}#{self._model}",
            adapter=None,
            architecture="unknown",
            parameters=None,
            device="server",
            dtype="unknown",
            quantization=None,
            context_length=context_length,
            attention_maps=False,
            concurrency=server.concurrency,
        )

    @property
    def info(self) -> ModelInfo:
        """See `Engine.info`."""
        return self._info

    @property
    def max_side(self) -> int:
        """Longer side to which pictures are shrunk before they are sent, in pixels."""
        return self._server.max_side

    def stream(
        self,
        conversation: Conversation,
        options: GenerationOptions | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[Event]:
        """See `Engine.stream`.

        Turns are left out when the server refuses the conversation as too long.
        """
        options = options or GenerationOptions()
        if options.system is not None:
            conversation = conversation.with_system(options.system)
        turns = self._turns(conversation)  # encodes pictures, which must not hold up other answers
        draft = _Draft()
        text = ""
        events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        task = self._submit(self._answer(turns, conversation.system, options, draft, events.put))
        task.add_done_callback(lambda _: events.put(None))
        try:
            while not (cancel is not None and cancel.is_set()):
                try:
                    event = events.get(timeout=None if cancel is None else _POLL_SECONDS)
                except queue.Empty:
                    continue
                if event is not None:
                    text += event.text if isinstance(event, Delta) else ""
                    yield event
                    continue
                if not task.cancelled():
                    yield draft.to_answer(task.result(), self._info.label, options)
                    return
                break  # the engine was closed
            task.cancel()
            stopped = draft.to_answer("cancelled", self._info.label, options)
            yield replace(stopped, text=text)
        finally:
            task.cancel()

    def warm(self, conversation: Conversation, cancel: threading.Event | None = None) -> None:
        """See `Engine.warm`. Encodes the pictures for sending; a server cannot be warmed."""
        self._turns(conversation)

    def count_tokens(self, conversation: Conversation) -> TokenCount:
        """See `Engine.count_tokens`. Only the server knows the numbers."""
        shown = [shrunk(picture, self._server.max_side).image for picture in conversation.pictures]
        pictures = tuple(PictureInput(None, 1, image.width, image.height) for image in shown)
        return TokenCount(None, None if pictures else 0, pictures)

    def score(
        self,
        conversation: Conversation,
        choices: Sequence[str],
        cancel: threading.Event | None = None,
    ) -> list[float]:
        """See `Engine.score`.

        Raises:
            ModelError: The server cannot score answers; see `choose`.
        """
        chosen = self._score(self._messages(conversation), choices, cancel)
        if chosen is None or chosen.probabilities is None:
            raise ModelError(
                f"{self._server.host} does not say how likely given answers are.",
                "Use a server of vqa-app, or a model on this machine.",
            )
        return list(chosen.probabilities)

    def choose(self, conversation: Conversation, choices: Sequence[str]) -> Choice:
        """Return which of the given answers the model chooses; not part of `Engine`.

        A server of vqa-app scores them. Others are made to write one of them, if they take a
        schema in `response_format`.

        Raises:
            ModelError: The server wrote none of them.
        """
        if scored := self._score(self._messages(conversation), choices):
            return scored
        listed = ", ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
        *earlier, question = conversation.messages
        asked = Message(question.role, (*question.parts, f"\nAnswer with one of: {listed}."))
        schema = {
            "type": "object",
            "properties": {"answer": {"type": "string", "enum": list(choices)}},
            "required": ["answer"],
            "additionalProperties": False,
        }
        body = {
            "messages": self._messages(Conversation((*earlier, asked))),
            "temperature": 0,
            _MAX_TOKENS: max(64, 2 * max(map(len, choices))),
            "response_format": _response_format("choice", schema),
        }
        text = _content(_first_choice(self._run(self._complete(body)))).strip()
        try:
            answer, method = str(json.loads(text)["answer"]), "response_format"
        except (*JSON_ERRORS, TypeError, KeyError):  # the server ignores `response_format`
            answer, method = text, "text"
        plain = {choice.strip().rstrip(".").casefold(): choice for choice in reversed(choices)}
        found = answer if answer in choices else plain.get(answer.strip().rstrip(".").casefold())
        if found is None:
            raise ModelError(
                f"{self._server.host} answered {_shown(answer, 80)!r}, none of the choices.",
                "The server ignores `response_format`; ask without --choices.",
            )
        return Choice(found, None, method)

    def image_gain(
        self, conversation: Conversation, answer: str, cancel: threading.Event | None = None
    ) -> float:
        """See `Engine.image_gain`. Servers do not tell how likely a given text is."""
        raise ModelError(
            f"{self._server.host} does not say how likely an answer is with other pictures.",
            "A model on this machine does.",
        )

    def attention_map(
        self, conversation: Conversation, answer: str, cancel: threading.Event | None = None
    ) -> AttentionMap:
        """See `Engine.attention_map`. Servers do not send the model's attention."""
        raise ModelError(
            f"{self._server.host} does not show where its model looked.",
            "A model on this machine does.",
        )

    def model_view(self, picture: Picture) -> list[Image.Image]:
        """Return a picture as the server receives it; not part of `Engine`."""
        return [shrunk(picture, self._server.max_side).image]

    def close(self) -> None:
        """See `Engine.close`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True

        async def finish() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._client.aclose()

        try:
            asyncio.run_coroutine_threadsafe(finish(), self._loop).result(timeout=5.0)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=5.0)
            if not self._thread.is_alive():
                self._loop.close()

    # From any thread to the event loop

    def _submit(self, work: Coroutine[Any, Any, T]) -> Any:
        """Start work on the event loop, and return its future."""
        with self._lock:
            if not self._closed:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        raise ModelError("The connection to the server was closed.", "Choose the model again.")

    def _run(self, work: Coroutine[Any, Any, T], cancel: threading.Event | None = None) -> T:
        future = self._submit(work)
        try:
            while cancel is not None and not (cancel.is_set() or future.done()):
                wait([future], _POLL_SECONDS)
            if cancel is not None and cancel.is_set():
                raise CancelledError
            result: T = future.result()
            return result
        finally:
            future.cancel()  # after Ctrl-C, too

    # Conversations as the API takes them

    def _turns(self, conversation: Conversation) -> list[list[dict[str, Any]]]:
        """Return the messages of each question with its answer; the last has none yet."""
        messages = [self._message(message) for message in conversation.dialogue]
        if not messages:
            raise UsageError("The conversation has no message.", "Ask a question.")
        return [messages[start : start + 2] for start in range(0, len(messages), 2)]

    def _messages(self, conversation: Conversation) -> list[dict[str, Any]]:
        return [self._message(message) for message in conversation.messages]

    def _message(self, message: Message) -> dict[str, Any]:
        if not message.pictures:  # not every server takes a list for text
            return {"role": message.role, "content": message.text}
        parts = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image_url", "image_url": {"url": self._uri(part)}}
            for part in message.parts
        ]
        return {"role": message.role, "content": parts}

    def _uri(self, picture: Picture) -> str:
        with self._lock:
            if known := self._uris.get(picture.digest):
                self._uris.move_to_end(picture.digest)
                return known
        uri = data_uri(shrunk(picture, self._server.max_side))
        with self._lock:
            self._uris[picture.digest] = uri
            if len(self._uris) > _KEPT_PICTURES:
                self._uris.popitem(last=False)
        return uri

    # Everything below runs on the event loop

    async def _find_model(self) -> tuple[str, int | None]:
        """Return the model's name on the server, and its context length if the server says it."""
        named = self._server.model
        try:
            async with self._sent("GET", "models") as response:
                listing = await self._read_json(response)
        except (_TemporaryError, ModelError) as failure:
            error = failure.error if isinstance(failure, _TemporaryError) else failure
            is_about_list = isinstance(error, _StatusError) and error.status not in (401, 403)
            if named is None or not is_about_list:
                raise error from failure
            return named, None  # some servers do not list their models
        entries = listing.get("data")
        entries = [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
        found = {str(e["id"]): e for e in entries if isinstance(e.get("id"), str)}
        if named is None and len(found) != 1:
            raise self._unnamed(list(found))
        self._listed = tuple(found)
        name = named if named is not None else next(iter(found))
        entry = found.get(name, {})
        self._is_ours = entry.get("owned_by") == "vqa-app"
        lengths = (_count(entry, key) for key in ("max_model_len", "context_length"))
        return name, next((length for length in lengths if length), None)

    def _unnamed(self, names: list[str]) -> UsageError | ModelError:
        """Return the error for a server that has several models, or none."""
        address = self._server.address
        if not names:
            return ModelError(
                f"{self._server.host} lists no model.",
                f"If it has one, name it: {address}#NAME",
            )
        return UsageError(
            f"{self._server.host} has several models: {_listing(names)}.",
            f"Name one of them: {address}#{_shown(names[0])}",
        )

    async def _answer(
        self,
        turns: list[list[dict[str, Any]]],
        system: str | None,
        options: GenerationOptions,
        draft: _Draft,
        emit: Callable[[Event], None],
    ) -> FinishReason:
        """Answer the last question, leaving out turns while the server says it is too much."""
        async with self._place(emit):
            draft.started = time.perf_counter()
            emit(Status("looking"))
            kept = dict(enumerate(turns[:-1]))
            opening = [{"role": "system", "content": system}] if system else []
            while True:
                messages = [message for turn in (*kept.values(), turns[-1]) for message in turn]
                body = _generation_fields(options) | {"messages": [*opening, *messages]}
                try:
                    return await self._generate(body, options, draft, emit)
                except ContextOverflowError:
                    if not kept or draft.has_begun:
                        raise
                    oldest = min(kept, key=lambda number: (_has_pictures(kept[number]), number))
                    del kept[oldest]
                    draft.dropped_turns += (oldest,)

    @asynccontextmanager
    async def _place(self, emit: Callable[[Event], None]) -> AsyncIterator[None]:
        """Wait until fewer than the allowed number of questions are in flight."""
        if self._places.locked():
            emit(Status("waiting", self._waiting))
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._places.release()

    async def _generate(
        self,
        body: dict[str, Any],
        options: GenerationOptions,
        draft: _Draft,
        emit: Callable[[Event], None],
    ) -> FinishReason:
        """Stream one answer, and return why it ended."""
        extra = {"stream": True, _USAGE: {"include_usage": True}, _LOGPROBS: True}
        reports_tokens = options.top_log_probabilities is not None
        if options.top_log_probabilities:
            extra[_TOP_LOGPROBS] = options.top_log_probabilities
        if reports_tokens and _LOGPROBS in self._refused:
            raise self._no_log_probabilities()

        async def attempt(fields: dict[str, Any]) -> None:
            if reports_tokens and _LOGPROBS not in fields:
                raise self._no_log_probabilities()
            async with self._sent("POST", "chat/completions", fields) as response:
                await self._read_stream(response, draft, emit, reports_tokens)

        await self._retry(body | extra, attempt, lambda: not draft.has_begun)
        if _LOGPROBS not in self._refused and draft.text and not draft.log_probabilities:
            self._refused |= {_LOGPROBS}  # ignored without a word
            if reports_tokens:
                raise self._no_log_probabilities()
        if draft.finish_reason == "content_filter":
            raise ModelError(
                f"{self._server.host} withheld the answer, or the rest of it (content filter).",
                "Ask something else, or another model.",
            )
        if draft.finish_reason == "length":
            return "length"
        if "response_format" in body and not _is_json(draft.text):
            raise ModelError(
                f"{self._server.host} ignored the schema: its answer is not JSON.",
                "Use a server that takes a JSON schema in `response_format`.",
            )
        return "stop"

    async def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the response to a request that is not streamed."""

        async def attempt(fields: dict[str, Any]) -> dict[str, Any]:
            async with self._sent("POST", "chat/completions", fields) as response:
                return await self._read_json(response)

        async with self._place(lambda event: None):
            return await self._retry(body, attempt, lambda: True)

    async def _retry(
        self,
        body: dict[str, Any],
        attempt: Callable[[dict[str, Any]], Coroutine[Any, Any, T]],
        may_retry: Callable[[], bool],
    ) -> T:
        """Send a request until it succeeds: later if the server is busy, without what it refuses.

        Args:
            body: The request, with all optional fields.
            attempt: Sends it.
            may_retry: Whether nothing of the response has reached anybody yet.
        """
        refused = self._refused
        failures = itertools.count()
        while True:
            try:
                result = await attempt(self._without(body, refused))
            except _RefusedField as error:
                refused |= {error.args[0]}
            except _TemporaryError as failure:
                number = next(failures)
                wait = failure.wait
                if wait is None:
                    wait = min(8.0, _FIRST_WAIT * 2**number) * random.uniform(0.75, 1.25)
                if not may_retry() or number + 1 >= ATTEMPTS or wait > MAX_WAIT:
                    raise failure.error from failure
                await asyncio.sleep(wait)
            else:
                self._refused |= refused
                return result

    def _without(self, body: dict[str, Any], refused: frozenset[str]) -> dict[str, Any]:
        """Return a request without the fields that the server refuses."""
        fields = {"model": self._model, **body}
        for name in refused & fields.keys():
            value = fields.pop(name)
            if name == _MAX_TOKENS:  # OpenAI's newer models have another name for it
                fields["max_completion_tokens"] = value
        return fields

    @asynccontextmanager
    async def _sent(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> AsyncIterator[httpx.Response]:
        """Send a request, and yield the response if it is a success.

        Raises:
            _TemporaryError: The request may succeed later.
            _RefusedField: It may succeed without an optional field.
            VqaError: Any other failure.
        """
        import httpx

        host = self._server.host
        try:
            async with self._client.stream(method, path, json=body) as response:
                if response.status_code != 200:
                    await self._raise_for_status(response, body or {})
                yield response
        except httpx.ConnectTimeout as error:
            raise _TemporaryError(self._unreachable("no answer")) from error
        except httpx.TimeoutException as error:
            raise ModelError(
                f"{host} sent nothing for {self._server.timeout:.0f} seconds.",
                "It may be overloaded, or still loading the model: try again later.",
            ) from error
        except httpx.ConnectError as error:
            raise _TemporaryError(self._unreachable(str(error))) from error
        except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
            raise _TemporaryError(self._broken()) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise ModelError(
                f"{host} cannot be asked: {self._clean(str(error))}.", "Check the address."
            ) from error

    async def _raise_for_status(self, response: httpx.Response, body: dict[str, Any]) -> NoReturn:
        status = response.status_code
        text = await _read_text(response, _MAX_ERROR)
        said = self._clean(_error_message(text))
        for name in _OPTIONAL:
            if name in body and _refuses(name, status, text):
                raise _RefusedField(name)
        error = self._status_error(status, text, said, body)
        if isinstance(error, _StatusError) and error.temporary:
            raise _TemporaryError(error, _retry_after(response.headers.get("retry-after")))
        raise error

    def _status_error(
        self, status: int, text: str, said: str, body: Mapping[str, Any]
    ) -> _StatusError | ContextOverflowError | ImageError:
        """Return the error for a response that is no success, in words."""
        host, model = self._server.host, body.get("model") or self._server.model
        reason = f" It says: {said}" if said else ""
        has_pictures = _has_pictures(body.get("messages", ()))
        temporary = False
        if status in (401, 403):
            problem = f"{host} needs a key."
            if self._server.key:
                problem = f"{host} does not accept the key."
            hint = (
                "Put it into the environment variable VQA_API_KEY where vqa-app is started."
                " Or use --model-api-key."
            )
        elif status in (400, 413, 422, 500) and _CONTEXT.search(text):
            return ContextOverflowError(
                f"The question is too long for {model} on {host}." + reason,
                "Ask a shorter question, about fewer pictures, or allow a shorter answer.",
            )
        elif status == 413:
            return ImageError(
                f"The pictures are too large for {host}." + reason, "Use fewer or smaller ones."
            )
        elif status in (400, 404, 415, 422, 500, 501) and has_pictures and _VISION.search(said):
            problem = f"{model} on {host} does not take these pictures."
            hint = "Choose a model that can see, or check the pictures."
        elif status == 404 and "model" in said.lower():
            problem = f"{host} has no model {model}."
            hint = f"It has: {_listing(self._listed)}." if self._listed else "Check its name."
        elif status in (404, 405) or 300 <= status < 400:
            problem = (
                f"{self._server.address} is not the address of an OpenAI API: it responds"
                f" with status {status}."
            )
            hint = "Check it; most end with /v1."
        elif status == 429:
            problem = f"{host} takes no more questions now."
            hint = "Try again later, or check what the key allows."
            temporary = "insufficient_quota" not in text
        elif status in _BUSY or status >= 500:
            problem = f"{host} failed with status {status}."
            hint = "Try again later."
            temporary = status in _BUSY
        else:
            problem = f"{host} refuses the question with status {status}."
            hint = "Change what it names, or choose another model."
        return _StatusError(problem + reason, hint, status, temporary)

    async def _read_json(self, response: httpx.Response) -> dict[str, Any]:
        text = await _read_text(response, _MAX_LINE)
        try:
            data = json.loads(text)
        except JSON_ERRORS:
            data = None
        if not isinstance(data, dict):
            raise self._no_api(text)
        if data.get("error"):
            raise self._error_in_response(data)
        return data

    async def _read_stream(
        self,
        response: httpx.Response,
        draft: _Draft,
        emit: Callable[[Event], None],
        reports_tokens: bool,
    ) -> None:
        """Read the events of an answer.

        Raises:
            _TemporaryError: The connection broke before the first piece.
            ModelError: It broke later, or the server sends something else.
        """
        ended = begun = False
        data = ""
        async for data in _events(response):
            if data.strip() == "[DONE]":
                ended = True
                break
            try:
                chunk = json.loads(data)
            except JSON_ERRORS:
                chunk = None
            if not isinstance(chunk, dict):
                raise self._no_api(data)
            if chunk.get("error"):
                raise self._error_in_response(chunk)
            if isinstance(chunk.get("usage"), dict):
                draft.usage = chunk["usage"]
            if not (choice := _first_choice(chunk)):
                continue
            if not begun:
                emit(Status("answering"))
                begun = True
            if "message" in choice:  # the server ignored `stream`
                draft.streamed, ended = False, True
            tokens = _log_probabilities(choice)
            draft.log_probabilities += tokens
            piece = draft.push(_content(choice))
            if not reports_tokens:
                tokens = []
            if piece or tokens:
                emit(Delta(piece, tuple(tokens)))
            if isinstance(reason := choice.get("finish_reason"), str):
                draft.finish_reason = reason
        if data and not begun:
            raise self._no_api(data)
        if not (ended or draft.finish_reason):
            raise _TemporaryError(self._broken())
        if piece := draft.push("", last=True):
            emit(Delta(piece))

    def _error_in_response(self, data: Mapping[str, Any]) -> Exception:
        """Return the error for one that a server sends after it has begun to respond."""
        text = json.dumps(data)
        said = self._clean(_error_message(text))
        found = data["error"]
        code = found.get("code") if isinstance(found, dict) else None
        if _CONTEXT.search(text):
            return self._status_error(400, text, said, {})
        error = ModelError(f"{self._server.host} failed." + f" It says: {said}", "Try again later.")
        return _TemporaryError(error) if code in _BUSY else error

    def _no_log_probabilities(self) -> ModelError:
        return ModelError(
            f"{self._server.host} does not send log probabilities of tokens.",
            "Ask without them, or use another server.",
        )

    def _no_api(self, text: str) -> ModelError:
        return ModelError(
            f"{self._server.address} does not speak OpenAI's API: it sent"
            f" {self._clean(text[:60])!r}.",
            "Check the address; most end with /v1.",
        )

    def _unreachable(self, reason: str) -> ModelError:
        return ModelError(
            f"Could not reach {self._server.host}: {self._clean(reason).rstrip('.')}.",
            "Check the address, and whether the server runs.",
        )

    def _broken(self) -> ModelError:
        return ModelError(
            f"The connection to {self._server.host} broke before the answer was complete.",
            "Try again.",
        )

    def _clean(self, text: str) -> str:
        """Return a server's words for a message: printable, short, and without the key."""
        if self._server.key:
            text = text.replace(self._server.key, "…")
        return _shown(text)

    def _score(
        self,
        messages: list[dict[str, Any]],
        choices: Sequence[str],
        cancel: threading.Event | None = None,
    ) -> Choice | None:
        """Let the server score the answers; None if it is none of vqa-app."""
        if not self._is_ours:
            return None
        body = {"messages": messages, _CHOICES: {"choices": list(choices)}}
        scored = _first_choice(self._run(self._complete(body), cancel)).get(_CHOICES)
        found = scored.get("choices") if isinstance(scored, dict) else None
        try:
            shares = {one["text"]: float(one["probability"]) for one in found or ()}
            probabilities = tuple(shares[choice] for choice in choices)
        except (TypeError, ValueError, KeyError):
            return None
        best = max(range(len(choices)), key=probabilities.__getitem__)
        return Choice(choices[best], probabilities, "vqa.choices")


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(map(_shown, names[:_LISTED_MODELS]))
    more = len(names) - _LISTED_MODELS
    return f"{shown} and {more} more" if more > 0 else shown


def _is_this_machine(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _has_pictures(messages: Sequence[Mapping[str, Any]]) -> bool:
    return any(isinstance(message.get("content"), list) for message in messages)


def _generation_fields(options: GenerationOptions) -> dict[str, Any]:
    """Return the fields of a request for the options that somebody chose."""
    chosen = {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "repetition_penalty": options.repetition_penalty,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
        "seed": options.seed,
        "stop": [replace_surrogates(text) for text in options.stop] or None,
    }
    fields: dict[str, Any] = {k: v for k, v in chosen.items() if v is not None}
    if options.schema is not None:
        fields["response_format"] = _response_format("answer", json.loads(options.schema))
    return {_MAX_TOKENS: options.max_new_tokens, **fields}


def _response_format(name: str, schema: Any) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": {"name": name, "strict": True, "schema": schema},
    }


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except JSON_ERRORS:
        return False
    return True


def _first_choice(chunk: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the first choice of a response or chunk; {} if there is none."""
    choices = chunk.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def _content(choice: Mapping[str, Any]) -> str:
    """Return the text of a choice, or of a piece of it."""
    message = choice.get("message") or choice.get("delta")
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):  # parts, as in requests
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _log_probabilities(choice: Mapping[str, Any]) -> list[TokenLogProbability]:
    found = choice.get("logprobs")
    return _tokens(found.get("content")) if isinstance(found, dict) else []


def _tokens(entries: Any) -> list[TokenLogProbability]:
    """Return tokens with their log probabilities; entries of another form are left out."""
    found = []
    for entry in entries if isinstance(entries, list) else ():
        value = entry.get("logprob") if isinstance(entry, dict) else None
        if not isinstance(value, (int, float)) or not isfinite(value):
            continue
        text = replace_surrogates(str(entry.get("token") or ""))
        try:
            spelled = bytes(entry["bytes"])
        except (KeyError, TypeError, ValueError):  # llama-server and others leave them out
            spelled = text.encode()
        top = tuple(_tokens(entry.get("top_logprobs")))
        found.append(TokenLogProbability(text, spelled, min(0.0, value), top))
    return found


def _refuses(name: str, status: int, text: str) -> bool:
    """Return whether a response says that the server does not take a field."""
    if status not in (400, 403, 422, 501):
        return False
    if name == _MAX_TOKENS:
        return "max_completion_tokens" in text and not _CONTEXT.search(text)
    return re.search(rf"\b{name}\b", text, re.IGNORECASE) is not None


def _retry_after(value: str | None) -> float | None:
    """Return how many seconds a Retry-After header asks to wait."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if isfinite(seconds) else None


def _error_message(text: str) -> str:
    """Return what the body of an error says: OpenAI's form, FastAPI's, or plain text."""
    try:
        data = json.loads(text)
    except JSON_ERRORS:
        return "" if text.lstrip()[:1] == "<" else text
    if isinstance(data, list) and data:  # Gemini
        data = data[0]
    if not isinstance(data, dict):
        return str(data)
    found = data.get("error") or data.get("detail") or data.get("message") or ""
    if isinstance(found, dict):
        found = found.get("message") or found.get("type") or ""
    if isinstance(found, list):
        entries = [entry for entry in found if isinstance(entry, dict)]
        found = "; ".join(
            f"{'.'.join(map(str, entry.get('loc', ())))}: {entry.get('msg')}" for entry in entries
        )
    return str(found)


def _shown(text: str, most: int = 300) -> str:
    """Return a server's text for a message, on one line without control characters."""
    words = " ".join(replace_surrogates(text).split())
    plain = "".join(letter if letter.isprintable() else "?" for letter in words)
    return plain if len(plain) <= most else plain[: most - 1] + "…"


async def _read_text(response: httpx.Response, most: int) -> str:
    """Return the body of a response, or its first `most` bytes."""
    data = bytearray()
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) >= most:
            break
    return bytes(data[:most]).decode("utf-8", errors="replace")


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the lines of a response.

    httpx's own iterator also splits at characters such as U+2028, which JSON may contain.
    """
    rest = bytearray()
    async for piece in response.aiter_bytes():
        rest += piece
        if b"\n" in piece:
            *lines, last = bytes(rest).split(b"\n")
            for line in lines:
                yield line.rstrip(b"\r")
            rest = bytearray(last)
        elif len(rest) > _MAX_LINE:
            break
    if rest:
        yield bytes(rest)


async def _events(response: httpx.Response) -> AsyncIterator[str]:
    """Yield the data of server-sent events, or the whole body if it consists of something else."""
    data: list[bytes] = []
    other: list[bytes] = []
    async for line in _lines(response):
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line.strip():  # the end of an event
            if data:
                yield b"\n".join(data).decode("utf-8", errors="replace")
            data = []
        elif not line.startswith(_FIELDS):
            other.append(line)
    for rest in (data, other):
        if rest:
            yield b"\n".join(rest).decode("utf-8", errors="replace")
