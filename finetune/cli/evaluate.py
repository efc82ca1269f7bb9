"""The shell commands `eval`, `verify` and `merge`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vqa_app.checkpoints.source import BUILTIN, stay_offline
from vqa_app.cli.options import Device, ModelOptions, Precision, with_model_options
from vqa_app.errors import UsageError

if TYPE_CHECKING:
    from finetune.evaluation.evaluate import EvalResult
    from finetune.evaluation.metrics import PairedTest
    from vqa_app.checkpoints.loader import LoadedModel

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command("eval")
@with_model_options
def evaluate_command(
    model_options: ModelOptions,
    data: Annotated[
        list[str],
        typer.Option(
            help="Questions with answers, in any format of `finetune`; repeatable. Of several "
            "splits test is taken, else validation; `data@split` names one."
        ),
    ],
    images: Annotated[
        list[str] | None, typer.Option(help="Folder that picture paths are relative to.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Second model on the same questions, compared by a paired test."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Keep predictions in this .jsonl file; an interrupted run goes on there."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Ask only so many questions, spread evenly.")
    ] = None,
    history: Annotated[
        bool,
        typer.Option("--history", help="Ask follow-ups with the right earlier turns in front."),
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 64,
    losses: Annotated[
        int, typer.Option(min=0, help="Measure loss and image gain at so many of the questions.")
    ] = 1000,
    max_bad: Annotated[int, typer.Option(min=0, help="How many bad rows to leave out.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure a model on questions with known answers.

    Every question is asked alone, about the pictures shown up to it; answers are greedy. VQA
    accuracy normalises answers as the official evaluator does, and uses its formula where there are
    ten answers.
    """
    from finetune.evaluation.evaluate import compare, evaluate
    from finetune.evaluation.predictions import PredictionsFile
    from finetune.evaluation.questions import evaluation_identity, load_questions
    from vqa_app.checkpoints.loader import load_model

    if out is not None and out.suffix != ".jsonl":
        raise UsageError(
            f"{out} is not a .jsonl file.", "Give --out a name like predictions.jsonl."
        )
    if model_options.offline:
        stay_offline()
    second = out.with_name(f"{out.stem}-against.jsonl") if out and against else None
    # What can be refused is refused before a model is loaded, or the first one has answered.
    with _Bar("opening pictures", "pictures") as bar:
        found = load_questions(
            data,
            images or (),
            history=history,
            limit=limit,
            max_bad=max_bad,
            on_progress=bar.update,
        )
    for note in found.notes:
        print(f"Note: {note}", file=sys.stderr)
    for problem in found.problems:
        print(f"Left out: {problem}", file=sys.stderr)
    asked = evaluation_identity(found.questions, max_new_tokens, losses)
    for file, name, added in (
        (out, model_options.model, model_options.adapter),
        (second, against, None),
    ):
        if file is not None and name is not None:
            known = {"model": _full_name(name), "adapter": added and _full_name(added)}
            PredictionsFile(file, asked | known).check()

    def measure(loaded: LoadedModel, out: Path | None) -> EvalResult:
        with _Bar(loaded.label) as bar:
            return evaluate(
                loaded,
                found,
                out=out,
                max_new_tokens=max_new_tokens,
                losses=losses,
                on_progress=bar.update,
            )

    results = [measure(load_model(**model_options.load_arguments()), out)]
    if against is not None:
        other = replace(model_options, model=against, adapter=None, revision=None)
        results.append(measure(load_model(**other.load_arguments()), second))
    test = compare(*results) if against is not None else None
    if as_json:
        print(json.dumps(_as_json(results, test), indent=1, ensure_ascii=False))
    else:
        _print(results, test)


@app.command("verify")
def verify_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run or of a merged model.")],
    device: Device = "auto",
) -> None:
    """Check that a trained model still gives what it gave.

    The prompts kept in the folder are answered again and the logits compared with those kept there.
    """
    from finetune.runs.verify import require, verify

    found = verify(run, device=device)
    require(found)
    print(f"{run} is what was saved. {found.summary}.")


@app.command("merge")
def merge_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    dtype: Precision = "auto",
) -> None:
    """Merge an adapter into its model: a standard checkpoint.

    The result is loaded again without this package and its logits are compared before it is kept.
    """
    from finetune.runs.merge import merge

    found = merge(run, out, dtype=dtype)
    print(f"Merged into {out}. {found.summary}.")


def _full_name(name: str) -> str:
    """As `LoadedModel` calls it, before it is loaded."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if name != BUILTIN and folder.is_dir() else name


class _Bar:
    """How far an evaluation is: a bar on a terminal, nothing elsewhere. All on stderr."""

    def __init__(self, label: str, what: str = "questions") -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(what),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task(label, total=None)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def update(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _print(results: list[EvalResult], test: PairedTest | None) -> None:
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("questions", justify="right")
    for result in results:
        table.add_column(result.model, justify="right", overflow="fold")
    first = results[0]
    total = f"{first.scores.questions:,}"

    def line(name: str, questions: str, values: list[str], style: str = "") -> None:
        table.add_row(name, questions, *values, style=style)

    line("VQA accuracy", total, [_percent(r.scores.vqa_accuracy) for r in results], "bold")
    line("exact match", total, [_percent(r.scores.exact_match) for r in results])
    line("ANLS", total, [_percent(r.scores.anls) for r in results])
    if first.scores.numeric_questions:
        numeric = f"{first.scores.numeric_questions:,}"
        relaxed = [_percent(r.scores.relaxed_accuracy) for r in results]
        line("relaxed accuracy, numbers", numeric, relaxed)
    if first.loss is not None:
        measured = sum(p.loss is not None for p in first.predictions)
        line("loss, nats per token", f"{measured:,}", [_number(r.loss) for r in results])
    if first.image_gain is not None:
        shown = sum(p.image_gain is not None for p in first.predictions)
        line("image gain, nats per token", f"{shown:,}", [_number(r.image_gain) for r in results])
    table.add_section()
    line("by type of question", "", ["VQA accuracy" for _ in results], "dim")
    for kind, (count, _) in first.types.items():
        values = [_percent(r.types[kind][1] if kind in r.types else None) for r in results]
        line(kind, f"{count:,}", values)
    console.print(table)
    if test is not None:
        console.print(_sentence(results, test))
    print(f"{first.seconds:.1f} s", file=sys.stderr)


def _sentence(results: list[EvalResult], test: PairedTest) -> str:
    chance = "more than chance explains" if test.p_value < 0.05 else "chance may explain it"
    return (
        f"\n{results[0].model} minus {results[1].model}: {100 * test.difference:+.2f} points"
        f" (95 % interval {100 * test.low:+.2f} to {100 * test.high:+.2f});"
        f" better on {test.first_better:,} questions, worse on {test.second_better:,};"
        f" p = {test.p_value:.2g} ({test.method}): {chance}."
    )


def _as_json(results: list[EvalResult], test: PairedTest | None) -> dict[str, Any]:
    values: dict[str, Any] = results[0].to_json()
    if test is not None:
        values |= {"against": results[1].to_json(), "paired_test": vars(test)}
    return values
