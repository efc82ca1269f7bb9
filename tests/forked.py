"""Work in forked processes: a run that is killed, and several that train together."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence

import pytest

needs_fork = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="needs processes that can be forked"
)

LIMIT = 600.0
"""Seconds that the processes of a test may take."""


def in_child(work: Callable[[], object]) -> int:
    """Runs in a forked process; gives its exit status as `os.waitpid` does."""
    return _ended([_fork(work, {})])[0]


def together(processes: int, work: Callable[[], object]) -> None:
    """Runs the same in forked processes, with the environment of `accelerate launch`."""
    from torch.distributed import TCPStore

    # Where they meet is open before they are there, as torchrun has it: a port that is only known
    # to be free may be another's by then.
    meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": meeting.port,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": 0,
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    children = [
        _fork(work, {**common, "RANK": rank, "LOCAL_RANK": rank}) for rank in range(processes)
    ]
    assert _ended(children) == [0] * processes


def _ended(children: Sequence[int], seconds: float = LIMIT) -> list[int]:
    """Exit statuses of child processes, as `os.waitpid` gives them. Where one fails, or the time is
    up, those that still run are killed: they may wait for ever for the one that is gone.
    """
    statuses: dict[int, int] = {}
    ends = time.monotonic() + seconds
    while len(statuses) < len(children):
        for child in children:
            if child not in statuses:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    statuses[child] = status
        failed = any(statuses.values()) or time.monotonic() > ends
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
