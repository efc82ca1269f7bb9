"""Downloads of hub models, with progress that a page can show and a way to cancel them."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from vqa_app.hub_internals import abort_xet_session
from vqa_app.serving.engine_pool import LoadingCancelled, LoadProgress

POLL_SECONDS = 0.2
"""Interval at which a running download checks whether it was cancelled."""

_lock = threading.Lock()
_aborted_sessions = 0
"""How often this process aborted the Xet session that all its downloads share."""


def download_model(name: str, progress: LoadProgress) -> None:
    """Download a model into the local cache, unless it is already there.

    Args:
        name: Hub id.
        progress: Called with every new state of the download.

    Raises:
        ModelError: The model cannot be downloaded.
        LoadingCancelled: `progress` raised it.
    """
    from vqa_app.checkpoints import source

    while True:
        aborted = _aborted_sessions
        watch = _CancelWatch(progress)
        watch.report("Contacting the hub …")
        try:
            with watch:
                source.find(name, bar=_progress_bar_class(watch.report))
            return
        except (Exception, KeyboardInterrupt):  # the latter, too, comes from an aborted session
            if watch.cancelled.is_set():
                raise LoadingCancelled from None
            if aborted == _aborted_sessions:
                raise
        # Cancelling another download ended the Xet session of this one, too: continue it.


class _CancelWatch:
    """Stops a download when its `progress` raises `LoadingCancelled`.

    An exception in the progress bar ends a download by HTTP. hf_xet ignores exceptions of its
    callbacks, and a download that has stalled reports nothing, so a thread checks, too.
    """

    def __init__(self, progress: LoadProgress) -> None:
        self.cancelled = threading.Event()
        self._progress = progress
        self._latest: tuple[str, float | None] = "", None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="download-watch", daemon=True)

    def report(self, message: str, share: float | None = None) -> None:
        """Pass progress on; raises `LoadingCancelled`."""
        self._latest = message, share
        try:
            self._progress(message, share)
        except LoadingCancelled:
            self.cancelled.set()
            raise

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            with contextlib.suppress(LoadingCancelled):
                self.report(*self._latest)
            if self.cancelled.is_set():
                _abort_xet_session()  # again and again: other threads may begin further files


def _abort_xet_session() -> None:
    global _aborted_sessions
    with _lock:
        _aborted_sessions += 1
    abort_xet_session()


def _progress_bar_class(progress: LoadProgress) -> type:
    """Return a tqdm class for huggingface_hub that draws nothing and reports to `progress`."""
    from tqdm.auto import tqdm

    lock = threading.Lock()

    class ProgressBar(tqdm):  # type: ignore[type-arg]  # generic in the stubs only
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": True})
            self.counts_bytes = options.get("unit") == "B"
            self.done: float = 0
            self.total: float = options.get("total") or 0

        def update(self, count: float | None = 1) -> None:
            with lock:
                self.done += count or 0
                done, total = self.done, self.total or 0
            if self.counts_bytes and total:
                message = f"Downloading {done / 1e6:,.0f} of {total / 1e6:,.0f} MB"
                progress(message, min(1.0, done / total))

        def refresh(self, *args: Any, **options: Any) -> None:
            """Draw nothing."""

    return ProgressBar
