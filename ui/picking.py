"""Which model answers whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ui.choices import named
from ui.hub import Standing
from ui.stream import BEAT
from vqa_app.errors import ModelError, VqaError

if TYPE_CHECKING:
    from ui.handlers import Desk, Request, Update


def models_of(desk: Desk, owner: str) -> Update:
    """What can be picked, what is picked, and how that one stands."""
    key = desk.settings(owner).model
    try:
        standing = desk.hub.standing(key)
    except VqaError:  # the picked run was deleted meanwhile
        desk.store.save_settings(owner, {"model": None})
        standing = desk.hub.standing()
    before = desk.settings(owner).model_before or desk.hub.default
    return {"models": _models(desk, standing, before)}


def _models(desk: Desk, standing: Standing, before: str) -> dict[str, Any]:
    engine = desk.hub.ready(standing.choice.key)
    return {
        "picked": standing.choice.key,
        "label": standing.choice.label,
        "phase": standing.phase,
        "message": standing.message,
        "share": standing.share,
        "before": before,
        "any": desk.allow_any_model,
        "attention": engine.info.attention_maps if engine else None,
        "choices": [
            {
                "key": choice.key,
                "label": choice.label,
                "detail": choice.detail,
                "group": choice.group,
            }
            for choice in desk.hub.choices()
        ],
    }


def pick(desk: Desk, owner: str, request: Request) -> Iterator[Update | None]:
    """Loads another model and answers with it from then on; until then, and where it fails, the
    one before stays."""
    key = str(request.get("model") or "")
    if request.get("named"):
        if not desk.allow_any_model:
            raise ModelError("Models cannot be named here.", "Start with --allow-any-model.")
        choice = named(str(request["named"]).strip())
        desk.hub.offer(choice)
        key = choice.key
    desk.hub.start(key, owner)
    while desk.hub.wait(key, 0) is None:
        standing = desk.hub.standing(key)
        yield {"models": {**models_of(desk, owner)["models"], "loading": {
            "key": key, "label": standing.choice.label,
            "message": standing.message, "share": standing.share,
        }}}  # fmt: skip
        desk.hub.wait(key, BEAT)
    before = desk.settings(owner).model or desk.hub.default
    # Picked twice, it would be the one before itself, and there were no way back.
    change = {"model": key} if before == key else {"model": key, "model_before": before}
    desk.store.save_settings(owner, change)
    yield models_of(desk, owner)
