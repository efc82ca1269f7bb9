"""Conversation → model inputs: the one renderer, for training, serving, evaluation and the shell.

Text goes through the model's chat template (`chat_template.py`) and its tokenizer, pictures through
its image processor; each picture's placeholder is expanded to its image tokens before the whole
text is tokenised in one go, as `processor.apply_chat_template` does. What this adds: which tokens
are answers, where each picture's tokens are, and that nothing a person types is ever read as a
placeholder or control token.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vqa_app.errors import ModelError, UsageError
from vqa_app.pictures.picture import Picture
from vqa_app.prompts.chat_template import (
    TEMPLATE_ARGUMENTS,
    Layout,
    Piece,
    image_token,
    layout,
    render,
)
from vqa_app.prompts.conversation import Conversation
from vqa_app.prompts.image_inputs import Seen, see

if TYPE_CHECKING:
    from torch import Tensor

_PICTURE_ONLY = frozenset({"Blip2Processor", "Kosmos2Processor"})
"""Their models have no path without a picture."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A conversation as a model reads it."""

    inputs: dict[str, Tensor]
    """Keyword arguments of the model, a batch of one: `input_ids` [1, n], `attention_mask` [1, n],
    `pixel_values` (shape as the architecture has it), ... Shared with later prompts: never change
    them in place."""
    answer_mask: Tensor
    """[n] bool: exactly the tokens of the answers and their end tokens (no newline after them)."""
    pictures: tuple[Picture, ...]
    """In the order in which the model consumes them."""
    image_spans: tuple[tuple[int, int], ...]
    """Token span [start, end) of each picture: from its first to its last image token."""

    def __len__(self) -> int:
        return self.inputs["input_ids"].shape[1]

    @property
    def image_tokens(self) -> int:
        return sum(end - start for start, end in self.image_spans)


def encode(
    processor: Any,
    conversation: Conversation,
    *,
    answer_next: bool,
    question_incomplete: bool = False,
) -> Prompt:
    """Turns a conversation into model inputs.

    Args:
        answer_next: the model is to answer: what the template puts in front of an answer comes
            last. False renders a finished conversation (training, scoring).
        question_incomplete: return only the tokens that do not depend on the text of the last user
            message, to warm the cache with. Pictures after that text are left out.

    Raises:
        UsageError: `answer_next` without a question.
        ModelError: the model cannot take these pictures, or cannot do without one.
        DataError: the chat template cannot express the conversation.
    """
    if answer_next and not question_incomplete and not conversation.awaits_answer:
        raise UsageError("There is no question to answer.", "The last message must be the user's.")
    known = layout(processor)
    pieces = render(
        known, conversation, answer_next=answer_next, question_incomplete=question_incomplete
    )
    if not conversation.pictures and type(processor).__name__ in _PICTURE_ONLY:
        raise ModelError("This model answers about pictures only.", "Add a picture.")
    placed = sum(p.text.count(known.image_token) for p in pieces if p.kind == "template")
    pictures = conversation.pictures
    if question_incomplete:
        pictures = pictures[:placed]
    if placed != len(pictures):
        raise ModelError(
            f"The conversation holds {len(pictures)} pictures, the chat template places {placed}.",
            "Ask about fewer pictures at once, or choose another model.",
        )
    seen = see(processor, pictures)
    text, spans, image_chars = _expand(pieces, known, seen.expansions)
    ids, offsets = _tokenize(processor, known, text, spans)
    if question_incomplete:
        ids, offsets = _certain(processor, ids, offsets)
    answers = [span for kind, span in spans if kind in ("answer", "frame") and span[0] < span[1]]
    mask = _mask(offsets, answers)
    return _assemble(processor, seen, ids, offsets, mask, image_chars, pictures)


def template_text(processor: Any, conversation: Conversation, *, answer_next: bool) -> str:
    """The prompt as text, one placeholder for each picture: for people to read and for logs."""
    pieces = render(layout(processor), conversation, answer_next=answer_next)
    return "".join(piece.text for piece in pieces)


def prompt_hash(processor: Any) -> str:
    """16 hex digits over all that shapes a prompt (template, its arguments, special tokens): they
    change when the same conversation would give other tokens.
    """
    known = layout(processor)
    parts = [known.source, TEMPLATE_ARGUMENTS, known.special_tokens, known.style, known.end_token]
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def end_token_ids(model: Any, processor: Any) -> set[int]:
    """Every token that ends an answer: the generation config's, the tokenizer's and the
    template's.
    """
    tokenizer = processor.tokenizer
    generation = getattr(model, "generation_config", None)
    configured = getattr(generation, "eos_token_id", None)
    ends = set(configured if isinstance(configured, list | tuple) else [configured])
    ends.add(tokenizer.eos_token_id)
    if end := layout(processor).end_token:
        ends.add(tokenizer.convert_tokens_to_ids(end))
    return {int(token) for token in ends if token is not None}


def image_token_id(processor: Any) -> int:
    """The id at which a picture's features are put in.

    Gemma 3 writes one token for a picture and fills another, which its tokenizer names.
    """
    tokenizer = processor.tokenizer
    for owner in (tokenizer, processor):
        if isinstance(value := getattr(owner, "image_token_id", None), int):
            return value
    return tokenizer.convert_tokens_to_ids(image_token(processor))


def count_text_tokens(processor: Any, text: str) -> int:
    """Tokens of a text by itself."""
    with layout(processor).lock:
        return len(_tokenize_piece(processor.tokenizer, text, inside=False)[0])


def _expand(
    pieces: Sequence[Piece], known: Layout, expansions: Sequence[str]
) -> tuple[str, list[tuple[str, tuple[int, int]]], list[tuple[int, int]]]:
    """Joins the pieces, pictures expanded.

    Returns:
        The text; kind and character span of every piece; character span of every picture.
    """
    text: list[str] = []
    spans: list[tuple[str, tuple[int, int]]] = []
    image_chars: list[tuple[int, int]] = []
    length = 0
    left = iter(expansions)
    for piece in pieces:
        start = length
        parts = piece.text.split(known.image_token) if piece.kind == "template" else [piece.text]
        for number, part in enumerate(parts):
            if number:
                expansion = next(left)
                image_chars.append((length, length + len(expansion)))
                text.append(expansion)
                length += len(expansion)
            text.append(part)
            length += len(part)
        spans.append((piece.kind, (start, length)))
    return "".join(text), spans, image_chars


def _tokenize(
    processor: Any, known: Layout, text: str, spans: Sequence[tuple[str, tuple[int, int]]]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids and character spans. Control tokens in people's texts are cut in two and so stay
    text.
    """
    tokenizer = processor.tokenizer
    if not tokenizer.is_fast:
        raise ModelError(
            f"The tokenizer {type(tokenizer).__name__} does not say what its tokens cover.",
            "Choose a model that has a tokenizer.json.",
        )
    own = [span for kind, span in spans if kind in ("template", "frame")]
    people = [span for kind, span in spans if kind in ("text", "answer")]
    cuts: list[int] = []
    if known.control.search("".join(text[start:end] for start, end in people)):
        starts = [start for start, _ in own]
        for match in re.finditer(f"(?=({known.control.pattern}))", text):
            start, end = match.span(1)
            at = bisect_left(starts, start + 1) - 1
            if end - start > 1 and not (at >= 0 and end <= own[at][1]):
                cuts.append(start + 1)
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    with known.lock:
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            piece_ids, piece_offsets = _tokenize_piece(tokenizer, text[start:end], start > 0)
            ids += piece_ids
            offsets += [(a + start, b + start) for a, b in piece_offsets]
    if known.adds_bos and not any(tokenizer.bos_token in text[a:b] for a, b in own):
        ids.insert(0, tokenizer.bos_token_id)
        offsets.insert(0, (0, 0))
    return ids, offsets


def _tokenize_piece(
    tokenizer: Any, text: str, inside: bool
) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokens of a text. One from inside a text goes behind a newline, so that SentencePiece adds no
    space.
    """
    if inside:
        newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
        ids, offsets = _tokenize_piece(tokenizer, "\n" + text, inside=False)
        if ids[: len(newline)] == newline:
            return ids[len(newline) :], [(a - 1, b - 1) for a, b in offsets[len(newline) :]]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], encoded["offset_mapping"]


def _certain(
    processor: Any, ids: list[int], offsets: list[tuple[int, int]]
) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens up to the last added token: what follows may merge with text that is still to
    come.
    """
    added = processor.tokenizer.added_tokens_decoder
    length = next((i + 1 for i in reversed(range(len(ids))) if ids[i] in added), 0)
    return ids[:length], offsets[:length]


def _token_ranges(
    offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """For each span of characters [start, end) the tokens [first, last) that overlap it."""
    starts = [start for start, _ in offsets]
    ends = [end for _, end in offsets]
    ranges = []
    for start, end in spans:
        first = bisect_right(ends, start)
        ranges.append((first, max(first, bisect_left(starts, end))))
    return ranges


def _mask(offsets: Sequence[tuple[int, int]], answers: Sequence[tuple[int, int]]) -> list[bool]:
    mask = [False] * len(offsets)
    for first, last in _token_ranges(offsets, answers):
        mask[first:last] = [True] * (last - first)
    return mask


def _image_spans(
    processor: Any,
    ids: list[int],
    offsets: Sequence[tuple[int, int]],
    image_chars: Sequence[tuple[int, int]],
) -> list[tuple[int, int]]:
    """From the first to the last image token of each picture.

    Raises:
        ModelError: a picture without image tokens, or image tokens without a picture.
    """
    image_id = image_token_id(processor)
    spans: list[tuple[int, int]] = []
    found = 0
    for first, last in _token_ranges(offsets, image_chars):
        filled = [i for i in range(first, last) if ids[i] == image_id]
        found += len(filled)
        if type(processor).__name__ == "Kosmos2Processor":
            filled = filled[1:]  # the first `<image>` opens the picture
        if not filled:
            raise ModelError(
                "A picture has no image tokens in the prompt.",
                "The model's processor is incomplete.",
            )
        spans.append((filled[0], filled[-1] + 1))
    if ids.count(image_id) != found:
        raise ModelError(
            "The model's tokenizer makes image tokens of plain text.", "Choose another model."
        )
    return spans


def _assemble(
    processor: Any,
    seen: Seen,
    ids: list[int],
    offsets: list[tuple[int, int]],
    mask: list[bool],
    image_chars: Sequence[tuple[int, int]],
    pictures: tuple[Picture, ...],
) -> Prompt:
    import torch

    kind = type(processor).__name__
    inputs: dict[str, Any] = {}
    spans = _image_spans(processor, ids, offsets, image_chars)
    if kind == "Kosmos2Processor":
        position_mask = torch.zeros(1, len(ids), dtype=torch.long)
        for start, end in spans:
            first_id = processor.tokenizer.unk_token_id + 1
            ids[start:end] = range(first_id, first_id + end - start)
            position_mask[:, start:end] = 1
        if spans:
            inputs["image_embeds_position_mask"] = position_mask
    inputs["input_ids"] = torch.tensor([ids], dtype=torch.long)
    inputs["attention_mask"] = torch.ones(1, len(ids), dtype=torch.long)
    inputs |= _token_types(processor, ids, mask)
    inputs |= seen.inputs
    if seen.tiles is not None:
        inputs["cross_attention_mask"] = _cross_attention_mask(processor, ids, seen.tiles)
    return Prompt(
        inputs=inputs,
        answer_mask=torch.tensor(mask, dtype=torch.bool),
        pictures=pictures,
        image_spans=tuple(spans),
    )


def _token_types(processor: Any, ids: list[int], mask: list[bool]) -> dict[str, Any]:
    """`token_type_ids` or `mm_token_type_ids`, where the architecture has them."""
    import torch

    if getattr(processor, "return_mm_token_type_ids", False):
        names = processor.model_input_names
        key = "token_type_ids" if "token_type_ids" in names else "mm_token_type_ids"
        return {key: torch.tensor(processor.create_mm_token_type_ids([ids]))}
    if type(processor).__name__ == "PaliGemmaProcessor":
        first = mask.index(True) if True in mask else len(ids)
        # 0: prefix, seen by all of it; 1: from the first answer on, causal.
        return {"token_type_ids": torch.tensor([[0] * first + [1] * (len(ids) - first)])}
    return {}


def _cross_attention_mask(processor: Any, ids: list[int], tiles: Any) -> Any:
    import torch
    from transformers.models.mllama.processing_mllama import (
        convert_sparse_cross_attention_mask_to_dense,
        get_cross_attention_token_mask,
    )

    dense = convert_sparse_cross_attention_mask_to_dense(
        [get_cross_attention_token_mask(ids, processor.image_token_id)],
        num_tiles=tiles,
        max_num_tiles=processor.image_processor.max_image_tiles,
        length=len(ids),
    )
    return torch.as_tensor(dense)
