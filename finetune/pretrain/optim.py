"""Optimiser, schedule and checkpoints of the from-scratch stages."""

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from finetune.pretrain.muon import Muon
from vqa_app.devices import computes_in_bfloat16
from vqa_app.files import atomic_file

MUON_RATE, ADAM_RATE = 3e-3, 1.5e-3


class MuonAdam:
    """Muon on the matrices inside blocks, AdamW on everything else, under one schedule.

    Muon (Jordan et al., 2024; `match_rms_adamw`: Liu et al., 2025) learns two to three times as
    fast as AdamW here. Embeddings, heads, norms and biases are AdamW's.
    """

    def __init__(self, modules: Iterable[nn.Module], rate: float = 1.0) -> None:
        named = [(n, p) for m in modules for n, p in m.named_parameters() if p.requires_grad]
        named = list({id(p): (n, p) for n, p in named}.values())
        matrices = [
            p
            for n, p in named
            if p.ndim == 2 and "embed" not in n and "head" not in n and min(p.shape) > 16
        ]
        ids = {id(p) for p in matrices}
        others = [p for _, p in named if id(p) not in ids]
        self.parameters = matrices + others
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(Muon(matrices, lr=MUON_RATE * rate, weight_decay=0.02, momentum=0.95))
        if others:
            self.parts.append(
                torch.optim.AdamW(others, lr=ADAM_RATE * rate, betas=(0.9, 0.98), weight_decay=0.0)
            )
        self.base = [group["lr"] for part in self.parts for group in part.param_groups]

    def step(self, factor: float) -> None:
        """One step at `factor` times the base rates; gradients are clipped and cleared.

        Where several processes train together (`together`), theirs are averaged first.
        """
        if distributed.is_initialized():
            grads = [p.grad for p in self.parameters if p.grad is not None]
            flat = torch.cat([g.reshape(-1) for g in grads])
            distributed.all_reduce(flat)
            flat /= distributed.get_world_size()
            for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                grad.copy_(part.view_as(grad))
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        groups = [group for part in self.parts for group in part.param_groups]
        for group, base in zip(groups, self.base, strict=True):
            group["lr"] = base * factor
        for part in self.parts:
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def fast_dtype(device: str) -> torch.dtype:
    """bf16 where the device has instructions for it; elsewhere it is slower than float32."""
    return torch.bfloat16 if computes_in_bfloat16(torch.device(device)) else torch.float32


def fast_autocast(device: str) -> torch.autocast:
    """Autocast to `fast_dtype`."""
    half = fast_dtype(device) == torch.bfloat16
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half)


def rank() -> int:
    """Which of the processes that train together this is; 0 when it is alone."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def agreed(value: float) -> float:
    """The processes' mean of a number, so that all of them stop at the same step."""
    if not distributed.is_initialized():
        return value
    shared = torch.tensor([value])
    distributed.all_reduce(shared)
    return shared.item() / distributed.get_world_size()


def copied_from_first(modules: Iterable[nn.Module]) -> None:
    """Every process starts with the weights of the first one."""
    if distributed.is_initialized():
        for module in modules:
            for parameter in module.parameters():
                distributed.broadcast(parameter.data, 0)


def together(number: int, processes: int, meeting: Path) -> None:
    """Makes this process number `number` of several that train as one; they meet at a file."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting.resolve()}", rank=number, world_size=processes
    )


def apart() -> None:
    """Ends what `together` began."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def rate_at(progress: float, step: int, warmup: int = 100, decay_from: float = 0.55) -> float:
    """Warm-up, a plateau, then linearly to a twentieth; `progress` is the share of time used."""
    fall = max(0.0, (progress - decay_from) / (1 - decay_from))
    return min(1.0, (step + 1) / warmup) * max(0.05, 1 - fall)


@dataclass
class Clock:
    """Time spent in a stage, across restarts."""

    minutes: float
    spent: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds."""
        return self.spent + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        return self.elapsed / (60 * self.minutes)


class Training:
    """A stage under way: its modules, their optimiser, and how far it is, across restarts.

    Processes that train together agree on `progress` (the share of the time that is used), and the
    first one saves.
    """

    def __init__(
        self, path: Path, minutes: float, modules: Mapping[str, nn.Module], rate: float = 1.0
    ) -> None:
        """Args:
        path: of the state, which is gone on with where it exists.
        modules: those that are trained, by their names in the state.
        """
        self.path, self.modules = path, dict(modules)
        self.optimiser = MuonAdam(self.modules.values(), rate)
        self.clock, self.step = Clock(minutes), 0
        self.kept: dict[str, Any] = {}
        """What else was saved."""
        state = load_state(path)
        self.fresh = state is None
        if state:
            for name, module in self.modules.items():
                module.load_state_dict(state["modules"][name])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.clock.spent, self.kept = state["step"], state["spent"], state["kept"]
        self.progress = agreed(self.clock.progress)
        self._last: dict[str, float] = {}

    def learn(self, loss: torch.Tensor, warmup: int = 100) -> None:
        """One step down the loss."""
        loss.backward()
        self.optimiser.step(rate_at(self.progress, self.step, warmup))
        self.step += 1
        self.progress = agreed(self.clock.progress)

    def due(self, what: str, seconds: float) -> bool:
        """Whether so much time has passed since this was due last; and at the end."""
        before = self._last.setdefault(what, self.clock.elapsed)
        if self.clock.elapsed - before < seconds and self.progress < 1:
            return False
        self._last[what] = self.clock.elapsed
        return True

    def save(self, **kept: Any) -> None:
        """`kept` is given back as `kept`."""
        state = {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "spent": self.clock.elapsed,
            "kept": kept,
        }
        save_state(self.path, state)


def save_state(path: Path, state: dict) -> None:
    """Written whole or not at all, so that a kill at any moment leaves a usable file."""
    # Given the path, torch rejects a name that is nothing but a file extension, as ".unfinished".
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)


def load_state(path: Path) -> dict | None:
    """The recipe's own checkpoint, if there is one."""
    return torch.load(path, weights_only=True) if path.exists() else None
