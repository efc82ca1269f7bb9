"""`vqa-app ask`: answer one question, open a dialogue, or ask about many pictures."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vqa_app.cli.options import EngineOptions, MaxFileMb, MaxMegapixels, with_model_options
from vqa_app.cli.terminal import print_note, print_warning
from vqa_app.errors import ModelError, UsageError
from vqa_app.user_folders import user_data

if TYPE_CHECKING:
    from vqa_app.cli.reply import AnswerOptions
    from vqa_app.engine.protocol import Engine
    from vqa_app.pictures.picture import Picture
    from vqa_app.prompts.conversation import Conversation

app = typer.Typer(add_completion=False)

_HINT_SECONDS = 24 * 3600


def open_engine(options: EngineOptions, console: Console) -> Engine:
    """Load the model, which takes seconds for imports alone, and may download it.

    A model on a server is not loaded, and nothing that loads models is imported.
    """
    from vqa_app.cli.terminal import spinner

    options.check_names()
    if server := options.server():
        from vqa_app.engine.remote import RemoteEngine

        with spinner(console, f"Connecting to {server.host}"):
            return RemoteEngine(server)
    with spinner(console, f"Loading {options.model}"):
        from vqa_app.checkpoints.loader import load_model
        from vqa_app.engine.local import LocalEngine

        return LocalEngine(load_model(**options.load_arguments()))


def warning_about_system(engine: Engine, system: str | None) -> str | None:
    """Return what to say if the model cannot follow system prompts, and is given one."""
    if not system or engine.info.system_prompts:
        return None
    return (
        f"{engine.info.label} was trained without system prompts: it will not follow this one,"
        " and may answer worse. `vqa-app models` lists models that can."
    )


@app.command()
@with_model_options
def ask(
    model_options: EngineOptions,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE... QUESTION",
            help="Pictures (files, http(s) addresses, or - for stdin), then the question. Without a"
            " question, a dialogue opens in a terminal.",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Length of the longest answer, in tokens.")
    ] = 256,
    temperature: Annotated[
        float | None,
        typer.Option(help="Sampling temperature; 0 is deterministic. [default: the model's own]"),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Sample from the likeliest tokens up to this total probability."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampled answers repeatable.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    choices: Annotated[
        str | None,
        typer.Option(help="Answer with the most probable of these.", metavar="A,B,C"),
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option(
            help="Answer with JSON that follows the JSON schema in this file.", metavar="FILE.JSON"
        ),
    ] = None,
    abstain: Annotated[
        float | None,
        typer.Option(
            help='Answer "I am not sure." if the confidence is lower than this.',
            metavar="0..1",
            min=0,
            max=1,
        ),
    ] = None,
    explain: Annotated[
        Path | None,
        typer.Option(
            help="Save an attention map over the picture; for several pictures MAP-1.PNG, ...",
            metavar="MAP.PNG",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
    each: Annotated[
        list[str] | None,
        typer.Option(
            help="Ask about each file of a folder or quoted pattern; repeatable.",
            metavar="PATTERN",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File for the answers of --each: a table if it ends with .csv or .parquet, JSON"
            " lines otherwise; an interrupted run is continued."
        ),
    ] = None,
    no_server: Annotated[
        bool,
        typer.Option(
            "--no-server",
            help="Load the model, even if a `chat` or `serve` of yours on this machine has it.",
        ),
    ] = False,
    max_file_mb: MaxFileMb = 20,
    max_megapixels: MaxMegapixels = 50,
) -> None:
    """Ask about pictures.

    $ vqa-app ask cat.png "What is on the mat?"

    $ vqa-app ask before.jpg after.jpg "What has changed?"

    $ vqa-app ask --each 'photos/*.jpg' "What is shown?" --out answers.jsonl

    The answer goes to stdout, everything else to stderr. A running `vqa-app chat` or `serve` with
    the same model answers single questions at once; VQA_BACKGROUND=1 starts one where there is
    none.
    """
    from vqa_app.cli.picture_args import read_pictures
    from vqa_app.cli.reply import AnswerOptions
    from vqa_app.engine.protocol import GenerationOptions
    from vqa_app.pictures.picture import ImageLimits

    console = Console(stderr=True, highlight=False)
    sources, question = split_words(words or [])
    generation = GenerationOptions(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        system=system,
        schema=_read_schema(schema, choices),
    )
    options = AnswerOptions(generation, split_choices(choices), abstain)
    limits = ImageLimits.of(max_file_mb, max_megapixels)
    _check_combination(sources, question, each, out, explain, as_json)

    def load() -> Engine:
        engine = open_engine(model_options, console)
        if warning := warning_about_system(engine, system):
            print_warning(warning, console)
        return engine

    server = model_options.server()
    if each:
        from vqa_app.cli.ask_many import ask_each, expand

        assert question is not None  # _check_combination
        if server is not None:
            console.print(
                f"Pictures are sent to {server.host}, those of more than {server.max_side} pixels"
                " on a side shrunk to that.",
                style="dim",
                markup=False,
            )
        ask_each(
            load,
            expand(each),
            question,
            options,
            out,
            console,
            limits,
            model_options.identity(),
        )
        return
    pictures = read_pictures(sources, console, limits, server.max_side if server else None)
    if explain is not None:
        _check_writable(explain, sources)
    engine = load()
    try:
        if question is None:
            from vqa_app.cli.repl import TerminalDialogue

            TerminalDialogue(engine, options, console, limits).run(pictures)
        else:
            _ask_once(engine, pictures, question, options, explain, as_json, console)
            if server is None and explain is None and not (as_json or no_server):
                _hint_at_background(model_options, console)
    finally:
        engine.close()


def _hint_at_background(options: EngineOptions, console: Console) -> None:
    """Say once a day, in a terminal, how answers come sooner."""
    if sys.platform == "win32" or not (console.is_terminal and sys.stdout.isatty()):
        return
    with contextlib.suppress(OSError, UsageError):  # of a user without a home folder
        stamp = user_data() / "hint-at-background"
        if stamp.exists() and time.time() - stamp.stat().st_mtime < _HINT_SECONDS:
            return
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()
    words = shlex.join(["vqa-app", "serve", "--background", *options.chosen_words()])
    print_note(f"To have the next answers in a fraction of a second: {words}", console)


def split_words(words: list[str]) -> tuple[list[str], str | None]:
    """Split the arguments into pictures and the question, which comes last, if there is one."""
    from vqa_app.pictures.names import names_picture

    if words and not names_picture(words[-1]):
        if not words[-1].strip():
            raise UsageError("The question is empty.", 'Ask: vqa-app ask cat.png "What is this?"')
        if os.path.isdir(words[-1]):  # pathlib would raise if a question is too long for a name
            raise _folder_error(words[-1])
        return words[:-1], words[-1]
    return words, None


def _folder_error(name: str) -> UsageError:
    return UsageError(
        f"{name} is a folder.", f'To ask about each picture in it: --each {name} "What is shown?"'
    )


def _address_error(word: str) -> UsageError:
    return UsageError(
        f"{word!r} is not the address of a picture.",
        "Pictures may be files, http(s) addresses such as https://example.com/cat.jpg, or - for"
        " stdin; the question comes last.",
    )


def _check_words(sources: list[str], question: str | None) -> None:
    """Reject a question without quotes, or one before the pictures, with a helpful message."""
    from vqa_app.pictures.names import names_picture

    if question is not None and re.fullmatch(r"\w+://\S*", question):
        raise _address_error(question)
    for word in sources:
        if names_picture(word):
            continue
        if os.path.isdir(word):
            raise _folder_error(word)
        if "://" in word:
            raise _address_error(word)
        if question is None:
            raise UsageError(
                f"Expected an image, got {word!r}.", "Put the question last, in quotes."
            )
        if word == sources[-1] and " " not in question:
            raise UsageError(
                f"Expected an image, got {word!r}.",
                f'A question of several words needs quotes: "{word} {question}"',
            )


def _read_schema(path: Path | None, choices: str | None) -> str | None:
    """Return the JSON schema in a file."""
    from vqa_app.suggestions import suggest

    if path is None:
        return None
    if choices is not None:
        raise UsageError("--schema cannot be combined with --choices.", "Leave out one of the two.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(
            f"Could not read the schema {path}: {reason}.",
            suggest(path, path=Path.is_file, otherwise="Check the name."),
        ) from error


def split_choices(text: str | None) -> tuple[str, ...]:
    """Split the answers of `--choices` at commas.

    Raises:
        UsageError: There are fewer than two different answers.
    """
    from vqa_app.prompts.conversation import replace_surrogates

    if text is None:
        return ()
    parts = replace_surrogates(text).split(",")
    choices = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if len(choices) < 2:
        raise UsageError("--choices needs at least two different answers.", "For example: yes,no")
    return choices


def _check_combination(
    sources: list[str],
    question: str | None,
    each: list[str] | None,
    out: Path | None,
    explain: Path | None,
    as_json: bool,
) -> None:
    _check_words(sources, question)
    if each:
        if sources:
            raise UsageError(
                f"--each cannot be combined with the image {sources[0]}.",
                "Quote the pattern, so that the shell does not expand it: --each 'photos/*.jpg'",
            )
        if question is None:
            raise UsageError("--each needs a question.", 'Add it in quotes: "What is shown?"')
        if explain is not None:
            raise UsageError(
                "--explain cannot be combined with --each.", "Leave out one of the two."
            )
    elif out is not None:
        raise UsageError(
            "--out needs --each.", "To save a single answer, redirect it: > answer.txt"
        )
    elif question is None:
        if as_json or explain is not None or not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise UsageError(
                "The question is missing.",
                f'Ask one: vqa-app ask {shlex.join(sources) or "cat.png"} "What is on the mat?"',
            )
        if "-" in sources:
            raise UsageError(
                "A dialogue reads its questions from stdin, so the picture cannot come from there.",
                "Use a file.",
            )


def _check_writable(path: Path, sources: list[str]) -> None:
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UsageError(
            f"--explain needs the name of an image file, got {path}.", "Use a .png or .jpg file."
        )
    if not os.path.isdir(path.parent):
        raise UsageError(f"There is no folder {path.parent}.", "Create it first.")
    for target in _targets(path, len(sources)):
        if os.path.isdir(target):
            raise UsageError(f"--explain needs a file, but {target} is a folder.", "Use a file.")
        files = [source for source in sources if os.path.exists(source)]
        if os.path.exists(target) and any(os.path.samefile(target, file) for file in files):
            raise UsageError(
                f"--explain {target} would overwrite the picture itself.", "Use another file."
            )


def _targets(path: Path, pictures: int) -> list[Path]:
    """Return `map.png`, or `map-1.png`, `map-2.png`, ... for several pictures."""
    if pictures < 2:
        return [path]
    return [path.with_stem(f"{path.stem}-{number}") for number in range(1, pictures + 1)]


def _ask_once(
    engine: Engine,
    pictures: list[Picture],
    question: str,
    options: AnswerOptions,
    explain: Path | None,
    as_json: bool,
    console: Console,
) -> None:
    from vqa_app.cli.reply import ENCODING, print_notes, reply_to, to_row
    from vqa_app.cli.terminal import json_line, spinner, write_stdout
    from vqa_app.prompts.conversation import Conversation

    if explain is not None:
        _check_explainable(engine, pictures)
    conversation = Conversation.ask(question, pictures)
    with spinner(console, ENCODING) as status:
        write = None if as_json else write_stdout
        reply = reply_to(engine, conversation, options, write, status)
    if as_json:
        row = to_row(question, pictures, reply, engine.info.label)
        sys.stdout.write(json_line(row, sys.stdout))
    else:
        write_stdout("\n")
        print_notes(reply, console)
    if explain is not None:
        for path in _save_overlays(engine, conversation, reply.model_text, explain):
            console.print(f"Attention map: {path}", markup=False)


def _check_explainable(engine: Engine, pictures: list[Picture]) -> None:
    if not pictures:
        raise UsageError("--explain needs a picture.", "Put one before the question.")
    if not engine.info.attention_maps:
        raise ModelError(
            f"{engine.info.label} ({engine.info.architecture}) does not support attention maps.",
            "Leave out --explain, or use another model.",
        )


def _save_overlays(
    engine: Engine, conversation: Conversation, answer: str, path: Path
) -> list[Path]:
    """Save an attention map for each picture and return the files; see `_targets`."""
    from vqa_app.engine.heatmap import draw_overlay, whole_answer

    attention = engine.attention_map(conversation, answer)
    pictures = conversation.pictures
    paths = _targets(path, len(pictures))
    for number, (picture, target) in enumerate(zip(pictures, paths, strict=True)):
        drawn = draw_overlay(picture.image, whole_answer(attention, number))
        try:
            drawn.save(target)
        except OSError as error:
            raise UsageError(
                f"Could not write {target}: {error.strerror or error}.", "Use another file."
            ) from error
    return paths
