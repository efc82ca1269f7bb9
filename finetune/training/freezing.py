"""Which weights each stage trains."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from finetune.config import FinetuneConfig, Stage
from finetune.training.sharding import make_whole, numel
from vqa_app.errors import ModelError, UsageError
from vqa_app.models.anatomy import Anatomy, anatomy
from vqa_app.models.architecture import unwrap
from vqa_app.quiet import quiet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainableModel:
    """A model in which exactly the weights of the stage require gradients."""

    model: Any
    """The model itself, or PEFT's wrapper around it."""
    projector: int
    """Trainable parameters in the projector."""
    llm: int
    """Trainable parameters in the LLM."""
    total: int
    """All parameters, frozen ones included."""

    @property
    def trainable(self) -> int:
        """All trainable parameters."""
        return self.projector + self.llm

    def __str__(self) -> str:
        share = 100 * self.trainable / max(1, self.total)
        return (
            f"Training {self.trainable:,} of {self.total:,} parameters ({share:.2g} %): projector "
            f"{self.projector:,}, LLM {self.llm:,}, image encoder 0."
        )


def freeze(
    model: Any, stage: Stage, *, rank: int = 128, alpha: int = 256, dropout: float = 0.05
) -> TrainableModel:
    """Freeze all weights that the stage does not train, and attach LoRA for lora and qlora.

    Trained weights are converted to fp32. A LoRA adapter that the model already carries is trained
    further. The numbers of trained parameters are logged.

    Args:
        model: The base, or PEFT's wrapper around it.
        stage: Which weights are trained.
        rank: LoRA rank (Hu et al., 2022), for lora and qlora.
        alpha: LoRA alpha.
        dropout: LoRA dropout.

    Raises:
        ModelError: The stage does not fit the model.
    """
    base = unwrap(model)
    parts = anatomy(base)
    for name in parts.projector:
        make_whole(base.get_submodule(name))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if stage in ("lora", "qlora"):
        if base is model:
            model = _attach_lora(model, parts, rank, alpha, dropout)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name or ".modules_to_save." in name)
    else:
        if base is not model:
            raise _carries_adapter(stage)
        for name in parts.projector:
            model.get_submodule(name).requires_grad_(True)
        if stage == "full":
            model.get_submodule(parts.language_model).requires_grad_(True)
            model.get_output_embeddings().requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    result = TrainableModel(
        model,
        projector=sum(numel(p) for n, p in trainable(model) if _within(n, parts.projector)),
        llm=sum(numel(p) for n, p in trainable(model) if not _within(n, parts.projector)),
        total=sum(map(numel, model.parameters())),
    )
    log.info("%s", result)
    return result


def lora_targets(model: Any, llm: str) -> str:
    """Return a regular expression for PEFT that matches every linear layer of the LLM only.

    bitsandbytes' 4- and 8-bit layers are subclasses of `nn.Linear`.
    """
    kinds = {
        name.rpartition(".")[2]
        for name, module in model.get_submodule(llm).named_modules()
        if isinstance(module, nn.Linear)
    }
    if not kinds:
        raise ModelError("The language model has no linear layers.", "LoRA cannot be attached.")
    return rf".*{re.escape(llm)}\..*\.({'|'.join(sorted(map(re.escape, kinds)))})"


def adopt_adapter(config: FinetuneConfig, model: Any) -> FinetuneConfig:
    """Return the config with the LoRA options of the adapter that the model carries, if any.

    Training continues with that adapter.

    Raises:
        UsageError: The config asks for another rank or alpha.
        ModelError: The config's stage has no LoRA.
    """
    adapter = getattr(model, "peft_config", {}).get("default")
    if adapter is None:
        return config
    if config.stage not in ("lora", "qlora"):
        raise _carries_adapter(config.stage)
    for name, present in (("rank", adapter.r), ("alpha", adapter.lora_alpha)):
        if getattr(config, name) not in (None, present):
            raise UsageError(
                f"{config.model} carries an adapter whose {name} is {present}, not"
                f" {getattr(config, name)}.",
                f"Leave --{name} out, or merge the adapter first: vqa-app merge RUN --out DIR.",
            )
    return config.replace(
        rank=adapter.r, alpha=adapter.lora_alpha, dropout=float(adapter.lora_dropout)
    )


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters that require gradients, with their names."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def projector_parameters(model: nn.Module) -> set[str]:
    """Return the names of the projector's trainable parameters."""
    parts = anatomy(unwrap(model))
    return {name for name, _ in trainable(model) if _within(name, parts.projector)}


def _carries_adapter(stage: Stage) -> ModelError:
    return ModelError(
        f"The model carries a LoRA adapter, so stage {stage} cannot train it.",
        "Merge the adapter first: vqa-app merge RUN --out DIR.",
    )


def _within(name: str, modules: tuple[str, ...]) -> bool:
    """Return whether a parameter belongs to one of the modules; PEFT adds prefixes to its name."""
    return any(f".{module}." in f".{name}" for module in modules)


def _attach_lora(model: Any, parts: Anatomy, rank: int, alpha: int, dropout: float) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=lora_targets(model, parts.language_model),
        modules_to_save=list(parts.projector),
        task_type="CAUSAL_LM",
    )
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT uses a deprecated name of transformers
        return get_peft_model(model, config)
