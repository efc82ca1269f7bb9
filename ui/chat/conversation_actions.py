"""The quick deeds on conversations and turns, and what a page needs when it opens."""

from __future__ import annotations

import sqlite3
from dataclasses import asdict
from typing import Any

from ui.chat import examples
from ui.chat.model_picker import model_list
from ui.chat.requests import PageRequest, PageUpdate, conversation_id, is_no_room, user_message
from ui.chat.service import ChatService
from vqa_app.errors import UsageError


def handle_action(service: ChatService, owner: str, request: PageRequest) -> PageUpdate:
    """The quick deeds on conversations and turns; `do` names one."""
    conversation = conversation_id(request)
    chat, turn = str(conversation), str(request.get("turn") or "")
    match request.get("do"):
        case "hello":
            return initial_state(service, owner, request)
        case "open":
            pass
        case "refresh":  # another tab may have changed it, or deleted it
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
        case "delete":
            unseen = service.store.delete(owner, chat)
            # Only now, so that whoever follows the answer to its end finds the chat gone.
            service.stop(owner, conversation)
            for digest in unseen:
                service.picture_store.remove(digest)
            _examples(service, owner)  # the cards that are shown stay good
            if request.get("shown") == conversation:
                conversation = None
            else:
                return service.conversation_list(owner)
        case "delete-turn":
            service.stop(owner, conversation)
            for digest in service.store.delete_turn(owner, chat, turn):
                service.picture_store.remove(digest)
            _examples(service, owner)
        case "branch":
            service.store.show(owner, chat, turn)
        case "stop":
            service.stop(owner, conversation)
            if conversation is None:  # nothing of it was shown yet
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
            service.pool.cancel_loading(str(request.get("model")), owner)
            return {}
        case "settings":
            service.save_settings(owner, _changes(request))
            return {"settings": _told(service, owner)}
        case "scene":
            return {"scene": service.add_example(owner, *examples.new_scene())}
        case other:
            raise UsageError(f"Unknown request {str(other)[:40]!r}.", "Reload the page.")
    return {"view": service.view(owner, conversation), **service.conversation_list(owner)}


def _changes(request: PageRequest) -> dict[str, Any]:
    """The settings that a request changes; which model answers is changed by `pick` alone."""
    names = ("system", "temperature", "top_p", "max_new_tokens", "seed", "style")
    return {name: request[name] for name in names if name in request}


def initial_state(service: ChatService, owner: str, request: PageRequest) -> PageUpdate:
    """What a page needs when it opens; its conversation if that is (still) the owner's."""
    conversation = conversation_id(request)
    if conversation is not None and not service.store.owns(owner, conversation):
        conversation = None
    service.engine_for(owner)
    return {
        "hello": True,
        "models": model_list(service, owner)["models"],
        "settings": _told(service, owner),
        "examples": {
            "cards": _examples(service, owner),
            "about": examples.ABOUT_BUILTIN
            if service.pool.default == "builtin"
            else examples.ABOUT_OTHER,
        },
        **service.conversation_list(owner),
        "view": service.view(owner, conversation),
    }


def _examples(service: ChatService, owner: str) -> list[dict[str, Any]]:
    """The cards, which are stored as the owner's pictures; none where that cannot be, since the
    page opens all the same.
    """
    try:
        return [service.add_example(owner, *card) for card in examples.cards()]
    except (OSError, sqlite3.OperationalError) as error:
        if not is_no_room(error):
            raise
        user_message(error)  # into the log
        return []


def _told(service: ChatService, owner: str) -> dict[str, Any]:
    """Settings for the page, with what the model takes where nothing is set."""
    settings, engine = service.settings(owner), service.engine_for(owner)
    defaults = engine.info.defaults if engine else None
    return {
        **{name: value for name, value in asdict(settings).items() if "model" not in name},
        "defaults": {
            name: getattr(defaults, name) for name in ("temperature", "top_p", "max_new_tokens")
        }
        if defaults
        else {},
    }
