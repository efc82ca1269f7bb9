"""Fine-tuning: data, recipe, checkpoints, evaluation.

    from finetune import FinetuneConfig, train, evaluate

    result = train(FinetuneConfig(data=("my.json",), images=("photos",), out="runs/mine"))

`training.train` is the recipe, `training.stages` holds its steps.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.config import FinetuneConfig
    from finetune.evaluation.evaluate import EvalResult, evaluate
    from finetune.progress import Progress
    from finetune.training.train import RunResult, train

_MODULES = {
    "FinetuneConfig": "finetune.config",
    "EvalResult": "finetune.evaluation.evaluate",
    "evaluate": "finetune.evaluation.evaluate",
    "Progress": "finetune.progress",
    "RunResult": "finetune.training.train",
    "train": "finetune.training.train",
}

__all__ = ["EvalResult", "FinetuneConfig", "Progress", "RunResult", "evaluate", "train"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and transformers take seconds."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
