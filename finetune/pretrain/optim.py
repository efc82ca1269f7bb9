"""Optimiser, schedule and checkpoints of the from-scratch stages."""

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from transformers import PreTrainedTokenizerFast

from finetune.pretrain.muon import Muon
from finetune.pretrain.patch_grid import PatchGrid
from finetune.pretrain.world.mixture import World
from vqa_app.devices import computes_in_bfloat16
from vqa_app.files import atomic_file

MUON_RATE, ADAM_RATE = 3e-3, 1.5e-3


class MuonAdam:
    """Muon on the matrices inside blocks, AdamW on everything else, under one schedule.

    Muon (Jordan et al., 2024; `match_rms_adamw`: Liu et al., 2025) learns two to three times as
    fast as AdamW here. AdamW trains embeddings, heads, norms and biases.
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
        """Take one step at `factor` times the base rates, then clear the gradients.

        Gradients are averaged over the processes that train together, and clipped.
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

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the state of each optimiser."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore what `state_dict` returned."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def fast_dtype(device: str) -> torch.dtype:
    """Return bf16 if the device has instructions for it; otherwise it is slower than float32."""
    return torch.bfloat16 if computes_in_bfloat16(torch.device(device)) else torch.float32


def fast_autocast(device: str) -> torch.autocast:
    """Autocast to `fast_dtype`."""
    half = fast_dtype(device) == torch.bfloat16
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half)


def rank() -> int:
    """Return the number of this process among those that train together; 0 for a single one."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def broadcast_weights(modules: Iterable[nn.Module]) -> None:
    """Copy the weights of the first process to all others."""
    if distributed.is_initialized():
        for module in modules:
            for parameter in module.parameters():
                distributed.broadcast(parameter.data, 0)


def join_group(number: int, processes: int, sync_file: Path) -> None:
    """Join a group of processes that train together.

    Args:
        number: The number of this process.
        processes: How many there are.
        sync_file: A file that all processes can reach and that does not exist yet.
    """
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group(
        "gloo", init_method=f"file://{sync_file.resolve()}", rank=number, world_size=processes
    )


def leave_group() -> None:
    """Leave the group of processes, if this process has joined one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def rate_at(progress: float, step: int, warmup: int = 100, decay_from: float = 0.55) -> float:
    """Return the factor of the learning rate: warm-up, a plateau, then linearly to a twentieth.

    Args:
        progress: Share of the training that is done, 0 to 1.
        step: Number of optimiser steps so far.
        warmup: Steps of the warm-up.
        decay_from: Progress after which the rate falls.
    """
    fall = max(0.0, (progress - decay_from) / (1 - decay_from))
    return min(1.0, (step + 1) / warmup) * max(0.05, 1 - fall)


@dataclass(frozen=True)
class StageConfig:
    """What every language stage needs to know."""

    out: Path
    """The folder of the states."""
    tokenizer: PreTrainedTokenizerFast
    world: World
    """The rooms to draw scenes from."""
    grid: PatchGrid
    """The picture encoder's input."""
    steps: int
    """The optimiser steps of the stage, including those of earlier runs."""
    seed: int = 0
    tiny: bool = False
    """Whether to train a tiny model, for tests."""
    device: str = "cpu"


class Training:
    """The state of a stage: modules, optimiser and steps, kept across restarts.

    The schedule depends on the number of steps and not on time, so that a slow machine trains as
    far as a fast one. Of processes that train together the first one saves.
    """

    def __init__(
        self, path: Path, steps: int, modules: Mapping[str, nn.Module], rate: float = 1.0
    ) -> None:
        """Start a stage, or continue it from the state in `path`.

        Args:
            path: File of the state.
            steps: Optimiser steps of the whole stage.
            modules: The trained modules by their names in the state.
            rate: Factor of all learning rates.
        """
        self.path, self.steps, self.modules = path, steps, dict(modules)
        self.optimiser = MuonAdam(self.modules.values(), rate)
        self.step = 0
        self.kept: dict[str, Any] = {}
        """Further values of the saved state."""
        self._spent, self._started = 0.0, time.monotonic()
        state = load_state(path)
        self.fresh = state is None
        if state:
            for name, module in self.modules.items():
                module.load_state_dict(state["modules"][name])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self._spent, self.kept = state["step"], state["spent"], state["kept"]
        self._last: dict[str, float] = {}

    @property
    def progress(self) -> float:
        """The share of the steps that have been taken, 0 to 1."""
        return self.step / self.steps

    @property
    def seconds(self) -> float:
        """The time spent on the stage, including that of earlier runs."""
        return self._spent + time.monotonic() - self._started

    def learn(self, loss: torch.Tensor, warmup: int = 100) -> None:
        """Take one optimiser step on a loss."""
        loss.backward()
        self.optimiser.step(rate_at(self.progress, self.step, warmup))
        self.step += 1

    def due(self, what: str, seconds: float) -> bool:
        """Return whether `seconds` have passed since the last time, or the last step is taken."""
        before = self._last.setdefault(what, self.seconds)
        if self.seconds - before < seconds and self.progress < 1:
            return False
        self._last[what] = self.seconds
        return True

    def save(self, **kept: Any) -> None:
        """Save the state with further values, which are restored as `kept`."""
        state = {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "spent": self.seconds,
            "kept": kept,
        }
        save_state(self.path, state)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state completely or not at all: a kill at any moment leaves a usable file."""
    # Given the path, torch rejects a name that is nothing but a file extension, as ".unfinished".
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)


def load_state(path: Path) -> dict[str, Any] | None:
    """Load a state of this recipe; None if the file does not exist."""
    return torch.load(path, weights_only=True) if path.exists() else None
