"""What the page can ask for, as plain generators and functions without gradio.

Every one takes the owner and the page's request, a dict of JSON values that is never trusted: ids
are looked up among the owner's own, pictures among those the owner brought, history comes from the
store. What they give back are dicts that the page draws; see `ui/static/*.js`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

from ui.chat.answer import RunningAnswer
from ui.chat.requests import (
    PageRequest,
    PageUpdate,
    check_picture_count,
    conversation_id,
    parse_question,
    user_message,
)
from ui.chat.settings import ChatSettings
from ui.chat.views import build_conversation, conversation_view, make_title
from ui.storage.database import Store, Turn
from ui.storage.picture_files import PictureStore
from vqa_app.engine.protocol import Engine, GenerationOptions
from vqa_app.errors import ModelError, UsageError
from vqa_app.pictures.picture import ImageLimits
from vqa_app.prompts.conversation import Conversation
from vqa_app.serving.engine_pool import EnginePool


class ChatService:
    """Serves everybody's requests on one store and one hub.

    Args:
        allow_any_model: whether people may name hub models in the browser.
    """

    def __init__(
        self,
        store: Store,
        picture_store: PictureStore,
        pool: EnginePool,
        allow_any_model: bool = False,
    ) -> None:
        self.store, self.picture_store, self.pool = store, picture_store, pool
        self.allow_any_model = allow_any_model
        self.pending_models: dict[str, str] = {}
        """By owner, the key of the model that loads to be theirs."""
        self._answering: dict[str, RunningAnswer] = {}
        """By turn."""
        self._others: dict[threading.Event, str] = {}
        """Of answers that are kept nowhere, by what ends them: the owner."""
        self._lock, self._opening = threading.Lock(), threading.Lock()

    # -- asking ------------------------------------------------------------------------------------

    def ask(self, owner: str, request: PageRequest) -> Iterator[PageUpdate | None]:
        """Answers a question, asks one again, or asks a changed one in its place.

        The request holds `question` and `pictures`, and `replaces` (a turn's id) for a changed
        question; or `again` (a turn's id) for another answer to the same one. `conversation` is
        None for a new one. With `follow` nothing is asked: what is being written there is shown.
        The answer goes on when nobody follows it any more.

        Yields:
            `view` when turns change, `live` while the answer grows, None at every idle beat; `gone`
            with the conversation's id where it was deleted meanwhile.
        """
        if request.get("follow"):
            conversation = str(request.get("conversation"))
            answering = self._running(owner, conversation)
        else:
            answering = self._begin(owner, request)
            conversation = answering.conversation
        yield {"view": self.view(owner, conversation), **self.conversation_list(owner)}
        if answering is None:
            return
        yield from answering.follow()
        if self.store.owns(owner, conversation):
            yield {"view": self.view(owner, conversation), **self.conversation_list(owner)}
        else:
            yield {"gone": conversation, **self.conversation_list(owner)}

    def _begin(self, owner: str, request: PageRequest) -> RunningAnswer:
        settings = self.settings(owner)

        def asked(engine: Engine) -> tuple[Conversation, GenerationOptions]:
            path = self.store.path_to(owner, conversation, turn.id)
            return (
                build_conversation(path, self.picture_store.get, settings.system),
                settings.options(engine.info.defaults),
            )

        with self._opening:  # two tabs cannot ask in one conversation at once
            turn, conversation = self._open_turn(owner, request, settings)
            answering = RunningAnswer(
                owner, conversation, turn, store=self.store, pool=self.pool, model=settings.model,
                asked=asked, told=user_message,
            )  # fmt: skip
            with self._lock:
                self._answering[turn.id] = answering
        answering.start(lambda: self._end(turn.id))
        return answering

    def _end(self, turn: str) -> None:
        with self._lock:
            self._answering.pop(turn, None)

    def _open_turn(
        self, owner: str, request: PageRequest, settings: ChatSettings
    ) -> tuple[Turn, str]:
        conversation = conversation_id(request)
        if conversation is not None and self._running(owner, conversation):
            raise UsageError("An answer is still being written here.", "Stop it first.")
        facts = {"style": settings.style}
        if request.get("again"):
            old = self.store.turn(owner, str(conversation), str(request["again"]))
            return self.store.add_turn(
                owner, str(conversation), old.parent, old.question, old.pictures, facts
            ), str(conversation)
        pictures = self.pictures(owner, request)
        question = parse_question(request.get("question"), len(pictures))
        parent = None
        if request.get("replaces"):
            parent = self.store.turn(owner, str(conversation), str(request["replaces"])).parent
        elif conversation is not None and (path := self.store.path(owner, conversation)):
            parent = path[-1].id
        if conversation is None:  # last: what is refused leaves no empty one
            conversation = self.store.create(owner, make_title(question, len(pictures)))
        return self.store.add_turn(
            owner, conversation, parent, question, pictures, facts
        ), conversation

    def pictures(self, owner: str, request: PageRequest) -> list[str]:
        """The digests asked for; only what this owner brought."""
        # One that stands twice would shift the numbers of those behind it.
        digests = list(dict.fromkeys(str(digest) for digest in request.get("pictures") or []))
        check_picture_count(len(digests))
        for digest in digests:
            if self.store.picture(owner, digest) is None:
                raise UsageError("One of the pictures has been deleted.", "Add it again.")
        return digests

    def stop(self, owner: str, conversation: str | None) -> None:
        """Ends the answer that is being written in a conversation, within one token."""
        if conversation is not None and (running := self._running(owner, conversation)):
            running.stop()

    @contextmanager
    def cancel_event(self, owner: str = "") -> Iterator[threading.Event]:
        """For an answer that is kept nowhere: an event that is set when its owner or the server
        stops it, or when nobody waits for the answer any more.
        """
        cancel = threading.Event()
        with self._lock:
            self._others[cancel] = owner
        try:
            yield cancel
        finally:
            cancel.set()
            with self._lock:
                self._others.pop(cancel)

    def stop_comparing(self, owner: str) -> None:
        """Ends the owner's comparisons within one token."""
        with self._lock:
            for cancel, asker in self._others.items():
                if asker == owner:
                    cancel.set()

    def stop_all(self, patience: float = 0.0) -> None:
        """Ends all answers, and waits up to `patience` seconds until they are stored."""
        with self._lock:
            running = list(self._answering.values())
            for cancel in self._others:
                cancel.set()
        for one in running:
            one.stop()
        end = time.monotonic() + patience
        for one in running:
            one.join(max(0.0, end - time.monotonic()))

    def _running(self, owner: str, conversation: str) -> RunningAnswer | None:
        with self._lock:
            for one in self._answering.values():
                if (one.owner, one.conversation) == (owner, conversation):
                    return one
        return None

    def add_picture(
        self, owner: str, data: bytes, name: str, limits: ImageLimits | None = None
    ) -> dict[str, Any]:
        """Takes in a picture for a question to come; what the page shows of it.

        Args:
            limits: others than the shelf's own, for a file of ours.

        Raises:
            ImageError: it cannot be read or is too large.
        """
        picture = self.picture_store.add(data, name, limits)
        facts = {"changes": list(picture.changes), "size": list(picture.image.size)}
        self.store.remember_picture(owner, picture.digest, picture.name, facts)
        return {"digest": picture.digest, "name": picture.name, **facts}

    def add_example(self, owner: str, image: Image.Image, question: str) -> dict[str, Any]:
        """A generated picture as if the owner had brought it, and a question about it."""
        picture = self.picture_store.add(image, "scene.png")
        facts = {"changes": [], "size": list(image.size)}
        self.store.remember_picture(owner, picture.digest, "scene.png", facts)
        shown = {"digest": picture.digest, "name": "scene.png", **facts}
        return {"picture": shown, "question": question}

    # -- what an owner sees ------------------------------------------------------------------------

    def settings(self, owner: str) -> ChatSettings:
        return ChatSettings.from_dict(self.store.settings(owner))

    def engine_for(self, owner: str) -> Engine | None:
        """The engine of the owner's model. Where it is not loaded, after a restart or because
        others took its place, that begins; one that failed or was cancelled waits to be asked.
        """
        key = self.settings(owner).model
        try:
            status = self.pool.status(key)
            if status.phase == "absent" and not status.message:
                self.pool.start_loading(key, owner)
        except ModelError:  # the picked run was deleted meanwhile
            return None
        return self.pool.get_loaded(key)

    def save_settings(self, owner: str, changes: dict[str, Any]) -> ChatSettings:
        """Keeps changed settings; raises UsageError for what cannot be."""
        current = self.store.settings(owner)
        ChatSettings.checked({**current, **changes})
        return ChatSettings.from_dict(self.store.save_settings(owner, changes))

    def view(self, owner: str, conversation: str | None) -> dict[str, Any]:
        view = conversation_view(self.store, owner, conversation)
        view["busy"] = conversation is not None and bool(self._running(owner, conversation))
        return view

    def conversation_list(self, owner: str) -> PageUpdate:
        """The owner's conversations for the sidebar, latest first."""
        rows = self.store.conversations(owner)
        return {"list": [{"id": row.id, "title": row.title, "when": row.updated} for row in rows]}
