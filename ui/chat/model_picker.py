"""Which model answers whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ui.chat.stream import BEAT
from vqa_app.errors import ModelError, VqaError
from vqa_app.serving.engine_pool import Standing
from vqa_app.serving.model_choices import named

if TYPE_CHECKING:
    from ui.chat.desk import Desk
    from ui.chat.requests import Request, Update


def models_of(desk: Desk, owner: str) -> Update:
    """What can be picked, what is picked, how that one stands, and what is `loading` to be next."""
    loading = _loading(desk, owner)
    key = desk.settings(owner).model
    try:
        standing = desk.hub.standing(key)
    except VqaError:  # the picked run was deleted meanwhile
        desk.store.save_settings(owner, {"model": None})
        standing = desk.hub.standing()
    before = desk.settings(owner).model_before or desk.hub.default
    models = _models(desk, standing, before)
    return {"models": {**models, "loading": loading} if loading else models}


def _loading(desk: Desk, owner: str) -> dict[str, Any] | None:
    """How the model stands that the owner waits for. Once it is there it answers them, also where
    the page that picked it has gone.
    """
    key = desk.wanted.get(owner)
    if key is None:
        return None
    standing = desk.hub.standing(key)
    if standing.phase == "loading":
        return {
            "key": key,
            "label": standing.choice.label,
            "message": standing.message,
            "share": standing.share,
        }
    if desk.wanted.pop(owner, None) == key and standing.phase == "ready":
        before = desk.settings(owner).model or desk.hub.default
        # Picked twice, it would be the one before itself, and there were no way back.
        change = {"model": key} if before == key else {"model": key, "model_before": before}
        desk.store.save_settings(owner, change)
    return None


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
                "here": choice.here,
            }
            for choice in desk.hub.choices()
        ],
    }


def pick(desk: Desk, owner: str, request: Request) -> Iterator[Update | None]:
    """Loads another model and answers with it from then on; until then, and where it fails, the
    one before stays. The last of several picks counts.
    """
    key = str(request.get("model") or desk.hub.default)
    if request.get("named"):
        if not desk.allow_any_model:
            raise ModelError("Models cannot be named here.", "Start with --allow-any-model.")
        choice = named(str(request["named"]).strip())
        desk.hub.offer(choice)
        key = choice.key
    desk.hub.start(key, owner)
    desk.wanted[owner] = key
    while desk.hub.wait(key, 0) is None:
        yield models_of(desk, owner)
        desk.hub.wait(key, BEAT)
    yield models_of(desk, owner)
