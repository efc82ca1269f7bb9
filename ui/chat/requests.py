"""The page's requests: validation, limits, and error messages."""

from __future__ import annotations

import errno
import logging
import sqlite3
from typing import Any

from vqa_app.errors import DataError, UsageError, VqaError
from vqa_app.prompts.conversation_file import replace_surrogates
from vqa_app.serving.redact import redact_options, redact_paths

log = logging.getLogger(__name__)


PageRequest = dict[str, Any]


PageUpdate = dict[str, Any]


MAX_QUESTION = 20_000


MAX_PICTURES = 8


UNEXPECTED_ERROR = "Something went wrong on our side. Please try again."


STORAGE_FAILED = "The server cannot store anything: its disk is full, or only to be read."


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


_NO_ROOM_SQLITE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR)


def user_message(error: BaseException, options: bool = True) -> str:
    """What a person is told; the details of our own mistakes go to the log alone.

    Args:
        options: whether it may name options of the shell; errors of data never do.
    """
    if isinstance(error, VqaError):
        named = options and not isinstance(error, DataError)
        hint = error.hint if named else redact_options(error.hint)
        return redact_paths(f"{error.problem} {hint}".strip().replace("\n", " "))
    if is_no_room(error):
        log.error("%s (%s)", STORAGE_FAILED, error)
        return STORAGE_FAILED
    log_unexpected(error)
    return UNEXPECTED_ERROR


def is_no_room(error: BaseException) -> bool:
    """Whether something could not be stored because of the disk."""
    if isinstance(error, sqlite3.OperationalError):
        # The lowest byte is the kind, the others say more of it.
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _NO_ROOM_SQLITE
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def log_unexpected(error: BaseException) -> None:
    log.error("Unexpected error", exc_info=error)


def require_owner(owner: str) -> str:
    """The owner.

    Raises:
        UsageError: nobody can be told: what "" brought would be everybody's.
    """
    if not owner:
        raise UsageError("Your browser blocks cookies.", "Allow them for this page.")
    return owner


def parse_question(text: Any, pictures: int) -> str:
    """What was asked about so many pictures.

    Raises:
        UsageError: nothing was, or far too much.
    """
    question = replace_surrogates(str(text or "")).strip()
    if not question and not pictures:
        raise UsageError("There is nothing to answer.", "Write a question or add a picture.")
    if len(question) > MAX_QUESTION:
        raise UsageError(
            f"The question has {len(question):,} characters.", f"At most {MAX_QUESTION:,} fit."
        )
    check_picture_count(pictures)
    return question


def conversation_id(request: PageRequest) -> str | None:
    """The id of the request's conversation; None for a new one."""
    return str(request.get("conversation") or "") or None


def check_picture_count(pictures: int) -> None:
    """Raises UsageError: so many pictures are too many for one question."""
    if pictures > MAX_PICTURES:
        raise UsageError(f"{pictures} pictures.", f"At most {MAX_PICTURES} at a time.")
