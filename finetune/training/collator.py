"""Collation of samples into a padded batch. Only the answers' tokens have labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetune.data.samples import Sample
from finetune.kernels.shared_prefix import branch_layout, round_up
from vqa_app.errors import DataError

IGNORED = -100
"""The label of tokens that are not trained (PyTorch's and transformers' own value)."""
FEATURES = "picture_features"
"""Batch key of the frozen encoder's stored outputs, which replace `pixel_values`."""
ROWS = "rows"
"""Batch key of the samples themselves, for error messages; not passed to the model."""


@dataclass(frozen=True)
class Collator:
    """Pads samples on the right: every row starts at position 0, as in serving.

    Lengths are rounded up by at most seven tokens or a sixteenth: CPU kernels are prepared once for
    every shape and kept, and would take hundreds of megabytes for many lengths.
    """

    pad_token_id: int
    longest: int
    """Tokens of the longest sample in the data; no batch is rounded up beyond it."""

    @classmethod
    def of(cls, processor: Any, samples: Sequence[Sample]) -> Collator:
        """Return a collator for these samples; without any, lengths are not rounded up."""
        tokenizer = processor.tokenizer
        pad = tokenizer.pad_token_id
        # Padding is masked, so any id will do for tokenizers without a pad token.
        filler = pad if pad is not None else (tokenizer.eos_token_id or 0)
        return cls(filler, max((len(sample) for sample in samples), default=0))

    def tokens(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return a batch without pictures.

        Returns:
            `input_ids`, `attention_mask`, `labels` and the architecture's own token inputs, [batch,
            longest] each. `labels` are not shifted: the label at a token is that token. If
            questions share a prefix, `position_ids` [batch, longest] and `branches` (see
            `branch_layout`) replace the `attention_mask`.
        """
        longest = max(len(sample) for sample in samples)
        step = max(8, 1 << longest.bit_length() >> 5)
        longest = max(longest, min(self.longest, round_up(longest, step)))
        shape = (len(samples), longest)
        ids = torch.full(shape, self.pad_token_id, dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORED, dtype=torch.long)
        names = {name for sample in samples for name in sample.token_inputs}
        further = {name: torch.zeros(shape, dtype=torch.long) for name in names}
        for position, sample in enumerate(samples):
            length = len(sample)
            row = torch.from_numpy(sample.input_ids).long()
            ids[position, :length] = row
            mask[position, :length] = 1
            answer = torch.from_numpy(sample.answer_mask)
            labels[position, :length][answer] = row[answer]
            for name, values in sample.token_inputs.items():
                further[name][position, :length] = torch.from_numpy(values)
        labels[:, 0] = IGNORED  # no token precedes the first one and could predict it
        batch: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            **further,
        }
        if any(sample.segments is not None for sample in samples):
            positions = torch.zeros(shape, dtype=torch.long)
            for position, sample in enumerate(samples):
                positions[position, : len(sample)] = torch.from_numpy(sample.positions)
            # transformers passes a mask of four dimensions on unchanged, and branching attention
            # ignores it.
            unused = torch.ones((1, 1, 1, 1), dtype=torch.bool)
            segments = [np.ones(len(s)) if s.segments is None else s.segments for s in samples]
            batch |= {
                "position_ids": positions,
                "branches": branch_layout(segments, longest),
                "attention_mask": unused,
            }
        return batch | {ROWS: list(samples)}

    def with_features(
        self, samples: Sequence[Sample], features: Sequence[torch.Tensor]
    ) -> dict[str, Any]:
        """Return a batch with stored features.

        Args:
            samples: The rows of the batch.
            features: [image tokens, encoder width] for every picture of every sample, in order.
        """
        batch = self.tokens(samples)
        if features:
            batch[FEATURES] = torch.stack(list(features))  # [pictures, image tokens, encoder width]
        return batch

    def with_pixels(
        self, samples: Sequence[Sample], inputs: Sequence[dict[str, torch.Tensor]]
    ) -> dict[str, Any]:
        """Return a batch that runs the encoder.

        Args:
            samples: The rows of the batch.
            inputs: `Prompt.inputs` of every sample. Inputs without one value per token are
                concatenated over samples; smaller pictures are padded with zeros, as the processors
                themselves do.

        Raises:
            DataError: The model does not take rows with and without pictures in one batch.
        """
        with_mask = sum("cross_attention_mask" in values for values in inputs)
        if 0 < with_mask < len(samples):
            raise DataError(
                "This model does not take rows with and without pictures in one batch.",
                "Use --micro-batch-size 1, or train the rows without pictures by themselves.",
            )
        batch = self.tokens(samples)
        names = {name for values in inputs for name in values} - set(batch)
        for name in sorted(names):
            values = [value[name] for value in inputs if name in value]
            if name == "pixel_values" and "target_sizes" in names:
                # MiniCPM-V's processors put the patches of all pictures side by side.
                batch[name] = torch.cat(values, dim=-1)
            else:
                batch[name] = _concatenate(values)
        return batch


def _concatenate(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate along the first dimension; pad the others to the largest.

    Idefics' processors have the batch first and the pictures second, and pad both.
    """
    shape = [max(value.shape[axis] for value in values) for axis in range(1, values[0].dim())]
    if any(list(value.shape[1:]) != shape for value in values):
        values = [_padded(value, shape) for value in values]
    return torch.cat(list(values))


def _padded(value: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    padding = [
        amount
        for axis in reversed(range(1, value.dim()))
        for amount in (0, shape[axis - 1] - value.shape[axis])
    ]
    return torch.nn.functional.pad(value, padding)
