"""What people decide about models of the hub: which to download, and which to delete.

Nothing is downloaded before a person has seen how large it is: `describe_model` tells them, and
only a request with `download` (see `ui.chat.model_picker` and `ChatService.ask`) fetches anything.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from ui.texts import entry, find_texts
from vqa_app.checkpoints.catalogue import is_cached
from vqa_app.checkpoints.hub_models import CATALOGUE, RECOMMENDED, memory_in_use
from vqa_app.errors import ModelError, UsageError
from vqa_app.serving.engine_pool import ModelChoice
from vqa_app.serving.model_choices import (
    DOWNLOADED,
    TO_DOWNLOAD,
    choice_from_hub_id,
    forget_downloaded,
    hub_base,
    hub_name,
)

if TYPE_CHECKING:
    from ui.chat.requests import PageRequest, PageUpdate
    from ui.chat.service import ChatService


def handle_models(service: ChatService, owner: str, request: PageRequest) -> PageUpdate:
    """Perform the action on models that `do` names.

    Raises:
        ModelError: The model does not exist, or cannot be downloaded or deleted.
        UsageError: There is no such action, or the owner may not do it.
    """
    match request.get("do"):
        case "describe":
            shown = describe_model(service, requested_model(service, owner, request))
            others = {"others": suggest_model(service)[1]} if request.get("others") else {}
            return {"model_described": shown | others | {"named": request.get("named")}}
        case "suggest":
            choice, models = suggest_model(service)
            return {"model_described": describe_model(service, choice) | {"others": models}}
        case "installed":
            return _installed(service, owner)
        case "delete":
            delete_model(service, owner, requested_model(service, owner, request))
            return _installed(service, owner)
    raise UsageError(f"Unknown request {str(request.get('do'))[:40]!r}.", "Reload the page.")


def requested_model(service: ChatService, owner: str, request: PageRequest) -> ModelChoice:
    """Return the model that a request means, by its key or as `named` by its hub id.

    Raises:
        ModelError: There is no such model, or models cannot be named by hub id here.
        UsageError: `named` is not a hub id.
    """
    if not request.get("named"):
        return service.models(owner).find(str(request.get("model") or service.pool.default))
    if not service.allow_any_model:
        raise ModelError(
            "Models cannot be added by id here.", "Start with --allow-any-model to allow it."
        )
    return choice_from_hub_id(str(request["named"]).strip())


def describe_model(service: ChatService, choice: ModelChoice) -> dict[str, Any]:
    """Return what a person should know before a model is downloaded, sizes in bytes.

    `here` is true if there is nothing to download. Otherwise `problems` says what speaks against
    it, and `possible` whether it can be downloaded at all.
    """
    name = hub_name(choice)
    shown: dict[str, Any] = {"key": choice.key, "label": choice.label, "here": True}
    if name is None or is_cached(name):
        return shown
    from vqa_app.checkpoints.source import ask_hub, free_cache_space

    shown |= {"here": False, "name": name}
    listed = next((one for one in CATALOGUE if one.name == name), None)
    try:
        hub = ask_hub(name)
    except ModelError as error:  # gated, deleted, or without usable weights
        return shown | {"possible": False, "problems": [find_texts(str(error).replace("\n", " "))]}
    problems = []
    if hub is None:
        problems.append(entry("download.offline"))
    size = hub.missing if hub else listed.download if listed else 0
    disk = free_cache_space()
    if size > disk:
        problems.append(entry("download.noDisk"))
    if listed and listed.package and importlib.util.find_spec(listed.package) is None:
        problems.append(entry("download.noPackage", package=listed.package))
    possible = not problems
    parameters = listed.parameters if listed else hub.parameters if hub else 0
    needed, free = _memory(service, parameters)
    if needed > free:
        problems.append(entry("download.noMemory"))
    return shown | {
        "size": size,
        "disk": disk,
        "memory": needed,
        "memory_free": free,
        "licence": find_texts(listed.licence if listed else hub.licence if hub else ""),
        "note": find_texts(listed.note) if listed else [],
        "figures": find_texts(listed.figures) if listed else [],
        "figures_source": find_texts(listed.figures_source) if listed else [],
        "problems": problems,
        "possible": possible,
    }


def _memory(service: ChatService, parameters: int) -> tuple[int, int]:
    """Return how much memory a model of this size needs on the server's device, and has there."""
    from vqa_app.devices import choose_device, choose_dtype, free_memory

    device = choose_device(service.device)
    dtype = choose_dtype(service.dtype, device, parameters)
    return memory_in_use(parameters, dtype.itemsize), free_memory(device)


def suggest_model(service: ChatService) -> tuple[ModelChoice, list[dict[str, Any]]]:
    """Return a model that knows photographs, and all of these with their sizes.

    It is one that is on this machine, if possible; otherwise the first of `RECOMMENDED` that fits
    in the free memory, or the last, which is the smallest.

    Raises:
        ModelError: The list has no such model.
    """
    known = [one for one in service.pool.choices() if one.group in (DOWNLOADED, TO_DOWNLOAD)]
    sizes = {one.name: one for one in CATALOGUE}
    known = [one for one in known if one.source in sizes]
    if not known:
        raise ModelError("This model is not available here.", "Choose one from the list.")
    others = [
        {"key": one.key, "label": one.label, "here": one.here, "size": sizes[one.source].download}
        for one in known
    ]
    fitting = [one for one in known if _fits(service, sizes[one.source].parameters)]
    by_name = {one.source: one for one in known}
    recommended = [by_name[name] for name in RECOMMENDED if name in by_name]
    here = [one for one in (*recommended, *known) if one.here]
    for one in (*here, *recommended):
        if one in fitting:
            return one, others
    return (here or recommended or known)[-1], others


def _fits(service: ChatService, parameters: int) -> bool:
    needed, free = _memory(service, parameters)
    return needed <= free


def _installed(service: ChatService, owner: str) -> PageUpdate:
    """Return the models of the list that are on this machine."""
    from vqa_app.checkpoints.installed import installed_models

    listed = {name: one for one in service.pool.choices() if (name := _listed_name(one))}
    return {
        "installed": {
            "models": [
                {
                    "key": listed[model.name].key,
                    "label": listed[model.name].label,
                    "name": model.name,
                    "size": model.size,
                    "used": model.last_used,
                    "complete": model.complete,
                    "runs": _runs_on(service, owner, model.name),
                }
                for model in installed_models()
                if model.name in listed
            ],
            "may_delete": service.may_delete_models(owner),
        }
    }


def _listed_name(choice: ModelChoice) -> str | None:
    return choice.source if choice.group in (DOWNLOADED, TO_DOWNLOAD) else None


def _runs_on(service: ChatService, owner: str, name: str) -> list[str]:
    """Return the labels of the owner's training runs, and of shared ones, that need a hub model."""
    return [
        one.label
        for one in service.models(owner).choices()
        if _listed_name(one) is None and hub_name(one) == name
    ]


def delete_model(service: ChatService, owner: str, choice: ModelChoice) -> None:
    """Delete a model of the hub from this machine.

    Raises:
        ModelError: It is not there, or cannot be deleted.
        UsageError: It is in use, or the owner may not delete models, which are everybody's.
    """
    if not service.may_delete_models(owner):
        raise UsageError(
            "Only the operator of this server can delete models.",
            "Ask them, if the disk is full.",
        )
    name = _listed_name(choice)
    if name is None:
        raise ModelError("Only downloaded models can be deleted.", "Choose one of these.")

    used = [one for one in service.pool.choices() if hub_base(one.source) == name]
    keys = {one.key for one in used}
    started, trained = service.pool.find(None), service.trained_model()
    if started.key in keys and started.source == name:
        raise UsageError(
            "The server was started with this model.",
            "It cannot be deleted while the server runs.",
        )
    if started.key in keys:
        raise UsageError(
            f"The model that the server was started with, {started.label}, needs this one.",
            "It cannot be deleted while the server runs.",
        )
    if trained is not None and trained.key in keys:
        raise UsageError("The current training uses this model.", "Wait until it ends.")
    for one in used:
        service.pool.release(one.key)
    from vqa_app.checkpoints import installed

    try:
        installed.delete_model(name)
    finally:
        forget_downloaded()
