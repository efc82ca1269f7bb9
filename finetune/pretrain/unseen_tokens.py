"""Pieces of the vocabulary that no text of the world holds, made fit to be learned.

The embeddings are tied: a piece that never is the next one is pushed away from every hidden state,
all of them by the same vector, while weight decay takes away how they differed at first. In the
end thousands lie on one point, and no hidden state can mean one of them: the best that LoRA could
reach for an unseen word was a loss of 7 nats a piece, and trying it cost what the model knew.
"""

import torch

NEAR = 1.0
"""Distance from the median embedding up to which a piece was never an answer's (norms are 4)."""
APART = 1.0
"""Length of the random vectors that are added. On its own world the built-in model answered 1,543
questions just as before, at the same loss, and three names that it could not learn it learned."""


@torch.no_grad()
def spread_unseen(embeddings: torch.Tensor, seed: int = 0) -> int:
    """Moves the embeddings [pieces, width] that lie on one point apart, in place.

    Returns:
        How many they were.
    """
    whole = embeddings.float()
    unseen = (whole - whole.median(0).values).norm(dim=1) < NEAR
    random = torch.Generator().manual_seed(seed)
    away = torch.randn(int(unseen.sum()), whole.shape[1], generator=random)
    moved = whole[unseen] + APART * away / away.norm(dim=1, keepdim=True)
    embeddings[unseen] = moved.to(embeddings.dtype)
    return int(unseen.sum())
