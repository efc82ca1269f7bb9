"""What a person reads when a command fails, and the exit code."""

from __future__ import annotations

import contextlib
import os
import sys

from vqa_app.errors import INTERRUPTED_EXIT_CODE, InsufficientMemoryError, VqaError

OUT_OF_MEMORY = InsufficientMemoryError(
    "Not enough memory.",
    "Use a smaller model, fewer or smaller pictures or smaller batches, or close other programs.",
)


def report_failure(error: BaseException) -> int:
    """Print why a command ended early, and return its exit code; see `main.EXIT_CODES`."""
    if isinstance(error, VqaError):
        report(error)
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        print("\nInterrupted.", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE
    if isinstance(error, BrokenPipeError):  # our reader has exited, as in `| head -1`
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    from vqa_app.devices import device_error, is_out_of_memory

    known = OUT_OF_MEMORY if is_out_of_memory(error) else device_error(error)
    if known is not None:
        report(known)
        return known.exit_code
    print(f"Unexpected error: {type(error).__name__}: {error}", file=sys.stderr)
    print(
        "This is a bug. Please report it with the traceback that `vqa-app --debug ...`"
        " shows and the output of `vqa-app doctor`.",
        file=sys.stderr,
    )
    return 1


def report(error: VqaError) -> None:
    """Print two lines to stderr: the problem and the hint."""
    problem, hint = (text.replace("\n", " ") for text in (error.problem, error.hint))
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False, soft_wrap=True)  # respects NO_COLOR and TERM
    console.print(Text.assemble(("Error:", "red"), " ", problem))
    if hint:
        console.print(Text(hint, "dim"))
