"""What an idle server does: unload its models, and end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from vqa_app.serving.engine_pool import EnginePool

_CHECKS = 10
"""How often the time is checked before a model is unloaded or the server ends."""
_LONGEST_WAIT = 5.0


def watch_idle(
    pool: EnginePool,
    *,
    unload_after: float | None = None,
    end_after: float | None = None,
    end: Callable[[], None],
) -> None:
    """Unload idle models, and end an idle server; checked by a thread of its own.

    Args:
        pool: The models.
        unload_after: Seconds without a question after which models are unloaded; the next question
            loads them again. None keeps them.
        end_after: Seconds without a question after which the server ends; None never ends it.
        end: Ends the server.
    """
    limits = [limit for limit in (unload_after, end_after) if limit is not None]
    if not limits:
        return
    wait = min(_LONGEST_WAIT, *(limit / _CHECKS for limit in limits))

    def watch() -> None:
        while True:
            time.sleep(wait)
            idle = pool.idle_seconds()
            if end_after is not None and idle >= end_after:
                end()
                return
            if unload_after is not None and idle >= unload_after:
                pool.release_idle()

    threading.Thread(target=watch, name="idle", daemon=True).start()
