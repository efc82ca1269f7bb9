"""Several processes: the losses of one; shipped FSDP and DeepSpeed configs are what their readers
take."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.config import FinetuneConfig
from finetune.distributed import DEEPSPEED, FSDP, deepspeed_config, fsdp_config
from finetune.train import train
from tests.finetune_data import write_data
from vqa_app.errors import UsageError

needs_fork = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="needs processes that can be forked"
)


def config(model: Path, folder: Path, name: str) -> FinetuneConfig:
    return FinetuneConfig(
        model=str(model),
        data=(str(folder / "data.json"),),
        out=str(folder / name),
        feature_dir=str(folder / f"features-{name}"),
        eval_fraction=0.3,
        eval_every=3.0,
        eval_questions=6,
        max_steps=6,
        batch_size=4,
        micro_batch_size=1,
        rank=4,
        lr=1e-2,
        workers=1,
        device="cpu",
        precision="fp32",
    )


def records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def run_together(processes: int, work: Callable[[], object]) -> None:
    """Runs the same in forked processes, with the environment of `accelerate launch`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [_fork(rank, processes, port, work) for rank in range(processes)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * processes


def _fork(rank: int, processes: int, port: int, work: Callable[[], object]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        from accelerate.state import AcceleratorState, GradientState, PartialState

        for state in (PartialState, AcceleratorState, GradientState):
            state._reset_state()
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes,
                       "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port}  # fmt: skip
        os.environ.update({key: str(value) for key, value in environment.items()})
        os.environ.update(
            MASTER_ADDR="127.0.0.1", ACCELERATE_USE_CPU="true", GLOO_SOCKET_IFNAME="lo"
        )
        work()
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


@pytest.fixture(scope="module")
def alone(tiny_llava_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process. Some rows are text only, so some micro-batches hold no picture."""
    folder = tmp_path_factory.mktemp("distributed")
    write_data(folder, pictures=7, text_rows=4)
    run_together(1, lambda: train(config(tiny_llava_dir, folder, "alone")))
    return folder / "alone"


def assert_same(run: Path, other: Path) -> None:
    one, two = records(run), records(other)
    by_step = {line["step"]: line for line in two if "loss" in line}
    for line in one:
        if "loss" in line:
            assert by_step[line["step"]]["loss"] == pytest.approx(line["loss"], rel=1e-3)
            norm = by_step[line["step"]]["grad_norm"]
            assert norm == pytest.approx(line["grad_norm"], rel=1e-3), line["step"]
    assert len(by_step) == sum("loss" in line for line in one)


@needs_fork
def test_two_processes_reach_the_losses_of_one(tiny_llava_dir: Path, alone: Path) -> None:
    chosen = config(tiny_llava_dir, alone.parent, "both")
    run_together(2, lambda: train(chosen))
    assert_same(alone, alone.parent / "both")
    for one, two in zip(records(alone), records(alone.parent / "both"), strict=True):
        for key in {"eval_loss", "eval_vqa_accuracy"} & set(one):
            assert two[key] == pytest.approx(one[key], rel=1e-3)


@pytest.mark.parametrize("option", ["fsdp", "deepspeed"])
def test_sharding_without_gpus_is_refused(
    tiny_llava_dir: Path, tmp_path: Path, option: str
) -> None:
    """accelerate would train unsharded without a word."""
    chosen = config(tiny_llava_dir, tmp_path, "run")
    with pytest.raises(UsageError, match=f"{option} shards over GPUs"):
        train(chosen.replace(**{option: "default" if option == "fsdp" else "zero2"}))


@pytest.mark.parametrize("name", FSDP)
def test_fsdp_configs_are_taken(name: str) -> None:
    """transformers turns them into an accelerate plugin without a key left over."""
    import inspect

    from accelerate import FullyShardedDataParallelPlugin

    values = fsdp_config(name)
    known = set(inspect.signature(FullyShardedDataParallelPlugin.__init__).parameters)
    renamed = {"version": "fsdp_version", "offload_params": "cpu_offload"}
    assert {renamed.get(key, key) for key in values} <= known
    plugin = FullyShardedDataParallelPlugin(
        **{renamed.get(key, key): value for key, value in values.items()}
    )
    assert plugin.fsdp_version == 2


@pytest.mark.parametrize("name", DEEPSPEED)
def test_deepspeed_configs_are_taken(name: str) -> None:
    """accelerate reads them and transformers fills in every "auto", also without DeepSpeed."""
    from accelerate.utils.deepspeed import HfDeepSpeedConfig
    from transformers import TrainingArguments
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    values = deepspeed_config(name)
    own = {key: value for key, value in vars(HfTrainerDeepSpeedConfig).items() if key[0] != "_"}
    fill = {"_dtype": None, "mismatches": [], "fill_only": None} | own
    filled = type("Filled", (HfDeepSpeedConfig,), fill)(values)
    assert filled.is_zero3() == name.startswith("zero3")
    assert filled.is_offload() == name.endswith("offload")
    arguments = TrainingArguments(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        max_grad_norm=1.0,
        use_cpu=True,
    )
    filled.trainer_config_process(arguments)
    assert filled.config["train_micro_batch_size_per_gpu"] == 2
    assert filled.config["gradient_accumulation_steps"] == 4
    filled.trainer_config_finalize(arguments, _Model(), 100)
    assert "auto" not in json.dumps(filled.config)
    assert "optimizer" not in filled.config  # the trainer's own has the projector's learning rate


class _Model:
    class config:  # noqa: N801 (as transformers names it)
        hidden_size = 64


def test_an_unknown_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="zero9"):
        deepspeed_config("zero9")
    (tmp_path / "mine.json").write_text("[1]")
    with pytest.raises(UsageError, match="no object"):
        fsdp_config(str(tmp_path / "mine.json"))
