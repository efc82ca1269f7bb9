"""A reverse proxy like nginx on a sub-path: it strips the prefix and keeps the Host header."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from vqa_app.serving.listener import address_of, listen

_HOP_BY_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade"}


@contextmanager
def proxy(target: str, prefix: str) -> Iterator[str]:
    """Serve the server at `target` under `prefix` on another port.

    Yields:
        The address, with the prefix.
    """
    client = httpx.AsyncClient(base_url=target, timeout=None)

    async def forward(request: Request) -> Response:
        path = request.url.path.removeprefix(prefix)
        if path == request.url.path or not path.startswith("/"):
            return PlainTextResponse("Nothing here.", 404)
        url = httpx.URL(path=path, query=request.url.query.encode())
        sent = client.build_request(
            request.method, url, headers=request.headers.raw, content=request.stream()
        )
        answer = await client.send(sent, stream=True)
        response = StreamingResponse(
            answer.aiter_raw(), answer.status_code, background=BackgroundTask(answer.aclose)
        )
        response.raw_headers = [
            (name, value) for name, value in answer.headers.raw if name.lower() not in _HOP_BY_HOP
        ]
        return response

    methods = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]
    app = Starlette(routes=[Route("/{path:path}", forward, methods=methods)])
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, lifespan="off")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield address_of(listener, prefix)
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
