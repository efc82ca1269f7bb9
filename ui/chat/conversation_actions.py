"""Short actions on conversations and turns, and what a page needs when it opens."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ui.chat import examples
from ui.chat.deletion import UNDO_SECONDS, delete_conversations
from ui.chat.model_picker import model_list
from ui.chat.requests import PageRequest, PageUpdate, conversation_id, text_list
from ui.chat.service import ChatService
from ui.chat.settings import check_system_prompt
from vqa_app.errors import UsageError


def handle_action(service: ChatService, owner: str, request: PageRequest) -> PageUpdate:
    """Perform the action that `do` names, and return what has changed.

    Raises:
        UsageError: There is no such action, or its conversation or turn does not exist.
    """
    conversation = conversation_id(request)
    chat, turn = str(conversation), str(request.get("turn") or "")
    match request.get("do"):
        case "hello":
            return initial_state(service, owner, request)
        case "open":
            pass
        case "refresh":  # another tab may have changed or deleted it
            if conversation is not None and not service.store.owns(owner, chat):
                return {"gone": chat, **service.conversation_list(owner)}
            return {
                "refreshed": service.view(owner, conversation),
                **service.conversation_list(owner),
            }
        case "rename":
            title = " ".join(str(request.get("title") or "").split())[:120]
            service.store.rename(owner, chat, title or "Untitled")
            if request.get("shown") != conversation:
                return service.conversation_list(owner)
        case "system":
            system = request.get("system")
            prompt = None if system is None else check_system_prompt(system)
            service.store.set_system_prompt(owner, chat, prompt)
        case "pin":
            service.store.pin(owner, chat, bool(request.get("pinned")))
            return service.conversation_list(owner)
        case "archive":
            service.store.archive(
                owner, text_list(request, "conversations"), bool(request.get("archived"))
            )
            return service.conversation_list(owner)
        case "delete":
            deleted = text_list(request, "conversations")
            delete_conversations(service, owner, deleted)
            if request.get("shown") not in deleted:
                return service.conversation_list(owner)
            conversation = None
        case "undo-delete":
            service.store.restore(owner, text_list(request, "conversations"))
            return service.conversation_list(owner)
        case "delete-turn":
            service.stop(owner, conversation)
            service.store.delete_turn(owner, chat, turn)
            examples.first_screen(service, owner)
        case "branch":
            service.store.show_branch(owner, chat, turn)
        case "stop":
            service.stop(owner, conversation)
            if conversation is None:  # its first update has not arrived yet
                return {}
            if not service.store.owns(owner, chat):  # deleted in another tab
                return {"gone": chat, **service.conversation_list(owner)}
        case "search":
            words = str(request.get("words") or "")
            return {"found": {"words": words, "chats": service.store.search(owner, words)}}
        case "models":
            return model_list(service, owner)
        case "stop-comparing":
            service.stop_comparing(owner)
            return {}
        case "cancel-load":
            service.models(owner).cancel_loading(str(request.get("model")))
            return {}
        case "settings":
            service.save_settings(owner, _changes(request))
            return {"settings": _settings(service, owner)}
        case "scene":
            return {"scene": examples.add_scene(service, owner)}
        case other:
            raise UsageError(f"Unknown request {str(other)[:40]!r}.", "Reload the page.")
    return {"view": service.view(owner, conversation), **service.conversation_list(owner)}


def _changes(request: PageRequest) -> dict[str, Any]:
    """Return the settings that a request changes. Only `pick_model` changes the model."""
    names = (
        "system",
        "temperature",
        "top_p",
        "max_new_tokens",
        "seed",
        "style",
        "prompts",
        "detail",
    )
    return {name: request[name] for name in names if name in request}


def initial_state(service: ChatService, owner: str, request: PageRequest) -> PageUpdate:
    """Return what a page needs when it opens, with its conversation if it is still the owner's."""
    conversation = conversation_id(request)
    if conversation is not None and not service.store.owns(owner, conversation):
        conversation = None
    service.engine_for(owner)
    return {
        "hello": True,
        "undo_seconds": UNDO_SECONDS,
        "models": model_list(service, owner)["models"],
        "settings": _settings(service, owner),
        "examples": examples.first_screen(service, owner),
        "picture_hosts": sorted(service.picture_hosts),
        **service.conversation_list(owner),
        "view": service.view(owner, conversation),
    }


def _settings(service: ChatService, owner: str) -> dict[str, Any]:
    """Return the settings for the page, with the model's own defaults."""
    settings, engine = service.settings(owner), service.engine_for(owner)
    defaults = engine.info.defaults if engine else None
    return {
        **{name: value for name, value in asdict(settings).items() if "model" not in name},
        "defaults": {
            name: getattr(defaults, name) for name in ("temperature", "top_p", "max_new_tokens")
        }
        if defaults
        else {},
        "system_prompts": engine.info.system_prompts if engine else None,
        "low_detail": engine.info.low_detail if engine else None,
    }
