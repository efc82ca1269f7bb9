"""Convert rows to samples: the token sequences that are trained on.

VQA data sets merge the questions about one picture into one conversation, as LLaVA-1.5 does with
VQA v2 to save time. They are independent questions all the same: the correct answers to earlier
questions reveal more than the picture does, and are not available when the model is used. Such
questions are therefore trained separately, packed into one sequence behind one copy of the picture:
each question attends only to the picture and itself, and its positions continue from the picture.
Losses and gradients equal those of separate sequences, for a fraction of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np

from finetune.data.read import PictureSource, Row, Turn
from vqa_app.pictures.picture import Picture
from vqa_app.prompts.conversation import Conversation, Message

TurnMode: TypeAlias = Literal["auto", "together", "apart"]

SHORT_ANSWER_WORDS = 3
MAX_PACKED_TOKENS = 2048
"""Longest packed sequence, in tokens; further questions about the picture go into another one."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A token sequence as the model reads it, without the pixels of its pictures."""

    row: Row
    input_ids: np.ndarray
    """[n] int32"""
    answer_mask: np.ndarray
    """[n] bool; true for the tokens that are trained on."""
    sources: tuple[PictureSource, ...]
    """The pictures, in the order in which the model consumes them."""
    digests: tuple[str, ...]
    """The digests of the pictures."""
    segments: np.ndarray | None = None
    """[n] int32, if questions share a prefix: 0 in the prefix, then 1, 2, ... per question."""
    token_inputs: dict[str, np.ndarray] = field(default_factory=dict)
    """Further model inputs with one value per token, such as `token_type_ids`; [n] each."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @cached_property
    def trained_tokens(self) -> int:
        """Number of tokens that are trained on."""
        return int(self.answer_mask.sum())

    @cached_property
    def positions_needed(self) -> int:
        """Number of positions, which must fit into the model's context."""
        return int(self.positions.max()) + 1

    @cached_property
    def positions(self) -> np.ndarray:
        """[n] int64; the positions of each question continue from the prefix."""
        count = np.arange(len(self))
        if self.segments is None:
            return count
        starts = np.flatnonzero(np.diff(self.segments, prepend=-1))
        first = np.repeat(starts, np.diff(starts, append=len(self)))
        prefix = int((self.segments == 0).sum())
        return np.where(self.segments == 0, count, count - first + prefix)


def make_samples(
    row: Row, conversation: Conversation, processor: Any, *, turns: TurnMode, share_prefix: bool
) -> list[Sample]:
    """Tokenise a row with the chat template, exactly as for inference.

    Args:
        row: The row.
        conversation: The row with its pictures opened.
        processor: The model's processor.
        turns: "together" puts earlier turns before a question, "apart" trains each question alone;
            "auto" does the latter for rows with pictures whose answers have at most three words.
        share_prefix: Whether the model supports sequences in which questions share a prefix.
    """
    answers = [message.text for message in conversation.messages if message.role == "assistant"]
    short = all(len(answer.split()) <= SHORT_ANSWER_WORDS for answer in answers)
    apart = turns == "apart" or (turns == "auto" and short and bool(conversation.pictures))
    if not apart or len(answers) < 2:
        return [_tokenize(row, conversation, processor)]
    questions = [_tokenize(*part, processor) for part in _split_questions(row, conversation)]
    return _pack(row, questions, processor) if share_prefix else questions


def _tokenize(row: Row, conversation: Conversation, processor: Any) -> Sample:
    from vqa_app.prompts.prompt import encode

    prompt = encode(processor, conversation, answer_next=False)
    length = prompt.inputs["input_ids"].shape[1]
    token_inputs = {
        name: value[0].numpy()
        for name, value in prompt.inputs.items()
        if name not in ("input_ids", "attention_mask") and tuple(value.shape) == (1, length)
    }
    source_of: dict[Picture, PictureSource] = dict(
        zip(conversation.pictures, row.pictures, strict=True)
    )
    answer_mask = prompt.answer_mask.numpy()
    answers = (turn for turn in row.turns if turn.role == "assistant")
    for turn, (start, end) in zip(answers, prompt.answer_spans, strict=True):
        answer_mask[start:end] &= turn.trained
    return Sample(
        row=row,
        input_ids=prompt.inputs["input_ids"][0].numpy().astype(np.int32),
        answer_mask=answer_mask,
        sources=tuple(source_of[picture] for picture in prompt.pictures),
        digests=tuple(picture.digest for picture in prompt.pictures),
        token_inputs=token_inputs,
    )


def _split_questions(row: Row, conversation: Conversation) -> list[tuple[Row, Conversation]]:
    """Return each question alone: system message, all pictures shown so far, question, answer.

    Questions whose answer is not to be trained are left out.
    """
    opening = 1 if conversation.system is not None else 0
    questions = []
    pictures: tuple[Picture, ...] = ()
    sources: tuple[PictureSource, ...] = ()
    number = 0
    for position in range(opening, len(row.turns) - 1, 2):
        question, answer = conversation.messages[position : position + 2]
        turn = row.turns[position]
        if not row.turns[position + 1].trained:
            pictures += question.pictures
            sources += turn.pictures
            continue
        question_conversation = Conversation(
            (
                *conversation.messages[:opening],
                Message("user", (*pictures, *question.parts)),
                answer,
            )
        )
        question_row = replace(
            row,
            id=f"{row.id}#{number + 1}",
            turns=(
                *row.turns[:opening],
                Turn("user", (*sources, *turn.parts)),
                row.turns[position + 1],
            ),
            references=row.references[number : number + 1],
        )
        questions.append((question_row, question_conversation))
        number += 1
        pictures += question.pictures
        sources += turn.pictures
    return questions


def _pack(row: Row, questions: Sequence[Sample], processor: Any) -> list[Sample]:
    """Pack questions about the same pictures into sequences with one copy of their prefix."""
    from vqa_app.prompts.prompt import image_token_id

    image = image_token_id(processor)
    packed: list[Sample] = []
    remaining = list(questions)
    while remaining:
        first = remaining[0]
        group = [sample for sample in remaining if sample.digests == first.digests]
        remaining = [sample for sample in remaining if sample.digests != first.digests]
        prefix = _common_prefix(group)
        image_positions = np.flatnonzero(first.input_ids == image)
        splits_pictures = len(image_positions) > 0 and prefix <= image_positions[-1]
        if len(group) == 1 or splits_pictures or first.token_inputs:
            packed += group
            continue
        start = 0
        while start < len(group):
            end, length = start + 1, len(group[start])
            while end < len(group) and length + len(group[end]) - prefix <= MAX_PACKED_TOKENS:
                length += len(group[end]) - prefix
                end += 1
            packed.append(_join(row, group[start:end], prefix))
            start = end
    return packed


def _join(row: Row, group: Sequence[Sample], prefix: int) -> Sample:
    lengths = [prefix] + [len(sample) - prefix for sample in group]
    first = group[0]
    return Sample(
        row=row,
        input_ids=np.concatenate(
            [first.input_ids[:prefix]] + [s.input_ids[prefix:] for s in group]
        ),
        answer_mask=np.concatenate(
            [first.answer_mask[:prefix]] + [s.answer_mask[prefix:] for s in group]
        ),
        sources=first.sources,
        digests=first.digests,
        segments=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
    )


def _common_prefix(group: Sequence[Sample]) -> int:
    """Return the number of leading tokens that all samples share, answers excluded."""
    shortest = min(len(sample) for sample in group)
    first = group[0].input_ids[:shortest]
    same = np.ones(shortest, dtype=bool)
    for sample in group:
        same &= (sample.input_ids[:shortest] == first) & ~sample.answer_mask[:shortest]
    return int(np.argmin(same)) if not same.all() else shortest - 1
