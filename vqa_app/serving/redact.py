"""Messages without what the server's visitors must not see: paths and shell options."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

_roots = {os.path.expanduser("~"), tempfile.gettempdir()}


_NAME = r"[^\s/\\,;:'\"]+"


_PATH = re.compile(
    rf"(?<![\w.:/\\])(?:(?:~|[A-Za-z]:)(?:[/\\]{_NAME})*|(?:/{_NAME})+)[/\\]({_NAME})"
)


def hide_folder(folder: Path) -> None:
    """Makes `without_paths` know a folder; where its name has spaces, no pattern finds its end."""
    _roots.add(str(folder.absolute()))


def redact_paths(text: str) -> str:
    """The page shows names, never where things lie on the server."""
    for root in sorted(_roots, key=len, reverse=True):
        if Path(root).name:  # not the root of all
            text = text.replace(root + os.sep, "~" + os.sep)
    return _PATH.sub(r"\1", text)


def redact_options(hint: str) -> str:
    """A hint of the shell's without what names options: the page has none."""
    sentences = (re.sub(r",? or [^.]*--.*", ".", part) for part in re.split(r"(?<=\.) ", hint))
    return " ".join(sentence for sentence in sentences if "--" not in sentence)


def replace_surrogates(text: str) -> str:
    """A text without the halves of characters that JSON can hold and no file or database."""
    return text.encode(errors="replace").decode()
