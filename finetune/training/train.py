"""The recipe: load the model and the data, freeze, decide the settings, train, save.

`finetune.training.stages` holds the steps.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune.config import FinetuneConfig
from finetune.data.read import check_sources
from finetune.progress import CONTINUE_HINT, OnProgress, Progress, format_metric, pluralize
from finetune.runs import checkpoint
from finetune.training import resume
from finetune.training.interrupt import Stop
from vqa_app.devices import clear_frames, device_error, is_out_of_memory, release_memory
from vqa_app.errors import ModelError, UsageError
from vqa_app.quiet import quiet

with quiet():
    from finetune.training import finish, stages
    from finetune.training.device import LESS_MEMORY, Machine, set_up_machine
    from finetune.training.held_out import Evaluation, watch_questions
    from finetune.training.load_data import read_data
    from finetune.training.sharding import divided_loading
    from finetune.training.stage import StageRun
    from vqa_app.transformers_internals import reporter


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    run: Path
    """The run directory; `load_model` opens it when the run is finished."""
    finished: bool
    """False if the run was stopped; the same command continues it."""
    step: int
    """The last step taken."""
    steps: int
    """How many steps the whole run has."""
    evaluation: dict[str, float] = field(default_factory=dict)
    """vqa_accuracy, loss and image_gain of the saved weights on held-out rows; empty without
    any."""
    questions: int = 0
    """How many held-out questions were answered for it."""

    def __str__(self) -> str:
        scores = ", ".join(format_metric(name, value) for name, value in self.evaluation.items())
        result = (
            f"; on {pluralize(self.questions, 'held-out question')}: {scores}" if scores else ""
        )
        return f"{self.run}: {pluralize(self.steps, 'step')}{result}."


def train(
    config: FinetuneConfig,
    on_progress: OnProgress | None = None,
    cancel: threading.Event | None = None,
) -> RunResult:
    """Train as the config says and write a run directory.

    May be called in any thread. If a run of the same config was interrupted in this directory, it
    continues.

    Args:
        config: All options of the run.
        on_progress: Called at every step, and a few times a second in the other phases; only in the
            main process.
        cancel: Setting it ends the run after the current step, with a checkpoint.

    Raises:
        VqaError: Anything that a person can correct.
    """
    if not config.data:
        raise UsageError("There is no data to train on.", "Give --data.")
    if not config.out:
        raise UsageError("There is no folder for the run.", "Give --out.")
    check_reporters(config.report_to)
    machine = set_up_machine(config)
    run = Path(config.out)
    report = _cancellable(on_progress if machine.is_main else None, cancel)
    try:
        with machine.ending_together():
            check_sources((*config.data, *config.eval_data), config.images)
            resume.refuse_finished(run)
            resume.claim(run)
            watch_questions(config.watch, config.images)  # wrong ones before the model is loaded
            with (
                resume.lock(run) if machine.is_main else contextlib.nullcontext(),
                resume.disk_errors(run),
                Stop(cancel) as stop,
            ):
                resume.refuse_finished(run)  # another process may have finished it meanwhile
                if config.recipe == "llava":
                    return _train_llava(config, machine, report, stop)
                return train_stage(config, machine, report, stop)
    except _Cancelled:
        return RunResult(run, False, 0, 0)


def _train_llava(
    config: FinetuneConfig, machine: Machine, on_progress: OnProgress, stop: Stop
) -> RunResult:
    """Train the projector alone, unless that is done, then the config's own stage."""
    projector = Path(config.out) / "projector"
    # projector_lr is for stages that train more than the projector.
    first = config.replace(stage="projector", recipe=None, out=projector, projector_lr=None)
    if not resume.is_done(first):
        resume.claim(projector)
        on_progress(Progress("loading", message="Stage 1 of 2: the projector."))
        result = train_stage(first, machine, on_progress, stop)
        if not result.finished:
            return result
    on_progress(Progress("loading", message=f"Stage 2 of 2: {config.stage}."))
    return train_stage(config, machine, on_progress, stop, projector)


def train_stage(
    config: FinetuneConfig,
    machine: Machine,
    on_progress: OnProgress,
    stop: Stop,
    projector: Path | None = None,
) -> RunResult:
    """Train one stage, then release all memory that it held.

    Args:
        config: All options of the stage.
        machine: Where it trains.
        on_progress: Called with what happens.
        stop: Whether to end early.
        projector: Run directory whose projector to start from.

    Raises:
        ModelError: Out of memory; the message names the phase. Or the GPU or its driver failed.
    """
    phase = "loading"

    def report(progress: Progress) -> None:
        nonlocal phase
        phase = progress.phase
        on_progress(progress)

    try:
        with divided_loading(config, machine):
            return _run_steps(config, machine, report, stop, projector)
    except BaseException as error:
        clear_frames(error)
        if failure := device_error(error):
            raise failure from error
        if not is_out_of_memory(error):
            raise
        raise ModelError(f"Out of memory while {phase}.", LESS_MEMORY) from error
    finally:
        release_memory()


def _run_steps(
    config: FinetuneConfig,
    machine: Machine,
    on_progress: OnProgress,
    stop: Stop,
    projector: Path | None,
) -> RunResult:
    loaded, config = stages.load(config, machine, projector, on_progress)
    machine = stages.without_overflow(machine, loaded, on_progress)
    data = read_data(config, machine, loaded, on_progress)
    finish.warn_of_earlier_training(loaded, data, on_progress)
    if projector is not None:
        resume.require_same_data(projector, resume.identity_of(config, data, loaded.fingerprint))
    trained = stages.freeze_base(config, loaded, on_progress)

    stage = StageRun(config, machine, loaded, data, trained, on_progress)
    saved = stages.find_checkpoint(stage)
    settings = stages.decide_settings(stage, saved)
    evaluation = Evaluation.of(stage)
    features = stages.store_features(stage, settings)
    trainer = stages.make_trainer(stage, settings, features, evaluation, stop)

    machine.reset_peak_memory()
    stages.fit(trainer, saved, stop)
    step = trainer.state.global_step
    questions = len(evaluation.questions) if evaluation else 0
    if trainer.stopped:
        where = checkpoint.latest_checkpoint(stage.run)
        stage.announce("training", f"Stopped; {where} is saved. {CONTINUE_HINT}")
        return RunResult(
            stage.run, False, step, settings.steps, trainer.best.latest_scores, questions
        )
    scores = finish.finish(stage, trainer, evaluation)
    on_progress(Progress("done", step, settings.steps, evaluation=scores))
    return RunResult(stage.run, True, step, settings.steps, scores, questions)


def check_reporters(names: Sequence[str]) -> None:
    """Check that every integration of `report_to` is installed, before anything is read.

    Raises:
        UsageError: There is no integration of that name, or its package is not installed.
    """
    for name in names:
        callback = reporter(name)
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
    """The caller cancelled the run before there was anything to save."""


def _cancellable(on_progress: OnProgress | None, cancel: threading.Event | None) -> OnProgress:
    """Return a callback that raises `_Cancelled` if the run is cancelled before it trains."""

    def report(progress: Progress) -> None:
        if cancel is not None and cancel.is_set() and progress.phase in ("checking", "encoding"):
            raise _Cancelled
        if on_progress:
            on_progress(progress)

    return report
