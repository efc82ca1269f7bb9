"""`vqa-app ask` with the model that a server of the same user has loaded on this machine.

Runs before anything else of the command line and imports next to nothing, so that an answer takes a
fraction of a second. Whatever is not plain is left to the command itself (`vqa_app.cli.ask`), which
knows every option and says what is wrong with a question. The other side is
`vqa_app.cli.ask_service`.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, NamedTuple

from vqa_app.cli.failures import report_failure
from vqa_app.cli.model_identity import model_identity
from vqa_app.cli.terminal import (
    json_line,
    prepare_streams,
    print_note,
    print_warning,
    spinner,
    write_stdout,
)
from vqa_app.errors import ModelError, VqaError
from vqa_app.pictures.names import is_url, names_picture
from vqa_app.serving.private_socket import Connection, ConnectionLost, connections

if TYPE_CHECKING:
    from rich.console import Console

MODEL_OPTIONS: dict[str, str | None] = {
    "--model": "builtin",
    "--adapter": None,
    "--quantize": None,
    "--device": "auto",
    "--dtype": "auto",
    "--revision": None,
}
"""Options that say which model answers, with their defaults."""
OPTIONS: dict[str, tuple[type, Any]] = {
    **{name: (str, default) for name, default in MODEL_OPTIONS.items()},
    "--max-new-tokens": (int, 256),
    "--temperature": (float, None),
    "--top-p": (float, None),
    "--seed": (int, None),
    "--system": (str, None),
    "--choices": (str, None),
    "--schema": (str, None),
    "--abstain": (float, None),
    "--max-file-mb": (float, 20.0),
    "--max-megapixels": (float, 50.0),
}
"""Options of `vqa-app ask` with which a server can answer: their types and defaults."""
FLAGS = ("--json", "--offline")
VARIABLES = {"--max-file-mb": "VQA_MAX_FILE_MB", "--max-megapixels": "VQA_MAX_MEGAPIXELS"}
BACKGROUND_VARIABLE = "VQA_BACKGROUND"
"""The environment variable with which `ask` starts a server in the background."""
MAX_BYTES = 48 << 20
"""Pictures of one question that are sent to a server, all together."""
_QUIET_SECONDS = 0.3
"""How long nothing is shown while there is no answer."""


class _Question(NamedTuple):
    """A question with its options, by their names on the command line."""

    sources: list[str]
    text: str
    options: dict[str, Any]
    schema: str | None
    as_json: bool
    offline: bool


def ask_running_server(words: list[str]) -> int | None:
    """Answer the question of a command line, and return the exit code.

    Returns None, without having printed a part of the answer or read anything that cannot be read
    again, if there is no server with this model, or the question has to be answered without one.

    Args:
        words: What follows `vqa-app ask`.
    """
    if sys.platform == "win32" or os.environ.get("VQA_DEBUG"):
        return None
    question = _parse(words)
    if question is None:
        return None
    prepare_streams()
    try:
        connection = _find_server(question)
        if connection is None and _start_server(question):
            connection = _find_server(question)
        if connection is None:
            return None
        with closing(connection):
            return _answer(question, connection)
    except (Exception, KeyboardInterrupt) as error:
        return report_failure(error)


def _parse(words: list[str]) -> _Question | None:
    """Return the question of a command line; None if it is not plain, or has a mistake."""
    options: dict[str, Any] = {name: default for name, (_, default) in OPTIONS.items()}
    flags: set[str] = set()
    others: list[str] = []
    rest = iter(words)
    try:
        for name, variable in VARIABLES.items():
            if value := os.environ.get(variable):
                options[name] = OPTIONS[name][0](value)
        for word in rest:
            name, equals, value = word.partition("=")
            if word == "-m":
                name = "--model"
            if word in FLAGS:
                flags.add(word)
            elif name in OPTIONS:
                value = os.path.expanduser(value) if equals else next(rest)
                options[name] = OPTIONS[name][0](value)
            elif word.startswith("-") and word != "-":
                return None
            else:
                others.append(word)
        *sources, text = others
        schema = options["--schema"]
        if schema is not None:
            with open(schema, encoding="utf-8-sig") as file:
                schema = file.read()
    except (ValueError, OSError, StopIteration):
        return None
    question = _Question(sources, text, options, schema, "--json" in flags, "--offline" in flags)
    return question if _is_plain(question) else None


def _is_plain(question: _Question) -> bool:
    text, options = question.text, question.options
    abstain = options["--abstain"]
    return (
        bool(text.strip())
        and not names_picture(text)
        and not os.path.isdir(text)
        and all(map(_is_readable, question.sources))
        and question.sources.count("-") < 2
        and "://" not in options["--model"]
        and (abstain is None or 0 <= abstain <= 1)
        and (options["--schema"] is None or options["--choices"] is None)
        and 0 <= options["--max-file-mb"] * 2**20 < MAX_BYTES
        and sum(map(_size, question.sources)) <= MAX_BYTES
    )


def _is_readable(source: str) -> bool:
    if source == "-":
        return sys.stdin is not None and not sys.stdin.isatty()
    return is_url(source) or (os.access(source, os.R_OK) and not os.path.isdir(source))


def _size(source: str) -> int:
    return os.path.getsize(source) if os.path.isfile(source) else 0


def _find_server(question: _Question) -> Connection | None:
    """Return a connection to a server that waits for the question; None if there is no such one."""
    model = {name.strip("-"): question.options[name] for name in MODEL_OPTIONS}
    request = {"command": "ask", "identity": model_identity(**model)}
    for connection in connections():
        try:
            if connection.ask(request).get("accepted"):
                return connection
        except ConnectionLost:  # it has another model, cannot answer, or has just ended
            pass
        connection.close()
    return None


def _start_server(question: _Question) -> bool:
    """Start a server in the background if the environment asks for it; return whether it runs."""
    if os.environ.get(BACKGROUND_VARIABLE, "").lower() not in ("1", "true", "yes", "on"):
        return False
    import subprocess

    command = [sys.executable, "-m", "vqa_app", "serve", "--background", "--no-port"]
    for name, default in MODEL_OPTIONS.items():
        if question.options[name] != default:
            command.append(f"{name}={question.options[name]}")
    if question.offline:
        command.append("--offline")
    with spinner(_console(), "Starting a server in the background"):
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
    # Mistakes in the options and models that cannot be loaded are reported without a server, too.
    if done.returncode not in (0, 2, ModelError.exit_code):
        print_warning(f"No server in the background. {done.stderr.strip()}", _console())
    return done.returncode == 0


def _answer(question: _Question, connection: Connection) -> int | None:
    """Ask the server, and print its answer.

    Raises:
        VqaError: The question cannot be answered.
    """
    is_consumed = not all(is_url(s) or os.path.isfile(s) for s in question.sources)
    has_begun = False
    try:
        _send(question, connection)
        with ExitStack() as stack:
            shown = "Encoding the picture"
            status = None
            while True:
                waits = status is None and not has_begun and sys.stderr.isatty()
                if waits and not connection.wait(_QUIET_SECONDS):
                    status = stack.enter_context(spinner(_console(), shown))
                message = connection.receive()
                if "row" in message:
                    break
                if "problem" in message:
                    raise _error(message)
                if "warning" in message:
                    print_warning(message["warning"], _console())
                elif "note" in message:
                    print_note(message["note"], _console())
                elif "text" in message:
                    has_begun = True
                    if status is not None:
                        status(None)
                    if not question.as_json:
                        write_stdout(message["text"])
                elif "status" in message:
                    shown = message["status"]
                    if status is not None:
                        status(shown)
    except ConnectionLost:
        if is_consumed or (has_begun and not question.as_json):
            raise ModelError(
                "The server that was answering has stopped.", "Ask again, or with --no-server."
            ) from None
        return None
    if question.as_json:
        sys.stdout.write(json_line(message["row"], sys.stdout))
        sys.stdout.flush()
    else:
        write_stdout("\n")
        _print_notes(message["notes"], message["facts"])
    return 0


def _send(question: _Question, connection: Connection) -> None:
    """Send the question with its pictures.

    Raises:
        ImageError: A picture cannot be read.
        ConnectionLost: The server has gone.
    """
    options = question.options
    files = [_read(source, options) for source in question.sources]
    connection.send(
        {
            "question": question.text,
            "pictures": [{"name": name, "size": len(data)} for name, data in files],
            "generation": {
                "max_new_tokens": options["--max-new-tokens"],
                "temperature": options["--temperature"],
                "top_p": options["--top-p"],
                "seed": options["--seed"],
                "system": options["--system"],
                "schema": question.schema,
            },
            "choices": options["--choices"],
            "abstain": options["--abstain"],
            "max_file_mb": options["--max-file-mb"],
            "max_megapixels": options["--max-megapixels"],
        },
        *(data for _, data in files),
    )


def _read(source: str, options: dict[str, Any]) -> tuple[str, bytes]:
    """Return the name of a picture and its file's bytes, one more than allowed at most."""
    most = int(options["--max-file-mb"] * 2**20) + 1
    if source == "-":
        return "stdin", sys.stdin.buffer.read(most)
    if is_url(source):
        from vqa_app.pictures.download import fetch_file

        with spinner(_console(), "Downloading the picture"):
            data, name = fetch_file(source, most - 1)
        return name, data
    try:
        with open(source, "rb") as file:
            return os.path.basename(source), file.read(most)
    except OSError as error:  # it has changed since it was looked at
        raise ConnectionLost from error


def _error(message: dict[str, Any]) -> VqaError:
    error = VqaError(message["problem"], message["hint"])
    error.exit_code = message["exit_code"]
    return error


def _print_notes(notes: list[str], facts: str) -> None:
    if facts and (sys.stderr.isatty() or "FORCE_COLOR" in os.environ) and _console().is_terminal:
        notes = [*notes, facts]
    for note in notes:
        print_note(note, _console())


def _console() -> Console:
    """Return the terminal; only when something is shown there, because rich is large."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)
