"""A local hub of data sets: answers the requests of `datasets.load_dataset` from folders."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

from tests.fake_hub import COMMIT, HubHandler, use


class Handler(HubHandler):
    """Request handler that serves `folders`, data sets by id, and refuses others like the hub."""

    folders: dict[str, Path]
    downloads: list[str]

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, sent: bytes = b"") -> None:
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        if parts[0] == "api":
            parts = parts[1:]
        name, rest = "/".join(parts[1:3]), parts[3:]
        folder = self.folders.get(name)
        if parts[0] != "datasets" or folder is None:
            return self._send_error("RepoNotFound")
        match rest:
            case [] | ["revision", _]:
                return self._describe(name, folder)
            case ["tree", _, *below]:
                return self._send(json.dumps(_listing(folder, folder.joinpath(*below))).encode())
            case ["paths-info", _]:
                wanted = json.loads(sent)["paths"]
                entries = [entry for entry in _listing(folder, folder) if entry["path"] in wanted]
                return self._send(json.dumps(entries).encode())
            case ["resolve", _, *file] if folder.joinpath(*file).is_file():
                return self._send_file(folder.joinpath(*file), self.downloads)
        return self._send_error("EntryNotFound")

    def _describe(self, name: str, folder: Path) -> None:
        files = [{"rfilename": entry["path"]} for entry in _listing(folder, folder)]
        info = {"id": name, "sha": COMMIT, "siblings": files, "private": False, "gated": False}
        self._send(json.dumps(info | {"tags": [], "downloads": 0, "likes": 0}).encode())


def _listing(folder: Path, below: Path) -> list[dict[str, Any]]:
    """List the files below a folder of a data set as the hub's API does."""
    return [
        {
            "type": "directory" if path.is_dir() else "file",
            "path": path.relative_to(folder).as_posix(),
            "size": 0 if path.is_dir() else path.stat().st_size,
            "oid": hashlib.sha1(path.name.encode()).hexdigest(),
        }
        for path in sorted(below.rglob("*"))
    ]


@contextmanager
def serve(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[type[Handler]]:
    """Serve data sets, and make `datasets` and huggingface_hub use them with empty caches."""
    from datasets import config
    from huggingface_hub import HfFileSystem

    handler = type("DataHandler", (Handler,), {"folders": {}, "downloads": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    use(monkeypatch, address, folder / "hub")
    monkeypatch.setattr(config, "HF_ENDPOINT", address)
    template = address + "/datasets/{repo_id}/resolve/{revision}/{path}"
    monkeypatch.setattr(config, "HUB_DATASETS_URL", template)
    for name in ("HF_DATASETS_CACHE", "HF_MODULES_CACHE", "DOWNLOADED_DATASETS_PATH"):
        monkeypatch.setattr(config, name, folder / name.lower())
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
    HfFileSystem.clear_instance_cache()
    try:
        yield handler
    finally:
        HfFileSystem.clear_instance_cache()
        server.shutdown()
        server.server_close()
        thread.join()
