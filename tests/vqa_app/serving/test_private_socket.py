"""Sockets for programs of the same user: found, private, and cleaned up after a kill."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import PATIENCE
from vqa_app.errors import UsageError
from vqa_app.serving.private_socket import (
    Connection,
    ConnectionLost,
    PrivateSocket,
    connect,
    connections,
    make_socket_folder,
    socket_folder,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no Unix sockets")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test a runtime folder of its own, with a path short enough for sockets."""
    run = Path(os.environ["XDG_RUNTIME_DIR"]) / f"t{os.urandom(4).hex()}"
    run.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run))
    return run / "vqa-app"


def echo(connection: Connection) -> None:
    while True:
        message = connection.receive()
        connection.send({"echo": message["say"], "data": len(connection.read(message["size"]))})


@pytest.fixture
def server(folder: Path) -> Iterator[PrivateSocket]:
    listening = PrivateSocket(echo)
    yield listening
    listening.close()


def test_messages_and_bytes_arrive_whole(server: PrivateSocket) -> None:
    (connection,) = connections()
    for size in (0, 5, 3_000_000):
        connection.send({"say": "ü\n\udc80", "size": size}, b"\n" * size)
        assert connection.receive() == {"echo": "ü\n\udc80", "data": size}
    connection.close()


def test_several_programs_are_answered_at_once(server: PrivateSocket) -> None:
    open_connections = [connect(server.path) for _ in range(20)]
    for connection in reversed(open_connections):
        assert connection is not None
        assert connection.ask({"say": "hello", "size": 0})["echo"] == "hello"
        connection.close()


def test_nobody_else_can_enter(server: PrivateSocket, folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_file_is_gone_once_the_server_is(server: PrivateSocket, folder: Path) -> None:
    server.close()
    assert list(folder.iterdir()) == []
    assert list(connections()) == []


def test_what_a_killed_server_left_is_removed(server: PrivateSocket, folder: Path) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(folder / "1-dead.sock"))
    dead.listen()
    dead.close()
    (connection,) = connections()
    connection.close()
    assert [str(file) for file in folder.iterdir()] == [server.path]


def test_the_youngest_server_comes_first(server: PrivateSocket) -> None:
    os.utime(server.path, (1, 1))
    younger = PrivateSocket(lambda connection: connection.send({"younger": True}))
    first, second = connections()
    assert first.receive() == {"younger": True}
    assert second.ask({"say": "older", "size": 0})["echo"] == "older"
    younger.close()


def test_a_server_that_does_not_answer_is_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqa_app.serving.private_socket.CONNECT_SECONDS", 0.05)
    ended = threading.Event()
    silent = PrivateSocket(lambda connection: ended.wait(PATIENCE) and None)
    (connection,) = connections()
    with pytest.raises(ConnectionLost):
        connection.ask({"say": "hello"})
    ended.set()
    silent.close()


@pytest.mark.parametrize("line", [b"no json\n", b"[1]\n", b"{", b"[" * 10_000 + b"\n"])
def test_what_is_no_message_ends_the_connection(server: PrivateSocket, line: bytes) -> None:
    raw = socket.socket(socket.AF_UNIX)
    raw.connect(server.path)
    raw.sendall(line)
    raw.shutdown(socket.SHUT_WR)
    assert raw.recv(100) == b""
    raw.close()


def test_a_folder_that_others_can_enter_is_refused(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(UsageError, match="open to other users"):
        PrivateSocket(echo)
    assert list(connections()) == []


def test_a_link_to_another_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    folder.symlink_to(tmp_path)
    with pytest.raises(UsageError, match="is not a folder"):
        make_socket_folder()


def test_a_folder_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_socket_folder()
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    monkeypatch.setattr("vqa_app.serving.private_socket.socket_folder", lambda: str(folder))
    with pytest.raises(UsageError, match="belongs to another user"):
        make_socket_folder()


def test_a_folder_that_cannot_be_made_is_reported(folder: Path) -> None:
    folder.parent.rmdir()
    folder.parent.touch()
    with pytest.raises(UsageError, match=r"Could not write to .*: Not a directory"):
        PrivateSocket(echo)


@pytest.mark.parametrize("run", [None, "", "relative", "/does/not/exist", "LONG"])
def test_without_a_runtime_folder_there_is_one_for_temporary_files(
    run: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if run == "LONG":
        long = tmp_path / ("x" * 90)
        long.mkdir()
        run = str(long)
    if run is None:
        monkeypatch.delenv("XDG_RUNTIME_DIR")
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", run)
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert socket_folder() == f"/tmp/vqa-app-{os.geteuid()}"
