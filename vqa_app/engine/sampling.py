"""From logits to text: which token comes next, and when its characters may be shown."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqa_app.engine.protocol import GenerationOptions
from vqa_app.transformers_internals import logits_processors, prepare_generation_config


class Sampler:
    """Picks tokens as `generate` would with the same settings and the model's own generation
    config.

    Args:
        model: whose defaults apply where an option is None.
        prompt_ids: [1, n]; penalties look back on them.
    """

    def __init__(self, model: Any, options: GenerationOptions, prompt_ids: Tensor) -> None:
        config = generation_config(model, options)
        self._processors = logits_processors(model, config, prompt_ids)
        self._samples = bool(config.do_sample)
        self._generator: torch.Generator | None = None
        if options.seed is not None:
            self._generator = torch.Generator(prompt_ids.device).manual_seed(options.seed)
        self._ids = prompt_ids

    def pick(self, logits: Tensor) -> tuple[int, Tensor]:
        """The next token for logits [vocabulary], and its log probability [] before any processing:
        where the model is, since a GPU that is asked for a number is waited for.
        """
        logits = logits.float()
        scores = logits
        if self._processors:
            scores = self._processors(self._ids, logits[None].clone())[0]
        if self._samples:
            token = torch.multinomial(scores.softmax(-1), 1, generator=self._generator)[0]
        else:
            token = scores.argmax(-1)
        if self._processors:
            self._ids = torch.cat((self._ids, token.view(1, 1)), 1)
        index = int(token)
        return index, logits[index] - logits.logsumexp(-1)


def generation_config(model: Any, options: GenerationOptions) -> Any:
    """The generation config that `generate` would use for these options."""
    changes: dict[str, Any] = {"max_new_tokens": options.max_new_tokens}
    if options.temperature is not None:
        changes["do_sample"] = options.temperature > 0
    samples = changes.get("do_sample", model.generation_config.do_sample)
    if samples:
        changes |= {"temperature": options.temperature or None}
        changes |= {"top_p": options.top_p, "top_k": options.top_k}
    changes["repetition_penalty"] = options.repetition_penalty
    changes = {name: value for name, value in changes.items() if value is not None}
    return prepare_generation_config(model, **changes)


def default_options(model: Any) -> GenerationOptions:
    """The model's own generation config as options."""
    config = model.generation_config
    if not config.do_sample:
        return GenerationOptions(temperature=0.0, repetition_penalty=config.repetition_penalty)
    prepared = generation_config(model, GenerationOptions())
    return GenerationOptions(
        temperature=prepared.temperature,
        top_p=prepared.top_p,
        top_k=prepared.top_k,
        repetition_penalty=config.repetition_penalty,
    )
