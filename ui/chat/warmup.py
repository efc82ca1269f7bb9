"""Encodes the pictures of a question while the person is still writing it."""

from __future__ import annotations

import threading
from contextlib import ExitStack

from ui.chat.requests import PageRequest, PageUpdate, log_error
from ui.chat.service import ChatService
from vqa_app.errors import ModelError


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
        if loaded is None or not self.service.requested_pictures(owner, request):
            return {}
        model = self.service.settings(owner).model
        _, draft = self.service.draft(owner, request, "", loaded.info)
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
