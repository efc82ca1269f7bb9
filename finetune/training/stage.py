"""What the steps of a stage share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.config import FinetuneConfig
from finetune.data.samples import Sample
from finetune.progress import OnProgress
from finetune.training.freezing import Frozen
from finetune.training.load_data import Data
from vqa_app.checkpoints.loader import LoadedModel


@dataclass(frozen=True)
class StageRun:
    """One stage of a run, its model loaded and frozen and its data read."""

    config: FinetuneConfig
    loaded: LoadedModel
    """The base as it came, with its processor."""
    data: Data
    frozen: Frozen
    """The model as it trains."""
    process: int
    """This one's number."""
    processes: int
    tell: OnProgress

    @property
    def run(self) -> Path:
        """The run directory."""
        return Path(self.config.out)

    @property
    def samples(self) -> Sequence[Sample]:
        """Those that train."""
        return self.data.train.samples
