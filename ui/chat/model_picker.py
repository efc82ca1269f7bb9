"""Which model answers whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ui.chat.stream import POLL_SECONDS
from vqa_app.errors import ModelError, VqaError
from vqa_app.serving.engine_pool import ModelStatus
from vqa_app.serving.model_choices import choice_from_hub_id

if TYPE_CHECKING:
    from ui.chat.requests import PageRequest, PageUpdate
    from ui.chat.service import ChatService


def model_list(service: ChatService, owner: str) -> PageUpdate:
    """What can be picked, what is picked, how that one stands, and what is `loading` to be next."""
    loading = _loading(service, owner)
    key = service.settings(owner).model
    try:
        status = service.pool.status(key)
    except VqaError:  # the picked run was deleted meanwhile
        service.store.save_settings(owner, {"model": None})
        status = service.pool.status()
    before = service.settings(owner).model_before or service.pool.default
    models = _models(service, status, before)
    return {"models": {**models, "loading": loading} if loading else models}


def _loading(service: ChatService, owner: str) -> dict[str, Any] | None:
    """How the model stands that the owner waits for. Once it is there it answers them, also where
    the page that picked it has gone.
    """
    key = service.pending_models.get(owner)
    if key is None:
        return None
    status = service.pool.status(key)
    if status.phase == "loading":
        return {
            "key": key,
            "label": status.choice.label,
            "message": status.message,
            "share": status.share,
        }
    if service.pending_models.pop(owner, None) == key and status.phase == "ready":
        before = service.settings(owner).model or service.pool.default
        # Picked twice, it would be the one before itself, and there were no way back.
        change = {"model": key} if before == key else {"model": key, "model_before": before}
        service.store.save_settings(owner, change)
    return None


def _models(service: ChatService, status: ModelStatus, before: str) -> dict[str, Any]:
    engine = service.pool.get_loaded(status.choice.key)
    return {
        "picked": status.choice.key,
        "label": status.choice.label,
        "phase": status.phase,
        "message": status.message,
        "share": status.share,
        "before": before,
        "any": service.allow_any_model,
        "attention": engine.info.attention_maps if engine else None,
        "choices": [
            {
                "key": choice.key,
                "label": choice.label,
                "detail": choice.detail,
                "group": choice.group,
                "here": choice.here,
            }
            for choice in service.pool.choices()
        ],
    }


def pick_model(
    service: ChatService, owner: str, request: PageRequest
) -> Iterator[PageUpdate | None]:
    """Loads another model and answers with it from then on; until then, and where it fails, the
    one before stays. The last of several picks counts.
    """
    key = str(request.get("model") or service.pool.default)
    if request.get("named"):
        if not service.allow_any_model:
            raise ModelError("Models cannot be named here.", "Start with --allow-any-model.")
        choice = choice_from_hub_id(str(request["named"]).strip())
        service.pool.add_choice(choice)
        key = choice.key
    service.pool.start_loading(key, owner)
    service.pending_models[owner] = key
    while service.pool.wait(key, 0) is None:
        yield model_list(service, owner)
        service.pool.wait(key, POLL_SECONDS)
    yield model_list(service, owner)
