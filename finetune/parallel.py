"""Map a function over items in threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_READ_AHEAD = 64

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def parallel_map(
    function: Callable[[_Item], _Result], items: Sequence[_Item], workers: int | None = None
) -> Iterator[_Result]:
    """Yield the results in the order of the items.

    Unlike `Executor.map`, which begins all calls at once before Python 3.14's `buffersize`, this
    keeps at most 64 calls running or finished ahead of the caller.

    Args:
        function: Called in threads.
        items: Its arguments.
        workers: Number of threads; by default the number of CPUs, at most 8.
    """
    count = workers or min(8, os.cpu_count() or 1)
    if count == 1 or len(items) < 2:
        yield from map(function, items)
        return
    remaining = iter(items)
    with ThreadPoolExecutor(count, "parallel_map") as pool:
        futures = deque(pool.submit(function, item) for item in islice(remaining, _READ_AHEAD))
        while futures:
            result = futures.popleft().result()
            futures.extend(pool.submit(function, item) for item in islice(remaining, 1))
            yield result
