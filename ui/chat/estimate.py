"""What a question will cost before it is asked: tokens, seconds, and what the model gets to see."""

from __future__ import annotations

from typing import Any

from ui.chat.requests import PageRequest, PageUpdate
from ui.chat.service import ChatService
from ui.texts import Entry, entry
from vqa_app.engine.protocol import GenerationOptions, PictureInput, TokenCount
from vqa_app.pictures.picture import Picture


def estimate_question(service: ChatService, owner: str, request: PageRequest) -> PageUpdate:
    """Estimate the cost of a question that is being written.

    Args:
        service: The chat.
        owner: Who asks.
        request: As for asking: `question`, `pictures`, `conversation` and `replaces`.

    Returns:
        `estimate`, None while the model is not loaded: `tokens` and `image` of the prompt and
        `limit` of the model (None if only a server elsewhere knows them), whether the question
        `fits` beside the whole chat (false only if that is known), `seconds` until the first word
        (None before the first answer), `text` with all that, and for each of the question's
        `pictures` its `digest`, `tokens`, `images`, `size` and `note` (None unless it is shrunk).

    Raises:
        UsageError: A picture or turn is not the owner's.
    """
    engine = service.engine_for(owner)
    if engine is None:
        return {"estimate": None}
    info, settings = engine.info, service.settings(owner)
    turns, conversation = service.draft(owner, request, str(request.get("question") or ""), info)
    count = engine.count_tokens(conversation)
    known = 0
    for turn in turns:  # the model still knows what it has read for the latest answer
        if turn.answer and not turn.facts.get("dropped"):
            known = turn.facts.get("prompt_tokens", 0) + turn.facts.get("new_tokens", 0)
    model = settings.model or service.pool.default
    seconds = None
    if count.prompt is not None:
        seconds = service.speeds.seconds(model, max(1, count.prompt - known))
    longest = settings.max_new_tokens or GenerationOptions.max_new_tokens
    limit = info.context_length
    fits = limit is None or count.prompt is None or count.prompt + min(longest, limit // 8) <= limit
    digests = service.requested_pictures(owner, request)
    asked = count.pictures[len(count.pictures) - len(digests) :]
    return {
        "estimate": {
            "tokens": count.prompt,
            "image": count.image,
            "limit": limit,
            "fits": fits,
            "seconds": seconds,
            "text": _text(count, seconds),
            "pictures": [
                _picture(digest, service.picture_store.get(digest), shown)
                for digest, shown in zip(digests, asked, strict=False)
            ],
        }
    }


def _text(count: TokenCount, seconds: float | None) -> list[Entry]:
    if count.prompt is None:
        return [entry("estimate.unknown")]
    parts = [entry("estimate.tokens", count=count.prompt, image=count.image)]
    if seconds is not None:
        parts.append(entry("estimate.seconds", count=max(1, round(seconds))))
    return parts


def _picture(digest: str, picture: Picture, shown: PictureInput) -> dict[str, Any]:
    own_width, own_height = picture.image.size
    shrunk = 0 < shown.images * shown.width * shown.height < own_width * own_height
    note = entry(
        "estimate.shrunk" if shown.images == 1 else "estimate.tiles",
        name=picture.name,
        ownWidth=own_width,
        ownHeight=own_height,
        width=shown.width,
        height=shown.height,
        images=shown.images,
    )
    return {
        "digest": digest,
        "tokens": shown.tokens,
        "images": shown.images,
        "size": [shown.width, shown.height],
        "note": note if shrunk else None,
    }
