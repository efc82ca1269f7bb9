"""Many questions answered at once: greedy, batched, each picture looked at once.

Evaluation asks many questions about one picture. For LLaVA models everything up to the picture's
end is computed once and its keys and values are shared by the picture's questions; other
architectures answer left-padded batches through `generate`. Both give the tokens that a question
gets alone.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, LlavaForConditionalGeneration

from vqa_app.devices import free_memory
from vqa_app.engine.vision import on_device
from vqa_app.models.architecture import Capabilities, unwrap
from vqa_app.prompts.prompt import Prompt, end_token_ids
from vqa_app.transformers_internals import cache_argument

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

MOST_ROWS = 128
"""Questions in one batch; more bring no speed."""
_CPU_CACHE_BYTES = 1 << 30
_PADDED = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0, "mm_token_type_ids": 0}
"""Inputs with a value for each token, and their padding (of input_ids: the tokenizer's own)."""


@contextlib.contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode without gradients; autocast where trained fp32 weights sit in a 16-bit model."""
    dtypes = {p.dtype for p in model.parameters() if p.dtype.is_floating_point}
    half = next((d for d in (torch.bfloat16, torch.float16) if d in dtypes), None)
    mixed = half is not None and len(dtypes) > 1
    training = model.training
    model.eval()
    try:
        with (
            torch.no_grad(),
            torch.autocast(model.device.type, half or torch.bfloat16, enabled=mixed),
        ):
            yield
    finally:
        model.train(training)


def max_batch_rows(model: PreTrainedModel, tokens: int) -> int:
    """How many sequences of so many tokens may be in memory at once."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_per_row = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize * tokens
    budget = _CPU_CACHE_BYTES
    if model.device.type == "cuda":
        budget = free_memory(model.device) // 4
    return max(1, min(MOST_ROWS, budget // max(1, bytes_per_row)))


@dataclass(frozen=True)
class _Batch:
    """Continuations of prefixes of one length."""

    indices: list[int]
    """Which prompts these are."""
    cache: DynamicCache
    input_ids: torch.Tensor
    """[rows, suffix] what follows the prefix."""
    mask: torch.Tensor
    """[rows, prefix + suffix] 1 where a token is."""

    @property
    def positions(self) -> torch.Tensor:
        """[rows, suffix]"""
        counted = self.mask.long().cumsum(-1) - 1
        return counted.clamp(min=0)[:, -self.input_ids.shape[1] :]


def _prefix_length(prompt: Prompt) -> int:
    return prompt.image_spans[-1][1] if prompt.image_spans else 0


def _prefix_batches(
    model: LlavaForConditionalGeneration, prompts: Sequence[Prompt], pad_left: bool, grows_by: int
) -> Iterator[_Batch]:
    """Each prompt's remainder, batched, on top of the keys and values of its picture."""
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        buckets[_prefix_length(prompt), len(prompt.image_spans)].append(index)
    for (prefix, _), members in buckets.items():
        longest = max(prompts[i].inputs["input_ids"].shape[1] for i in members) + grows_by
        rows = max_batch_rows(model, longest)
        for start in range(0, len(members), 4 * rows):  # questions about a picture lie side by side
            chunk = members[start : start + 4 * rows]
            cache, row_of = _prefill(model, [prompts[i] for i in chunk], prefix)
            order = sorted(
                range(len(chunk)), key=lambda k: prompts[chunk[k]].inputs["input_ids"].shape[1]
            )
            for first in range(0, len(order), rows):
                batch = order[first : first + rows]
                selected = torch.tensor([row_of[k] for k in batch], device=model.device)
                suffixes = [prompts[chunk[k]].inputs["input_ids"][0, prefix:] for k in batch]
                ids, mask = _pad(suffixes, pad_left)
                whole = torch.cat([mask.new_ones(len(batch), prefix), mask], dim=1)
                yield _Batch(
                    [chunk[k] for k in batch],
                    DynamicCache(
                        (layer.keys[selected], layer.values[selected]) for layer in cache.layers
                    )
                    if prefix
                    else DynamicCache(config=model.config),
                    ids.to(model.device),
                    whole.to(model.device),
                )


def _prefill(
    model: LlavaForConditionalGeneration, prompts: Sequence[Prompt], prefix: int
) -> tuple[DynamicCache, list[int]]:
    """Keys and values of the different prefixes, and which of them each prompt has."""
    cache = DynamicCache(config=model.config)
    rows: dict[tuple[Any, ...], int] = {}
    first: list[Prompt] = []
    row_of = []
    for prompt in prompts:
        key = (prompt.pictures, tuple(prompt.inputs["input_ids"][0, :prefix].tolist()))
        if key not in rows:
            rows[key] = len(first)
            first.append(prompt)
        row_of.append(rows[key])
    if prefix:
        inputs = {"input_ids": torch.cat([p.inputs["input_ids"][:, :prefix] for p in first])}
        inputs["pixel_values"] = torch.cat([p.inputs["pixel_values"] for p in first])
        model.model(**on_device(model, inputs), **cache_argument(cache), use_cache=True)
    return cache, row_of


def _pad(
    rows: Sequence[torch.Tensor], left: bool, value: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of different lengths as one [rows, longest] tensor, and its mask."""
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
    """The greedy answers to prompts rendered with `answer_next=True`, stripped, in their order."""
    ends = sorted(end_token_ids(model, processor))
    answers = [""] * len(prompts)
    with evaluation_mode(model):
        if capabilities.shares_prefixes:
            base = unwrap(model)
            for batch in _prefix_batches(base, prompts, pad_left=True, grows_by=max_new_tokens):
                for index, ids in zip(
                    batch.indices, _greedy(base, batch, ends, max_new_tokens), strict=True
                ):
                    answers[index] = _text(processor, ids, ends)
        else:
            for indices, inputs in _padded_batches(model, processor, prompts):
                new = _generate(model, inputs, ends, max_new_tokens)
                for index, ids in zip(indices, new.tolist(), strict=True):
                    answers[index] = _text(processor, ids, ends)
    return answers


def _text(processor: ProcessorMixin, ids: list[int], ends: list[int]) -> str:
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return processor.tokenizer.decode(
        ids[:stop], skip_special_tokens=True, clean_up_tokenization_spaces=False
    ).strip()


def _greedy(
    model: LlavaForConditionalGeneration, batch: _Batch, ends: list[int], max_new_tokens: int
) -> list[list[int]]:
    """Token ids of each row's answer; what follows its end token means nothing."""
    end_ids = torch.tensor(ends, device=model.device)
    ids, mask, positions = batch.input_ids, batch.mask, batch.positions
    ended = torch.zeros(len(ids), dtype=torch.bool, device=model.device)
    answer: list[torch.Tensor] = []
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
    return torch.cat(answer, dim=1).tolist()


def _generate(
    model: PreTrainedModel, inputs: dict[str, Any], ends: list[int], max_new_tokens: int
) -> torch.Tensor:
    """[rows, new] tokens of `generate`, greedy whatever the model's own generation config says."""
    ids = model.generate(
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
    model: PreTrainedModel, processor: ProcessorMixin, prompts: Sequence[Prompt], left: bool = True
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Batches of whole prompts of about one length; singles where inputs cannot be stacked."""
    tokenizer = processor.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    order = sorted(range(len(prompts)), key=lambda i: prompts[i].inputs["input_ids"].shape[1])
    while order:
        rows = max_batch_rows(model, prompts[order[-1]].inputs["input_ids"].shape[1])
        indices, order = order[-rows:], order[:-rows]
        batch = _stack([prompts[i].inputs for i in indices], left, pad)
        if batch is not None:
            yield indices, on_device(model, batch)
        else:
            for index in indices:
                yield [index], on_device(model, prompts[index].inputs)


def _stack(rows: list[dict[str, Any]], left: bool, pad: int) -> dict[str, Any] | None:
    """One batch of several prompts' inputs; None where their shapes do not allow it."""
    if len({tuple(row) for row in rows}) != 1:  # some have pictures, some do not
        return None
    batch: dict[str, Any] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name in _PADDED:
            filler = pad if name == "input_ids" else _PADDED[name]
            batch[name] = _pad([value[0] for value in values], left, filler)[0]
        elif len({value.shape[1:] for value in values}) == 1:
            batch[name] = torch.cat(values)
        else:
            return None
    return batch


@dataclass(frozen=True)
class AnswerLoss:
    """How unlikely a given answer is."""

    nats: float
    """Summed over the answer's tokens and its end token."""
    tokens: int

    @property
    def per_token(self) -> float:
        return self.nats / self.tokens


def answer_losses(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    capabilities: Capabilities,
    prompts: Sequence[Prompt],
) -> list[AnswerLoss]:
    """Teacher-forced loss of each finished conversation's answers, in their order."""
    losses: list[AnswerLoss | None] = [None] * len(prompts)
    with evaluation_mode(model):
        if capabilities.shares_prefixes:
            base = unwrap(model)
            for batch in _prefix_batches(base, prompts, pad_left=False, grows_by=0):
                for index, loss in zip(
                    batch.indices, _suffix_losses(base, batch, prompts), strict=True
                ):
                    losses[index] = loss
        else:
            for indices, inputs in _padded_batches(model, processor, prompts, left=False):
                logits = model(**inputs, use_cache=False).logits
                for row, index in enumerate(indices):
                    wanted = prompts[index].answer_mask.nonzero()[:, 0].to(logits.device)
                    targets = inputs["input_ids"][row, wanted]
                    losses[index] = _loss(logits[row, wanted - 1], targets)
    return [loss for loss in losses if loss is not None]


def _suffix_losses(
    model: LlavaForConditionalGeneration, batch: _Batch, prompts: Sequence[Prompt]
) -> Iterator[AnswerLoss]:
    hidden = model.model(
        input_ids=batch.input_ids,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        **cache_argument(batch.cache),
        use_cache=True,
    ).last_hidden_state  # [rows, suffix, width]
    prefix = batch.mask.shape[1] - batch.input_ids.shape[1]
    for row, index in enumerate(batch.indices):
        wanted = prompts[index].answer_mask.nonzero()[:, 0].to(hidden.device) - prefix
        logits = model.lm_head(hidden[row, wanted - 1])  # only where there are labels
        yield _loss(logits, batch.input_ids[row, wanted])


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> AnswerLoss:
    total = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
    return AnswerLoss(total.item(), len(targets))
