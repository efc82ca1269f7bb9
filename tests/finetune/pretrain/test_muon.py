"""The Muon optimiser."""

import torch

from finetune.pretrain.muon import Muon, orthogonalised


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 24, 8), (3, 8, 24)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_updates_equal_those_of_torchs_muon_at_bf16_precision() -> None:
    torch.manual_seed(0)
    start = [torch.randn(16, 8), torch.randn(16, 8), torch.randn(8, 8)]
    ours = [torch.nn.Parameter(m.clone()) for m in start]
    theirs = [torch.nn.Parameter(m.clone()) for m in start]
    mine = Muon(ours, lr=0.01, weight_decay=0.1, momentum=0.9)
    reference = torch.optim.Muon(
        theirs, lr=0.01, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        mine.step()
        reference.step()
    for a, b, before in zip(ours, theirs, start, strict=True):
        assert (a - b).abs().max() < 0.1 * (a - before).abs().max()
