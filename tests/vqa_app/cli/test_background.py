"""Servers in the background: started once, found, stopped, and reported if they cannot start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests import tiny
from tests.waiting import PATIENCE, until
from vqa_app.cli import background
from vqa_app.cli.main import app
from vqa_app.cli.model_identity import model_identity
from vqa_app.cli.quick_ask import ask_running_server
from vqa_app.errors import UsageError, VqaError
from vqa_app.serving.private_socket import connections

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no Unix sockets")

STAND_IN = """
import sys, threading
from tests.fake_engine import FakeEngine
from vqa_app.cli.ask_service import AskService
from vqa_app.serving.engine_pool import EnginePool
from vqa_app.serving.model_choices import BUILTIN
from vqa_app.serving.openai_api import ChatApi

service = AskService(BUILTIN, "auto", "auto", background=sys.argv[1] == "background")
load = service.remembering(lambda choice, progress: FakeEngine())
pool = EnginePool(load, lambda: [BUILTIN], BUILTIN.key)
service.open(ChatApi(lambda owner: pool), pool)
pool.wait()
print("ready", flush=True)
threading.Event().wait()
"""
"""A server of the built-in model, for which a fake engine answers."""


@pytest.fixture
def console() -> Console:
    return Console(stderr=True)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Give the test folders of its own for sockets and the log, and end what it has started."""
    run = Path(os.environ["XDG_RUNTIME_DIR"]) / f"t{os.urandom(4).hex()}"
    run.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    yield run / "vqa-app"
    background.stop_all()


def stand_in(kind: str) -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-c", STAND_IN, kind], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    return server


def test_a_server_in_the_background_is_started_once_and_stopped(
    folder: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, other = stand_in("background"), stand_in("terminal")
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started another"))
        status = background.start_in_background(model_identity("builtin"), [], console)
        with pytest.raises(UsageError, match="with other options"):
            background.start_in_background(model_identity("builtin"), [], console, "with a key")
    assert status["pid"] == server.pid
    runner = CliRunner()
    stopped = runner.invoke(app, ["serve", "--stop"])
    assert stopped.stdout == f"Stopped the server of builtin (process {server.pid}).\n"
    assert server.wait(PATIENCE) == -signal.SIGTERM
    assert runner.invoke(app, ["serve", "--stop"]).stderr == "No server runs in the background.\n"
    assert ask_running_server(["Hello there"]) == 0  # the one in a terminal goes on
    other.kill()
    other.wait(PATIENCE)


def test_why_a_server_cannot_start_is_said(folder: Path, console: Console) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ["serve", "--in-background", "--port", str(port)]
        with pytest.raises(VqaError, match=f"Port {port} is taken") as failure:
            background.start_in_background({}, words, console)
    assert failure.value.exit_code == 2
    assert "--port" in failure.value.hint
    assert f"Port {port} is taken" in background.log_file().read_text(encoding="utf-8")


def test_a_server_that_ends_without_a_word_is_reported(folder: Path, console: Console) -> None:
    with pytest.raises(VqaError, match="exit code 0 before it was ready") as failure:
        background.start_in_background({}, ["--version"], console)
    assert failure.value.exit_code == 1
    assert str(background.log_file()) in failure.value.hint


def test_a_server_starts_without_a_log_if_that_cannot_be_written(
    folder: Path, console: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    with console.capture() as printed, pytest.raises(VqaError, match="before it was ready"):
        background.start_in_background({}, ["--version"], console)
    assert "No log: could not write" in printed.get()


def test_a_long_log_is_begun_anew(
    folder: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "MAX_LOG_BYTES", 100)
    log = background.log_file()
    log.parent.mkdir()
    log.write_bytes(b"x" * 200)
    with pytest.raises(VqaError):
        background.start_in_background({}, ["--version"], console)
    assert b"xx" not in log.read_bytes()
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("words", [["--background"], ["--stop"]])
def test_a_folder_that_is_not_private_is_reported(folder: Path, words: list[str]) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    result = CliRunner().invoke(app, ["serve", *words])
    folder.chmod(0o700)
    assert result.exit_code == 2
    assert "is open to other users" in result.stderr


@pytest.mark.slow
def test_two_that_start_at_once_are_one_server_whose_kill_leaves_no_trace(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def vqa(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "vqa_app", *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    starting = [vqa("serve", "--background", "--no-port") for _ in range(2)]
    for process in starting:  # each imports torch, or waits for the other one to do so
        output, errors = process.communicate(timeout=4 * PATIENCE)
        assert process.returncode == 0, errors
        assert "vqa-app serve --stop" in output
    (file,) = folder.glob("*.sock")
    cat = str(tmp_path / "cat.png")
    tiny.picture(0).image.save(cat)
    assert ask_running_server([cat, "What colour is it?"]) == 0
    assert capsys.readouterr().out.strip()
    os.kill(int(file.name.partition("-")[0]), signal.SIGKILL)
    assert file.exists()
    assert ask_running_server([cat, "What colour is it?"]) is None
    # Threads of the process may outlive it for a moment, with the socket.
    until(lambda: not list(connections()) and not file.exists())
