"""Fixtures that every test may use. Nothing here imports torch until a test asks for a model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process for each core that this process may use, and at most eight."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, 8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the pictures that the rows of `tests.finetune.data_rows` name."""
    from tests.finetune.data_rows import picture_folder

    return picture_folder(tmp_path)


@pytest.fixture(scope="session")
def one_thread() -> None:
    """Torch on one thread: tiny models are faster so, and their sums come in one order."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_llava_dir(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A random LLaVA (SigLIP tower, Llama, ChatML) in hub layout; never write into it."""
    from tests.tiny import tiny_llava

    return tiny_llava(tmp_path_factory.mktemp("tiny") / "llava")


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> Callable[[str], Path]:
    """Random checkpoints by the names in `tests.architectures`; built once, never write into
    them.
    """
    from tests.architectures import ARCHITECTURES
    from vqa_app.quiet import quiet

    built: dict[str, Path] = {}

    def checkpoint(name: str) -> Path:
        if name not in built:
            with quiet():
                built[name] = ARCHITECTURES[name](tmp_path_factory.mktemp("tiny") / name)
        return built[name]

    return checkpoint
