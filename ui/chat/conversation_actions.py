"""The quick deeds on conversations and turns, and what a page needs when it opens."""

from __future__ import annotations

import sqlite3
from dataclasses import asdict
from typing import Any

from ui.chat import examples
from ui.chat.desk import Desk
from ui.chat.model_picker import models_of
from ui.chat.requests import Request, Update, chat_of, is_no_room, message_of
from vqa_app.errors import UsageError


def act(desk: Desk, owner: str, request: Request) -> Update:
    """The quick deeds on conversations and turns; `do` names one."""
    conversation = chat_of(request)
    chat, turn = str(conversation), str(request.get("turn") or "")
    match request.get("do"):
        case "hello":
            return hello(desk, owner, request)
        case "open":
            pass
        case "refresh":  # another tab may have changed it, or deleted it
            if conversation is not None and not desk.store.owns(owner, chat):
                return {"gone": chat, **desk.listed(owner)}
            return {"refreshed": desk.view(owner, conversation), **desk.listed(owner)}
        case "rename":
            title = " ".join(str(request.get("title") or "").split())[:120]
            desk.store.rename(owner, chat, title or "Untitled")
            if request.get("shown") != conversation:
                return desk.listed(owner)
        case "delete":
            unseen = desk.store.delete(owner, chat)
            # Only now, so that whoever follows the answer to its end finds the chat gone.
            desk.stop(owner, conversation)
            for digest in unseen:
                desk.shelf.remove(digest)
            _examples(desk, owner)  # the cards that are shown stay good
            if request.get("shown") == conversation:
                conversation = None
            else:
                return desk.listed(owner)
        case "delete-turn":
            desk.stop(owner, conversation)
            for digest in desk.store.delete_turn(owner, chat, turn):
                desk.shelf.remove(digest)
            _examples(desk, owner)
        case "branch":
            desk.store.show(owner, chat, turn)
        case "stop":
            desk.stop(owner, conversation)
            if conversation is None:  # nothing of it was shown yet
                return {}
            if not desk.store.owns(owner, chat):  # deleted in another tab
                return {"gone": chat, **desk.listed(owner)}
        case "search":
            words = str(request.get("words") or "")
            return {"found": {"words": words, "chats": desk.store.search(owner, words)}}
        case "models":
            return models_of(desk, owner)
        case "stop-comparing":
            desk.stop_comparing(owner)
            return {}
        case "cancel-load":
            desk.hub.cancel(str(request.get("model")), owner)
            return {}
        case "settings":
            desk.save_settings(owner, _changes(request))
            return {"settings": _told(desk, owner)}
        case "scene":
            return {"scene": desk.example(owner, *examples.new_scene())}
        case other:
            raise UsageError(f"Unknown request {str(other)[:40]!r}.", "Reload the page.")
    return {"view": desk.view(owner, conversation), **desk.listed(owner)}


def _changes(request: Request) -> dict[str, Any]:
    """The settings that a request changes; which model answers is changed by `pick` alone."""
    names = ("system", "temperature", "top_p", "max_new_tokens", "seed", "style")
    return {name: request[name] for name in names if name in request}


def hello(desk: Desk, owner: str, request: Request) -> Update:
    """What a page needs when it opens; its conversation if that is (still) the owner's."""
    conversation = chat_of(request)
    if conversation is not None and not desk.store.owns(owner, conversation):
        conversation = None
    desk.engine(owner)
    return {
        "hello": True,
        "models": models_of(desk, owner)["models"],
        "settings": _told(desk, owner),
        "examples": {
            "cards": _examples(desk, owner),
            "about": examples.ABOUT_BUILTIN
            if desk.hub.default == "builtin"
            else examples.ABOUT_OTHER,
        },
        **desk.listed(owner),
        "view": desk.view(owner, conversation),
    }


def _examples(desk: Desk, owner: str) -> list[dict[str, Any]]:
    """The cards, which are stored as the owner's pictures; none where that cannot be, since the
    page opens all the same.
    """
    try:
        return [desk.example(owner, *card) for card in examples.cards()]
    except (OSError, sqlite3.OperationalError) as error:
        if not is_no_room(error):
            raise
        message_of(error)  # into the log
        return []


def _told(desk: Desk, owner: str) -> dict[str, Any]:
    """Settings for the page, with what the model takes where nothing is set."""
    settings, engine = desk.settings(owner), desk.engine(owner)
    defaults = engine.info.defaults if engine else None
    return {
        **{name: value for name, value in asdict(settings).items() if "model" not in name},
        "defaults": {
            name: getattr(defaults, name) for name in ("temperature", "top_p", "max_new_tokens")
        }
        if defaults
        else {},
    }
