"""Skipping redundant work changes neither the loss nor the gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetune.data.preflight import check_rows
from finetune.data.read import read_rows
from finetune.kernels.shared_prefix import enable_branching
from finetune.kernels.skipped_work import TrainedTokensMlp, pad_rows
from finetune.training.collator import ROWS
from finetune.training.freezing import freeze
from finetune.training.objective import Objective
from finetune.training.stages import make_collate
from tests.finetune.training_data import write_data
from vqa_app.checkpoints.loader import load_model


def step(
    model: Path, data: Path, stage: Any, bf16: bool, patched: pytest.MonkeyPatch | None = None
) -> tuple[Objective, list[torch.Tensor]]:
    """Return loss and gradients; with a monkeypatch, those of a step that skips nothing."""
    if patched:
        patched.setattr("finetune.training.objective.cast_inputs_once", lambda model: None)
        patched.setattr("finetune.training.objective.cast_weights_once", lambda model: None)
        patched.setattr("finetune.training.objective.TrainedTokensMlp", lambda llm: None)
    loaded = load_model(str(model), dtype="float32", device="cpu")
    enable_branching(loaded.model)
    samples = check_rows(read_rows(data), loaded.processor, max_length=1000).samples
    torch.manual_seed(0)
    objective = Objective(
        freeze(loaded.model, stage, rank=4, alpha=8, dropout=0.0).model,
        autocast=torch.bfloat16 if bf16 else None,
    )
    batch = make_collate(samples, loaded.processor, True, None, 1)([0, 1, 2])
    batch.pop(ROWS)
    loss = objective(**batch)["loss"]
    loss.backward()
    grads = [p.grad for p in objective.parameters() if p.requires_grad]
    return objective, [loss.detach(), *grads]


@pytest.mark.parametrize("stage", ["projector", "lora", "full"])
@pytest.mark.parametrize("bf16", [False, True])
def test_losses_and_gradients_equal_those_of_the_full_step(
    tiny_llava_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Any, bf16: bool
) -> None:
    data = write_data(tmp_path)
    _, ours = step(tiny_llava_dir, data, stage, bf16)
    _, whole = step(tiny_llava_dir, data, stage, bf16, monkeypatch)
    torch.testing.assert_close(ours[0], whole[0], rtol=1e-3 if bf16 else 1e-6, atol=0)
    for one, other in zip(ours[1:], whole[1:], strict=True):
        # Under bf16 the gradients of one input are summed in bf16, not in fp32.
        assert (one - other).norm() <= (2e-2 if bf16 else 1e-5) * other.norm() + 1e-8


def test_other_forward_passes_compute_everything(tiny_llava_dir: Path, tmp_path: Path) -> None:
    """Evaluation between steps gets every token's logits, in fp32."""
    plain = load_model(str(tiny_llava_dir), dtype="float32", device="cpu").model
    objective, _ = step(tiny_llava_dir, write_data(tmp_path), "projector", True)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            objective.model(input_ids=ids).logits, plain(input_ids=ids).logits
        )


def test_a_mixture_of_experts_stays_unchanged() -> None:
    class SparseMoeBlock(nn.Linear):
        pass

    llm = nn.Module()
    llm.layers = nn.ModuleList([nn.Module()])
    llm.layers[0].mlp = SparseMoeBlock(4, 4)
    mlp, given = TrainedTokensMlp(llm), torch.ones(1, 3, 4)
    with mlp.only(torch.tensor([[True, False]])):
        assert (llm.layers[0].mlp(given) != 0).all()


def test_rows_are_padded_to_few_sizes() -> None:
    sizes = {len(pad_rows(torch.ones(count, 2))) for count in range(1, 1000)}
    assert len(sizes) < 50
    padded = pad_rows(torch.arange(5), -100)
    assert padded.tolist() == [0, 1, 2, 3, 4] + [-100] * 11
