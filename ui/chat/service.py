"""The chat behind the page, as plain methods and generators.

Each request has an owner and a dict of JSON values from the page, which is never trusted: ids are
looked up among the owner's own, pictures among those the owner added, and the history comes from
the store. The updates that are returned are drawn by `ui/static/*.js`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from ui.chat.answer import RunningAnswer
from ui.chat.examples import knowledge_in_use
from ui.chat.followups import suggest_questions
from ui.chat.model_picker import model_list
from ui.chat.owner_models import OwnerModels
from ui.chat.requests import (
    PageRequest,
    PageUpdate,
    check_picture_count,
    conversation_id,
    parse_question,
    text_list,
)
from ui.chat.settings import ChatSettings, check_system_prompt
from ui.chat.speeds import AnswerSpeeds
from ui.chat.views import (
    build_conversation,
    conversation_entry,
    conversation_view,
    make_title,
    picture_view,
    read_turns,
    same_questions,
)
from ui.storage.database import Store, StoredTurn
from ui.storage.owned_pictures import add_owned_picture
from ui.storage.picture_files import PictureStore
from vqa_app.engine.protocol import Engine, GenerationOptions, ModelInfo, vary
from vqa_app.errors import ModelError, UsageError
from vqa_app.pictures.documents import is_document, open_document
from vqa_app.pictures.download import fetch_for_visitor
from vqa_app.pictures.picture import (
    STORED_PICTURE_LIMITS,
    ImageLimits,
    Picture,
    digest_of,
)
from vqa_app.prompts.conversation import Conversation
from vqa_app.serving.engine_pool import EnginePool, ModelChoice


class ChatService:
    """Serves the requests of all owners.

    Args:
        store: Conversations and settings.
        picture_store: Picture files.
        pool: Models.
        allow_any_model: Whether people may add hub models in the browser.
        runs: Folder of the runs, which have owners.
        picture_hosts: Hosts from which people may add pictures by address.
        may_delete_models: Tells of an owner whether they may delete downloaded models.
        device: Where models are loaded, as `vqa_app.checkpoints.loader.load_model` takes it.
        dtype: Their precision, likewise.
    """

    def __init__(
        self,
        store: Store,
        picture_store: PictureStore,
        pool: EnginePool,
        allow_any_model: bool = False,
        runs: Path | None = None,
        picture_hosts: Iterable[str] = (),
        *,
        may_delete_models: Callable[[str], bool] = lambda owner: False,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        self.store, self.picture_store, self.pool = store, picture_store, pool
        self.runs = runs
        self.allow_any_model, self.may_delete_models = allow_any_model, may_delete_models
        self.picture_hosts = frozenset(picture_hosts)
        self.device, self.dtype = device, dtype
        self.trained_model: Callable[[], ModelChoice | None] = lambda: None
        """Returns the model that is being trained, if any; set by the training service."""
        self.pending_models: dict[str, str] = {}
        """By owner, the key of the model that they chose and that is still loading."""
        self.speeds = AnswerSpeeds()
        self._running_answers: dict[str, RunningAnswer] = {}
        """By turn."""
        self._cancel_events: dict[threading.Event, str] = {}
        """Owners of answers that are not stored, by the event that cancels the answer."""
        self._lock, self._opening = threading.Lock(), threading.Lock()

    # -- answers -----------------------------------------------------------------------------------

    def ask(self, owner: str, request: PageRequest) -> Iterator[PageUpdate | None]:
        """Answer a question, answer one again, or replace one by an edited version.

        The request holds `question` and `pictures`, and for an edited question `replaces` (a turn's
        id); or `again` (a turn's id) for another answer to the same question. `conversation` is
        None for a new one, which may have a `system` prompt. With `follow`, nothing is asked: the
        answer in progress is shown. The answer continues when nobody follows it any more.

        `model` (a key) answers this question in place of the owner's model, and with `keep` those
        that follow, too. It is downloaded if necessary only with `download`, which says that a
        person has confirmed it.

        Yields:
            `view` when turns change, `live` while the answer grows, `gone` with the conversation's
            id if it was deleted in the meantime; None after a moment without news.
        """
        if request.get("follow"):
            conversation = str(request.get("conversation"))
            answer = self._running_answer(owner, conversation)
        else:
            answer = self._start_answer(owner, request)
            conversation = answer.conversation
        yield {"view": self.view(owner, conversation), **self.conversation_list(owner)}
        if request.get("keep"):  # the model of this answer becomes the owner's once it is loaded
            yield model_list(self, owner)
        if answer is None:
            return
        yield from answer.follow()
        if request.get("keep"):
            yield model_list(self, owner)
        if self.store.owns(owner, conversation):
            yield {"view": self.view(owner, conversation), **self.conversation_list(owner)}
        else:
            yield {"gone": conversation, **self.conversation_list(owner)}

    def _start_answer(self, owner: str, request: PageRequest) -> RunningAnswer:
        settings = self.settings(owner)
        download = request.get("download") is True
        if request.get("model") or request.get("keep"):
            key = str(request.get("model") or "") or settings.model
            settings = replace(settings, model=self.models(owner).find(key).key)

        def prepare(
            engine: Engine,
        ) -> tuple[Conversation, GenerationOptions, Sequence[StoredTurn]]:
            path = self.store.path_to(owner, conversation, turn.id)
            options = settings.options(engine.info.defaults)
            if number := len(self._earlier_answers(owner, conversation, turn, settings)):
                chosen = replace(options, temperature=settings.temperature)
                options = vary(chosen, engine.info.defaults, number)
            system = self.settings(owner, conversation).system
            asked = self.build(path, replace(settings, system=system), engine.info)
            return asked, options, read_turns(path)

        with self._opening:  # two tabs cannot ask in one conversation at the same time
            turn, conversation = self._add_turn(owner, request, settings)
            if request.get("keep"):  # loading first, because nobody waits for an absent model
                self.models(owner).start_loading(settings.model, download=download)
                self.pending_models[owner] = settings.model or self.pool.default
            answer = RunningAnswer(
                owner,
                conversation,
                turn,
                store=self.store,
                models=self.models(owner),
                model=settings.model,
                prepare=prepare,
                on_answer=lambda given: self.speeds.add(settings.model or self.pool.default, given),
                download=download,
            )
            with self._lock:
                self._running_answers[turn.id] = answer
        answer.start(lambda: self._remove_answer(turn.id))
        return answer

    def build(
        self, turns: Sequence[StoredTurn], settings: ChatSettings, model: ModelInfo
    ) -> Conversation:
        """Return the conversation that a model reads, with what suits it of the settings."""

        def picture(digest: str) -> Picture:
            return settings.shown(self.picture_store.get(digest), model)

        return build_conversation(turns, picture, settings.system_for(model))

    def draft(
        self, owner: str, request: PageRequest, question: str, model: ModelInfo
    ) -> tuple[list[StoredTurn], Conversation]:
        """Return the turns before a question that is being written, and the conversation with it.

        Raises:
            UsageError: A picture or turn is not the owner's.
        """
        pictures = self.requested_pictures(owner, request)
        conversation = conversation_id(request)
        turns: list[StoredTurn] = []
        if conversation is not None and request.get("replaces"):
            replaced = self.store.turn(owner, conversation, str(request["replaces"]))
            turns = self.store.path_to(owner, conversation, replaced.parent)
        elif conversation is not None:
            turns = self.store.path(owner, conversation)
        settings = self.settings(owner, conversation)
        style = {"style": settings.style} if question else {}
        draft = StoredTurn("", None, question, tuple(pictures), "", "answering", style)
        return turns, self.build([*turns, draft], settings, model)

    def _earlier_answers(
        self, owner: str, conversation: str, turn: StoredTurn, settings: ChatSettings
    ) -> list[StoredTurn]:
        """Return the complete answers that the same model gave to the same question."""
        model = self.models(owner).find(settings.model).label
        return [
            other
            for other in same_questions(self.store.turns(owner, conversation), turn)
            if (other.facts.get("model"), other.facts.get("style")) == (model, settings.style)
        ]

    def _remove_answer(self, turn: str) -> None:
        with self._lock:
            self._running_answers.pop(turn, None)

    def _add_turn(
        self, owner: str, request: PageRequest, settings: ChatSettings
    ) -> tuple[StoredTurn, str]:
        """Store the question of a request; return its turn and the id of its conversation."""
        conversation = conversation_id(request)
        if conversation is not None and self._running_answer(owner, conversation):
            raise UsageError("An answer is still being written here.", "Stop it first.")
        facts = {"style": settings.style}
        if request.get("again"):
            old = self.store.turn(owner, str(conversation), str(request["again"]))
            return self.store.add_turn(
                owner, str(conversation), old.parent, old.question, old.pictures, facts
            ), str(conversation)
        pictures = self.requested_pictures(owner, request)
        question = parse_question(request.get("question"), len(pictures))
        parent = None
        if request.get("replaces"):
            parent = self.store.turn(owner, str(conversation), str(request["replaces"])).parent
        elif conversation is not None and (path := self.store.path(owner, conversation)):
            parent = path[-1].id
        if conversation is None:  # last, so that a refused request leaves no empty conversation
            system = request.get("system")
            if system is not None:
                check_system_prompt(system)
            conversation = self.store.create(owner, make_title(question, len(pictures)))
            self.store.set_system_prompt(owner, conversation, system)
        return self.store.add_turn(
            owner, conversation, parent, question, pictures, facts
        ), conversation

    def stop(self, owner: str, conversation: str | None) -> None:
        """Stop the answer in progress of a conversation within one token."""
        if conversation is not None and (answer := self._running_answer(owner, conversation)):
            answer.stop()

    @contextmanager
    def cancel_event(self, owner: str = "") -> Iterator[threading.Event]:
        """Provide the event that cancels an answer which is not stored.

        It is set when the owner or the server stops such answers, and when the block ends.
        """
        cancel = threading.Event()
        with self._lock:
            self._cancel_events[cancel] = owner
        try:
            yield cancel
        finally:
            cancel.set()
            with self._lock:
                self._cancel_events.pop(cancel)

    def stop_comparing(self, owner: str) -> None:
        """Stop the owner's comparisons within one token."""
        with self._lock:
            for cancel, requester in self._cancel_events.items():
                if requester == owner:
                    cancel.set()

    def stop_all(self, patience: float = 0.0) -> None:
        """Stop all answers, and wait up to `patience` seconds until they are stored."""
        with self._lock:
            answers = list(self._running_answers.values())
            for cancel in self._cancel_events:
                cancel.set()
        for answer in answers:
            answer.stop()
        end = time.monotonic() + patience
        for answer in answers:
            answer.join(max(0.0, end - time.monotonic()))

    def _running_answer(self, owner: str, conversation: str) -> RunningAnswer | None:
        with self._lock:
            for answer in self._running_answers.values():
                if (answer.owner, answer.conversation) == (owner, conversation):
                    return answer
        return None

    # -- pictures ----------------------------------------------------------------------------------

    def requested_pictures(self, owner: str, request: PageRequest) -> list[str]:
        """Return the digests of the request's pictures.

        Raises:
            UsageError: There are too many, or one is not the owner's.
        """
        # A duplicate would shift the numbers of the pictures after it.
        digests = list(dict.fromkeys(text_list(request, "pictures")))
        check_picture_count(len(digests))
        for digest in digests:
            if self.store.picture(owner, digest) is None:
                raise UsageError("One of the pictures has been deleted.", "Add it again.")
        return digests

    def add_picture(
        self,
        owner: str,
        data: bytes,
        name: str,
        limits: ImageLimits | None = None,
        page: int | None = None,
    ) -> dict[str, Any]:
        """Store a picture for a later question, and return what the page shows of it.

        Args:
            owner: Who adds it.
            data: The content of a picture file, a PDF document or an SVG drawing.
            name: Its name.
            limits: Limits other than those of the picture store, for files of our own.
            page: Page of a PDF, from 1; the first one by default.

        Raises:
            ImageError: The picture cannot be read or is too large.
        """
        source: bytes | Picture = data
        if is_document(data):
            source = open_document(
                data, name, page=page, limits=limits or self.picture_store.limits
            )
            name = source.name
        picture = add_owned_picture(
            self.store, self.picture_store, owner, source, name, limits=limits
        )
        return _added_picture_view(picture)

    def add_picture_from(self, owner: str, address: str) -> dict[str, Any]:
        """Store the picture at a web address of an allowed host.

        Raises:
            ImageError: The address is not allowed, or there is no picture.
        """
        data, name = fetch_for_visitor(
            address, self.picture_hosts, self.picture_store.limits.max_bytes
        )
        return self.add_picture(owner, data, name)

    def add_image(
        self, owner: str, image: Image.Image, name: str, facts: dict[str, Any]
    ) -> dict[str, Any]:
        """Store a picture that was made of others, and return what the page shows of it.

        A picture that the owner has already keeps the metadata that it has.
        """
        digest = digest_of(image)
        name, facts = self.store.picture(owner, digest) or (name, facts)
        add_owned_picture(
            self.store,
            self.picture_store,
            owner,
            image,
            name,
            limits=STORED_PICTURE_LIMITS,
            facts=facts,
        )
        return picture_view(digest, *(self.store.picture(owner, digest) or (name, facts)))

    def add_example(self, owner: str, image: Image.Image, question: str) -> dict[str, Any]:
        """Store a generated picture as if the owner had added it; return it with its question."""
        picture = add_owned_picture(self.store, self.picture_store, owner, image, "scene.png")
        return {"picture": _added_picture_view(picture), "question": question}

    # -- models ------------------------------------------------------------------------------------

    def models(self, owner: str) -> OwnerModels:
        """Return the models that an owner may use. Requests of owners reach the pool through it."""
        return OwnerModels(owner, self.pool, self.store, self.runs)

    # -- settings and views ------------------------------------------------------------------------

    def settings(self, owner: str, conversation: str | None = None) -> ChatSettings:
        """Return the owner's settings, with the system prompt of a conversation that has one."""
        settings = ChatSettings.from_dict(self.store.settings(owner))
        if conversation is None:
            return settings
        system = self.store.system_prompt(owner, conversation)
        return settings if system is None else replace(settings, system=system)

    def save_settings(self, owner: str, changes: dict[str, Any]) -> ChatSettings:
        """Store changed settings.

        Raises:
            UsageError: A value is invalid.
        """
        current = self.store.settings(owner)
        ChatSettings.checked({**current, **changes})
        return ChatSettings.from_dict(self.store.save_settings(owner, changes))

    def engine_for(self, owner: str) -> Engine | None:
        """Return the engine of the owner's model, or None if it is not loaded.

        Starts to load a model that is absent after a restart or an eviction, but not one whose
        loading failed or was cancelled: that one waits until it is chosen again.
        """
        key, models = self.settings(owner).model, self.models(owner)
        try:
            status = models.status(key)
            if status.phase == "absent" and not status.message:
                models.start_loading(key)
            return models.get_loaded(key)
        except ModelError:  # the chosen run has been deleted, or is no longer shared
            return None

    def view(self, owner: str, conversation: str | None) -> dict[str, Any]:
        """Return a conversation as the page shows it; None is an empty one."""
        view = conversation_view(self.store, owner, conversation)
        view["busy"] = conversation is not None and bool(self._running_answer(owner, conversation))
        if conversation is not None and (path := self.store.path(owner, conversation)):
            pictures = {digest for turn in path for digest in turn.pictures}
            knows = knowledge_in_use(self, owner)
            view["system"] = self.store.system_prompt(owner, conversation)
            view["followups"] = suggest_questions(path[-1], knows, len(pictures))
        return view

    def conversation_list(self, owner: str) -> PageUpdate:
        """Return the owner's conversations for the sidebar, in its order."""
        rows = self.store.conversations(owner)
        return {"list": [conversation_entry(row) for row in rows]}


def _added_picture_view(picture: Picture) -> dict[str, Any]:
    """Return what the page shows of a picture that was just added."""
    facts = {"changes": list(picture.changes), "size": list(picture.image.size)}
    return picture_view(picture.digest, picture.name, facts)
