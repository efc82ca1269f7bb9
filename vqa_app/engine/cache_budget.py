"""One memory budget for the caches of all engines on a device.

Each engine has caches of its own, used by its own thread. What was used least recently is dropped
first, whichever engine it belongs to: an idle engine gives way to the one that answers. Everything
is dropped before a model is refused for want of memory, and before a training plans its own.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from vqa_app.devices import free_memory, register_caches

if TYPE_CHECKING:
    import torch

_MAX_SYSTEM_BYTES = 2 << 30
"""On CPUs and Macs, other programs need the same memory."""


class Cache(Protocol):
    """A cache that drops its entries one by one, in the order of their last use."""

    @property
    def nbytes(self) -> int:
        """Memory of all entries and of what cannot be dropped, in bytes."""
        ...

    @property
    def oldest(self) -> int | None:
        """When the entry to be dropped first was used, as `CacheBudget.now` gave it."""
        ...

    def drop_oldest(self) -> None:
        """Drop this entry."""
        ...


class CacheBudget:
    """Keeps several caches together within a number of bytes.

    Args:
        limit: Returns the number of bytes; called with those held, whenever something is added.

    Attributes:
        lock: Held while any of the caches changes.
    """

    def __init__(self, limit: Callable[[int], int]) -> None:
        self.lock = threading.RLock()
        self._limit = limit
        self._caches: weakref.WeakSet[Cache] = weakref.WeakSet()
        self._clock = itertools.count()

    @classmethod
    def fixed(cls, nbytes: int) -> CacheBudget:
        """Return a budget whose limit never changes; 0 keeps nothing."""
        return cls(lambda _: nbytes)

    @property
    def nbytes(self) -> int:
        """Memory of all entries, in bytes."""
        with self.lock:
            return sum(cache.nbytes for cache in self._caches)

    @property
    def limit(self) -> int:
        """How many bytes may be held now."""
        return self._limit(self.nbytes)

    def register(self, cache: Cache) -> None:
        """Add a cache, as long as it lives."""
        with self.lock:
            self._caches.add(cache)

    def now(self) -> int:
        """Return the next number of a clock that ticks with each use."""
        return next(self._clock)

    def trim(self) -> None:
        """Drop entries, the least recently used first, until the others fit."""
        with self.lock:
            limit = self.limit
            while self.nbytes > limit and self._drop_oldest():
                pass

    def clear(self) -> bool:
        """Drop all entries of all caches; return whether there were any."""
        with self.lock:
            held = self._drop_oldest()
            while self._drop_oldest():
                pass
            return held

    def _drop_oldest(self) -> bool:
        used = [(cache.oldest, cache) for cache in self._caches]
        filled = [(when, cache) for when, cache in used if when is not None]
        if not filled:
            return False
        min(filled, key=lambda pair: pair[0])[1].drop_oldest()
        return True


_shared: dict[torch.device, CacheBudget] = {}
_shared_lock = threading.Lock()


def shared_budget(device: torch.device) -> CacheBudget:
    """Return the budget of all engines on a device."""
    with _shared_lock:
        if device not in _shared:
            budget = _shared[device] = CacheBudget(
                lambda held: cache_limit(device.type, free_memory(device) + held)
            )
            register_caches(budget.clear)
        return _shared[device]


def cache_limit(kind: str, free: int) -> int:
    """Return how many bytes the caches on a device may take: a quarter of what is free.

    Args:
        kind: Type of the device.
        free: Free memory of the device, were the caches empty.
    """
    share = max(0, free) // 4
    return share if kind == "cuda" else min(share, _MAX_SYSTEM_BYTES)
