"""`vqa-app ask`: one question, a dialogue, or the same question about many pictures."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vqa_app.cli.options import (
    AdapterName,
    Device,
    MaxFileMb,
    MaxMegapixels,
    ModelName,
    Offline,
    Precision,
    Quantize,
    Revision,
)
from vqa_app.devices import Dtype, Quantization
from vqa_app.errors import ModelError, UsageError

if TYPE_CHECKING:
    from vqa_app.cli.reply import Asking
    from vqa_app.engine.protocol import Engine
    from vqa_app.pictures.picture import Picture
    from vqa_app.prompts.conversation import Conversation

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class ModelChoice:
    """Which model answers: the arguments of `vqa_app.checkpoints.loader.load_model`."""

    name: str
    adapter: str | None = None
    quantize: Quantization | None = None
    device: str = "auto"
    dtype: Dtype = "auto"
    revision: str | None = None
    offline: bool = False

    def identity(self) -> dict[str, str | None]:
        """What makes its answers others than those of another choice."""
        names = {"model": self.name, "adapter": self.adapter, "quantize": self.quantize}
        return {**names, "dtype": self.dtype, "revision": self.revision}


def open_engine(choice: ModelChoice, console: Console) -> Engine:
    """Loads the model; seconds of imports, and for a hub id a download."""
    from vqa_app.cli.terminal import waiting

    with waiting(console, f"Loading {choice.name}"):
        from vqa_app.checkpoints.loader import load_model
        from vqa_app.engine.local import LocalEngine

        return LocalEngine(load_model(**vars(choice)))


@app.command()
def ask(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE... QUESTION",
            help="Pictures (files, http(s) addresses, or - for stdin), then the question. Without a"
            " question, in a terminal, a dialogue begins.",
        ),
    ] = None,
    model: ModelName = "builtin",
    adapter: AdapterName = None,
    quantize: Quantize = None,
    device: Device = "auto",
    dtype: Precision = "auto",
    revision: Revision = None,
    offline: Offline = False,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[
        float | None, typer.Option(help="0 gives the same answer each time. [the model's own]")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Choose among the likeliest words up to this probability.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampled answers repeatable.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    choices: Annotated[
        str | None, typer.Option(help="Answer with the likeliest of these.", metavar="A,B,C")
    ] = None,
    abstain: Annotated[
        float | None,
        typer.Option(
            help='Answer "I am not sure." where the confidence is below this.',
            metavar="0..1",
            min=0,
            max=1,
        ),
    ] = None,
    explain: Annotated[
        Path | None,
        typer.Option(
            help="Write a picture of where the model looked; for several pictures MAP-1.PNG, ...",
            metavar="MAP.PNG",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
    each: Annotated[
        list[str] | None,
        typer.Option(help="Ask about each of these files: a quoted pattern.", metavar="PATTERN"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where --each writes its answers; continues where it stopped."),
    ] = None,
    max_file_mb: MaxFileMb = 20,
    max_megapixels: MaxMegapixels = 50,
) -> None:
    """Ask about pictures.

    $ vqa-app ask cat.png "What is on the mat?"

    $ vqa-app ask before.jpg after.jpg "What has changed?"

    $ vqa-app ask --each 'photos/*.jpg' "What is shown?" --out answers.jsonl

    The answer goes to stdout, everything else to stderr.
    """
    from vqa_app.cli.picture_args import read_pictures
    from vqa_app.cli.reply import Asking
    from vqa_app.engine.protocol import GenerationOptions
    from vqa_app.pictures.picture import ImageLimits

    console = Console(stderr=True, highlight=False)
    sources, question = split_words(words or [])
    options = GenerationOptions(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        system=system,
    )
    asking = Asking(options, split_choices(choices), abstain)
    chosen = ModelChoice(model, adapter, quantize, device, dtype, revision, offline)
    limits = ImageLimits.of(max_file_mb, max_megapixels)
    _check_combination(sources, question, each, out, explain, as_json)
    if each:
        from vqa_app.cli.ask_many import ask_each, expand

        assert question is not None  # checked above
        paths = expand(each)
        ask_each(
            lambda: open_engine(chosen, console),
            paths,
            question,
            asking,
            out,
            console,
            limits,
            chosen.identity(),
        )
        return
    pictures = read_pictures(sources, console, limits)
    if explain is not None:
        _check_writable(explain, sources)
    engine = open_engine(chosen, console)
    try:
        if question is None:
            from vqa_app.cli.repl import Dialogue

            Dialogue(engine, asking, console, limits).run(pictures)
        else:
            _ask_once(engine, pictures, question, asking, explain, as_json, console)
    finally:
        engine.close()


def split_words(words: list[str]) -> tuple[list[str], str | None]:
    """Tells pictures from the question, which is the last word unless that names a picture."""
    from vqa_app.cli.picture_args import names_picture

    if words and not names_picture(words[-1]):
        if not words[-1].strip():
            raise UsageError("The question is empty.", 'Ask: vqa-app ask cat.png "What is this?"')
        if os.path.isdir(words[-1]):  # pathlib raises where a question is too long for a name
            raise _folder(words[-1])
        return words[:-1], words[-1]
    return words, None


def _folder(name: str) -> UsageError:
    return UsageError(
        f"{name} is a folder.", f'To ask about each picture in it: --each {name} "What is shown?"'
    )


def _check_words(sources: list[str], question: str | None) -> None:
    """Tells what a shell makes of a question without quotes, or of one that stands in front."""
    from vqa_app.cli.picture_args import names_picture

    for word in sources:
        if names_picture(word):
            continue
        if os.path.isdir(word):
            raise _folder(word)
        if question is None:
            raise UsageError(
                f"{word!r} stands where a picture is wanted.", "Put the question last, in quotes."
            )
        if word == sources[-1] and " " not in question:
            raise UsageError(
                f"There is no picture {word!r}.",
                f'A question of several words needs quotes: "{word} {question}"',
            )


def split_choices(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    choices = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if len(choices) < 2:
        raise UsageError("--choices needs two or more different answers.", "For example: yes,no")
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
                f"--each takes one pattern, but {sources[0]} was given too.",
                "Quote the pattern, so that the shell leaves it alone: --each 'photos/*.jpg'",
            )
        if question is None:
            raise UsageError("--each needs a question.", 'Add it in quotes: "What is shown?"')
        if explain is not None:
            raise UsageError("--explain works on one question.", "Leave out --explain or --each.")
    elif out is not None:
        raise UsageError("--out belongs to --each.", "To keep one answer, redirect: > answer.txt")
    elif question is None:
        if as_json or explain is not None or not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise UsageError(
                "There is no question.", 'Ask one: vqa-app ask cat.png "What is on the mat?"'
            )
        if "-" in sources:
            raise UsageError("A dialogue reads your questions from stdin.", "Name a file there.")


def _check_writable(path: Path, sources: list[str]) -> None:
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UsageError(f"--explain {path}: not a picture's name.", "Name a .png or .jpg file.")
    if not os.path.isdir(path.parent):
        raise UsageError(f"There is no folder {path.parent}.", "Create it first.")
    for target in _targets(path, len(sources)):
        if os.path.isdir(target):
            raise UsageError(f"--explain {target}: that is a folder.", "Name a file in it.")
        there = [source for source in sources if os.path.exists(source)]
        if os.path.exists(target) and any(os.path.samefile(target, source) for source in there):
            raise UsageError(
                f"--explain {target} would overwrite the picture itself.", "Name another file."
            )


def _targets(path: Path, pictures: int) -> list[Path]:
    """`map.png`, or `map-1.png`, `map-2.png` for several pictures."""
    if pictures < 2:
        return [path]
    return [path.with_stem(f"{path.stem}-{number}") for number in range(1, pictures + 1)]


def _ask_once(
    engine: Engine,
    pictures: list[Picture],
    question: str,
    asking: Asking,
    explain: Path | None,
    as_json: bool,
    console: Console,
) -> None:
    from vqa_app.cli.reply import describe, reply_to, tell_notes
    from vqa_app.cli.terminal import json_line, to_stdout
    from vqa_app.prompts.conversation import Conversation

    if explain is not None:
        _check_explainable(engine, pictures)
    conversation = Conversation.ask(question, pictures)
    reply = reply_to(engine, conversation, asking, None if as_json else to_stdout, console)
    if as_json:
        row = {"question": question, "pictures": [describe(picture) for picture in pictures]}
        row |= {**reply.to_json(), "model": engine.info.label}
        sys.stdout.write(json_line(row, sys.stdout))
    else:
        to_stdout("\n")
        tell_notes(reply, console)
    if explain is not None:
        for path in _draw(engine, conversation, reply.said, explain):
            console.print(f"Where the model looked: {path}", markup=False)


def _check_explainable(engine: Engine, pictures: list[Picture]) -> None:
    if not pictures:
        raise UsageError("--explain needs a picture.", "Name one before the question.")
    if not engine.info.attention_maps:
        raise ModelError(
            f"{engine.info.label} ({engine.info.architecture}) does not show where it looked.",
            "Leave out --explain, or use another model.",
        )


def _draw(engine: Engine, conversation: Conversation, said: str, path: Path) -> list[Path]:
    """Writes an overlay for each picture; see `_targets`."""
    from vqa_app.cli.heatmap import draw_overlay, whole_answer

    attention = engine.attention_map(conversation, said)
    pictures = conversation.pictures
    paths = _targets(path, len(pictures))
    for number, (picture, target) in enumerate(zip(pictures, paths, strict=True)):
        drawn = draw_overlay(picture.image, whole_answer(attention, number))
        try:
            drawn.save(target)
        except OSError as error:
            raise UsageError(
                f"{target} cannot be written: {error.strerror or error}.", "Name another file."
            ) from error
    return paths
