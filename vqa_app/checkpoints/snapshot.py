"""Download repositories of the hub so that a download can be ended at any time.

huggingface_hub downloads in threads of its own and waits for them when Ctrl-C arrives. A file that
comes by HTTP ends with an exception in the progress bar. hf_xet, which fetches most large files,
ignores exceptions of its callbacks, and a stalled download calls nothing; both end only when the
Xet session is aborted. All downloads of the process share that session, so the others are
continued.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from vqa_app.hub_internals import abort_xet_session

POLL_SECONDS = 0.2
"""Interval at which a running download checks whether it is to be ended."""

_lock = threading.Lock()
_aborted_sessions = 0


class _Ended(Exception):
    """Raised in the progress bar of a download that is to end."""


def download_snapshot(
    *, bar: type | None = None, check: Callable[[], None] | None = None, **options: Any
) -> Path:
    """Call `snapshot_download`; Ctrl-C and exceptions of `check` end the download.

    Args:
        bar: A `tqdm` class that shows the progress.
        check: Called several times a second on this thread.
        **options: Arguments of `snapshot_download`.

    Returns:
        The folder of the snapshot.
    """
    while True:
        aborted = _aborted_sessions
        download = _Download(bar, options)
        try:
            while not download.ended(POLL_SECONDS):
                if check is not None:
                    check()
        except BaseException:
            download.end()
            raise
        try:
            return Path(download.result())
        except (Exception, KeyboardInterrupt):  # an aborted session raises either
            if aborted == _aborted_sessions:
                raise
        # Ending another download aborted the session of this one, too: continue it.


class _Download:
    """A call of `snapshot_download` on a thread of its own."""

    def __init__(self, bar: type | None, options: dict[str, Any]) -> None:
        self._stop = threading.Event()
        self._future: Future[str] = Future()
        # Not an executor's, whose threads Python waits for when it exits.
        threading.Thread(
            target=self._run, args=(bar, options), name="download", daemon=True
        ).start()

    def _run(self, bar: type | None, options: dict[str, Any]) -> None:
        from huggingface_hub import snapshot_download

        try:
            folder = snapshot_download(**options, tqdm_class=_stoppable(bar, self._stop))
        except BaseException as error:  # a KeyboardInterrupt comes from an aborted session
            self._future.set_exception(error)
        else:
            self._future.set_result(folder)

    def ended(self, seconds: float) -> bool:
        """Wait for at most this long; return whether the download has ended."""
        return bool(wait([self._future], seconds).done)

    def result(self) -> str:
        """Return the folder, or raise what the download raised."""
        return self._future.result()

    def end(self) -> None:
        """End the download, and wait until it has ended."""
        global _aborted_sessions
        self._stop.set()
        while not self.ended(0):
            with _lock:
                _aborted_sessions += 1
            abort_xet_session()
            self.ended(POLL_SECONDS)  # then again: it may have begun further files


def _stoppable(bar: type | None, stop: threading.Event) -> type:
    from huggingface_hub.utils import tqdm

    base: Any = bar or tqdm

    class StoppableBar(base):
        def update(self, n: float | None = 1) -> Any:
            if stop.is_set():
                raise _Ended
            return super().update(n)

    return StoppableBar
