"""Errors that users can cause or correct.

Each message says what is wrong, where, and what to do. The command line prints only the message
and exits with `exit_code`; the browser shows it as a notification. Any other exception is a bug.

    VqaError
     ├─ UsageError
     │   └─ SchemaError
     ├─ ImageError
     ├─ ModelError
     │   └─ InsufficientMemoryError
     ├─ DataError
     └─ ContextOverflowError
"""

from __future__ import annotations


class VqaError(Exception):
    """Base class of all errors that are shown to users.

    Args:
        problem: What is wrong and where, one sentence.
        hint: What to do about it, one sentence; printed on its own line.
    """

    exit_code = 1

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(f"{problem}\n{hint}" if hint else problem)
        self.problem = problem
        self.hint = hint


class UsageError(VqaError):
    """Wrong arguments of a command or function."""

    exit_code = 2


class SchemaError(UsageError):
    """A JSON schema that answers cannot follow."""


class ImageError(VqaError):
    """A picture that cannot be used."""

    exit_code = 3


class ModelError(VqaError):
    """A model or adapter that cannot be found, loaded or run."""

    exit_code = 4


class InsufficientMemoryError(ModelError):
    """A model that does not fit into the free memory."""


class DataError(VqaError):
    """Data that cannot be used for training or evaluation."""

    exit_code = 5


class ContextOverflowError(VqaError):
    """A single message that is longer than the model's context."""

    exit_code = 6


INTERRUPTED_EXIT_CODE = 130
"""Exit code of a shell command that was ended by Ctrl-C: 128 + SIGINT."""


_OWN_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RecursionError,
    TypeError,
)  # fmt: skip


def library_reason(error: BaseException, most: int = 300) -> str:
    """Return the end of a sentence that says why a library refuses something.

    Args:
        error: The library's error.
        most: Characters of its message after which it is truncated.

    Returns:
        A colon and the first line of its message. Messages that Python itself wrote about its
        objects, such as "'NoneType' object is not iterable", explain nothing: then a full stop.
    """
    return "." if isinstance(error, _OWN_ERRORS) else f": {first_line(error, most)}"


def first_line(error: BaseException, most: int = 300) -> str:
    """Return the first line of an error's message, or its repr if it has none.

    Args:
        error: An error of a library, whose message may have many lines.
        most: Characters after which it is truncated.
    """
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else repr(error))[:most]
