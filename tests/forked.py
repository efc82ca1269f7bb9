"""Work in forked processes: a run that is killed, and several that train together."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping

import pytest

needs_fork = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="needs processes that can be forked"
)


def in_child(work: Callable[[], object]) -> int:
    """Runs in a forked process; gives its exit status as `os.waitpid` does."""
    return os.waitpid(_fork(work, {}), 0)[1]


def together(processes: int, work: Callable[[], object]) -> None:
    """Runs the same in forked processes, with the environment of `accelerate launch`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    children = [
        _fork(work, {**common, "RANK": rank, "LOCAL_RANK": rank}) for rank in range(processes)
    ]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * processes


def _fork(work: Callable[[], object], environment: Mapping[str, object]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        from accelerate.state import AcceleratorState, GradientState, PartialState

        for state in (PartialState, AcceleratorState, GradientState):
            state._reset_state()
        os.environ.update({name: str(value) for name, value in environment.items()})
        work()
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
