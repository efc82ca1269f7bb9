"""The Muon optimiser (Jordan et al., 2024), also for devices without fast bf16.

`torch.optim.Muon` orthogonalises one matrix at a time in bf16; on a CPU without bf16 instructions
a step of a small transformer takes seconds. Here matrices of one shape form a batch, in float32 if
the device has no fast bf16.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch

from vqa_app.devices import computes_in_bfloat16

COEFFICIENTS = (3.4445, -4.775, 2.0315)


def orthogonalised(stack: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Move the singular values of every matrix of a stack to about 1, by Newton-Schulz.

    Args:
        stack: Matrices of one shape, [matrices, rows, columns].
        steps: The number of Newton-Schulz iterations.
    """
    wide = stack.mT if stack.shape[1] > stack.shape[2] else stack
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide.mT if stack.shape[1] > stack.shape[2] else wide


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum; the update's RMS matches AdamW's (Liu et al., 2025)."""

    def __init__(
        self,
        matrices: Iterable[torch.nn.Parameter],
        lr: float,
        weight_decay: float = 0.02,
        momentum: float = 0.95,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(matrices, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            shapes = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for parameters in shapes.values():
                self._update(parameters, group)

    def _update(self, parameters: list[torch.nn.Parameter], group: dict) -> None:
        """Update parameters of one shape."""
        updates = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            momentum, share = state["momentum_buffer"], 1 - group["momentum"]
            momentum.lerp_(parameter.grad, share)
            updates.append(parameter.grad.lerp(momentum, group["momentum"]))
        stack = torch.stack(updates)
        half = computes_in_bfloat16(stack.device)
        orthogonal = orthogonalised(stack.bfloat16() if half else stack).to(stack.dtype)
        rate = group["lr"] * 0.2 * max(stack.shape[1:]) ** 0.5
        for parameter, update in zip(parameters, orthogonal, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)
