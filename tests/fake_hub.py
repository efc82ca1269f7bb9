"""A fake model hub on this machine, which can return errors."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

COMMIT = "c0ffee" + "0" * 34


@dataclass
class FakeHub:
    """The state of a fake hub."""

    repositories: dict[str, Path | tuple[int, str]] = field(default_factory=dict)
    """By id, a directory to serve, or an error: the status and the hub's error code."""
    downloads: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    """Sizes of files to claim instead of the real ones."""
    requests: list[str] = field(default_factory=list)
    """Every requested path, which shows whether a client retried."""


class HubHandler(BaseHTTPRequestHandler):
    """Sends responses and errors like the hub; subclasses implement `_answer`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        raise NotImplementedError

    def _send_error(self, code: str, status: int = 404) -> None:
        self._send(b"{}", status, **{"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, data: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Repo-Commit", COMMIT)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _send_file(self, file: Path, downloads: list[str]) -> None:
        data = file.read_bytes()
        if self.command == "GET":
            downloads.append(file.name)
        self._send(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"')


def _handler(hub: FakeHub) -> type[HubHandler]:
    class Handler(HubHandler):
        def _answer(self) -> None:
            path = urlparse(self.path).path.strip("/").split("/")
            hub.requests.append(self.path)
            if path[:2] == ["api", "models"]:
                self._describe("/".join(path[2:4]), path[4:])
            else:
                self._file("/".join(path[:2]), "/".join(path[4:]))

        def _describe(self, name: str, rest: list[str]) -> None:
            directory = hub.repositories.get(name, (404, "RepoNotFound"))
            if isinstance(directory, tuple):
                status, code = directory
                return self._send_error(code, status)
            if rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
                return self._send_error("RevisionNotFound")
            files = [
                {
                    "rfilename": path.name,
                    "path": path.name,
                    "type": "file",
                    "size": hub.sizes.get(path.name, path.stat().st_size),
                    "oid": "0" * 40,
                    "blobId": "0" * 40,
                }
                for path in sorted(directory.iterdir())
            ]
            if rest[:1] == ["tree"]:
                return self._send(json.dumps(files).encode())
            info = {"id": name, "modelId": name, "sha": COMMIT, "siblings": files}
            self._send(json.dumps(info | {"private": False, "gated": False}).encode())

        def _file(self, name: str, file: str) -> None:
            directory = hub.repositories[name]
            assert isinstance(directory, Path)
            if not (directory / file).is_file():
                return self._send_error("EntryNotFound")
            self._send_file(directory / file, hub.downloads)

    return Handler


@contextmanager
def serve(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[FakeHub]:
    """Serve a fake hub and make huggingface_hub use it, with an empty cache."""
    from huggingface_hub import constants

    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    use(monkeypatch, f"http://127.0.0.1:{server.server_port}", cache)
    assert not constants.HF_HUB_OFFLINE
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the seconds that this thread would sleep, for example before a retry.

    Unlike measured times, they do not depend on how busy the machine is.
    """
    recorded: list[float] = []
    own, sleep = threading.get_ident(), time.sleep

    def record(seconds: float) -> None:
        if threading.get_ident() == own:
            recorded.append(seconds)
        else:
            sleep(seconds)

    monkeypatch.setattr(time, "sleep", record)
    return recorded


def use(monkeypatch: pytest.MonkeyPatch, address: str, cache: Path) -> None:
    """Make huggingface_hub use another address and cache, online."""
    from huggingface_hub import constants

    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
