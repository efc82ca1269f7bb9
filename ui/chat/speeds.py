"""How long answers take to begin, as measured on earlier ones."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from statistics import median

from vqa_app.engine.protocol import Answer

_KEPT = 8
"""Answers of each model that are remembered: the machine may become busier or idle."""
_MIN_TOKENS = 16
"""Fewer new prompt tokens say more about the rest of the work than about reading a prompt."""


class AnswerSpeeds:
    """Seconds until the first word, by model. Thread-safe."""

    def __init__(self) -> None:
        self._measured: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_KEPT))
        self._lock = threading.Lock()

    def add(self, model: str, answer: Answer) -> None:
        """Remember how fast a model read the prompt of an answer."""
        if answer.prompt_tokens is None or not answer.new_tokens:
            return
        tokens = answer.prompt_tokens - (answer.cached_tokens or 0)
        if tokens >= _MIN_TOKENS:
            with self._lock:
                self._measured[model].append(answer.seconds_to_first_token / tokens)

    def seconds(self, model: str, tokens: int) -> float | None:
        """Return the expected time to read this many new tokens; None before the first answer."""
        with self._lock:
            rates = list(self._measured.get(model, ()))
        return tokens * median(rates) if rates else None
