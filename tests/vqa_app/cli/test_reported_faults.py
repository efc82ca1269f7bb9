"""Faults that users reported, each with its right result and its siblings."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from tests.fake_engine import FakeEngine
from vqa_app.cli import ask
from vqa_app.cli.main import app

Run = Callable[..., Result]
PROXY_VARIABLES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    """Make `ask` use a fake engine, which answers in characters that few encodings have."""
    fake = FakeEngine("A 🙂 cat – 日本, 3 × 4")
    monkeypatch.setattr(ask, "open_engine", lambda options, console: fake)
    yield fake
    fake.close()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the current folder one with a picture and a data set."""
    Image.new("RGB", (20, 10), (200, 30, 30)).save(tmp_path / "cat.png")
    rows = "image,question,answer\ncat.png,Is it … 日本? 🙂,yes – red\n"
    (tmp_path / "data.csv").write_text(rows, "utf-8")
    monkeypatch.chdir(tmp_path)
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return tmp_path


def run(*words: str, charset: str = "utf-8") -> Result:
    return CliRunner(charset=charset).invoke(app, list(words))


# Output in an encoding that lacks characters


@pytest.mark.parametrize("charset", ["cp1252", "ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("check-data --data data.csv --images .", "No problems."),
        ("show-sample --data data.csv --images .", "cat.png: 20"),
        ("ask cat.png What?", "cat"),
        ("ask --json cat.png What?", '"answer"'),
        ("ask --each *.png What?", '"answer"'),
        ("--help", "chat"),
        ("finetune --help", "--data"),
        ("ask --help", "--explain"),
        ("models", "builtin"),
    ],
)
def test_output_in_any_encoding(
    here: Path, engine: FakeEngine, words: str, expected: str, charset: str
) -> None:
    result = run(*words.split(), charset=charset)
    assert result.exit_code == 0, result.output
    assert expected in result.stdout
    assert "This is a bug" not in result.stderr


@pytest.mark.parametrize(
    ("charset", "answer"),
    [
        ("ascii", r"A \U0001f642 cat - \u65e5\u672c, 3 x 4"),
        ("cp1252", r"A \U0001f642 cat – \u65e5\u672c, 3 × 4"),
        ("utf-8", "A 🙂 cat – 日本, 3 × 4"),
    ],
)
def test_characters_that_an_encoding_lacks_are_substituted_or_escaped(
    here: Path, engine: FakeEngine, charset: str, answer: str
) -> None:
    assert run("ask", "cat.png", "What?", charset=charset).stdout == answer + "\n"


@pytest.mark.parametrize("words", [["--json", "cat.png"], ["--each", "*.png"]])
def test_json_stays_json_in_any_encoding(here: Path, engine: FakeEngine, words: list[str]) -> None:
    row = json.loads(run("ask", *words, "Wás?", charset="ascii").stdout)
    assert row["answer"] == "A 🙂 cat – 日本, 3 × 4"
    assert row["question"] == "Wás?"


@pytest.mark.parametrize(
    "words", [["ask", "löss🙂.png", "Was?"], ["ask", "--temprature🙂", "0", "cat.png", "Was?"]]
)
def test_errors_in_any_encoding(here: Path, engine: FakeEngine, words: list[str]) -> None:
    result = run(*words, charset="cp1252")
    assert result.exit_code in (2, 3)
    assert r"\U0001f642" in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="names are Unicode there")
@pytest.mark.parametrize("words", [[], ["--each"], ["--choices", "a\udce9,b"], ["--json"]])
def test_bytes_that_are_no_text_in_arguments(
    here: Path, engine: FakeEngine, words: list[str]
) -> None:
    """As the name of a file, a question or an answer in Latin-1 on a UTF-8 system."""
    (here / "cat.png").rename(here / "caf\udce9.png")
    result = run("ask", *words, "caf\udce9.png", "caf\udce9?")
    assert result.exit_code == 0, result.output
    if "--choices" not in words:
        assert engine.asked[0][0].messages[-1].text == "caf??"


# Proxies in the environment


PROXIES = [
    ({"ALL_PROXY": "socks5://user:secret@127.0.0.1:9"}, "SOCKS proxy is set in ALL_PROXY"),
    ({"all_proxy": "socks5h://127.0.0.1:9"}, "SOCKS proxy is set in ALL_PROXY"),
    ({"HTTPS_PROXY": "socks5://127.0.0.1:9"}, "SOCKS proxy is set in HTTPS_PROXY"),
    ({"all_proxy": "socks://127.0.0.1:9/"}, "in ALL_PROXY cannot be used"),  # as GNOME sets it
    ({"HTTP_PROXY": "ftp://127.0.0.1:9"}, "in HTTP_PROXY cannot be used"),
    ({"HTTP_PROXY": "http://127.0.0.1:port"}, "in HTTP_PROXY cannot be used"),
    ({"http_proxy": "http://127.0.0.1:9", "NO_PROXY": "a:b:c"}, "NO_PROXY"),
]


@pytest.mark.parametrize(("environment", "message"), PROXIES, ids=str)
def test_an_address_behind_an_unusable_proxy(
    here: Path,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    message: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = run("ask", "http://127.0.0.1:9/cat.png", "What is it?")
    assert result.exit_code == 3
    assert message in result.stderr
    assert "secret" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 2


@pytest.mark.parametrize(("environment", "message"), PROXIES, ids=str)
def test_a_hub_model_behind_an_unusable_proxy(
    monkeypatch: pytest.MonkeyPatch, here: Path, environment: dict[str, str], message: str
) -> None:
    from huggingface_hub import constants

    from vqa_app.checkpoints.source import find
    from vqa_app.errors import ModelError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ModelError, match=f"not in the local cache.*{message}"):
        find("some/model")


@pytest.mark.slow
@pytest.mark.parametrize("environment", [PROXIES[0][0], PROXIES[3][0], PROXIES[6][0]], ids=str)
def test_the_page_starts_behind_an_unusable_proxy(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    import os
    import subprocess

    program = (
        "from pathlib import Path; import os; from ui.app import create_application;"
        "from tests.fake_engine import FakeEngine;"
        "from vqa_app.serving.engine_pool import ModelChoice;"
        "before = dict(os.environ);"
        f"app = create_application(Path({str(tmp_path)!r}), lambda *_: FakeEngine(), list, 'fake');"
        "assert os.environ.get('NO_PROXY') == before.get('NO_PROXY'); app.close(); print('started')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "started\n", done.stderr


# Questions that look like options


@pytest.mark.parametrize(
    "words",
    [
        ["cat.png", "- what is it?"],
        ["cat.png", "-what is it?"],
        ["cat.png", "--what is it?"],
        ["cat.png", "--model is what?"],
        ["cat.png", "-how many?"],
        ["--temperature", "0", "cat.png", "- what = it?"],
        ["cat.png", "- what is it?", "--temperature", "0"],
        ["cat.png", "--", "- what is it?"],
        ["cat.png", "--", "-what?"],
        ["--system", "- be brief", "cat.png", "- what is it?"],
        ["--each", "cat.png", "- what is it?"],
    ],
)
def test_a_question_that_begins_with_a_dash(
    here: Path, engine: FakeEngine, words: list[str]
) -> None:
    result = run("ask", *words)
    assert result.exit_code == 0, result.stderr
    asked, options = engine.asked[0]
    assert asked.messages[-1].text == next(w for w in reversed(words) if "?" in w)
    assert len(asked.pictures) == 1
    assert options.system == ("- be brief" if "--system" in words else None)


@pytest.mark.parametrize("word", ["-why?", "-4.png"])
def test_a_word_that_begins_with_a_dash_has_a_way_out(
    here: Path, engine: FakeEngine, word: str
) -> None:
    result = run("ask", "cat.png", word)
    assert result.exit_code == 2
    assert "put -- before it" in result.stderr
    assert not engine.asked


def test_values_of_options_stay_with_them(here: Path, engine: FakeEngine) -> None:
    result = run("ask", "--choices", "- yes or no,- no", "cat.png", "Is it?")
    assert result.stdout == "- yes or no\n"
