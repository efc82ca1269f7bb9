"""One pool of OpenMP threads at a time, since two make each other slow.

Each Python thread that runs a parallel operator of torch's gets OpenMP threads of its own, and
keeps them. Once libgomp counts more threads than processors, all of them stop waiting for the next
operator awake: every one begins with a call to the kernel, and decoding a billion parameters takes
twice as long on two cores. So a thread that is done with torch for now gives its pool back.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

_SOFT = 1
"""`omp_pause_soft` of the OpenMP specification 5.0: the threads go, every setting stays."""


def release_threads() -> None:
    """Ends the calling thread's OpenMP threads; its next parallel operator starts them again, in
    about 0.1 ms. Does nothing where torch brings another OpenMP than GNU's.
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
