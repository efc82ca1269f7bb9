"""Download repositories of the hub, or files of them, so that a download can be ended at any time.

huggingface_hub downloads in threads of its own and waits for them when Ctrl-C arrives. A file that
comes by HTTP ends with an exception in the progress bar. hf_xet, which fetches most large files,
ignores exceptions of its callbacks, and a stalled download calls nothing; both end only when the
Xet session is aborted. All downloads of the process share that session, so the others are
continued.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

from vqa_app.hub_internals import abort_xet_session

POLL_SECONDS = 0.2
"""Interval at which a running download checks whether it is to be ended."""
_FILES_AT_ONCE = 8

T = TypeVar("T")

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
    from huggingface_hub import snapshot_download

    def download(stoppable: type) -> Path:
        return Path(snapshot_download(**options, tqdm_class=stoppable))

    return _endable(download, bar, check)


def download_files(repo_id: str, files: Sequence[str], **options: Any) -> None:
    """Download files of a repository into the local cache; Ctrl-C ends the download.

    Args:
        repo_id: Hub id.
        files: Paths in the repository.
        **options: Further arguments of `hf_hub_download`.
    """
    from huggingface_hub import hf_hub_download

    def download(stoppable: type) -> None:
        def fetch(file: str) -> None:
            hf_hub_download(repo_id, file, tqdm_class=stoppable, **options)

        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            for _ in pool.map(fetch, files):  # the first error cancels those that have not begun
                pass

    _endable(download, None, None)


def _endable(
    function: Callable[[type], T], bar: type | None, check: Callable[[], None] | None
) -> T:
    """Return the result of a download, which Ctrl-C and exceptions of `check` end.

    Args:
        function: Downloads; is given a `tqdm` class, and called again after the session that it
            shares with another download was aborted.
        bar: The `tqdm` class that shows the progress; None for the usual one.
        check: Called several times a second on this thread.
    """
    while True:
        aborted = _aborted_sessions
        download = _Download(function, bar)
        try:
            download.start()  # here, so that Ctrl-C ends it from its first moment on
            while not download.ended(POLL_SECONDS):
                if check is not None:
                    check()
        except BaseException:
            download.end()
            raise
        try:
            return download.result()
        except (Exception, KeyboardInterrupt):  # an aborted session raises either
            with _lock:  # the session is aborted and counted at once
                is_own = aborted == _aborted_sessions
            if is_own:
                raise
        # Ending another download aborted the session of this one, too: continue it.


class _Download(Generic[T]):
    """A download on a thread of its own."""

    def __init__(self, function: Callable[[type], T], bar: type | None) -> None:
        self._stop = threading.Event()
        self._future: Future[T] = Future()
        # Not an executor's, whose threads Python waits for when it exits.
        self._thread = threading.Thread(
            target=self._run, args=(function, bar), name="download", daemon=True
        )

    def start(self) -> None:
        """Begin to download."""
        self._thread.start()

    def _run(self, function: Callable[[type], T], bar: type | None) -> None:
        try:
            result = function(_stoppable(bar, self._stop))
        except BaseException as error:  # a KeyboardInterrupt comes from an aborted session
            self._future.set_exception(error)
        else:
            self._future.set_result(result)

    def ended(self, seconds: float) -> bool:
        """Wait for at most this long; return whether the download has ended."""
        return bool(wait([self._future], seconds).done)

    def result(self) -> T:
        """Return the function's result, or raise what it raised."""
        return self._future.result()

    def end(self) -> None:
        """End the download, and wait until it has ended."""
        global _aborted_sessions
        self._stop.set()
        while self._thread.is_alive() and not self.ended(0):
            with _lock:
                abort_xet_session()
                _aborted_sessions += 1
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
