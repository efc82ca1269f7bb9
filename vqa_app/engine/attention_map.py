"""Where on its pictures a model looked for each token of an answer.

Gradient-weighted and relative attention (both from Zhang et al., 2025, "MLLMs Know Where to Look").
A model gathers what it sees in the question's tokens as much as in the answer's, so the weights of
all text behind the pictures count, each as far as it made the answer's token likelier: attention
times its gradient, where positive. That, over the attention under a neutral instruction about the
same pictures, leaves what this question drew it to.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqa_app.engine.detokenizer import TextStream
from vqa_app.engine.protocol import AttentionMap
from vqa_app.engine.runtime import Runtime
from vqa_app.engine.scoring import answered
from vqa_app.errors import ModelError, UsageError
from vqa_app.pictures.picture import Picture
from vqa_app.prompts.conversation import Conversation, Message
from vqa_app.prompts.prompt import Prompt, encode, end_token_ids

NEUTRAL = "Write a general description of the image."
"""The instruction of the paper."""
SINK = 8.0
"""A patch with this many times the mean attention even under the neutral instruction is a sink."""


def attention_map(runtime: Runtime, conversation: Conversation, answer: str) -> AttentionMap:
    """See `vqa_app.engine.protocol.Engine.attention_map`.

    Raises:
        ModelError: the architecture does not allow it.
        UsageError: the conversation holds no picture.
    """
    if not runtime.capabilities.maps_attention:
        raise ModelError(
            f"{type(runtime.model).__name__} does not say where it looks.",
            "Attention maps need pictures that are fused as one grid of tokens, as LLaVA has them.",
        )
    if not conversation.pictures:
        raise UsageError("There is no picture to look at.", "Ask about a picture first.")
    prompt, places = answered(runtime, conversation, answer)
    ids = prompt.inputs["input_ids"][0, places.start : places.stop].tolist()
    ends = end_token_ids(runtime.model, runtime.processor)
    size = next((index for index, token in enumerate(ids) if token in ends), len(ids))
    looked = _looks(runtime, prompt, ids[:size], places.start)
    last = conversation.messages[-1]
    pictures = tuple(part for part in last.parts if isinstance(part, Picture))
    neutral = Conversation((*conversation.messages[:-1], Message.user(NEUTRAL, pictures)))
    neutral_prompt = encode(runtime.processor, neutral, answer_next=True)
    anyway = _looks_anyway(runtime, neutral_prompt)
    maps = []
    spans = zip(prompt.image_spans, neutral_prompt.image_spans, prompt.pictures, strict=True)
    for index, ((start, end), (start0, end0), picture) in enumerate(spans):
        relative = _relative(looked[:, start:end], anyway[start0:end0])
        rows = _rows(runtime, prompt, index)
        grid = relative.reshape(size, rows, (end - start) // rows).float().cpu().numpy()
        maps.append(_on_picture(grid, picture, runtime.processor.image_processor))
    return AttentionMap(_texts(runtime, ids[:size]), tuple(maps))


def _looks(runtime: Runtime, prompt: Prompt, ids: list[int], place: int) -> Tensor:
    """[answer tokens, n]: how far attention to each token of the prompt made an answer's tokens,
    which stand from `place` on, likelier. Every layer counts alike.
    """
    start = prompt.image_spans[-1][1]
    logits, weights = runtime.attend(prompt, start)
    with torch.inference_mode(False), torch.enable_grad():
        looked = torch.zeros(len(ids), len(prompt), device=logits.device)
        # The token at place p was chosen by looking from p - 1.
        chosen = logits[place - 1 - start :].float().log_softmax(-1)
        for index, token in enumerate(ids):
            gradients = torch.autograd.grad(chosen[index, token], weights, retain_graph=True)
            for layer, gradient in zip(weights, gradients, strict=True):
                useful = (layer * gradient).detach().float().clamp(min=0).sum((0, 1, 2))
                seen = sum(useful[a:b].sum() for a, b in prompt.image_spans)
                looked[index] += useful / seen.clamp(min=torch.finfo(torch.float32).tiny)
    return looked


def _looks_anyway(runtime: Runtime, prompt: Prompt) -> Tensor:
    """[n]: mean attention of the text behind the pictures, whatever comes of it."""
    _, weights = runtime.attend(prompt, prompt.image_spans[-1][1])
    return torch.stack([layer.detach().float().mean((0, 1, 2)) for layer in weights]).mean(0)


def _relative(looked: Tensor, anyway: Tensor) -> Tensor:
    """[tokens, patches], each row non-negative with a sum of 1."""
    mean = anyway.mean()
    relative = looked / (anyway + mean)  # the mean keeps patches nobody looks at from winning
    relative[:, anyway > SINK * mean] = 0.0
    total = relative.sum(-1, keepdim=True)
    return torch.where(total > 0, relative / total, 1.0 / relative.shape[-1])


def _rows(runtime: Runtime, prompt: Prompt, index: int) -> int:
    """Rows of a picture's token grid."""
    if "image_grid_thw" in prompt.inputs:
        merged = runtime.model.config.vision_config.spatial_merge_size
        return int(prompt.inputs["image_grid_thw"][index, 1]) // merged
    start, end = prompt.image_spans[index]
    return round((end - start) ** 0.5)


def _on_picture(grid: np.ndarray, picture: Picture, image_processor: Any) -> np.ndarray:
    """[tokens, rows, columns] over the whole picture: what a centre crop (CLIP) left out gets
    zeros.
    """
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


def _texts(runtime: Runtime, ids: list[int]) -> tuple[str, ...]:
    stream = TextStream(runtime.processor.tokenizer)
    texts = [stream.push(token) for token in ids]
    if texts:
        texts[-1] += stream.finish()
    return tuple(texts)
