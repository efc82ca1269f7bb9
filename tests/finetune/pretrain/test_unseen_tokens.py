"""Words that the built-in model never said can be learned: no two pieces mean the same."""

from __future__ import annotations

import torch

from finetune.pretrain.unseen_tokens import spread_unseen
from vqa_app import load_model


def closest(embeddings: torch.Tensor) -> torch.Tensor:
    """Distance of each piece to the nearest other one."""
    apart = torch.cdist(embeddings.float(), embeddings.float())
    return apart.fill_diagonal_(torch.inf).min(1).values


def test_pieces_that_were_never_seen_are_moved_apart_and_the_others_stay():
    torch.manual_seed(0)
    known = 4 * torch.nn.functional.normalize(torch.randn(100, 64), dim=1)
    unseen = 4 * torch.nn.functional.normalize(torch.randn(1, 64), dim=1)
    embeddings = torch.cat([known, unseen + 0.01 * torch.randn(300, 64)])
    assert closest(embeddings)[100:].max() < 0.2
    assert spread_unseen(embeddings) == 300
    assert torch.equal(embeddings[:100], known)
    assert closest(embeddings)[100:].min() > 0.5


def test_every_piece_of_the_shipped_vocabulary_has_a_place_of_its_own():
    embeddings = load_model("builtin").model.get_input_embeddings().weight
    assert closest(embeddings.detach()).quantile(0.01) > 0.5
