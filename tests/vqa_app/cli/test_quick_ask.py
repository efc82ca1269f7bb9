"""`vqa-app ask` through a running server gives what it gives without one."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from tests.fake_engine import FakeEngine
from tests.waiting import PATIENCE, until
from vqa_app.cli import ask, quick_ask
from vqa_app.cli.ask_service import AskService
from vqa_app.cli.main import app
from vqa_app.cli.options import EngineOptions
from vqa_app.cli.quick_ask import FLAGS, OPTIONS, VARIABLES, ask_running_server
from vqa_app.cli.reply import AnswerOptions, reply_to
from vqa_app.engine.protocol import GenerationOptions
from vqa_app.errors import UsageError
from vqa_app.prompts.conversation import Conversation
from vqa_app.serving import private_socket
from vqa_app.serving.engine_pool import EnginePool
from vqa_app.serving.model_choices import BUILTIN
from vqa_app.serving.openai_api import ChatApi

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no Unix sockets")

QUESTION = "What is it?"


class Server:
    """A server of the built-in model, which a fake engine stands for, in this process."""

    def __init__(self, engine: FakeEngine) -> None:
        self.service = AskService(BUILTIN, "auto", "auto")
        load = self.service.remembering(lambda choice, progress: engine)
        self.pool = EnginePool(load, lambda: [BUILTIN], BUILTIN.key)
        self.api = ChatApi(lambda owner: self.pool, max_answers=2)
        assert self.service.open(self.api, self.pool) is None
        self.pool.wait()

    def close(self) -> None:
        self.service.close()
        self.api.stop_all()
        self.pool.close()


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    fake = FakeEngine()
    yield fake
    fake.close()


@pytest.fixture
def server(engine: FakeEngine) -> Iterator[Server]:
    started = Server(engine)
    yield started
    started.close()


@pytest.fixture
def cat(tmp_path: Path) -> str:
    path = tmp_path / "cat.png"
    Image.new("RGBA", (32, 24), (250, 120, 0, 100)).save(path)
    return str(path)


def without_times(text: str) -> str:
    return re.sub(r'("seconds_to_first_token"): [\d.e-]+', r"\1: 0", text)


Prepare = Callable[[FakeEngine, Path], object]

COMMANDS: dict[str, tuple[list[str], Prepare | None]] = {
    "plain": (["CAT", QUESTION], None),
    "without a picture": (["Hello there"], None),
    "json": (["--json", "CAT", "CAT", QUESTION], None),
    "options": (["--json", "--temperature=0", "--seed", "3", "CAT", QUESTION], None),
    "cut off": (["--max-new-tokens", "2", "CAT", QUESTION], None),
    "choices": (["--json", "--choices", "red,blue", "CAT", QUESTION], None),
    "a single choice": (["--choices", "red", "CAT", QUESTION], None),
    "not sure": (["--abstain", "0.8", "CAT", QUESTION], None),
    "not sure, in json": (["--abstain", "0.8", "--json", "CAT", QUESTION], None),
    "system prompt": (
        ["--system", "Be brief.", "CAT", QUESTION],
        lambda engine, _: setattr(engine, "system_prompts", False),
    ),
    "turns left out": (["CAT", QUESTION], lambda engine, _: setattr(engine, "dropped", 2)),
    "too long": (["CAT", "why " * 5000], None),
    "wrong number": (["--top-p", "7", "CAT", QUESTION], None),
    "no picture": (["CAT", QUESTION], lambda _, cat: cat.write_bytes(b"GIF89a")),
    "empty": (["CAT", QUESTION], lambda _, cat: cat.write_bytes(b"")),
    "too many pixels": (["--max-megapixels", "0.0001", "CAT", QUESTION], None),
    "too large": (["--max-file-mb", "0.00001", "CAT", QUESTION], None),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_server_prints_what_the_command_prints(
    name: str,
    server: Server,
    engine: FakeEngine,
    cat: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    words, prepare = COMMANDS[name]
    words = [cat if word == "CAT" else word for word in words]
    if prepare is not None:
        prepare(engine, Path(cat))
    code = ask_running_server(words)
    printed = capfd.readouterr()
    engine._seen.clear()
    monkeypatch.setattr(ask, "open_engine", lambda *_: engine)
    local = CliRunner().invoke(app, ["ask", *words])
    assert code == local.exit_code
    assert without_times(printed.out) == without_times(local.stdout)
    assert printed.err == local.stderr


def test_a_picture_from_stdin_is_sent(
    server: Server, cat: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = io.BytesIO(Path(cat).read_bytes())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data, encoding="utf-8"))
    assert ask_running_server(["--json", "-", QUESTION]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["pictures"][0] | {"sha256": ""} == {
        "name": "stdin",
        "sha256": "",
        "width": 32,
        "height": 24,
        "changes": ["transparency replaced by white"],
    }


@pytest.mark.parametrize(
    "words",
    [
        ["CAT"],
        ["CAT", " "],
        ["missing.png", QUESTION],
        ["--no-server", "CAT", QUESTION],
        ["--explain", "map.png", "CAT", QUESTION],
        ["--each", "CAT", QUESTION],
        ["--no-such-option", "CAT", QUESTION],
        ["--max-new-tokens", "many", "CAT", QUESTION],
        ["--abstain", "2", "CAT", QUESTION],
        ["--schema", "missing.json", "CAT", QUESTION],
        ["--model", "http://localhost:1/v1", "CAT", QUESTION],
        ["--dtype", "bfloat16", "CAT", QUESTION],
        ["--quantize", "4bit", "CAT", QUESTION],
        ["-m", "someone/another-model", "CAT", QUESTION],
        ["CAT", QUESTION, "--seed"],
        ["-", QUESTION],
        ["--help"],
    ],
)
def test_what_is_not_plain_or_needs_another_model_is_left_to_the_command(
    words: list[str],
    server: Server,
    engine: FakeEngine,
    cat: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    assert ask_running_server([cat if word == "CAT" else word for word in words]) is None
    assert not engine.asked
    assert capsys.readouterr() == ("", "")


def test_without_a_server_the_command_answers(cat: str) -> None:
    assert ask_running_server([cat, QUESTION]) is None


def test_the_options_are_those_of_the_command() -> None:
    parameters: list[Any] = list(typer.main.get_command(ask.app).params)  # type: ignore[attr-defined]
    known = {option: p for p in parameters for option in p.opts if option.startswith("--")}
    local = {"--model-api-key", "--explain", "--each", "--out", "--no-server"}
    assert known.keys() == OPTIONS.keys() | set(FLAGS) | local
    for name, (kind, default) in OPTIONS.items():
        assert known[name].default == default, name
        number = known[name].type_descriptor.annotation
        assert kind is (number if number in (int, float) else str), name
        assert known[name].envvar == VARIABLES.get(name), name


def test_limits_come_from_the_environment_too(
    server: Server, cat: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VQA_MAX_MEGAPIXELS", "0.0001")
    assert ask_running_server([cat, QUESTION]) == 3
    assert "the limit is 0.0001" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["version", "files", "calibrations"])
def test_a_server_with_other_code_or_weights_is_not_asked(
    change: str,
    server: Server,
    cat: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if change == "version":
        monkeypatch.setattr("vqa_app.__version__", "0.0.1")
    elif change == "files":
        monkeypatch.setattr("vqa_app.cli.model_identity._PACKAGE", str(tmp_path))
    else:
        (tmp_path / "vqa-app" / "calibrations").mkdir(parents=True)
        (tmp_path / "vqa-app" / "calibrations" / "a.json").touch()
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert ask_running_server([cat, QUESTION]) is None


def test_a_run_that_was_trained_again_is_another_model(tmp_path: Path) -> None:
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(b"one")
    before = quick_ask.model_identity(str(tmp_path))
    assert quick_ask.model_identity(f"{tmp_path}/.") == before
    weights.write_bytes(b"another")
    assert quick_ask.model_identity(str(tmp_path)) != before


def test_what_a_full_server_cannot_take_is_left_to_the_command(server: Server, cat: str) -> None:
    with server.api.answering(), server.api.answering():
        assert ask_running_server([cat, QUESTION]) is None
    assert ask_running_server([cat, QUESTION]) == 0


def test_a_model_that_was_unloaded_is_loaded_for_the_question(
    server: Server, engine: FakeEngine, cat: str
) -> None:
    server.pool.release_idle()
    engine.reopen()
    assert ask_running_server([cat, QUESTION]) == 0


def test_a_failure_of_the_server_before_the_first_word_is_left_to_the_command(
    server: Server, engine: FakeEngine, cat: str
) -> None:
    engine.error = RuntimeError("a bug")
    assert ask_running_server([cat, QUESTION]) is None


def test_a_server_that_stops_in_the_middle_is_reported(
    server: Server, engine: FakeEngine, cat: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.error, engine.error_after = RuntimeError("a bug"), 2
    assert ask_running_server([cat, QUESTION]) == 4
    printed = capsys.readouterr()
    assert printed.out == "You asked"
    assert "server that was answering has stopped" in printed.err


def test_a_server_in_the_middle_of_an_answer_in_json_is_left_to_the_command(
    server: Server, engine: FakeEngine, cat: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.error, engine.error_after = RuntimeError("a bug"), 2
    assert ask_running_server(["--json", cat, QUESTION]) is None
    assert capsys.readouterr().out == ""


def start(*words: str) -> subprocess.Popen[str]:
    """Ask in a process of its own, which prints the heavy packages that it has imported."""
    code = (
        "import sys\n"
        "from vqa_app.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'numpy', 'PIL', 'pydantic', 'typer', 'rich',"
        " 'asyncio', 'httpx', 'http'}\n"
        "    print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, "ask", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def test_the_process_that_asks_imports_nothing_heavy(server: Server, cat: str) -> None:
    Image.new("RGB", (8, 8)).save(cat)
    output, errors = start(cat, QUESTION).communicate(timeout=PATIENCE)
    assert output == f"You asked {QUESTION!r} about one picture.\n"
    assert errors == "[]\n"


def start_and_hold(engine: FakeEngine, cat: str) -> subprocess.Popen[str]:
    """Start a process that asks, and hold the answer after its first word."""
    engine.hold(1)
    asking = start(cat, QUESTION)
    assert asking.stdout is not None
    assert asking.stdout.read(3) == "You"
    return asking


def test_ctrl_c_stops_the_answer_on_the_server(
    server: Server, engine: FakeEngine, cat: str
) -> None:
    asking = start_and_hold(engine, cat)
    asking.send_signal(signal.SIGINT)
    _, errors = asking.communicate(timeout=PATIENCE)
    assert asking.returncode == 130
    assert "Interrupted." in errors
    assert "Traceback" not in errors
    until(lambda: server.api.answers_in_progress == 0)


def test_a_reader_that_has_enough_ends_the_answer(
    server: Server, engine: FakeEngine, cat: str
) -> None:
    asking = start_and_hold(engine, cat)
    assert asking.stdout is not None
    asking.stdout.close()
    engine.release()
    assert asking.wait(PATIENCE) == 1
    until(lambda: server.api.answers_in_progress == 0)


def test_a_stopping_server_is_no_longer_found(server: Server, cat: str) -> None:
    server.service.close()
    assert list(private_socket.connections()) == []
    assert ask_running_server([cat, QUESTION]) is None


def test_a_terminal_is_told_once_a_day_how_answers_come_sooner(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    options = EngineOptions(model="runs/a", dtype="float32")

    def hint() -> str:
        shown = io.StringIO()
        ask._hint_at_background(options, Console(file=shown, force_terminal=True, width=200))
        return shown.getvalue()

    assert hint() == ""  # the answer goes into a pipe
    sys.stdout.isatty = lambda: True  # type: ignore[method-assign]
    assert "vqa-app serve --background --model runs/a --dtype float32" in hint()
    assert hint() == ""
    stamp = tmp_path / "vqa-app" / "hint-at-background"
    os.utime(stamp, (1, 1))
    assert hint()


def test_an_answer_is_complete_without_a_home_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hint needs one, to be given only once a day."""

    def no_home() -> Path:
        raise UsageError("This user has no home folder.")

    monkeypatch.setattr(ask, "user_data", no_home)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    sys.stdout.isatty = lambda: True  # type: ignore[method-assign]
    shown = io.StringIO()
    ask._hint_at_background(EngineOptions(), Console(file=shown, force_terminal=True))
    assert "serve --background" in shown.getvalue()


def test_the_scoring_of_choices_ends_when_the_asker_has_gone(engine: FakeEngine) -> None:
    given: list[threading.Event | None] = []

    def score(
        conversation: Conversation, choices: Sequence[str], cancel: threading.Event | None = None
    ) -> list[float]:
        given.append(cancel)
        raise CancelledError

    engine.score = score  # type: ignore[method-assign]
    gone = threading.Event()
    options = AnswerOptions(GenerationOptions(), ("yes", "no"))
    with pytest.raises(CancelledError):
        reply_to(engine, Conversation.ask(QUESTION, []), options, cancel=gone)
    assert given == [gone]


def test_background_starts_a_server_with_the_same_model(
    cat: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        started.append(command)
        return subprocess.CompletedProcess(command, 1, "", "Error: The disk is full.\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv(quick_ask.BACKGROUND_VARIABLE, "1")
    words = ["-m", "runs/a", "--dtype", "float32", "--offline", cat, QUESTION]
    assert ask_running_server(words) is None
    words = ["serve", "--background", "--no-port", "--model=runs/a", "--dtype=float32"]
    words.append("--offline")
    assert started == [[sys.executable, "-m", "vqa_app", *words]]
    assert "No server in the background. Error: The disk is full." in capsys.readouterr().err
