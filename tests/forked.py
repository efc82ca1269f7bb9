"""Run work in other processes: one that is killed, or several that train together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

LIMIT = 600.0
"""Seconds that the processes of a test may take."""


def in_child(work: Callable[[], object]) -> int:
    """Run work in a forked process and return its exit status, as from `os.waitpid`.

    It is killed after the time limit.
    """
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    signal.alarm(int(LIMIT))
    try:
        work()
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def together(processes: int, work: Callable[..., object], *arguments: object) -> None:
    """Run the same work in several processes, with the environment of `accelerate launch`.

    They come from a fork server that has imported the trainer and runs nothing else: the threads
    and the heap of the tests before are not theirs.

    Args:
        processes: Number of processes.
        work: A function of a module.
        arguments: What it is called with; they are pickled.
    """
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
    environments = [{**common, "RANK": rank, "LOCAL_RANK": rank} for rank in range(processes)]
    assert run_all(environments, work, *arguments) == [0] * processes


def run_all(
    environments: Sequence[Mapping[str, object]],
    work: Callable[..., object],
    *arguments: object,
    seconds: float = LIMIT,
) -> list[int]:
    """Run work in a process for each environment and return their exit codes.

    If one fails, or after `seconds`, the others are killed: they might wait for it forever.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["finetune.training.train"])
    children: list[BaseProcess] = [
        context.Process(target=_work, args=(environment, work, arguments))
        for environment in environments
    ]
    for child in children:
        child.start()
    end = time.monotonic() + seconds
    running = list(children)
    while running:
        wait([child.sentinel for child in running], max(end - time.monotonic(), 0))
        running = [child for child in children if child.is_alive()]
        if any(child.exitcode for child in children) or time.monotonic() > end:
            for child in running:
                child.kill()
    return [child.exitcode or 0 for child in children]


def _work(
    environment: Mapping[str, object], work: Callable[..., object], arguments: Sequence[object]
) -> None:
    import torch

    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    work(*arguments)
