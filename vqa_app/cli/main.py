"""The `vqa-app` command: a table of commands, each imported when it runs, and how errors leave.

What a command does stands in its own module, where a typer app holds it under the same name. Their
imports are what takes long (torch, gradio), so the table carries the line that `--help` shows.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from vqa_app.devices import is_out_of_memory
from vqa_app.errors import INTERRUPTED_EXIT_CODE, NoRoomError, VqaError
from vqa_app.version import __version__

EXIT_CODES = """Exit codes: 0 done; 1 unexpected error; 2 wrong usage; 3 a picture cannot be used;
4 model trouble; 5 bad data; 6 question too long for the model; 130 interrupted."""
FULL_MEMORY = NoRoomError(
    "There is not enough memory for this.",
    "Use a smaller model, fewer or smaller pictures or smaller batches, or close other programs.",
)


@dataclass(frozen=True)
class _Entry:
    module: str
    help: str


_COMMANDS = {
    "chat": _Entry("ui.cli", "Chat about pictures in the browser."),
    "ask": _Entry("vqa_app.cli.ask", "Ask here: once, in a dialogue, or for many files."),
    "finetune": _Entry(
        "finetune.cli.train", "Teach a model your own pictures, questions and answers."
    ),
    "check-data": _Entry("finetune.cli.train", "Check instruction data before training on it."),
    "show-sample": _Entry("finetune.cli.train", "Show what the model sees of a row of your data."),
    "eval": _Entry("finetune.cli.evaluate", "Measure a model on questions with known answers."),
    "verify": _Entry(
        "finetune.cli.evaluate", "Check that a trained model still gives what it gave."
    ),
    "merge": _Entry(
        "finetune.cli.evaluate", "Merge an adapter into its model: a standard checkpoint."
    ),
    "models": _Entry("vqa_app.cli.models", "List models to use, and which are here already."),
    "compose": _Entry("vqa_app.cli.models", "Make a LLaVA from an image encoder and an LLM."),
    "doctor": _Entry("vqa_app.cli.doctor", "Print what a bug report needs."),
}


class _LazyCommand(TyperCommand):
    """Stands for a command in listings; becomes the real one when it runs."""

    def __init__(self, name: str, entry: _Entry) -> None:
        super().__init__(name, help=entry.help)
        self._module = entry.module

    def make_context(self, info_name: str | None, args: list[str], **extra: Any) -> Any:
        command = typer.main.get_command(import_module(self._module).app)
        if isinstance(command, TyperGroup):
            command = command.commands[self.name or ""]
        command.rich_markup_mode = self.rich_markup_mode
        try:
            return command.make_context(info_name, [_at_home(word) for word in args], **extra)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")  # pydantic's, in typer
            raise


def _at_home(word: str) -> str:
    """`--out=~/run` with the home folder in it, which most shells do not expand behind a `=`."""
    option, equals, value = word.partition("=")
    is_path = option.startswith("--") and value.startswith("~")
    return f"{option}={os.path.expanduser(value)}" if is_path else word


class Commands(TyperGroup):
    """The commands of the table, and the one place where errors meet a person."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        # Boxes and colours are for terminals; a file or a pipe gets plain lines.
        self.rich_markup_mode = "rich" if sys.stderr.isatty() and sys.stdout.isatty() else None
        for name, entry in _COMMANDS.items():
            command = _LazyCommand(name, entry)
            command.rich_markup_mode = self.rich_markup_mode
            self.add_command(command)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except VqaError as error:
            if ctx.params["debug"]:
                raise
            report(error)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt:
            print("\nInterrupted.", file=sys.stderr)
            raise typer.Exit(INTERRUPTED_EXIT_CODE) from None
        except BrokenPipeError:  # the reader of our output has gone, as in `| head -1`
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except Exception as error:
            if ctx.params["debug"] or isinstance(error, _TYPERS):
                raise
            if is_out_of_memory(error):
                report(FULL_MEMORY)
                raise typer.Exit(FULL_MEMORY.exit_code) from error
            print(f"Unexpected error: {type(error).__name__}: {error}", file=sys.stderr)
            print(
                "This is a bug. `vqa-app --debug ...` shows where it is; please report that with"
                " what `vqa-app doctor` prints.",
                file=sys.stderr,
            )
            raise typer.Exit(1) from error


# Typer's own ways to leave and its usage errors, which it shows itself.
_TYPERS = (typer.Exit, typer.Abort, typer.exceptions.TyperException)


def report(error: VqaError) -> None:
    """Two lines on stderr: what was wrong, and what to do."""
    problem, hint = (text.replace("\n", " ") for text in (error.problem, error.hint))
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False, soft_wrap=True)  # knows NO_COLOR and TERM
    console.print(Text.assemble(("Error:", "red"), " ", problem))
    if hint:
        console.print(Text(hint, "dim"))


app = typer.Typer(
    cls=Commands,
    name="vqa-app",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"vqa-app {__version__}")
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="VQA_DEBUG", help="Show tracebacks of errors.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    """Ask about pictures: in the browser, in the shell, or after teaching a model your own."""
    if not debug:
        import logging
        import warnings

        # Libraries warn of their own inner matters; what concerns a person, we say ourselves.
        warnings.simplefilter("ignore")
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs `vqa-app` and leaves with one of `EXIT_CODES`."""
    # What is alive at the end need not be collected: with torch and gradio that took 0.8 s.
    atexit.register(gc.freeze)
    typer.main.get_command(app).main(args=argv, prog_name="vqa-app")
    raise AssertionError("typer leaves by itself")
