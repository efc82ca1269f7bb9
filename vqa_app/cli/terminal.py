"""Output to a terminal or a pipe: a spinner, text, and JSON in any encoding."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console


@contextmanager
def spinner(console: Console | None, text: str) -> Iterator[Callable[[str | None], None]]:
    """Show a spinner with a text on a terminal, and nothing elsewhere.

    Yields:
        A function that changes the text, or stops the spinner when it is called with None.
    """
    if console is None or not console.is_terminal:
        yield lambda text: None
        return
    status = console.status(text)
    status.start()
    try:
        yield lambda text: status.stop() if text is None else status.update(text)
    finally:
        status.stop()


def write_stdout(text: str) -> None:
    """Write a piece of an answer to stdout and flush it.

    Control characters are removed on a terminal, because neither a model nor a picture that it
    reads aloud may control it.
    """
    if sys.stdout.isatty():
        text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
    sys.stdout.write(text)
    sys.stdout.flush()


def json_line(row: Any, stream: TextIO) -> str:
    """Return a line of JSON, with escapes only if the stream's encoding lacks a character.

    UTF-8, for example, cannot encode the surrogates in file names of other encodings.
    """
    line = json.dumps(row, ensure_ascii=False) + "\n"
    try:
        line.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(row) + "\n"
    return line
