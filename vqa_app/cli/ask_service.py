"""Answers `vqa-app ask` for the user of a running server, with the model it has loaded.

The other side is `vqa_app.cli.quick_ask`. What this side cannot do it refuses before the other has
read anything that cannot be read twice, so that the question is then answered without a server.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

from vqa_app.cli.ask import split_choices, warning_about_system
from vqa_app.cli.model_identity import model_identity
from vqa_app.cli.reply import AnswerOptions, facts_about, notes_on, reply_to, to_row
from vqa_app.engine.protocol import Engine, GenerationOptions
from vqa_app.errors import ModelError, UsageError, VqaError
from vqa_app.pictures.picture import ImageLimits, open_picture
from vqa_app.prompts.conversation import Conversation
from vqa_app.serving.engine_pool import EnginePool, LoadProgress, ModelChoice
from vqa_app.serving.model_choices import quantization
from vqa_app.serving.openai_api import LOAD_TIMEOUT, MAX_BODY, ChatApi
from vqa_app.serving.openai_errors import ApiError
from vqa_app.serving.private_socket import Connection, ConnectionLost, PrivateSocket
from vqa_app.version import __version__

log = logging.getLogger(__name__)

LoadEngine = Callable[[ModelChoice, LoadProgress], Engine]


class AskService:
    """The model that a server was started with, for `vqa-app ask`.

    Args:
        choice: The model.
        device: Where it is loaded, as the command line says it.
        dtype: Its precision, likewise.
        address: Where the server answers programs; "" if nowhere.
        background: Whether `vqa-app serve --stop` stops the server.
        settings: Tells servers with the same model and other options apart.
    """

    def __init__(
        self,
        choice: ModelChoice,
        device: str,
        dtype: str,
        *,
        address: str = "",
        background: bool = False,
        settings: str = "",
    ) -> None:
        self._choice, self._device, self._dtype = choice, device, dtype
        self._address, self._background, self._settings = address, background, settings
        self._identity: dict[str, Any] | None = None
        """Of the weights that are loaded, or were loaded last."""
        self._listener: PrivateSocket | None = None

    def remembering(self, load: LoadEngine) -> LoadEngine:
        """Return a function that loads models like the given one.

        It notes what the files of this model are like when they are read.
        """

        def remember(choice: ModelChoice, progress: LoadProgress) -> Engine:
            if choice.key == self._choice.key:
                self._identity = self._find_identity()
            return load(choice, progress)

        return remember

    def _find_identity(self) -> dict[str, Any]:
        choice = self._choice
        return model_identity(
            choice.source,
            choice.adapter,
            quantization(choice),
            self._device,
            self._dtype,
            choice.revision,
        )

    def open(self, api: ChatApi, pool: EnginePool) -> UsageError | None:
        """Begin to answer; return why `vqa-app ask` will not find this server.

        None means that it will, or that this system has no such sockets at all.
        """
        if sys.platform == "win32":
            return None
        try:
            self._listener = PrivateSocket(lambda connection: self._answer(connection, api, pool))
        except UsageError as error:
            return error
        return None

    def close(self) -> None:
        """Stop accepting questions; answers in progress go on."""
        if self._listener is not None:
            self._listener.close()

    def _answer(self, connection: Connection, api: ChatApi, pool: EnginePool) -> None:
        while True:
            message = connection.receive()
            command = message.get("command")
            if command == "status":
                connection.send(self._status(pool))
                continue
            if command == "stop" and self._background:
                os.kill(os.getpid(), signal.SIGTERM)
                connection.receive()  # closed by the end of this process
            if command == "ask" and self._can_answer(message.get("identity"), pool):
                self._ask(connection, api, pool)
            return

    def _can_answer(self, identity: object, pool: EnginePool) -> bool:
        is_same = self._identity is not None and identity == self._identity
        return is_same and pool.status(self._choice.key).phase != "failed"

    def _status(self, pool: EnginePool) -> dict[str, Any]:
        status = pool.status(self._choice.key)
        return {
            "version": __version__,
            "pid": os.getpid(),
            "model": " + ".join(filter(None, (self._choice.source, self._choice.adapter))),
            "identity": self._identity,
            "phase": status.phase,
            "message": status.message,
            "address": self._address,
            "background": self._background,
            "settings": self._settings,
        }

    def _ask(self, connection: Connection, api: ChatApi, pool: EnginePool) -> None:
        try:
            with api.answering() as cancel:
                connection.send({"accepted": True})
                self._reply(connection, pool, cancel)
        except ApiError:  # the queue is full
            return

    def _reply(self, connection: Connection, pool: EnginePool, cancel: threading.Event) -> None:
        def write(text: str) -> None:
            connection.send({"text": text})

        def status(text: str | None) -> None:
            if text is not None:
                connection.send({"status": text})

        try:
            request = connection.receive()
            files = _read_pictures(connection, request)
            connection.when_closed(cancel.set)
            generation = GenerationOptions(**request["generation"])
            options = AnswerOptions(
                generation, split_choices(request["choices"]), request["abstain"]
            )
            limits = ImageLimits.of(request["max_file_mb"], request["max_megapixels"])
            pictures = [open_picture(data, name=name, limits=limits) for name, data in files]
            for picture in pictures:
                if picture.changes:
                    connection.send({"note": f"{picture.name}: {', '.join(picture.changes)}"})
            status(f"Loading {self._choice.source}")
            with contextlib.ExitStack() as stack:
                try:
                    pool.start_loading(self._choice.key)
                    engine = stack.enter_context(pool.lease(self._choice.key, LOAD_TIMEOUT))
                except ModelError:  # the other side finds out why when it loads the model itself
                    return
                if warning := warning_about_system(engine, generation.system):
                    connection.send({"warning": warning})
                conversation = Conversation.ask(request["question"], pictures)
                reply = reply_to(engine, conversation, options, write, status, cancel)
                if reply.answer is not None and reply.answer.finish_reason == "cancelled":
                    return  # the connection ends without an answer: the server stops
                row = to_row(request["question"], pictures, reply, engine.info.label)
            connection.send({"row": row, "notes": notes_on(reply), "facts": facts_about(reply)})
        except CancelledError:  # while choices were scored: the other side has gone
            return
        except VqaError as error:
            if cancel.is_set():  # the server stops: the other side answers without it
                return
            connection.send(
                {"problem": error.problem, "hint": error.hint, "exit_code": error.exit_code}
            )
        except ConnectionLost:
            cancel.set()
        except Exception:
            log.exception("An answer for `vqa-app ask` failed")


def _read_pictures(connection: Connection, request: dict[str, Any]) -> list[tuple[str, bytes]]:
    """Return the names of the pictures, and their files' bytes.

    Raises:
        ConnectionLost: They are too large.
    """
    sizes = [picture["size"] for picture in request["pictures"]]
    if sum(sizes) > MAX_BODY:
        raise ConnectionLost
    return [
        (picture["name"], connection.read(size))
        for picture, size in zip(request["pictures"], sizes, strict=True)
    ]
