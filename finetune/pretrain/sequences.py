r"""Many questions about one picture packed into one sequence, each independent of the others.

    <|im_start|>user\n [picture] \n | question 1 ... answer 1 | question 2 ... answer 2 | ...

The picture's tokens are computed once. A mask lets each branch attend to the picture and itself
only, and its positions continue from the picture, so every branch equals the sequence that the
chat template renders for that conversation alone.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import send_to_device
from transformers import PreTrainedTokenizerFast

from finetune.kernels.shared_prefix import branch_layout
from finetune.pretrain.world import QA
from finetune.pretrain.world.wording.phrasing import to_turn

HEAD = "<|im_start|>user\n"
ASK = "<|im_end|>\n<|im_start|>assistant\n"
NEXT = "<|im_end|>\n<|im_start|>user\n"
STOP = "<|im_end|>"
PICTURE = "<image>\n"
"""What a picture becomes in the text of a question that it comes with."""

Turns = list[tuple[str, str]]


class PictureConversations(NamedTuple):
    """Pictures, and conversations about them that are independent of each other."""

    pictures: Sequence[int]
    """The number of tokens of each picture before the first question."""
    conversations: Sequence[Turns]
    later: Sequence[int] = ()
    """The numbers of tokens of the pictures that come with later questions, as `PICTURE` in their
    text; only for a single conversation."""


def turns_of(qa: QA, rng: random.Random, short: bool | None = None, plain: bool = False) -> Turns:
    """Return the conversation that ends with `qa` as turns [(question, answer), ...]."""
    return [to_turn(q, rng, short, plain) for q in (*qa.before, qa)]


def branches(
    qas: Sequence[QA], rng: random.Random, short: float = 0.6, chained: float = 0.15
) -> list[tuple[Turns, QA]]:
    """Return conversations from a scene's questions, each with the question that it ends with.

    Args:
        qas: The questions about the scene.
        rng: The source of randomness.
        short: The share of answers in the single-word style.
        chained: The share of scenes with a conversation of several questions.
    """
    made = [(turns_of(qa, rng, rng.random() < short), qa) for qa in qas]
    if rng.random() < chained and len(made) > 2:
        rng.shuffle(made)
        count = rng.randint(2, min(4, len(made)))
        chain = [turn for turns, _ in made[:count] for turn in turns]
        made = [(chain, made[count - 1][1]), *made[count:]]
    return made


@dataclass
class PackedBatch:
    """A batch of packed conversations; rows are padded on the right.

    All tensors are [rows, length]. `ids`, `positions` and `labels` are long; a label of -100 is
    ignored by the loss. `segments` is long: 0 for the shared prefix, 1, 2, ... for branches and -1
    for padding. `visual` is bool and marks where the pictures' embeddings go, in order.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    segments: torch.Tensor
    visual: torch.Tensor

    def to(self, device: str) -> "PackedBatch":
        """Return the batch on a device."""
        return PackedBatch(
            *(
                t.to(device)
                for t in (self.ids, self.positions, self.labels, self.segments, self.visual)
            )
        )

    def branches(self) -> dict[str, Any]:
        """Return the attention layout in which no branch attends to another."""
        rows = [row[row >= 0] for row in self.segments.cpu().numpy()]
        return send_to_device(branch_layout(rows, self.ids.shape[1]), self.ids.device)


class Packer:
    """Packs conversations about pictures into `PackedBatch`es."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        image = tokenizer.convert_tokens_to_ids("<image>")
        assert isinstance(image, int)
        self.image = image
        self.head = self.encode([HEAD])[0]
        self.after = self.encode(["\n"])[0]
        self.cache: dict[str, list[int]] = {}

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text, without special tokens."""
        return [
            e.ids
            for e in self.tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        ]

    def branch(self, turns: Turns, later: Sequence[int] = ()) -> tuple[list[int], list[bool]]:
        """Return the token ids of a conversation after the picture, and which are the answers'.

        Args:
            turns: The conversation.
            later: The numbers of tokens of the pictures in its text.
        """
        texts = []
        for k, (question, answer) in enumerate(turns):
            texts += [(NEXT.removeprefix(STOP) if k else "") + question + ASK, answer + STOP]
        ids: list[int] = []
        is_answer: list[bool] = []
        sizes = iter(later)
        for k, piece in enumerate(self.encode(texts)):
            if later:
                repeats = (next(sizes) if token == self.image else 1 for token in piece)
                piece = [token for token, n in zip(piece, repeats, strict=True) for _ in range(n)]
            ids += piece
            is_answer += [k % 2 == 1] * len(piece)
        return ids, is_answer

    def pack(self, rows: Sequence[PictureConversations], limit: int = 560) -> PackedBatch:
        """Pack rows of conversations; those of one row are about the same pictures.

        Branches that would add up to more than `limit` tokens are dropped. The prefix of a row
        without pictures contains no picture tokens.

        Raises:
            ValueError: Several conversations of a row have later pictures.
        """
        packed = [self._pack_row(row, limit) for row in rows]
        longest = max(len(ids) for ids, *_ in packed)
        length = -(-longest // 32) * 32  # few different shapes, so that compiled kernels are reused
        table = np.empty((4, len(packed), length), np.int64)
        table[0], table[1], table[2], table[3] = self.tokenizer.pad_token_id, 0, -100, -1
        for row, columns in enumerate(packed):
            for k, values in enumerate(columns):
                table[k, row, : len(values)] = values
        ids, positions, labels, segments = (torch.from_numpy(part) for part in table)
        return PackedBatch(ids, positions, labels, segments, ids == self.image)

    def _pack_row(
        self, row: PictureConversations, limit: int
    ) -> tuple[list[int], list[int], list[int], list[int]]:
        """Return the ids, positions, labels and segments of one row."""
        if row.later and len(row.conversations) != 1:
            raise ValueError("Pictures may come later in a single conversation only.")
        prefix = list(self.head)
        for tokens in row.pictures:
            prefix += [self.image] * tokens + self.after
        ids, segments = list(prefix), [0] * len(prefix)
        positions, labels = list(range(len(prefix))), [-100] * len(prefix)
        for number, turns in enumerate(row.conversations, 1):
            new, is_answer = self.branch(turns, row.later)
            if len(ids) - len(prefix) + len(new) > limit and len(row.conversations) > 1:
                continue
            ids += new
            segments += [number] * len(new)
            positions += range(len(prefix), len(prefix) + len(new))
            labels += [i if answer else -100 for i, answer in zip(new, is_answer, strict=True)]
        return ids, positions, labels, segments


Hits = dict[tuple[int, int], bool]
"""(row, branch) -> whether its answers are correct."""


def answer_hits(logits_argmax: torch.Tensor, packed: PackedBatch) -> Hits:
    """Return whether greedy decoding would produce exactly the answers of each branch.

    `logits_argmax` [rows, length] is the model's choice after each position; only those before an
    answer's tokens count. Teacher forcing and greedy decoding agree as long as every choice is
    correct, so this is exact match.
    """
    return {branch: all(hits) for branch, hits in turn_hits(logits_argmax, packed).items()}


def turn_hits(
    logits_argmax: torch.Tensor, packed: PackedBatch
) -> dict[tuple[int, int], list[bool]]:
    """Return for each branch which of its answers are fully correct; see `answer_hits`."""
    expected = packed.labels[:, 1:]
    answers = expected != -100
    right = (logits_argmax[:, :-1][answers] == expected[answers]).tolist()
    first = (answers & (packed.labels[:, :-1] == -100))[answers].tolist()
    rows, branches = answers.nonzero()[:, 0].tolist(), packed.segments[:, 1:][answers].tolist()
    hits: dict[tuple[int, int], list[bool]] = {}
    for row, branch, begins, hit in zip(rows, branches, first, right, strict=True):
        turns = hits.setdefault((row, branch), [])
        if begins:
            turns.append(hit)
        else:
            turns[-1] = turns[-1] and hit
    return hits


def answer_starts(packed: PackedBatch) -> dict[tuple[int, int], int]:
    """Return (row, branch) -> the position of the token before the branch's last answer."""
    begins = (packed.labels[:, 1:] != -100) & (packed.labels[:, :-1] == -100)
    return {(row, int(packed.segments[row, at + 1])): at for row, at in begins.nonzero().tolist()}


def first_pieces(logits_argmax: torch.Tensor, packed: PackedBatch) -> list[tuple[int, int]]:
    """Return (predicted, expected): the first token ids of each branch's last answer."""
    return [
        (int(logits_argmax[row, at]), int(packed.labels[row, at + 1]))
        for (row, _), at in answer_starts(packed).items()
    ]
