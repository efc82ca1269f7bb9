"""The directory of an unfinished run: its lock, its identity, and the checkpoint to resume from."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout

from finetune.config import FinetuneConfig
from finetune.runs import checkpoint
from finetune.runs.layout import (
    METRICS_FILE,
    PLOTS,
    SKIPPED_EVAL_FILE,
    SKIPPED_FILE,
    WATCH_FILE,
    WATCH_FOLDER,
)
from finetune.training.load_data import Data
from vqa_app.checkpoints.manifest import MANIFEST_FILE, is_finished
from vqa_app.errors import ModelError, UsageError
from vqa_app.files import is_disk_error, lock_file, require_writable

IDENTITY_FILE = "started.json"
NOT_IDENTITY = {
    "resume", "workers", "report_to", "keep", "feature_gb", "feature_dir", "save_every", "device",
    "out", "micro_batch_size", "gradient_checkpointing", "watch", "eval_every", "patience",
    "images", "eval_data", "eval_fraction", "turns", "max_length", "max_bad"
}  # fmt: skip
"""Options whose values may change when a run is resumed: they do not affect the training steps, or
their effect is covered by the hash of the data. `metric` and `eval_questions` are not among them,
because earlier evaluations are compared with later ones."""
_LORA_OPTIONS = {"rank", "alpha", "dropout"}
_UNUSED_BY_FINISHED = {"metric", "eval_questions", "fsdp", "deepspeed"}
"""Further options that may have other values when a finished projector is reused."""
_KNOWN_AFTER_READING = ("data", "base weights")
"""Parts of the identity that are known only after the data and the model have been read."""
_DIVISION = "divided"
_LOCK_FILE = ".lock"
FILES_BEFORE_START = {IDENTITY_FILE, SKIPPED_FILE, SKIPPED_EVAL_FILE, "projector", _LOCK_FILE}
"""Names that may be in a run's directory before its identity is written."""


@dataclass(frozen=True)
class Division:
    """How a step is divided into micro-batches, as decided by the memory free at the start."""

    device: str
    processes: int
    micro_batch_size: int
    micro_batches: int
    gradient_checkpointing: bool


def start_or_resume(
    run: Path, config: FinetuneConfig, identity: dict[str, Any], processes: int = 1
) -> Path | None:
    """Return the checkpoint to continue from, or clear the directory and return None.

    Args:
        run: The run directory.
        config: All options of the stage.
        identity: What must be the same for a run to continue; see `identity_of`.
        processes: Number of processes that train now.

    Raises:
        UsageError: The directory holds another run, or no checkpoint although `resume` is must, or
            a checkpoint that only another number of processes can read.
    """
    checkpoint.sweep(run)
    saved = checkpoint.latest_checkpoint(run)
    before = _read_json(run / IDENTITY_FILE)
    if config.resume == "must" and saved is None:
        raise UsageError(
            f"{run} holds no checkpoint to continue from.", "Leave --resume out, or give auto."
        )
    if saved is not None and config.resume != "never":
        if other := _differences(before, identity):
            raise UsageError(
                f"{run} holds an interrupted run with another {', '.join(other)}.",
                "Run its own command to continue, give another --out, or discard it with"
                " --resume never.",
            )
        _check_processes(run, config, processes)
        return saved
    for leftover in (checkpoint.CHECKPOINTS, WATCH_FOLDER, PLOTS):
        shutil.rmtree(run / leftover, ignore_errors=True)
    for name in (METRICS_FILE, WATCH_FILE, MANIFEST_FILE):
        (run / name).unlink(missing_ok=True)
    run.mkdir(parents=True, exist_ok=True)
    _write_json(run / IDENTITY_FILE, identity)
    return None


def _check_processes(run: Path, config: FinetuneConfig, processes: int) -> None:
    """Check that a checkpoint of DeepSpeed is read by as many processes as wrote it.

    Each process has written its own part of the optimiser's state, and DeepSpeed does not divide
    it anew. FSDP does.

    Raises:
        UsageError: The number differs.
    """
    before = read_division(run)
    if not config.deepspeed or before is None or before.processes == processes:
        return
    raise UsageError(
        f"The checkpoints in {run} are of a run with --num_processes {before.processes}; DeepSpeed"
        f" cannot read them with {processes}.",
        f"Continue with accelerate launch --num_processes {before.processes}, or discard them with"
        " --resume never.",
    )


def cut_metrics(run: Path, step: int) -> None:
    """Remove the lines of steps after `step` from the logs: these steps will be repeated."""
    for name in (METRICS_FILE, WATCH_FILE):
        path = run / name
        if not path.exists():
            continue
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue  # the process was killed while it wrote this line
        path.write_text("".join(kept), encoding="utf-8")


def read_division(run: Path) -> Division | None:
    """Return how steps were divided when the run began; None if that is not recorded."""
    saved = _read_json(run / IDENTITY_FILE).get(_DIVISION, {})
    try:
        return Division(**saved)
    except TypeError:
        return None


def write_division(run: Path, division: Division) -> None:
    """Record how steps are divided, beside the run's identity."""
    path = run / IDENTITY_FILE
    _write_json(path, _read_json(path) | {_DIVISION: asdict(division)})


def identity_of(config: FinetuneConfig, data: Data, fingerprint: str) -> dict[str, Any]:
    """Return everything that must be the same for a run to continue."""
    options = {k: v for k, v in config.to_dict().items() if k not in NOT_IDENTITY}
    return {
        **options,
        "data": data.train.data_hash(),
        "held-out data": data.held_out.data_hash(),
        "base weights": fingerprint,
    }


def command_of(config: FinetuneConfig, processes: int = 1) -> str:
    """Return a shell command for the same run, even if this one was not started from a shell."""
    words = ["vqa-app", "finetune"]
    if processes > 1:
        words = f"accelerate launch --num_processes {processes} -m finetune".split()
    for name, field in FinetuneConfig.model_fields.items():
        value, option = getattr(config, name), "--" + name.replace("_", "-")
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
            continue
        for item in value if isinstance(value, tuple) else (value,):
            words += [option, f"{item:.10g}" if isinstance(item, float) else str(item)]
    return shlex.join(words)


def is_done(config: FinetuneConfig) -> bool:
    """Return whether the recipe's first stage is finished and can be reused.

    With `resume` never it is not reused.

    Raises:
        UsageError: It is finished, but with other values of options that this stage uses.
    """
    run = Path(config.out)
    if not _is_complete(run) or config.resume == "never":
        return False
    before = _read_json(run / IDENTITY_FILE)
    other = set(_differences(before, before | config.to_dict()))
    _refuse_projector(run, sorted(other - _UNUSED_BY_FINISHED - {*_KNOWN_AFTER_READING}))
    return True


def require_same_data(projector: Path, identity: dict[str, Any]) -> None:
    """Check that a finished projector was trained on the data and base of this run.

    Raises:
        UsageError: It was trained on other data or another base.
    """
    before = _read_json(projector / IDENTITY_FILE)
    other = [name for name in _KNOWN_AFTER_READING if before.get(name) != identity[name]]
    _refuse_projector(projector, other)


def _refuse_projector(projector: Path, differences: Sequence[str]) -> None:
    if differences:
        raise UsageError(
            f"{projector} holds a finished run with another {', '.join(differences)}.",
            "Use the same values and data, give another --out, or train the projector again with "
            "--resume never.",
        )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the names of the values by which two runs differ."""
    unused = NOT_IDENTITY | {_DIVISION}
    if now.get("stage") == "projector":
        unused |= _LORA_OPTIONS
    return sorted(k for k in {*before, *now} - unused if before.get(k) != now.get(k))


def claim(run: Path) -> None:
    """Create the directory, or check that the existing one belongs to a run.

    Raises:
        UsageError: It cannot be written to, or holds other files, which a run would overwrite.
    """
    require_writable(run)
    others = sorted(p.name for p in run.iterdir() if p.name not in FILES_BEFORE_START)
    if others and not (run / IDENTITY_FILE).exists():
        raise UsageError(
            f"{run} holds other files, such as {others[0]}.", "Give a new or empty folder as --out."
        )


@contextlib.contextmanager
def lock(run: Path) -> Iterator[None]:
    """Keep other runs out of a run's directory.

    Of several processes that train together, the main one holds the lock. The operating system
    releases it however the process ends. On file systems without locks, nothing is locked.

    Raises:
        UsageError: Another run uses the directory.
    """
    path = run / _LOCK_FILE
    try:
        file_lock = lock_file(path)
    except Timeout as error:
        raise UsageError(
            f"{run} is in use: {_lock_holder(path)} trains in it.",
            "Wait until it has finished, or stop it.",
        ) from error
    if file_lock is None:
        path.unlink(missing_ok=True)
        yield
        return
    try:
        with contextlib.suppress(OSError):
            path.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):  # fails on Windows, where releasing removes the file
            path.unlink()
        file_lock.release()


@contextlib.contextmanager
def disk_errors(run: Path) -> Iterator[None]:
    """Turn a failed write into a message with the file, the reason and what to do.

    Raises:
        ModelError: A file could not be written; everything saved before is complete.
    """
    try:
        yield
    except OSError as error:
        path = str(error.filename or "")
        if not is_disk_error(error) and not (path and Path(path).is_relative_to(run)):
            raise
        last = checkpoint.latest_checkpoint(run)
        from_last = f"; it continues from {last}" if last else ""
        raise ModelError(
            f"Cannot write {path or f'to {run}'}: {error.strerror or error}.",
            f"Make room, or make it writable, and run the same command again{from_last}.",
        ) from error


def _lock_holder(path: Path) -> str:
    try:
        number = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        number = ""
    return f"process {number}" if number else "another process"


def refuse_finished(run: Path) -> None:
    """Check that the directory holds no finished run.

    Raises:
        UsageError: It holds one.
    """
    if _is_complete(run):
        raise UsageError(f"{run} holds a finished run.", "Give another --out, or remove it.")


def _is_complete(run: Path) -> bool:
    """Return whether a run is finished; one killed during its report still has checkpoints."""
    return is_finished(run) and checkpoint.latest_checkpoint(run) is None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
