"""How many pixels all requests together hold in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from vqa_app.serving.openai_errors import AnswerStopped

_POLL_SECONDS = 0.2
"""How often a request that waits looks whether it is cancelled."""


class PictureMemory:
    """Lets requests decode their pictures while those of others leave room.

    Args:
        most: Pixels that are held while another request may begin to decode.
    """

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._changed = threading.Condition()

    def wait(self, cancel: threading.Event) -> None:
        """Wait until there is room.

        Raises:
            AnswerStopped: The request was cancelled meanwhile.
        """
        with self._changed:
            while self._held > self._most:
                if cancel.is_set():
                    raise AnswerStopped
                self._changed.wait(_POLL_SECONDS)

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Count pixels until the block ends."""
        with self._changed:
            self._held += pixels
        try:
            yield
        finally:
            with self._changed:
                self._held -= pixels
                self._changed.notify_all()
