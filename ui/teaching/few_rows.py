"""The page's training recipe: few rows need other settings than many.

With the defaults of `finetune`, which suit thousands of rows, a few corrections would give only a
few steps; and a small model trained on nothing else forgets the rest. So few rows get a number of
steps instead of epochs, half of each batch is rehearsed from the world of generated pictures on
which the built-in model was trained, and the best checkpoint is chosen on both: the taught rows and
held-out questions about that world. `tests/benchmarks/few_taught_rows.py` measures what is learned
and what is forgotten.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ui.teaching import rehearsal
from vqa_app.checkpoints.manifest import origin
from vqa_app.checkpoints.source import BUILTIN
from vqa_app.errors import DataError, ModelError
from vqa_app.serving.engine_pool import ModelChoice

if TYPE_CHECKING:
    from finetune.config import Stage

MAX_FEW_ROWS = 200
"""Largest number of rows for which this recipe is used."""
BATCH_SIZE = 16
TAUGHT_SHARE = 0.5
"""Share of taught rows in a batch; the others are rehearsed."""
MIN_STEPS = 150
MIN_REPEATS = 24
"""How often each taught row is shown, at least."""
REHEARSAL_ROWS = 600
"""Number of rehearsal questions, each about another picture: a model memorised 480 questions about
45 pictures, at the cost of all others."""
LEARNING_RATE = 4.6e-4
"""Learning rate of LoRA, half of `finetune`'s default for the built-in model: all rows are learned
with either, and accuracy on the original world drops a third as much
(`tests.benchmarks.few_taught_rows`)."""
_SAMPLE_ROWS, _SAMPLE_SEED = 24, 8_000_000


@dataclass(frozen=True)
class TrainingChoices:
    """Settings that a person chose; None leaves the choice to the recipe."""

    stage: Stage
    epochs: float | None
    lr: float | None
    rehearse: bool


def descends_from_builtin(choice: ModelChoice) -> bool:
    """Return whether a model is the built-in one or was trained from it."""
    try:
        return choice.adapter is None and origin(choice.source) == BUILTIN
    except (ModelError, OSError):
        return False


def config_overrides(
    paths: Sequence[str], base: ModelChoice, choices: TrainingChoices, folder: Path, name: str
) -> dict[str, Any]:
    """Return the fields of `finetune.config.FinetuneConfig` that depend on the number of rows.

    Args:
        paths: The data files.
        base: The model that is trained.
        choices: Settings that take precedence.
        folder: Where rehearsal rows may be written.
        name: Name of the run; different runs rehearse different rows.

    Raises:
        DataError: No row can be used.
    """
    from finetune.data.read import read_rows

    rows = sum(len(row.references) for row in read_rows(paths).rows)
    if not rows:
        raise DataError("No row of this data can be used.", "Check the data to see why.")
    rehearse = choices.rehearse and descends_from_builtin(base)
    settings: dict[str, Any] = {"epochs": choices.epochs, "lr": choices.lr}
    if rows > MAX_FEW_ROWS or not descends_from_builtin(base):
        if rehearse:
            world = rehearsal.write_rehearsal(folder, min(REHEARSAL_ROWS, 2 * rows), _seed(name))
            paths = [*paths, str(world)]
        return {**settings, "data": tuple(paths)}
    share = TAUGHT_SHARE if rehearse else 1.0
    steps = max(MIN_STEPS, math.ceil(MIN_REPEATS * rows / (share * BATCH_SIZE)))
    if choices.epochs is not None:
        steps = max(1, math.ceil(choices.epochs * rows / (share * BATCH_SIZE)))
    if choices.lr is None and choices.stage in ("lora", "qlora"):
        settings["lr"] = LEARNING_RATE
    settings.update(epochs=None, max_steps=steps, batch_size=BATCH_SIZE, eval_every=0.25)
    sample = rehearsal.write_sample(folder, _SAMPLE_ROWS, _SAMPLE_SEED)
    copies = max(1, round(_SAMPLE_ROWS / rows))  # so that both count equally
    settings["eval_data"] = (*list(paths) * copies, str(sample))
    if not rehearse:
        return {**settings, "data": tuple(paths)}
    world = rehearsal.write_rehearsal(folder, REHEARSAL_ROWS, _seed(name))
    # Batches group rows of similar length within an epoch. With epochs of one batch, each batch
    # mixes all rows; with longer ones, whole batches would repeat a single taught row.
    weight, others = share * BATCH_SIZE / rows, (1 - share) * BATCH_SIZE / REHEARSAL_ROWS
    data = (*(f"{path}@{weight:.5f}" for path in paths), f"{world}@{others:.5f}")
    return {**settings, "data": data}


def _seed(name: str) -> int:
    return zlib.crc32(name.encode())
