"""`vqa-app ask --each`: ask one question about many pictures, loading the model once."""

from __future__ import annotations

import glob
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vqa_app.cli.answer_table import is_table, write_table
from vqa_app.cli.reply import AnswerOptions, reply_to
from vqa_app.cli.terminal import json_line
from vqa_app.engine.protocol import Engine
from vqa_app.errors import ContextOverflowError, ImageError, UsageError, VqaError
from vqa_app.files import JSON_ERRORS
from vqa_app.pictures.names import NAMES_OF_PICTURES
from vqa_app.pictures.picture import ImageLimits, open_picture
from vqa_app.prompts.conversation import Conversation
from vqa_app.suggestions import suggest


def expand(patterns: Iterable[str]) -> list[str]:
    """Return the files that match the patterns, sorted and without duplicates.

    A pattern may contain `**` for nested folders. A folder means the files in it that have the
    suffix of a picture, because it may also contain notes, and the answers themselves.

    Raises:
        ImageError: A pattern matches no file.
    """
    found: set[str] = set()
    for pattern in patterns:
        pattern = os.path.expanduser(pattern)
        if is_folder := os.path.isdir(pattern):
            pattern = os.path.join(glob.escape(pattern), "*")
        # A file's name may look like a pattern: a[1].png would only match a1.png.
        names = [pattern] if os.path.isfile(pattern) else glob.glob(pattern, recursive=True)
        files = {path for path in names if os.path.isfile(path)}
        if is_folder:
            files = {path for path in files if path.lower().endswith(NAMES_OF_PICTURES)}
        if not files:
            kind = "picture" if is_folder else "file"
            hint = suggest(
                pattern, path=_is_picture_source, otherwise="Check the pattern of --each."
            )
            raise ImageError(f"No {kind} matches {pattern}.", hint)
        found |= files
    return sorted(found)


def _is_picture_source(path: Path) -> bool:
    return path.is_dir() or path.name.lower().endswith(NAMES_OF_PICTURES)


def ask_each(
    open_engine: Callable[[], Engine],
    paths: list[str],
    question: str,
    options: AnswerOptions,
    out: Path | None,
    console: Console,
    limits: ImageLimits,
    model: Mapping[str, Any],
) -> None:
    """Answer the question about each file and write a row for each answer.

    A table (`.csv`, `.parquet`) is made at the end, of the JSON lines in a file beside it. Files
    for which the JSON lines already have an answer to the same question, by the same model and with
    the same options, are skipped. Other answers in it are kept, with a note. A file that cannot be
    used does not end the run; it is listed at the end, and tried again when the command is
    repeated.

    Args:
        open_engine: Loads the model; not called if all files are answered.
        paths: The files.
        question: The question about each file.
        options: How to answer.
        out: A table, or a JSONL file to append to; None writes to stdout.
        console: Shows progress and problems.
        limits: The largest picture to accept.
        model: What identifies the model; written to the rows together with the options.

    Raises:
        typer.Exit: Some files could not be used. The exit code is that of the first error.
    """
    key = _key(question, options, model)
    table = out if out is not None and is_table(out) else None
    if table is not None:
        out = table.with_name(f"{table.name}.jsonl")
    done, others = _read_answers(out, key) if out is not None else (set(), 0)
    remaining = [path for path in paths if path not in done]
    if len(remaining) < len(paths):
        console.print(f"{len(paths) - len(remaining)} of {len(paths)} are already answered.")
    if others:
        console.print(
            f"{out} also contains {others} answers to this question by another model or with other"
            " options; they are kept.",
            markup=False,
            soft_wrap=True,
        )
    problems: list[tuple[str, VqaError]] = []
    if remaining:
        engine = open_engine()
        try:
            with _open_output(out) as file, _progress(console, len(remaining)) as advance:
                for path, row in _answer_all(engine, remaining, key, options, limits):
                    if isinstance(row, VqaError):
                        problems.append((path, row))
                    else:
                        file.write(json_line(row, file))
                        file.flush()  # keep every answer if the run is interrupted
                    advance()
        finally:
            engine.close()
    if table is not None and out is not None:
        write_table(table, _rows_of(out, key, paths))
    where = "" if out is None else f", in {table or out}"
    console.print(f"{len(remaining) - len(problems)} answered{where}.", markup=False)
    if problems:
        console.print(f"{len(problems)} could not be used:")
        for path, reason in problems:
            console.print(f"  {path}: {reason.problem}", markup=False, soft_wrap=True)
        raise typer.Exit(problems[0][1].exit_code)


def _answer_all(
    engine: Engine,
    paths: Sequence[str],
    key: dict[str, Any],
    options: AnswerOptions,
    limits: ImageLimits,
) -> Iterator[tuple[str, dict[str, Any] | VqaError]]:
    """Yield each file with its row, or why it cannot be used, in the order of the files.

    As many questions are asked at once as the engine answers.
    """

    def answer(path: str) -> dict[str, Any] | VqaError:
        try:
            return _answer(engine, path, key, options, limits)
        except (ImageError, ContextOverflowError) as error:
            return error

    pool = ThreadPoolExecutor(engine.info.concurrency)
    try:
        yield from zip(paths, pool.map(answer, paths), strict=True)
    finally:  # after Ctrl-C, closing the engine ends the answers that have begun
        pool.shutdown(wait=False, cancel_futures=True)


def _answer(
    engine: Engine, path: str, key: dict[str, Any], options: AnswerOptions, limits: ImageLimits
) -> dict[str, Any]:
    """Return the JSON row of one file."""
    picture = open_picture(path, limits=limits)
    reply = reply_to(engine, Conversation.ask(key["question"], [picture]), options)
    return {
        "picture": path,
        **key,
        "sha256": picture.digest,
        **reply.to_json(),
        "model": engine.info.label,
    }


def _key(question: str, options: AnswerOptions, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields by which a row is recognised as an answer to the same question."""
    settings = {**model, **asdict(options.generation), "abstain": options.abstain}
    return {
        "question": question,
        "given_choices": list(options.choices),
        "asked_with": {name: value for name, value in settings.items() if value not in (None, ())},
    }


def _rows_of(out: Path, key: dict[str, Any], paths: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of the files in their order, as far as they are answered."""
    rows = {}
    with suppress(FileNotFoundError), out.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if {name: row.get(name) for name in key} == key:
                rows[row["picture"]] = row
    return [rows[path] for path in paths if path in rows]


def _read_answers(out: Path, key: dict[str, Any]) -> tuple[set[str], int]:
    """Read an earlier run's answers and remove an incomplete last line.

    Returns:
        The files that are answered, and the number of answers to the same question by another model
        or with other options.

    Raises:
        UsageError: The file cannot be read, or contains something else.
    """
    if not os.path.isdir(out.parent):
        raise UsageError(f"There is no folder {out.parent}.", "Create it first.")
    if not (os.path.isfile(out) or os.path.isdir(out)):  # a new file, or a device like /dev/stdout
        return set(), 0
    try:
        data = out.read_bytes()
    except OSError as error:
        raise UsageError(f"Could not read {out}: {error.strerror}.", "Use another file.") from error
    whole = data[: data.rfind(b"\n") + 1]
    answered: set[str] = set()
    others = 0
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            picture = row["picture"]
            if {name: row.get(name) for name in key} == key:
                answered.add(picture)
            else:
                others += row.get("question") == key["question"]
        except (*JSON_ERRORS, TypeError, KeyError) as error:
            raise UsageError(
                f"{out}, line {number}: expected an answer of --each.", "Use another file."
            ) from error
    if len(whole) < len(data):
        with out.open("r+b") as file:
            file.truncate(len(whole))
    return answered, others


@contextmanager
def _open_output(out: Path | None) -> Iterator[TextIO]:
    if out is None:
        yield sys.stdout
        return
    try:
        file = out.open("a", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"Could not write {out}: {error.strerror}.", "Use another file."
        ) from error
    with file:
        yield file


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal.

    Yields:
        A function to call after each file.
    """
    columns = (
        TextColumn("Asking"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)
