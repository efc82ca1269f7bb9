"""A run that was started from the page: what it told so far, kept over a restart of the server."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from finetune.runs.layout import WATCH_FILE
from vqa_app.checkpoints.manifest import is_finished
from vqa_app.files import atomic_file
from vqa_app.prompts.conversation import SHORT_STYLE
from vqa_app.serving.engine_pool import ModelChoice
from vqa_app.serving.redact import redact_paths

State: TypeAlias = Literal["running", "stopping", "comparing", "done", "stopped", "failed"]
_MESSAGES = 12
_SHOWN_LOSSES = 2000
_KEPT = (
    *("owner", "name", "stage", "state", "phase", "done", "of", "curve", "losses", "evaluations"),
    *("messages", "error", "comparison", "request"),
)


@dataclass
class Job:
    """A run, under way or ended."""

    owner: str
    name: str
    run: Path
    base: ModelChoice
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
    request: dict[str, Any] = field(default_factory=dict)
    """What was chosen, to go on with; empty where nobody knows any more."""
    cancel: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        return self.state in ("running", "stopping", "comparing")

    @property
    def can_go_on(self) -> bool:
        return self.state in ("stopped", "failed") and bool(self.request)

    @property
    def compared_pictures(self) -> set[str]:
        """Digests of what its comparison shows."""
        parts = (self.comparison or {}).values()
        return {digest for part in parts for row in part["rows"] for digest in row["pictures"]}

    def note(self, progress: Any) -> None:
        """Takes over what `finetune` tells (`finetune.progress.Progress`)."""
        self.phase, self.done, self.of = progress.phase, progress.done, progress.of
        self.seconds_left = progress.seconds_left or self.seconds_left
        if progress.message:
            self.messages.append(redact_paths(progress.message))
        loss = progress.loss if progress.phase == "training" else None
        if loss is not None and math.isfinite(loss):
            self.losses.append((progress.done, round(loss, 5)))
        # The last evaluation comes along with every step after it.
        last = {k: v for k, v in (self.evaluations or [{}])[-1].items() if k != "step"}
        found = {k: v for k, v in progress.evaluation.items() if math.isfinite(v)}
        if found and found != last:
            self.evaluations.append({"step": self.losses[-1][0] if self.losses else 0, **found})

    def shown(self, key: str | None) -> dict[str, Any]:
        """What the page is told; `key` is the finished run's in the hub."""
        return {
            "name": self.name,
            "base": self.base.label,
            "stage": self.stage,
            "state": self.state,
            "phase": self.phase,
            "done": self.done,
            "of": self.of,
            "seconds_left": self.seconds_left,
            "curve": self.curve,
            "losses": self.losses[-_SHOWN_LOSSES:],
            "evaluations": self.evaluations,
            "messages": self.messages[-_MESSAGES:],
            "error": self.error,
            "watch": _watched(self.run),
            "can_go_on": self.can_go_on,
            "comparison": self.comparison,
            "key": key,
        }


class JobFiles:
    """A small file for each run: whose it is, and how far it came.

    It lies beside the runs, not in them: `finetune` takes no folder that holds other files.
    """

    def __init__(self, folder: Path, runs: Path) -> None:
        self.folder, self.runs = folder, runs

    def write(self, job: Job) -> None:
        kept = {name: getattr(job, name) for name in _KEPT} | {"base": asdict(job.base)}
        with atomic_file(self._file(job.name)) as file:
            file.write_text(json.dumps(kept, ensure_ascii=False), "utf-8")

    def is_free(self, name: str, owner: str) -> bool:
        """Whether an owner may train under a name: nobody did, or they did and it is unfinished."""
        run = self.runs / name
        if is_finished(run):
            return False
        if (self._file(name)).exists():
            return (self._read(self._file(name)) or {}).get("owner") == owner
        return not run.exists()

    def pictures(self, job: Job) -> Path:
        """Where the pictures of a run's comparison lie: chats and data sets that have them go."""
        return self.folder / job.name

    def latest(self, owner: str | None = None) -> Job | None:
        """The run of the last start as it ended, or as the end of the server left it.

        Args:
            owner: whose; None: anybody's.
        """
        files = sorted(self.folder.glob("[!.]*.json"), key=lambda file: file.stat().st_mtime)
        found = (self._read(file) for file in reversed(files))
        kept = next((one for one in found if one and owner in (None, one.get("owner"))), None)
        if kept is None:
            return None
        try:
            job = Job(run=self.runs / kept["name"], base=ModelChoice(**kept.pop("base")), **kept)
        except (TypeError, KeyError):  # another version's
            return None
        if job.running:
            job.state = "done" if is_finished(job.run) else "stopped"
            job.messages.append("The server was stopped meanwhile.")
        return job

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _read(self, file: Path) -> dict[str, Any] | None:
        try:
            found = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None


def _watched(run: Path) -> list[dict[str, Any]]:
    """The watch questions with their answers at each look:
    [{question, expected, pictures, answers}, ...]; pictures are digests.
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
        return []  # not there yet, or a line is being written
    return list(found.values())
