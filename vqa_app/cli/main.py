"""The `vqa-app` command: a table of subcommands, and how errors are reported.

The table names the module of each subcommand, whose typer app has a command of the same name. A
module is imported only when its command runs, because its imports take long (torch, gradio).
Therefore the table also contains the line that `--help` shows.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from vqa_app.cli.failures import report_failure
from vqa_app.cli.terminal import prepare_streams
from vqa_app.suggestions import suggest
from vqa_app.version import __version__

EXIT_CODES = """Exit codes: 0 success; 1 unexpected error; 2 wrong usage; 3 a picture cannot be
used; 4 model error; 5 invalid data; 6 question too long for the model; 130 interrupted."""


@dataclass(frozen=True)
class _Subcommand:
    module: str
    help: str


_COMMANDS = {
    "chat": _Subcommand("ui.cli", "Chat about pictures in the browser."),
    "ask": _Subcommand(
        "vqa_app.cli.ask", "Ask in the shell: once, in a dialogue, or about many files."
    ),
    "serve": _Subcommand("vqa_app.cli.serve", "Serve a model to programs, through OpenAI's API."),
    "finetune": _Subcommand("finetune.cli.train", "Fine-tune a model on your own data."),
    "check-data": _Subcommand(
        "finetune.cli.train", "Check instruction data before training on it."
    ),
    "show-sample": _Subcommand(
        "finetune.cli.train", "Show a row of your data as the model sees it."
    ),
    "eval": _Subcommand(
        "finetune.cli.evaluate", "Evaluate a model on questions with known answers."
    ),
    "verify": _Subcommand(
        "finetune.cli.evaluate", "Check that a trained model still gives the same outputs."
    ),
    "merge": _Subcommand(
        "finetune.cli.evaluate", "Merge an adapter into its model, as a standard checkpoint."
    ),
    "models": _Subcommand("vqa_app.cli.models", "List models, and which are downloaded."),
    "compose": _Subcommand("vqa_app.cli.models", "Make a LLaVA from an image encoder and an LLM."),
    "doctor": _Subcommand("vqa_app.cli.doctor", "Print what a bug report needs."),
}


class _LazyCommand(TyperCommand):
    """A command in listings, which imports the real one when it runs."""

    def __init__(self, name: str, subcommand: _Subcommand) -> None:
        super().__init__(name, help=subcommand.help)
        self._module = subcommand.module

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Parse the arguments with the real command."""
        command = typer.main.get_command(import_module(self._module).app)
        if isinstance(command, TyperGroup):
            command = command.commands[self.name or ""]
        assert isinstance(command, TyperCommand)
        command.rich_markup_mode = self.rich_markup_mode
        try:
            words = _questions_last(command, [_expand_home(word) for word in args])
            return command.make_context(info_name, words, parent, **extra)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")  # added by pydantic
            raise
        except typer.exceptions.TyperException as error:
            _explain_unknown_option(error, command)
            raise


def _expand_home(word: str) -> str:
    """Expand the ~ in `--out=~/run`, which most shells do not expand after a `=`."""
    option, _, value = word.partition("=")
    is_path = option.startswith("--") and value.startswith("~")
    return f"{option}={os.path.expanduser(value)}" if is_path else word


def _takes_words(command: TyperCommand) -> bool:
    """Return whether any number of words may follow the command, as the question in `ask`."""
    return any(p.param_type_name == "argument" and p.nargs == -1 for p in command.params)


def _questions_last(command: TyperCommand, words: list[str]) -> list[str]:
    """Put questions such as "- what is it?" behind a `--`, so that they do not count as options.

    A question has a space before any `=`, and is not the value of an option.
    """
    if not _takes_words(command) or "--" in words:
        return words
    options = {name: p for p in command.params for name in p.opts if name.startswith("-")}
    with_value = {name for name, p in options.items() if not getattr(p, "is_flag", False)}
    questions: list[str] = []
    others: list[str] = []
    is_value = False
    for word in words:
        attached = word[:2] in with_value  # -mMODEL
        is_question = word.startswith("-") and " " in word.partition("=")[0] and not attached
        if is_question and not is_value:
            questions.append(word)
        else:
            others.append(word)
            is_value = word in with_value and not is_value
    return [*others, "--", *questions] if questions else words


def _explain_unknown_option(error: typer.exceptions.TyperException, command: TyperCommand) -> None:
    """Add to the message which option was probably meant; other errors stay as they are."""
    name = getattr(error, "option_name", None)
    if name is None or not hasattr(error, "possibilities"):
        return
    error.possibilities = None  # typer's own guesses
    if _takes_words(command) and not name.startswith("--"):
        error.message += " (For a question that begins with a dash, put -- before it.)"
        return
    known = [option for p in command.params for option in p.opts if option.startswith("--")]
    if likely := suggest(name, known):
        error.message += f". {likely}"


class Commands(TyperGroup):
    """The commands of the table, and the place where errors become messages and exit codes."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        # Use boxes and colours on terminals, and plain lines in files and pipes.
        self.rich_markup_mode = "rich" if sys.stderr.isatty() and sys.stdout.isatty() else None
        for name, subcommand in _COMMANDS.items():
            command = _LazyCommand(name, subcommand)
            command.rich_markup_mode = self.rich_markup_mode
            self.add_command(command)

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run as a program, with streams that accept every character."""
        prepare_streams()
        return super().main(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the command, and report its errors.

        Raises:
            typer.Exit: With the exit code of the error; see `EXIT_CODES`.
        """
        try:
            return super().invoke(ctx)
        except _TYPER_EXCEPTIONS:
            raise
        except (Exception, KeyboardInterrupt) as error:
            if ctx.params["debug"] and not isinstance(error, KeyboardInterrupt | BrokenPipeError):
                raise
            raise typer.Exit(report_failure(error)) from error


_TYPER_EXCEPTIONS = (typer.Exit, typer.Abort, typer.exceptions.TyperException)
"""Exits and usage errors, which typer handles itself."""


app = typer.Typer(
    cls=Commands,
    name="vqa-app",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"vqa-app {__version__}")
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="VQA_DEBUG", help="Show tracebacks of errors.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Ask about pictures in the browser or in the shell, and fine-tune models on your own."""
    if not debug:
        import logging
        import warnings

        # Warnings of libraries are for developers; we report ourselves what concerns the user.
        warnings.simplefilter("ignore")
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run `vqa-app` and exit with one of `EXIT_CODES`."""
    # Skip garbage collection at exit, which took 0.8 s with torch and gradio.
    atexit.register(gc.freeze)
    typer.main.get_command(app).main(args=argv, prog_name="vqa-app")
    raise AssertionError("typer exits the process")
