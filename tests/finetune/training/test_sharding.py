"""Several processes reach the losses of one; the package's sharding configs are accepted."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import re
import sys
import threading
import time
import weakref
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed import TCPStore
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from finetune.config import FinetuneConfig, option_help
from finetune.progress import Progress
from finetune.training.device import Machine, join_processes
from finetune.training.freezing import freeze, trainable
from finetune.training.interrupt import Stop
from finetune.training.objective import Objective
from finetune.training.sharding import DEEPSPEED, FSDP, deepspeed_config, fsdp_config
from finetune.training.train import train
from finetune.training.trainer import FinetuneTrainer
from tests.finetune.training_data import metrics, small_config, write_data
from tests.forked import needs_fork, run_all, together
from tests.waiting import until
from vqa_app.checkpoints.loader import load_model
from vqa_app.checkpoints.weights import StoredTensor
from vqa_app.errors import DataError, InsufficientMemoryError, UsageError

pytestmark = pytest.mark.slow

NEVER = 300.0
"""Seconds that a process waits which others are to end."""
SOON = 20.0
"""Seconds after which all have ended; on a machine that does little else, two."""


def config(model: Path, folder: Path, name: str) -> FinetuneConfig:
    return small_config(
        model,
        folder / "data.json",
        folder / name,
        feature_dir=str(folder / f"features-{name}"),
        eval_fraction=0.3,
        eval_every=3.0,
        eval_questions=6,
        max_steps=6,
        batch_size=4,
        micro_batch_size=1,
        lr=1e-2,
    )


@pytest.fixture(scope="module")
def alone(tiny_llava_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train in one process. Some rows are text only, so some micro-batches hold no picture."""
    folder = tmp_path_factory.mktemp("distributed")
    write_data(folder, pictures=7, text_rows=4)
    together(1, train, config(tiny_llava_dir, folder, "alone"))
    return folder / "alone"


def assert_same(run: Path, other: Path) -> None:
    one, two = metrics(run), metrics(other)
    by_step = {line["step"]: line for line in two if "loss" in line}
    for line in one:
        if "loss" in line:
            assert by_step[line["step"]]["loss"] == pytest.approx(line["loss"], rel=1e-3)
            norm = by_step[line["step"]]["grad_norm"]
            assert norm == pytest.approx(line["grad_norm"], rel=1e-3), line["step"]
    assert len(by_step) == sum("loss" in line for line in one)


@needs_fork
def test_two_processes_have_the_losses_of_one(tiny_llava_dir: Path, alone: Path) -> None:
    chosen = config(tiny_llava_dir, alone.parent, "both")
    together(2, train, chosen)
    assert_same(alone, alone.parent / "both")
    for one, two in zip(metrics(alone), metrics(alone.parent / "both"), strict=True):
        for key in {"eval_loss", "eval_vqa_accuracy"} & set(one):
            assert two[key] == pytest.approx(one[key], rel=1e-3)


@needs_fork
def test_a_process_that_fails_ends_the_others(tiny_llava_dir: Path, alone: Path) -> None:
    """They would wait two hours for it: NCCL notices nothing, and gloo not before it has exited."""
    chosen = config(tiny_llava_dir, alone.parent, "failed")

    with pytest.raises(AssertionError):  # their exit codes
        together(2, train_and_fail, chosen, alone.parent / "failed-at")
    assert seconds_since(alone.parent / "failed-at") < SOON


def train_and_fail(chosen: FinetuneConfig, failed_at: Path) -> None:
    if os.environ["RANK"] == "0":
        train(chosen)
        return
    stages = import_module("finetune.training.stages")

    def fail(*_: object) -> None:
        raise DataError("The loss is not finite.")

    stages.fit = fail
    with pytest.raises(DataError):
        train(chosen)
    failed_at.touch()
    time.sleep(NEVER)


def seconds_since(moment: Path) -> float:
    """Return how long ago a file was made."""
    return time.time() - moment.stat().st_mtime


@needs_fork
@pytest.mark.parametrize("failing", [0, 1])
def test_whichever_process_fails_the_others_end_within_seconds(
    tmp_path: Path, failing: int
) -> None:
    with pytest.raises(AssertionError):
        together(2, wait_together, tmp_path, failing)
    assert seconds_since(tmp_path / f"failed-{failing}") < SOON


@needs_fork
def test_processes_end_when_the_one_with_their_store_is_gone(tmp_path: Path) -> None:
    """It is the launcher's, which may be killed: nobody would end them then."""
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe()
    host = context.Process(target=host_store, args=(there,), daemon=True)
    host.start()
    common = {
        "WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": here.recv(),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": 0,
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    killed_at = tmp_path / "killed"

    def kill() -> None:
        until(lambda: all((tmp_path / f"waits-{rank}").exists() for rank in range(2)))
        host.kill()
        killed_at.touch()

    thread = threading.Thread(target=kill)
    thread.start()
    environments = [{**common, "RANK": rank, "LOCAL_RANK": rank} for rank in range(2)]
    codes = run_all(environments, wait_together, tmp_path, None)
    thread.join()
    assert 1 in codes  # `run_all` kills the other
    assert seconds_since(killed_at) < 10 + SOON


def host_store(connection: Connection) -> None:
    """Host a store until the process is killed."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    connection.send(store.port)
    time.sleep(NEVER)


def wait_together(folder: Path, failing: int | None) -> None:
    """Wait for ever, as in an operation of all processes; one of them fails."""
    machine = Machine(torch.device("cpu"), None, *join_processes(torch.device("cpu")))
    with contextlib.suppress(DataError), machine.ending_together():
        machine.wait_for_all()
        if machine.process == failing:
            raise DataError("The loss is not finite.")
        (folder / f"waits-{machine.process}").touch()
        time.sleep(NEVER)
    (folder / f"failed-{machine.process}").touch()
    time.sleep(NEVER)


@needs_fork
def test_fsdp_shards_the_model_and_has_the_losses_of_one_process(
    tiny_llava_dir: Path, alone: Path
) -> None:
    """FSDP2 with the package's config, over gloo.

    accelerate shards on accelerators only, so the two processes pretend to have some; everything
    else is as on GPUs.
    """
    chosen = config(tiny_llava_dir, alone.parent, "sharded").replace(fsdp="default")
    together(2, train_sharded, chosen)
    assert_same(alone, alone.parent / "sharded")
    whole = load_file(alone / "adapter_model.safetensors")
    gathered = load_file(alone.parent / "sharded" / "adapter_model.safetensors")
    assert set(whole) == set(gathered)
    for name, tensor in whole.items():
        torch.testing.assert_close(gathered[name], tensor, rtol=1e-3, atol=1e-4)


@needs_fork
def test_fsdp_checkpoints_hold_no_frozen_weights_and_are_resumed(
    tiny_llava_dir: Path, alone: Path
) -> None:
    """The base of a 7B model has 14 GB, which each of the checkpoints would hold."""
    run = alone.parent / "interrupted"
    chosen = config(tiny_llava_dir, alone.parent, run.name).replace(fsdp="default")
    together(2, train_sharded, chosen, 3)
    folder = run / "checkpoints" / "step-3"
    trained = freeze(load_model(str(tiny_llava_dir), device="cpu").model, "lora", rank=4).model
    weights = [parameter for _, parameter in trainable(trained)]
    numbers = sum(parameter.numel() for parameter in weights)
    assert tensor_bytes(folder / "pytorch_model_fsdp_0") == 4 * numbers
    moments = tensor_bytes(folder / "optimizer_0")
    assert 0 <= moments - 8 * numbers <= 8 * len(weights)  # and the number of steps
    adapter = load_file(folder / "adapter_model.safetensors")
    assert sum(tensor.nbytes for tensor in adapter.values()) <= 4 * numbers
    files = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    around_each_tensor = 32 << 10  # measured: half of it; formats, twice for two processes
    assert files < 16 * numbers + around_each_tensor * len(weights)
    together(2, train_sharded, chosen)
    assert_same(alone, run)


def tensor_bytes(folder: Path) -> int:
    """Return the size of all tensors in a checkpoint of several processes, counted once."""
    stored = FileSystemReader(folder).read_metadata().state_dict_metadata.values()
    tensors = [one for one in stored if isinstance(one, TensorStorageMetadata)]
    return sum(one.size.numel() * one.properties.dtype.itemsize for one in tensors)


def train_sharded(chosen: FinetuneConfig, stop_at: int | None = None) -> None:
    from accelerate import PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.tensor import DTensor

    from finetune.training import finish as finish_module
    from finetune.training import stages

    training_arguments = stages.training_arguments

    def arguments(*given: Any, **options: Any) -> Any:
        made = training_arguments(*given, **options)
        assert made.device.type == "cpu"  # read here, so that it is not set up again
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        return made

    def set_up_machine(_: FinetuneConfig) -> Machine:
        state = PartialState(cpu=True)
        return Machine(torch.device("cpu"), None, state.process_index, state.num_processes)

    finish = finish_module.finish

    def checked(*arguments: Any) -> Any:
        (trainer,) = (a for a in arguments if isinstance(a, FinetuneTrainer))
        assert trainer.is_fsdp_enabled
        parameters = list(trainer.objective.model.parameters())
        assert all(isinstance(parameter, DTensor) for parameter in parameters)
        halves = [p.to_local().numel() for p in parameters if p.dim() == 2 and p.shape[0] % 2 == 0]
        assert sum(halves) * 2 == sum(
            p.numel() for p in parameters if p.dim() == 2 and p.shape[0] % 2 == 0
        )
        return finish(*arguments)

    import_module("finetune.training.train").set_up_machine = set_up_machine
    stages.training_arguments = arguments
    finish_module.finish = checked
    cancel = threading.Event()

    def stop(progress: Progress) -> None:
        if progress.phase == "training" and progress.done == stop_at:
            cancel.set()

    train(chosen, stop, cancel)


@pytest.mark.parametrize("option", ["fsdp", "deepspeed"])
def test_sharding_without_gpus_is_refused(
    tiny_llava_dir: Path, tmp_path: Path, option: str
) -> None:
    """Accelerate would train unsharded without a warning."""
    write_data(tmp_path)
    chosen = config(tiny_llava_dir, tmp_path, "run")
    with pytest.raises(UsageError, match=f"{option} shards over CUDA GPUs"):
        train(chosen.replace(**{option: "default" if option == "fsdp" else "zero2"}))


def test_the_help_names_every_config_of_the_package() -> None:
    help_texts = option_help()
    for option, shipped in (("fsdp", FSDP), ("deepspeed", DEEPSPEED)):
        assert all(re.search(rf"\b{name}\b", help_texts[option][1]) for name in shipped)


@pytest.mark.parametrize("name", FSDP)
def test_fsdp_configs_are_accepted(name: str) -> None:
    """Transformers turns every key into an option of accelerate's plugin."""
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
def test_deepspeed_configs_are_accepted(tiny_llava_dir: Path, name: str) -> None:
    """Accelerate reads them and transformers fills in every "auto", even without DeepSpeed."""
    from accelerate.utils.deepspeed import HfDeepSpeedConfig
    from transformers import TrainingArguments
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    model = freeze(load_model(str(tiny_llava_dir), device="cpu").model, "lora", rank=4).model
    width = model.config.text_config.hidden_size
    values = deepspeed_config(name, width)
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
    filled.trainer_config_finalize(arguments, Objective(model), 100)
    assert "auto" not in json.dumps(filled.config)
    if filled.is_zero3():
        assert filled.config["zero_optimization"]["reduce_bucket_size"] == width**2
    assert "optimizer" not in filled.config  # the trainer's own has the projector's learning rate


@pytest.fixture
def zero3(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stand in for DeepSpeed; collect the configs that are in force while a base is loaded."""
    from accelerate.utils.deepspeed import HfDeepSpeedConfig
    from transformers.integrations import is_deepspeed_zero3_enabled
    from transformers.integrations.deepspeed import deepspeed_config, set_hf_deepspeed_config

    from finetune.training import stages

    class Config(HfDeepSpeedConfig):
        def __init__(self, values: dict[str, Any]) -> None:
            set_hf_deepspeed_config(self)  # which keeps a weak reference
            super().__init__(values)

    found: list[dict[str, Any]] = []

    def load(*_: object, **__: object) -> None:
        gc.collect()
        found.append(deepspeed_config() if is_deepspeed_zero3_enabled() else {})
        raise DataError("Loaded.")

    monkeypatch.setattr("transformers.integrations.HfDeepSpeedConfig", Config)
    monkeypatch.setattr(stages, "load_model", load)
    return found


@pytest.mark.parametrize(
    ("name", "stage", "autocast", "bf16"),
    [
        ("zero3", "lora", torch.bfloat16, True),
        ("zero3_offload", "projector", torch.bfloat16, True),
        ("zero3", "full", torch.bfloat16, False),  # all of it trains in fp32
        ("zero3", "lora", None, False),
        ("zero2", "lora", torch.bfloat16, None),
    ],
)
def test_zero_3_divides_the_base_while_it_is_loaded(
    zero3: list[dict[str, Any]],
    name: str,
    stage: Any,
    autocast: torch.dtype | None,
    bf16: bool | None,
) -> None:
    """Otherwise each GPU would hold all of it first."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    recipe = import_module("finetune.training.train")
    chosen = FinetuneConfig(stage=stage, deepspeed=name)
    machine = Machine(torch.device("cuda:0"), autocast, 0, 2)
    with pytest.raises(DataError, match="Loaded"):
        recipe.train_stage(chosen, machine, lambda _: None, Stop(None))
    assert not is_deepspeed_zero3_enabled(), "later models are loaded whole"
    (values,) = zero3
    if bf16 is None:
        assert not values
        return
    assert values["bf16"] == {"enabled": bf16}
    assert values["train_micro_batch_size_per_gpu"] == values["gradient_accumulation_steps"] == 1
    assert "train_batch_size" not in values


def test_both_stages_of_the_llava_recipe_divide_their_base_and_offload_it(
    zero3: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.integrations import is_deepspeed_zero3_enabled
    from transformers.integrations.deepspeed import deepspeed_config as config_in_force

    from vqa_app.transformers_internals import shards_on_cpu

    recipe = import_module("finetune.training.train")
    stages: list[tuple[str, bool, Any, Path | None]] = []

    def run_steps(config: FinetuneConfig, *given: Any) -> Any:
        gc.collect()
        assert is_deepspeed_zero3_enabled()
        offloaded = config_in_force()["zero_optimization"]["offload_param"]["device"]
        stages.append((config.stage, shards_on_cpu(), offloaded, given[-1]))
        return recipe.RunResult(Path(config.out), True, 1, 1)

    monkeypatch.setattr(recipe, "_run_steps", run_steps)
    chosen = FinetuneConfig(
        stage="lora", recipe="llava", deepspeed="zero3_offload", out=str(tmp_path / "run")
    )
    machine = Machine(torch.device("cuda:0"), torch.bfloat16, 0, 2)
    recipe._train_llava(chosen, machine, lambda _: None, Stop(None))
    projector = tmp_path / "run" / "projector"
    assert stages == [("projector", True, "cpu", None), ("lora", True, "cpu", projector)]
    assert not is_deepspeed_zero3_enabled()


@pytest.mark.parametrize(
    ("stage", "autocast", "dtype"),
    [
        ("lora", torch.bfloat16, "bfloat16"),
        ("full", torch.bfloat16, "float32"),
        ("lora", None, "float32"),
    ],
)
def test_fsdp_divides_a_base_in_cpu_memory(
    monkeypatch: pytest.MonkeyPatch, stage: Any, autocast: torch.dtype | None, dtype: str
) -> None:
    """`fully_shard` moves it to the GPUs part by part."""
    from finetune.training import stages

    given: dict[str, Any] = {}
    monkeypatch.setattr(stages, "load_model", lambda _, **options: given.update(options))
    machine = Machine(torch.device("cuda:1"), autocast, 1, 2)
    stages.load_base(FinetuneConfig(stage=stage, fsdp="default"), machine)
    assert (given["device"], given["dtype"]) == ("cpu", dtype)


class Gathered:
    """Stands in for `deepspeed.zero.GatheredParameters`."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self.parameters = [p for p in parameters if hasattr(p, "ds_id")]

    def __enter__(self) -> None:
        for parameter in self.parameters:
            parameter.data = parameter.whole  # type: ignore[attr-defined]

    def __exit__(self, *_: object) -> None:
        for parameter in self.parameters:
            parameter.data = torch.empty(0, dtype=parameter.dtype)


@pytest.fixture
def divided(tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load a model and divide it as ZeRO-3 does: its parameters are empty."""
    zero = SimpleNamespace(zero=SimpleNamespace(GatheredParameters=Gathered))
    monkeypatch.setitem(sys.modules, "deepspeed", zero)
    loaded = load_model(str(tiny_llava_dir), device="cpu", dtype="bfloat16")
    for number, parameter in enumerate(loaded.model.parameters()):
        other: Any = parameter
        other.ds_id, other.ds_numel, other.whole = number, parameter.numel(), parameter.data
        parameter.data = torch.empty(0, dtype=parameter.dtype)
    return loaded


@pytest.mark.parametrize("stage", ["projector", "lora", "full"])
def test_a_divided_model_is_frozen_and_counted_like_a_whole_one(
    tiny_llava_dir: Path, divided: Any, stage: Any
) -> None:
    whole = freeze(load_model(str(tiny_llava_dir), device="cpu").model, stage, rank=4)
    found = freeze(divided.model, stage, rank=4)
    assert str(found) == str(whole)
    shapes = {name: p.shape for name, p in whole.model.named_parameters() if p.requires_grad}
    for name, parameter in found.model.named_parameters():
        if parameter.requires_grad and "projector" in name:
            assert parameter.shape == shapes[name]
            assert parameter.dtype == torch.float32


def test_a_divided_model_takes_over_the_projector_of_the_first_stage(
    tiny_llava_dir: Path, divided: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.runs.checkpoint import PROJECTOR_FILE
    from finetune.training import stages

    first = freeze(load_model(str(tiny_llava_dir), device="cpu").model, "projector").model
    saved = {name: parameter.data + 1 for name, parameter in trainable(first)}
    save_file(saved, tmp_path / PROJECTOR_FILE)
    monkeypatch.setattr(stages, "load_base", lambda *_: divided)
    machine = Machine(torch.device("cuda:0"), torch.bfloat16, 0, 2)
    loaded, _ = stages.load(FinetuneConfig(stage="lora"), machine, tmp_path, lambda _: None)
    frozen = stages.freeze_base(FinetuneConfig(stage="lora", rank=4), loaded, lambda _: None)

    def layer(name: str) -> str:
        return ".".join(name.split(".")[-2:])  # before it, PEFT adds names of its own

    found = {layer(name): p for name, p in trainable(frozen.model) if "projector" in name}
    assert len(found) == len(saved)
    for name, tensor in saved.items():
        torch.testing.assert_close(found[layer(name)].data, tensor)


def test_a_divided_encoder_has_the_hash_and_the_features_of_a_whole_one(
    tiny_llava_dir: Path, divided: Any
) -> None:
    """Of empty weights all encoders would have one hash, and share their stored features."""
    from finetune.training import stages
    from finetune.training.feature_store import encode_pictures, encoder_hash

    pixels = [torch.rand(3, 32, 32)]
    whole = load_model(str(tiny_llava_dir), device="cpu", dtype="bfloat16")
    machine = Machine(torch.device("cpu"), None, 0, 2)
    stage: Any = SimpleNamespace(loaded=divided, machine=machine)
    freeze(divided.model, "projector")
    with stages._whole_encoder(stage):
        found = encoder_hash(divided.model, divided.processor)
        features = encode_pictures(divided.model, pixels, torch.bfloat16)
    assert found == encoder_hash(whole.model, whole.processor)
    torch.testing.assert_close(features, encode_pictures(whole.model, pixels, torch.bfloat16))
    assert encoder_hash(divided.model, divided.processor) != found


def test_each_process_needs_memory_for_its_part_of_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vqa_app import transformers_internals
    from vqa_app.checkpoints import memory

    weights = [StoredTensor("w", "BF16", (70 * 10**9,), Path("model.safetensors"), 0, 140 * 10**9)]
    gpu, cpu = torch.device("cuda:0"), torch.device("cpu")
    free = {"cuda": 80 * 10**9, "cpu": 200 * 10**9}
    monkeypatch.setattr(memory, "free_memory", lambda device: free[device.type])
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)

    def fits(device: torch.device) -> bool:
        try:
            memory.check_memory("a/b", weights, device, torch.bfloat16, None)
        except InsufficientMemoryError:
            return False
        return True

    assert not fits(gpu)
    assert fits(cpu)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # two processes load it at the same time
    assert not fits(cpu)
    monkeypatch.setattr(transformers_internals, "shards_while_loading", lambda: True)
    assert fits(gpu)
    free["cuda"] = 40 * 10**9
    assert not fits(gpu)
    monkeypatch.setattr(transformers_internals, "shards_on_cpu", lambda: True)
    assert fits(gpu)


def test_the_model_on_the_meta_device_is_never_divided(
    tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is built to compare sizes, and DeepSpeed would fill it with random weights on the GPU."""
    from transformers import AutoConfig
    from transformers.integrations import deepspeed, is_deepspeed_zero3_enabled

    from vqa_app.checkpoints.validation import skeleton

    class Config:
        def is_zero3(self) -> bool:
            return True

    config = Config()
    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", weakref.ref(config))
    assert is_deepspeed_zero3_enabled()
    built = skeleton("tiny", AutoConfig.from_pretrained(tiny_llava_dir))
    assert all(parameter.is_meta for parameter in built.parameters())
    assert is_deepspeed_zero3_enabled()


@needs_fork
@pytest.mark.parametrize("stage", ["projector", "lora", "full"])
def test_zero_3_has_the_losses_of_one_process_and_resumes(
    tiny_llava_dir: Path, tmp_path: Path, stage: Any
) -> None:
    """Runs where DeepSpeed is installed, with DS_ACCELERATOR=cpu: the real engine, over gloo."""
    pytest.importorskip("deepspeed")
    if os.environ.get("DS_ACCELERATOR") != "cpu":
        pytest.skip("needs DS_ACCELERATOR=cpu")
    write_data(tmp_path, pictures=7, text_rows=4)
    plain = {"stage": stage, "rank": 4 if stage == "lora" else None}
    one = config(tiny_llava_dir, tmp_path, "alone").replace(**plain)
    together(1, train, one)
    two = config(tiny_llava_dir, tmp_path, "divided").replace(deepspeed="zero3", **plain)
    together(2, train_divided, two, 3)
    together(2, train_divided, two)
    assert_same(tmp_path / "alone", tmp_path / "divided")


def train_divided(chosen: FinetuneConfig, stop_at: int | None = None) -> None:
    """Train with DeepSpeed on CPUs, where accelerate would not use it."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    from finetune.training import stages

    training_arguments, load_base = stages.training_arguments, stages.load_base

    def arguments(*given: Any, **options: Any) -> Any:
        made = training_arguments(*given, **options)
        assert made.device.type == "cpu"  # read here, so that it is not set up again
        PartialState._shared_state["distributed_type"] = DistributedType.DEEPSPEED
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        del os.environ["ACCELERATE_USE_CPU"]
        return made

    def load(*given: Any) -> Any:
        loaded = load_base(*given)
        assert sum(p.numel() for p in loaded.model.parameters()) == 0, "this process's own tensors"
        return loaded

    def set_up_machine(_: FinetuneConfig) -> Machine:
        state = PartialState(cpu=True)
        return Machine(torch.device("cpu"), None, state.process_index, state.num_processes)

    import_module("finetune.training.train").set_up_machine = set_up_machine
    stages.training_arguments, stages.load_base = arguments, load
    cancel = threading.Event()

    def stop(progress: Progress) -> None:
        if progress.phase == "training" and progress.done == stop_at:
            cancel.set()

    train(chosen, stop, cancel)


def test_deepspeed_checkpoints_hold_no_frozen_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Trainer would leave them out only if PEFT's wrapper were the outermost module."""
    # transformers imports this name only where DeepSpeed is installed.
    monkeypatch.setattr("transformers.trainer.DeepSpeedSchedulerWrapper", type(None), raising=False)
    calls: list[dict[str, Any]] = []

    class Engine(torch.nn.Module):
        def save_checkpoint(
            self, folder: str, tag: str | None = None, exclude_frozen_parameters: bool = False
        ) -> None:
            calls.append({"folder": folder, "without frozen": exclude_frozen_parameters})

    trainer: Any = object.__new__(FinetuneTrainer)
    trainer.is_deepspeed_enabled, trainer.is_fsdp_enabled = True, False
    trainer.model = trainer.model_wrapped = Engine()
    trainer.lr_scheduler = None
    trainer.args = SimpleNamespace(should_save=False)
    for _ in range(2):
        trainer._save_optimizer_and_scheduler(str(tmp_path))
    assert calls == [{"folder": str(tmp_path), "without frozen": True}] * 2


def test_weights_without_the_frozen_ones_are_loaded(tiny_llava_dir: Path) -> None:
    model = freeze(load_model(str(tiny_llava_dir), device="cpu").model, "projector").model
    objective = Objective(model)
    state = objective.state_dict()
    trained = {name for name, p in objective.named_parameters() if p.requires_grad}
    part = {name: state[name] + 1 for name in trained}
    objective.load_state_dict(part)
    for name, parameter in objective.named_parameters():
        if name in trained:
            torch.testing.assert_close(parameter.data, part[name])
    part.popitem()
    with pytest.raises(RuntimeError, match="Missing or unexpected weights"):
        objective.load_state_dict(part)


def test_sizes_in_a_deepspeed_config_of_ones_own_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"zero_optimization": {"reduce_bucket_size": 7}, "bf16": {"enabled": "auto"}}')
    assert deepspeed_config(str(path), 64) == json.loads(path.read_text())


def test_an_unknown_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="zero9"):
        deepspeed_config("zero9", 64)
    (tmp_path / "mine.json").write_text("[1]")
    with pytest.raises(UsageError, match="not a JSON object"):
        fsdp_config(str(tmp_path / "mine.json"))
