"""Batches: labels are the answers' tokens; padded and packed losses equal those of single rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.data.preflight import check_rows
from finetune.data.read import read_rows
from finetune.data.samples import Sample
from finetune.kernels.cpu_attention import MAX_FP32_QUERIES
from finetune.kernels.shared_prefix import enable_branching
from finetune.training.batches import MicroBatchSampler
from finetune.training.collator import IGNORED, ROWS, Collator
from finetune.training.freezing import freeze
from finetune.training.objective import Objective
from finetune.training.stages import make_collate
from tests.finetune.training_data import write_data
from vqa_app.checkpoints.loader import LoadedModel, load_model


@pytest.fixture(scope="module")
def loaded(tiny_llava_dir: Path) -> LoadedModel:
    return load(tiny_llava_dir)


def load(directory: Path) -> LoadedModel:
    loaded = load_model(str(directory), dtype="float32", device="cpu")
    assert loaded.capabilities.trains_shared_prefixes
    enable_branching(loaded.model)
    return loaded


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def samples_of(data: Path, loaded: LoadedModel, **options: Any) -> tuple[Sample, ...]:
    return check_rows(read_rows(data), loaded.processor, max_length=1000, **options).samples


def loss_of(
    loaded: LoadedModel, samples: tuple[Sample, ...], chosen: list[int]
) -> tuple[float, int]:
    """Return (summed loss, trained tokens) of some samples in one batch."""
    batch = make_collate(samples, loaded.processor, True, None, 1)(chosen)
    batch.pop(ROWS)
    count = int((batch["labels"] != IGNORED).sum())
    with torch.no_grad():
        return Objective(loaded.model)(**batch, num_items_in_batch=1)["loss"].item(), count


def test_labels_are_the_answers_tokens_and_their_end_tokens(
    data: Path, loaded: LoadedModel
) -> None:
    samples = samples_of(data, loaded, turns="together")
    batch = Collator.of(loaded.processor, samples).tokens(samples)
    tokenizer = loaded.processor.tokenizer
    for labels, sample in zip(batch["labels"], samples, strict=True):
        trained = tokenizer.decode(labels[labels != IGNORED])
        expected = "".join(f"{answer}<|im_end|>" for (answer,) in sample.row.references)
        assert trained == expected


def test_padding_is_on_the_right_and_masked(data: Path, loaded: LoadedModel) -> None:
    samples = samples_of(data, loaded, turns="together")
    batch = Collator.of(loaded.processor, samples).tokens(samples)
    for row, sample in enumerate(samples):
        assert batch["input_ids"][row, : len(sample)].tolist() == sample.input_ids.tolist()
        assert batch["attention_mask"][row].sum() == len(sample)
        assert (batch["labels"][row, len(sample) :] == IGNORED).all()


@pytest.mark.parametrize("turns", ["together", "apart"])
def test_a_batched_loss_is_the_sum_of_single_ones(
    data: Path, loaded: LoadedModel, turns: str
) -> None:
    """Rows with one, several and no questions about pictures, padded to one length."""
    samples = samples_of(data, loaded, turns=turns)
    single = [loss_of(loaded, samples, [position]) for position in range(len(samples))]
    total, count = loss_of(loaded, samples, list(range(len(samples))))
    assert count == sum(tokens for _, tokens in single)
    assert total == pytest.approx(sum(loss for loss, _ in single), rel=1e-5)


def test_many_lengths_give_few_shapes(data: Path, loaded: LoadedModel) -> None:
    """Padding is at most seven tokens or a sixteenth, and never beyond the longest sample."""
    samples = samples_of(data, loaded, turns="together")
    longest = 1000
    collator = replace(Collator.of(loaded.processor, samples), longest=longest)
    shapes = set()
    for length in range(1, longest + 1):
        sample = replace(
            samples[0],
            input_ids=np.zeros(length, np.int32),
            answer_mask=np.ones(length, dtype=bool),
        )
        padded = collator.tokens([sample])["input_ids"].shape[1]
        assert length <= padded <= min(longest, max(length + 7, length * 17 // 16))
        shapes.add(padded)
    assert len(shapes) < 80


@pytest.mark.parametrize("plain_up_to", [MAX_FP32_QUERIES, 0])
def test_questions_in_one_sequence_have_the_losses_of_single_ones(
    data: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, plain_up_to: int
) -> None:
    """With explicit matrix products, and with PyTorch's fused attention."""
    monkeypatch.setattr("finetune.kernels.cpu_attention.MAX_FP32_QUERIES", plain_up_to)
    packed = samples_of(data, loaded, turns="apart")
    alone = samples_of(data, loaded, turns="apart", share_prefix=False)
    assert len(alone) > len(packed)
    together = loss_of(loaded, packed, list(range(len(packed))))
    singly = [loss_of(loaded, alone, [position]) for position in range(len(alone))]
    assert together[1] == sum(count for _, count in singly)
    assert together[0] == pytest.approx(sum(loss for loss, _ in singly), rel=1e-5)


def test_the_loss_equals_that_of_transformers(data: Path, loaded: LoadedModel) -> None:
    """Which computes logits at every position."""
    samples = samples_of(data, loaded, turns="together")
    batch = make_collate(samples, loaded.processor, True, None, 1)([0, 1, 2])
    batch.pop(ROWS)
    with torch.no_grad():
        expected = loaded.model(**batch).loss.item()
        assert Objective(loaded.model)(**batch)["loss"].item() == pytest.approx(expected, rel=1e-6)


def test_many_labels_are_processed_in_blocks(
    data: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = samples_of(data, loaded)
    whole = loss_of(loaded, samples, [0, 1, 2])
    vocabulary = loaded.model.get_output_embeddings().weight.shape[0]
    monkeypatch.setattr("finetune.training.objective.LOGITS_AT_ONCE", 3 * vocabulary)
    assert loss_of(loaded, samples, [0, 1, 2])[0] == pytest.approx(whole[0], rel=1e-6)


def test_the_heads_weight_is_used_only_in_its_own_forward_pass(
    data: Path, tiny_llava_dir: Path
) -> None:
    """ZeRO-3 gathers it there; elsewhere it has the shape (0,)."""
    loaded = load(tiny_llava_dir)
    samples = samples_of(data, loaded)
    whole = loss_of(loaded, samples, [0, 1, 2])
    head = loaded.model.get_output_embeddings()
    weight = head.weight.detach()
    head.weight = torch.nn.Parameter(torch.empty(0))

    def gather(*_: Any) -> None:
        head.weight.data = weight

    def scatter(*_: Any) -> None:
        head.weight.data = torch.empty(0)

    head.register_forward_pre_hook(gather)
    head.register_forward_hook(scatter)
    assert loss_of(loaded, samples, [0, 1, 2])[0] == pytest.approx(whole[0], rel=1e-6)


def test_accumulated_gradients_equal_those_of_the_whole_batch(
    data: Path, tiny_llava_dir: Path
) -> None:
    loaded = load(tiny_llava_dir)
    samples = samples_of(data, loaded)
    objective = Objective(freeze(loaded.model, "projector").model)
    collate = make_collate(samples, loaded.processor, True, None, 1)
    count = sum(sample.trained_tokens for sample in samples)

    def gradients(chunks: list[list[int]]) -> torch.Tensor:
        objective.zero_grad()
        for chunk in chunks:
            batch = collate(chunk)
            batch.pop(ROWS)
            objective(**batch, num_items_in_batch=count)["loss"].backward()
        return torch.cat([p.grad.flatten() for p in objective.parameters() if p.requires_grad])

    whole = gradients([list(range(8))])
    parts = gradients([[0, 7], [6], [1, 2, 3], [4, 5]])  # one of them without pictures
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def plan(lengths: list[int], **changes: Any) -> MicroBatchSampler:
    options = {"batch_size": 8, "micro_batches": 2, "steps": 10, "seed": 3} | changes
    weights = options.pop("weights", [1.0] * len(lengths))
    return MicroBatchSampler(lengths, weights, **options)


def test_every_epoch_shows_every_sample_once() -> None:
    chosen = [i for batch in plan(list(range(1, 21)), steps=5) for i in batch]
    assert sorted(chosen) == sorted(list(range(20)) * 2)


def test_processes_together_take_the_steps_of_one() -> None:
    lengths = np.random.default_rng(0).integers(1, 90, 50).tolist()
    alone = list(plan(lengths))
    shares = [list(plan(lengths, micro_batches=1, process=rank, processes=2)) for rank in (0, 1)]
    for step in range(10):
        whole = sorted(alone[2 * step] + alone[2 * step + 1])
        assert sorted(shares[0][step] + shares[1][step]) == whole


def test_the_largest_batch_comes_first_and_lengths_in_a_batch_are_similar() -> None:
    lengths = np.random.default_rng(1).integers(1, 1000, 400).tolist()
    batches = list(plan(lengths, micro_batches=1, steps=50))
    longest = [len(batch) * max(lengths[i] for i in batch) for batch in batches]
    assert longest[0] == max(longest)
    padded, real = sum(longest), sum(lengths[i] for batch in batches for i in batch)
    assert padded < 1.1 * real


def test_samples_are_shown_as_often_as_their_weights_say() -> None:
    chosen = [i for b in plan([5] * 40, weights=[2.0] * 20 + [0.5] * 20, steps=125) for i in b]
    often = sum(i < 20 for i in chosen) / len(chosen)
    assert often == pytest.approx(0.8, abs=0.03)
