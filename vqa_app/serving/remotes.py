"""The servers elsewhere that the page offers, from a TOML file.

[[server]]
name = "Qwen in the lab"            # as the page shows it
address = "http://lab:8000/v1"
model = "Qwen/Qwen2.5-VL-7B-Instruct"   # may be left out if the server has only one
key_env = "LAB_API_KEY"             # environment variable with the key
concurrency = 8                     # questions in flight at once
timeout = 300                       # seconds to wait for the next piece of an answer
max_side = 2048                     # pixels to which pictures are shrunk
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqa_app.engine.remote import RemoteServer
from vqa_app.errors import ModelError, UsageError
from vqa_app.suggestions import suggest

FILE_NAME = "remotes.toml"
"""Name of the list in the data folder."""
_FIELDS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "address": (str,),
    "model": (str,),
    "key_env": (str,),
    "concurrency": (int,),
    "timeout": (int, float),
    "max_side": (int,),
}


@dataclass(frozen=True)
class Remote:
    """A server of the list."""

    name: str
    server: RemoteServer
    key_env: str | None = None
    """Environment variable with the key."""

    def with_key(self) -> RemoteServer:
        """Return the server with its key from the environment.

        Raises:
            ModelError: The variable is not set.
            UsageError: It holds something that is no key.
        """
        if self.key_env is None:
            return self.server
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise ModelError(
                f"The key of {self.name} is missing.",
                f"Set the environment variable {self.key_env} before vqa-app is started.",
            )
        server = self.server
        return RemoteServer(
            server.address, server.model, key, server.concurrency, server.timeout, server.max_side
        )


def read_remotes(path: Path, *, required: bool = False) -> list[Remote]:
    """Read a list of servers; an empty one if there is no such file.

    Args:
        path: The TOML file.
        required: Whether the file must exist, because somebody named it.

    Raises:
        UsageError: The file cannot be read; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        if not required:
            return []
        raise UsageError(f"There is no file {path}.", "Check --remotes.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"Could not read {path}: {reason}.", "Check the file.") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not TOML: {error}.", "Correct it there.") from error
    entries = data.get("server", [])
    for name in data:
        if name != "server":
            raise _error(path, _line(text, rf"\[*\s*{re.escape(name)}\b"), f"unknown {name!r}")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _error(path, _line(text, r"\[?\s*server\b"), "servers need [[server]]")
    starts = [number for number, line in enumerate(text.splitlines(), 1) if _HEADER.match(line)]
    found: list[Remote] = []
    for number, entry in enumerate(entries):
        start = starts[number] if number < len(starts) else 1
        end = starts[number + 1] - 1 if number + 1 < len(starts) else len(text.splitlines())
        remote = _remote(path, entry, text, start, end)
        if remote.name in {other.name for other in found}:
            where = _line(text, r"name\b", start, end)
            raise _error(path, where, f"there is another server named {remote.name!r}")
        found.append(remote)
    return found


_HEADER = re.compile(r"\s*\[\[\s*server\s*\]\]")


def _remote(path: Path, entry: dict[str, Any], text: str, start: int, end: int) -> Remote:
    """Return one server of the list, whose lines are `start` to `end`."""

    def line(name: str) -> int:
        return _line(text, rf"[\"']?{re.escape(name)}\b", start, end)

    for name, value in entry.items():
        if name not in _FIELDS:
            hint = suggest(name, _FIELDS, otherwise=f"Known are {', '.join(_FIELDS)}.")
            raise _error(path, line(name), f"unknown {name!r}", hint)
        if not isinstance(value, _FIELDS[name]) or isinstance(value, bool) or value == "":
            kind = "a text" if _FIELDS[name] == (str,) else "a number"
            raise _error(path, line(name), f"{name} must be {kind}")
    for name in ("name", "address"):
        if name not in entry:
            raise _error(path, start, f"the server has no {name}")
    limits = ("concurrency", "timeout", "max_side")
    values = {name: entry[name] for name in (*limits, "model") if name in entry}
    try:
        server = RemoteServer(entry["address"], **values)
    except UsageError as error:
        guilty = next((name for name in limits if name in error.problem), "address")
        raise _error(path, line(guilty), error.problem.rstrip("."), error.hint) from error
    return Remote(entry["name"], server, entry.get("key_env"))


def _line(text: str, pattern: str, start: int = 1, end: int | None = None) -> int:
    """Return the number of the first line between two that begins with a pattern, or `start`."""
    lines = text.splitlines()[start - 1 : end]
    found = (number for number, line in enumerate(lines, start) if re.match(rf"\s*{pattern}", line))
    return next(found, start)


def _error(path: Path, line: int, what: str, hint: str = "Correct it there.") -> UsageError:
    return UsageError(f"{path}, line {line}: {what}.", hint)
