"""Output to a terminal or a pipe: a spinner, text and JSON that any encoding can take."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console


@contextmanager
def waiting(console: Console | None, text: str) -> Iterator[Callable[[str | None], None]]:
    """A spinner with a text on a terminal; nothing elsewhere. Gives a function that sets the text,
    or with None ends the spinner.
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


def to_stdout(text: str) -> None:
    """Shows a piece of an answer at once. On a terminal without control characters: a model, or a
    picture that it reads aloud, must not steer it.
    """
    if sys.stdout.isatty():
        text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
    sys.stdout.write(text)
    sys.stdout.flush()


def json_line(row: Any, stream: TextIO) -> str:
    """A line of JSON: as it reads, or with escapes where the stream has no bytes for a character,
    as UTF-8 has none for what stands in file names of other encodings.
    """
    line = json.dumps(row, ensure_ascii=False) + "\n"
    try:
        line.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(row) + "\n"
    return line
