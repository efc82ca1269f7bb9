"""Work in threads, in order and with bounded read-ahead."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_AHEAD = 64


_Item = TypeVar("_Item")


_Result = TypeVar("_Result")


def parallel_map(
    work: Callable[[_Item], _Result], items: Sequence[_Item], workers: int | None = None
) -> Iterator[_Result]:
    """Maps in threads, in order, never more than a few results ahead of the one who asks."""
    count = workers or min(8, os.cpu_count() or 1)
    if count == 1 or len(items) < 2:
        yield from map(work, items)
        return
    source = iter(items)
    with ThreadPoolExecutor(count, "preflight") as pool:
        waiting = [pool.submit(work, item) for item in islice(source, _AHEAD)]
        position = 0
        while waiting[position:]:
            result = waiting[position].result()
            position += 1
            if position == _AHEAD:
                waiting, position = waiting[position:], 0
            waiting += [pool.submit(work, item) for item in islice(source, 1)]
            yield result
