"""Spreads the embeddings of tokens that never occur in pre-training, so that they can be learned.

The embeddings are tied to the output layer. A token that is never the next one is pushed away from
every hidden state, all such tokens by the same vector, while weight decay removes their initial
differences. In the end thousands coincide and no hidden state can select one of them: the best that
LoRA reached for an unseen word was a loss of 7 nats per token, at the cost of earlier knowledge.
"""

import torch

NEAR = 1.0
"""Embeddings nearer than this to the median one count as unseen (norms are about 4)."""
APART = 1.0
"""The length of the random vectors that are added. With it the built-in model answered 1,543
questions about generated pictures exactly as before, and learned three names that it could not
learn without."""


@torch.no_grad()
def spread_unseen(embeddings: torch.Tensor, seed: int = 0) -> int:
    """Move the coinciding rows of `embeddings` [tokens, width] apart, in place.

    Returns:
        The number of rows that were moved.
    """
    whole = embeddings.float()
    unseen = (whole - whole.median(0).values).norm(dim=1) < NEAR
    random = torch.Generator().manual_seed(seed)
    away = torch.randn(int(unseen.sum()), whole.shape[1], generator=random)
    moved = whole[unseen] + APART * away / away.norm(dim=1, keepdim=True)
    embeddings[unseen] = moved.to(embeddings.dtype)
    return int(unseen.sum())
