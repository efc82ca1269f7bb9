"""Remove from messages what visitors of a server must not see: its paths and shell options."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

_hidden_folders = {os.path.expanduser("~"), tempfile.gettempdir()}
_NAME = r"[^\s/\\,;:'\"]+"
_PATH = re.compile(
    rf"(?<![\w.:/\\])(?:(?:~|[A-Za-z]:)(?:[/\\]{_NAME})*|(?:/{_NAME})+)[/\\]({_NAME})"
)


def hide_folder(folder: Path) -> None:
    """Register a folder that `redact_paths` removes.

    Needed for names with spaces, because a pattern cannot tell where such a path ends.
    """
    _hidden_folders.add(str(folder.absolute()))


def redact_paths(text: str) -> str:
    """Reduce each path in a message to its last component."""
    for folder in sorted(_hidden_folders, key=len, reverse=True):
        if Path(folder).name:  # not the root directory
            text = text.replace(folder + os.sep, "~" + os.sep)
    return _PATH.sub(r"\1", text)


def redact_options(hint: str) -> str:
    """Drop what a hint says about command-line options, which the page does not have."""
    sentences = (re.sub(r",? or [^.]*--.*", ".", part) for part in re.split(r"(?<=\.) ", hint))
    return " ".join(sentence for sentence in sentences if "--" not in sentence)
