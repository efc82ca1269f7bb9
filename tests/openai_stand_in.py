"""A server with OpenAI's API that responds as a test tells it to, and remembers all requests."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from tests.waiting import PATIENCE
from vqa_app.serving.listener import address_of, listen

Reply = Callable[[dict[str, Any]], Awaitable[Response]]
DONE = "data: [DONE]\n\n"


def event(data: Any) -> str:
    return f"data: {json.dumps(data)}\n\n"


def delta(text: str | None = None, finish: str | None = None, **more: Any) -> str:
    """Return a chunk without id and index, which not every server sends."""
    content = {} if text is None else {"content": text}
    return event({"choices": [{"delta": content, "finish_reason": finish, **more}]})


def logprob(text: str, value: float) -> str:
    return delta(text, logprobs={"content": [{"token": text, "logprob": value, "bytes": None}]})


def usage(**counts: Any) -> str:
    return event({"choices": [], "usage": counts})


def stream(*pieces: str, cut: bool = False) -> Reply:
    """Return a reply that sends these pieces; `cut` then breaks the connection."""

    async def reply(body: dict[str, Any]) -> Response:
        async def send() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece.encode()
            if cut:
                raise ConnectionAbortedError("as the test wants it")

        return StreamingResponse(send(), media_type="text/event-stream")

    return reply


def respond(status: int, content: Any, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def reply(body: dict[str, Any]) -> Response:
        if isinstance(content, str):
            return Response(content, status, named, media_type="text/html")
        text = json.dumps(content)  # lone surrogates become escapes
        return Response(text, status, named, media_type="application/json")

    return reply


def refuse(status: int, message: str, **headers: str) -> Reply:
    """Return an error in OpenAI's form."""
    return respond(status, {"error": {"message": message, "type": "error"}}, **headers)


ANSWER = (delta(""), delta("re"), delta("d"), delta(finish="stop"), DONE)


@dataclass
class StandIn:
    """The server while it runs."""

    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "tiny"}])
    replies: deque[Reply] = field(default_factory=deque)
    """What it responds next; after that, `otherwise`."""
    otherwise: Reply = field(default_factory=lambda: stream(*ANSWER))
    list_models: Reply | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    left: threading.Event = field(default_factory=threading.Event)
    """Set when a client has closed its connection before the end."""
    address: str = ""

    def reset(self) -> None:
        """Forget everything but the address."""
        self.__dict__ |= {**StandIn().__dict__, "address": self.address}

    def script(self, *replies: Reply) -> None:
        self.replies.extend(replies)

    async def _chat(self, request: Request) -> Response:
        self.requests.append(await request.json())
        self.headers.append(dict(request.headers))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            reply = self.replies.popleft() if self.replies else self.otherwise
            return await reply(self.requests[-1])
        finally:
            self.in_flight -= 1

    async def _models(self, request: Request) -> Response:
        self.headers.append(dict(request.headers))
        if self.list_models is not None:
            return await self.list_models({})
        return JSONResponse({"object": "list", "data": self.models})

    def endless(self, *pieces: str) -> Reply:
        """Return a reply that sends these pieces and then nothing, until the client has gone."""

        async def reply(body: dict[str, Any]) -> Response:
            async def send() -> AsyncIterator[bytes]:
                try:
                    for piece in pieces:
                        yield piece.encode()
                    await asyncio.sleep(PATIENCE)
                finally:
                    self.left.set()

            return StreamingResponse(send(), media_type="text/event-stream")

        return reply


@contextmanager
def stand_in(models: Sequence[str] = ("tiny",)) -> Iterator[StandIn]:
    """Run a stand-in on a free port until the block ends."""
    server = StandIn([{"id": name} for name in models])
    app = FastAPI()
    app.add_api_route("/v1/chat/completions", server._chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/models", server._models, response_model=None)
    listener = listen("127.0.0.1", 0)
    server.address = address_of(listener).rstrip("/") + "/v1"
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        running.should_exit = True
        thread.join(10)
        listener.close()
