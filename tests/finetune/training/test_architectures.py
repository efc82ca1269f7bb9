"""Every image-text architecture with a projector and an LLM trains, and its run opens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.config import FinetuneConfig
from finetune.data.preflight import check_rows
from finetune.data.read import read_rows
from finetune.kernels.shared_prefix import enable_branching
from finetune.training.collator import IGNORED, ROWS
from finetune.training.freezing import freeze, trainable
from finetune.training.objective import Objective
from finetune.training.stages import make_collate
from finetune.training.train import train
from tests.architectures import ARCHITECTURES
from tests.finetune.training_data import metrics, small_config, write_data
from vqa_app.checkpoints.loader import LoadedModel, load_model
from vqa_app.errors import DataError
from vqa_app.models.anatomy import anatomy
from vqa_app.models.architecture import unwrap
from vqa_app.prompts.conversation import Conversation
from vqa_app.prompts.prompt import encode
from vqa_app.transformers_internals import enable_activation_checkpointing

pytestmark = pytest.mark.slow

PICTURES_ONLY = {"blip-2", "kosmos-2", "mllama"}
"""mllama accepts rows without pictures, but not in a batch with pictures."""
PROJECTOR_TOO = {
    "llava-next",
    "idefics3",
    "granite-docling",
    "lfm2-vl",
    "qwen2-vl",
    "qwen3-vl",
    "gemma3",
}
"""Also trained in stage projector: their projectors are in different places."""


def rows_for(name: str, folder: Path) -> tuple[Path, int]:
    """Write a data file; return it and the number of its samples."""
    text_rows = 0 if name in PICTURES_ONLY else 1
    return write_data(folder, pictures=3, text_rows=text_rows), 5 + text_rows


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_batch_has_the_loss_of_its_samples_alone(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    loaded = load_model(str(tiny_checkpoint(name)), dtype="float32", device="cpu")
    shares = loaded.capabilities.trains_shared_prefixes
    if shares:
        enable_branching(loaded.model)
    data, _ = rows_for(name, tmp_path)
    samples = check_rows(
        read_rows(data), loaded.processor, max_length=1000, share_prefix=shares, workers=1
    ).samples
    collate = make_collate(samples, loaded.processor, shares, None, 1)
    objective = Objective(loaded.model.eval())

    def total(*positions: int) -> float:
        batch = collate(positions)
        batch.pop(ROWS)
        with torch.no_grad():
            return objective(**batch, num_items_in_batch=1)["loss"].item()

    alone = [total(position) for position in range(len(samples))]
    assert total(*range(len(samples))) == pytest.approx(sum(alone), rel=1e-4)
    # What is trained is the loss of plain transformers for the answers, and nothing else.
    assert sum(alone) == pytest.approx(plain_loss(loaded, data), rel=1e-4)


def plain_loss(loaded: LoadedModel, data: Path) -> float:
    """Return the sum of the losses of all answers, each question asked alone."""
    total = 0.0
    for row in read_rows(data).rows:
        conversation = row.conversation()
        turns = conversation.messages
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            asked = Conversation.ask(question.text, conversation.pictures)
            start = len(encode(loaded.processor, asked, answer_next=True))
            prompt = encode(loaded.processor, asked.then(answer), answer_next=False)
            with torch.no_grad():
                logits = loaded.model(**prompt.inputs).logits[0]
            targets = prompt.inputs["input_ids"][0].clone()
            targets[:start] = IGNORED
            # The template may write a newline after the end of an answer, which is not trained.
            targets[~prompt.answer_mask] = IGNORED
            total += torch.nn.functional.cross_entropy(
                logits[:-1], targets[1:], reduction="sum"
            ).item()
    return total


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_checkpointed_activations_leave_the_frozen_encoder_alone(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """What the encoder computes needs no gradient, and LoRA's gradients are the same."""
    loaded = load_model(str(tiny_checkpoint(name)), dtype="float32", device="cpu")
    data, _ = rows_for(name, tmp_path)
    samples = check_rows(read_rows(data), loaded.processor, max_length=1000, workers=1).samples
    collate = make_collate(samples[:2], loaded.processor, False, None, 1)
    parts = anatomy(loaded.model)
    kept: list[bool] = []
    for place, module in loaded.model.named_modules():
        frozen = place.startswith(parts.encoder) and not place.startswith(parts.projector)
        if frozen and isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, __, output: kept.append(output.requires_grad))
    model = freeze(loaded.model, "lora", rank=4, alpha=8, dropout=0.0).model.train()

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(0)
        batch = collate([0, 1])
        batch.pop(ROWS)
        Objective(model)(**batch)["loss"].backward()
        return {name: p.grad.clone() for name, p in trainable(model) if p.grad is not None}

    expected = gradients()
    enable_activation_checkpointing(unwrap(model))
    kept.clear()
    actual = gradients()
    assert kept
    assert not any(kept)
    assert set(actual) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "stage"),
    [(name, "lora") for name in ARCHITECTURES] + [(n, "projector") for n in sorted(PROJECTOR_TOO)],
)
def test_it_trains_and_its_run_opens(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, name: str, stage: Any
) -> None:
    """Every step has every sample, so the loss must fall."""
    data, samples = rows_for(name, tmp_path / "data")
    run = train(config(tiny_checkpoint(name), data, tmp_path, stage, samples)).run
    losses = [line["loss"] for line in metrics(run) if "loss" in line]
    assert losses[-1] < losses[0]
    assert load_model(str(run), device="cpu", dtype="float32").name == str(run)


def test_mllama_refuses_batches_with_and_without_pictures(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    data = write_data(tmp_path / "data", pictures=1, text_rows=1)
    chosen = config(tiny_checkpoint("mllama"), data, tmp_path, "lora", 2)
    with pytest.raises(DataError, match="with and without pictures"):
        train(chosen)
    assert train(chosen.replace(micro_batch_size=1, resume="never")).finished


def config(model: Path, data: Path, folder: Path, stage: Any, samples: int) -> FinetuneConfig:
    return small_config(
        model,
        data,
        folder / "run",
        stage=stage,
        max_steps=4,
        batch_size=samples,
        micro_batch_size=2,
        warmup=0.0,
        schedule="constant",
        lr=2e-3,
        projector_lr=2e-3,
        eval_fraction=0.0,
    )
