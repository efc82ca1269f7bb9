"""Deletes conversations for good a few seconds after they left the list, unless it is undone."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Sequence

from ui.chat import examples
from ui.chat.requests import log_error
from ui.chat.service import ChatService

UNDO_SECONDS = 10.0
"""How long the page offers to undo a deletion."""
_GRACE_SECONDS = 2.0
"""Time that an undo in the last moment may take to arrive."""


def delete_conversations(service: ChatService, owner: str, conversations: Sequence[str]) -> None:
    """Hide conversations, end their answers, and remove them when nobody can undo it any more.

    Raises:
        UsageError: One of them does not exist; then none is deleted.
    """
    if not conversations:
        return
    service.store.mark_deleted(owner, conversations)
    # After the deletion, so that followers of an answer find its conversation gone.
    for conversation in conversations:
        service.stop(owner, conversation)
    timer = threading.Timer(UNDO_SECONDS + _GRACE_SECONDS, _remove, [service, time.time()])
    timer.daemon = True  # the next start of the server removes what this one does not
    timer.start()


def _remove(service: ChatService, before: float) -> None:
    try:
        for owner in service.store.remove_deleted(before):
            # Restores the pictures of the cards that are shown.
            examples.first_screen(service, owner)
    except sqlite3.ProgrammingError:
        pass  # the store is closed
    except (OSError, sqlite3.OperationalError) as error:
        log_error(error)  # the disk is full
