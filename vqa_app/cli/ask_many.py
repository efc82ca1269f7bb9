"""`vqa-app ask --each`: the same question about many pictures, with one load of the model."""

from __future__ import annotations

import glob
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vqa_app.cli.picture_args import SUFFIXES
from vqa_app.cli.reply import Asking, reply_to
from vqa_app.cli.terminal import json_line
from vqa_app.engine.protocol import Engine
from vqa_app.errors import ContextOverflowError, ImageError, UsageError, VqaError
from vqa_app.pictures.picture import ImageLimits, open_picture
from vqa_app.prompts.conversation import Conversation


def expand(patterns: Iterable[str]) -> list[str]:
    """The files that patterns name, sorted, each once; `**` reaches into folders. Of a folder those
    that are called as pictures are: it may hold notes, and the answers themselves.

    Raises:
        UsageError: a pattern names no file.
    """
    found: set[str] = set()
    for pattern in patterns:
        pattern = os.path.expanduser(pattern)
        if is_folder := os.path.isdir(pattern):
            pattern = os.path.join(glob.escape(pattern), "*")
        # A name may itself look like a pattern: a[1].png is a file, not only what a1.png matches.
        names = [pattern] if os.path.isfile(pattern) else glob.glob(pattern, recursive=True)
        files = {path for path in names if os.path.isfile(path)}
        if is_folder:
            files = {path for path in files if path.lower().endswith(SUFFIXES)}
        if not files:
            kind = "picture" if is_folder else "file"
            raise UsageError(f"No {kind} is called {pattern}.", "Check the pattern of --each.")
        found |= files
    return sorted(found)


def ask_each(
    open_engine: Callable[[], Engine],
    paths: list[str],
    question: str,
    asking: Asking,
    out: Path | None,
    console: Console,
    limits: ImageLimits,
    model: Mapping[str, Any],
) -> None:
    """Answers the question about each file and writes a JSON line for each.

    Files that `out` already has an answer for (to this question, of this model, with these choices
    and options) are left out; answers of another kind stay, and are told of.
    A file that cannot be used does not end the run; it is named at the end, and tried again when
    the command is repeated.

    Args:
        open_engine: loads the model; not called where nothing is left to do.
        paths: the files.
        question: asked about each.
        asking: how to answer.
        out: a JSONL file that is added to; stdout where None.
        console: for progress and problems.
        limits: what a picture may cost.
        model: what tells the model from others; it goes into the rows with the options.

    Raises:
        typer.Exit: some files could not be used; the code is that of the first one's error.
    """
    key = _key(question, asking, model)
    done, others = _answered(out, key) if out is not None else (set(), 0)
    left = [path for path in paths if path not in done]
    if len(left) < len(paths):
        console.print(f"{len(paths) - len(left)} of {len(paths)} are answered already.")
    if others:
        console.print(
            f"{out} also holds other answers to this question ({others}), of another model or"
            " with other options; they stay.",
            markup=False,
            soft_wrap=True,
        )
    problems: list[tuple[str, VqaError]] = []
    if left:
        engine = open_engine()
        try:
            with _opened(out) as file, _progress(console, len(left)) as advance:
                for path in left:
                    try:
                        row = _answer(engine, path, key, asking, limits)
                    except (ImageError, ContextOverflowError) as error:
                        problems.append((path, error))
                    else:
                        file.write(json_line(row, file))
                        file.flush()  # a run that is stopped keeps every answer
                    advance()
        finally:
            engine.close()
    where = "" if out is None else f", in {out}"
    console.print(f"{len(left) - len(problems)} answered{where}.", markup=False)
    if problems:
        console.print(f"{len(problems)} could not be used:")
        for path, error in problems:
            console.print(f"  {path}: {error.problem}", markup=False, soft_wrap=True)
        raise typer.Exit(problems[0][1].exit_code)


def _answer(
    engine: Engine, path: str, key: dict[str, Any], asking: Asking, limits: ImageLimits
) -> dict[str, Any]:
    picture = open_picture(path, limits=limits)
    reply = reply_to(engine, Conversation.ask(key["question"], [picture]), asking)
    return {
        "picture": path,
        **key,
        "sha256": picture.digest,
        **reply.to_json(),
        "model": engine.info.label,
    }


def _key(question: str, asking: Asking, model: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a row an answer to this question as it is asked now."""
    settings = {**model, **asdict(asking.options), "abstain": asking.abstain}
    return {
        "question": question,
        "given_choices": list(asking.choices),
        "asked_with": {name: value for name, value in settings.items() if value not in (None, ())},
    }


def _answered(out: Path, key: dict[str, Any]) -> tuple[set[str], int]:
    """The files that have their answer, and how many answers to the same question were asked for in
    another way. A last line that was cut off by a kill is removed.
    """
    if not os.path.isdir(out.parent):
        raise UsageError(f"There is no folder {out.parent}.", "Create it first.")
    if not os.path.exists(out):
        return set(), 0
    try:
        data = out.read_bytes()
    except OSError as error:
        raise UsageError(f"{out} cannot be read: {error.strerror}.", "Name another.") from error
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
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(
                f"{out}, line {number}, is not an answer of --each.", "Name another file."
            ) from error
    if len(whole) < len(data):
        with out.open("r+b") as file:
            file.truncate(len(whole))
    return answered, others


@contextmanager
def _opened(out: Path | None) -> Iterator[TextIO]:
    if out is None:
        yield sys.stdout
        return
    try:
        file = out.open("a", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}.", "Name another.") from error
    with file:
        yield file


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable[[], None]]:
    """A bar with the time left, on a terminal; gives the function that counts one more."""
    columns = (
        TextColumn("Asking"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)
