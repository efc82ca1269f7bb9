"""The commands `finetune`, `check-data` and `show-sample`."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from finetune.config import FinetuneConfig, option_help
from vqa_app.checkpoints.source import find_local, stay_offline
from vqa_app.cli.options import Offline, expand_parameter
from vqa_app.errors import INTERRUPTED_EXIT_CODE

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def with_options(command: Callable[..., None], names: typing.Iterable[str]) -> Callable[..., None]:
    """Replace a command's parameter `options` by one command-line option per config attribute.

    Help texts and panels come from the config. Options that are not given are left out of
    `options`, so that the values of a config file are used.

    Args:
        command: A function with a keyword parameter `options`.
        names: Attributes of `FinetuneConfig`.
    """
    help_texts = option_help()
    parameters = []
    for name in names:
        panel, text = help_texts[name]
        field = FinetuneConfig.model_fields[name]
        default = field.get_default(call_default_factory=True)
        shown = "" if default in (None, (), "") or "Default:" in text else f" [default: {default}]"
        option = typer.Option(help=text + shown, rich_help_panel=panel, show_default=False)
        kind: Any = list[str] if typing.get_origin(field.annotation) is tuple else field.annotation
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[kind | None, option],
            )
        )
    return expand_parameter(
        command,
        "options",
        parameters,
        lambda values: {key: value for key, value in values.items() if value not in (None, [])},
    )


def _config(file: Path | None, options: dict[str, Any]) -> FinetuneConfig:
    if file is not None:
        return FinetuneConfig.from_yaml(file, **options)
    return FinetuneConfig.from_dict(options, source="The command line")


_File: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="YAML file with options of finetune; options on the command line take precedence."
    ),
]


def _finetune(
    config: _File = None,
    offline: Offline = False,
    *,
    options: dict[str, Any],
) -> None:
    """Fine-tune a model on your own pictures, questions and answers.

    vqa-app finetune --data my.json --images photos/ --out runs/mine trains the built-in model;
    vqa-app chat --model runs/mine chats with the result. Run the same command again to continue an
    interrupted run. On several GPUs, use accelerate launch -m finetune ... with the same options;
    on CPUs, torchrun --nproc_per_node N -m finetune ...
    """
    # Report wrong values and paths before importing torch, which takes seconds.
    chosen = _config(config, options)
    if offline:
        stay_offline()
    from finetune.data.read import check_sources

    check_sources((*chosen.data, *chosen.eval_data), chosen.images)
    find_local(chosen.model, chosen.revision)
    from finetune.progress import ProgressDisplay
    from finetune.training.train import train

    with ProgressDisplay() as display:
        result = train(chosen, on_progress=display)
    if not result.finished:
        raise typer.Exit(INTERRUPTED_EXIT_CODE)
    print(result)


def _check_data(
    config: _File = None,
    offline: Offline = False,
    *,
    options: dict[str, Any],
) -> None:
    """Check instruction data before training on it.

    Reads every row, opens every picture, and counts the tokens of every prompt. The exit code is 5
    if there are problems.
    """
    from finetune.cli.inspect_data import check_data

    if offline:
        stay_offline()
    check_data(_config(config, options), sys.stdout)


def _show_sample(
    row: Annotated[
        str | None,
        typer.Option(
            metavar="N or FILE:N",
            help="Row number, as in the messages of check-data. Default: the first good row.",
        ),
    ] = None,
    config: _File = None,
    offline: Offline = False,
    *,
    options: dict[str, Any],
) -> None:
    """Show a row of your data as the model sees it.

    Shows the prompt's tokens, with trained tokens in colour, the preprocessed picture, and token
    counts.
    """
    from finetune.cli.inspect_data import show_sample

    if offline:
        stay_offline()
    show_sample(_config(config, options), row, sys.stdout)


_DATA = ("data", "images", "max_length", "turns", "model", "revision")
app.command("finetune")(with_options(_finetune, option_help()))
app.command("check-data")(with_options(_check_data, (*_DATA, "eval_data", "max_bad", "workers")))
app.command("show-sample")(with_options(_show_sample, _DATA))
