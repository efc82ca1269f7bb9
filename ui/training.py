"""Training from the page: one run at a time, in a thread that outlives the tab that started it."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ui import before_after
from ui.handlers import Desk, Request, Update, message_of, without_paths
from ui.hub import Choice
from ui.recipe import Wanted, knows_world, settings_for
from ui.render import SHORT_STYLE
from ui.teach import MAX_ROWS, Teaching, data_files, refuse_outside, unpack
from vqa_app.errors import DataError, UsageError, VqaError

log = logging.getLogger(__name__)

State: TypeAlias = Literal["running", "stopping", "comparing", "done", "stopped", "failed"]
STAGES = ("lora", "projector", "full", "qlora")
SHOWN_PROBLEMS = 8
MAX_EPOCHS = 200
_MESSAGES = 12


@dataclass
class Job:
    """A run that was started from the page."""

    owner: str
    name: str
    run: Path
    base: Choice
    stage: str
    state: State = "running"
    phase: str = "loading"
    done: int = 0
    of: int = 0
    seconds_left: float | None = None
    curve: str = "Held-out accuracy, %"
    """What the evaluations on the way show."""
    losses: list[tuple[int, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    error: str = ""
    comparison: dict[str, Any] | None = None
    cancel: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        return self.state in ("running", "stopping", "comparing")


class TrainingDesk:
    """Starts, watches and ends runs.

    Args:
        data_dir: `runs`, `datasets` (for everybody, put there by who runs the server) and `uploads`
            (each owner's) lie in it.
        train: `finetune.train.train`, or what stands in for it in tests.
    """

    def __init__(
        self,
        data_dir: Path,
        desk: Desk,
        teaching: Teaching,
        train: Callable[..., Any] | None = None,
    ) -> None:
        self.data_dir, self.desk, self.teaching = data_dir, desk, teaching
        self._train = train
        self.job: Job | None = None
        self._lock = threading.Lock()

    # -- data --------------------------------------------------------------------------------------

    def sources(self, owner: str) -> list[dict[str, Any]]:
        """The data sets that this owner may train on."""
        count = len(self.teaching.rows(owner))
        words = "1 row" if count == 1 else f"{count:,} rows"
        found = [{"key": "mine", "label": f"My taught rows ({words})", "empty": count == 0}]
        for kind, folder in self._folders(owner):
            if folder.is_dir():
                for path in sorted(folder.iterdir()):
                    if path.is_dir() and not path.name.startswith("."):
                        found.append({"key": f"{kind}:{path.name}", "label": path.name})
        return found

    def _folders(self, owner: str) -> tuple[tuple[str, Path], ...]:
        mine = hashlib.sha256(owner.encode()).hexdigest()[:16]
        return (
            ("upload", self.data_dir / "uploads" / mine),
            ("shared", self.data_dir / "datasets"),
        )

    def _paths(self, owner: str, keys: list[str]) -> list[str]:
        known = {source["key"] for source in self.sources(owner)}
        folders = dict(self._folders(owner))
        paths = []
        for key in keys:
            if key not in known:
                raise UsageError("This data set is not here.", "Pick one from the list.")
            kind, _, name = key.partition(":")
            if kind == "mine":
                if not self.teaching.rows(owner):
                    raise DataError("Nothing has been taught yet.", "Correct an answer first.")
                paths.append(str(self.teaching.file(owner)))
            else:
                paths += map(str, data_files(folders[kind] / name))
        if not paths:
            raise UsageError("No data is chosen.", "Tick at least one data set.")
        return paths

    def upload(self, owner: str, data: bytes, name: str) -> None:
        """Keeps a zip file with a data set of this owner's.

        Raises:
            DataError: it is no zip file with data, or names pictures outside itself.
        """
        from finetune.datasets import read_rows

        name = " ".join(re.sub(r"[^\w\-]+", " ", Path(name).stem).split())[:60] or "data set"
        folder = dict(self._folders(owner))["upload"] / name
        if folder.exists():
            raise DataError(f"There is a data set {name!r} already.", "Rename the file.")
        partial = folder.with_name(f".{name}.part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            unpack(data, partial)
            refuse_outside(read_rows(data_files(partial)).rows, partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def check(self, owner: str, request: Request) -> Update:
        """What is in the chosen data, and what is wrong with it, before anything trains."""
        from finetune.datasets import read_rows

        found = read_rows(self._paths(owner, list(request.get("sources") or [])))
        problems = [f"row {p.row}: {p.what} {p.hint}" for p in found.problems]
        pictures: dict[str, Any] = {s.key: s for row in found.rows for s in row.pictures}
        for source in list(pictures.values())[:2000]:
            try:
                source.open()
            except VqaError as error:
                problems.append(str(error).replace("\n", " "))
        answers = sum(len(row.references) for row in found.rows)
        return {
            "preflight": {
                "rows": len(found.rows),
                "answers": answers,
                "pictures": len(pictures),
                "problems": problems[:SHOWN_PROBLEMS],
                "more_problems": max(0, len(problems) - SHOWN_PROBLEMS),
            }
        }

    # -- runs --------------------------------------------------------------------------------------

    def start(self, owner: str, request: Request) -> Update:
        """Begins a run.

        Raises:
            UsageError: another one is running, or a setting cannot be.
            DataError: there is nothing to train on.
        """
        paths = self._paths(owner, list(request.get("sources") or []))
        stage = str(request.get("stage") or "lora")
        epochs = _number("passes", request.get("epochs"), 0.1, MAX_EPOCHS)
        rate = _number("learning rate", request.get("lr"), 1e-7, 1.0)
        if stage not in STAGES:
            raise UsageError("This stage does not exist.", f"Stages are {', '.join(STAGES)}.")
        base = self.desk.hub.find(self.desk.settings(owner).model)
        name = re.sub(r"[^\w\-]+", "-", str(request.get("name") or "")).strip("-")[:40]
        name = name or time.strftime("taught-%Y-%m-%d-%H%M%S")
        run = self.data_dir / "runs" / name
        with self._lock:
            if self.job is not None and self.job.running:
                raise UsageError("A training is running already.", "Wait for it, or stop it.")
            if (run / "manifest.json").exists():
                raise UsageError(f"There is a run {name!r} already.", "Choose another name.")
            job = self.job = Job(owner, name, run, base, stage)
        wanted = Wanted(stage, epochs, rate, bool(request.get("rehearse")))
        job.thread = threading.Thread(
            target=self._run,
            args=(job, paths, wanted, bool(request.get("skip"))),
            name="training",
            daemon=True,
        )
        job.thread.start()
        return self.status(owner)

    def stop(self, owner: str) -> Update:
        """Ends the owner's run after the step in progress."""
        job = self._own_job(owner)
        if job.running:
            job.state = "stopping"
            job.cancel.set()
        return self.status(owner)

    def close(self) -> None:
        if self.job is not None:
            self.job.cancel.set()

    def _own_job(self, owner: str) -> Job:
        if self.job is None or self.job.owner != owner:
            raise UsageError("You have no training.", "Start one.")
        return self.job

    def _run(self, job: Job, paths: list[str], wanted: Wanted, skip_bad: bool) -> None:
        rehearsed = self.data_dir / "rehearsal" / job.name
        try:
            from finetune.config import FinetuneConfig

            if wanted.rehearse and knows_world(job.base):
                job.messages.append("Drawing pictures of its own world, so that it forgets less.")
            settings = settings_for(paths, job.base, wanted, rehearsed, job.name)
            if settings.get("eval_data"):
                job.curve = "Right: taught rows and its own world, %"
            config = FinetuneConfig(
                model=job.base.source,
                stage=job.stage,  # type: ignore[arg-type]
                out=str(job.run),
                eval_questions=100,
                feature_dir=str(self.data_dir / "features"),
                workers=1,
                max_bad=MAX_ROWS if skip_bad else 0,
                **settings,
            )
            train = self._train
            if train is None:
                from finetune.train import train
            result = train(config, on_progress=lambda p: _note(job, p), cancel=job.cancel)
            if not result.finished:
                job.state = "stopped"
                return
            shutil.rmtree(rehearsed, ignore_errors=True)
            job.state, job.phase = "comparing", "comparing"
            job.comparison = before_after.compare(
                self.desk, self.teaching, job.owner, job.base.key, self._key(job.name), job.cancel
            )
            job.state = "done"
        except Exception as error:
            job.state, job.error = "failed", message_of(error)

    def _key(self, name: str) -> str:
        for choice in self.desk.hub.choices():
            if Path(choice.source).name == name:
                return choice.key
        raise DataError("The run left no model.", "Look at the server's log.")

    def status(self, owner: str) -> Update:
        """What the page shows: the data sets, and the run if there is one."""
        job = self.job
        standing: dict[str, Any] = {
            "sources": self.sources(owner),
            "base": self.desk.hub.find(self.desk.settings(owner).model).label,
            # Before the rest, so that whoever is told "not busy" is told how it ended.
            "busy": job is not None and job.running,
            "job": None,
        }
        if job is not None and job.owner == owner:
            standing["job"] = self._shown(job)
        return {"training": standing}

    def _shown(self, job: Job) -> dict[str, Any]:
        finished = job.state in ("done",)
        return {
            "name": job.name,
            "base": job.base.label,
            "stage": job.stage,
            "state": job.state,
            "phase": job.phase,
            "done": job.done,
            "of": job.of,
            "seconds_left": job.seconds_left,
            "curve": job.curve,
            "losses": job.losses[-2000:],
            "evaluations": job.evaluations,
            "messages": job.messages[-_MESSAGES:],
            "error": job.error,
            "watch": _watched(job.run),
            "comparison": job.comparison,
            "key": self._key(job.name) if finished else None,
        }


def _note(job: Job, progress: Any) -> None:
    """Takes over what `finetune` tells."""
    job.phase, job.done, job.of = progress.phase, progress.done, progress.of
    job.seconds_left = progress.seconds_left or job.seconds_left
    if progress.message:
        job.messages.append(without_paths(progress.message))
    if progress.phase == "training" and progress.loss is not None:
        job.losses.append((progress.done, round(progress.loss, 5)))
    # The last evaluation comes along with every step after it.
    last = {k: v for k, v in (job.evaluations or [{}])[-1].items() if k != "step"}
    if progress.evaluation and progress.evaluation != last:
        job.evaluations.append(
            {"step": job.losses[-1][0] if job.losses else 0, **progress.evaluation}
        )


def _number(what: str, value: Any, low: float, high: float) -> float | None:
    if value in (None, ""):
        return None
    if not isinstance(value, (int, float)) or not low <= value <= high:
        raise UsageError(f"The {what} cannot be {str(value)[:20]}.", f"From {low:g} to {high:g}.")
    return float(value)


def _watched(run: Path) -> list[dict[str, Any]]:
    """The watch questions with their answers at each look: [{question, expected, answers}, ...]."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    try:
        lines = (run / "watch.jsonl").read_text("utf-8").splitlines()
        for line in lines:
            row = json.loads(line)
            question = row["question"].removesuffix(SHORT_STYLE)
            entry = found.setdefault(
                (question, *row.get("pictures", [])),
                {"question": question, "expected": row.get("expected", ""), "answers": []},
            )
            entry["answers"].append({"step": row["step"], "answer": row["answer"]})
    except (OSError, ValueError, KeyError):
        return []  # not there yet, or a line is being written
    return list(found.values())
