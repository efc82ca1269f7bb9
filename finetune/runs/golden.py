"""Golden prompts: conversations saved in a run with the logits of its model.

Text and pictures are in the run, so that `verify` needs nothing else. For every answer position the
logits of the likeliest tokens are saved, and the log-sum-exp over the whole vocabulary, which any
change to the logits shifts.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vqa_app.engine.batched import evaluation_mode
from vqa_app.engine.vision import on_device
from vqa_app.errors import ImageError, ModelError
from vqa_app.files import JSON_ERRORS
from vqa_app.models.architecture import unwrap
from vqa_app.pictures.picture import STORED_PICTURE_LIMITS, open_picture
from vqa_app.prompts.conversation import Conversation
from vqa_app.prompts.prompt import Prompt, encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

GOLDEN_FOLDER = "golden"
_PROMPTS = "golden.json"
_LOGITS = "golden.safetensors"
KEPT_LOGITS = 256
"""How many tokens' logits are saved for each position."""
KEPT_POSITIONS = 16
"""How many answer positions are saved for each prompt."""


@dataclass(frozen=True)
class GoldenPrompt:
    """A finished conversation with the logits of its answers when the run was saved."""

    conversation: Conversation
    dtype: str
    """Precision of the model at that time: float32, bfloat16, ..."""
    input_ids: torch.Tensor
    """[tokens] as rendered at that time."""
    token_ids: torch.Tensor
    """[positions, kept] the likeliest tokens, in descending order."""
    logits: torch.Tensor
    """[positions, kept] their logits, float32."""
    normalizers: torch.Tensor
    """[positions] log-sum-exp over the whole vocabulary, float32."""


@dataclass(frozen=True)
class Comparison:
    """How much logits differ, over all golden prompts."""

    prompts: int
    worst_difference: float
    """Largest absolute difference between two log-probabilities of a likely token, in nats."""
    same_tokens: float
    """Share of the positions with the same likeliest token, 0 to 1."""
    rendered_differently: int
    """Number of prompts that are rendered to other tokens than when the run was saved."""


def _answer_logits(model: PreTrainedModel, prompt: Prompt) -> torch.Tensor:
    """Return float32 logits [positions, vocabulary] that predict the answers' first tokens."""
    # A logit predicts the next token.
    positions = prompt.answer_mask.nonzero()[:KEPT_POSITIONS, 0] - 1
    if not len(positions):
        raise ModelError("A golden prompt has no answer.", "Give finished conversations.")
    inputs = on_device(model, prompt.inputs)
    skipped = 0
    if "logits_to_keep" in inspect.signature(unwrap(model).forward).parameters:
        skipped = int(positions[0])
        inputs["logits_to_keep"] = inputs["input_ids"].shape[1] - skipped
    logits = model(**inputs, use_cache=False).logits[0]
    return logits[positions.to(logits.device) - skipped].float().cpu()


def measure(
    model: PreTrainedModel, processor: ProcessorMixin, conversations: Sequence[Conversation]
) -> list[tuple[Prompt, torch.Tensor]]:
    """Return each finished conversation's prompt and the logits of its answers."""
    prompts = [encode(processor, c, answer_next=False) for c in conversations]
    with evaluation_mode(model):
        return [(prompt, _answer_logits(model, prompt)) for prompt in prompts]


def record_golden(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    conversations: Sequence[Conversation],
    folder: Path,
) -> None:
    """Write conversations, their pictures and the model's logits into an existing folder."""
    tensors: dict[str, torch.Tensor] = {}
    for index, (prompt, logits) in enumerate(measure(model, processor, conversations)):
        kept = logits.topk(min(KEPT_LOGITS, logits.shape[-1]))
        tensors |= {
            f"{index}.input_ids": prompt.inputs["input_ids"][0].contiguous(),
            f"{index}.token_ids": kept.indices.contiguous(),
            f"{index}.logits": kept.values.contiguous(),
            f"{index}.normalizers": logits.logsumexp(-1),
        }
    for picture in {p for c in conversations for p in c.pictures}:
        picture.image.save(folder / f"{picture.digest}.png")
    (folder / _PROMPTS).write_text(
        json.dumps(
            {
                "dtype": str(model.dtype).removeprefix("torch."),
                "prompts": [conversation.to_json() for conversation in conversations],
            },
            indent=1,
            ensure_ascii=False,
        ),
        encoding="utf-8",
    )
    save_file(tensors, folder / _LOGITS)


def read_golden(run: Path) -> list[GoldenPrompt]:
    """Read the golden prompts of a run; none if it was saved without.

    Raises:
        ModelError: The files are damaged.
    """
    folder = run / GOLDEN_FOLDER
    if not (folder / _PROMPTS).exists():
        return []
    try:
        saved = json.loads((folder / _PROMPTS).read_text(encoding="utf-8"))
        tensors = load_file(folder / _LOGITS)
        return [
            GoldenPrompt(
                Conversation.from_json(
                    value,
                    lambda digest: open_picture(
                        folder / f"{digest}.png", limits=STORED_PICTURE_LIMITS
                    ),
                ),
                saved["dtype"],
                *(tensors[f"{i}.{n}"] for n in ("input_ids", "token_ids", "logits", "normalizers")),
            )
            for i, value in enumerate(saved["prompts"])
        ]
    except (OSError, *JSON_ERRORS, KeyError, TypeError, SafetensorError, ImageError) as error:
        why = error.problem if isinstance(error, ImageError) else "a file is damaged or missing."
        raise ModelError(
            f"The golden prompts in {folder} cannot be read: {why}",
            "Copy the run again from where it was made.",
        ) from error


def compare(
    model: PreTrainedModel, processor: ProcessorMixin, golden: Sequence[GoldenPrompt]
) -> Comparison:
    """Compare the model's logits with those of the golden prompts.

    Log-probabilities are compared, not raw logits: a constant added to all logits changes no
    answer.
    """
    now = measure(model, processor, [prompt.conversation for prompt in golden])
    worst, same, positions, rendered = 0.0, 0, 0, 0
    for saved, (prompt, logits) in zip(golden, now, strict=True):
        if prompt.inputs["input_ids"][0].tolist() != saved.input_ids.tolist():
            rendered += 1
            continue
        before = saved.logits - saved.normalizers[:, None]
        after = logits.gather(1, saved.token_ids) - logits.logsumexp(-1, keepdim=True)
        gap = torch.where(before == after, 0.0, (before - after).abs()).max().item()
        worst = gap if math.isnan(gap) else max(worst, gap)  # max() would drop a NaN
        same += int((logits.argmax(-1) == saved.token_ids[:, 0]).sum())
        positions += len(logits)
    return Comparison(len(golden), worst, same / positions if positions else 0.0, rendered)
