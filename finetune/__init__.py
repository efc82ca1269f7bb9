"""Fine-tuning: data, recipe, checkpoints, evaluation.

    from finetune import FinetuneConfig, train, evaluate

    result = train(FinetuneConfig(data=("my.json",), images=("photos",), out="runs/mine"))

`train` is the recipe, `stages` has its steps. One module for each subject, in this order: config →
datasets → samples, preflight → data → freezing → defaults → features → batches, collator →
objective (attention, shortcuts), trainer → held_out → leaving.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.config import FinetuneConfig
    from finetune.evaluate import EvalResult, evaluate
    from finetune.progress import Progress
    from finetune.train import RunResult, train

_HOMES = {
    "FinetuneConfig": "finetune.config",
    "EvalResult": "finetune.evaluate",
    "evaluate": "finetune.evaluate",
    "Progress": "finetune.progress",
    "RunResult": "finetune.train",
    "train": "finetune.train",
}

__all__ = ["EvalResult", "FinetuneConfig", "Progress", "RunResult", "evaluate", "train"]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: torch and transformers take seconds."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Package(ModuleType):
    """`finetune.train` is the function: importing the module of that name does not hide it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
