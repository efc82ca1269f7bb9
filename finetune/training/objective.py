"""What the Trainer trains: a model whose forward pass ends in the loss, with logits only where
there are labels.

A sequence of 600 image tokens and a two-token answer needs two rows of logits, not six hundred: at
a vocabulary of 150,000 that is the difference between 1 MB and 360 MB for every row of a batch.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from finetune.kernels.skipped_work import (
    TrainedTokensMlp,
    cast_inputs_once,
    cast_weights_once,
    pad_rows,
)
from finetune.training.collator import FEATURES, IGNORED
from vqa_app.models.architecture import feature_width, unwrap
from vqa_app.transformers_internals import image_features_argument, unsplittable_modules

LOGITS_AT_ONCE = 1 << 25
"""Elements of one block of logits, 128 MB in fp32; more labels are taken block by block and
recomputed in the backward pass."""


class Objective(nn.Module):
    """Model and loss as one module, so that DDP, FSDP and DeepSpeed see every parameter used inside
    `forward`.
    """

    accepts_loss_kwargs = True

    def __init__(self, model: nn.Module, *, bf16: bool = False) -> None:
        """Args:
        bf16: compute under bf16 autocast; the loss itself is fp32.
        """
        super().__init__()
        self.model = model
        self.bf16 = bf16
        base = unwrap(model)
        self.is_llava = isinstance(base, LlavaForConditionalGeneration)
        present = {type(module).__name__ for module in model.modules()}
        # What FSDP wraps; it refuses names that are not there, such as SigLIP's text tower's.
        self._no_split_modules = sorted(present & unsplittable_modules(base))
        text = base.config.get_text_config()
        self._vocabulary = text.vocab_size  # ZeRO-3 leaves the head's own shape empty
        scaled = ("final_logit_softcapping", "logit_scale", "logits_scaling")
        self.plain_head = self.is_llava or (
            hasattr(base, "model") and not any(getattr(text, name, None) for name in scaled)
        )
        self.keeps_logits = "logits_to_keep" in inspect.signature(base.forward).parameters
        # A checkpointed layer runs again when nobody says any more what is trained.
        again = any(getattr(module, "gradient_checkpointing", False) for module in base.modules())
        trims = self.is_llava and not again
        self._last = TrainedTokensMlp(base.model.language_model) if trims else None
        if bf16:
            cast_inputs_once(model)
            cast_weights_once(model)

    def forward(
        self, labels: Tensor, num_items_in_batch: Tensor | int | None = None, **inputs: Any
    ) -> dict[str, Tensor]:
        """The next-token loss.

        Args:
            labels: [batch, tokens], not shifted; -100 where nothing is trained, always at the first
                token.
            num_items_in_batch: trained tokens of the whole optimiser step over all devices; the
                loss is the sum over this batch divided by it. None: this batch's own count, that is
                the mean.
            inputs: the model's own; `picture_features` [pictures, image tokens, encoder width] may
                stand in the place of `pixel_values`.

        Returns:
            `loss`: scalar, fp32.
        """
        trained = labels[:, 1:] != IGNORED
        targets = labels[:, 1:][trained]  # [trained tokens]
        with torch.autocast(labels.device.type, torch.bfloat16, enabled=self.bf16):
            total = self._sum_of_losses(trained, targets, inputs)
        count = targets.numel() if num_items_in_batch is None else num_items_in_batch
        return {"loss": total / count}

    def _sum_of_losses(self, trained: Tensor, targets: Tensor, inputs: dict[str, Any]) -> Tensor:
        base = unwrap(self.model)
        if not self.plain_head:  # capped or scaled logits: the model's own head
            columns = trained.any(0).nonzero()[:, 0]  # the union of the positions
            if self.keeps_logits:
                logits = base(**inputs, logits_to_keep=columns).logits
            else:
                logits = base(**inputs).logits[:, columns]
            return cross_entropy(logits[trained[:, columns]].float(), targets, reduction="sum")
        idle = None
        if self.is_llava:
            idle = self._project(base, inputs)
        with self._last.only(trained) if self._last else nullcontext():
            hidden = base.model(**inputs, use_cache=False).last_hidden_state
        hidden = hidden[:, :-1][trained]
        if idle is not None:
            hidden = hidden + 0.0 * idle
        return self._head_losses(base.get_output_embeddings(), hidden, targets)

    def _project(
        self, base: LlavaForConditionalGeneration, inputs: dict[str, Any]
    ) -> Tensor | None:
        """Puts the projected features in place. Without pictures the projector still runs once, on
        zeros: every process then has gradients for the same parameters, also one whose rows are all
        text.
        """
        features = inputs.pop(FEATURES, None)
        projector = base.model.multi_modal_projector
        if features is not None:
            projected = projector(features)  # [pictures, image tokens, LLM width]
            output = BaseModelOutputWithPooling(pooler_output=list(projected))
            inputs |= image_features_argument(output)
            return None
        if inputs.get("pixel_values") is not None:
            return None
        weight = next(projector.parameters())
        zeros = torch.zeros(1, 1, feature_width(base), device=weight.device, dtype=weight.dtype)
        return projector(zeros).sum()

    def _head_losses(self, head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
        """Sum over [trained tokens] of the next-token losses; `hidden` is [trained tokens,
        width].
        """

        def block(rows: Tensor, wanted: Tensor) -> Tensor:
            return cross_entropy(head(rows).float(), wanted, reduction="sum")

        hidden, targets = pad_rows(hidden), pad_rows(targets, IGNORED)
        at_once = max(1, LOGITS_AT_ONCE // self._vocabulary)
        if len(targets) <= at_once:
            return block(hidden, targets)
        pairs = zip(hidden.split(at_once), targets.split(at_once), strict=True)
        return sum(
            (checkpoint(block, rows, wanted, use_reentrant=False) for rows, wanted in pairs),
            start=hidden.new_zeros((), dtype=torch.float32),
        )
