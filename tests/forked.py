"""Run work in forked processes: one that is killed, or several that train together."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

LIMIT = 600.0
"""Seconds that the processes of a test may take."""


def in_child(work: Callable[[], object]) -> int:
    """Run work in a forked process and return its exit status, as from `os.waitpid`."""
    return _wait([_fork(work, {})])[0]


def together(processes: int, work: Callable[[], object]) -> None:
    """Run the same work in several processes, with the environment of `accelerate launch`."""
    from torch.distributed import TCPStore

    # Open the store before the processes start, as torchrun does: another program could take a port
    # that is merely known to be free.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": store.port,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": 0,
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    children = [
        _fork(work, {**common, "RANK": rank, "LOCAL_RANK": rank}) for rank in range(processes)
    ]
    assert _wait(children) == [0] * processes


def _wait(children: Sequence[int], seconds: float = LIMIT) -> list[int]:
    """Wait for child processes and return their exit statuses, as from `os.waitpid`.

    If one fails, or after `seconds`, the others are killed: they might wait for it forever.
    """
    statuses: dict[int, int] = {}
    end = time.monotonic() + seconds
    while len(statuses) < len(children):
        for child in children:
            if child not in statuses:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    statuses[child] = status
        failed = any(statuses.values()) or time.monotonic() > end
        for child in children:
            if failed and child not in statuses:
                os.kill(child, signal.SIGKILL)
                statuses[child] = os.waitpid(child, 0)[1]
        time.sleep(0.01)
    return [statuses[child] for child in children]


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
