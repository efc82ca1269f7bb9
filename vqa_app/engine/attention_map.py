"""Where on its pictures a model looked for each token of an answer.

Gradient-weighted, relative attention (both from Zhang et al., 2025, "MLLMs Know Where to Look").
A model collects visual information in the question's tokens as well as in the answer's. So the
attention of all text after the pictures counts, as far as it made the answer's token likelier:
attention times its gradient, where positive. Divided by the attention under a neutral instruction
about the same pictures, it shows what this question drew attention to.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vqa_app.engine.detokenizer import Detokenizer
from vqa_app.engine.protocol import AttentionMap
from vqa_app.engine.runtime import Runtime
from vqa_app.engine.scheduler import Pause, Steps
from vqa_app.engine.scoring import encode_answer
from vqa_app.errors import ModelError, UsageError
from vqa_app.pictures.picture import Picture
from vqa_app.prompts.conversation import Conversation, Message
from vqa_app.prompts.prompt import Prompt, encode, end_token_ids

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEUTRAL_INSTRUCTION = "Write a general description of the image."
"""From the paper."""
PARTS = 4
"""Parts of a patch's edge in the map of a padded picture."""
SINK = 8.0
"""A patch that gets this many times the mean attention under the neutral instruction is an
attention sink."""


def attention_map(runtime: Runtime, conversation: Conversation, answer: str) -> Steps[AttentionMap]:
    """Compute the maps; see `vqa_app.engine.protocol.Engine.attention_map`.

    Raises:
        ModelError: The architecture does not support it.
        UsageError: The conversation has no picture.
    """
    if not runtime.capabilities.maps_attention:
        raise ModelError(
            f"{type(runtime.model).__name__} does not support attention maps.",
            "They need pictures that are one grid of tokens in the prompt, as in LLaVA.",
        )
    if not conversation.pictures:
        raise UsageError("There is no picture to look at.", "Ask about a picture first.")
    prompt, positions = encode_answer(runtime, conversation, answer)
    ids = prompt.inputs["input_ids"][0, positions.start : positions.stop].tolist()
    ends = end_token_ids(runtime.model, runtime.processor)
    size = next((index for index, token in enumerate(ids) if token in ends), len(ids))
    weighted = yield from _gradient_weighted_attention(runtime, prompt, ids[:size], positions.start)
    yield Pause()
    last = conversation.messages[-1]
    pictures = tuple(part for part in last.parts if isinstance(part, Picture))
    neutral = Conversation(
        (*conversation.messages[:-1], Message.user(NEUTRAL_INSTRUCTION, pictures))
    )
    neutral_prompt = encode(runtime.processor, neutral, answer_next=True)
    baseline = yield from _mean_attention(runtime, neutral_prompt)
    maps = []
    spans = zip(prompt.image_spans, neutral_prompt.image_spans, prompt.pictures, strict=True)
    for index, ((start, end), (start0, end0), picture) in enumerate(spans):
        relative = _relative_attention(weighted[:, start:end], baseline[start0:end0])
        rows = _grid_rows(runtime, prompt, index)
        grid = relative.reshape(size, rows, (end - start) // rows).float().cpu().numpy()
        grid = _restore_crop(grid, picture, runtime.processor.image_processor)
        maps.append(_remove_padding(grid, picture, runtime.processor.image_processor))
    return AttentionMap(_token_texts(runtime, ids[:size]), tuple(maps))


def _gradient_weighted_attention(
    runtime: Runtime, prompt: Prompt, ids: list[int], position: int
) -> Steps[Tensor]:
    """Return how much attention to each token raised the answer's tokens: [answer tokens, n].

    Every layer has the same weight.

    Args:
        runtime: The model.
        prompt: Prompt with the answer.
        ids: Token ids of the answer.
        position: Index of the first of them in the prompt.
    """
    start = prompt.image_spans[-1][1]
    logits, weights = yield from runtime.attention_weights(prompt, start)
    with torch.inference_mode(False), torch.enable_grad():
        weighted = torch.zeros(len(ids), len(prompt), device=logits.device)
        # The token at position p is predicted at p - 1.
        predicted = logits[position - 1 - start :].float().log_softmax(-1)
    for index, token in enumerate(ids):
        yield None  # outside the block, whose settings are also those of other jobs
        with torch.inference_mode(False), torch.enable_grad():
            gradients = torch.autograd.grad(predicted[index, token], weights, retain_graph=True)
            for layer, gradient in zip(weights, gradients, strict=True):
                useful = (layer * gradient).detach().float().clamp(min=0).sum((0, 1, 2))
                on_pictures = torch.stack([useful[a:b].sum() for a, b in prompt.image_spans]).sum()
                weighted[index] += useful / on_pictures.clamp(min=torch.finfo(torch.float32).tiny)
    return weighted


def _mean_attention(runtime: Runtime, prompt: Prompt) -> Steps[Tensor]:
    """Return the mean attention of the text after the pictures to each token: [n]."""
    _, weights = yield from runtime.attention_weights(prompt, prompt.image_spans[-1][1])
    return torch.stack([layer.detach().float().mean((0, 1, 2)) for layer in weights]).mean(0)


def _relative_attention(weighted: Tensor, baseline: Tensor) -> Tensor:
    """Divide attention by its baseline: [tokens, patches], rows non-negative with a sum of 1."""
    mean = baseline.mean()
    relative = weighted / (baseline + mean)  # the mean keeps patches without attention small
    relative[:, baseline > SINK * mean] = 0.0
    total = relative.sum(-1, keepdim=True)
    return torch.where(total > 0, relative / total, 1.0 / relative.shape[-1])


def _grid_rows(runtime: Runtime, prompt: Prompt, index: int) -> int:
    """Return the number of rows of a picture's token grid."""
    if "image_grid_thw" in prompt.inputs:
        merge = int(runtime.model.config.vision_config.spatial_merge_size)
        return int(prompt.inputs["image_grid_thw"][index, 1]) // merge
    start, end = prompt.image_spans[index]
    return math.isqrt(end - start)


def _restore_crop(
    grid: NDArray[np.float32], picture: Picture, image_processor: Any
) -> NDArray[np.float32]:
    """Extend a map [tokens, rows, columns] by zeros where a centre crop (CLIP) cut the picture."""
    if not getattr(image_processor, "do_center_crop", False):
        return grid
    shorter = image_processor.size["shortest_edge"]
    scale = shorter / min(picture.image.size)
    width, height = (edge * scale for edge in picture.image.size)
    crop = image_processor.crop_size
    _, rows, columns = grid.shape
    above = max(0, round(rows * (height / crop["height"] - 1) / 2))
    beside = max(0, round(columns * (width / crop["width"] - 1) / 2))
    return np.pad(grid, ((0, 0), (above, above), (beside, beside)))


def _remove_padding(
    grid: NDArray[np.float32], picture: Picture, image_processor: Any
) -> NDArray[np.float32]:
    """Keep the part of a map [tokens, rows, columns] that lies on a picture padded to a square.

    Where the picture begins within a patch, patches are divided. The attention to the
    padding is dropped, and each token's map is scaled to a sum of 1 again.
    """
    width, height = picture.image.size
    if not getattr(image_processor, "do_pad", False) or width == height:
        return grid
    fine = grid.repeat(PARTS, axis=1).repeat(PARTS, axis=2)
    _, edge, _ = fine.shape
    rows = max(1, round(edge * height / max(width, height)))
    columns = max(1, round(edge * width / max(width, height)))
    top, left = (edge - rows) // 2, (edge - columns) // 2
    fine = fine[:, top : top + rows, left : left + columns]
    total = fine.sum((1, 2), keepdims=True)
    # A token that attended to padding alone carries no information about the picture.
    return np.where(total > 0, fine / np.where(total > 0, total, 1), 1 / (rows * columns))


def _token_texts(runtime: Runtime, ids: list[int]) -> tuple[str, ...]:
    """Return the text of each token; joined they are the answer."""
    detokenizer = Detokenizer(runtime.processor.tokenizer)
    texts = [detokenizer.push(token) for token in ids]
    if texts:
        texts[-1] += detokenizer.finish()
    return tuple(texts)
