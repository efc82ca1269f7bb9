"""An answer in progress, which runs in a thread of its own and outlives the page that asked.

Every tab that shows the conversation can follow it: the one that asked, the same one after a
reload, or another. Only Stop, deleting the conversation, and the end of the server end it early.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ui.chat.markdown import partial_html
from ui.chat.owner_models import OwnerModels
from ui.chat.requests import log_error, user_message
from ui.chat.stream import POLL_SECONDS, answer_facts, turn_state
from ui.chat.unknown_pictures import is_unknown_picture
from ui.storage.database import State, Store, StoredTurn
from ui.texts import find_texts
from vqa_app.engine.protocol import Answer, Delta, Engine, GenerationOptions, Status
from vqa_app.errors import UsageError
from vqa_app.prompts.conversation import Conversation

SAVE_SECONDS = 1.0
"""Seconds between two saves of the partial answer; a killed server loses no more than this."""


class RunningAnswer:
    """Generates the answer of one turn and stores it.

    Args:
        owner: Owner of the conversation.
        conversation: Its id.
        turn: The turn to answer.
        store: Where the answer is stored.
        models: Provides the engine.
        model: Key of the model that answers; None for the default.
        prepare: Returns the conversation, the options, and the turns in the conversation, once the
            engine is loaded.
        on_answer: Called with the answer when it is complete or stopped.
        download: Whether missing files of the model may be fetched. Stopping the answer then stops
            the download, too.
    """

    def __init__(
        self,
        owner: str,
        conversation: str,
        turn: StoredTurn,
        *,
        store: Store,
        models: OwnerModels,
        model: str | None,
        prepare: Callable[[Engine], tuple[Conversation, GenerationOptions, Sequence[StoredTurn]]],
        on_answer: Callable[[Answer], None],
        download: bool = False,
    ) -> None:
        self.owner, self.conversation, self.turn = owner, conversation, turn
        self._store, self._models, self._model = store, models, model
        self._prepare, self._on_answer, self._download = prepare, on_answer, download
        self._cancel = threading.Event()
        self._changed = threading.Condition()
        self._state: dict[str, Any] = {"state": "looking"}
        self._text = ""
        self._version = 0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="answer", daemon=True)

    def start(self, on_end: Callable[[], None]) -> None:
        """Start the thread; it calls `on_end` once everything is stored."""
        self._on_end = on_end
        self._thread.start()

    def stop(self) -> None:
        """Stop within one token, and keep the partial answer."""
        self._cancel.set()

    def join(self, timeout: float) -> None:
        """Wait for the end for at most `timeout` seconds."""
        self._thread.join(timeout)

    def follow(self) -> Iterator[dict[str, Any] | None]:
        """Yield an update whenever the answer has changed, until it has ended.

        Yields None after `POLL_SECONDS` without a change, so that the server can notice a page that
        has gone.
        """
        seen = -1
        while True:
            with self._changed:
                if self._version == seen and not self._ended:
                    self._changed.wait(POLL_SECONDS)
                version, text, ended = self._version, self._text, self._ended
                live = {"turn": self.turn.id, **self._state}
            if version == seen:
                if ended:  # only after the last words were yielded
                    return
                yield None
                continue
            seen = version
            if text:
                live["html"] = partial_html(text)
            yield {"live": live}

    def _cancel_download(self) -> None:
        if self._download:
            with contextlib.suppress(UsageError):  # somebody else waits for this model
                self._models.cancel_loading(self._model)

    def _publish(self, text: str | None = None, **state: Any) -> None:
        """Set what followers see."""
        with self._changed:
            self._state = state
            if text is not None:
                self._text = text
            self._version += 1
            self._changed.notify_all()

    def _run(self) -> None:
        text = ""
        facts: dict[str, Any] = {"error": ""}
        final_state: State = "stopped"
        saved = time.monotonic()
        try:
            for status in self._models.load_with_status(
                self._model, self._cancel, download=self._download
            ):
                message = find_texts(status.message)
                self._publish(state="loading", message=message, share=status.share)
            if self._cancel.is_set():
                self._cancel_download()
                return
            choice = self._models.find(self._model)
            facts["model"] = choice.label  # the engine's name may be a path
            with self._models.lease(self._model) as engine:
                if engine.info.context_length is not None:
                    facts["context"] = engine.info.context_length
                conversation, options, turns = self._prepare(engine)
                if options.temperature is not None:
                    facts["temperature"] = options.temperature
                for event in engine.stream(conversation, options, self._cancel):
                    if isinstance(event, Status):
                        self._publish(state=event.state, place=event.place)
                    elif isinstance(event, Delta):
                        text += event.text
                        self._publish(text, state="answering")
                        if time.monotonic() - saved > SAVE_SECONDS:
                            self._store.finish_turn(self.turn.id, text, "answering", facts)
                            saved = time.monotonic()
                    else:
                        text, final_state = event.text, turn_state(event)
                        facts.update(answer_facts(event))
                        # Ids, because positions change when a question is deleted.
                        facts["dropped_turns"] = [turns[n].id for n in event.dropped_turns]
                        if conversation.pictures and is_unknown_picture(choice, event):
                            facts["unknown_picture"] = True
                        self._on_answer(event)
        except Exception as error:
            final_state, facts["error"] = "failed", user_message(error)
        finally:
            try:
                self._store.finish_turn(self.turn.id, text, final_state, facts)
            except sqlite3.ProgrammingError:
                pass  # the store is closed: the server marks the turn at its next start
            except sqlite3.OperationalError as error:
                log_error(error)  # the disk is full
            finally:
                self._on_end()
                with self._changed:
                    self._ended = True
                    self._changed.notify_all()
