"""Training from the page: one run at a time, in a thread that outlives the tab that started it."""

from __future__ import annotations

import contextlib
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune.runs.layout import WATCH_FOLDER
from ui.chat.requests import PageRequest, PageUpdate, user_message
from ui.chat.service import ChatService
from ui.teaching import before_after
from ui.teaching.few_rows import Wanted, knows_world, settings_for
from ui.teaching.jobs import Job, JobFiles, State
from ui.teaching.taught_rows import Teaching
from ui.teaching.uploads import MAX_ROWS, data_files, read_sent, told, unpack
from vqa_app.errors import DataError, UsageError, VqaError
from vqa_app.pictures.picture import STORED_PICTURE_LIMITS
from vqa_app.serving.model_choices import quantization

STAGES = ("lora", "projector", "full", "qlora")
SHOWN_PROBLEMS = 8
OPENED = 2000
"""Pictures that the check opens: somebody waits for it. The training itself looks at all."""
MAX_EPOCHS = 200
_CHOSEN = ("sources", "stage", "epochs", "lr", "rehearse", "skip")


class TrainingService:
    """Starts, watches and ends runs.

    Args:
        data_dir: `runs`, `trainings` (what the page knows of them), `datasets` (for everybody, put
            there by who runs the server) and `uploads` (each owner's) lie in it.
        train: `finetune.training.train.train`, or what stands in for it in tests.
        device: where to train, as `finetune.config.FinetuneConfig` takes it.
    """

    def __init__(
        self,
        data_dir: Path,
        service: ChatService,
        teaching: Teaching,
        train: Callable[..., Any] | None = None,
        device: str = "auto",
    ) -> None:
        self.data_dir, self.service, self.teaching = data_dir, service, teaching
        self._train, self.device = train, device
        self._files = JobFiles(data_dir / "trainings", data_dir / "runs")
        self.job: Job | None = self._files.latest()
        self._ended: dict[str, Job | None] = {}
        """By owner, their latest run, where another one is the latest of all."""
        self._lock = threading.Lock()
        """Held while a job changes its state."""
        self._closed = False

    # -- data --------------------------------------------------------------------------------------

    def sources(self, owner: str) -> list[dict[str, Any]]:
        """The data sets that this owner may train on."""
        count = self.teaching.count(owner)
        words = "1 row" if count == 1 else f"{count:,} rows"
        found = [{"key": "mine", "label": f"My taught rows ({words})", "empty": count == 0}]
        for kind, folder in self._folders(owner):
            if folder.is_dir():
                for path in sorted(folder.iterdir()):
                    if path.is_dir() and not path.name.startswith("."):
                        found.append({"key": f"{kind}:{path.name}", "label": path.name})
        return found

    def _folders(self, owner: str) -> tuple[tuple[str, Path], ...]:
        mine = self.teaching.home(owner).name
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
                raise UsageError("There is no such data set.", "Pick one from the list.")
            kind, _, name = key.partition(":")
            if kind == "mine":
                if not self.teaching.count(owner):
                    raise DataError("Nothing has been taught yet.", "Correct an answer first.")
                paths.append(str(self.teaching.file(owner)))
            else:
                paths += map(str, data_files(folders[kind] / name))
        if not paths:
            raise UsageError("No data is chosen.", "Tick at least one data set.")
        return paths

    def upload(self, owner: str, data: bytes, sent_as: str) -> bool:
        """Keeps a zip file, or a table or JSON file, with a data set of this owner's; whether it
        took the place of one of the same name.

        Raises:
            DataError: it holds no row that can be used, or names pictures outside itself.
            UsageError: the training that runs reads the one of the same name.
        """
        name = " ".join(re.sub(r"[^\w\-]+", " ", Path(sent_as).stem).split())[:60] or "data set"
        folder = dict(self._folders(owner))["upload"] / name
        partial = folder.with_name(f".{name}.part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            unpack(data, partial, sent_as)
            found = read_sent(partial)
            if not found.rows:
                why = told(found.problems[0]) if found.problems else "The data holds no rows."
                raise DataError(f"No row of {name!r} can be used: {why}")
            with self._lock:  # no training starts meanwhile
                if replaced := folder.exists():
                    self._refuse_read(owner, f"upload:{name}")
                    shutil.rmtree(folder)
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return replaced

    def _refuse_read(self, owner: str, key: str) -> None:
        """Raises UsageError: the run of this owner's that goes on reads a data set."""
        job = self.job
        runs = job is not None and job.running and job.owner == owner
        if runs and key in (job.request.get("sources") or []):
            raise UsageError(
                "The training that runs reads the data set of this name.",
                "Wait for its end, or rename the file.",
            )

    def check(self, owner: str, request: PageRequest) -> PageUpdate:
        """What is in the chosen data, and what is wrong with it, before anything trains."""
        from finetune.data.read import read_rows

        found = read_rows(self._paths(owner, list(request.get("sources") or [])))
        problems = [told(problem) for problem in found.problems]
        pictures: dict[str, Any] = {s.key: s for row in found.rows for s in row.pictures}
        for source in list(pictures.values())[:OPENED]:
            try:
                source.open()
            except VqaError as error:
                problems.append(user_message(error))
        answers = sum(len(row.references) for row in found.rows)
        return {
            "preflight": {
                "rows": len(found.rows),
                "answers": answers,
                "pictures": len(pictures),
                "opened": min(len(pictures), OPENED),
                "problems": problems[:SHOWN_PROBLEMS],
                "more_problems": max(0, len(problems) - SHOWN_PROBLEMS),
            }
        }

    # -- runs --------------------------------------------------------------------------------------

    def start(self, owner: str, request: PageRequest) -> PageUpdate:
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
        base = self.service.pool.find(request.get("model") or self.service.settings(owner).model)
        if base.adapter:
            raise UsageError(
                "A model with a separate adapter cannot be trained here.",
                "Merge it first: vqa-app merge.",
            )
        stage = _stage_of(stage, quantization(base))
        name = re.sub(r"[^\w\-]+", "-", str(request.get("name") or "")).strip("-")[:40]
        name = name or time.strftime("taught-%Y-%m-%d-%H%M%S")
        with self._lock:
            if self.job is not None and self.job.running:
                raise UsageError("A training is running already.", "Wait for it, or stop it.")
            if not self._files.is_free(name, owner):
                raise UsageError(f"There is a run {name!r} already.", "Choose another name.")
            chosen = {key: request.get(key) for key in _CHOSEN} | {"name": name, "model": base.key}
            job = Job(owner, name, self._files.runs / name, base, stage, request=chosen)
            self._files.write(job)
            self._ended.pop(owner, None)
            if self.job is not None:
                self._ended[self.job.owner] = self.job
            self.job = job
        wanted = Wanted(stage, epochs, rate, bool(request.get("rehearse")))
        # From now on, not from when the thread comes to it: a row may be deleted in between.
        in_use = contextlib.ExitStack()
        in_use.enter_context(self.teaching.in_use(owner))
        job.thread = threading.Thread(
            target=self._run,
            args=(job, paths, wanted, bool(request.get("skip")), in_use),
            name="training",
            daemon=True,
        )
        job.thread.start()
        return self.status(owner)

    def go_on(self, owner: str) -> PageUpdate:
        """Goes on with the owner's run that was stopped, with the same choices.

        Raises:
            UsageError: there is none; or as `start`.
        """
        job = self._own_job(owner)
        if not job.can_go_on:
            raise UsageError("There is nothing to go on with.", "Start a training.")
        return self.start(owner, job.request)

    def stop(self, owner: str) -> PageUpdate:
        """Ends the owner's run after the step in progress, or skips the rest of its comparison."""
        job = self._own_job(owner)
        with self._lock:
            if job.running:
                job.state = "stopping"
                job.cancel.set()
        return self.status(owner)

    def close(self, patience: float = 0.0) -> None:
        """Ends the run that goes on after its step, and waits up to `patience` seconds until it is
        saved.
        """
        with self._lock:
            self._closed = True
            job = self.job
            if job is not None:
                job.cancel.set()
        if job is not None and job.thread is not None:
            job.thread.join(patience)

    def _latest(self, owner: str) -> Job | None:
        """The owner's latest run; others' do not hide it."""
        with self._lock:
            if self.job is not None and self.job.owner == owner:
                return self.job
            if owner not in self._ended:
                self._ended[owner] = self._files.latest(owner)
            return self._ended[owner]

    def _own_job(self, owner: str) -> Job:
        job = self._latest(owner)
        if job is None:
            raise UsageError("You have not started a training.", "Start one.")
        return job

    def _run(
        self,
        job: Job,
        paths: list[str],
        wanted: Wanted,
        skip_bad: bool,
        in_use: contextlib.ExitStack,
    ) -> None:
        try:
            with in_use:
                taught = before_after.taught_in(paths)  # as it is now: rows come and go
                if not self._train_it(job, paths, wanted, skip_bad):
                    self._set_state(job, "stopped")
                    return
                self._compare(job, taught)
            self._set_state(job, "done")
        except Exception as error:
            job.error = user_message(error, options=False)
            self._set_state(job, "failed")

    def _train_it(self, job: Job, paths: list[str], wanted: Wanted, skip_bad: bool) -> bool:
        """Whether it came to its end."""
        from finetune.config import FinetuneConfig

        rehearsed = self.data_dir / "rehearsal" / job.name
        if wanted.rehearse and knows_world(job.base):
            job.messages.append("Drawing pictures of its own world, so that it forgets less.")
            job.phase = "drawing"
        settings = settings_for(paths, job.base, wanted, rehearsed, job.name)
        job.phase = "loading"
        if settings.get("eval_data"):
            job.curve = "Right: taught rows and its own world, %"
        config = FinetuneConfig(
            model=job.base.source,
            revision=job.base.revision,
            stage=job.stage,  # type: ignore[arg-type]
            out=str(job.run),
            eval_questions=100,
            feature_dir=str(self.data_dir / "features"),
            device=self.device,
            workers=1,
            max_bad=MAX_ROWS if skip_bad else 0,
            **settings,
        )
        train = self._train
        if train is None:
            from finetune.training.train import train
        result = train(config, on_progress=job.note, cancel=job.cancel)
        if result.finished:
            shutil.rmtree(rehearsed, ignore_errors=True)
        return result.finished

    def _compare(self, job: Job, taught: before_after.Taught) -> None:
        """Before and after; the run is a good one without it, too."""
        key = self._key(job)
        if key is None:
            raise DataError("The run left no model.", "Look at the server's log.")
        with self._lock:
            if not self._closed:
                job.cancel = threading.Event()  # from here on, Stop is about the comparison
        job.done, job.of, job.seconds_left, job.phase = 0, 0, None, "comparing"
        self._set_state(job, "comparing")
        try:
            job.comparison = before_after.compare(
                self.service, taught, job.owner, job.base.key, key, job.cancel
            )
            for digest in job.compared_pictures:
                self.service.picture_store.link(digest, self._files.pictures(job))
        except before_after.Skipped:
            job.messages.append("Not compared: it was stopped.")
        except Exception as error:
            job.messages.append(f"Not compared: {user_message(error)}")

    def _set_state(self, job: Job, state: State) -> None:
        with self._lock:
            job.state = state
            self._files.write(job)

    def _key(self, job: Job) -> str | None:
        """The run's key in the hub, if it is (still) there; other models may bear its name."""
        for choice in self.service.pool.choices():
            if choice.source == str(job.run):
                return choice.key
        return None

    def status(self, owner: str) -> PageUpdate:
        """What the page shows: the data sets, and the run if there is one."""
        running = self.job if self.job is not None and self.job.running else None
        status: dict[str, Any] = {
            "sources": self.sources(owner),
            "base": self.service.pool.find(self.service.settings(owner).model).label,
            # Before the rest, so that whoever is told "not busy" is told how it ended.
            "busy": running is not None,
            "others": running is not None and running.owner != owner,
            "job": None,
        }
        job = self._latest(owner)
        if job is not None:
            finished = job.state == "done"
            key = self._key(job) if finished else None
            if key or not finished:  # not one that was deleted meanwhile
                status["job"] = job.shown(key)
                watched = {d for one in status["job"]["watch"] for d in one["pictures"]}
                self._show(job, watched, job.run / WATCH_FOLDER)
                self._show(job, job.compared_pictures, self._files.pictures(job))
        return {"training": status}

    def _show(self, job: Job, digests: set[str], folder: Path) -> None:
        """Lets the owner see pictures of a run, also where all that showed them is deleted."""
        for digest in digests:
            if self.service.store.picture(job.owner, digest) is None:
                with contextlib.suppress(OSError, VqaError):
                    file = folder / f"{digest}.png"
                    self.service.add_picture(
                        job.owner, file.read_bytes(), "picture.png", STORED_PICTURE_LIMITS
                    )


def _stage_of(stage: str, quantized: str | None) -> str:
    """The stage that trains a model as it is loaded: LoRA on weights of 4 bits is qlora.

    Raises:
        UsageError: it would train others, several times as large.
    """
    if quantized is None or stage == "qlora":
        return stage
    if (quantized, stage) == ("4bit", "lora"):
        return "qlora"
    raise UsageError(
        f"This model is loaded in {quantized[0]} bits, and {stage} cannot train it so.",
        "Choose qlora, which trains it in 4 bits.",
    )


def _number(what: str, value: Any, low: float, high: float) -> float | None:
    if value in (None, ""):
        return None
    if not isinstance(value, (int, float)) or not low <= value <= high:
        raise UsageError(f"The {what} cannot be {str(value)[:20]}.", f"From {low:g} to {high:g}.")
    return float(value)
