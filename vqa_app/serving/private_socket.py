"""A socket through which programs of the same user ask a server on this machine.

It is a file in a folder that only this user can enter, so whoever can open it needs no key. There
is a file for each server, named after its process; one that nobody listens to is left from a server
that was killed, and removed by whoever finds it. Windows has no such sockets in Python.

A message is a line of JSON, and pictures are bytes behind the message that tells their sizes.

Imports next to nothing, because every `vqa-app ask` looks here first.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from vqa_app.errors import UsageError

SUFFIX = ".sock"
MAX_LINE = 8 << 20
"""Bytes of the longest message; schemas and system prompts are part of one."""
CONNECT_SECONDS = 2.0
"""How long a server may take to take a connection, and to answer the first message. It does so in a
thread that no answer keeps busy."""
_LONGEST_PATH = 100
"""Bytes of the longest path of a socket: some systems have room for 104, with the NUL byte."""
_LONGEST_NAME = 32


class ConnectionLost(Exception):
    """Raised when the other side has gone, or does not speak this protocol."""


def socket_folder() -> str:
    """Return the folder of the sockets; it may not exist yet.

    Raises:
        UsageError: This system has no such sockets.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise UsageError("Python has no Unix sockets on this system.")
    run = os.environ.get("XDG_RUNTIME_DIR", "")
    folders = [os.path.join(run, "vqa-app")] if os.path.isabs(run) and _is_own(run) else []
    name = f"vqa-app-{os.geteuid()}"
    folders += [os.path.join(base, name) for base in (os.environ.get("TMPDIR"), "/tmp") if base]
    fitting = (f for f in folders if len(os.fsencode(f)) + _LONGEST_NAME < _LONGEST_PATH)
    return next(fitting, folders[-1])


def _is_own(folder: str) -> bool:
    try:
        return os.stat(folder).st_uid == os.geteuid()
    except OSError:
        return False


def _check_private(folder: str) -> None:
    """Check that nobody else can enter the folder, or has put it there.

    Raises:
        UsageError: Somebody could.
        OSError: It cannot be looked at.
    """
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError(f"{folder} is not a folder.", "Remove it.")
    if found.st_uid != os.geteuid():
        raise UsageError(f"{folder} belongs to another user.", "Set XDG_RUNTIME_DIR to a folder.")
    if found.st_mode & 0o077:
        raise UsageError(f"{folder} is open to other users.", f"Close it: chmod 700 {folder}")


def make_socket_folder() -> str:
    """Return the folder of the sockets, and create it if need be.

    Raises:
        UsageError: It cannot be created, or is not private.
    """
    folder = socket_folder()
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        _check_private(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def _unwritable(folder: str, error: OSError) -> UsageError:
    return UsageError(
        f"Could not write to {folder}: {error.strerror or error}.",
        "Set XDG_RUNTIME_DIR to a folder.",
    )


class Connection:
    """One side of a conversation. Sending and receiving may happen in different threads."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._received = bytearray()
        """What arrived after the last message that was returned."""

    def send(self, message: dict[str, Any], *data: bytes) -> None:
        """Send a message, and the bytes that belong to it.

        Raises:
            ConnectionLost: The other side has gone.
        """
        try:
            self._socket.sendall(b"".join((json.dumps(message).encode(), b"\n", *data)))
        except OSError as error:
            raise ConnectionLost from error

    def receive(self) -> dict[str, Any]:
        """Return the next message.

        Raises:
            ConnectionLost: There is none, or it is not one.
        """
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            if searched > MAX_LINE:
                raise ConnectionLost
            self._fill()
        try:
            message = json.loads(self._take(end + 1))
        except (ValueError, RecursionError) as error:
            raise ConnectionLost from error
        if not isinstance(message, dict):
            raise ConnectionLost
        return message

    def read(self, size: int) -> bytes:
        """Return bytes that belong to the last message.

        Raises:
            ConnectionLost: There are fewer.
        """
        while len(self._received) < size:
            self._fill()
        return self._take(size)

    def _fill(self) -> None:
        try:
            data = self._socket.recv(1 << 18)
        except OSError as error:
            raise ConnectionLost from error
        if not data:
            raise ConnectionLost
        self._received += data

    def _take(self, size: int) -> bytes:
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a message, and return the answer, which takes `CONNECT_SECONDS` at most.

        Raises:
            ConnectionLost: There is none.
        """
        self.send(message)
        if not self.wait(CONNECT_SECONDS):
            raise ConnectionLost
        return self.receive()

    def wait(self, seconds: float) -> bool:
        """Wait until something has arrived, and return whether it has."""
        return bool(self._received or select.select([self._socket], [], [], seconds)[0])

    def when_closed(self, call: Callable[[], None]) -> None:
        """Call a function, in a thread of its own, once the other side has gone.

        It must have nothing more to send.
        """

        def watch() -> None:
            with contextlib.suppress(OSError):
                self._socket.recv(1)
            call()

        threading.Thread(target=watch, name="private-socket-watch", daemon=True).start()

    def close(self) -> None:
        """Close the connection; the other side receives what was sent."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def connections() -> Iterator[Connection]:
    """Yield a connection to each server of this user, the youngest first.

    Whoever wants no further one closes it or leaves it open; the others are closed by their users.
    """
    try:
        folder = socket_folder()
        _check_private(folder)
        paths = [os.path.join(folder, n) for n in os.listdir(folder) if n.endswith(SUFFIX)]
    except (OSError, UsageError):
        return
    for path in sorted(paths, key=_changed, reverse=True):
        if connection := connect(path):
            yield connection


def _changed(path: str) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0


def connect(path: str) -> Connection | None:
    """Return a connection to the server at a path, or None; remove the file of a dead one."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.settimeout(CONNECT_SECONDS)
        connected.connect(path)
        connected.settimeout(None)
    except ConnectionRefusedError:  # its server was killed: one that starts listens already
        connected.close()
        with contextlib.suppress(OSError):
            os.unlink(path)
        return None
    except OSError:
        connected.close()
        return None
    return Connection(connected)


class PrivateSocket:
    """Listens for programs of the same user until it is closed.

    Args:
        handle: Called with each connection, in a thread of its own.

    Raises:
        UsageError: There is no folder that is private, or it cannot be written to.
    """

    def __init__(self, handle: Callable[[Connection], None]) -> None:
        self._handle = handle
        folder = make_socket_folder()
        name = f"{os.getpid()}-{time.time_ns() & 0xFFFFFFFF:08x}"
        self.path = os.path.join(folder, name + SUFFIX)
        unfinished = os.path.join(folder, name)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(unfinished)
            self._listener.listen(128)
            os.rename(unfinished, self.path)  # who finds the file can connect
        except OSError as error:
            self._listener.close()
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
            raise _unwritable(folder, error) from error
        threading.Thread(target=self._accept, name="private-socket", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connected, _ = self._listener.accept()
            except OSError:
                if self._listener.fileno() < 0:
                    return
                time.sleep(0.1)  # out of file descriptors
                continue
            connection = Connection(connected)
            threading.Thread(
                target=self._run, args=(connection,), name="private-socket-answer", daemon=True
            ).start()

    def _run(self, connection: Connection) -> None:
        try:
            self._handle(connection)
        except ConnectionLost:
            pass
        finally:
            connection.close()

    def close(self) -> None:
        """Stop listening, and remove the file. Connections stay open."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
