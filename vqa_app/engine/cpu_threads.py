"""Release OpenMP threads, because two pools of them slow each other down.

Each Python thread that runs a parallel torch operator gets OpenMP threads of its own and keeps
them. Once libgomp counts more threads than processors, none of them spins while it waits for the
next operator: each wake-up becomes a system call, and decoding with a billion parameters takes
twice as long on two cores. So a thread that stops using torch for a while releases its pool.

Tried with torch 2.13, whose Linux wheels bring libgomp.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

_SOFT = 1
"""`omp_pause_soft` of the OpenMP 5.0 specification: threads end, settings stay."""


def release_threads() -> None:
    """End the calling thread's OpenMP threads.

    Its next parallel operator starts them again, in about 0.1 ms. Does nothing where torch uses an
    OpenMP library other than GNU's.
    """
    if (library := _libgomp()) is not None:
        library.omp_pause_resource_all(_SOFT)


@cache
def _libgomp() -> ctypes.CDLL | None:
    import torch

    path = next((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"), None)
    if path is None:
        return None
    library = ctypes.CDLL(str(path))
    return library if hasattr(library, "omp_pause_resource_all") else None
