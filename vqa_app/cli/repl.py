"""The dialogue that `vqa-app ask` opens in a terminal when there is no question yet."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import os
import shlex
import sys
import threading
from pathlib import Path
from typing import Any

from rich.console import Console

from vqa_app.cli.picture_args import read_picture
from vqa_app.cli.reply import Asking, Reply, reply_to, tell_notes
from vqa_app.cli.terminal import to_stdout
from vqa_app.engine.protocol import Engine
from vqa_app.errors import UsageError, VqaError
from vqa_app.pictures.picture import ImageLimits, Picture
from vqa_app.prompts.conversation import Conversation, Message

HELP = """\
/image FILE...   show pictures with the next question (files or http(s) addresses)
/retry           answer the last question again
/save FILE.json  keep the dialogue and its pictures; `vqa-app chat` can import the file
/quit            leave (so do Ctrl-D and, between answers, Ctrl-C)
Ctrl-C during an answer stops it and keeps what came."""


class Dialogue:
    """Questions from stdin, answers to stdout, all else to the console."""

    def __init__(
        self, engine: Engine, asking: Asking, console: Console, limits: ImageLimits | None = None
    ) -> None:
        self._engine, self._asking, self._console = engine, asking, console
        self._limits = limits or ImageLimits()
        self._conversation = Conversation()
        self._next: list[Picture] = []
        self._warmed: threading.Event | None = None

    def run(self, pictures: list[Picture]) -> None:
        """Reads lines until /quit or the end of input."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (line editing and history for input())

        self._say(f"{self._engine.info.label} answers. /help lists what else you can type.")
        self._show(pictures)
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                print(file=sys.stderr)
                return
            if line == "/quit":
                return
            try:
                self._do(line)
            except VqaError as error:
                self._say(str(error))

    def _do(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        match command:
            case "":
                return
            case "/help":
                self._say(HELP)
            case "/image":
                words = _words(rest)
                if not words:
                    raise UsageError("/image needs a picture.", "For example: /image cat.png")
                self._show([read_picture(word, self._console, self._limits) for word in words])
            case "/retry":
                self._retry()
            case "/save":
                words = _words(rest)
                self._save(words[0] if len(words) == 1 else rest.strip())
            case _ if command.startswith("/"):
                raise UsageError(f"There is no command {command}.", "/help lists them.")
            case _:
                self._ask(self._conversation.then(Message.user(line, self._next)))

    def _show(self, pictures: list[Picture]) -> None:
        """Takes pictures for the next question, and has the model look at them meanwhile."""
        self._next += pictures
        if not pictures:
            return
        self._say("Ask about " + ", ".join(picture.name for picture in self._next) + ".")
        opened = self._conversation.then(Message.user("", self._next))
        self._stop_warming()
        self._warmed = threading.Event()
        threading.Thread(target=self._warm, args=(opened, self._warmed), daemon=True).start()

    def _warm(self, opened: Conversation, cancel: threading.Event) -> None:
        # The question itself will meet the same error, whatever it is, and tells of it.
        with contextlib.suppress(Exception):
            self._engine.warm(opened, cancel)

    def _stop_warming(self) -> None:
        if self._warmed is not None:
            self._warmed.set()

    def _ask(self, conversation: Conversation) -> None:
        reply = self._stream(conversation)
        if reply is not None:
            self._conversation = conversation.then(Message.assistant(reply.text))
            self._next = []

    def _retry(self) -> None:
        messages = self._conversation.messages
        if not messages:
            raise UsageError("There is nothing to answer again.", "Ask a question first.")
        reply = self._stream(Conversation(messages[:-1]))
        if reply is not None:
            self._conversation = Conversation((*messages[:-1], Message.assistant(reply.text)))

    def _stream(self, conversation: Conversation) -> Reply | None:
        """Answers the last message; None where Ctrl-C came before the first word."""
        parts: list[str] = []

        def write(text: str) -> None:
            parts.append(text)
            to_stdout(text)

        try:
            reply = reply_to(self._engine, conversation, self._asking, write, self._console)
        except KeyboardInterrupt:  # the abandoned stream stops the model
            print()
            said = "".join(parts)
            return Reply(said, said, 0.0) if said else None
        print()
        tell_notes(reply, self._console)
        return reply

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError("/save needs a file name.", "For example: /save cat.json")
        if not self._conversation.messages:
            raise UsageError("There is nothing to save yet.", "Ask a question first.")
        document = exported(self._conversation, self._engine.info.label)
        try:
            Path(name).write_text(json.dumps(document, ensure_ascii=False) + "\n", "utf-8")
        except OSError as error:
            raise UsageError(f"{name} cannot be written: {error.strerror}.") from error
        self._say(f"Saved to {name}.")

    def _say(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False, soft_wrap=True)


def exported(conversation: Conversation, model: str) -> dict[str, Any]:
    """A dialogue as the browser exports and imports conversations (`ui.chat.export`)."""
    messages = conversation.messages
    turns = [
        {
            "id": str(place),
            "parent": str(place - 2) if place else None,
            "shown": True,
            "question": question.text,
            "pictures": [picture.digest for picture in question.pictures],
            "answer": answer.text,
            "state": "answered",
            "facts": {"model": model},
        }
        for place, (question, answer) in enumerate(itertools.pairwise(messages))
        if question.role == "user"
    ]
    return {
        "format": "vqa-app conversation",
        "version": 1,
        "title": messages[0].text[:80] if messages else "",
        "turns": turns,
        "pictures": {
            picture.digest: {"name": picture.name, "data": _png(picture)}
            for picture in conversation.pictures
        },
    }


def _png(picture: Picture) -> str:
    buffer = io.BytesIO()
    picture.image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _words(text: str) -> list[str]:
    """Words as a shell reads them: with quotes, and ~ for the home folder."""
    try:
        words = shlex.split(text)
    except ValueError:  # a lone quote: then it is part of the name
        words = [text]
    return [os.path.expanduser(word) for word in words]
