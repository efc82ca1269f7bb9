"""Greedy answers and losses of many prompts at once.

If several prompts show the same picture and the architecture shares prefixes, everything up to the
end of the picture is computed once, and its keys and values are shared. Other prompts are answered
in padded batches with `generate`. Both give the tokens that each prompt gets on its own.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from vqa_app.engine.batch_memory import (
    max_batch_rows,
    max_prompts_read,
    max_rows_read,
    memory_budget,
)
from vqa_app.engine.repetition import length_before_loop
from vqa_app.engine.vision import on_device
from vqa_app.models.architecture import Capabilities, unwrap
from vqa_app.prompts.prompt import Prompt, end_token_ids
from vqa_app.transformers_internals import accepts_logits_to_keep, cache_argument

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

_COPY_BYTES = 4
"""Per logit: some models cap or scale their logits, which makes a copy."""
_PADDING = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0, "mm_token_type_ids": 0}
"""Inputs with one value for each token, and how they are padded; input_ids with the tokenizer's
own padding token."""


@contextlib.contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Switch to evaluation mode without gradients.

    A 16-bit model with float32 trained weights runs under autocast; any other as it is, or under
    the autocast of the caller.
    """
    dtypes = {p.dtype for p in model.parameters() if p.dtype.is_floating_point}
    half = next((d for d in (torch.bfloat16, torch.float16) if d in dtypes), None)
    training = model.training
    model.train(False)
    with contextlib.ExitStack() as stack:
        stack.callback(model.train, training)
        stack.enter_context(torch.no_grad())
        if half is not None and len(dtypes) > 1:
            stack.enter_context(torch.autocast(model.device.type, half))
        yield


@dataclass(frozen=True)
class _Batch:
    """Prompts whose prefixes have the same length."""

    indices: list[int]
    """Their indices in the list of prompts."""
    cache: DynamicCache
    """Keys and values of the prefixes."""
    input_ids: Tensor
    """The rest of the prompts, [rows, suffix]."""
    mask: Tensor
    """1 for tokens, 0 for padding, [rows, prefix + suffix]."""

    @property
    def positions(self) -> Tensor:
        """Positions of the suffixes, [rows, suffix]."""
        counted = self.mask.long().cumsum(-1) - 1
        return counted.clamp(min=0)[:, -self.input_ids.shape[1] :]


def _prompt_length(prompt: Prompt) -> int:
    return prompt.inputs["input_ids"].shape[1]


def _prefix_length(prompt: Prompt) -> int:
    return prompt.image_spans[-1][1] if prompt.image_spans else 0


def _prefix_batches(
    model: Any, prompts: Sequence[Prompt], *, pad_left: bool, new_tokens: int
) -> Iterator[_Batch]:
    """Yield the prompts in batches, their prefixes prefilled.

    Args:
        model: A LLaVA model.
        prompts: All prompts; those about one picture should be neighbours.
        pad_left: Pad the suffixes on the left, for generation.
        new_tokens: Tokens that will be generated after each prompt.
    """
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        buckets[_prefix_length(prompt), len(prompt.image_spans)].append(index)
    for (prefix, _), members in buckets.items():
        longest = max(_prompt_length(prompts[i]) for i in members)
        rows = max_batch_rows(model, longest + new_tokens)
        rows = min(rows, max_rows_read(model, longest - prefix))
        for chunk in _chunks(prompts, members, prefix, rows):
            cache, row_of = _prefill(model, [prompts[i] for i in chunk], prefix)
            order = sorted(range(len(chunk)), key=lambda k: _prompt_length(prompts[chunk[k]]))
            for first in range(0, len(order), rows):
                batch = order[first : first + rows]
                suffixes = [prompts[chunk[k]].inputs["input_ids"][0, prefix:] for k in batch]
                ids, mask = _pad(suffixes, pad_left)
                whole = torch.cat([mask.new_ones(len(batch), prefix), mask], dim=1)
                yield _Batch(
                    [chunk[k] for k in batch],
                    _select_rows(cache, [row_of[k] for k in batch], model, prefix),
                    ids.to(model.device),
                    whole.to(model.device),
                )
            del cache  # before the next prefixes are prefilled


def _prefix_key(prompt: Prompt, prefix: int) -> tuple[Any, ...]:
    """Return what tells a prompt's first `prefix` tokens apart from those of others."""
    return (prompt.pictures, tuple(prompt.inputs["input_ids"][0, :prefix].tolist()))


def _chunks(
    prompts: Sequence[Prompt], members: Sequence[int], prefix: int, rows: int
) -> Iterator[list[int]]:
    """Divide prompts into chunks with at most `rows` different prefixes, prefilled at once.

    A chunk can be larger than a batch: sorted by length, its prompts need less padding.
    """
    chunk: list[int] = []
    distinct: set[tuple[Any, ...]] = set()
    for index in members:
        key = _prefix_key(prompts[index], prefix)
        full = len(chunk) == 4 * rows or (key not in distinct and len(distinct) == rows)
        if chunk and full:
            yield chunk
            chunk, distinct = [], set()
        chunk.append(index)
        distinct.add(key)
    if chunk:
        yield chunk


def _select_rows(cache: DynamicCache, rows: list[int], model: Any, prefix: int) -> DynamicCache:
    """Return a new cache with these rows of another."""
    if not prefix:
        return DynamicCache(config=model.config)
    index = torch.tensor(rows, device=model.device)
    layers: list[Any] = list(cache.layers)
    return DynamicCache((layer.keys[index], layer.values[index]) for layer in layers)


def _prefill(model: Any, prompts: Sequence[Prompt], prefix: int) -> tuple[DynamicCache, list[int]]:
    """Compute the keys and values of the distinct prefixes.

    Returns:
        The cache, and the row in it of each prompt.
    """
    rows: dict[tuple[Any, ...], int] = {}
    distinct: list[Prompt] = []
    row_of = []
    for prompt in prompts:
        key = _prefix_key(prompt, prefix)
        if key not in rows:
            rows[key] = len(distinct)
            distinct.append(prompt)
        row_of.append(rows[key])
    if not prefix:
        return DynamicCache(config=model.config), row_of
    at_once = max_prompts_read(model, distinct, prefix)
    parts = [
        _read_prefixes(model, distinct[first : first + at_once], prefix)
        for first in range(0, len(distinct), at_once)
    ]
    return _join(parts), row_of


def _read_prefixes(model: Any, prompts: Sequence[Prompt], prefix: int) -> DynamicCache:
    """Return the keys and values of the prompts' first tokens."""
    cache = DynamicCache(config=model.config)
    inputs = {"input_ids": torch.cat([p.inputs["input_ids"][:, :prefix] for p in prompts])}
    inputs["pixel_values"] = torch.cat([p.inputs["pixel_values"] for p in prompts])
    model.model(**on_device(model, inputs), **cache_argument(cache), use_cache=True)
    return cache


def _join(parts: list[DynamicCache]) -> DynamicCache:
    """Return one cache with the rows of several, which are emptied layer by layer."""
    if len(parts) == 1:
        return parts[0]
    layers: list[list[Any]] = [list(part.layers) for part in parts]
    parts.clear()
    joined = []
    while layers[0]:
        layer = [rows.pop(0) for rows in layers]
        joined.append((torch.cat([r.keys for r in layer]), torch.cat([r.values for r in layer])))
    return DynamicCache(joined)


def _pad(rows: Sequence[Tensor], left: bool, value: int = 0) -> tuple[Tensor, Tensor]:
    """Stack rows of different lengths to [rows, longest], and return the mask too."""
    longest = max(len(row) for row in rows)
    padded = torch.full((len(rows), longest), value, dtype=rows[0].dtype)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), None) if left else slice(len(row))
        padded[index, place] = row
        mask[index, place] = 1
    return padded, mask


def answer_prompts(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    capabilities: Capabilities,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 64,
) -> list[str]:
    """Return the greedy answers to prompts, stripped, in their order.

    Args:
        model: The model, possibly in a PEFT wrapper.
        processor: Its processor.
        capabilities: What its architecture allows.
        prompts: Encoded with `answer_next=True`.
        max_new_tokens: Longest answer, in tokens.
    """
    max_new_tokens = min(max_new_tokens, capabilities.context_length)
    ends = sorted(end_token_ids(model, processor))
    answers = [""] * len(prompts)
    with evaluation_mode(model):
        if capabilities.shares_prefixes:
            base = unwrap(model)
            batches = _prefix_batches(base, prompts, pad_left=True, new_tokens=max_new_tokens)
            for batch in batches:
                rows = _decode_greedily(base, batch, ends, max_new_tokens)
                for index, ids in zip(batch.indices, rows, strict=True):
                    answers[index] = _text(processor, ids, ends)
                del batch  # before the next one is prefilled
        else:
            padded = _padded_batches(
                model, processor, prompts, pad_left=True, new_tokens=max_new_tokens
            )
            for indices, inputs in padded:
                new = _generate(model, inputs, ends, max_new_tokens)
                for index, ids in zip(indices, new.tolist(), strict=True):
                    answers[index] = _text(processor, ids, ends)
    return answers


def _text(processor: Any, ids: list[int], ends: list[int]) -> str:
    """Return the text up to the first end token, or up to where `LocalEngine` stops a loop."""
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    stop = length_before_loop(ids[:stop]) or stop
    text: str = processor.tokenizer.decode(
        ids[:stop], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text.strip()


def _decode_greedily(
    model: Any, batch: _Batch, ends: list[int], max_new_tokens: int
) -> list[list[int]]:
    """Return the token ids of each row's answer; those after its end token are meaningless."""
    end_ids = torch.tensor(ends, device=model.device)
    ids, mask, positions = batch.input_ids, batch.mask, batch.positions
    ended = torch.zeros(len(ids), dtype=torch.bool, device=model.device)
    answer: list[Tensor] = []
    for _ in range(max_new_tokens):
        hidden = model.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            **cache_argument(batch.cache),
            use_cache=True,
        ).last_hidden_state
        ids = model.lm_head(hidden[:, -1:]).argmax(-1)  # [rows, 1]
        answer.append(ids)
        ended |= torch.isin(ids[:, 0], end_ids)
        if ended.all():
            break
        mask = torch.cat([mask, mask.new_ones(len(ids), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return cast("list[list[int]]", torch.cat(answer, dim=1).tolist())


def _generate(
    model: Any, inputs: Mapping[str, Any], ends: list[int], max_new_tokens: int
) -> Tensor:
    """Return new tokens [rows, new], greedy whatever the model's generation config says."""
    ids: Tensor = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        repetition_penalty=1.0,
        eos_token_id=ends,
        pad_token_id=ends[0],
    )
    return ids[:, inputs["input_ids"].shape[1] :]


def _padded_batches(
    model: Any, processor: Any, prompts: Sequence[Prompt], *, pad_left: bool, new_tokens: int
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Yield batches of whole prompts of similar length; single ones if they cannot be stacked."""
    tokenizer = processor.tokenizer
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    order = sorted(range(len(prompts)), key=lambda i: _prompt_length(prompts[i]))
    while order:
        longest = _prompt_length(prompts[order[-1]])
        indices = order[-max_batch_rows(model, longest + new_tokens) :]
        indices = indices[-max_prompts_read(model, [prompts[i] for i in indices], longest) :]
        if not pad_left:
            indices = _limit_logits(model, prompts, indices)
        del order[-len(indices) :]
        batch = _stack([prompts[i].inputs for i in indices], pad_left, padding)
        if batch is not None:
            yield indices, on_device(model, batch)
        else:
            for index in indices:
                yield [index], on_device(model, prompts[index].inputs)


def _stack(
    rows: Sequence[Mapping[str, Tensor]], pad_left: bool, padding: int
) -> dict[str, Tensor] | None:
    """Return the inputs of several prompts as one batch; None if their shapes do not allow it."""
    if len({tuple(row) for row in rows}) != 1:  # some have pictures, some do not
        return None
    batch: dict[str, Tensor] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name in _PADDING:
            filler = padding if name == "input_ids" else _PADDING[name]
            batch[name] = _pad([value[0] for value in values], pad_left, filler)[0]
        elif len({value.shape[1:] for value in values}) == 1:
            batch[name] = torch.cat(values)
        else:
            return None
    return batch


def _positions_before_answers(
    model: Any, prompts: Sequence[Prompt], indices: Sequence[int]
) -> Tensor:
    """Return the positions, in ascending order, at which a batch needs logits.

    All positions for a model that cannot leave out any.
    """
    longest = max(_prompt_length(prompts[index]) for index in indices)
    if not accepts_logits_to_keep(unwrap(model)):
        return torch.arange(longest)
    answered = torch.zeros(longest, dtype=torch.bool)
    for index in indices:
        mask = prompts[index].answer_mask
        answered[: len(mask)] |= mask
    return answered.nonzero()[:, 0] - 1


def _limit_logits(model: Any, prompts: Sequence[Prompt], indices: list[int]) -> list[int]:
    """Return as many of the last indices as there is memory for the logits of."""
    base = unwrap(model)
    width = base.config.get_text_config().vocab_size * (base.dtype.itemsize + _COPY_BYTES)
    budget = memory_budget(base.device)
    while len(indices) > 1:
        positions = len(_positions_before_answers(model, prompts, indices))
        if len(indices) * positions * width <= budget:
            break
        indices = indices[len(indices) // 2 :]
    return indices


@dataclass(frozen=True)
class AnswerLoss:
    """Negative log likelihood of a given answer."""

    nats: float
    """Sum over the answer's tokens and its end token."""
    tokens: int

    @property
    def per_token(self) -> float:
        """Mean over the tokens, in nats."""
        return self.nats / self.tokens


def answer_losses(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    capabilities: Capabilities,
    prompts: Sequence[Prompt],
) -> list[AnswerLoss]:
    """Return the teacher-forced loss of each finished conversation's answers, in their order.

    Args:
        model: The model, possibly in a PEFT wrapper.
        processor: Its processor.
        capabilities: What its architecture allows.
        prompts: Encoded with `answer_next=False`.
    """
    losses: list[AnswerLoss | None] = [None] * len(prompts)
    with evaluation_mode(model):
        if capabilities.shares_prefixes:
            base = unwrap(model)
            for batch in _prefix_batches(base, prompts, pad_left=False, new_tokens=0):
                found = _suffix_losses(base, batch, prompts)
                for index, loss in zip(batch.indices, found, strict=True):
                    losses[index] = loss
                del batch, found  # before the next one is prefilled
        else:
            padded = _padded_batches(model, processor, prompts, pad_left=False, new_tokens=0)
            for indices, inputs in padded:
                kept = _positions_before_answers(model, prompts, indices).to(model.device)
                keep = {"logits_to_keep": kept} if accepts_logits_to_keep(unwrap(model)) else {}
                logits = model(**inputs, **keep, use_cache=False).logits
                for row, index in enumerate(indices):
                    labelled = prompts[index].answer_mask.nonzero()[:, 0].to(logits.device)
                    targets = inputs["input_ids"][row, labelled]
                    places = torch.searchsorted(kept, labelled - 1)
                    losses[index] = _loss(logits[row, places], targets)
                del logits
    return [loss for loss in losses if loss is not None]


def _suffix_losses(model: Any, batch: _Batch, prompts: Sequence[Prompt]) -> Iterator[AnswerLoss]:
    hidden = model.model(
        input_ids=batch.input_ids,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        **cache_argument(batch.cache),
        use_cache=True,
    ).last_hidden_state  # [rows, suffix, width]
    prefix = batch.mask.shape[1] - batch.input_ids.shape[1]
    for row, index in enumerate(batch.indices):
        labelled = prompts[index].answer_mask.nonzero()[:, 0].to(hidden.device) - prefix
        logits = model.lm_head(hidden[row, labelled - 1])  # only where there are labels
        yield _loss(logits, batch.input_ids[row, labelled])


def _loss(logits: Tensor, targets: Tensor) -> AnswerLoss:
    total = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
    return AnswerLoss(total.item(), len(targets))
