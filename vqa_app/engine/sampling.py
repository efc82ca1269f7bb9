"""From logits to text: which token comes next, and when its characters may be shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vqa_app.engine.protocol import GenerationOptions

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a decoder gives for a character whose last bytes are still missing."""


class Sampler:
    """Picks tokens as `generate` would with the same settings and the model's own generation
    config.

    Args:
        model: whose defaults apply where an option is None.
        prompt_ids: [1, n]; penalties look back on them.
    """

    def __init__(self, model: Any, options: GenerationOptions, prompt_ids: Tensor) -> None:
        config = generation_config(model, options)
        # The very processors of `generate`: a config may hold more than our options (Idefics
        # forbids its image tokens as bad words), and transformers has no public way to ask for
        # them.
        model._prepare_special_tokens(config, True, device=prompt_ids.device)
        self._processors = model._get_logits_processor(
            config, prompt_ids.shape[1], encoder_input_ids=prompt_ids, device=prompt_ids.device
        )
        self._samples = bool(config.do_sample)
        self._generator: torch.Generator | None = None
        if options.seed is not None:
            self._generator = torch.Generator(prompt_ids.device).manual_seed(options.seed)
        self._ids = prompt_ids

    def pick(self, logits: Tensor) -> tuple[int, Tensor]:
        """The next token for logits [vocabulary], and its log probability [] before any processing:
        where the model is, since a GPU that is asked for a number is waited for."""
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
    config, _ = model._prepare_generation_config(None, **changes)
    return config


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


class TextStream:
    """Token by token to whole characters, without special tokens, up to the first stop string.

    Attributes:
        text: all that was given out so far.
        stopped: a stop string was met.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._ids: list[int] = []
        # ids[:known] are decoded; ids[shown:known] give the next ones context.
        self._shown = self._known = 0
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Takes a token and gives the characters that are certain by now."""
        self._ids.append(token)
        before = self._decode(self._ids[self._shown : self._known])
        after = self._decode(self._ids[self._shown :])
        if len(after) <= len(before) or after.endswith(BROKEN):
            return ""
        self._shown, self._known = self._known, len(self._ids)
        return self._give(after[len(before) :], last=False)

    def finish(self) -> str:
        """What was held back; a character that never became whole is left out."""
        before = self._decode(self._ids[self._shown : self._known])
        after = self._decode(self._ids[self._shown :])
        self._shown = self._known = len(self._ids)
        return self._give(after[len(before) :].rstrip(BROKEN), last=True)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _give(self, new: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        held = self._held + new
        if not self.text:
            held = held.lstrip()  # many tokenizers put a space before a text's first word
        places = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if places:
            self.stopped = True
            length = min(places)
        else:
            length = len(held) if last else len(held) - self._unsure(held)
        self._held = held[length:]
        self.text += held[:length]
        return held[:length]

    def _unsure(self, text: str) -> int:
        """Length of the longest ending of `text` with which a stop string begins."""
        return max(
            (
                size
                for stop in self._stops
                for size in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:size])
            ),
            default=0,
        )
