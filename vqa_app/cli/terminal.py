"""Output to a terminal or a pipe: a spinner, text, and JSON in any encoding."""

from __future__ import annotations

import codecs
import io
import json
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console


_SUBSTITUTES = str.maketrans(
    {
        **dict.fromkeys("\N{EN DASH}\N{EM DASH}─━", "-"),
        **dict.fromkeys("█▉▊▋▌▍▎▏▀", "#"),
        **dict.fromkeys("⟨⟦", "["),
        **dict.fromkeys("⟩⟧", "]"),
        "…": "...",
        "\N{MULTIPLICATION SIGN}": "x",
        "·": "|",
    }
)
"""What stands for typographic characters in encodings without them; others are escaped."""
_ERROR_HANDLER = "vqa_app.substitute"


def _substitute(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks, as a codec error handler."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(_SUBSTITUTES)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


def prepare_streams() -> None:
    """Make stdout and stderr accept every character, and stdin every byte.

    On Windows, a redirected stream has the system's encoding, which lacks most characters. A UTF-8
    stream lacks the surrogates in file names of other encodings. An error handler that the user
    chose, as in `PYTHONIOENCODING=ascii:replace`, stays.
    """
    codecs.register_error(_ERROR_HANDLER, _substitute)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in (
            "strict",
            "surrogateescape",
            "backslashreplace",
        ):
            stream.reconfigure(errors=_ERROR_HANDLER)
    given = sys.stdin
    if isinstance(given, io.TextIOWrapper) and given.errors in ("strict", "surrogateescape"):
        given.reconfigure(errors="replace")


@contextmanager
def spinner(console: Console | None, text: str) -> Iterator[Callable[[str | None], None]]:
    """Show a spinner with a text on a terminal, and nothing elsewhere.

    Yields:
        A function that changes the text, or stops the spinner when it is called with None.
    """
    if console is None or not console.is_terminal:
        yield lambda text: None
        return
    frames = "dots" if console.encoding.startswith("utf") else "line"
    status = console.status(text, spinner=frames)
    status.start()
    try:
        yield lambda text: status.stop() if text is None else status.update(text)
    finally:
        status.stop()


def print_warning(text: str, console: Console) -> None:
    """Print that an answer may be worse than it could be."""
    console.print(text, style="yellow", markup=False, soft_wrap=True)


def print_note(text: str, console: Console) -> None:
    """Print what was changed or left out."""
    console.print(text, style="dim", markup=False)


def write_stdout(text: str) -> None:
    """Write a piece of an answer to stdout and flush it.

    Control characters are removed on a terminal, because neither a model nor a picture that it
    reads aloud may control it.
    """
    if sys.stdout.isatty():
        text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
    sys.stdout.write(text)
    sys.stdout.flush()


def json_line(row: Any, stream: TextIO, indent: int | None = None) -> str:
    """Return JSON and a line break, with escapes only if the stream's encoding lacks a character.

    UTF-8, for example, cannot encode the surrogates in file names of other encodings.

    Args:
        row: What to write.
        stream: Where it will be written.
        indent: Spaces of each level; None for a single line.
    """
    line = json.dumps(row, ensure_ascii=False, indent=indent) + "\n"
    try:
        line.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(row, indent=indent) + "\n"
    return line
