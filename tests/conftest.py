"""Fixtures that every test may use. Nothing here imports torch until a test asks for a model."""

from __future__ import annotations

import gc
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# bitsandbytes, which PEFT imports, decorates functions with torch.compile: its compiler takes two
# seconds to import in every process.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--windows-files",
        action="store_true",
        help="refuse to rename or delete open files in every test, as Windows does",
    )


@pytest.fixture(autouse=True)
def windows_files(request: pytest.FixtureRequest) -> Iterator[None]:
    """With `--windows-files`, files that are open can be neither renamed nor deleted."""
    if not request.config.getoption("--windows-files"):
        yield
        return
    from tests.windows import keep_open_files

    with pytest.MonkeyPatch.context() as patch:
        keep_open_files(patch)
        yield


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return one process for each core that this process may use, at most eight."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, 8)


def pytest_collection_finish() -> None:
    """Exempt what the test modules have imported from garbage collection.

    Training and loading collect garbage; with all modules of torch and transformers to look
    through, that takes half of the time of a test that trains a tiny model.
    """
    gc.collect()
    gc.freeze()


class _FailOnDeprecation(logging.Handler):
    """Turn a logged deprecation warning of transformers into an error at the call."""

    def emit(self, record: logging.LogRecord) -> None:
        if "deprecated" in record.getMessage():
            raise DeprecationWarning(record.getMessage())


@pytest.fixture(autouse=True, scope="session")
def no_deprecated_calls() -> Iterator[None]:
    handler = _FailOnDeprecation(logging.WARNING)
    logging.getLogger("transformers").addHandler(handler)
    yield
    logging.getLogger("transformers").removeHandler(handler)


@pytest.fixture(autouse=True, scope="session")
def own_data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests away from the chats, calibrations and servers of whoever runs them."""
    # Paths of sockets have to be short.
    with (
        pytest.MonkeyPatch.context() as environment,
        tempfile.TemporaryDirectory(prefix="vqa-", ignore_cleanup_errors=True) as run,
    ):
        environment.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        environment.setenv("XDG_RUNTIME_DIR", run)
        environment.delenv("VQA_BACKGROUND", raising=False)
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Create a folder with the pictures that the rows of `tests.finetune.data_rows` name."""
    from tests.finetune.data_rows import picture_folder

    return picture_folder(tmp_path)


@pytest.fixture(scope="session")
def one_thread() -> None:
    """Use one thread in torch: tiny models are faster, and sums have a fixed order."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_llava_dir(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """Save a random LLaVA (SigLIP, Llama, ChatML) in hub layout; never write into it."""
    from tests.tiny import tiny_llava

    return tiny_llava(tmp_path_factory.mktemp("tiny") / "llava")


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> Callable[[str], Path]:
    """Build random checkpoints by their names in `tests.architectures`; never write into them."""
    from tests.architectures import ARCHITECTURES
    from vqa_app.quiet import quiet

    built: dict[str, Path] = {}

    def checkpoint(name: str) -> Path:
        if name not in built:
            with quiet():
                built[name] = ARCHITECTURES[name](tmp_path_factory.mktemp("tiny") / name)
        return built[name]

    return checkpoint
