"""Row → samples: the tokens that train.

VQA data merges the questions about one picture into one conversation (LLaVA-1.5 does so with VQA v2
to save time). They are separate questions all the same: a right answer that stands above the next
question gives away more than the picture does, and nobody will put it there when the model is used.
Such turns are trained apart: all of them in one sequence behind one copy of the picture, where each
sees the picture and itself only and its positions go on from the picture. Losses and gradients are
those of asking each question alone, at a fraction of the tokens.
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
LONGEST_SEQUENCE = 2048
"""Questions about one picture go on in another sequence beyond so many tokens."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A sequence as the model reads it, without its pictures' pixels."""

    row: Row
    input_ids: np.ndarray
    """[n] int32"""
    answer_mask: np.ndarray
    """[n] bool: the tokens that are trained."""
    sources: tuple[PictureSource, ...]
    """The pictures, in the order in which the model consumes them."""
    digests: tuple[str, ...]
    """Theirs."""
    segments: np.ndarray | None = None
    """[n] int32 where questions share a prefix: 0 in the prefix, then 1, 2, ... for each
    question."""
    token_inputs: dict[str, np.ndarray] = field(default_factory=dict)
    """[n] each: further model inputs with a value for each token (`token_type_ids` and such)."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @cached_property
    def trained_tokens(self) -> int:
        """How many tokens are trained."""
        return int(self.answer_mask.sum())

    @cached_property
    def positions_needed(self) -> int:
        """Positions that the model needs: what has to fit into its context."""
        return int(self.positions.max()) + 1

    @cached_property
    def positions(self) -> np.ndarray:
        """[n] int64: each question's go on from the prefix."""
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
    """Renders a row with the one renderer that serving uses too.

    Args:
        conversation: the row's, pictures opened.
        turns: together: one sequence, earlier turns in front; apart: each question alone; auto:
            apart for rows with pictures whose answers are all of three words at most.
        share_prefix: the model takes sequences in which questions share a prefix.
    """
    answers = [message.text for message in conversation.messages if message.role == "assistant"]
    short = all(len(answer.split()) <= SHORT_ANSWER_WORDS for answer in answers)
    apart = turns == "apart" or (turns == "auto" and short and bool(conversation.pictures))
    if not apart or len(answers) < 2:
        return [_sample(row, conversation, processor)]
    alone = [_sample(*question, processor) for question in _questions(row, conversation)]
    return _packed(row, alone, processor) if share_prefix else alone


def _sample(row: Row, conversation: Conversation, processor: Any) -> Sample:
    from vqa_app.prompts.prompt import encode

    prompt = encode(processor, conversation, answer_next=False)
    length = prompt.inputs["input_ids"].shape[1]
    further = {
        name: value[0].numpy()
        for name, value in prompt.inputs.items()
        if name not in ("input_ids", "attention_mask") and tuple(value.shape) == (1, length)
    }
    source_of: dict[Picture, PictureSource] = dict(
        zip(conversation.pictures, row.pictures, strict=True)
    )
    return Sample(
        row=row,
        input_ids=prompt.inputs["input_ids"][0].numpy().astype(np.int32),
        answer_mask=prompt.answer_mask.numpy(),
        sources=tuple(source_of[picture] for picture in prompt.pictures),
        digests=tuple(picture.digest for picture in prompt.pictures),
        token_inputs=further,
    )


def _questions(row: Row, conversation: Conversation) -> list[tuple[Row, Conversation]]:
    """Every question alone with its answer, behind the system message and the pictures shown so
    far.
    """
    opening = 1 if conversation.system is not None else 0
    found = []
    pictures: tuple[Picture, ...] = ()
    sources: tuple[PictureSource, ...] = ()
    pairs = range(opening, len(row.turns) - 1, 2)
    for number, position in enumerate(pairs):
        asked, answered = conversation.messages[position : position + 2]
        turn = row.turns[position]
        alone = Conversation(
            (*conversation.messages[:opening], Message("user", (*pictures, *asked.parts)), answered)
        )
        part = replace(
            row,
            id=f"{row.id}#{number + 1}",
            turns=(
                *row.turns[:opening],
                Turn("user", (*sources, *turn.parts)),
                row.turns[position + 1],
            ),
            references=row.references[number : number + 1],
        )
        found.append((part, alone))
        pictures += asked.pictures
        sources += turn.pictures
    return found


def _packed(row: Row, alone: Sequence[Sample], processor: Any) -> list[Sample]:
    """Questions that begin alike, pictures included, in sequences with one copy of that
    beginning.
    """
    from vqa_app.prompts.prompt import image_token_id

    image = image_token_id(processor)
    packed: list[Sample] = []
    waiting = list(alone)
    while waiting:
        first = waiting[0]
        group = [sample for sample in waiting if sample.digests == first.digests]
        waiting = [sample for sample in waiting if sample.digests != first.digests]
        prefix = _common_prefix(group)
        pictured = np.flatnonzero(first.input_ids == image)
        if len(group) == 1 or (len(pictured) and prefix <= pictured[-1]) or first.token_inputs:
            packed += group
            continue
        start = 0
        while start < len(group):
            end, length = start + 1, len(group[start])
            while end < len(group) and length + len(group[end]) - prefix <= LONGEST_SEQUENCE:
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
    """How many tokens all begin with; never an answer's."""
    shortest = min(len(sample) for sample in group)
    first = group[0].input_ids[:shortest]
    same = np.ones(shortest, dtype=bool)
    for sample in group:
        same &= (sample.input_ids[:shortest] == first) & ~sample.answer_mask[:shortest]
    return int(np.argmin(same)) if not same.all() else shortest - 1
