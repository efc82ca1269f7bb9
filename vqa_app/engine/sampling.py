"""Sampling: the next token from logits."""

from __future__ import annotations

import sys
from math import isfinite
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import LongTensor, Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from vqa_app.engine.protocol import GenerationOptions
from vqa_app.transformers_internals import logits_processors, prepare_generation_config

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from vqa_app.engine.structured import JsonConstraint

LOWEST_TEMPERATURE = 1e-5
"""Answers at lower temperatures are greedy: dividing the logits by them would overflow."""


class Sampler:
    """Choose tokens as `generate` does with the same options.

    Args:
        model: Model whose generation config applies where an option is None.
        options: How to sample.
        prompt_ids: [1, n]; penalties take them into account.
        constraint: Forbids tokens.

    Attributes:
        token: The latest token, [] on the device of its logits.
        logits: Those that it was chosen from, [vocabulary], with minus infinity for what the
            constraint forbids.
    """

    token: Tensor
    logits: Tensor

    def __init__(
        self,
        model: Any,
        options: GenerationOptions,
        prompt_ids: Tensor,
        constraint: JsonConstraint | None = None,
    ) -> None:
        config = generation_config(model, options)
        own = LogitsProcessorList()
        presence, frequency = options.presence_penalty or 0.0, options.frequency_penalty or 0.0
        if presence or frequency:
            own.append(OccurrencePenalty(prompt_ids.shape[1], presence, frequency))
        self._processors = logits_processors(model, config, prompt_ids, own)
        self._samples = bool(config.do_sample)
        self._generator: torch.Generator | None = None
        if options.seed is not None:
            self._generator = torch.Generator(prompt_ids.device).manual_seed(options.seed)
        self._ids = cast(LongTensor, prompt_ids)
        self._constraint = constraint

    def sample(self, logits: Tensor, remaining: int = sys.maxsize) -> tuple[int, Tensor]:
        """Return the next token for logits [vocabulary], and its log probability.

        The log probability is the model's own, before penalties and temperature, among the tokens
        that are not forbidden. It stays a tensor on the model's device, because reading a number
        from a GPU waits for all its work.

        Args:
            logits: [vocabulary]
            remaining: Tokens that the answer may still take, this one included.
        """
        logits = logits.float()
        if self._constraint is not None:
            allowed = self._constraint.allowed().to(logits.device)
            logits = logits.masked_fill(~allowed, -torch.inf)
        scores = self.logits = logits
        if self._processors:
            scores = self._processors(self._ids, logits[None].clone())[0]
        if self._samples:
            token = torch.multinomial(scores.softmax(-1), 1, generator=self._generator)[0]
        else:
            token = scores.argmax(-1)
        index = int(token)  # waits for the device
        if self._constraint is not None:
            index = self._constraint.push(index, remaining)
            token = torch.full_like(token, index)
        self.token = token
        if self._processors:
            self._ids = cast(LongTensor, torch.cat((self._ids, token.view(1, 1)), 1))
        return index, logits[index] - logits.logsumexp(-1)


class OccurrencePenalty(LogitsProcessor):
    """OpenAI's presence and frequency penalties, which count the answer's tokens.

    Args:
        prompt_length: Number of tokens before the answer, which do not count.
        presence: Subtracted from the logit of each token that occurred.
        frequency: Subtracted from it for each time that it occurred.
    """

    def __init__(self, prompt_length: int, presence: float, frequency: float) -> None:
        self._prompt_length, self._presence, self._frequency = prompt_length, presence, frequency

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the penalised scores [rows, vocabulary] after tokens [rows, n]."""
        answer = input_ids[:, self._prompt_length :]
        ones = torch.ones_like(answer, dtype=scores.dtype)
        counts = torch.zeros_like(scores).scatter_add_(1, answer, ones)
        return scores - self._frequency * counts - self._presence * counts.sign()


def report_log_probabilities(
    logits: Tensor, token: int, count: int
) -> tuple[float, list[tuple[int, float]]]:
    """Return a token's log probability for logits [vocabulary], and the `count` likeliest tokens.

    Reading them waits for the device, so this is for those who ask for it.
    """
    found = logits.float().log_softmax(-1)
    values, ids = found.topk(min(count, len(found)))
    likeliest = zip(ids.tolist(), values.tolist(), strict=True)
    return found[token].item(), [(each, value) for each, value in likeliest if isfinite(value)]


def generation_config(model: Any, options: GenerationOptions) -> GenerationConfig:
    """Return the generation config that `generate` would use for these options."""
    own = model.generation_config
    given = options.temperature is not None
    temperature = options.temperature if given else own.temperature
    samples = given or bool(own.do_sample)
    if temperature is not None and temperature < LOWEST_TEMPERATURE:
        samples = False
    penalty = options.repetition_penalty or own.repetition_penalty
    changes: dict[str, Any] = {"max_new_tokens": options.max_new_tokens, "do_sample": samples}
    # transformers refuses integers here, which the JSON file of a model may contain.
    changes["repetition_penalty"] = None if penalty is None else float(penalty)
    if samples:
        changes["temperature"] = None if temperature is None else float(temperature)
        changes |= {"top_p": options.top_p, "top_k": options.top_k}
    changes = {name: value for name, value in changes.items() if value is not None}
    return prepare_generation_config(model, **changes)


def default_options(model: Any) -> GenerationOptions:
    """Return the model's own generation config as options."""
    penalty = model.generation_config.repetition_penalty
    prepared = generation_config(model, GenerationOptions())
    if not prepared.do_sample:
        return GenerationOptions(temperature=0.0, repetition_penalty=penalty)
    return GenerationOptions(
        temperature=prepared.temperature,
        top_p=prepared.top_p,
        top_k=prepared.top_k,
        repetition_penalty=penalty,
    )
