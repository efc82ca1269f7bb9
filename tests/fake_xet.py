"""hf_xet as far as it matters: one session for all, and exceptions of callbacks are ignored."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import _xet

from vqa_app.checkpoints import snapshot


class FakeXet:
    """Downloads that never end by themselves."""

    def __init__(self) -> None:
        self.attempts: list[str] = []
        """Repositories, or files of them, whose download began."""
        self.aborts = 0
        self.finish = threading.Event()
        """When set, all downloads are complete."""
        self.stalled = False
        """Whether nothing arrives, so that no callback is called."""
        self.on_first: Callable[[], None] = lambda: None
        """Called when the first download has begun."""
        self._begun = itertools.count()
        self._session = threading.Event()

    def abort(self) -> None:
        """End all downloads, as `abort_xet_session` does."""
        self.aborts += 1
        session, self._session = self._session, threading.Event()
        session.set()

    def snapshot_download(self, repo_id: str, tqdm_class: Any = None, **options: Any) -> str:
        """Download in a thread, as huggingface_hub does, until the session is aborted."""
        if options.get("local_files_only"):
            raise LocalEntryNotFoundError("It is not in the cache.")
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self._fetch, repo_id, tqdm_class).result()

    def hf_hub_download(self, repo_id: str, filename: str, tqdm_class: Any, **_: Any) -> str:
        """Download in this thread until the session is aborted."""
        return self._fetch(f"{repo_id}/{filename}", tqdm_class)

    def _fetch(self, name: str, tqdm_class: Any) -> str:
        session = self._session
        self.attempts.append(name)
        bar = tqdm_class(total=10**9, unit="B", disable=True)
        if next(self._begun) == 0:
            self.on_first()
        while not session.wait(0.01):
            if not self.stalled:
                with contextlib.suppress(BaseException):
                    bar.update(10**6)
            if self.finish.is_set():
                return f"/cache/{name}"
        raise KeyboardInterrupt  # as hf_xet does


@contextlib.contextmanager
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeXet]:
    """Replace the downloads of huggingface_hub, and its function that aborts the session.

    Ctrl-C raises KeyboardInterrupt meanwhile, also where pytest-xdist has switched it off.
    """
    fake = FakeXet()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.hf_hub_download)
    monkeypatch.setattr(_xet, "abort_xet_session", fake.abort)
    monkeypatch.setattr(snapshot, "POLL_SECONDS", 0.01)
    try:
        yield fake
    finally:
        fake.finish.set()
        signal.signal(signal.SIGINT, before)
