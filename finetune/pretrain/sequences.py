"""Many questions about one picture in one sequence, each blind to the others.

    <|im_start|>user\\n [picture] \\n | question 1 ... answer 1 | question 2 ... answer 2 | ...

The picture's tokens are computed once; a mask lets each branch see the picture and itself, and its
positions go on from the picture, so that every branch is exactly the sequence that the chat
template renders for that conversation alone.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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

Turns = list[tuple[str, str]]
Row = tuple[Sequence[int], Sequence[Turns]]
"""The number of tokens of each of the pictures, and the conversations about them."""


def turns_of(qa: QA, rng: random.Random, short: bool | None = None, plain: bool = False) -> Turns:
    """The conversation that ends in `qa`, as turns: [(question, answer), ...]."""
    return [to_turn(q, rng, short, plain) for q in (*qa.before, qa)]


def branches(
    qas: Sequence[QA], rng: random.Random, short: float = 0.6, chained: float = 0.15
) -> list[tuple[Turns, QA]]:
    """Conversations from a scene's questions, and the question that each ends with: the share
    `short` in the single-word style, and a share `chained` of the scenes with several questions
    asked one after another.
    """
    made = [(turns_of(qa, rng, rng.random() < short), qa) for qa in qas]
    if rng.random() < chained and len(made) > 2:
        rng.shuffle(made)
        count = rng.randint(2, min(4, len(made)))
        chain = [turn for turns, _ in made[:count] for turn in turns]
        made = [(chain, made[count - 1][1]), *made[count:]]
    return made


@dataclass
class Packed:
    """A batch. Rows are padded on the right; `-100` in `labels` is not learned.

    ids, positions, labels: [rows, length] long; segments: [rows, length] long, 0 for the shared
    prefix, 1.. for branches, -1 for padding; visual: [rows, length] bool, where the picture's
    embeddings go, in order.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    segments: torch.Tensor
    visual: torch.Tensor

    def to(self, device: str) -> "Packed":
        return Packed(
            *(
                t.to(device)
                for t in (self.ids, self.positions, self.labels, self.segments, self.visual)
            )
        )

    def branches(self) -> dict[str, Any]:
        """How attention is cut up so that no branch is compared with another."""
        rows = [row[row >= 0] for row in self.segments.cpu().numpy()]
        return send_to_device(branch_layout(rows, self.ids.shape[1]), self.ids.device)


class Packer:
    """Turns scenes' conversations into `Packed` batches."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.image = tokenizer.convert_tokens_to_ids("<image>")
        self.head = self.encode([HEAD])[0]
        self.after = self.encode(["\n"])[0]
        self.cache: dict[str, list[int]] = {}

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [
            e.ids
            for e in self.tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        ]

    def branch(self, turns: Turns) -> tuple[list[int], list[bool]]:
        """Ids of a conversation after the picture, and which of them are the model's to say."""
        texts = []
        for k, (question, answer) in enumerate(turns):
            texts += [(NEXT.removeprefix(STOP) if k else "") + question + ASK, answer + STOP]
        ids: list[int] = []
        learn: list[bool] = []
        for k, piece in enumerate(self.encode(texts)):
            ids += piece
            learn += [k % 2 == 1] * len(piece)
        return ids, learn

    def pack(self, rows: Sequence[Row], limit: int = 640) -> Packed:
        """Rows of conversations, each row's about the same pictures.

        Branches that would make a row longer than `limit` are left out. Without a picture nothing
        of one stands in the prefix.
        """
        built = []
        for pictures, conversations in rows:
            prefix = list(self.head)
            for tokens in pictures:
                prefix += [self.image] * tokens + self.after
            ids, segments = list(prefix), [0] * len(prefix)
            positions, labels = list(range(len(prefix))), [-100] * len(prefix)
            for number, turns in enumerate(conversations, 1):
                new, learn = self.branch(turns)
                if len(ids) + len(new) > limit and len(conversations) > 1:
                    continue
                ids += new
                segments += [number] * len(new)
                positions += range(len(prefix), len(prefix) + len(new))
                labels += [i if said else -100 for i, said in zip(new, learn, strict=True)]
            built.append((ids, positions, labels, segments))
        length = -(-max(len(ids) for ids, *_ in built) // 32) * 32  # few shapes: kernels are reused
        table = np.empty((4, len(built), length), np.int64)
        table[0], table[1], table[2], table[3] = self.tokenizer.pad_token_id, 0, -100, -1
        for row, columns in enumerate(built):
            for k, values in enumerate(columns):
                table[k, row, : len(values)] = values
        ids, positions, labels, segments = (torch.from_numpy(part) for part in table)
        return Packed(ids, positions, labels, segments, ids == self.image)


Hits = dict[tuple[int, int], bool]
"""(row, branch) -> whether it was answered rightly."""


def answer_hits(logits_argmax: torch.Tensor, packed: Packed) -> Hits:
    """Whether greedy decoding would say exactly the answers of each branch.

    `logits_argmax` [rows, length]: the model's choice after each position; only those before an
    answer's tokens count. Teacher forcing and greedy decoding agree as long as every choice is
    right, so this is exact match.
    """
    wanted = packed.labels[:, 1:]
    answers = wanted != -100
    right = (logits_argmax[:, :-1][answers] == wanted[answers]).tolist()
    rows, branches = answers.nonzero()[:, 0].tolist(), packed.segments[:, 1:][answers].tolist()
    hits: Hits = {}
    for *branch, hit in zip(rows, branches, right, strict=True):
        hits[tuple(branch)] = hits.get(tuple(branch), True) and hit
    return hits


def answer_starts(packed: Packed) -> dict[tuple[int, int], int]:
    """(row, branch) -> where the token stands that the branch's last answer follows."""
    begins = (packed.labels[:, 1:] != -100) & (packed.labels[:, :-1] == -100)
    return {(row, int(packed.segments[row, at + 1])): at for row, at in begins.nonzero().tolist()}


def first_pieces(logits_argmax: torch.Tensor, packed: Packed) -> list[tuple[int, int]]:
    """(said, wanted): the ids that each branch's last answer begins with."""
    return [
        (int(logits_argmax[row, at]), int(packed.labels[row, at + 1]))
        for (row, _), at in answer_starts(packed).items()
    ]
