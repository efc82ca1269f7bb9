"""The dialogue in a terminal: its commands, and how answers are stopped."""

from __future__ import annotations

import builtins
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from tests.fake_engine import FakeEngine
from tests.waiting import PATIENCE, until
from ui.chat.export import from_json
from ui.storage.database import Store
from ui.storage.picture_files import PictureStore
from vqa_app.cli.repl import TerminalDialogue
from vqa_app.cli.reply import AnswerOptions
from vqa_app.engine.protocol import GenerationOptions
from vqa_app.errors import ModelError
from vqa_app.pictures.picture import Picture, open_picture
from vqa_app.prompts.conversation import Conversation

Talk = Callable[..., str]


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    path = tmp_path / "a cat.png"
    Image.new("RGB", (20, 10), (200, 30, 30)).save(path)
    return path


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    fake = FakeEngine()
    yield fake
    fake.close()


@pytest.fixture
def talk(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> Talk:
    """Type lines into a dialogue, and return what the console printed."""

    def typed(
        *lines: str,
        pictures: list[Picture] | None = None,
        generation: GenerationOptions | None = None,
    ) -> str:
        queue = iter(lines)

        def read(prompt: str) -> str:
            line = next(queue, None)
            if line is None:
                raise EOFError
            return line

        monkeypatch.setattr(builtins, "input", read)
        shown = StringIO()
        console = Console(file=shown, width=200)
        TerminalDialogue(engine, AnswerOptions(generation or GenerationOptions()), console).run(
            pictures or []
        )
        return shown.getvalue()

    return typed


def conversations(engine: FakeEngine) -> list[Conversation]:
    return [conversation for conversation, _ in engine.asked]


def test_a_follow_up_contains_the_earlier_messages(
    talk: Talk, engine: FakeEngine, cat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk("What is it?", "And why?", pictures=[open_picture(cat)])
    first, second = conversations(engine)
    assert first == Conversation.ask("What is it?", [open_picture(cat)])
    assert [message.role for message in second.messages] == ["user", "assistant", "user"]
    assert second.messages[1].text == "You asked 'What is it?' about one picture."
    assert len(second.pictures) == 1
    assert capsys.readouterr().out.splitlines()[1] == "You asked 'And why?' about one picture."


def test_image_adds_a_picture_to_the_next_question(
    talk: Talk, engine: FakeEngine, cat: Path
) -> None:
    talk("Hello", f"/image '{cat}'", "What is it?", "And now?")
    assert [len(c.messages[-1].pictures) for c in conversations(engine)] == [0, 1, 0]


def test_a_picture_is_encoded_while_the_user_types(
    talk: Talk, engine: FakeEngine, cat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warmed = threading.Event()
    warm = engine.warm

    def warm_and_notify(conversation: Conversation, cancel: threading.Event | None = None) -> None:
        warm(conversation, cancel)
        warmed.set()

    monkeypatch.setattr(engine, "warm", warm_and_notify)
    talk(pictures=[open_picture(cat)])
    assert warmed.wait(PATIENCE)
    assert engine.warmed[0].pictures == (open_picture(cat),)


@pytest.mark.parametrize(
    "error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), KeyError("pixels")]
)
def test_errors_while_warming_are_not_printed(
    talk: Talk, engine: FakeEngine, cat: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The thread's traceback would appear in the middle of what the user types."""
    shown = []
    monkeypatch.setattr(threading, "excepthook", shown.append)

    def warm(conversation: Conversation, cancel: threading.Event | None = None) -> None:
        raise error

    monkeypatch.setattr(engine, "warm", warm)
    before = threading.active_count()
    talk("What is it?", pictures=[open_picture(cat)])
    until(lambda: threading.active_count() <= before + 1)  # the engine's own thread remains
    assert not shown
    assert len(engine.asked) == 1


def test_retry_answers_the_last_question_again(talk: Talk, engine: FakeEngine) -> None:
    talk("One?", "Two?", "/retry")
    *_, second, again = conversations(engine)
    assert again == second


def test_retry_samples_another_answer(talk: Talk, engine: FakeEngine) -> None:
    shown = talk("One?", "/retry", "/retry")
    assert [options.temperature for _, options in engine.asked] == [None, 0.7, 0.7]
    assert "The same answer again, though sampled at temperature 0.7." in shown


def test_retry_at_a_chosen_temperature_of_0_says_why_nothing_changes(
    talk: Talk, engine: FakeEngine
) -> None:
    shown = talk("One?", "/retry", generation=GenerationOptions(temperature=0.0, seed=3))
    assert [options.temperature for _, options in engine.asked] == [0.0, 0.0]
    assert "The same answer again: --temperature 0 always gives the same." in shown


def test_retry_needs_a_question(talk: Talk) -> None:
    assert "no question to answer again" in talk("/retry")


def test_the_browser_imports_a_saved_dialogue(
    talk: Talk, engine: FakeEngine, cat: Path, tmp_path: Path
) -> None:
    target = tmp_path / "saved.json"
    talk("What is it?", "And why?", f"/save {target}", pictures=[open_picture(cat)])
    store, picture_store = Store(tmp_path / "chats.sqlite"), PictureStore(tmp_path / "pictures")
    conversation = from_json(store, picture_store, "me", target.read_bytes())
    first, second = store.path("me", conversation)
    assert (first.question, second.question) == ("What is it?", "And why?")
    assert first.answer == "You asked 'What is it?' about one picture."
    assert first.pictures == (open_picture(cat).digest,)
    assert second.pictures == ()


def test_file_names_are_parsed_as_in_a_shell(
    talk: Talk, engine: FakeEngine, cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(cat.parent))
    monkeypatch.setenv("USERPROFILE", str(cat.parent))
    folder = tmp_path / "a folder"
    folder.mkdir()
    talk(f"/image ~/'{cat.name}'", "What is it?", f"/save '{folder}/a.json'", "/save ~/b.json")
    assert len(conversations(engine)[0].pictures) == 1
    assert (folder / "a.json").is_file()
    assert (cat.parent / "b.json").is_file()
    talk("What is it?", f"/save {folder}/c d.json")  # unquoted spaces are part of the name
    assert (folder / "c d.json").is_file()


def test_errors_do_not_end_the_dialogue(
    talk: Talk, engine: FakeEngine, tmp_path: Path, cat: Path
) -> None:
    shown = talk(
        "/image gone.png",
        "/image",
        "/frobnicate",
        "/save",
        "/save early.json",
        "/help",
        "",
        "Still there?",
        f"/save {tmp_path}/no/such/folder.json",
    )
    for message in ("no file gone.png", "needs a picture", "command: /frobnicate", "needs a file"):
        assert message in shown
    assert "nothing to save yet" in shown
    assert "Could not write" in shown
    assert "/retry" in shown
    assert len(engine.asked) == 1


def test_a_failed_question_can_be_asked_again_with_its_picture(
    talk: Talk, engine: FakeEngine, cat: Path
) -> None:
    engine.error = ModelError("It broke.")
    assert "It broke." in talk("What is it?", "What is it?", pictures=[open_picture(cat)])
    first, second = conversations(engine)
    assert first == second


def test_quit_ends_the_dialogue(talk: Talk, engine: FakeEngine) -> None:
    talk("/quit", "never asked")
    assert not engine.asked


def test_ctrl_c_stops_the_answer_and_keeps_its_beginning(talk: Talk, engine: FakeEngine) -> None:
    engine.error, engine.error_after = KeyboardInterrupt(), 2
    talk("One?", "Two?")
    _, second = conversations(engine)
    assert second.messages[1].text == "You asked"


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_ask_without_a_question_opens_a_dialogue_in_a_terminal(cat: Path) -> None:
    import pty

    code = (
        "import sys\nfrom tests.fake_engine import FakeEngine\nfrom vqa_app.cli import ask, main\n"
        "ask.open_engine = lambda options, console: FakeEngine('Bl\x1b[2Jue.')\n"
        "main(['ask', sys.argv[1]])\n"
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(cat)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(theirs)
    os.write(ours, b"What colour?\n/quit\n")
    shown = b""
    ends = time.monotonic() + PATIENCE
    while select.select([ours], [], [], ends - time.monotonic())[0]:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # raised by Linux when the other side has closed
            break
        if not piece:
            break
        shown += piece
    assert process.wait(timeout=PATIENCE) == 0
    assert b"Bl[2Jue." in shown  # without the escape character
    assert b"a cat.png" in shown
