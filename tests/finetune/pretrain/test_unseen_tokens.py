"""Unseen tokens: their embeddings are distinct, so that new words can be learned."""

from __future__ import annotations

import torch

from finetune.pretrain.unseen_tokens import spread_unseen
from vqa_app import load_model


def closest(embeddings: torch.Tensor) -> torch.Tensor:
    """Return the distance of each embedding to its nearest neighbour."""
    apart = torch.cdist(embeddings.float(), embeddings.float())
    return apart.fill_diagonal_(torch.inf).min(1).values


def test_only_unseen_tokens_are_moved_apart() -> None:
    torch.manual_seed(0)
    seen = 4 * torch.nn.functional.normalize(torch.randn(100, 64), dim=1)
    unseen = 4 * torch.nn.functional.normalize(torch.randn(1, 64), dim=1)
    embeddings = torch.cat([seen, unseen + 0.01 * torch.randn(300, 64)])
    assert closest(embeddings)[100:].max() < 0.2
    assert spread_unseen(embeddings) == 300
    assert torch.equal(embeddings[:100], seen)
    assert closest(embeddings)[100:].min() > 0.5


def test_no_two_tokens_of_the_shipped_vocabulary_coincide() -> None:
    embeddings = load_model("builtin").model.get_input_embeddings().weight
    assert closest(embeddings.detach()).quantile(0.01) > 0.5
