"""Fetching a hub model with progress that the page can show, and that it can stop."""

from __future__ import annotations

import threading
from typing import Any

from vqa_app.serving.engine_pool import LoadingCancelled, LoadProgress


def download_model(name: str, progress: LoadProgress) -> None:
    """Brings a model into the local cache, unless it is there.

    Raises:
        ModelError: it cannot be had.
        LoadingCancelled: `progress` said so.
    """
    from vqa_app.checkpoints import source

    progress("Asking the hub …")
    try:
        source.find(name, bar=_bar(progress))
    except LoadingCancelled:
        raise
    except Exception as error:
        # A cancelled transfer may come back wrapped by the thread pool's own error.
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, LoadingCancelled):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        raise


def _bar(progress: LoadProgress) -> type:
    """A bar for huggingface_hub that draws nothing and tells `progress` the bytes."""
    from tqdm.auto import tqdm

    lock = threading.Lock()

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": True})
            self.bytes = options.get("unit") == "B"
            self.got, self.total = 0, options.get("total") or 0

        def update(self, count: float | None = 1) -> None:
            with lock:
                self.got += count or 0
                total = self.total or 0
            if self.bytes and total:
                share = min(1.0, self.got / total)
                progress(f"Downloading {self.got / 1e6:,.0f} of {total / 1e6:,.0f} MB", share)

        def refresh(self, *args: Any, **options: Any) -> bool:
            return True

    return Bar
