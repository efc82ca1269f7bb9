"""The readable output of a run: plots, a report in one HTML file, and a model card.

All of it is generated from files of the run (`manifest.json`, `metrics.jsonl`, `watch.jsonl`),
except for the worst answers, which are passed with their pictures.
"""

from __future__ import annotations

import base64
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from finetune.evaluation.metrics import vqa_accuracy
from finetune.progress import pluralize
from finetune.runs.layout import (
    CARD_FILE,
    METRICS_FILE,
    PLOTS,
    REPORT_FILE,
    WATCH_FILE,
    WATCH_FOLDER,
)
from vqa_app.checkpoints.manifest import MANIFEST_FILE, Base
from vqa_app.checkpoints.source import BUILTIN
from vqa_app.files import move
from vqa_app.pictures.picture import STORED_PICTURE_LIMITS, Picture, open_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from finetune.evaluation.predictions import Prediction
    from finetune.evaluation.questions import Question

_STILL = 0.01
"""A gain in accuracy up to which it stands still, if the questions are many."""
_RISE, _RISE_NATS = 0.1, 0.02
"""The held-out loss rises if it grows by this share, and by this many nats per token."""
_THUMBNAIL = 240
"""Longest side of pictures in the report, in pixels."""


@dataclass(frozen=True)
class WatchAnswer:
    """The model's answer to one watch question at one evaluation, a line of `watch.jsonl`."""

    step: int
    question: str
    expected: str
    """Empty if the correct answer is unknown."""
    answer: str
    pictures: tuple[str, ...]
    """Digests; the files are in the run's `watch` folder."""
    accuracy: float | None = None
    """VQA accuracy, 0 to 1; None if the correct answer is unknown."""


_WATCH_ANSWER = TypeAdapter(WatchAnswer)


@dataclass(frozen=True)
class WorstAnswer:
    """A wrong answer with the pictures of its question."""

    prediction: Prediction
    pictures: tuple[Picture, ...]


def save_watch_answers(
    run: Path,
    step: int,
    answered: Iterable[tuple[str, str, str, Sequence[Picture]]],
    references: Sequence[Sequence[str]] = (),
) -> None:
    """Append the watch answers of one evaluation to the run's files.

    Args:
        run: The run directory.
        step: The training step.
        answered: Per question: the question, the expected answer or "", the model's answer, and the
            pictures.
        references: Per question, all answers that count as correct; by default the expected one.
    """
    (run / WATCH_FOLDER).mkdir(parents=True, exist_ok=True)
    with (run / WATCH_FILE).open("a", encoding="utf-8") as file:
        for number, (question, expected, answer, pictures) in enumerate(answered):
            for picture in pictures:
                path = run / WATCH_FOLDER / f"{picture.digest}.png"
                if not path.exists():
                    part = path.with_suffix(".part")  # incomplete if the disk is full
                    picture.image.save(part, "PNG")
                    move(part, path)
            digests = tuple(picture.digest for picture in pictures)
            correct = references[number] if references else [expected] if expected else []
            accuracy = vqa_accuracy(answer, correct) if correct else None
            line = WatchAnswer(step, question, expected, answer, digests, accuracy)
            file.write(json.dumps(asdict(line), ensure_ascii=False) + "\n")


def worst_answers(
    predictions: Iterable[Prediction], questions: Iterable[Question], count: int = 12
) -> list[WorstAnswer]:
    """Return the worst answers, by accuracy and then by loss, with their pictures opened.

    A question that the data repeats is shown once.
    """
    by_id = {question.id: question for question in questions}
    wrong = [p for p in predictions if p.vqa_accuracy < 1 and p.id in by_id]
    wrong.sort(key=lambda p: (p.vqa_accuracy, -(p.loss or 0.0), p.id))
    different = {
        (by_id[p.id].picture_keys, p.question, p.answers, p.prediction): p for p in reversed(wrong)
    }
    return [
        WorstAnswer(p, tuple(source.open() for source in by_id[p.id].pictures))
        for p in list(reversed(different.values()))[:count]
    ]


def write_report(run: str | Path, worst: Sequence[WorstAnswer] = ()) -> None:
    """Write `plots/*.png`, `report.html` and the model card `README.md` into a run directory."""
    run = Path(run)
    manifest = json.loads((run / MANIFEST_FILE).read_text(encoding="utf-8"))
    lines = _json_lines(run / METRICS_FILE)
    plots, final = _write_plots(run, lines), _final(lines)
    questions = final.get("eval_questions", 0)
    last: Mapping[str, Any] = next((line for line in reversed(lines) if line.get("final")), {})
    context = {
        "name": run.resolve().name,
        "manifest": manifest,
        "base": _describe_base(Base(**manifest["base"])),
        "on_hub": Base(**manifest["base"]).on_hub,
        "command": manifest.get("command", ""),
        "earlier": manifest.get("earlier", []),
        "warning": _contamination_warning(manifest, last.get("leaks", 0)),
        "baselines": last.get("baselines"),
        "blind": last.get("blind"),
        "memorization": memorization_warning(run),
        "final": final,
        "eval_set": pluralize(int(questions), "held-out question")
        if questions
        else "held-out questions",
        "before": next((line for line in lines if line.get("step") == 0), {}),
        "plots": [(title, _uri(path.read_bytes())) for title, path in plots],
        "watch": _load_watch_answers(run),
        "worst": [
            (answer.prediction, [_thumbnail(picture.image) for picture in answer.pictures])
            for answer in worst
        ],
    }
    (run / REPORT_FILE).write_text(_render("report.html.j2", context), encoding="utf-8")
    for name in ("data", "eval_data"):
        context[name] = [_shorten_path(source) for source in manifest["config"].get(name) or ()]
    context["command"] = shlex.join(map(_shorten_path, shlex.split(context["command"])))
    (run / CARD_FILE).write_text(_render("model_card.md.j2", context), encoding="utf-8")


def memorization_warning(run: Path) -> str:
    """Return a warning if the model is learning its training rows by heart, else "".

    That is so if the held-out loss rises while the held-out accuracy stands still: the model
    becomes surer of its answers, right or wrong, without getting better.
    """
    lines = [line for line in _json_lines(run / METRICS_FILE) if not line.get("final")]
    steps, losses = _curve(lines, "eval_loss")
    _, accuracies = _curve(lines, "eval_vqa_accuracy")
    if len(steps) < 3 or len(accuracies) != len(steps):
        return ""
    best = min(range(len(steps)), key=lambda i: losses[i])
    rise = losses[-1] - losses[best]
    questions = _final(_json_lines(run / METRICS_FILE)).get("eval_questions") or 1
    share = accuracies[best]
    noise = math.sqrt(share * (1 - share) / questions)  # standard error of the accuracy
    still = accuracies[-1] - share <= max(_STILL, noise)
    if rise < max(_RISE * losses[best], _RISE_NATS) or not still or steps[best] == 0:
        return ""
    config = json.loads((run / MANIFEST_FILE).read_text(encoding="utf-8"))["config"]
    return (
        f"The model is learning its training rows by heart: after step {steps[best]:,} the held-out"
        f" loss rose from {losses[best]:.3f} to {losses[-1]:.3f}, while the accuracy stood still"
        f" ({100 * share:.1f} % then, {100 * accuracies[-1]:.1f} % at the end)."
        f" {_less_memorization(config, steps[best] / steps[-1])}"
    )


def _less_memorization(config: Mapping[str, Any], share: float) -> str:
    """Return what to change in a run whose best step came after this share of its steps."""
    epochs, rank = config.get("epochs"), config.get("rank")
    changes = []
    if epochs:
        changes.append(f"fewer epochs (--epochs {share * epochs:.2g} instead of {epochs:.3g})")
    changes.append("more rows")
    if config.get("stage") in ("lora", "qlora") and rank and rank > 4:
        changes.append(f"a smaller rank (--rank {max(4, rank // 2)} instead of {rank})")
    if config.get("stage") == "full":
        changes.append("fewer trained weights (--stage lora)")
    return (
        f"Try {', '.join(changes[:-1])} or {changes[-1]}; with --metric loss, the weights before"
        " the rise are kept."
    )


def _contamination_warning(manifest: Mapping[str, Any], leaks: int) -> str:
    """Return a warning if this run or an earlier one may have trained on held-out rows, else ""."""
    if leaks:
        rows = pluralize(leaks, "held-out row")
        return (
            f"Its training rows repeat, or show the pictures of, {rows};"
            " the figures are better than on new rows."
        )
    earlier = manifest.get("earlier", [])
    # A run on the same data held out the same rows.
    if not any(run["data_hash"] != manifest["data_hash"] for run in earlier):
        return ""
    runs = "; ".join(f"{_shorten_path(run['name'])} on {_sources(run)}" for run in earlier)
    return (
        f"It continues a model that was trained on other rows ({runs}), which may include rows held"
        " out here; the figures may be too good."
    )


def _sources(run: Mapping[str, Any]) -> str:
    return ", ".join(map(_shorten_path, run["data"])) or "unnamed data"


def _describe_base(base: Base) -> str:
    if base.on_hub:
        return f"`{base.name}`"
    if base.name == BUILTIN:
        return "the built-in model of vqa-app"
    return f"a model that is not on the hub, `{Path(base.name).name}`"


def _shorten_path(word: str) -> str:
    """Return the last part of an absolute path, or the word: a card is read on other machines."""
    return re.sub(r"^(?:/|[A-Za-z]:[/\\])(?:[^/\\:]*[/\\])*", "", word)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _final(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the last value of each number in the log."""
    last: dict[str, float] = {}
    for line in lines:
        last |= {key: value for key, value in line.items() if isinstance(value, (int, float))}
    return last


def _curve(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Return steps and values; a step repeated after a resume has its later value."""
    points = {line["step"]: line[key] for line in lines if key in line and "step" in line}
    steps = sorted(points)
    return steps, [points[step] for step in steps]


_PLOTS: dict[str, tuple[str, str, dict[str, str]]] = {
    "loss": (
        "Loss",
        "nats per answer token",
        {"loss": "training", "eval_loss": "held-out"},
    ),
    "accuracy": ("Accuracy", "VQA accuracy", {"eval_vqa_accuracy": "held-out"}),
    "image_gain": (
        "Image gain",
        "nats per answer token",
        {"eval_image_gain": "held-out"},
    ),
    "learning_rate": ("Learning rate", "", {"learning_rate": "LLM"}),
}
"""By file name: title, unit, and the labels of the curves by key in the log."""


def _write_plots(run: Path, lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, Path]]:
    """Draw the plots for which the log has values; return their titles and files."""
    written = []
    for name, (title, unit, curves) in _PLOTS.items():
        found = {label: _curve(lines, key) for key, label in curves.items()}
        found = {label: points for label, points in found.items() if points[0]}
        if not found:
            continue
        (run / PLOTS).mkdir(exist_ok=True)
        path = run / PLOTS / f"{name}.png"
        _draw(found, title, unit, in_percent=name == "accuracy").savefig(path)
        written.append((title, path))
    return written


def _draw(
    curves: Mapping[str, tuple[list[float], list[float]]],
    title: str,
    unit: str,
    *,
    in_percent: bool,
) -> Figure:
    """Draw curves (steps, values) by their labels."""
    from matplotlib.figure import Figure  # pyplot's global state is not thread-safe
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 3.6), dpi=140, layout="constrained")
    axes = figure.add_subplot()
    for label, (steps, values) in curves.items():
        axes.plot(steps, values, label=label, marker="o" if len(steps) < 30 else None, ms=3)
    axes.set_title(title, loc="left")
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(unit)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if in_percent:
        axes.set_ylim(-0.02, 1.02)  # keeps 0 and 100 % off the frame
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    if len(curves) > 1:
        axes.legend(frameon=False)
    return figure


def _load_watch_answers(run: Path) -> list[dict[str, Any]]:
    """Return each watch question with its pictures and its answers over time.

    Equal consecutive answers are combined as (first step, last step, answer, accuracy).
    """
    questions: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    for line in _json_lines(run / WATCH_FILE):
        answer = _WATCH_ANSWER.validate_python(line)
        entry = questions.setdefault(
            (answer.question, answer.pictures),
            {"question": answer.question, "expected": answer.expected, "answers": {}},
        )
        accuracy = answer.accuracy
        if accuracy is None and answer.expected:  # written by an earlier version
            accuracy = float(answer.answer == answer.expected)
        entry["answers"][answer.step] = (answer.answer, accuracy)
        if "pictures" not in entry:
            paths = [run / WATCH_FOLDER / f"{digest}.png" for digest in answer.pictures]
            opened = [open_picture(p, limits=STORED_PICTURE_LIMITS) for p in paths if p.exists()]
            entry["pictures"] = [_thumbnail(picture.image) for picture in opened]
    for entry in questions.values():
        answers: list[tuple[int, int, str, float | None]] = []
        for step, (text, accuracy) in sorted(entry["answers"].items()):
            first = answers.pop()[0] if answers and answers[-1][2] == text else step
            answers.append((first, step, text, accuracy))
        entry["answers"] = answers
    return list(questions.values())


def _thumbnail(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = BytesIO()
    small.save(buffer, "PNG")
    return _uri(buffer.getvalue())


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _render(template: str, context: Mapping[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = files("finetune").joinpath("templates", template).read_text(encoding="utf-8")
    return environment.from_string(source).render(context)
