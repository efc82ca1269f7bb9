"""The page's desk with engines of one's own making, for tests without a server or gradio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from ui.chat.service import ChatService
from ui.storage.database import Store
from ui.storage.picture_files import PictureStore
from vqa_app.engine.protocol import Engine
from vqa_app.serving.engine_pool import EnginePool, ModelChoice


def choice(key: str) -> ModelChoice:
    return ModelChoice(key, key.title(), "small", "Built in", key)


class ChatHarness:
    """A desk, and what stands behind it.

    Args:
        folder: where chats and pictures are kept.
        engines: by the key of the model that the page offers; the first is the default. An error
            in place of an engine is what loading it raises.
    """

    def __init__(self, folder: Path, engines: dict[str, Engine | Exception]) -> None:
        self.engines = engines
        self.pool = EnginePool(
            self._load, lambda: [choice(key) for key in engines], next(iter(engines))
        )
        self.store = Store(folder / "chats.sqlite")
        self.picture_store = PictureStore(folder / "pictures")
        self.service = ChatService(self.store, self.picture_store, self.pool)

    def _load(self, chosen: ModelChoice, progress: Any) -> Engine:
        engine = self.engines[chosen.key]
        if isinstance(engine, Exception):
            raise engine
        return engine

    def picture(self, owner: str = "ann", colour: str = "red", name: str = "red.png") -> str:
        """The digest of a new picture of `owner`'s."""
        picture = self.picture_store.add(Image.new("RGB", (32, 24), colour), name)
        self.store.remember_picture(owner, picture.digest, name, {"changes": []})
        return picture.digest

    def ask(self, question: str, owner: str = "ann", **request: Any) -> tuple[list[Any], Any]:
        """All updates of a question, and the view after it."""
        updates = list(self.service.ask(owner, {"question": question, **request}))
        return updates, updates[-1]["view"]

    def close(self) -> None:
        self.service.stop_all(patience=10)
        self.pool.close()
        self.store.close()
