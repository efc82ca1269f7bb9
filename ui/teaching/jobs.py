"""Training runs started from the page, and the files that keep them over a server restart."""

from __future__ import annotations

import json
import math
import shutil
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from finetune.progress import CONTINUE_HINT
from finetune.runs.layout import WATCH_FILE
from ui.texts import find_texts, model_label
from vqa_app.checkpoints.manifest import is_finished
from vqa_app.files import atomic_file, delete
from vqa_app.prompts.conversation import SHORT_STYLE
from vqa_app.serving.engine_pool import ModelChoice
from vqa_app.serving.redact import redact_paths

if TYPE_CHECKING:
    from finetune.config import Stage
    from finetune.progress import Progress

State: TypeAlias = Literal["running", "stopping", "comparing", "done", "stopped", "failed"]
_MAX_MESSAGES = 12
_MAX_LOSSES = 2000
_STORED_FIELDS = (
    *("owner", "name", "stage", "state", "phase", "done", "of", "curve", "losses", "evaluations"),
    *("messages", "error", "comparison", "request"),
)


@dataclass
class Job:
    """A training run, in progress or ended."""

    owner: str
    name: str
    run: Path
    base: ModelChoice
    stage: Stage
    state: State = "running"
    phase: str = "loading"
    done: int = 0
    of: int = 0
    seconds_left: float | None = None
    curve: str = "train.curveHeldOut"
    """Key of the text that names the evaluations during training."""
    losses: list[tuple[int, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    error: str = ""
    comparison: dict[str, Any] | None = None
    request: dict[str, Any] = field(default_factory=dict)
    """The request that started the run, for resuming it; empty if unknown."""
    cancel: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether the run has not ended yet."""
        return self.state in ("running", "stopping", "comparing")

    @property
    def can_resume(self) -> bool:
        """Whether the run ended early and can be continued."""
        return self.state in ("stopped", "failed") and bool(self.request)

    @property
    def compared_pictures(self) -> set[str]:
        """Digests of the pictures in its comparison."""
        parts = (self.comparison or {}).values()
        return {digest for part in parts for row in part["rows"] for digest in row["pictures"]}

    def record_progress(self, progress: Progress) -> None:
        """Record a progress report of `finetune`."""
        self.phase, self.done, self.of = progress.phase, progress.done, progress.of
        self.seconds_left = progress.seconds_left or self.seconds_left
        if progress.message:
            message = progress.message.removesuffix(CONTINUE_HINT).rstrip()  # there is a button
            self.messages.append(redact_paths(message))
        loss = progress.loss if progress.phase == "training" else None
        if loss is not None and math.isfinite(loss):
            self.losses.append((progress.done, round(loss, 5)))
        # Each later report repeats the last evaluation.
        last = {k: v for k, v in (self.evaluations or [{}])[-1].items() if k != "step"}
        found = {k: v for k, v in progress.evaluation.items() if math.isfinite(v)}
        if found and found != last:
            self.evaluations.append({"step": self.losses[-1][0] if self.losses else 0, **found})

    def to_view(self, key: str | None) -> dict[str, Any]:
        """Return the run for the page; `key` names the trained model, if it is available."""
        return {
            "name": self.name,
            "base": model_label(self.base.label),
            "stage": self.stage,
            "state": self.state,
            "phase": self.phase,
            "done": self.done,
            "of": self.of,
            "seconds_left": self.seconds_left,
            "curve": self.curve,
            "losses": self.losses[-_MAX_LOSSES:],
            "evaluations": self.evaluations,
            "messages": [find_texts(message) for message in self.messages[-_MAX_MESSAGES:]],
            "error": self.error,
            "text": find_texts(self.error),
            "watch": _watch_answers(self.run),
            "can_go_on": self.can_resume,
            "comparison": self.comparison,
            "key": key,
        }


class JobStore:
    """A small file for each run with its owner and state.

    The files lie beside the run folders, because `finetune` refuses a folder with foreign files.
    """

    def __init__(self, folder: Path, runs: Path) -> None:
        self.folder, self.runs = folder, runs

    def write(self, job: Job) -> None:
        """Store the state of a run."""
        stored = {name: getattr(job, name) for name in _STORED_FIELDS} | {"base": asdict(job.base)}
        stored["private"] = True
        with atomic_file(self._file(job.name)) as file:
            file.write_text(json.dumps(stored, ensure_ascii=False), "utf-8")

    def is_available(self, name: str, owner: str) -> bool:
        """Return whether an owner may use a run name: it is new, or an unfinished run of theirs."""
        run = self.runs / name
        if is_finished(run):
            return False
        if (self._file(name)).exists():
            return (self._read(self._file(name)) or {}).get("owner") == owner
        return not run.exists()

    def pictures_dir(self, job: Job) -> Path:
        """Return the folder with copies of the comparison's pictures, which outlive their chats."""
        return self.folder / job.name

    def owners(self) -> list[tuple[str, str, bool]]:
        """Return name and owner of each run, and whether it is private unless it is shared.

        Runs of earlier versions are not.
        """
        found = (self._read(file) for file in self.folder.glob("[!.]*.json"))
        return [
            (str(one["name"]), str(one["owner"]), bool(one.get("private")))
            for one in found
            if one and one.get("owner") and one.get("name")
        ]

    def remove(self, name: str) -> None:
        """Delete what is kept of a run."""
        delete(self._file(name))
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def latest(self, owner: str | None = None) -> Job | None:
        """Return the most recent run as it was last stored.

        Args:
            owner: Whose run; None for any owner.
        """
        files = sorted(self.folder.glob("[!.]*.json"), key=lambda file: file.stat().st_mtime)
        found = (self._read(file) for file in reversed(files))
        stored = next((one for one in found if one and owner in (None, one.get("owner"))), None)
        if stored is None:
            return None
        stored.pop("private", None)
        try:
            job = Job(
                run=self.runs / stored["name"], base=ModelChoice(**stored.pop("base")), **stored
            )
        except (TypeError, KeyError):  # written by another version
            return None
        if job.running:
            job.state = "done" if is_finished(job.run) else "stopped"
            job.messages.append("The server was stopped during this run.")
        return job

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _read(self, file: Path) -> dict[str, Any] | None:
        try:
            found = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None


def _watch_answers(run: Path) -> list[dict[str, Any]]:
    """Return the watch questions of a run with their answers at each evaluation.

    Returns:
        Dicts with question, expected answer, pictures (digests) and answers.
    """
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    try:
        lines = (run / WATCH_FILE).read_text("utf-8").splitlines()
        for line in lines:
            row = json.loads(line)
            question = row["question"].removesuffix(SHORT_STYLE)
            pictures = row.get("pictures", [])
            entry = found.setdefault(
                (question, *pictures),
                {
                    "question": question,
                    "expected": row.get("expected", ""),
                    "pictures": pictures,
                    "answers": [],
                },
            )
            entry["answers"].append({"step": row["step"], "answer": row["answer"]})
    except (OSError, ValueError, KeyError):
        return []  # not written yet, or only half a line
    return list(found.values())
