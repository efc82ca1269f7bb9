"""The dialogue that `vqa-app ask` opens in a terminal if no question is given."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import threading
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from vqa_app.cli.picture_args import read_picture
from vqa_app.cli.reply import ENCODING, AnswerOptions, Reply, print_notes, reply_to
from vqa_app.cli.terminal import spinner, write_stdout
from vqa_app.engine.protocol import Engine, GenerationOptions, vary
from vqa_app.engine.remote import RemoteEngine
from vqa_app.errors import UsageError, VqaError
from vqa_app.pictures.picture import ImageLimits, Picture
from vqa_app.prompts.conversation import Conversation, Message
from vqa_app.prompts.conversation_file import ConversationFile
from vqa_app.suggestions import suggest

HELP = """\
/image FILE...   add pictures to the next question (files or http(s) addresses)
/retry           answer the last question again, differently if the temperature allows it
/save FILE.json  save the dialogue with its pictures; `vqa-app chat` can import the file
/quit            quit (Ctrl-D does so too, and Ctrl-C between answers)
Ctrl-C during an answer stops it and keeps what was written so far."""


COMMANDS = ("/image", "/retry", "/save", "/quit", "/help")


class TerminalDialogue:
    """A dialogue with questions from stdin, answers to stdout and all else to the console."""

    def __init__(
        self,
        engine: Engine,
        options: AnswerOptions,
        console: Console,
        limits: ImageLimits | None = None,
    ) -> None:
        self._engine, self._options, self._console = engine, options, console
        self._limits = limits or ImageLimits()
        self._max_side = engine.max_side if isinstance(engine, RemoteEngine) else None
        self._conversation = Conversation()
        self._next: list[Picture] = []
        """Pictures for the next question."""
        self._retries = 0
        """How often the last question was answered again."""
        self._cancel_warming: threading.Event | None = None

    def run(self, pictures: list[Picture]) -> None:
        """Read lines until /quit or the end of input.

        Args:
            pictures: Pictures for the first question.
        """
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (line editing and history for input())

        info = self._engine.info
        bits = f" in {info.quantization[0]} bits" if info.quantization else ""
        self._print(f"Model: {info.label}{bits}. Type a question, or /help for commands.")
        self._add_pictures(pictures)
        while True:
            try:
                line = input("> ").rstrip()
            except EOFError:
                print(file=sys.stderr)
                return
            if line == "/quit":
                return
            try:
                self._execute(line)
            except VqaError as error:
                self._print(str(error))

    def _execute(self, line: str) -> None:
        """Obey a command, or answer a question, which may begin with a space and a slash."""
        command, _, rest = line.partition(" ")
        if not line.strip():
            return
        match command:
            case "/help":
                self._print(HELP)
            case "/image":
                words = _words(rest)
                if not words:
                    raise UsageError("/image needs a picture.", "For example: /image cat.png")
                self._add_pictures(
                    [
                        read_picture(word, self._console, self._limits, self._max_side)
                        for word in words
                    ]
                )
            case "/retry":
                self._retry()
            case "/save":
                words = _words(rest)
                self._save(words[0] if len(words) == 1 else rest.strip())
            case _ if command.startswith("/"):
                raise UsageError(
                    f"Unknown command: {command}",
                    suggest(command, COMMANDS, otherwise="/help lists all commands.")
                    + " For a question that begins with /, put a space before it.",
                )
            case _:
                self._ask(self._conversation.then(Message.user(line.strip(), self._next)))

    def _add_pictures(self, pictures: list[Picture]) -> None:
        """Add pictures to the next question, and encode them while the user types."""
        self._next += pictures
        if not pictures:
            return
        self._print("Ask about " + ", ".join(picture.name for picture in self._next) + ".")
        conversation = self._conversation.then(Message.user("", self._next))
        if self._cancel_warming is not None:
            self._cancel_warming.set()
        self._cancel_warming = threading.Event()
        arguments = (conversation, self._cancel_warming)
        threading.Thread(target=self._warm, args=arguments, daemon=True).start()

    def _warm(self, conversation: Conversation, cancel: threading.Event) -> None:
        # Any error will occur again when the question is answered, and is shown then.
        with contextlib.suppress(Exception):
            self._engine.warm(conversation, cancel)

    def _ask(self, conversation: Conversation) -> None:
        reply = self._stream(conversation)
        if reply is not None:
            self._retries = 0
            self._conversation = conversation.then(Message.assistant(reply.text))
            self._next = []

    def _retry(self) -> None:
        messages = self._conversation.messages
        if not messages:
            raise UsageError("There is no question to answer again.", "Ask a question first.")
        earlier = messages[-1].text
        self._retries += 1
        generation = vary(self._options.generation, self._engine.info.defaults, self._retries)
        reply = self._stream(
            Conversation(messages[:-1]), replace(self._options, generation=generation)
        )
        if reply is not None:
            if reply.text == earlier:
                self._print(f"The same answer again{_reason(self._options, generation)}.")
            self._conversation = Conversation((*messages[:-1], Message.assistant(reply.text)))

    def _stream(
        self, conversation: Conversation, options: AnswerOptions | None = None
    ) -> Reply | None:
        """Answer the last message; return None if Ctrl-C is pressed before the first word."""
        parts: list[str] = []

        def write(text: str) -> None:
            parts.append(text)
            write_stdout(text)

        try:
            with spinner(self._console, ENCODING) as status:
                reply = reply_to(
                    self._engine, conversation, options or self._options, write, status
                )
        except KeyboardInterrupt:  # leaving the stream stops the model
            print()
            text = "".join(parts)
            return Reply(text, text, 0.0) if text else None
        print()
        print_notes(reply, self._console)
        return reply

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError("/save needs a file name.", "For example: /save cat.json")
        if not self._conversation.messages:
            raise UsageError("There is nothing to save yet.", "Ask a question first.")
        file = ConversationFile.of(self._conversation, self._engine.info.label)
        try:
            Path(name).write_text(file.to_json() + "\n", "utf-8")
        except OSError as error:
            raise UsageError(f"Could not write {name}: {error.strerror}.") from error
        self._print(f"Saved to {name}.")

    def _print(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False, soft_wrap=True)


def _reason(options: AnswerOptions, generation: GenerationOptions) -> str:
    """Return why a second answer may equal the first."""
    if options.choices:
        return ": --choices are scored, not sampled"
    if generation.temperature:
        return f", though sampled at temperature {generation.temperature:g}"
    return ": --temperature 0 always gives the same"


def _words(text: str) -> list[str]:
    """Split a text as a shell does, with quotes, and ~ for the home folder."""
    try:
        words = shlex.split(text)
    except ValueError:  # an unpaired quote is part of the name
        words = [text]
    return [os.path.expanduser(word) for word in words]
