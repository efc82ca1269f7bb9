"""The training objective: a model whose forward pass returns the loss.

Logits are computed only where there are labels. A sequence of 600 image tokens and a two-token
answer needs two rows of logits, not six hundred: with a vocabulary of 150,000 that is 1 MB instead
of 360 MB for every row of a batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
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
"""Elements of one block of logits, 128 MB in fp32. More labels are processed in blocks that the
backward pass recomputes."""


class Objective(nn.Module):
    """Model and loss as one module: DDP, FSDP and DeepSpeed need all parameters used in `forward`.

    Args:
        model: The model, frozen and wrapped for training.
        autocast: Precision of the forward pass; the loss itself is fp32. None: all of it is.
        device: Where it trains, if the model is moved there later.
    """

    accepts_loss_kwargs = True

    def __init__(
        self,
        model: Any,
        *,
        autocast: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.autocast = autocast
        base = unwrap(model)
        self.is_llava = isinstance(base, LlavaForConditionalGeneration)
        present = {type(module).__name__ for module in model.modules()}
        # FSDP wraps these. It refuses names of classes that do not occur, such as those of SigLIP's
        # text tower.
        self._no_split_modules = sorted(present & unsplittable_modules(base))
        text = base.config.get_text_config()
        self._vocabulary = text.vocab_size  # ZeRO-3 leaves the head's own shape empty
        scaled = ("final_logit_softcapping", "logit_scale", "logits_scaling")
        self.plain_head = self.is_llava or (
            hasattr(base, "model") and not any(getattr(text, name, None) for name in scaled)
        )
        self.keeps_logits = "logits_to_keep" in inspect.signature(base.forward).parameters
        # A checkpointed layer runs again in the backward pass, when the trained positions are no
        # longer set.
        recomputed = any(getattr(m, "gradient_checkpointing", False) for m in base.modules())
        trims = self.is_llava and not recomputed
        self._last = TrainedTokensMlp(base.model.language_model) if trims else None
        if autocast is not None:
            cast_inputs_once(model)
        if autocast == torch.bfloat16 and (device or base.device).type == "cpu":
            cast_weights_once(model)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load weights; frozen ones may be missing, as they are in DeepSpeed's checkpoints."""
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        wrong = [*(trained & set(result.missing_keys)), *result.unexpected_keys]
        if strict and wrong:
            raise RuntimeError(f"Missing or unexpected weights: {', '.join(sorted(wrong)[:3])}.")
        return result

    def forward(
        self, labels: Tensor, num_items_in_batch: Tensor | int | None = None, **inputs: Any
    ) -> dict[str, Tensor]:
        """Return the next-token loss.

        Args:
            labels: [batch, tokens], not shifted; -100 where nothing is trained, always at the first
                token.
            num_items_in_batch: Trained tokens of the whole optimiser step over all devices, by
                which the sum of this batch's losses is divided; by default those of this batch.
            **inputs: The model's own; `picture_features` [pictures, image tokens, encoder width]
                may replace `pixel_values`.

        Returns:
            `loss`: scalar, fp32.
        """
        trained = labels[:, 1:] != IGNORED
        targets = labels[:, 1:][trained]  # [trained tokens]
        lowered = self.autocast is not None
        with torch.autocast(labels.device.type, self.autocast or torch.bfloat16, enabled=lowered):
            total = self._sum_of_losses(trained, targets, inputs)
        count = targets.numel() if num_items_in_batch is None else num_items_in_batch
        return {"loss": total / count}

    def _sum_of_losses(self, trained: Tensor, targets: Tensor, inputs: dict[str, Any]) -> Tensor:
        base = unwrap(self.model)
        if not self.plain_head:  # the model caps or scales its logits
            columns = trained.any(0).nonzero()[:, 0]  # positions trained in any row
            if self.keeps_logits:
                logits = base(**inputs, logits_to_keep=columns).logits
            else:
                logits = base(**inputs).logits[:, columns]
            return cross_entropy(logits[trained[:, columns]].float(), targets, reduction="sum")
        unused = self._project(base, inputs) if self.is_llava else None
        with self._last.only(trained) if self._last else nullcontext():
            hidden = base.model(**inputs, use_cache=False).last_hidden_state
        hidden = hidden[:, :-1][trained]
        if unused is not None:
            hidden = hidden + 0.0 * unused
        return self._head_losses(base.get_output_embeddings(), hidden, targets)

    def _project(
        self, base: LlavaForConditionalGeneration, inputs: dict[str, Any]
    ) -> Tensor | None:
        """Replace stored features in the inputs by the projector's outputs.

        Without pictures the projector runs once on zeros, so that every process has gradients for
        the same parameters, even if all its rows are text.

        Returns:
            The sum of that unused output; None if the projector was used or will be.
        """
        features = inputs.pop(FEATURES, None)
        projector = base.model.multi_modal_projector
        if features is not None:
            projected = projector(features)  # [pictures, image tokens, LLM width]
            # LLaVA's forward pass takes a list here, one tensor for each picture.
            pooled: Any = list(projected)
            output = BaseModelOutputWithPooling(pooler_output=pooled)
            inputs |= image_features_argument(output)
            return None
        if inputs.get("pixel_values") is not None:
            return None
        weight = next(projector.parameters())
        zeros = torch.zeros(1, 1, feature_width(base), device=weight.device, dtype=weight.dtype)
        return projector(zeros).sum()

    def _head_losses(self, head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the next-token losses.

        Args:
            head: The LLM's output layer.
            hidden: [trained tokens, width]
            targets: [trained tokens]
        """

        def block(rows: Tensor, labels: Tensor) -> Tensor:
            return cross_entropy(head(rows).float(), labels, reduction="sum")

        hidden, targets = pad_rows(hidden), pad_rows(targets, IGNORED)
        at_once = max(1, LOGITS_AT_ONCE // self._vocabulary)
        if len(targets) <= at_once:
            return block(hidden, targets)
        pairs = zip(hidden.split(at_once), targets.split(at_once), strict=True)
        return sum(
            (checkpoint(block, rows, labels, use_reentrant=False) for rows, labels in pairs),
            start=hidden.new_zeros((), dtype=torch.float32),
        )
