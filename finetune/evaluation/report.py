"""What a run leaves for people: plots, a report in one HTML file, a model card.

All of it is made from files of the run (`manifest.json`, `metrics.jsonl`, `watch.jsonl`) and can be
made again; only the worst answers are handed in, with their pictures.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from vqa_app.pictures.picture import STORED_PICTURE_LIMITS, Picture, open_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from finetune.evaluation.predictions import Prediction
    from finetune.evaluation.questions import Question

_THUMBNAIL = 240
"""Longest side, in pixels, of pictures in the report."""


@dataclass(frozen=True)
class WatchAnswer:
    """What the model said to one watch question at one evaluation."""

    step: int
    question: str
    expected: str
    """Empty where nobody knows."""
    answer: str
    pictures: tuple[str, ...]
    """Digests; the files lie in the run's `watch` folder."""
    accuracy: float | None = None
    """VQA accuracy, 0 to 1; None where nobody knows the right answer."""


@dataclass(frozen=True)
class WorstAnswer:
    prediction: Prediction
    pictures: tuple[Picture, ...]


def save_watch_answers(
    run: Path,
    step: int,
    answered: Iterable[tuple[str, str, str, Sequence[Picture]]],
    references: Sequence[Sequence[str]] = (),
) -> None:
    """Adds one evaluation's watch answers to the run.

    Args:
        answered: question, expected answer (or ""), the model's answer, pictures.
        references: for each of them all that counts as right; by default what is expected.
    """
    (run / WATCH_FOLDER).mkdir(parents=True, exist_ok=True)
    with (run / WATCH_FILE).open("a", encoding="utf-8") as file:
        for number, (question, expected, answer, pictures) in enumerate(answered):
            for picture in pictures:
                place = run / WATCH_FOLDER / f"{picture.digest}.png"
                if not place.exists():
                    part = place.with_suffix(".part")  # a full disk may leave half of it
                    picture.image.save(part, "PNG")
                    part.replace(place)
            digests = tuple(picture.digest for picture in pictures)
            right = references[number] if references else [expected] if expected else []
            accuracy = vqa_accuracy(answer, right) if right else None
            kept = WatchAnswer(step, question, expected, answer, digests, accuracy)
            file.write(json.dumps(asdict(kept), ensure_ascii=False) + "\n")


def worst_answers(
    predictions: Iterable[Prediction], questions: Iterable[Question], count: int = 12
) -> list[WorstAnswer]:
    """The answers furthest from right, with their pictures: by accuracy, then by loss."""
    asked = {question.id: question for question in questions}
    wrong = [p for p in predictions if p.vqa_accuracy < 1 and p.id in asked]
    wrong.sort(key=lambda p: (p.vqa_accuracy, -(p.loss or 0.0), p.id))
    found = []
    for prediction in wrong[:count]:
        question = asked[prediction.id]
        shown = [s for turn in question.row.turns[: question.turn] for s in turn.pictures]
        found.append(WorstAnswer(prediction, tuple(source.open() for source in shown)))
    return found


def write_report(run: str | Path, worst: Sequence[WorstAnswer] = ()) -> None:
    """Writes `plots/*.png`, `report.html` and `README.md` into a run."""
    run = Path(run)
    manifest = json.loads((run / MANIFEST_FILE).read_text(encoding="utf-8"))
    lines = _json_lines(run / METRICS_FILE)
    plots, final = _write_plots(run, lines), _final(lines)
    asked = final.get("eval_questions", 0)
    context = {
        "name": run.resolve().name,
        "manifest": manifest,
        "base": _base_in_words(Base(**manifest["base"])),
        "on_hub": Base(**manifest["base"]).on_hub,
        "command": manifest.get("command", ""),
        "earlier": manifest.get("earlier", []),
        "doubt": _doubt(manifest),
        "final": final,
        "asked": pluralize(int(asked), "held-out question") if asked else "held-out questions",
        "before": next((line for line in lines if line.get("step") == 0), {}),
        "plots": [(title, _uri(path.read_bytes())) for title, path in plots],
        "watch": _watch(run),
        "worst": [
            (answer.prediction, [_thumbnail(picture.image) for picture in answer.pictures])
            for answer in worst
        ],
    }
    (run / REPORT_FILE).write_text(_render("report.html.j2", context), encoding="utf-8")
    for name in ("data", "eval_data"):
        context[name] = [_portable(source) for source in manifest["config"].get(name) or ()]
    context["command"] = shlex.join(map(_portable, shlex.split(context["command"])))
    (run / CARD_FILE).write_text(_render("model_card.md.j2", context), encoding="utf-8")


def _doubt(manifest: Mapping[str, Any]) -> str:
    """Why the figures may be too good; empty where nothing speaks for it."""
    earlier = manifest.get("earlier", [])
    # What trained on the very same rows has not seen those that are held out of them.
    if not any(run["data_hash"] != manifest["data_hash"] for run in earlier):
        return ""
    trained = "; ".join(f"{_portable(run['name'])} on {_sources(run)}" for run in earlier)
    return (
        f"It went on from a model that had been trained on other rows ({trained}): what is held out"
        " here may have been among them, and the figures too good."
    )


def _sources(run: Mapping[str, Any]) -> str:
    return ", ".join(map(_portable, run["data"])) or "data that is not named"


def _base_in_words(base: Base) -> str:
    if base.on_hub:
        return f"`{base.name}`"
    if base.name == BUILTIN:
        return "the model that comes with vqa-app"
    return f"a model that is not on the hub, `{Path(base.name).name}`"


def _portable(word: str) -> str:
    """A word of a command, of an absolute path the last part alone: a card is read elsewhere."""
    return re.sub(r"^(?:/|[A-Za-z]:[/\\])(?:[^/\\:]*[/\\])*", "", word)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _final(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The last figure of each name."""
    last: dict[str, float] = {}
    for line in lines:
        last |= {key: value for key, value in line.items() if isinstance(value, (int, float))}
    return last


def _curve(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values; of a step that was trained twice, after a resume, the later value."""
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
        "What the picture is worth",
        "nats per answer token",
        {"eval_image_gain": "held-out"},
    ),
    "learning_rate": ("Learning rate", "", {"learning_rate": "LLM"}),
}
"""File name → title, unit, curves with their names."""


def _write_plots(run: Path, lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, Path]]:
    """Draws every plot there are numbers for; gives titles and files."""
    written = []
    for name, (title, unit, curves) in _PLOTS.items():
        found = {label: _curve(lines, key) for key, label in curves.items()}
        found = {label: points for label, points in found.items() if points[0]}
        if not found:
            continue
        (run / PLOTS).mkdir(exist_ok=True)
        path = run / PLOTS / f"{name}.png"
        _drawn(found, title, unit, in_percent=name == "accuracy").savefig(path)
        written.append((title, path))
    return written


def _drawn(
    curves: Mapping[str, tuple[list[float], list[float]]],
    title: str,
    unit: str,
    *,
    in_percent: bool,
) -> Figure:
    """Curves (steps, values) by their names."""
    from matplotlib.figure import Figure  # not pyplot, whose global state is no good in threads
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
        axes.set_ylim(-0.02, 1.02)  # 0 and 100 % are seen beside the frame
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    if len(curves) > 1:
        axes.legend(frameon=False)
    return figure


def _watch(run: Path) -> list[dict[str, Any]]:
    """Each watch question with pictures and answers over time, equal ones in a row as one."""
    questions: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    for line in _json_lines(run / WATCH_FILE):
        answer = WatchAnswer(**{**line, "pictures": tuple(line["pictures"])})
        entry = questions.setdefault(
            (answer.question, answer.pictures),
            {"question": answer.question, "expected": answer.expected, "answers": {}},
        )
        accuracy = answer.accuracy
        if accuracy is None and answer.expected:  # kept by an earlier version
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
