"""OpenAI's API on a free port, in the process of the tests."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import uvicorn
from PIL import Image

from tests.ui.harness import choice
from tests.waiting import PATIENCE
from vqa_app.engine.protocol import Engine
from vqa_app.serving.api_server import api_application
from vqa_app.serving.engine_pool import EnginePool, ModelChoice
from vqa_app.serving.listener import address_of, listen
from vqa_app.serving.openai_api import ChatApi


@dataclass
class ApiServer:
    address: str
    """Of `/v1`."""
    api: ChatApi


@contextmanager
def serving(
    engine: Engine,
    *,
    keys: Mapping[str, str] | None = None,
    load: Any = None,
    listed: Sequence[ModelChoice] = (),
    **options: Any,
) -> Iterator[ApiServer]:
    """Serve an engine as the model `fake`, or the first of `listed`, until the block ends."""
    choices = list(listed) or [replace(choice("fake"), label="fake")]
    pool = EnginePool(load or (lambda chosen, _: engine), lambda: choices, choices[0].key)
    pool.start_loading()
    api = ChatApi(lambda owner: pool, **options)
    listener = listen("127.0.0.1", 0)
    app = api_application(api, keys=keys)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield ApiServer(f"{address_of(listener)}v1", api)
    finally:
        api.stop_all()
        server.should_exit = True
        thread.join(PATIENCE)
        pool.close()
        listener.close()


def picture_uri(colour: str = "red", size: tuple[int, int] = (32, 24)) -> str:
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def asking(text: str, *urls: str, **picture: Any) -> list[dict[str, Any]]:
    """Return messages with one question about pictures."""
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": url, **picture}} for url in urls
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
