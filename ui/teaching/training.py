"""Training from the page: one run at a time, in a thread that outlives the tab that started it."""

from __future__ import annotations

import contextlib
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.runs.layout import REPORT_FILE, WATCH_FOLDER
from ui.chat.requests import PageRequest, PageUpdate, log_error, text_list, user_message
from ui.chat.service import ChatService
from ui.teaching import before_after
from ui.teaching.few_rows import TrainingChoices, config_overrides, descends_from_builtin
from ui.teaching.jobs import Job, JobStore, State
from ui.teaching.taught_rows import TaughtRowStore
from ui.teaching.uploads import MAX_ROWS, data_files, describe_problem, read_upload, unpack
from ui.texts import find_texts, model_label
from vqa_app.devices import reclaim_memory
from vqa_app.errors import DataError, ImageError, ModelError, UsageError, VqaError
from vqa_app.files import portable_name, replace_directory, unfinished_directory
from vqa_app.numeric import checked_float
from vqa_app.pictures.picture import STORED_PICTURE_LIMITS
from vqa_app.serving.model_choices import check_downloaded, hub_name, quantization
from vqa_app.serving.redact import redact_paths

if TYPE_CHECKING:
    from finetune.config import Stage

STAGES: tuple[Stage, ...] = ("lora", "projector", "full", "qlora")
MAX_PROBLEMS = 8
"""Number of problems that the page shows."""
MAX_OPENED = 2000
"""Number of pictures that the check opens, because a person waits for it; training opens all."""
MAX_EPOCHS = 200
_REQUEST_FIELDS = ("sources", "stage", "epochs", "lr", "rehearse", "skip")


@dataclass(frozen=True)
class Upload:
    """What became of an uploaded data set."""

    replaced: bool
    """Whether it replaced a data set of the same name."""
    unshared: bool
    """Whether that one was shared with everybody; the new one is private."""


class TrainingService:
    """Starts, observes and stops training runs.

    Args:
        data_dir: Contains `runs`, `trainings` (the state of each run), `datasets` (for everybody,
            provided by the operator of the server) and `uploads` (by owner).
        service: Loads models and stores pictures.
        taught_rows: The taught rows of all owners.
        train: `finetune.training.train.train`, or a replacement for tests.
        device: The `device` of `finetune.config.FinetuneConfig`.
    """

    def __init__(
        self,
        data_dir: Path,
        service: ChatService,
        taught_rows: TaughtRowStore,
        train: Callable[..., Any] | None = None,
        device: str = "auto",
    ) -> None:
        self.data_dir, self.service, self.taught_rows = data_dir, service, taught_rows
        self._train, self.device = train or _train, device
        self.job_store = JobStore(data_dir / "trainings", data_dir / "runs")
        self.job: Job | None = self.job_store.latest()
        self._latest_by_owner: dict[str, Job | None] = {}
        """By owner, their latest run if it is not `job`."""
        self.changing = threading.Lock()
        """Held while the state of a job changes."""
        self._closed = False
        for name, owner, private in self.job_store.owners():
            # Runs of earlier versions stood in everybody's list.
            service.store.add_possession("run", name, owner, name, shared=not private)
        service.trained_model = lambda: self.job.base if self.job and self.job.running else None

    # -- data --------------------------------------------------------------------------------------

    def sources(self, owner: str) -> list[dict[str, Any]]:
        """Return the data sets that an owner may train on."""
        count = self.taught_rows.count(owner)
        found: list[dict[str, Any]] = [{"key": "mine", "count": count, "empty": count == 0}]
        folders = self._folders(owner)
        for kind in ("upload", "shared"):
            found += [
                {"key": f"{kind}:{name}", "label": name} for name in folders_in(folders[kind])
            ]
        for data in self.service.store.possessions("data"):
            theirs = folders["others"] / data.name
            if data.shared and theirs.parent != folders["upload"] and theirs.is_dir():
                found.append({"key": f"others:{data.name}", "label": data.label})
        return found

    def _folders(self, owner: str) -> dict[str, Path]:
        """Return the folders of data sets, by the first part of their keys."""
        return {
            "upload": self.uploads_of(owner),
            "shared": self.data_dir / "datasets",
            "others": self.data_dir / "uploads",
        }

    def uploads_of(self, owner: str) -> Path:
        """Return the folder of the owner's data sets."""
        return self.data_dir / "uploads" / self.taught_rows.folder_of(owner).name

    def _paths(self, owner: str, keys: list[str]) -> list[str]:
        known = {source["key"] for source in self.sources(owner)}
        folders = self._folders(owner)
        paths = []
        for key in keys:
            if key not in known:
                raise UsageError("There is no such data set.", "Choose one from the list.")
            kind, _, name = key.partition(":")
            if kind == "mine":
                if not self.taught_rows.count(owner):
                    raise DataError("Nothing has been taught yet.", "Correct an answer first.")
                paths.append(str(self.taught_rows.data_file(owner)))
            else:
                paths += map(str, data_files(folders[kind] / name))
        if not paths:
            raise UsageError("No data set is selected.", "Select at least one.")
        return paths

    def upload(self, owner: str, data: bytes, file_name: str) -> Upload:
        """Store an uploaded data set: a zip, table or JSON file.

        One of the same name is replaced. If that was shared, the new one is not: its owner shared
        the old content, and nobody has decided yet who may see the new one.

        Args:
            owner: Whose data set it becomes.
            data: Content of the file.
            file_name: Name of the file; the data set is named after it.

        Raises:
            DataError: It has no usable row, or names pictures outside the upload.
            UsageError: The current training reads the data set of the same name.
        """
        name = " ".join(re.sub(r"[^\w\-]+", " ", Path(file_name).stem).split())[:60] or "data set"
        name = portable_name(name)
        folder = self.uploads_of(owner) / name
        with unfinished_directory(folder.parent) as new:
            unpack(data, new, file_name)
            found = read_upload(new)
            if not found.rows:
                reasons = [*map(describe_problem, found.problems), "The data has no rows."]
                raise DataError(f"No row of {name!r} can be used: {reasons[0]}")
        try:
            with self.changing:  # so that no training starts meanwhile
                if replaced := folder.exists():
                    self.check_data_not_in_use(folder)
                key, store = f"{folder.parent.name}/{name}", self.service.store
                shared = store.possession("data", key)
                store.remove_possession("data", key)  # before the new content is there
                replace_directory(new, folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)  # if it was refused
        return Upload(replaced, unshared=shared is not None and shared.shared)

    def check_data_not_in_use(self, folder: Path) -> None:
        """Raise UsageError if the current run reads a data set; hold `changing` meanwhile."""
        job = self.job
        if job is None or not job.running:
            return
        folders = self._folders(job.owner)
        for key in job.request.get("sources") or []:
            kind, _, name = key.partition(":")
            if kind in folders and folders[kind] / name == folder:
                raise UsageError(
                    "The current training reads the data set of this name.",
                    "Wait until it ends, or rename the file.",
                )

    def check(self, owner: str, request: PageRequest) -> PageUpdate:
        """Count and check the selected data without training."""
        from finetune.data.read import read_rows

        found = read_rows(self._paths(owner, text_list(request, "sources")))
        problems = [describe_problem(problem) for problem in found.problems]
        pictures: dict[str, Any] = {s.key: s for row in found.rows for s in row.pictures}
        for source in list(pictures.values())[:MAX_OPENED]:
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
                "opened": min(len(pictures), MAX_OPENED),
                "problems": [find_texts(problem) for problem in problems[:MAX_PROBLEMS]],
                "more_problems": max(0, len(problems) - MAX_PROBLEMS),
            }
        }

    # -- runs --------------------------------------------------------------------------------------

    def start(self, owner: str, request: PageRequest) -> PageUpdate:
        """Start a run.

        Raises:
            UsageError: a run is in progress, or a setting is invalid.
            DataError: There is no data to train on.
        """
        paths = self._paths(owner, text_list(request, "sources"))
        epochs = _parse_number("number of passes", request.get("epochs"), 0.1, MAX_EPOCHS)
        lr = _parse_number("learning rate", request.get("lr"), 1e-7, 1.0)
        base = self.service.models(owner).find(
            str(request.get("model") or "") or self.service.settings(owner).model
        )
        if base.remote is not None:
            raise UsageError(
                f"{base.label} runs on a server, which keeps its weights.",
                "Train a model of this machine.",
            )
        if base.adapter:
            raise UsageError(
                "A model with a separate adapter cannot be trained here.",
                "The operator of this server can merge it: vqa-app merge.",
            )
        stage = _stage_for(str(request.get("stage") or "lora"), quantization(base))
        name = re.sub(r"[^\w\-]+", "-", str(request.get("name") or "")).strip("-")[:40]
        name = portable_name(name) if name else time.strftime("taught-%Y-%m-%d-%H%M%S")
        with self.changing:
            if self.job is not None and self.job.running:
                raise UsageError("A training is already running.", "Wait for it, or stop it.")
            if not self.job_store.is_available(name, owner):
                raise UsageError(f"The run {name!r} already exists.", "Choose another name.")
            chosen = {key: request.get(key) for key in _REQUEST_FIELDS} | {
                "name": name,
                "model": base.key,
            }
            job = Job(owner, name, self.job_store.runs / name, base, stage, request=chosen)
            self.job_store.write(job)
            self.service.store.add_possession("run", name, owner, name)
            self._latest_by_owner.pop(owner, None)
            if self.job is not None:
                self._latest_by_owner[self.job.owner] = self.job
            self.job = job
        choices = TrainingChoices(stage, epochs, lr, bool(request.get("rehearse")))
        # Already here rather than in the thread, because a row may be deleted in between.
        in_use = contextlib.ExitStack()
        in_use.enter_context(self.taught_rows.keep_pictures(owner))
        job.thread = threading.Thread(
            target=self._run,
            args=(job, paths, choices, bool(request.get("skip")), in_use),
            name="training",
            daemon=True,
        )
        job.thread.start()
        return self.status(owner)

    def resume(self, owner: str) -> PageUpdate:
        """Resume the owner's stopped or failed run with the same settings.

        Raises:
            UsageError: There is no such run; otherwise as `start`.
        """
        job = self._own_job(owner)
        if not job.can_resume:
            raise UsageError("There is no training to continue.", "Start a new one.")
        return self.start(owner, job.request)

    def stop(self, owner: str) -> PageUpdate:
        """Stop the owner's run after the current step, or skip the rest of its comparison."""
        job = self._own_job(owner)
        with self.changing:
            if job.running:
                job.state = "stopping"
                job.cancel.set()
        return self.status(owner)

    def close(self, patience: float = 0.0) -> None:
        """Stop the current run after its step; wait up to `patience` seconds for the checkpoint."""
        with self.changing:
            self._closed = True
            job = self.job
            if job is not None:
                job.cancel.set()
        if job is not None and job.thread is not None:
            job.thread.join(patience)

    def _latest(self, owner: str) -> Job | None:
        """Return the owner's latest run, whoever started the latest of all."""
        with self.changing:
            if self.job is not None and self.job.owner == owner:
                return self.job
            if owner not in self._latest_by_owner:
                self._latest_by_owner[owner] = self.job_store.latest(owner)
            return self._latest_by_owner[owner]

    def forget(self, name: str) -> None:
        """Remove the records of a deleted run; hold `changing` meanwhile."""
        self.job_store.remove(name)
        if self.job is not None and self.job.name == name:
            self.job = None
        self._latest_by_owner.clear()

    def _own_job(self, owner: str) -> Job:
        job = self._latest(owner)
        if job is None:
            raise UsageError("You have not started a training.", "Start one.")
        return job

    def _run(
        self,
        job: Job,
        paths: list[str],
        choices: TrainingChoices,
        skip_bad: bool,
        in_use: contextlib.ExitStack,
    ) -> None:
        try:
            with in_use:
                # Before training, because rows may change meanwhile.
                taught = before_after.sample_taught_questions(paths)
                if not self._train_model(job, paths, choices, skip_bad):
                    self._set_state(job, "stopped")
                    return
                self._compare(job, taught)
            self._set_state(job, "done")
        except Exception as error:
            job.error = user_message(error, options=False)
            self._set_state(job, "failed")

    def _train_model(
        self, job: Job, paths: list[str], choices: TrainingChoices, skip_bad: bool
    ) -> bool:
        """Train the model; return whether the run finished."""
        from finetune.config import FinetuneConfig

        rehearsal = self.data_dir / "rehearsal" / job.name
        if choices.rehearse and descends_from_builtin(job.base):
            job.messages.append("Drawing pictures for rehearsal, so that the model forgets less.")
            job.phase = "drawing"
        settings = config_overrides(paths, job.base, choices, rehearsal, job.name)
        job.phase = "loading"
        if needed := hub_name(job.base):
            check_downloaded(needed)
        if settings.get("eval_data"):
            job.curve = "train.curveTaught"
        config = FinetuneConfig(
            model=job.base.source,
            revision=job.base.revision,
            stage=job.stage,
            out=str(job.run),
            eval_questions=100,
            feature_dir=str(self.data_dir / "features"),
            device=self.device,
            workers=1,
            max_bad=MAX_ROWS if skip_bad else 0,
            **settings,
        )
        # The run divides its steps by the memory that is free at its start.
        self.service.pool.release_idle()
        reclaim_memory()
        result = self._train(config, on_progress=job.record_progress, cancel=job.cancel)
        if result.finished:
            shutil.rmtree(rehearsal, ignore_errors=True)
        return result.finished

    def _compare(self, job: Job, taught: before_after.TaughtQuestions) -> None:
        """Compare the models before and after; a failure here does not fail the run."""
        key = self._model_key(job)
        if key is None:
            raise DataError("The run produced no model.", "See the server's log.")
        with self.changing:
            if not self._closed:
                job.cancel = threading.Event()  # from now on, Stop refers to the comparison
        job.done, job.of, job.seconds_left, job.phase = 0, 0, None, "comparing"
        self._set_state(job, "comparing")
        try:
            job.comparison = before_after.compare(
                self.service, taught, job.owner, job.base.key, key, job.cancel
            )
            for digest in job.compared_pictures:
                with contextlib.suppress(ImageError):  # its owner has just deleted it
                    picture = self.service.picture_store.get(digest)
                    self.service.picture_store.link(picture, self.job_store.pictures_dir(job))
        except before_after.ComparisonSkipped:
            job.messages.append("Not compared: the comparison was stopped.")
        except Exception as error:
            job.messages.append(f"Not compared: {user_message(error)}")

    def _set_state(self, job: Job, state: State) -> None:
        with self.changing:
            job.state = state
            try:
                self.job_store.write(job)
            except OSError as error:  # a full disk; the page still shows the state
                log_error(error)

    def _model_key(self, job: Job) -> str | None:
        """Return the key of the run's model in the engine pool, if it exists.

        The model is identified by its folder, since another model may have the same name.
        """
        for choice in self.service.pool.choices():
            if choice.source == str(job.run):
                return choice.key
        return None

    def status(self, owner: str) -> PageUpdate:
        """Return the data sets and the owner's latest run for the page."""
        running = self.job if self.job is not None and self.job.running else None
        status: dict[str, Any] = {
            "sources": self.sources(owner),
            **self._bases(owner),
            # Read before the rest, so that a reply that is not busy contains the final state.
            "busy": running is not None,
            "others": running is not None and running.owner != owner,
            "job": None,
        }
        job = self._latest(owner)
        if job is not None:
            finished = job.state == "done"
            key = self._model_key(job) if finished else None
            if key or not finished:  # unless the model was deleted meanwhile
                status["job"] = job.to_view(key)
                report = finished and (job.run / REPORT_FILE).is_file()
                status["job"]["report"] = job.name if report else None
                if run := self.service.store.possession("run", job.name):
                    status["job"]["name"] = run.label
                watched = {d for one in status["job"]["watch"] for d in one["pictures"]}
                self._register_pictures(job, watched, job.run / WATCH_FOLDER)
                self._register_pictures(
                    job, job.compared_pictures, self.job_store.pictures_dir(job)
                )
        return {"training": status}

    def _bases(self, owner: str) -> dict[str, Any]:
        """Return the models that the owner may train, and the key of the one in use."""
        models = self.service.models(owner)
        try:
            current = models.find(self.service.settings(owner).model)
        except ModelError:  # deleted, or no longer shared
            current = models.find(None)
        bases = [
            {
                "key": choice.key,
                "label": model_label(choice.label),
                "group": find_texts(choice.group),
            }
            for choice in models.choices()
            if choice.here and (choice.adapter is None or choice.key == current.key)
        ]
        return {"base": current.key, "bases": bases}

    def report(self, owner: str, name: str) -> str | None:
        """Return the HTML report of an owner's run without paths of this server.

        Its pictures and questions are the owner's, so it is not shared with the model.
        """
        run = self.service.store.possession("run", name)
        if run is None or run.owner != owner:
            return None
        try:
            report = (self.job_store.runs / run.name / REPORT_FILE).read_text("utf-8")
        except OSError:
            return None
        # Only text is redacted: encoded pictures, inside tags, may look like paths.
        parts = re.split(r"(<[^>]*>)", report)
        return "".join(part if part.startswith("<") else redact_paths(part) for part in parts)

    def _register_pictures(self, job: Job, digests: set[str], folder: Path) -> None:
        """Give the owner access to pictures of a run, even if their chats were deleted."""
        for digest in digests:
            if self.service.store.picture(job.owner, digest) is None:
                with contextlib.suppress(OSError, VqaError):
                    file = folder / f"{digest}.png"
                    self.service.add_picture(
                        job.owner, file.read_bytes(), "picture.png", STORED_PICTURE_LIMITS
                    )


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, without those that are being written."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.is_dir())
    return sorted(path.name for path in found if not path.name.startswith("."))


def _stage_for(requested: str, quantized: str | None) -> Stage:
    """Return the stage that trains a model in the precision in which it is loaded.

    Raises:
        UsageError: The stage is unknown, or would need the unquantized weights, which are several
            times as large.
    """
    stage = next((stage for stage in STAGES if stage == requested), None)
    if stage is None:
        raise UsageError("This stage does not exist.", f"Stages are {', '.join(STAGES)}.")
    if quantized is None or stage == "qlora":
        return stage
    if stage == "lora":
        return "qlora"
    raise UsageError(
        f"This model is loaded in {quantized[0]} bits, in which only LoRA can be trained.",
        "Choose LoRA and projector.",
    )


def _parse_number(what: str, value: Any, low: float, high: float) -> float | None:
    return None if value in (None, "") else checked_float(f"The {what}", value, low, high)


def _train(*arguments: Any, **options: Any) -> Any:
    from finetune.training.train import train

    return train(*arguments, **options)
