"""The page and the requests that it makes of the server.

The page is plain HTML, CSS and JavaScript from `ui/static`. It posts each request as JSON to
`vqa/requests/NAME` and reads the reply line by line, one update (a JSON object) per line. An empty
line says that the server is still at work, so that the page can tell slow from lost.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import aclosing
from functools import partial
from typing import TypeAlias

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse

from ui import texts
from ui.chat import attention_view
from ui.chat.comparison import compare_models
from ui.chat.conversation_actions import handle_action
from ui.chat.estimate import estimate_question
from ui.chat.model_downloads import handle_models
from ui.chat.model_picker import pick_model
from ui.chat.requests import (
    PageRequest,
    PageUpdate,
    error_update,
    log_error,
    parse_request,
    require_owner,
)
from ui.chat.service import ChatService
from ui.chat.warmup import Warmup
from ui.teaching.library import Library
from ui.teaching.row_actions import teach
from ui.teaching.taught_rows import TaughtRowStore
from ui.teaching.training import TrainingService
from ui.web.routes import STATIC, language_of, missing, problem, read_body
from vqa_app.errors import UsageError, VqaError

MAX_REQUEST = 2**20
"""Largest request of the page, in bytes; a question has at most 20,000 characters."""
MAX_THREADS = 32
"""Threads that requests of the page may hold at once."""
MAX_ATTENTION_VIEWS = 4
"""Attention views that may wait for the model at once; each holds a thread until it has it."""
HEARTBEAT = 1.0
"""Seconds without an update after which an empty line is sent."""

Handler: TypeAlias = Callable[[str, PageRequest], PageUpdate | Iterator[PageUpdate | None]]
"""Takes the owner and the request; returns one update or yields several. None is a heartbeat."""


def page_routes(
    service: ChatService, taught_rows: TaughtRowStore, training: TrainingService
) -> APIRouter:
    """Return the routes of the page itself and of its requests."""
    router = APIRouter()
    threads = CapacityLimiter(MAX_THREADS)
    attention_threads = CapacityLimiter(MAX_ATTENTION_VIEWS)
    handlers = request_handlers(service, taught_rows, training)

    @router.api_route("/", methods=["GET", "HEAD"])
    def page(request: Request) -> Response:
        return HTMLResponse(
            texts.fill((STATIC / "page.html").read_text("utf-8"), language_of(request)),
            headers={"cache-control": "no-cache", "vary": "Accept-Language, Cookie"},
        )

    @router.post("/vqa/requests/{name}")
    async def answer(request: Request, name: str) -> Response:
        handler = handlers.get(name)
        if handler is None:
            return missing()
        data = await read_body(request, MAX_REQUEST)
        if data is None:
            return problem(UsageError("The request is too large.", "Shorten the question."), 413)
        try:
            updates = _updates(
                partial(handler, require_owner(request.state.owner), parse_request(data)),
                attention_threads if name == "look" else threads,
            )
            first = await anext(updates, b"")
        except Exception as error:
            return problem(error, 400 if isinstance(error, VqaError) else 500)
        return StreamingResponse(
            _prepended(first, updates),
            media_type="application/x-ndjson",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    return router


def request_handlers(
    service: ChatService, taught_rows: TaughtRowStore, training: TrainingService
) -> dict[str, Handler]:
    """Return what handles the requests of each name."""
    return {
        "ask": service.ask,
        "pick": lambda owner, request: pick_model(service, owner, request),
        "models": lambda owner, request: handle_models(service, owner, request),
        "compare": lambda owner, request: compare_models(service, owner, request),
        "act": lambda owner, request: handle_action(service, owner, request),
        "warm": Warmup(service).start,
        "estimate": lambda owner, request: estimate_question(service, owner, request),
        "look": lambda owner, request: _attention_view(service, owner, request),
        "teach": lambda owner, request: teach(service, taught_rows, owner, request),
        "train": lambda owner, request: _train(training, owner, request),
        "library": Library(training).handle,
    }


async def _prepended(first: bytes, updates: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(updates):
        yield first
        async for update in updates:
            yield update


async def _updates(
    handler: Callable[[], PageUpdate | Iterator[PageUpdate | None]], threads: CapacityLimiter
) -> AsyncGenerator[bytes]:
    """Yield a handler's updates as lines, and an empty line wherever it sends none for a while.

    The handler runs in a thread, one update at a time; it is closed when the page goes away.

    Raises:
        Exception: The handler's error, if it comes before anything was yielded. Later ones become
            updates.
    """
    iterator: Iterator[PageUpdate | None] = iter(())

    def first() -> PageUpdate | None:
        nonlocal iterator
        result = handler()
        iterator = iter((result,)) if isinstance(result, dict) else result
        return next(iterator)

    def close(task: asyncio.Future[tuple[PageUpdate | None, bool]] | None = None) -> None:
        if isinstance(iterator, Generator):
            iterator.close()
        if task is not None and not task.cancelled() and (error := task.exception()):
            log_error(error)

    step: Callable[[], PageUpdate | None] = first
    sent = False
    task: asyncio.Future[tuple[PageUpdate | None, bool]] | None = None
    try:
        while True:
            task = asyncio.ensure_future(to_thread.run_sync(_until_end, step, limiter=threads))
            while not (await asyncio.wait({task}, timeout=HEARTBEAT))[0]:
                sent = True
                yield b"\n"
            update, ended = task.result()
            if ended:
                return
            sent = True
            yield _line(update) if update is not None else b"\n"
            step = partial(next, iterator)
    except Exception as error:
        if not sent:
            raise
        yield _line(error_update(error))
    finally:
        # If the page has gone, a step may still be running in its thread.
        if task is None or task.done():
            close()
        else:
            task.add_done_callback(close)


def _until_end(step: Callable[[], PageUpdate | None]) -> tuple[PageUpdate | None, bool]:
    # StopIteration cannot pass through a future.
    try:
        return step(), False
    except StopIteration:
        return None, True


def _line(update: PageUpdate) -> bytes:
    return json.dumps(update, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _attention_view(service: ChatService, owner: str, request: PageRequest) -> PageUpdate:
    view = (
        attention_view.describe_picture
        if request.get("do") == "saw"
        else attention_view.explain_answer
    )
    return view(service, owner, request)


def _train(training: TrainingService, owner: str, request: PageRequest) -> PageUpdate:
    match request.get("do"):
        case "check":
            return training.check(owner, request)
        case "start":
            return training.start(owner, request)
        case "go-on":
            return training.resume(owner)
        case "stop":
            return training.stop(owner)
    return training.status(owner)
