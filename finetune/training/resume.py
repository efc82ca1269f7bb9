"""A run's folder before it is finished: whose it is, and whether a run goes on in it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

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
from vqa_app.files import require_writable

IDENTITY_FILE = "started.json"
NOT_IDENTITY = {
    "resume", "workers", "report_to", "keep", "feature_gb", "feature_dir", "save_every", "device",
    "out", "micro_batch_size", "gradient_checkpointing", "watch", "eval_every", "patience",
    "images", "eval_data", "eval_fraction", "turns", "max_length", "max_bad"
}  # fmt: skip
"""Options that change nothing of what a step learns, or that are told by what is in the data: a run
may go on with others. Not `metric` and `eval_questions`: the best evaluation so far is compared
with later ones."""
_OF_LORA = {"rank", "alpha", "dropout"}
_NOT_OF_DONE = {"metric", "eval_questions", "fsdp", "deepspeed"}
"""What may differ besides where a finished projector is gone on with."""
_READ = ("data", "base weights")
"""Of the identity, what is known only when it has been read."""
DIVISION = ("device", "processes", "micro_batch_size", "micro_batches", "gradient_checkpointing")
"""What is decided by the memory that is free at the start."""
_DIVIDED = "divided"
_LOCK_FILE = ".lock"
BEFORE_A_START = {IDENTITY_FILE, SKIPPED_FILE, SKIPPED_EVAL_FILE, "projector", _LOCK_FILE}
"""What this package writes into a run's folder before it is told what the run is."""


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
        if other := _differences(before, identity):
            raise UsageError(
                f"{run} holds an interrupted run with another {', '.join(other)}.",
                "Run its own command to go on, give another --out, or drop it by --resume never.",
            )
        return saved
    for leftover in (checkpoint.CHECKPOINTS, WATCH_FOLDER, PLOTS):
        shutil.rmtree(run / leftover, ignore_errors=True)
    for name in (METRICS_FILE, WATCH_FILE, MANIFEST_FILE):
        (run / name).unlink(missing_ok=True)
    run.mkdir(parents=True, exist_ok=True)
    (run / IDENTITY_FILE).write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")
    return None


def cut_metrics(run: Path, step: int) -> None:
    """Drops the lines of steps that are about to be taken again."""
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
                continue  # the process was killed within this line
        path.write_text("".join(kept), encoding="utf-8")


def divided(run: Path) -> dict[str, Any]:
    """How a step was divided when the run began, by the names in `DIVISION`; may be empty."""
    return _read_json(run / IDENTITY_FILE).get(_DIVIDED, {})


def keep_divided(run: Path, division: dict[str, Any]) -> None:
    """Notes that beside the run's identity."""
    noted = _read_json(run / IDENTITY_FILE) | {_DIVIDED: division}
    (run / IDENTITY_FILE).write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")


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
    """Whether the recipe's first stage is finished in its folder. `resume` never removes it.

    Raises:
        UsageError: a finished run is there with other options that this stage uses.
    """
    run = Path(config.out)
    if not _is_whole(run) or config.resume == "never":  # what is there goes once data is read
        return False
    before = _read_json(run / IDENTITY_FILE)
    other = _differences(before, before | config.to_dict())
    _refuse_other(run, sorted(set(other) - _NOT_OF_DONE - {*_READ}))
    return True


def require_same_data(projector: Path, identity: dict[str, Any]) -> None:
    """Looks whether a finished projector was trained on what its user is trained on.

    Raises:
        UsageError: it was trained on other data or another base.
    """
    before = _read_json(projector / IDENTITY_FILE)
    _refuse_other(projector, [name for name in _READ if before.get(name) != identity[name]])


def _refuse_other(projector: Path, other: Sequence[str]) -> None:
    if other:
        raise UsageError(
            f"{projector} holds a finished run with another {', '.join(other)}.",
            "Give what it was trained with, or another --out, or train the projector again by "
            "--resume never.",
        )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names in two identities that make them two runs."""
    unused = NOT_IDENTITY | {_DIVIDED} | (_OF_LORA if now.get("stage") == "projector" else set())
    return sorted(k for k in {*before, *now} - unused if before.get(k) != now.get(k))


def claim(run: Path) -> None:
    """Makes the folder.

    Raises:
        UsageError: it can't be written to, or holds somebody's files, which a run would overwrite.
    """
    require_writable(run)
    others = sorted(p.name for p in run.iterdir() if p.name not in BEFORE_A_START)
    if others and not (run / IDENTITY_FILE).exists():
        raise UsageError(
            f"{run} holds other files, such as {others[0]}.", "Give a new or empty folder as --out."
        )


@contextlib.contextmanager
def in_use(run: Path) -> Iterator[None]:
    """Keeps other processes and threads out of a run's folder; one of several processes that train
    together does it for all.

    The lock is the operating system's, which drops it whatever ends the process. On disks that know
    no locks nobody is kept out.

    Raises:
        UsageError: another run is in the folder.
    """
    path = run / _LOCK_FILE
    # A file that only stands there would keep everybody out after a kill.
    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UsageError(
            f"{run} is in use: {_holder(path)} trains in it.", "Wait for its end, or stop it."
        ) from error
    except (OSError, NotImplementedError):
        path.unlink(missing_ok=True)
        yield
        return
    try:
        with contextlib.suppress(OSError):
            path.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):  # on Windows it goes when it is let go
            path.unlink()
        lock.release()


_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


@contextlib.contextmanager
def writing(run: Path) -> Iterator[None]:
    """Turns what the disk refuses while a run is made into an error that says so.

    Raises:
        ModelError: with where, and what to do. All that had been saved before is whole.
    """
    try:
        yield
    except OSError as error:
        named = str(error.filename or "")
        if error.errno not in _DISK_ERRORS and not (named and Path(named).is_relative_to(run)):
            raise
        last = checkpoint.latest_checkpoint(run)
        goes_on = f"; it goes on from {last}" if last else ""
        raise ModelError(
            f"Cannot write {named or f'to {run}'}: {error.strerror or error}.",
            f"Make room, or make it writable, and run the same command again{goes_on}.",
        ) from error


def _holder(path: Path) -> str:
    try:
        number = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        number = ""
    return f"process {number}" if number else "another process"


def refuse_finished(run: Path) -> None:
    """Before anything of it is changed.

    Raises:
        UsageError: the folder holds one.
    """
    if _is_whole(run):
        raise UsageError(f"{run} holds a finished run.", "Give another --out, or remove it.")


def _is_whole(run: Path) -> bool:
    """A run that was killed while it wrote its report has its manifest, and checkpoints still."""
    return is_finished(run) and checkpoint.latest_checkpoint(run) is None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
