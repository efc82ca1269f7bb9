"""Encodes the pictures of a question while the person is still writing it."""

from __future__ import annotations

import threading
from contextlib import ExitStack

from ui.chat.requests import PageRequest, PageUpdate, conversation_id, log_error
from ui.chat.service import ChatService
from ui.chat.views import build_conversation
from ui.storage.database import StoredTurn
from vqa_app.engine.protocol import ModelInfo
from vqa_app.errors import ModelError
from vqa_app.prompts.conversation import Conversation


class Warmup:
    """Runs at most one warm-up per owner; a newer one cancels it."""

    def __init__(self, service: ChatService) -> None:
        self.service = service
        self._latest: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def start(self, owner: str, request: PageRequest) -> PageUpdate:
        """Encode `pictures` after the turns of `conversation`, in the background.

        Does nothing if the model is not loaded.
        """
        loaded = self.service.engine_for(owner)
        pictures = self.service.requested_pictures(owner, request)
        if loaded is None or not pictures:
            return {}
        model = self.service.settings(owner).model
        draft = self._draft(owner, request, pictures, loaded.info)
        stack = ExitStack()
        cancel = stack.enter_context(self.service.cancel_event())
        with self._lock:
            if older := self._latest.get(owner):
                older.set()
            self._latest[owner] = cancel

        def run() -> None:
            with stack:
                try:
                    with self.service.models(owner).lease(model, timeout=0) as engine:
                        engine.warm(draft, cancel)
                except ModelError:
                    pass  # unloaded meanwhile
                except Exception as error:
                    log_error(error)  # the person sees it when the question itself fails

        threading.Thread(target=run, name="warm", daemon=True).start()
        return {}

    def _draft(
        self, owner: str, request: PageRequest, pictures: list[str], model: ModelInfo
    ) -> Conversation:
        """Return the conversation as it will be asked, with an empty question at its end."""
        store = self.service.store
        conversation = conversation_id(request)
        turns: list[StoredTurn] = []
        if conversation is not None and request.get("replaces"):
            replaced = store.turn(owner, conversation, str(request["replaces"]))
            turns = store.path_to(owner, conversation, replaced.parent)
        elif conversation is not None:
            turns = store.path(owner, conversation)
        draft = StoredTurn("", None, "", tuple(pictures), "", "answering", {})
        system = self.service.settings(owner).system_for(model)
        return build_conversation([*turns, draft], self.service.picture_store.get, system)
