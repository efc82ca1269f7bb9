"""The chat service with fake engines, for tests without a server."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from ui.chat.service import ChatService
from ui.storage.database import Store
from ui.storage.picture_files import PictureStore
from ui.texts import catalogue, write
from vqa_app.engine.protocol import Engine
from vqa_app.serving.engine_pool import EnginePool, LoadProgress, ModelChoice


def choice(key: str) -> ModelChoice:
    return ModelChoice(key, key.title(), "small", "Built in", key)


def make_downloading_pool(key: str) -> tuple[EnginePool, threading.Event]:
    """Return a pool whose model never finishes loading, and the event of its start."""
    started = threading.Event()

    def load(chosen: ModelChoice, progress: LoadProgress) -> Engine:
        started.set()
        while True:
            time.sleep(0.01)
            progress("Downloading", 0.5)

    return EnginePool(load, lambda: [choice(key)], key), started


def in_english(message: Any) -> str:
    """Return what an English page shows for a message: a text, an entry, or a list of these."""
    if isinstance(message, list):
        return " ".join(map(in_english, message))
    if not isinstance(message, dict):
        return str(message)
    if "bytes" in message or "share" in message:
        return write(message, "en")
    text, values = catalogue("en")[message["key"]], message["values"]
    if not isinstance(text, str):
        text = text["one" if values["count"] == 1 else "other"]
    return text.format(**{name: in_english(value) for name, value in values.items()})


class ChatHarness:
    """A chat service with its stores and its pool.

    Args:
        folder: Where conversations and pictures are stored.
        engines: Engines by the key of their model; the first is the default. An exception instead
            of an engine is raised when the model is loaded.

    Attributes:
        sources: Sources of models by key, where they are not their keys.
    """

    def __init__(self, folder: Path, engines: dict[str, Engine | Exception]) -> None:
        self.engines = engines
        self.sources: dict[str, str] = {}
        self.pool = EnginePool(
            self._load,
            lambda: [replace(choice(key), source=self.sources.get(key, key)) for key in engines],
            next(iter(engines)),
        )
        self.picture_store = PictureStore(folder / "pictures")
        self.store = Store(folder / "chats.sqlite", self.picture_store.remove)
        self.service = ChatService(self.store, self.picture_store, self.pool)

    def _load(self, chosen: ModelChoice, progress: LoadProgress) -> Engine:
        engine = self.engines[chosen.key]
        if isinstance(engine, Exception):
            raise engine
        return engine

    def picture(self, owner: str = "ann", colour: str = "red", name: str = "red.png") -> str:
        """Store a picture of `owner`; return its digest."""
        picture = self.picture_store.add(Image.new("RGB", (32, 24), colour), name)
        self.store.add_picture(owner, picture.digest, name, {"changes": []})
        return picture.digest

    def ask(self, question: str, owner: str = "ann", **request: Any) -> tuple[list[Any], Any]:
        """Ask a question; return all updates, and the view at the end."""
        updates = list(self.service.ask(owner, {"question": question, **request}))
        return updates, updates[-1]["view"]

    def close(self) -> None:
        self.service.stop_all(patience=10)
        self.pool.close()
        self.store.close()
