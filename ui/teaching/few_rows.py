"""How the page trains: few rows want another recipe than many.

A handful of corrections would be a handful of steps by the defaults of `finetune`, which are made
for thousands of rows; and trained on nothing else, a small model forgets the rest. So few rows
get a number of steps instead of passes, every second row of a batch is one of the model's own
world, and the weights that are kept answer both best: the taught rows and a sample of the world.
`tests/benchmarks/few_taught_rows.py` measures what is learned and what is forgotten.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ui.teaching import rehearsal
from vqa_app.checkpoints.manifest import read_manifest
from vqa_app.errors import DataError, ModelError
from vqa_app.serving.engine_pool import ModelChoice

FEW = 200
"""Rows up to which this recipe is taken."""
BATCH = 16
SHARE = 0.5
"""Of a batch: the rows that are taught; the others are rehearsed."""
LEAST_STEPS = 150
SHOWN = 24
"""Times that each taught row is shown, at least."""
REHEARSED = 600
"""Questions of its own world to draw from, each about another picture: 480 about 45 pictures were
learned by heart, at the cost of the others."""
RATE = 4.6e-4
"""Learning rate of LoRA, half of `finetune`'s own for the built-in model: all rows are learned at
either, and its own world loses a third as much (`tests.benchmarks.few_taught_rows`)."""
_SAMPLE, _SAMPLE_SEED = 24, 8_000_000


@dataclass(frozen=True)
class Wanted:
    """What a person chose; None is ours to decide."""

    stage: str
    passes: float | None
    rate: float | None
    rehearse: bool


def knows_world(choice: ModelChoice) -> bool:
    """Whether a model is the built-in one, or was trained from it, so that its world is worth
    keeping.
    """
    source = choice.source
    for _ in range(100):
        if source == "builtin":
            return choice.adapter is None
        try:
            manifest = read_manifest(Path(source))
        except (ModelError, OSError):
            return False
        if manifest is None:
            return False
        source = manifest.base.name
    return False


def settings_for(
    paths: Sequence[str], base: ModelChoice, wanted: Wanted, folder: Path, name: str
) -> dict[str, Any]:
    """What of `finetune.config.FinetuneConfig` depends on how many rows there are.

    Args:
        paths: the data files.
        folder: where rehearsed rows may be written.
        name: of the run; other runs rehearse other rows.
    """
    from finetune.data.read import read_rows

    rows = sum(len(row.references) for row in read_rows(paths).rows)
    if not rows:
        raise DataError("No row of this data can be used.", "See what its check says.")
    rehearse = wanted.rehearse and knows_world(base)
    settings: dict[str, Any] = {"epochs": wanted.passes, "lr": wanted.rate}
    if rows > FEW or not knows_world(base):
        if rehearse:
            world = rehearsal.write_rehearsal(folder, min(600, 2 * rows), _seed(name))
            paths = [*paths, str(world)]
        return {**settings, "data": tuple(paths)}
    share = SHARE if rehearse else 1.0
    steps = max(LEAST_STEPS, math.ceil(SHOWN * rows / (share * BATCH)))
    if wanted.passes is not None:
        steps = max(1, math.ceil(wanted.passes * rows / (share * BATCH)))
    if wanted.rate is None and wanted.stage in ("lora", "qlora"):
        settings["lr"] = RATE
    settings.update(epochs=None, max_steps=steps, batch_size=BATCH, eval_every=0.25)
    sample = rehearsal.write_sample(folder, _SAMPLE, _SAMPLE_SEED)
    copies = max(1, round(_SAMPLE / rows))  # so that one weighs as much as the other
    settings["eval_data"] = (*list(paths) * copies, str(sample))
    if not rehearse:
        return {**settings, "data": tuple(paths)}
    world = rehearsal.write_rehearsal(folder, REHEARSED, _seed(name))
    # Rows of like length are put together within an epoch. One as large as a batch keeps all in
    # each; of a longer one, whole batches would be one taught row again and again.
    weight, others = share * BATCH / rows, (1 - share) * BATCH / REHEARSED
    data = (*(f"{path}@{weight:.5f}" for path in paths), f"{world}@{others:.5f}")
    return {**settings, "data": data}


def _seed(name: str) -> int:
    return zlib.crc32(name.encode())
