"""Downloads of hub models, with progress that a page can show and a way to cancel them."""

from __future__ import annotations

import threading
from typing import Any

from vqa_app.serving.engine_pool import LoadProgress


def download_model(name: str, progress: LoadProgress) -> None:
    """Download a model into the local cache, unless it is already there.

    Args:
        name: Hub id.
        progress: Called with every new state of the download, and several times a second so that it
            can raise `LoadingCancelled`, which ends the download.

    Raises:
        ModelError: The model cannot be downloaded.
        LoadingCancelled: `progress` raised it.
    """
    from vqa_app.checkpoints import source

    latest: tuple[str, float | None] = "Contacting the hub …", None

    def report(message: str, share: float | None = None) -> None:
        nonlocal latest
        latest = message, share
        progress(message, share)

    report(*latest)
    source.find(name, bar=_progress_bar_class(report), check=lambda: progress(*latest))


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
