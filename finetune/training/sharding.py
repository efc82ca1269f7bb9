"""Sharding over GPUs: configs of FSDP and DeepSpeed, and weights before and after they are divided.

DeepSpeed's ZeRO-3 divides a model while it is loaded. From then on its parameters are empty, except
inside `gathered` and inside the forward pass of the engine that the Trainer makes later.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from vqa_app.errors import UsageError
from vqa_app.files import JSON_ERRORS, json_problem
from vqa_app.transformers_internals import sharding_while_loading

if TYPE_CHECKING:
    from finetune.config import FinetuneConfig
    from finetune.training.device import Machine

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


@contextlib.contextmanager
def divided_loading(config: FinetuneConfig, machine: Machine) -> Iterator[None]:
    """Divide models among the processes while they are loaded, if the config asks for ZeRO-3.

    No GPU then has to hold a whole model. FSDP divides it later, from CPU memory.
    """
    values = _read("deepspeed", DEEPSPEED, config.deepspeed) if config.deepspeed else {}
    zero = values.get("zero_optimization")
    if not isinstance(zero, dict) or zero.get("stage") != 3:
        yield
        return
    # DeepSpeed leaves out "auto", except for the sizes of batches, which the Trainer decides later.
    # The product of the three must not be given: DeepSpeed has not counted the processes yet.
    values.pop("train_batch_size", None)
    values |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    # It creates all weights in one precision, that of the base: see `stages.load_base`.
    if values.get("bf16") == {"enabled": "auto"}:
        exact = config.stage == "full" or machine.autocast is None
        values["bf16"] = {"enabled": not exact}
    with sharding_while_loading(values):
        yield


@contextlib.contextmanager
def gathered(*modules: nn.Module) -> Iterator[None]:
    """Make parameters that ZeRO-3 has divided whole inside the block, to be read.

    Every process must enter and leave the block.
    """
    parameters = [parameter for module in modules for parameter in module.parameters()]
    if not any(map(is_divided, parameters)):
        yield
        return
    import deepspeed  # type: ignore[import-not-found]  # optional

    with deepspeed.zero.GatheredParameters(parameters):
        yield


def make_whole(module: nn.Module) -> None:
    """Replace parameters that ZeRO-3 has divided by whole ones, which can be cast and loaded."""
    with gathered(module):
        for owner in module.modules():
            for name, parameter in list(owner.named_parameters(recurse=False)):
                if is_divided(parameter):
                    whole = parameter.data.clone()
                    setattr(owner, name, nn.Parameter(whole, parameter.requires_grad))


def is_divided(parameter: nn.Parameter) -> bool:
    """Return whether ZeRO-3 has divided a parameter, so that its own tensor is empty."""
    return hasattr(parameter, "ds_id")


def numel(parameter: nn.Parameter) -> int:
    """Return how many numbers a parameter has in all processes together."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


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
            text = (files("finetune") / "configs" / f"{kind}_{name}.json").read_text("utf-8")
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
