"""What the page does with taught rows: judging answers, and the list of what was taught."""

from __future__ import annotations

from typing import Any

from ui.chat.requests import PageRequest, PageUpdate
from ui.chat.service import ChatService
from ui.teaching.taught_rows import Teaching
from vqa_app.errors import UsageError

SHOWN_ROWS = 500
"""Taught rows that the page gets, until it asks for more."""
_WITHOUT_HISTORY = (
    "Kept without what was said before it. If its question does not stand alone, edit it in Teach."
)


def teach(service: ChatService, teaching: Teaching, owner: str, request: PageRequest) -> PageUpdate:
    """The deeds of teaching; `do` names one."""
    match request.get("do"):
        case "judge":
            return _judge(service, teaching, owner, request)
        case "corrected":
            turn = str(request.get("turn"))
            return {"corrected": {"turn": turn, "answer": teaching.corrected(owner, turn)}}
        case "list":
            pass
        case "edit":
            question, answer = str(request.get("question")), str(request.get("answer"))
            teaching.edit(owner, str(request.get("row")), question, answer)
        case "delete":
            teaching.delete(owner, str(request.get("row")))
        case "delete-all":
            teaching.delete_all(owner)
        case "undo-import":
            teaching.undo_import(owner)
        case other:
            raise UsageError(f"Unknown request {str(other)[:40]!r}.", "Reload the page.")
    return taught(service, teaching, owner, request.get("most"))


def taught(service: ChatService, teaching: Teaching, owner: str, most: object = None) -> PageUpdate:
    """The owner's rows as the page shows them, latest first.

    Args:
        most: how many, where the page asked for more than `SHOWN_ROWS`.
    """
    rows = teaching.rows(owner)
    shown_rows = max(SHOWN_ROWS, most) if isinstance(most, int) else SHOWN_ROWS
    shown: list[dict[str, Any]] = []
    for row in rows[:shown_rows]:
        pictures = []
        for number, digest in enumerate(row.pictures, 1):
            teaching.picture(owner, digest)
            known = service.store.picture(owner, digest)
            if known is None:  # came with an import
                service.store.remember_picture(owner, digest, "picture", {"changes": []})
            name, facts = known or ("picture", {"changes": []})
            pictures.append({"digest": digest, "name": name, "number": number, **facts})
        shown.append(
            {
                "id": row.id,
                "question": row.question,
                "answer": row.answer,
                "said": row.said,
                "pictures": pictures,
            }
        )
    imported = teaching.imported(owner)
    return {"taught": {"rows": shown, "count": len(rows), "imported": imported}}


def _judge(
    service: ChatService, teaching: Teaching, owner: str, request: PageRequest
) -> PageUpdate:
    """Keeps what a person says of an answer; with the right answer it becomes a taught row."""
    chat, turn_id = str(request.get("conversation")), str(request.get("turn"))
    verdict = request.get("verdict")
    path = service.store.path_to(owner, chat, turn_id)
    turn = path[-1]
    if verdict not in ("right", "wrong", None):
        raise UsageError("A verdict is right or wrong.", "Reload the page.")
    correction = str(request.get("correction") or "").strip()
    right = turn.answer.strip() if verdict == "right" else correction
    if verdict is None or not right:
        teaching.forget(owner, turn.id)
    else:
        digests = dict.fromkeys(digest for step in path for digest in step.pictures)
        teaching.add(
            owner,
            turn.question,
            right,
            [service.picture_store.get(digest) for digest in digests],
            short=turn.facts.get("style") == "short",
            turn=turn.id,
            said=turn.answer.strip(),
        )
    service.store.judge(owner, chat, turn.id, verdict)
    update = {
        "view": service.view(owner, chat),
        **taught(service, teaching, owner, request.get("most")),
    }
    if not right:
        return update
    # A row is one question: what the model said before may be wrong, and would be trained, too.
    alone = not any(step.answer for step in path[:-1])
    return {**update, "toast": "Kept: you can train on it." if alone else _WITHOUT_HISTORY}
