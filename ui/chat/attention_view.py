"""Where the model looked, and what it was given to look at; computed on request."""

from __future__ import annotations

import base64
import re
from typing import Any

import numpy as np

from ui.chat.requests import PageRequest
from ui.chat.service import ChatService
from ui.chat.views import build_conversation, image_gain_level, picture_view
from ui.storage.database import StoredTurn
from ui.texts import entry, find_texts, model_label
from vqa_app.engine.protocol import AttentionMap, Engine
from vqa_app.errors import ModelError, UsageError
from vqa_app.pictures.picture import Picture
from vqa_app.serving.redact import redact_paths


def explain_answer(service: ChatService, owner: str, request: PageRequest) -> dict[str, Any]:
    """Explain one answer: its confidence, its image gain, and an attention map per word.

    Raises:
        UsageError: The owner has no such answer, or it is still being written.
        ModelError: The model is not loaded.
    """
    chat = str(request.get("conversation"))
    turn = service.store.turn(owner, chat, str(request.get("turn")))
    if turn.state == "answering":  # the maps cover a complete answer
        raise UsageError("This answer is still being written.", "Wait until it is finished.")
    if not turn.answer:
        raise UsageError("There is no answer to explain.", "Ask again first.")
    settings = service.settings(owner, chat)
    path = service.store.path_to(owner, chat, turn.id)
    turns = [*path[:-1], _without_answer(path[-1])]
    digests = [one.digest for one in build_conversation(turns, service.picture_store.get).pictures]
    found: dict[str, Any] = {
        "turn": turn.id,
        "question": turn.question,
        "answer": turn.answer,
        "confidence": turn.facts.get("confidence"),
        "calibrated": turn.facts.get("calibrated") is True,
        "other_model": _other_model(turn, service.models(owner).find(settings.model).label),
        "words": [],
        "pictures": [],
        "missing": "",
    }
    if not digests:
        found["missing"] = entry("look.noPicture")
        return {"looked": found}
    tokens = max(1, int(turn.facts.get("new_tokens", 1)))
    service.engine_for(owner)  # starts to load it
    with service.models(owner).lease(settings.model, timeout=0) as engine:
        conversation = service.build(turns, settings, engine.info)
        try:
            gain = engine.image_gain(conversation, turn.answer) * tokens
            service.store.add_facts(owner, chat, turn.id, {"gain": round(gain, 3)})
            found |= {"gain": round(gain, 3), "level": image_gain_level(gain)}
            _add_maps(found, engine.attention_map(conversation, turn.answer))
        except ModelError as error:
            found["missing"] = find_texts(redact_paths(str(error).replace("\n", " ")))
    maps = found["pictures"] or [{}] * len(digests)
    found["pictures"] = [
        {"digest": digest, "number": number, **shown}
        for number, (digest, shown) in enumerate(zip(digests, maps, strict=True), 1)
    ]
    return {"looked": found, "view": service.view(owner, chat)}


def _other_model(turn: StoredTurn, mapped: str) -> dict[str, Any] | None:
    """Return which model answered and which one maps, if they are not the same."""
    answered = turn.facts.get("model")
    if not answered or answered == mapped:
        return None
    return {"answered": model_label(answered), "mapped": model_label(mapped)}


def _without_answer(turn: StoredTurn) -> StoredTurn:
    return StoredTurn(
        turn.id, turn.parent, turn.question, turn.pictures, "", "answering", turn.facts
    )


def _add_maps(found: dict[str, Any], attention: AttentionMap) -> None:
    """Add the words and their maps, each the mean over its tokens, after the whole answer's map."""
    words, groups = _words(attention.tokens)
    found["words"] = words
    everything = list(range(len(attention.tokens)))
    for maps in attention.maps:
        rows, columns = maps.shape[1:]
        drawn = [maps[group].mean(axis=0) for group in [everything, *groups]]
        scaled = [np.rint(255 * one / max(float(one.max()), 1e-12)) for one in drawn]
        data = np.stack(scaled).astype(np.uint8).tobytes()  # [1 + words, rows, columns]
        found["pictures"].append(
            {"rows": rows, "columns": columns, "maps": base64.b64encode(data).decode()}
        )


def _words(tokens: tuple[str, ...]) -> tuple[list[str], list[list[int]]]:
    """Return the words of an answer, and the indices of the tokens of each."""
    words: list[str] = []
    groups: list[list[int]] = []
    for position, token in enumerate(tokens):
        if not words or re.match(r"\s", token):
            words.append("")
            groups.append([])
        words[-1] += token
        groups[-1].append(position)
    stripped = [
        (word.strip(), group) for word, group in zip(words, groups, strict=True) if word.strip()
    ]
    return [word for word, _ in stripped], [group for _, group in stripped]


def describe_picture(service: ChatService, owner: str, request: PageRequest) -> dict[str, Any]:
    """Describe what the model gets of a picture: size, changes, image tokens, and the view of it.

    Raises:
        UsageError: The owner has no such picture.
    """
    digest = str(request.get("digest"))
    known = service.store.picture(owner, digest)
    if known is None:
        raise UsageError("One of the pictures has been deleted.", "Add it again.")
    name, facts = known
    engine = service.engine_for(owner)
    found = picture_view(digest, name, facts) | {"tokens": None, "shown": []}
    if engine is not None:
        label = service.models(owner).find(service.settings(owner).model).label
        picture = service.picture_store.get(digest)
        shown = service.settings(owner).shown(picture, engine.info)
        found.update(model=label, **_model_view(engine, shown))
    return {"saw": found}


def _model_view(engine: Engine, picture: Picture) -> dict[str, Any]:
    from io import BytesIO

    from vqa_app.prompts.conversation import Conversation

    count = engine.count_tokens(Conversation.ask("?", [picture]))
    shown = []
    view = getattr(engine, "model_view", None)
    for image in view(picture) if view else []:
        stream = BytesIO()
        image.save(stream, "PNG")
        shown.append(
            {
                "size": list(image.size),
                "data": "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode(),
            }
        )
    return {"tokens": count.image, "shown": shown}
