"""The recipe, one call a step: read, check, load, freeze, plan, train, save, report."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from finetune import checkpoint
from finetune.config import FinetuneConfig
from finetune.preflight import Preflight, Summary, leaking, split, summarize
from finetune.progress import OnProgress, Progress
from vqa_app.errors import UsageError
from vqa_app.manifest import read_manifest

log = logging.getLogger(__name__)

IDENTITY_FILE = "started.json"
SHOWN_PROBLEMS = 20
NOT_IDENTITY = {
    "resume", "workers", "report_to", "keep", "feature_gb", "feature_dir", "save_every", "device",
    "out", "images", "eval_data"
}  # fmt: skip
"""Options that change nothing of what is learned, or that are told by what is in the data: a run
may go on with others."""
BEFORE_A_START = {IDENTITY_FILE, "skipped.jsonl", "skipped_eval.jsonl", "projector"}
"""What this package writes into a run's folder before it is told what the run is."""


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


@dataclass(frozen=True)
class Data:
    train: Preflight
    held_out: Preflight

    @property
    def summary(self) -> Summary:
        return summarize(self.train.samples)


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
    from finetune.stopping import Stop
    from vqa_app.quiet import quiet

    with quiet():
        from finetune.reporting import check_reporters
        from finetune.stages import run_stage

    if not config.data:
        raise UsageError("There is no data to train on.", "Give --data.")
    if not config.out:
        raise UsageError("There is no folder for the run.", "Give --out.")
    run = Path(config.out)
    _refuse_finished(run)
    _claim(run)
    check_reporters(config.report_to)
    shown = on_progress if on_progress and _main_process() else _silent

    def tell(progress: Progress) -> None:
        if cancel is not None and cancel.is_set() and progress.phase in ("checking", "encoding"):
            raise _Cancelled
        shown(progress)

    try:
        with Stop(cancel) as stop:
            if config.recipe == "llava":
                first = config.replace(stage="projector", recipe=None, out=str(run / "projector"))
                if not _is_done(first):
                    tell(Progress("loading", message="Stage 1 of 2: the projector."))
                    result = run_stage(first, tell, stop)
                    if not result.finished:
                        return result
                tell(Progress("loading", message=f"Stage 2 of 2: {config.stage}."))
                return run_stage(config, tell, stop, projector=run / "projector")
            return run_stage(config, tell, stop)
    except _Cancelled:
        return RunResult(run, False, 0, 0)


def read_data(
    config: FinetuneConfig,
    processor: Any,
    *,
    max_length: int,
    share_prefix: bool,
    tell: OnProgress,
) -> Data:
    """Reads and checks all data, and holds rows out.

    Raises:
        DataError: more problems than allowed.
    """
    from finetune.datasets import read_rows
    from finetune.preflight import check_shared

    def checked(sources: Sequence[str], skipped: Path | None) -> Preflight:
        tell(Progress("checking", message=f"Reading {', '.join(sources)}."))
        found = check_shared(
            read_rows(sources, config.images),
            processor,
            max_length=config.max_length or max_length,
            turns=config.turns,
            share_prefix=share_prefix,
            workers=config.workers,
            on_progress=lambda done, of: tell(Progress("checking", done, of)),
        )
        for note in found.notes:
            tell(Progress("checking", message=str(note)))
        for problem in found.problems[:SHOWN_PROBLEMS]:
            tell(Progress("checking", message=str(problem)))
        if (more := len(found.problems) - SHOWN_PROBLEMS) > 0:
            tell(Progress("checking", message=f"... and {more:,} more problems."))
        found.raise_beyond(config.max_bad, skipped)
        if found.problems:
            message = (
                f"{len(found.problems):,} bad rows are left out; they are listed in {skipped}."
            )
            tell(Progress("checking", message=message))
        return found

    train_data = checked(config.data, Path(config.out) / "skipped.jsonl")
    if config.eval_data:
        held_out = checked(config.eval_data, Path(config.out) / "skipped_eval.jsonl")
        if leaks := leaking(train_data, held_out):
            message = (
                f"Note: {len(leaks):,} held-out rows repeat training rows or show their pictures."
            )
            tell(Progress("checking", message=message))
    else:
        train_data, held_out = split(train_data, config.eval_fraction, config.seed)
    if copies := train_data.duplicates():
        later = copies[0][1].row.place
        message = f"Note: {len(copies):,} rows are duplicates, the first at {later}."
        tell(Progress("checking", message=message))
    tell(Progress("checking", message=describe(summarize(train_data.samples), held_out)))
    return Data(train_data, held_out)


def describe(counted: Summary, held_out: Preflight) -> str:
    """The training data in one line."""
    questions = sum(len(row.references) for row in held_out.rows)
    least, median, _, most = counted.quantiles
    return (
        f"{counted.rows:,} rows, {counted.answers:,} answers, {counted.pictures:,} pictures; "
        f"{least:,} to {most:,} tokens, median {median:,}; {counted.trained_tokens:,} trained. "
        f"Held out: {len(held_out.rows):,} rows with {questions:,} questions."
    )


def start_or_resume(run: Path, config: FinetuneConfig, identity: dict[str, Any]) -> Path | None:
    """The checkpoint to go on from, or None after clearing the way for a fresh start.

    Raises:
        UsageError: the folder holds another run, or nothing although it must.
    """
    checkpoint.sweep(run)
    saved = checkpoint.latest_checkpoint(run)
    before = _read_json(run / IDENTITY_FILE)
    if config.resume == "must" and saved is None:
        raise UsageError(f"{run} holds no checkpoint to go on from.", "Leave --resume at auto.")
    if saved is not None and config.resume != "never":
        other = sorted(k for k in {*before, *identity} if before.get(k) != identity.get(k))
        if other:
            raise UsageError(
                f"{run} holds an interrupted run with another {', '.join(other)}.",
                "Run its own command to go on, give another --out, or drop it by --resume never.",
            )
        return saved
    for leftover in (checkpoint.CHECKPOINTS, "watch", "plots"):
        shutil.rmtree(run / leftover, ignore_errors=True)
    for name in ("metrics.jsonl", "watch.jsonl"):
        (run / name).unlink(missing_ok=True)
    run.mkdir(parents=True, exist_ok=True)
    (run / IDENTITY_FILE).write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")
    return None


def identity_of(config: FinetuneConfig, data: Data, fingerprint: str) -> dict[str, Any]:
    """What has to be the same for a run to go on."""
    options = {k: v for k, v in config.to_dict().items() if k not in NOT_IDENTITY}
    return {
        **options,
        "data": data.train.data_hash(),
        "held-out data": data.held_out.data_hash(),
        "base weights": fingerprint,
    }


def command_of(config: FinetuneConfig, processes: int = 1) -> str:
    """The shell command that makes the same run, however this one was started."""
    import shlex

    words = ["vqa-app", "finetune"]
    if processes > 1:
        words = f"accelerate launch --num_processes {processes} -m finetune".split()
    for known in fields(config):
        value, option = getattr(config, known.name), "--" + known.name.replace("_", "-")
        if value == known.default:
            continue
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
            continue
        for item in value if isinstance(value, tuple) else (value,):
            words += [option, f"{item:.10g}" if isinstance(item, float) else str(item)]
    return shlex.join(words)


def _is_done(config: FinetuneConfig) -> bool:
    """Whether a finished run of the same config is in its folder; one of another gives way."""
    run = Path(config.out)
    manifest = read_manifest(run)
    if manifest is None:
        return False
    before, now = (
        {k: v for k, v in values.items() if k not in NOT_IDENTITY and v is not None}
        for values in (manifest.config, config.to_dict())
    )
    if config.resume != "never" and now == {k: before.get(k) for k in now}:
        return True
    shutil.rmtree(run)
    return False


def _claim(run: Path) -> None:
    """Makes the folder.

    Raises:
        UsageError: it can't be written to, or holds somebody's files, which a run would overwrite.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run):
            pass
        others = sorted(p.name for p in run.iterdir() if p.name not in BEFORE_A_START)
    except OSError as error:
        why = error.strerror or error
        raise UsageError(f"Cannot write to {run}: {why}.", "Give another --out.") from error
    if others and not (run / IDENTITY_FILE).exists():
        raise UsageError(
            f"{run} holds other files, such as {others[0]}.", "Give a new or empty folder as --out."
        )


def _refuse_finished(run: Path) -> None:
    """A run that was killed while it wrote its report has its manifest, and checkpoints still."""
    if (run / "manifest.json").exists() and not (run / checkpoint.CHECKPOINTS).exists():
        raise UsageError(f"{run} holds a finished run.", "Give another --out, or remove it.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


class _Cancelled(Exception):
    """The caller does not want the run any more, and there is nothing to save yet."""


def _main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _silent(_: Progress) -> None:
    pass
