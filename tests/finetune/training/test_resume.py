"""A run that was killed at any step resumes with the losses of an uninterrupted run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest

from finetune.config import FinetuneConfig
from finetune.progress import Progress
from finetune.training.device import DeviceMemory, Machine
from finetune.training.resume import Division, lock, start_or_resume, write_division
from finetune.training.train import train
from tests.finetune.training_data import metrics, small_config, write_data
from tests.forked import in_child, needs_fork
from tests.waiting import until
from vqa_app.errors import UsageError

pytestmark = [needs_fork, pytest.mark.slow]


def config(model: Path, folder: Path, name: str) -> FinetuneConfig:
    return small_config(
        model,
        folder / "data.json",
        folder / name,
        eval_fraction=0.0,
        save_every=2.0,
        max_steps=7,
        batch_size=3,
        micro_batch_size=2,
        dropout=0.2,
        lr=1e-2,
    )


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in metrics(run) if "loss" in line]


def signal_at(step: int, number: signal.Signals) -> Callable[[Progress], None]:
    """Send this process a signal once, when a step is reported."""
    sent = []

    def on_progress(progress: Progress) -> None:
        if progress.phase == "training" and progress.done == step and not sent:
            sent.append(step)
            os.kill(os.getpid(), number)

    return on_progress


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    write_data(folder, pictures=5)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(folder: Path, tiny_llava_dir: Path) -> list[tuple[int, float]]:
    """With LoRA dropout, so that random numbers count too."""
    assert in_child(lambda: train(config(tiny_llava_dir, folder, "whole"))) == 0
    return losses(folder / "whole")


def test_a_run_killed_between_checkpoints_resumes(
    folder: Path, tiny_llava_dir: Path, uninterrupted: list[tuple[int, float]]
) -> None:
    chosen = config(tiny_llava_dir, folder, "killed")
    for step in (1, 5):  # before the first checkpoint, and after the second
        status = in_child(lambda step=step: train(chosen, signal_at(step, signal.SIGKILL)))
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert losses(folder / "killed")[-1][0] >= step
    assert in_child(lambda: train(chosen)) == 0
    assert losses(folder / "killed") == uninterrupted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_ctrl_c_save_a_checkpoint(
    folder: Path,
    tiny_llava_dir: Path,
    uninterrupted: list[tuple[int, float]],
    number: signal.Signals,
) -> None:
    chosen = config(tiny_llava_dir, folder, number.name)

    def stopped() -> None:
        result = train(chosen, signal_at(3, number))
        assert not result.finished
        assert (result.run / "checkpoints" / f"step-{result.step}").is_dir()

    assert in_child(stopped) == 0
    assert in_child(lambda: train(chosen)) == 0
    assert losses(folder / number.name) == uninterrupted


def test_a_resumed_run_keeps_its_micro_batches_when_less_memory_is_free(
    folder: Path, tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, on_progress: Callable[[Progress], None] | None = None) -> int:
        undecided = config(tiny_llava_dir, folder, name).replace(micro_batch_size=None)
        return in_child(lambda: train(undecided, on_progress))

    assert run("roomy") == 0
    assert os.WTERMSIG(run("tight", signal_at(5, signal.SIGKILL))) == signal.SIGKILL
    monkeypatch.setattr(Machine, "memory", lambda _: DeviceMemory(held=0, free=1))
    assert run("tight") == 0
    assert losses(folder / "tight") == losses(folder / "roomy")


def test_a_run_resumes_with_a_smaller_micro_batch_size_if_asked(
    folder: Path, tiny_llava_dir: Path
) -> None:
    """As the message about too little memory advises."""
    chosen = config(tiny_llava_dir, folder, "smaller").replace(dropout=0.0)
    status = in_child(lambda: train(chosen, signal_at(5, signal.SIGKILL)))
    assert os.WTERMSIG(status) == signal.SIGKILL

    def resumed() -> None:
        messages: list[str] = []
        smaller = chosen.replace(micro_batch_size=1)
        train(smaller, lambda progress: messages.append(progress.message))
        assert any(message.startswith("Continuing from") for message in messages)

    assert in_child(resumed) == 0
    assert [step for step, _ in losses(folder / "smaller")] == [1, 2, 3, 4, 5, 6, 7]


def test_two_runs_cannot_train_in_one_folder(
    folder: Path, tiny_llava_dir: Path, pytestconfig: pytest.Config
) -> None:
    """A second one is refused while the first trains, in its process and in another."""
    chosen = config(tiny_llava_dir, folder, "both")
    trains, refused = folder / "trains", folder / "refused"

    def first() -> None:
        def on_progress(progress: Progress) -> None:
            if progress.phase == "training" and progress.done == 3:
                with pytest.raises(UsageError, match=f"in use: process {os.getpid()} trains in it"):
                    train(chosen)
                (folder / "pid").write_text(str(os.getpid()))
                trains.touch()
                until(refused.exists)

        train(chosen, on_progress)

    def second() -> str:
        until(trains.exists)
        with pytest.raises(UsageError) as error, lock(Path(chosen.out)):
            pass
        refused.touch()
        return str(error.value)

    with ThreadPoolExecutor(1) as threads:
        message = threads.submit(second)
        assert in_child(first) == 0
    assert f"in use: process {(folder / 'pid').read_text()} trains in it" in message.result()
    assert [step for step, _ in losses(folder / "both")] == [1, 2, 3, 4, 5, 6, 7]
    if not pytestconfig.getoption("windows_files"):  # Windows' filelock removes it, not Linux's
        assert not (folder / "both" / ".lock").exists()


def test_nothing_stays_locked_after_a_kill_or_on_a_disk_without_locks(
    folder: Path, tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import fcntl

    chosen = config(tiny_llava_dir, folder, "left").replace(feature_gb=0.0)
    status = in_child(lambda: train(chosen, signal_at(1, signal.SIGKILL)))
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert (folder / "left" / ".lock").exists()
    with lock(folder / "left"):
        pass
    for number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(number, "no locks here")))
        with lock(folder / "left"), lock(folder / "left"):
            pass


def test_deepspeed_checkpoints_are_continued_by_as_many_processes(tmp_path: Path) -> None:
    """DeepSpeed itself raises an exception about its "DP world size"."""
    sharded = FinetuneConfig(out=str(tmp_path), deepspeed="zero2")
    identity = {"stage": "lora"}
    assert start_or_resume(tmp_path, sharded, identity, 2) is None
    write_division(tmp_path, Division("cuda", 2, 1, 1, False))
    saved = tmp_path / "checkpoints" / "step-3"
    saved.mkdir(parents=True)
    with pytest.raises(UsageError, match=r"run with --num_processes 2; .* them with 3") as refused:
        start_or_resume(tmp_path, sharded, identity, 3)
    assert "--num_processes 2" in refused.value.hint
    assert start_or_resume(tmp_path, sharded, identity, 2) == saved
    plain = sharded.replace(deepspeed=None, fsdp="default")
    assert start_or_resume(tmp_path, plain, identity, 3) == saved
    assert start_or_resume(tmp_path, sharded.replace(resume="never"), identity, 3) is None
