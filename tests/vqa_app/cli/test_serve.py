"""`vqa-app serve`: its options, and a whole run with OpenAI's client."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from tests.tiny import picture
from tests.vqa_app.serving.api_server import asking, picture_uri
from tests.waiting import PATIENCE
from vqa_app.cli.serve import parse_duration, parse_keys
from vqa_app.errors import UsageError


def test_keys_have_names_or_numbers() -> None:
    assert parse_keys(["ann:one", "two", "bob:a:b"]) == {"ann": "one", "key-2": "two", "bob": "a:b"}
    assert parse_keys([]) == {}


@pytest.mark.parametrize("entry", ["", "ann:", ":xyz", "a b", "ann:a b", "ann smith:x", "ké"])
def test_what_is_no_key_is_refused_without_printing_it(entry: str) -> None:
    with pytest.raises(UsageError, match="--api-key number 1") as refused:
        parse_keys([entry])
    assert not entry or entry not in str(refused.value)


def test_two_keys_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="ann twice"):
        parse_keys(["ann:one", "ann:two"])


def test_durations_have_a_unit() -> None:
    assert parse_duration("--keep-alive", "90s") == 90
    assert parse_duration("--keep-alive", "10m") == 600
    assert parse_duration("--keep-alive", "1.5h") == 5400


@pytest.mark.parametrize("text", ["", "10", "m", "-5m", "0s", "10 m", "ten", "1e3s", "9999999h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--keep-alive: .* is not a duration"):
        parse_duration("--keep-alive", text)


def start(*options: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vqa_app", "serve", "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.slow
def test_the_built_in_model_is_served_until_it_is_stopped(tmp_path: Path) -> None:
    server = start(VQA_SERVER_KEYS="sesame ann:open")
    assert server.stdout is not None
    assert server.stderr is not None
    address = re.search(r"http://\S+/v1", server.stdout.readline())
    assert address is not None
    assert server.stdout.readline() == "builtin is ready.\n"
    for key in ("sesame", "open"):
        with openai.OpenAI(base_url=address[0], api_key=key, timeout=PATIENCE) as client:
            done = client.chat.completions.create(
                model="builtin",
                messages=asking("What colour is it?", picture_uri()),  # type: ignore[arg-type]
            )
            assert done.choices[0].message.content
    server.send_signal(signal.SIGINT)
    assert server.wait(PATIENCE) == 0
    assert server.stderr.read() == ""


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    picture(0).image.save(tmp_path / "a.png")
    server = start("--model", str(tmp_path))
    output, errors = server.communicate(timeout=PATIENCE)
    assert server.returncode == 4
    assert errors.startswith("Error: ")
    assert "ready" not in output
