"""Ahead of the question: its pictures are encoded while it is still being written."""

from __future__ import annotations

import threading
from contextlib import ExitStack

from ui.chat.requests import PageRequest, PageUpdate, conversation_id, log_unexpected
from ui.chat.service import ChatService
from ui.chat.views import build_conversation
from ui.storage.database import Turn
from vqa_app.prompts.conversation import Conversation


class Warmup:
    """The latest of every owner; a newer one ends it."""

    def __init__(self, service: ChatService) -> None:
        self.service = service
        self._latest: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def begin(self, owner: str, request: PageRequest) -> PageUpdate:
        """Encodes the request's `pictures` in the background, behind the turns of `conversation`;
        nothing where the model is not loaded.
        """
        engine = self.service.engine_for(owner)
        pictures = self.service.pictures(owner, request)
        if engine is None or not pictures:
            return {}
        asked = self._draft(owner, request, pictures)
        stack = ExitStack()
        cancel = stack.enter_context(self.service.cancel_event())
        with self._lock:
            if older := self._latest.get(owner):
                older.set()
            self._latest[owner] = cancel

        def run() -> None:
            with stack:
                try:
                    engine.warm(asked, cancel)
                except Exception as error:
                    log_unexpected(error)  # the question itself will meet it again, and say so

        threading.Thread(target=run, name="warm", daemon=True).start()
        return {}

    def _draft(self, owner: str, request: PageRequest, pictures: list[str]) -> Conversation:
        store = self.service.store
        conversation = conversation_id(request)
        turns: list[Turn] = []
        if conversation is not None and request.get("replaces"):
            old = store.turn(owner, conversation, str(request["replaces"]))
            turns = store.path_to(owner, conversation, old.parent)
        elif conversation is not None:
            turns = store.path(owner, conversation)
        draft = Turn("", None, "", tuple(pictures), "", "answering", {})
        system = self.service.settings(owner).system
        return build_conversation([*turns, draft], self.service.picture_store.get, system)
