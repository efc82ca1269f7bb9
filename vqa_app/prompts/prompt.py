"""Turn a conversation into model inputs, for training, serving, evaluation and the shell alike.

Text goes through the model's chat template (`chat_template.py`) and its tokenizer, pictures through
its image processor. Each picture's placeholder is expanded to its image tokens before the whole
text is tokenised at once, as `processor.apply_chat_template` does. In addition, this module returns
which tokens are answers and where each picture's tokens are, and it never reads anything that a
person types as an image token or a control token.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vqa_app.errors import ModelError, UsageError
from vqa_app.pictures.picture import Picture
from vqa_app.prompts.chat_template import (
    TEMPLATE_ARGUMENTS,
    Segment,
    TemplateInfo,
    image_token,
    render,
    template_info,
)
from vqa_app.prompts.conversation import Conversation
from vqa_app.prompts.image_inputs import ImageInputs, process_images

if TYPE_CHECKING:
    from torch import Tensor

_REQUIRES_PICTURE = frozenset({"Blip2Processor", "Kosmos2Processor"})
"""Processors of models that cannot run without a picture."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A conversation as model inputs."""

    inputs: dict[str, Tensor]
    """Keyword arguments of the model for a batch of one: `input_ids` [1, n], `attention_mask`
    [1, n], `pixel_values` (shape depends on the architecture), ... Later prompts share these
    tensors, so never change them in place."""
    answer_mask: Tensor
    """[n] bool: true for the tokens of the answers and their end tokens, without any newline after
    those."""
    answer_spans: tuple[tuple[int, int], ...]
    """Token span [start, end) of each answer in `answer_mask`."""
    pictures: tuple[Picture, ...]
    """The pictures, in the order in which the model consumes them."""
    image_spans: tuple[tuple[int, int], ...]
    """Token span [start, end) of each picture, from its first to its last image token."""

    def __len__(self) -> int:
        return int(self.inputs["input_ids"].shape[1])

    def with_last_answer_only(self) -> Prompt:
        """Return this prompt with only its last answer in `answer_mask`."""
        mask = self.answer_mask.clone()
        last = self.answer_spans[-1:]
        mask[: last[0][0] if last else len(mask)] = False
        return replace(self, answer_mask=mask, answer_spans=last)

    @property
    def image_tokens(self) -> int:
        """Number of image tokens."""
        return sum(end - start for start, end in self.image_spans)


def encode(
    processor: Any,
    conversation: Conversation,
    *,
    answer_next: bool,
    question_incomplete: bool = False,
) -> Prompt:
    """Turn a conversation into model inputs.

    Args:
        processor: The model's processor.
        conversation: The messages to encode.
        answer_next: Add the generation prompt, so that the model answers. False encodes a finished
            conversation, for training or scoring.
        question_incomplete: Return only the tokens that do not depend on the text of the last user
            message, to warm the cache with. Pictures after that text are left out.

    Raises:
        UsageError: `answer_next` is set, but the conversation does not end with a question.
        ModelError: The model cannot process these pictures, or requires one.
        DataError: The chat template cannot express the conversation.
    """
    if answer_next and not question_incomplete and not conversation.awaits_answer:
        raise UsageError("There is no question to answer.", "The last message must be the user's.")
    info = template_info(processor)
    segments = render(
        info, conversation, answer_next=answer_next, question_incomplete=question_incomplete
    )
    if not conversation.pictures and type(processor).__name__ in _REQUIRES_PICTURE:
        raise ModelError("This model needs a picture with the question.", "Add a picture.")
    placed = sum(s.text.count(info.image_token) for s in segments if s.kind == "template")
    pictures = conversation.pictures
    if question_incomplete:
        pictures = pictures[:placed]
    if placed != len(pictures):
        raise ModelError(
            f"The conversation has {len(pictures)} pictures, but the chat template places"
            f" {placed}.",
            "Ask about fewer pictures at once, or choose another model.",
        )
    images = process_images(processor, pictures)
    text, spans, image_chars = _expand(segments, info, images.expansions)
    ids, offsets = _tokenize(processor, info, text, spans)
    if question_incomplete:
        ids, offsets = _stable_prefix(processor, ids, offsets)
    answers = _token_ranges(offsets, _answer_chars(spans))
    return _assemble(processor, images, ids, offsets, answers, image_chars, pictures)


def template_text(processor: Any, conversation: Conversation, *, answer_next: bool) -> str:
    """Return the prompt as text with one placeholder per picture, for people and for logs."""
    segments = render(template_info(processor), conversation, answer_next=answer_next)
    return "".join(segment.text for segment in segments)


def prompt_hash(processor: Any) -> str:
    """Return 16 hex digits that change when a conversation would be rendered differently.

    They are a hash of the template, its arguments and the special tokens.
    """
    info = template_info(processor)
    parts = [info.source, TEMPLATE_ARGUMENTS, info.special_tokens, info.style, info.end_token]
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def end_token_ids(model: Any, processor: Any) -> set[int]:
    """Return all tokens that end an answer: of the generation config, tokenizer and template."""
    tokenizer = processor.tokenizer
    generation = getattr(model, "generation_config", None)
    configured = getattr(generation, "eos_token_id", None)
    ends = set(configured if isinstance(configured, list | tuple) else [configured])
    ends.add(tokenizer.eos_token_id)
    if end := template_info(processor).end_token:
        ends.add(tokenizer.convert_tokens_to_ids(end))
    return {int(token) for token in ends if token is not None}


def image_token_id(processor: Any) -> int:
    """Return the id of the token whose embeddings are replaced by image features.

    Gemma 3 has one token in the template and replaces another, which its tokenizer names.
    """
    tokenizer = processor.tokenizer
    for owner in (tokenizer, processor):
        if isinstance(value := getattr(owner, "image_token_id", None), int):
            return value
    return int(tokenizer.convert_tokens_to_ids(image_token(processor)))


def count_text_tokens(processor: Any, text: str) -> int:
    """Return the number of tokens of a text on its own, without special tokens."""
    with template_info(processor).lock:
        return len(_tokenize_part(processor.tokenizer, text, inside=False)[0])


def _expand(
    segments: Sequence[Segment], info: TemplateInfo, expansions: Sequence[str]
) -> tuple[str, list[tuple[str, tuple[int, int]]], list[tuple[int, int]]]:
    """Join the segments and expand the placeholders of pictures.

    Returns:
        The text, the kind and character span of every segment, and the character span of every
        picture.
    """
    text: list[str] = []
    spans: list[tuple[str, tuple[int, int]]] = []
    image_chars: list[tuple[int, int]] = []
    length = 0
    remaining = iter(expansions)
    for segment in segments:
        start = length
        is_template = segment.kind == "template"
        parts = segment.text.split(info.image_token) if is_template else [segment.text]
        for number, part in enumerate(parts):
            if number:
                expansion = next(remaining)
                image_chars.append((length, length + len(expansion)))
                text.append(expansion)
                length += len(expansion)
            text.append(part)
            length += len(part)
        spans.append((segment.kind, (start, length)))
    return "".join(text), spans, image_chars


def _tokenize(
    processor: Any, info: TemplateInfo, text: str, spans: Sequence[tuple[str, tuple[int, int]]]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return token ids and their character spans.

    Control tokens in message texts are cut in two, so that they are tokenised as text.
    """
    tokenizer = processor.tokenizer
    if not tokenizer.is_fast:
        raise ModelError(
            f"The tokenizer {type(tokenizer).__name__} does not report character offsets.",
            "Choose a model that has a tokenizer.json.",
        )
    trusted = [span for kind, span in spans if kind in ("template", "frame")]
    untrusted = [span for kind, span in spans if kind in ("text", "answer")]
    cuts: list[int] = []
    if info.control.search("".join(text[start:end] for start, end in untrusted)):
        starts = [start for start, _ in trusted]
        for match in re.finditer(f"(?=({info.control.pattern}))", text):
            start, end = match.span(1)
            at = bisect_left(starts, start + 1) - 1
            if end - start > 1 and not (at >= 0 and end <= trusted[at][1]):
                cuts.append(start + 1)
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    with info.lock:
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            part_ids, part_offsets = _tokenize_part(tokenizer, text[start:end], start > 0)
            ids += part_ids
            offsets += [(a + start, b + start) for a, b in part_offsets]
    if info.adds_bos and not any(tokenizer.bos_token in text[a:b] for a, b in trusted):
        ids.insert(0, tokenizer.bos_token_id)
        offsets.insert(0, (0, 0))
    return ids, offsets


def _tokenize_part(
    tokenizer: Any, text: str, inside: bool
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the tokens of a part of a text, and their character spans.

    A part from `inside` the text is tokenised after a newline, because SentencePiece would add a
    space at its beginning.
    """
    if inside:
        newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
        ids, offsets = _tokenize_part(tokenizer, "\n" + text, inside=False)
        if ids[: len(newline)] == newline:
            return ids[len(newline) :], [(a - 1, b - 1) for a, b in offsets[len(newline) :]]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], encoded["offset_mapping"]


def _stable_prefix(
    processor: Any, ids: list[int], offsets: list[tuple[int, int]]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the tokens up to the last added token; later ones may merge with text to follow."""
    added = processor.tokenizer.added_tokens_decoder
    length = next((i + 1 for i in reversed(range(len(ids))) if ids[i] in added), 0)
    return ids[:length], offsets[:length]


def _token_ranges(
    offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Return, for each span of characters [start, end), the tokens [first, last) overlapping it."""
    starts = [start for start, _ in offsets]
    ends = [end for _, end in offsets]
    ranges = []
    for start, end in spans:
        first = bisect_right(ends, start)
        ranges.append((first, max(first, bisect_left(starts, end))))
    return ranges


def _answer_chars(
    spans: Sequence[tuple[str, tuple[int, int]]],
) -> list[tuple[int, int]]:
    """Return the character span of each answer with its frame.

    The template writes something between any two answers.
    """
    answers: list[tuple[int, int]] = []
    inside = False
    for kind, (start, end) in spans:
        if kind not in ("answer", "frame"):
            inside = False
        elif inside:
            answers[-1] = (answers[-1][0], end)
        else:
            answers.append((start, end))
            inside = True
    return answers


def _image_spans(
    processor: Any,
    ids: list[int],
    offsets: Sequence[tuple[int, int]],
    image_chars: Sequence[tuple[int, int]],
) -> list[tuple[int, int]]:
    """Return the span from the first to the last image token of each picture.

    Raises:
        ModelError: A picture has no image tokens, or image tokens belong to no picture.
    """
    image_id = image_token_id(processor)
    spans: list[tuple[int, int]] = []
    found = 0
    for first, last in _token_ranges(offsets, image_chars):
        filled = [i for i in range(first, last) if ids[i] == image_id]
        found += len(filled)
        if type(processor).__name__ == "Kosmos2Processor":
            filled = filled[1:]  # the first `<image>` marks the start of the picture
        if not filled:
            raise ModelError(
                "A picture has no image tokens in the prompt.",
                "The model's processor is incomplete.",
            )
        spans.append((filled[0], filled[-1] + 1))
    if ids.count(image_id) != found:
        raise ModelError(
            "The model's tokenizer turns plain text into image tokens.", "Choose another model."
        )
    return spans


def _assemble(
    processor: Any,
    images: ImageInputs,
    ids: list[int],
    offsets: list[tuple[int, int]],
    answers: list[tuple[int, int]],
    image_chars: Sequence[tuple[int, int]],
    pictures: tuple[Picture, ...],
) -> Prompt:
    import torch

    kind = type(processor).__name__
    inputs: dict[str, Any] = {}
    mask = [False] * len(ids)
    for first, last in answers:
        mask[first:last] = [True] * (last - first)
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
    inputs |= images.inputs
    if images.tiles is not None:
        from vqa_app.transformers_internals import mllama_cross_attention_mask

        mask_of_tiles = mllama_cross_attention_mask(processor, ids, images.tiles)
        inputs["cross_attention_mask"] = mask_of_tiles
    return Prompt(
        inputs=inputs,
        answer_mask=torch.tensor(mask, dtype=torch.bool),
        answer_spans=tuple(answers),
        pictures=pictures,
        image_spans=tuple(spans),
    )


def _token_types(processor: Any, ids: list[int], mask: list[bool]) -> dict[str, Any]:
    """Return `token_type_ids` or `mm_token_type_ids` for architectures that use them."""
    import torch

    if getattr(processor, "return_mm_token_type_ids", False):
        names = processor.model_input_names
        key = "token_type_ids" if "token_type_ids" in names else "mm_token_type_ids"
        return {key: torch.tensor(processor.create_mm_token_type_ids([ids]))}
    if type(processor).__name__ == "PaliGemmaProcessor":
        first = mask.index(True) if True in mask else len(ids)
        # 0: prefix with bidirectional attention; 1: causal, from the first answer on.
        return {"token_type_ids": torch.tensor([[0] * first + [1] * (len(ids) - first)])}
    return {}
