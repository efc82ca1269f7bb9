"""An answer on its way, in a thread of its own: pages come and go, it goes on.

Whoever looks at the conversation follows it: the tab that asked, the same one after a reload, a
second one. Only Stop, the end of the server or of the conversation ends it early.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ui.chat.markdown import growing_html
from ui.chat.stream import POLL_SECONDS, answer_facts, turn_state
from ui.storage.database import State, Store, Turn
from vqa_app.engine.protocol import Delta, Engine, GenerationOptions, Status
from vqa_app.prompts.conversation import Conversation
from vqa_app.serving.engine_pool import EnginePool

KEPT_EVERY = 1.0
"""Seconds after which what has come so far is stored: a server that is killed loses no more."""


class RunningAnswer:
    """Writes the answer of one turn into the store.

    Args:
        model: key of the model that answers.
        asked: gives the conversation and options once the engine is there.
        told: the message for a failure.
    """

    def __init__(
        self,
        owner: str,
        conversation: str,
        turn: Turn,
        *,
        store: Store,
        pool: EnginePool,
        model: str | None,
        asked: Callable[[Engine], tuple[Conversation, GenerationOptions]],
        told: Callable[[BaseException], str],
    ) -> None:
        self.owner, self.conversation, self.turn = owner, conversation, turn
        self._store, self._pool, self._model = store, pool, model
        self._asked, self._told = asked, told
        self._cancel = threading.Event()
        self._changed = threading.Condition()
        self._state: dict[str, Any] = {"state": "looking"}
        self._text = ""
        self._number = 0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="answer", daemon=True)

    def start(self, ended: Callable[[], None]) -> None:
        """Begins; `ended` is called once all is stored."""
        self._when_ended = ended
        self._thread.start()

    def stop(self) -> None:
        """Ends it within one token; what came is kept."""
        self._cancel.set()

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def follow(self) -> Iterator[dict[str, Any] | None]:
        """What is new whenever there is something, None at every idle beat, until it has ended.

        The beats let the server notice a page that went away.
        """
        seen = -1
        while True:
            with self._changed:
                if self._number == seen and not self._ended:
                    self._changed.wait(POLL_SECONDS)
                number, text, ended = self._number, self._text, self._ended
                live = {"turn": self.turn.id, **self._state}
            if number == seen:
                if ended:  # not before its last words were shown
                    return
                yield None
                continue
            seen = number
            if text:
                live["html"] = growing_html(text)
            yield {"live": live}

    def _tell(self, text: str | None = None, **state: Any) -> None:
        with self._changed:
            self._state = state
            if text is not None:
                self._text = text
            self._number += 1
            self._changed.notify_all()

    def _run(self) -> None:
        text, facts = "", {"error": ""}
        ended: State = "stopped"
        kept = time.monotonic()
        try:
            if not self._loaded():
                return
            facts["model"] = self._pool.find(self._model).label  # the engine's own may be a path
            with self._pool.lease(self._model) as engine:
                facts["context"] = engine.info.context_length
                conversation, options = self._asked(engine)
                for event in engine.stream(conversation, options, self._cancel):
                    if isinstance(event, Status):
                        self._tell(state=event.state, place=event.place)
                    elif isinstance(event, Delta):
                        text += event.text
                        self._tell(text, state="answering")
                        if time.monotonic() - kept > KEPT_EVERY:
                            self._store.finish_turn(self.turn.id, text, "answering", facts)
                            kept = time.monotonic()
                    else:
                        text, ended = event.text, turn_state(event)
                        facts.update(answer_facts(event))
        except Exception as error:
            ended, facts["error"] = "failed", self._told(error)
        finally:
            try:
                self._store.finish_turn(self.turn.id, text, ended, facts)
            except sqlite3.ProgrammingError:
                pass  # the server has ended meanwhile; when it starts again it marks the turn
            except sqlite3.OperationalError as error:
                self._told(error)  # into the log: the disk is full
            finally:
                self._when_ended()
                with self._changed:
                    self._ended = True
                    self._changed.notify_all()

    def _loaded(self) -> bool:
        """True as soon as the model is loaded; False if somebody stops waiting before."""
        self._pool.start_loading(self._model, self.owner)
        while self._pool.wait(self._model, 0) is None:
            if self._cancel.is_set():
                return False
            status = self._pool.status(self._model)
            self._tell(state="loading", message=status.message, share=status.share)
            self._pool.wait(self._model, POLL_SECONDS)
        return True
