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

from ui.chat.answer import Answering
from ui.chat.requests import Request, Update, chat_of, check_count, message_of, question_of
from ui.chat.settings import Settings
from ui.chat.views import conversation_of, title_of, view_of
from ui.storage.database import Store, Turn
from ui.storage.picture_files import PictureShelf
from vqa_app.engine.protocol import Engine, GenerationOptions
from vqa_app.errors import ModelError, UsageError
from vqa_app.pictures.picture import ImageLimits
from vqa_app.prompts.conversation import Conversation
from vqa_app.serving.engine_pool import Hub


class Desk:
    """Serves everybody's requests on one store and one hub.

    Args:
        allow_any_model: whether people may name hub models in the browser.
    """

    def __init__(
        self, store: Store, shelf: PictureShelf, hub: Hub, allow_any_model: bool = False
    ) -> None:
        self.store, self.shelf, self.hub = store, shelf, hub
        self.allow_any_model = allow_any_model
        self.wanted: dict[str, str] = {}
        """By owner, the key of the model that loads to be theirs."""
        self._answering: dict[str, Answering] = {}
        """By turn."""
        self._others: dict[threading.Event, str] = {}
        """Of answers that are kept nowhere, by what ends them: the owner."""
        self._lock, self._opening = threading.Lock(), threading.Lock()

    # -- asking ------------------------------------------------------------------------------------

    def ask(self, owner: str, request: Request) -> Iterator[Update | None]:
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
        yield {"view": self.view(owner, conversation), **self.listed(owner)}
        if answering is None:
            return
        yield from answering.follow()
        if self.store.owns(owner, conversation):
            yield {"view": self.view(owner, conversation), **self.listed(owner)}
        else:
            yield {"gone": conversation, **self.listed(owner)}

    def _begin(self, owner: str, request: Request) -> Answering:
        settings = self.settings(owner)

        def asked(engine: Engine) -> tuple[Conversation, GenerationOptions]:
            path = self.store.path_to(owner, conversation, turn.id)
            return (
                conversation_of(path, self.shelf.get, settings.system),
                settings.options(engine.info.defaults),
            )

        with self._opening:  # two tabs cannot ask in one conversation at once
            turn, conversation = self._open_turn(owner, request, settings)
            answering = Answering(
                owner, conversation, turn, store=self.store, hub=self.hub, model=settings.model,
                asked=asked, told=message_of,
            )  # fmt: skip
            with self._lock:
                self._answering[turn.id] = answering
        answering.start(lambda: self._end(turn.id))
        return answering

    def _end(self, turn: str) -> None:
        with self._lock:
            self._answering.pop(turn, None)

    def _open_turn(self, owner: str, request: Request, settings: Settings) -> tuple[Turn, str]:
        conversation = chat_of(request)
        if conversation is not None and self._running(owner, conversation):
            raise UsageError("An answer is still being written here.", "Stop it first.")
        facts = {"style": settings.style}
        if request.get("again"):
            old = self.store.turn(owner, str(conversation), str(request["again"]))
            return self.store.add_turn(
                owner, str(conversation), old.parent, old.question, old.pictures, facts
            ), str(conversation)
        pictures = self.pictures(owner, request)
        question = question_of(request.get("question"), len(pictures))
        parent = None
        if request.get("replaces"):
            parent = self.store.turn(owner, str(conversation), str(request["replaces"])).parent
        elif conversation is not None and (path := self.store.path(owner, conversation)):
            parent = path[-1].id
        if conversation is None:  # last: what is refused leaves no empty one
            conversation = self.store.create(owner, title_of(question, len(pictures)))
        return self.store.add_turn(
            owner, conversation, parent, question, pictures, facts
        ), conversation

    def pictures(self, owner: str, request: Request) -> list[str]:
        """The digests asked for; only what this owner brought."""
        # One that stands twice would shift the numbers of those behind it.
        digests = list(dict.fromkeys(str(digest) for digest in request.get("pictures") or []))
        check_count(len(digests))
        for digest in digests:
            if self.store.picture(owner, digest) is None:
                raise UsageError("One of the pictures has been deleted.", "Add it again.")
        return digests

    def stop(self, owner: str, conversation: str | None) -> None:
        """Ends the answer that is being written in a conversation, within one token."""
        if conversation is not None and (running := self._running(owner, conversation)):
            running.stop()

    @contextmanager
    def cancellable(self, owner: str = "") -> Iterator[threading.Event]:
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

    def _running(self, owner: str, conversation: str) -> Answering | None:
        with self._lock:
            for one in self._answering.values():
                if (one.owner, one.conversation) == (owner, conversation):
                    return one
        return None

    def bring(
        self, owner: str, data: bytes, name: str, limits: ImageLimits | None = None
    ) -> dict[str, Any]:
        """Takes in a picture for a question to come; what the page shows of it.

        Args:
            limits: others than the shelf's own, for a file of ours.

        Raises:
            ImageError: it cannot be read or is too large.
        """
        picture = self.shelf.add(data, name, limits)
        facts = {"changes": list(picture.changes), "size": list(picture.image.size)}
        self.store.remember_picture(owner, picture.digest, picture.name, facts)
        return {"digest": picture.digest, "name": picture.name, **facts}

    def example(self, owner: str, image: Image.Image, question: str) -> dict[str, Any]:
        """A generated picture as if the owner had brought it, and a question about it."""
        picture = self.shelf.add(image, "scene.png")
        facts = {"changes": [], "size": list(image.size)}
        self.store.remember_picture(owner, picture.digest, "scene.png", facts)
        shown = {"digest": picture.digest, "name": "scene.png", **facts}
        return {"picture": shown, "question": question}

    # -- what an owner sees ------------------------------------------------------------------------

    def settings(self, owner: str) -> Settings:
        return Settings.from_dict(self.store.settings(owner))

    def engine(self, owner: str) -> Engine | None:
        """The engine of the owner's model. Where it is not loaded, after a restart or because
        others took its place, that begins; one that failed or was cancelled waits to be asked.
        """
        key = self.settings(owner).model
        try:
            standing = self.hub.standing(key)
            if standing.phase == "absent" and not standing.message:
                self.hub.start(key, owner)
        except ModelError:  # the picked run was deleted meanwhile
            return None
        return self.hub.ready(key)

    def save_settings(self, owner: str, changes: dict[str, Any]) -> Settings:
        """Keeps changed settings; raises UsageError for what cannot be."""
        current = self.store.settings(owner)
        Settings.checked({**current, **changes})
        return Settings.from_dict(self.store.save_settings(owner, changes))

    def view(self, owner: str, conversation: str | None) -> dict[str, Any]:
        view = view_of(self.store, owner, conversation)
        view["busy"] = conversation is not None and bool(self._running(owner, conversation))
        return view

    def listed(self, owner: str) -> Update:
        """The owner's conversations for the sidebar, latest first."""
        rows = self.store.conversations(owner)
        return {"list": [{"id": row.id, "title": row.title, "when": row.updated} for row in rows]}
