"""The browser application on a free port, in the process of the tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from tests.waiting import PATIENCE
from ui.app import Application, create_application
from vqa_app.engine.protocol import Engine
from vqa_app.serving.engine_pool import LoadProgress, ModelChoice
from vqa_app.serving.listener import address_of, listen


@dataclass
class RunningServer:
    address: str
    application: Application


@contextmanager
def running(
    engines: dict[str, Engine],
    data_dir: Path,
    *,
    users: dict[str, str] | None = None,
    port: int = 0,
    preload: bool = True,
    load: Callable[[ModelChoice, LoadProgress], Engine] | None = None,
    choices: Callable[[], Iterable[ModelChoice]] | None = None,
    train: Callable[..., Any] | None = None,
    root_path: str = "",
    picture_hosts: Iterable[str] = (),
) -> Iterator[RunningServer]:
    """Serve `engines`, the first of which is the default, until the block ends."""
    listed = [ModelChoice(key, key.title(), "for tests", "Included", key) for key in engines]
    application = create_application(
        data_dir, load or (lambda choice, _: engines[choice.key]), choices or (lambda: listed),
        next(iter(choices())).key if choices else listed[0].key, users=users, train=train,
        root_path=root_path, picture_hosts=picture_hosts,
    )  # fmt: skip
    listener = listen("127.0.0.1", port)
    if preload:
        application.service.pool.start_loading()
        assert application.service.pool.wait(timeout=300), "the model was not loaded in time"
    server = uvicorn.Server(
        uvicorn.Config(application.asgi, log_level="error", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield RunningServer(address_of(listener), application)
    finally:
        application.service.stop_all(patience=10)
        server.should_exit = True
        thread.join(10)
        application.close()
        listener.close()


@contextmanager
def open_client(server: RunningServer) -> Iterator[httpx.Client]:
    """Open a client that has visited the page, and so has a cookie of its own."""
    with httpx.Client(base_url=server.address, timeout=PATIENCE) as client:
        client.get("/")
        yield client
