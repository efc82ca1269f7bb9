"""Counters of a server in Prometheus' text format."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of the histograms' buckets."""


class _Histogram:
    """How many durations fall into each bucket."""

    def __init__(self) -> None:
        self._counts = [0] * (len(SECONDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(SECONDS, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str) -> Iterator[str]:
        totals = list(accumulate(self._counts))
        for bound, total in zip((*map(str, SECONDS), "+Inf"), totals, strict=True):
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {totals[-1]}"


class Metrics:
    """Counts requests, tokens and times. All methods are thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[int] = Counter()
        self._tokens: Counter[str] = Counter()
        self._in_progress = 0
        self._first_token, self._request = _Histogram(), _Histogram()

    def start(self) -> None:
        """Count a request that begins."""
        with self._lock:
            self._in_progress += 1

    def end(self, status: int, seconds: float) -> None:
        """Count a request that `start` has counted.

        Args:
            status: Its HTTP status; 499 if the client went away before the end.
            seconds: From its arrival on.
        """
        with self._lock:
            self._in_progress -= 1
            self._requests[status] += 1
            self._request.add(seconds)

    def add_answer(self, *, prompt: int, cached: int, generated: int, seconds: float) -> None:
        """Count the tokens of an answer, and the seconds until its first one."""
        with self._lock:
            self._tokens["prompt"] += prompt
            self._tokens["cached_prompt"] += cached
            self._tokens["generated"] += generated
            self._first_token.add(seconds)

    def text(self, queued: int) -> str:
        """Return all metrics in Prometheus' text format.

        Args:
            queued: Number of answers that are generated or wait.
        """
        with self._lock:
            return "\n".join(self._lines(queued)) + "\n"

    def _lines(self, queued: int) -> Iterator[str]:
        name = "vqa_requests_total"
        yield from _header(name, "counter", "Requests that ended, by HTTP status.")
        for status, count in sorted(self._requests.items()):
            yield f'{name}{{status="{status}"}} {count}'
        name = "vqa_requests_in_progress"
        yield from _header(name, "gauge", "Requests in progress.")
        yield f"{name} {self._in_progress}"
        name = "vqa_answers_in_progress"
        yield from _header(name, "gauge", "Answers that are generated or wait; n for a request.")
        yield f"{name} {queued}"
        for kind, text in (
            ("prompt", "Tokens of prompts, image tokens included."),
            ("cached_prompt", "Tokens of prompts that came from the KV cache."),
            ("generated", "Tokens of answers."),
        ):
            name = f"vqa_{kind}_tokens_total"
            yield from _header(name, "counter", text)
            yield f"{name} {self._tokens[kind]}"
        name = "vqa_time_to_first_token_seconds"
        yield from _header(name, "histogram", "From the start of the prompt to the first token.")
        yield from self._first_token.lines(name)
        name = "vqa_request_seconds"
        yield from _header(name, "histogram", "Duration of requests, waiting included.")
        yield from self._request.lines(name)


def _header(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
