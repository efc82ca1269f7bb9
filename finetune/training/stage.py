"""What the steps of a stage share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.config import FinetuneConfig
from finetune.data.samples import Sample
from finetune.progress import OnProgress, Phase, Progress
from finetune.training.device import Machine
from finetune.training.freezing import TrainableModel
from finetune.training.load_data import Data
from vqa_app.checkpoints.loader import LoadedModel


@dataclass(frozen=True)
class StageRun:
    """One stage of a run with its model loaded and frozen, and its data read."""

    config: FinetuneConfig
    machine: Machine
    loaded: LoadedModel
    """The base as it was loaded, with its processor."""
    data: Data
    trained: TrainableModel
    """The model as it trains."""
    on_progress: OnProgress

    @property
    def run(self) -> Path:
        """The run directory."""
        return Path(self.config.out)

    @property
    def samples(self) -> Sequence[Sample]:
        """The training samples."""
        return self.data.train.samples

    def announce(self, phase: Phase, message: str) -> None:
        """Report a sentence that stays on the screen."""
        self.on_progress(Progress(phase, message=message))
