"""Servers in the background: start one and wait until it is ready, find them, stop them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from filelock import Timeout
from rich.console import Console

from vqa_app.cli.terminal import spinner
from vqa_app.errors import UsageError, VqaError
from vqa_app.files import lock_file
from vqa_app.serving.private_socket import (
    Connection,
    ConnectionLost,
    connections,
    make_socket_folder,
)
from vqa_app.user_folders import user_data

IDLE_SECONDS = 3600.0
"""After this time without a question a server in the background ends."""
STOP_SECONDS = 15.0
"""How long a server may take to stop."""
MAX_LOG_BYTES = 1 << 20
"""Size of the log from which a new one is begun."""
_POLL_SECONDS = 0.1


def log_file() -> Path:
    """Return the file to which servers in the background write."""
    return user_data() / "background.log"


def start_in_background(
    identity: dict[str, Any], words: Sequence[str], console: Console, settings: str | None = None
) -> dict[str, Any]:
    """Start a server, unless one in the background has this model; return its status once ready.

    Args:
        identity: See `vqa_app.cli.model_identity`.
        words: The command line of the server, without the program.
        console: Shows progress and problems.
        settings: See `vqa_app.cli.ask_service.AskService`; None accepts a server with any.

    Raises:
        UsageError: A server in the background has this model and other settings.
        VqaError: It cannot be started, or its model cannot be loaded.
    """
    folder = make_socket_folder()
    with spinner(console, "Starting"), _starting(Path(folder)):
        for _, status in _servers():
            is_same = status["background"] and status["identity"] == identity
            if is_same and status["phase"] != "failed":
                if settings not in (None, status.get("settings")):
                    raise UsageError(
                        "A server in the background has this model, with other options.",
                        "Stop it first: vqa-app serve --stop",
                    )
                return status
        log, start = _open_log(console)
        with log or nullcontext():
            child = subprocess.Popen(
                [sys.executable, "-m", "vqa_app", *words],
                stdin=subprocess.DEVNULL,
                stdout=log or subprocess.DEVNULL,
                stderr=log or subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal does not reach it
            )
        try:
            while child.poll() is None:
                for _, status in _servers():
                    if status["pid"] == child.pid and status["phase"] == "ready":
                        return status
                time.sleep(_POLL_SECONDS)
        except BaseException:
            child.terminate()
            raise
    raise _failure(child.returncode, start if log else None)


def stop_all() -> list[dict[str, Any]]:
    """Stop the servers in the background, and return their last status.

    Raises:
        VqaError: One of them does not stop.
    """
    make_socket_folder()
    stopped = []
    for connection, status in _servers():
        if not status["background"]:
            continue
        try:
            connection.send({"command": "stop"})
            if not connection.wait(STOP_SECONDS):  # it closes the connection when it ends
                raise VqaError(
                    f"The server with process id {status['pid']} does not stop.",
                    f"End it: kill {status['pid']}",
                )
        except ConnectionLost:
            pass
        stopped.append(status)
    return stopped


def _servers() -> Iterator[tuple[Connection, dict[str, Any]]]:
    """Yield the servers of this user that respond, whatever their version, with their status."""
    for connection in connections():
        try:
            status = connection.ask({"command": "status"})
        except ConnectionLost:
            status = {}
        if {"identity", "phase", "pid", "background"} <= status.keys():
            yield connection, status
        connection.close()


@contextmanager
def _starting(folder: Path) -> Iterator[None]:
    """Wait until no other process starts a server, so that two do not load the same model."""
    while True:
        try:
            lock = lock_file(folder / "background.lock")
            break
        except Timeout:
            time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _open_log(console: Console) -> tuple[IO[bytes] | None, int]:
    """Open the log; return it with its size, or None if it cannot be written."""
    path = log_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
            path.unlink()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        file = os.fdopen(os.open(path, flags, 0o600), "ab")
        file.write(time.strftime("-- %Y-%m-%d %H:%M:%S\n").encode())
        file.flush()
    except OSError as error:
        console.print(
            f"No log: could not write {path}: {error.strerror}.", style="yellow", markup=False
        )
        return None, 0
    return file, file.tell()


def _failure(code: int, start: int | None) -> VqaError:
    """Return why a server has ended, as its log says.

    Args:
        code: Its exit code.
        start: Where in the log its lines begin; None without a log.
    """
    lines = ""
    if start is not None:
        lines = log_file().read_bytes()[start:].decode(errors="replace")
    known = re.search(r"^Error: (.*)\n(.*)", lines, re.MULTILINE)
    if known:
        error = VqaError(known[1], known[2])
    else:
        hint = "" if start is None else f"Its log may say why: {log_file()}"
        error = VqaError(f"The server ended with exit code {code} before it was ready.", hint)
    error.exit_code = code if code > 0 else 1
    return error


def check_supported() -> None:
    """Check that servers can run in the background here.

    Raises:
        UsageError: They cannot.
    """
    if sys.platform == "win32":
        raise UsageError(
            "Servers in the background are not available on Windows.",
            "Run `vqa-app serve` in a window of its own.",
        )
