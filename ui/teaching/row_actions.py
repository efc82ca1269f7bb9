"""The page's requests about taught rows: rating answers, listing and editing rows."""

from __future__ import annotations

from typing import Any

from ui.chat.requests import PageRequest, PageUpdate
from ui.chat.service import ChatService
from ui.chat.views import picture_view
from ui.teaching.taught_rows import TaughtRowStore
from ui.texts import entry
from vqa_app.errors import UsageError

SHOWN_ROWS = 500
"""Number of rows sent to the page unless it asks for more."""


def teach(
    service: ChatService, taught_rows: TaughtRowStore, owner: str, request: PageRequest
) -> PageUpdate:
    """Handle a request; its `do` names the action."""
    match request.get("do"):
        case "judge":
            return _judge(service, taught_rows, owner, request)
        case "corrected":
            turn = str(request.get("turn"))
            return {"corrected": {"turn": turn, "answer": taught_rows.correction_for(owner, turn)}}
        case "list":
            pass
        case "edit":
            question, answer = str(request.get("question")), str(request.get("answer"))
            edited = taught_rows.edit(owner, str(request.get("row")), question, answer)
            correction = "" if edited.answer == edited.model_answer else edited.answer
            service.store.set_correction(owner, edited.turn, correction)
        case "delete":
            deleted = taught_rows.delete(owner, str(request.get("row")))
            service.store.set_correction(owner, deleted.turn, "")
        case "delete-all":
            for row in taught_rows.delete_all(owner):
                service.store.set_correction(owner, row.turn, "")
        case "undo-import":
            taught_rows.undo_import(owner)
        case other:
            raise UsageError(f"Unknown request {str(other)[:40]!r}.", "Reload the page.")
    return list_rows(service, taught_rows, owner, request.get("most"))


def list_rows(
    service: ChatService, taught_rows: TaughtRowStore, owner: str, most: object = None
) -> PageUpdate:
    """Return the owner's rows for the page, most recent first.

    Args:
        service: Knows the pictures' names.
        taught_rows: The rows.
        owner: Whose rows.
        most: Number of rows, if the page wants more than `SHOWN_ROWS`.
    """
    rows = taught_rows.rows(owner)
    shown_rows = max(SHOWN_ROWS, most) if isinstance(most, int) else SHOWN_ROWS
    shown: list[dict[str, Any]] = []
    for row in rows[:shown_rows]:
        pictures = []
        for number, digest in enumerate(row.pictures, 1):
            known = service.store.picture(owner, digest)
            if known is None:  # imported; first, so that nobody deletes the file meanwhile
                service.store.add_picture(owner, digest, "picture", {"changes": []})
            taught_rows.get_picture(owner, digest)
            name, facts = known or ("picture", {"changes": []})
            pictures.append(picture_view(digest, name, facts) | {"number": number})
        shown.append(
            {
                "id": row.id,
                "question": row.question,
                "answer": row.answer,
                "said": row.model_answer,
                "pictures": pictures,
            }
        )
    imported = taught_rows.count_imported(owner)
    return {"taught": {"rows": shown, "count": len(rows), "imported": imported}}


def _judge(
    service: ChatService, taught_rows: TaughtRowStore, owner: str, request: PageRequest
) -> PageUpdate:
    """Store the rating of an answer; if the right answer is known, add a taught row."""
    chat, turn_id = str(request.get("conversation")), str(request.get("turn"))
    verdict = request.get("verdict")
    path = service.store.path_to(owner, chat, turn_id)
    turn = path[-1]
    if verdict not in ("right", "wrong", None):
        raise UsageError("A rating is right or wrong.", "Reload the page.")
    correction = str(request.get("correction") or "").strip()
    right = turn.answer.strip() if verdict == "right" else correction
    if verdict is None or not right:
        taught_rows.delete_for_turn(owner, turn.id)
    else:
        digests = dict.fromkeys(digest for step in path for digest in step.pictures)
        taught_rows.add(
            owner,
            turn.question,
            right,
            [service.picture_store.get(digest) for digest in digests],
            short=turn.facts.get("style") == "short",
            turn=turn.id,
            model_answer=turn.answer.strip(),
        )
    service.store.set_verdict(owner, chat, turn.id, verdict)
    service.store.set_correction(owner, turn.id, correction if verdict == "wrong" else "")
    update = {
        "view": service.view(owner, chat),
        **list_rows(service, taught_rows, owner, request.get("most")),
    }
    if not right:
        return update
    # A row holds a single question: earlier answers may be wrong and would be trained, too.
    alone = not any(step.answer for step in path[:-1])
    return {**update, "toast": entry("teach.saved" if alone else "teach.savedAlone")}
