"""Sharding over GPUs: the FSDP and DeepSpeed configs of the package, or a file."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from vqa_app.errors import UsageError

FSDP = ("default", "offload")
DEEPSPEED = ("zero2", "zero3", "zero3_offload")


def fsdp_config(name: str) -> dict[str, Any]:
    """Return the value of `TrainingArguments.fsdp_config`.

    Raises:
        UsageError: Neither a config of the package nor a file.
    """
    return _read("fsdp", FSDP, name)


def deepspeed_config(name: str) -> dict[str, Any]:
    """Return the value of `TrainingArguments.deepspeed`.

    Raises:
        UsageError: Neither a config of the package nor a file.
    """
    return _read("deepspeed", DEEPSPEED, name)


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
    except ValueError as error:
        raise UsageError(f"{name} is not JSON: {error}.", "Correct the file.") from error
    if not isinstance(values, dict):
        raise UsageError(f"{name} is not a JSON object.", "Give a JSON object.")
    return values
