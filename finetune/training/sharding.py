"""Sharding over GPUs: configs of FSDP and DeepSpeed, and the weights in FSDP's checkpoints."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_app.errors import UsageError
from vqa_app.files import JSON_ERRORS, json_problem

if TYPE_CHECKING:
    from torch import nn

FSDP = ("default", "offload")
_FSDP_FOLDER = "pytorch_model_fsdp_0"
"""The Trainer's name, so that whole models of earlier checkpoints are read, too."""
DEEPSPEED = ("zero2", "zero3", "zero3_offload")


def fsdp_config(name: str) -> dict[str, Any]:
    """Return the value of `TrainingArguments.fsdp_config`.

    Raises:
        UsageError: Neither a config of the package nor a file.
    """
    return _read("fsdp", FSDP, name)


def deepspeed_config(name: str, width: int) -> dict[str, Any]:
    """Return the value of `TrainingArguments.deepspeed`.

    Args:
        name: A config of the package, or a file.
        width: Width of the LLM, from which ZeRO's sizes follow. The Trainer would look for it in
            the config of the model, and an `Objective` has none.

    Raises:
        UsageError: Neither a config of the package nor a file.
    """
    values = _read("deepspeed", DEEPSPEED, name)
    zero = values.get("zero_optimization")
    if isinstance(zero, dict):
        sizes = {  # the formulas of transformers
            "reduce_bucket_size": width * width,
            "stage3_prefetch_bucket_size": int(0.9 * width * width),
            "stage3_param_persistence_threshold": 10 * width,
        }
        zero.update({key: size for key, size in sizes.items() if zero.get(key) == "auto"})
    return values


def save_trained(model: nn.Module, folder: Path) -> None:
    """Write the trained weights of a model that FSDP2 shards; every process writes its part.

    The frozen ones, which are most of a model with LoRA, come from the base when a run resumes.
    """
    from torch.distributed.checkpoint import FileSystemWriter, save

    save({"model": _trained_state(model)}, storage_writer=FileSystemWriter(folder / _FSDP_FOLDER))


def load_trained(model: nn.Module, folder: Path) -> None:
    """Load what `save_trained` wrote, with any number of processes."""
    from torch.distributed.checkpoint import FileSystemReader, load
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    state = _trained_state(model)
    load({"model": state}, storage_reader=FileSystemReader(folder / _FSDP_FOLDER))
    set_model_state_dict(model, state, options=StateDictOptions(strict=False))


def _trained_state(model: nn.Module) -> dict[str, Any]:
    """Return the trained parameters by name; each is this process's part."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    named = model.named_parameters(remove_duplicate=False)
    trained = {name for name, parameter in named if parameter.requires_grad}
    return {name: part for name, part in get_model_state_dict(model).items() if name in trained}


def _read(kind: str, shipped: tuple[str, ...], name: str) -> dict[str, Any]:
    try:
        if name in shipped:
            text = (files("finetune") / "configs" / f"{kind}_{name}.json").read_text()
        else:
            text = Path(name).read_text(encoding="utf-8-sig")
        values = json.loads(text)
    except OSError as error:
        raise UsageError(
            f"There is no {kind} config {name!r}.", f"Give {', '.join(shipped)}, or a JSON file."
        ) from error
    except JSON_ERRORS as error:
        raise UsageError(f"{name} is not JSON: {json_problem(error)}.", "Correct it.") from error
    if not isinstance(values, dict):
        raise UsageError(f"{name} is not a JSON object.", "Give a JSON object.")
    return values
