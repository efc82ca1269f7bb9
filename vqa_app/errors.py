"""Errors a person can cause or mend. Each message says what was wrong, where, and what to do.

The shell prints the message alone and leaves with `exit_code`; the browser shows it as a notice.
Anything that is not a `VqaError` is a bug of ours.
"""

from __future__ import annotations


class VqaError(Exception):
    """Base of every error that is meant for a person's eyes.

    Args:
        problem: what was wrong and where, one sentence.
        hint: what to do about it, one sentence; printed on a line of its own.
    """

    exit_code = 1

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(f"{problem}\n{hint}" if hint else problem)
        self.problem = problem
        self.hint = hint


class UsageError(VqaError):
    """The command or call was put together wrongly."""

    exit_code = 2


class ImageError(VqaError):
    """A picture that cannot be used."""

    exit_code = 3


class ModelError(VqaError):
    """A model or adapter that cannot be found, loaded or run."""

    exit_code = 4


class InsufficientMemoryError(ModelError):
    """A model that does not fit in the memory that is free."""


class DataError(VqaError):
    """Instruction data that cannot be trained or evaluated on."""

    exit_code = 5


class ContextOverflowError(VqaError):
    """A single message is longer than the model's context."""

    exit_code = 6


INTERRUPTED_EXIT_CODE = 130
"""What a shell reports for Ctrl-C (128 + SIGINT)."""
