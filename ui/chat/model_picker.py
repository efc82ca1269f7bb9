"""Which model answers which owner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ui.chat.examples import first_screen, knowledge
from ui.chat.model_downloads import requested_model
from ui.texts import find_texts, model_label
from vqa_app.errors import ModelError, VqaError
from vqa_app.serving.engine_pool import ModelChoice, ModelStatus
from vqa_app.serving.model_choices import DOWNLOADED

if TYPE_CHECKING:
    from ui.chat.owner_models import OwnerModels
    from ui.chat.requests import PageRequest, PageUpdate
    from ui.chat.service import ChatService


def model_list(service: ChatService, owner: str) -> PageUpdate:
    """Return the available models, the owner's model and its status.

    `loading` describes the model that the owner has chosen and that is still loading. `examples`
    are there if the owner's model has just changed.
    """
    before = service.settings(owner).model
    loading = _pending_model(service, owner)
    key = service.settings(owner).model
    try:
        status = service.models(owner).status(key)
    except VqaError:  # the chosen run has been deleted, or is no longer shared
        service.store.save_settings(owner, {"model": None})
        status = service.pool.status()
    models = _models(service, owner, status)
    update: PageUpdate = {"models": {**models, "loading": loading} if loading else models}
    if service.settings(owner).model != before:  # the first screen follows the model in use
        update["examples"] = first_screen(service, owner)
    return update


def _pending_model(service: ChatService, owner: str) -> dict[str, Any] | None:
    """Return the status of the model that the owner waits for, or None.

    Once it is loaded it becomes the owner's model, even if the page that chose it has gone.
    """
    key = service.pending_models.get(owner)
    if key is None:
        return None
    try:
        status = service.models(owner).status(key)
    except ModelError:  # it is no longer available
        service.pending_models.pop(owner, None)
        return None
    if status.phase == "loading":
        return {
            "key": key,
            "label": model_label(status.choice.label),
            "message": find_texts(status.message),
            "share": status.share,
        }
    if service.pending_models.pop(owner, None) == key and status.phase == "ready":
        current = service.settings(owner).model or service.pool.default
        # Choosing a model twice must not make it its own predecessor.
        change = {"model": key} if current == key else {"model": key, "model_before": current}
        service.store.save_settings(owner, change)
    return None


def _models(service: ChatService, owner: str, status: ModelStatus) -> dict[str, Any]:
    engine = service.pool.get_loaded(status.choice.key)
    models = service.models(owner)
    choices = models.choices()
    previous = service.settings(owner).model_before
    if previous not in {choice.key for choice in choices}:
        previous = service.pool.default
    return {
        "picked": status.choice.key,
        "label": model_label(status.choice.label),
        "phase": status.phase,
        "message": find_texts(status.message),
        "share": status.share,
        "before": previous,
        "any": service.allow_any_model,
        # The built-in model knows no other language, nor do models that were trained from it.
        "only_english": knowledge(status.choice) != "general",
        "attention": engine.info.attention_maps if engine else None,
        "choices": [
            {
                "key": choice.key,
                "label": model_label(choice.label),
                "detail": find_texts(choice.detail),
                "group": find_texts(choice.group),
                "here": choice.here,
                "shared": _sharing(models, owner, choice),
                "downloaded": choice.group == DOWNLOADED,
            }
            for choice in choices
        ],
    }


def _sharing(models: OwnerModels, owner: str, choice: ModelChoice) -> str:
    """Return `by me` or `by others` for a run that is shared, otherwise an empty text."""
    run = models.run(choice)
    if run is None or not run.shared:
        return ""
    return "by me" if run.owner == owner else "by others"


def pick_model(
    service: ChatService, owner: str, request: PageRequest
) -> Iterator[PageUpdate | None]:
    """Load another model, which answers the owner from then on; yield the status while it loads.

    The current model stays in use until then, and if loading fails. Of several choices, the last
    one counts. A model of the hub that is not on this machine is downloaded only if `download` is
    true: then a person has confirmed it.

    Raises:
        ModelError: The model is not available, or could not be loaded.
        UsageError: `named` is not a hub id.
    """
    choice = requested_model(service, owner, request)
    if request.get("named"):
        service.pool.add_choice(choice)
    download = request.get("download") is True
    statuses = service.models(owner).load_with_status(choice.key, download=download)
    service.pending_models[owner] = choice.key
    for _ in statuses:
        yield model_list(service, owner)
    yield model_list(service, owner)
