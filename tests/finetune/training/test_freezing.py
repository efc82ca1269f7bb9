"""Each stage trains its weights and no others, in fp32; defaults follow the documented rules."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.config import FinetuneConfig
from finetune.kernels.shared_prefix import enable_branching
from finetune.training.batches import MicroBatchSampler
from finetune.training.device import DeviceMemory, Machine
from finetune.training.freezing import freeze, projector_parameters, trainable
from finetune.training.objective import Objective
from finetune.training.plan import Shape, activation_bytes, autocast_bytes, decide, describe
from vqa_app.checkpoints.loader import load_model
from vqa_app.errors import ModelError, UsageError

GB = 10**9


def load(directory: Path, dtype: str = "float32") -> Any:
    return load_model(str(directory), dtype=dtype, device="cpu").model


def test_the_projector_stage_trains_only_the_projector(tiny_llava_dir: Path) -> None:
    frozen = freeze(load(tiny_llava_dir), "projector")
    names = {name for name, _ in trainable(frozen.model)}
    assert names
    assert all(name.startswith("model.multi_modal_projector.") for name in names)
    assert (frozen.llm, frozen.projector) == (0, sum(p.numel() for _, p in trainable(frozen.model)))


def test_the_full_stage_trains_projector_and_llm_but_not_the_encoder(tiny_llava_dir: Path) -> None:
    model = freeze(load(tiny_llava_dir), "full").model
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    assert all("vision_tower" in name for name in frozen)


def test_lora_trains_adapters_on_every_linear_layer_of_the_llm(tiny_llava_dir: Path) -> None:
    model = load(tiny_llava_dir)
    linears = {
        f"language_model.{name}"
        for name, module in model.model.language_model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    frozen = freeze(model, "lora", rank=4, alpha=8, dropout=0.0)
    names = [name for name, _ in trainable(frozen.model)]
    adapted = {m[1] for name in names if (m := re.search(r"(language_model\..*)\.lora_A", name))}
    assert adapted == linears
    assert not any("vision_tower" in name for name in names)
    assert {n for n in names if "lora_" not in n} == projector_parameters(frozen.model)


def test_trained_weights_are_fp32_in_a_bf16_model(tiny_llava_dir: Path) -> None:
    model = freeze(load(tiny_llava_dir, "bfloat16"), "lora", rank=4, alpha=8, dropout=0.0).model
    assert {p.dtype for _, p in trainable(model)} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_an_adapted_model_cannot_train_another_stage(tiny_llava_dir: Path) -> None:
    adapted = freeze(load(tiny_llava_dir), "lora", rank=4, alpha=8).model
    with pytest.raises(ModelError, match="LoRA adapter"):
        freeze(adapted, "full")
    again = freeze(adapted, "lora")
    assert again.model is adapted
    assert again.trainable > 0


SMALL = Shape(width=256, intermediate=640, layers=6, heads=4, vocabulary=4000)
LARGE = Shape(width=4096, intermediate=11008, layers=32, heads=32, vocabulary=32064)


def settings_for(
    shape: Shape,
    rows: int,
    memory: int = 64 * GB,
    device: str = "cuda",
    processes: int = 1,
    **options: Any,
) -> Any:
    return decide(
        FinetuneConfig(**options),
        sequences=rows,
        longest=800,
        labels=20,
        shape=shape,
        trainable=10**7,
        machine=Machine(torch.device(device), autocast=torch.bfloat16, processes=processes),
        memory=DeviceMemory(held=14 * GB, free=memory - 14 * GB),
    )


def test_the_8_bit_optimiser_is_chosen_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.training.plan._has_bitsandbytes", lambda: True)
    assert settings_for(LARGE, 100)[0].eight_bit_optimizer
    for device in ("cpu", "mps"):
        assert not settings_for(LARGE, 100, device=device)[0].eight_bit_optimizer
    assert settings_for(LARGE, 100, device="cpu", optimizer="adamw-8bit")[0].eight_bit_optimizer
    for sharding in ({"fsdp": "default"}, {"deepspeed": "zero3_offload"}):
        assert not settings_for(LARGE, 100, **sharding)[0].eight_bit_optimizer
    with pytest.raises(UsageError, match="on mps"):
        settings_for(LARGE, 100, device="mps", optimizer="adamw-8bit")
    monkeypatch.setattr("finetune.training.plan._has_bitsandbytes", lambda: False)
    with pytest.raises(UsageError, match="not installed"):
        settings_for(LARGE, 100, optimizer="adamw-8bit")


def test_a_model_of_llavas_size_gets_llavas_settings() -> None:
    settings, _ = settings_for(LARGE, 665_000)
    assert (settings.lr, settings.projector_lr) == (2e-4, 2e-5)
    assert (settings.rank, settings.alpha, settings.dropout) == (128, 256, 0.05)
    assert settings.batch_size == 128
    assert settings.epochs == pytest.approx(1, abs=0.01)
    stage1, _ = settings_for(LARGE, 558_000, stage="projector")
    assert (stage1.lr, stage1.projector_lr, stage1.batch_size) == (1e-3, 1e-3, 256)


def test_small_models_and_data_get_settings_for_their_size() -> None:
    settings, _ = settings_for(SMALL, 4000, device="cpu")
    assert settings.lr > 2e-4
    assert settings.rank == 64
    assert settings.dropout == 0
    assert settings.batch_size == 20
    assert settings.steps >= 400
    assert settings_for(SMALL, 3, device="cpu")[0].batch_size == 3


def test_given_options_are_used() -> None:
    settings, _ = settings_for(
        SMALL, 4000, lr=0.5, batch_size=6, max_steps=7, rank=3, micro_batch_size=2
    )
    assert (settings.lr, settings.batch_size, settings.steps, settings.rank) == (0.5, 6, 7, 3)
    assert (settings.micro_batch_size, settings.micro_batches) == (2, 3)


@pytest.mark.slow
def test_every_process_has_rows_in_every_micro_batch() -> None:
    """In every step each process has the same number of micro-batches, none empty or too large."""
    for asked in (None, *range(1, 41)):
        for processes in range(1, 9):
            for micro in (1, 2, 3):
                options: dict[str, Any] = {"batch_size": asked, "micro_batch_size": micro}
                settings, _ = settings_for(SMALL, 100, processes=processes, max_steps=3, **options)
                assert 0 <= settings.batch_size - (asked or 8) < processes
                shares = [
                    list(
                        MicroBatchSampler(
                            range(5, 105),
                            [1.0] * 100,
                            batch_size=settings.batch_size,
                            micro_batches=settings.micro_batches,
                            steps=3,
                            seed=0,
                            process=process,
                            processes=processes,
                        )
                    )
                    for process in range(processes)
                ]
                assert {len(share) for share in shares} == {3 * settings.micro_batches}
                sizes = [len(rows) for share in shares for rows in share]
                assert sum(sizes) == 3 * settings.batch_size
                assert min(sizes) >= 1
                assert max(sizes) <= settings.micro_batch_size


def test_a_batch_size_that_was_rounded_up_is_reported() -> None:
    options = {"batch_size": 5, "micro_batch_size": 1}
    settings, _ = settings_for(SMALL, 100, processes=2, **options)
    machine = Machine(torch.device("cuda"), autocast=torch.bfloat16, processes=2)
    line = describe(settings, FinetuneConfig(**options), machine)
    assert "steps of 6 rows" in line
    assert "5 rows cannot be shared evenly by the processes." in line
    assert settings.steps == math.ceil(settings.epochs * 100 / 6)


def test_less_memory_gives_smaller_micro_batches_and_then_checkpointing() -> None:
    roomy, _ = settings_for(LARGE, 665_000, 140 * GB)
    tight, plan = settings_for(LARGE, 665_000, 40 * GB)
    assert not tight.gradient_checkpointing or tight.micro_batch_size >= 1
    assert tight.micro_batch_size < roomy.micro_batch_size
    assert plan.needed <= plan.free
    assert settings_for(LARGE, 665_000, 20 * GB)[0].gradient_checkpointing


def test_full_fine_tuning_in_bf16_plans_autocasts_copies() -> None:
    """14 GB for a model of 7 billion parameters."""
    settings, plan = settings_for(LARGE, 1000, stage="full", optimizer="adamw")
    assert settings.stage == "full"
    assert plan.copies == 2 * 10**7
    assert plan.needed == plan.copies + 4 * 10**7 + 8 * 10**7 + plan.activations
    assert "16-bit copies 20 MB" in plan.listing


@pytest.mark.parametrize("stage", ["projector", "lora", "full"])
@pytest.mark.parametrize("autocast", [torch.bfloat16, None])
def test_the_memory_plan_counts_what_autograd_keeps(
    stage: Any, autocast: torch.dtype | None
) -> None:
    """For the built-in model. The plan adds one layer for what else is in use."""
    loaded = load_model("builtin", dtype="float32", device="cpu")
    enable_branching(loaded.model)
    text = loaded.model.config.text_config
    frozen = freeze(loaded.model, stage, rank=8, alpha=16, dropout=0.0)
    objective = Objective(frozen.model, autocast=autocast)
    tokens, pictured, labels = 96, 64, 2
    rows = 1 if stage == "full" else 8  # so that copies of the weights count
    ids = torch.full((rows, tokens), 5)
    ids[:, 2 : 2 + pictured] = loaded.model.config.image_token_id
    targets = torch.full_like(ids, -100)
    targets[:, -labels:] = 5
    width = loaded.model.config.vision_config.hidden_size
    own = {parameter.untyped_storage().data_ptr() for parameter in objective.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = objective(
            labels=targets,
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            picture_features=torch.randn(rows, pictured, width),
        )["loss"]
    planned = activation_bytes(
        Shape.of(text),
        (rows, tokens, labels),
        2 if autocast else 4,
        inputs_kept=stage != "projector",
        weights_kept=True,
        checkpointing=False,
    )
    planned += autocast_bytes(frozen.trainable, autocast)
    assert loss.isfinite()
    assert 0.6 * planned < sum(kept.values()) < planned
