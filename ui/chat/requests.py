"""Requests of the page: validation, limits, and error messages."""

from __future__ import annotations

import json
import logging
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from ui.texts import find_texts
from vqa_app.errors import DataError, UsageError, VqaError
from vqa_app.files import is_disk_error
from vqa_app.prompts.conversation import replace_surrogates
from vqa_app.serving.redact import redact_options, redact_paths

log = logging.getLogger(__name__)

PageRequest: TypeAlias = dict[str, Any]
"""A JSON object from the page. Its values are never trusted."""
PageUpdate: TypeAlias = dict[str, Any]
"""A JSON object for the page; each key names what has changed."""

MAX_QUESTION = 20_000
"""Longest question, in characters."""
MAX_PICTURES = 8
"""Pictures that one question may have."""
UNEXPECTED_ERROR = "Something went wrong on our side. Please try again."
STORAGE_FAILED = "The server cannot save anything: its disk is full, read-only or failing."


class _Fields(BaseModel):
    """The types of a request's fields; each name has one in all requests.

    Numbers of the settings are missing: `ui.chat.settings` names them in its messages.
    """

    model_config = ConfigDict(strict=True)

    do: str | None = None
    conversation: str | None = None
    turn: str | None = None
    shown: str | None = None
    title: str | None = None
    words: str | None = None
    question: str | None = None
    answer: str | None = None
    pictures: list[str] | None = None
    digest: str | None = None
    replaces: str | None = None
    again: str | None = None
    follow: bool | None = None
    keep: bool | None = None
    download: bool | None = None
    others: bool | None = None
    model: str | None = None
    models: list[str] | None = None
    named: str | None = None
    verdict: str | None = None
    correction: str | None = None
    row: str | None = None
    most: int | None = None
    sources: list[str] | None = None
    name: str | None = None
    stage: str | None = None
    rehearse: bool | None = None
    skip: bool | None = None
    kind: str | None = None
    shared: bool | None = None
    rotate: int | None = None
    region: list[int] | None = None
    conversations: list[str] | None = None
    pinned: bool | None = None
    archived: bool | None = None


def user_message(error: BaseException, options: bool = True) -> str:
    """Return what the person is told about an error; details of our own bugs are only logged.

    Args:
        error: The error.
        options: Whether the message may name command-line options. Messages about data never do.
    """
    log_error(error)
    if isinstance(error, VqaError):
        keep_options = options and not isinstance(error, DataError)
        hint = error.hint if keep_options else redact_options(error.hint)
        return redact_paths(f"{error.problem} {hint}".strip().replace("\n", " "))
    return STORAGE_FAILED if is_disk_error(error) else UNEXPECTED_ERROR


def log_error(error: BaseException) -> None:
    """Log an error of the disk, or a bug of ours with its traceback; a `VqaError` is neither."""
    if is_disk_error(error):
        log.error("%s (%s)", STORAGE_FAILED, error)
    elif not isinstance(error, VqaError):
        log.error("Unexpected error", exc_info=error)


def error_update(error: BaseException) -> PageUpdate:
    """Return the update for an error: its message in English, and the page's texts for it."""
    message = user_message(error)
    return {"error": message, "text": find_texts(message)}


def check_fields(request: PageRequest) -> None:
    """Check the types of a request's fields.

    Raises:
        UsageError: A field has another type than the page sends.
    """
    try:
        _Fields.model_validate(request)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)[0]
        raise UsageError(
            f"The field {found['loc'][0]!r} of the request is wrong: {found['msg']}.",
            "Reload the page.",
        ) from None


def parse_request(data: bytes) -> PageRequest:
    """Return the JSON object that the page sent, with lone surrogates replaced.

    Raises:
        UsageError: The data is not a JSON object, or a field of it has another type than expected.
    """
    try:
        text = json.dumps(json.loads(data), ensure_ascii=False, allow_nan=False)
        request = json.loads(replace_surrogates(text))
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise UsageError("The request is not a JSON object.", "Reload the page.")
    check_fields(request)
    return request


def require_owner(owner: str) -> str:
    """Return the owner of a request, if it has one.

    Raises:
        UsageError: The owner is unknown. What "" stores would be visible to everyone.
    """
    if not owner:
        raise UsageError("Your browser blocks cookies.", "Allow them for this page.")
    return owner


def parse_question(text: Any, pictures: int) -> str:
    """Return the text of a question about a number of pictures.

    Raises:
        UsageError: There is neither text nor a picture, or too much of either.
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
    """Return the id of the request's conversation, or None for a new one."""
    return str(request.get("conversation") or "") or None


def text_list(request: PageRequest, name: str) -> list[str]:
    """Return a list of texts in a request; an empty one if it is missing.

    Raises:
        UsageError: The value is something else.
    """
    found = request.get(name) or []
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise UsageError(f"Expected a list of texts as {name!r}.", "Reload the page.")
    return found


def check_picture_count(pictures: int) -> None:
    """Check that one question may have this many pictures.

    Raises:
        UsageError: There are too many.
    """
    if pictures > MAX_PICTURES:
        raise UsageError(
            f"{pictures} pictures are too many for one question.", f"Add at most {MAX_PICTURES}."
        )
