"""The recipe, one call a step: load -> data -> freeze -> settle -> train -> leave."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune.config import FinetuneConfig
from finetune.data.read import check_sources
from finetune.progress import OnProgress, Progress, format_metric, pluralize
from finetune.runs import checkpoint
from finetune.training import resume
from finetune.training.interrupt import Stop
from vqa_app.devices import is_out_of_memory, release_memory
from vqa_app.errors import ModelError, UsageError
from vqa_app.quiet import quiet

with quiet():
    from transformers.integrations import integration_utils

    from finetune.training import finish, stages
    from finetune.training.device import (
        LESS_MEMORY,
        clear_frames,
        device_of,
        join_processes,
        reset_peak_memory,
    )
    from finetune.training.held_out import Evaluation, watched
    from finetune.training.load_data import read_data
    from finetune.training.stage import StageRun


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    run: Path
    """The run directory; `load_model` opens it when the run is finished."""
    finished: bool
    """False: somebody stopped it; the same command goes on."""
    step: int
    steps: int
    evaluation: dict[str, float] = field(default_factory=dict)
    """Of the saved weights on held-out rows: vqa_accuracy, loss, image_gain. Empty without any."""
    questions: int = 0
    """How many held-out questions that is about."""

    def __str__(self) -> str:
        scores = ", ".join(format_metric(name, value) for name, value in self.evaluation.items())
        asked = f"; on {pluralize(self.questions, 'held-out question')}: {scores}" if scores else ""
        return f"{self.run}: {pluralize(self.steps, 'step')}{asked}."


def train(
    config: FinetuneConfig,
    on_progress: OnProgress | None = None,
    cancel: threading.Event | None = None,
) -> RunResult:
    """Trains as the config says and leaves a run directory.

    May be called in any thread. Where the same config was interrupted before, it goes on there.

    Args:
        on_progress: told what happens, a few times a second at most by phase, and at every step.
        cancel: ends the run after the step in progress, with a checkpoint.

    Raises:
        VqaError: whatever a person can mend.
    """
    if not config.data:
        raise UsageError("There is no data to train on.", "Give --data.")
    if not config.out:
        raise UsageError("There is no folder for the run.", "Give --out.")
    check_reporters(config.report_to)
    device_of(config)
    check_sources((*config.data, *config.eval_data), config.images)
    run = Path(config.out)
    resume.refuse_finished(run)
    resume.claim(run)
    watched(config)  # what is wrong with them is told now
    shown = on_progress if on_progress and _main_process() else _silent

    def tell(progress: Progress) -> None:
        if cancel is not None and cancel.is_set() and progress.phase in ("checking", "encoding"):
            raise _Cancelled
        shown(progress)

    alone = resume.in_use(run) if _main_process() else contextlib.nullcontext()
    try:
        with alone, resume.writing(run), Stop(cancel) as stop:
            resume.refuse_finished(run)  # by somebody who was in it until now
            if config.recipe == "llava":
                return _llava(config, tell, stop)
            return run_stage(config, tell, stop)
    except _Cancelled:
        return RunResult(run, False, 0, 0)


def _llava(config: FinetuneConfig, tell: OnProgress, stop: Stop) -> RunResult:
    """The projector alone, unless that is done, then the config's own stage."""
    projector = Path(config.out) / "projector"
    first = config.replace(
        stage="projector", recipe=None, out=str(projector), projector_lr=None
    )  # its rate where more than it trains
    if not resume.is_done(first):
        resume.claim(projector)
        tell(Progress("loading", message="Stage 1 of 2: the projector."))
        result = run_stage(first, tell, stop)
        if not result.finished:
            return result
    tell(Progress("loading", message=f"Stage 2 of 2: {config.stage}."))
    return run_stage(config, tell, stop, projector)


def run_stage(
    config: FinetuneConfig, tell: OnProgress, stop: Stop, projector: Path | None = None
) -> RunResult:
    """Trains one stage, and lets go of all that it held.

    Args:
        projector: run whose projector to begin with.

    Raises:
        ModelError: out of memory; with what was being done.
    """
    phase = "loading"

    def told(progress: Progress) -> None:
        nonlocal phase
        phase = progress.phase
        tell(progress)

    try:
        return _stage(config, told, stop, projector)
    except BaseException as error:
        clear_frames(error)
        if not is_out_of_memory(error):
            raise
        raise ModelError(f"Out of memory while {phase}.", LESS_MEMORY) from error
    finally:
        release_memory()


def _stage(
    config: FinetuneConfig, tell: OnProgress, stop: Stop, projector: Path | None
) -> RunResult:
    process, processes = join_processes(config)
    loaded, config = stages.load(config, projector, tell)
    data = read_data(config, loaded, tell)
    if doubt := finish.doubt_held_out(loaded, data):
        tell(Progress("checking", message=doubt))
    if projector is not None:
        identity = resume.identity_of(config, data, loaded.fingerprint)
        resume.require_same_data(projector, identity)
    frozen = stages.freeze_base(config, loaded, tell)
    stage = StageRun(config, loaded, data, frozen, process, processes, tell)
    saved = stages.resume_point(stage)
    settings = stages.settle(stage, saved)
    evaluation = Evaluation.of(stage)
    features = stages.keep_features(stage, settings)
    trainer = stages.make_trainer(stage, settings, features, evaluation, stop)
    reset_peak_memory(config)
    stages.fit(trainer, saved, stop)
    if trainer.stopped:
        where = checkpoint.latest_checkpoint(stage.run)
        stopped = f"Stopped; {where} is saved. Run the same command to continue."
        tell(Progress("training", message=stopped))
        scores = trainer.best.last
    else:
        scores = finish.finish(stage, trainer, evaluation)
        tell(Progress("done", trainer.state.global_step, settings.steps, evaluation=scores))
    step = trainer.state.global_step
    asked = len(evaluation.questions) if evaluation else 0
    return RunResult(stage.run, not trainer.stopped, step, settings.steps, scores, asked)


def check_reporters(names: Sequence[str]) -> None:
    """Refuses, before anything is read, what would fail when training begins.

    Raises:
        UsageError: no integration of that name, or its package is not installed.
    """
    for name in names:
        callback = integration_utils.INTEGRATION_TO_CALLBACK.get(name)
        if callback is None:
            raise UsageError(
                f"report_to is {name!r}.", "Give tensorboard, wandb or trackio, or leave it out."
            )
        try:
            callback()
        except (ImportError, RuntimeError) as error:
            raise UsageError(
                f"Cannot report to {name}: it is not installed.", f"pip install {name}"
            ) from error


class _Cancelled(Exception):
    """The caller does not want the run any more, and there is nothing to save yet."""


def _main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _silent(_: Progress) -> None:
    pass
