"""The commands `eval`, `verify` and `merge`."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.evaluation.answer_style import AnswerStyle
from finetune.progress import progress_bar
from finetune.runs.layout import require_folder
from vqa_app.checkpoints.source import BUILTIN, stay_offline
from vqa_app.cli.options import Device, EngineOptions, Precision, with_model_options
from vqa_app.cli.terminal import json_line
from vqa_app.engine.remote import RemoteEngine, is_remote
from vqa_app.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune.evaluation.calibration import CalibrationReport
    from finetune.evaluation.evaluate import EvalResult
    from finetune.evaluation.metrics import PairedTest
    from vqa_app.checkpoints.loader import LoadedModel

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command("eval")
@with_model_options
def evaluate_command(
    model_options: EngineOptions,
    data: Annotated[
        list[str],
        typer.Option(
            help="Questions with answers, in any format that `finetune` reads; may be repeated. Of "
            "several splits, test is used, or else validation; `data@split` names one."
        ),
    ],
    images: Annotated[
        list[str] | None, typer.Option(help="Folder that picture paths are relative to.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Second model to compare with, by a paired test on the same questions."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write predictions to this .jsonl file; an interrupted evaluation is continued."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of questions, evenly spaced.")
    ] = None,
    history: Annotated[
        bool,
        typer.Option(
            "--history", help="Put earlier turns with their correct answers before each question."
        ),
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    losses: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of questions whose loss and image gain are measured. [default: 1000, or 0"
            " for a server, which keeps its weights]",
            show_default=False,
        ),
    ] = None,
    blind: Annotated[
        int,
        typer.Option(
            min=0, help="Number of questions that are also answered with grey pictures; 0: none."
        ),
    ] = 200,
    answer_style: Annotated[
        AnswerStyle,
        typer.Option(
            help="`short` asks for a single word or phrase, as VQA evaluations do; `as-written` "
            "asks the questions alone. `auto` is short for plain questions whose answers have up "
            "to three words, unless the model was trained here, on questions as written."
        ),
    ] = "auto",
    max_bad: Annotated[
        int, typer.Option(min=0, help="Number of bad rows that may be skipped.")
    ] = 0,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Measure how often the model is right where it is how sure, and keep that with"
            " the model's folder, or in your data folder for built-in and hub models, so that"
            " `chat` and `ask` show a confidence that can be relied on.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Evaluate a model on questions with known answers.

    Every question is asked alone, with the pictures shown up to it, and answered greedily. VQA
    accuracy normalises answers as the official evaluator does, and uses its formula for questions
    with ten answers. Beside it stands what one gets without looking at the pictures.
    """
    from finetune.data.read import check_sources
    from finetune.evaluation.calibration import calibrate as calibrate_model
    from finetune.evaluation.calibration import check_count
    from finetune.evaluation.evaluate import MEASURED_LOSSES, compare, evaluate
    from finetune.evaluation.predictions import PredictionsFile
    from finetune.evaluation.questions import evaluation_identity, load_questions
    from vqa_app.checkpoints.loader import load_model

    if out is not None and out.suffix != ".jsonl":
        raise UsageError(
            f"{out} is not a .jsonl file.", "Give --out a name like predictions.jsonl."
        )
    model_options.check_names()
    names = [model_options.model, *([] if against is None else [against])]
    servers = [name for name in names if is_remote(name)]
    if servers and (losses or calibrate):
        raise UsageError(
            f"{'--calibrate' if calibrate else '--losses'} needs the weights of the model, which"
            f" {servers[0]} keeps.",
            "Leave it out, or evaluate a model of this machine.",
        )
    if losses is None:
        losses = MEASURED_LOSSES
    if against is not None:
        _against(model_options, against).check_names()
    check_sources(data, images or ())
    if model_options.offline:
        stay_offline()
    second = out.with_name(f"{out.stem}-against.jsonl") if out and against else None
    # Check everything that can be checked before a model is loaded.
    with progress_bar("opening pictures", "pictures") as update:
        questions = load_questions(
            data,
            images or (),
            history=history,
            limit=limit,
            max_bad=max_bad,
            on_progress=update,
        )
    for note in questions.notes:
        print(f"Note: {note}", file=sys.stderr)
    for problem in questions.problems:
        print(f"Skipped: {problem}", file=sys.stderr)
    if calibrate:
        check_count(len(questions.questions))
    identity = evaluation_identity(questions.questions, max_new_tokens, losses, calibrate)
    for file, name, adapter in (
        (out, model_options.model, model_options.adapter),
        (second, against, None),
    ):
        if file is not None and name is not None and not is_remote(name):
            model_identity = {
                "model": _resolve_name(name),
                "adapter": adapter and _resolve_name(adapter),
            }
            PredictionsFile(file, identity | model_identity).check()

    def measure(loaded: LoadedModel | RemoteEngine, out: Path | None) -> EvalResult:
        on_server = isinstance(loaded, RemoteEngine)
        label = loaded.info.label if isinstance(loaded, RemoteEngine) else loaded.label
        with progress_bar(label, "questions") as update:
            return evaluate(
                loaded,
                questions,
                out=out,
                max_new_tokens=max_new_tokens,
                losses=0 if on_server else losses,
                log_probabilities=calibrate,
                blind=blind,
                answer_style=answer_style,
                on_progress=update,
            )

    def load(options: EngineOptions) -> LoadedModel | RemoteEngine:
        server = options.server()
        return RemoteEngine(server) if server else load_model(**options.load_arguments())

    def measure_and_close(loaded: LoadedModel | RemoteEngine, out: Path | None) -> EvalResult:
        try:
            return measure(loaded, out)
        finally:
            if isinstance(loaded, RemoteEngine):
                loaded.close()

    loaded = load(model_options)
    results = [measure_and_close(loaded, out)]
    report: CalibrationReport | None = None
    uncalibrated: UsageError | None = None
    if calibrate and not isinstance(loaded, RemoteEngine):
        try:
            report = calibrate_model(loaded, results[0].predictions)
        except UsageError as error:
            uncalibrated = error  # raised after the results are shown
    if against is not None:
        results.append(measure_and_close(load(_against(model_options, against)), second))
    test = compare(*results) if against is not None else None
    if as_json:
        sys.stdout.write(json_line(_as_json(results, test, report), sys.stdout, indent=1))
    else:
        _print(results, _given_names(model_options, against), test)
    if uncalibrated is not None:
        raise uncalibrated
    if report is not None and not isinstance(loaded, RemoteEngine):
        path = report.calibration.save(loaded.own_folder)
        if not as_json:
            _print_calibration(report, path)


@app.command("verify")
def verify_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run or of a merged model.")],
    device: Device = "auto",
) -> None:
    """Check that a trained model still computes what it did when it was saved.

    The golden prompts in the folder are run again, and the logits are compared with the saved ones.
    """
    require_folder(run)  # before the imports, which take seconds
    from finetune.runs.verify import require, verify

    found = verify(run, device=device)
    require(found)
    print(f"{run} computes what it did when it was saved. {found.summary}.")


@app.command("merge")
def merge_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path, typer.Option(help="Folder to write to; must not exist.")],
    dtype: Precision = "auto",
) -> None:
    """Merge an adapter into its base model and write a standard checkpoint.

    The result is loaded with plain transformers, and its logits are compared with the run's.
    """
    require_folder(run)  # before the imports, which take seconds
    from finetune.runs.merge import merge

    found = merge(run, out, dtype=dtype)
    print(f"Merged into {out}. {found.summary}.")


def _against(options: EngineOptions, name: str) -> EngineOptions:
    """Return the options for the second model; no other server gets the key of the first one."""
    other = replace(options, model=name, adapter=None, revision=None, model_api_key=None)
    first, second = options.server(), other.server()
    if second is not None:
        other = replace(other, quantize=None, device="auto", dtype="auto")
        if first is None or first.address == second.address:
            other = replace(other, model_api_key=options.model_api_key)
    return other


def _resolve_name(name: str) -> str:
    """Return the name that `LoadedModel` will have for a model or adapter."""
    folder = Path(os.path.expanduser(name))
    return str(folder.resolve()) if name != BUILTIN and folder.is_dir() else name


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _given_names(model_options: EngineOptions, against: str | None) -> list[str]:
    """Return the models as the user named them: shorter than the absolute paths in the results."""
    first = " + ".join(filter(None, (model_options.model, model_options.adapter)))
    return [first] if against is None else [first, against]


def _print(results: list[EvalResult], names: list[str], test: PairedTest | None) -> None:
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("questions", justify="right")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    first = results[0]
    total = f"{first.scores.questions:,}"

    def line(name: str, questions: str, values: list[str], style: str = "") -> None:
        table.add_row(Text(name), questions, *values, style=style)  # a name is no markup

    line("VQA accuracy", total, [_percent(r.scores.vqa_accuracy) for r in results], "bold")
    _add_baselines(line, results)
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
    line("by question type", "", ["VQA accuracy" for _ in results], "dim")
    for kind, (count, _) in first.types.items():
        values = [_percent(r.types[kind][1] if kind in r.types else None) for r in results]
        line(kind, f"{count:,}", values)
        if first.baselines:
            typical = [
                _percent(r.baselines.types.get(kind) if r.baselines else None) for r in results
            ]
            line("  most frequent answer", "", typical, "dim")
    console.print(table)
    for name, result in zip(names, results, strict=True):
        if result.baselines:
            counted = f"{name}: frequent answers were counted in {result.baselines.source}."
            console.print(counted, style="dim", markup=False, soft_wrap=True)
        if result.blind:
            console.print(f"{name}: {result.blind}", style="dim", markup=False, soft_wrap=True)
        if result.answer_style == "short":
            style = "asked for a single word or phrase; --answer-style as-written does not"
            console.print(f"{name}: {style}.", style="dim", markup=False, soft_wrap=True)
    if test is not None:
        console.print(_describe_test(names, test), soft_wrap=True)
    print(f"{first.seconds:.1f} s", file=sys.stderr)


def _print_calibration(report: CalibrationReport, path: Path) -> None:
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("confidence", "answers", "mean confidence", "right"):
        table.add_column(name, justify="right")
    for one in report.bins:
        table.add_row(
            f"{one.low:.0%} to {one.high:.0%}",
            f"{one.answers:,}",
            _percent(one.confidence),
            _percent(one.accuracy),
        )
    console.print()
    console.print(table)
    calibration = report.calibration
    print(
        f"\nExpected calibration error: {_percent(calibration.error)} on questions that the curve"
        f" was not fitted to; {_percent(report.error_before)} without it (mean token probability)."
        f"\nIt holds for answers of up to {calibration.longest_answer} words, as the known answers"
        " have, that deny nothing; for others, the model's own probability is shown."
        f"\nThe curve of all {calibration.questions:,} questions is in {path}."
    )


def _add_baselines(line: Callable[..., None], results: list[EvalResult]) -> None:
    """Add what one gets without looking at the pictures, below the accuracy."""
    baselines = [result.baselines for result in results]
    if all(baselines):
        questions = f"{results[0].scores.questions:,}"
        answers = " or ".join(dict.fromkeys(b.shown_answer for b in baselines if b))
        always = [_percent(b.always if b else None) for b in baselines]
        line(f"  always {answers}", questions, always, "dim")
        typical = [_percent(b.per_type if b else None) for b in baselines]
        line("  most frequent answer by type", questions, typical, "dim")
    blind = [result.blind for result in results]
    if blind[0]:
        values = [_percent(b.accuracy if b else None) for b in blind]
        line("  with grey pictures", f"{blind[0].questions:,}", values, "dim")


def _describe_test(names: list[str], test: PairedTest) -> str:
    conclusion = "significant" if test.p_value < 0.05 else "not significant"
    return (
        f"\n{names[0]} minus {names[1]}: {100 * test.difference:+.2f} points"
        f" (95 % interval {100 * test.low:+.2f} to {100 * test.high:+.2f});"
        f" better on {test.first_better:,} questions, worse on {test.second_better:,};"
        f" p = {test.p_value:.2g} ({test.method}): {conclusion}."
    )


def _as_json(
    results: list[EvalResult], test: PairedTest | None, report: CalibrationReport | None
) -> dict[str, Any]:
    values: dict[str, Any] = results[0].to_json()
    if report is not None:
        values |= {"calibration": asdict(report)}
    if test is not None:
        values |= {"against": results[1].to_json(), "paired_test": vars(test)}
    return values
