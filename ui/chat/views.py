"""Converts stored turns into what the page draws and what the model reads.

The page gets plain JSON values. It treats texts from people as text; only `html` values, which are
rendered here, are inserted as HTML.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from finetune.progress import pluralize
from ui.chat.markdown import first_words, to_html
from ui.chat.requests import MAX_PICTURES
from ui.storage.database import ConversationSummary, Store, StoredTurn
from ui.texts import Entry, entry, find_texts, model_label, quantity
from vqa_app.engine.protocol import GenerationOptions
from vqa_app.pictures.picture import Picture
from vqa_app.prompts.conversation import SHORT_STYLE, Conversation, Message

HIGH_IMAGE_GAIN, LOW_IMAGE_GAIN = 1.5, 0.4
"""Thresholds of the image gain, in nats: an answer 4.5 and 1.5 times as likely with the pictures as
with blank ones. They apply to the whole answer, because most words of a sentence ("The shape is a
...") need no picture. A high gain does not make an answer right: wrong ones have it as well."""
_FEW_QUESTIONS = 4
"""The page warns when no more than these fit into the context."""
_SHORT_TURN = 24
"""Tokens of a short question with its answer."""


def build_conversation(
    turns: Sequence[StoredTurn], picture: Callable[[str], Picture], system: str = ""
) -> Conversation:
    """Return the conversation that the model reads; a last turn without an answer stays open.

    An earlier question without an answer is left out, and its pictures move to the next question.

    Args:
        turns: The turns of a branch, from its root.
        picture: Returns the picture with a digest.
        system: The system prompt.
    """
    messages: list[Message] = []
    unanswered: list[str] = []
    for position, turn in enumerate(turns):
        last = position == len(turns) - 1
        digests = list(dict.fromkeys([*unanswered, *turn.pictures]))
        if not turn.answer and not last:
            unanswered = digests
            continue
        unanswered = []
        text = turn.question + (SHORT_STYLE if turn.facts.get("style") == "short" else "")
        messages.append(Message.user(text, [picture(digest) for digest in digests]))
        if turn.answer:
            messages.append(Message.assistant(turn.answer))
    return Conversation(tuple(messages)).with_system(system)


def make_title(question: str, pictures: int) -> str:
    """Return the title of a new conversation; see `shown_title` for one without words."""
    words = " ".join(question.split())
    if not words:
        return pluralize(pictures, "picture")
    return words if len(words) <= 60 else words[:59].rsplit(" ", 1)[0] + " …"


def shown_title(title: str) -> str | Entry:
    """Return a title as the page shows it: a number of pictures in its language."""
    return quantity(title) or title


_ENDS = {
    "length": "cut off at the length limit",
    "repetition": "stopped, because it went on repeating itself",
}


def ended_text(turn: StoredTurn) -> str:
    """Return why an answer is not complete, or an empty text if it is.

    The page says of an answer without a word that it was stopped; see `chat.stoppedEarly`.
    """
    if turn.state == "stopped" and turn.answer:
        return "stopped"
    return _ENDS.get(str(turn.facts.get("finish")), "")


def same_questions(turns: Sequence[StoredTurn], turn: StoredTurn) -> list[StoredTurn]:
    """Return the earlier turns in the same place that ask the same and have a complete answer."""
    before = itertools.takewhile(lambda other: other.id != turn.id, turns)
    asked = (turn.parent, turn.question, turn.pictures)
    return [
        other
        for other in before
        if (other.parent, other.question, other.pictures) == asked and other.state == "answered"
    ]


def repeated_answer(turns: Sequence[StoredTurn], turn: StoredTurn) -> Entry | None:
    """Return what to say about a second answer of a model: sampled, or why it is the first again.

    Args:
        turns: All turns of the conversation, in the order of creation.
        turn: One of them.
    """
    facts = turn.facts
    asked = (facts.get("model"), facts.get("style"))
    earlier = [
        other
        for other in same_questions(turns, turn)
        if (other.facts.get("model"), other.facts.get("style")) == asked
    ]
    temperature = facts.get("temperature")
    if turn.state != "answered" or not earlier or temperature is None:
        return None
    if any(other.answer == turn.answer for other in earlier):
        key = "chat.sameSampled" if temperature else "chat.sameAtZero"
        return entry(key, temperature=temperature)
    return entry("chat.sampled", temperature=temperature) if temperature else None


def image_gain_level(gain: float) -> str:
    """Return the level of a whole answer's image gain, in nats; the page has a text for each."""
    if gain >= HIGH_IMAGE_GAIN:
        return "much"
    return "some" if gain >= LOW_IMAGE_GAIN else "not"


def conversation_view(store: Store, owner: str, conversation: str | None) -> dict[str, Any]:
    """Return a conversation as the page shows it; None is the empty screen."""
    if conversation is None:
        return {"conversation": None, "title": "", "turns": [], "meter": None}
    turns = store.path(owner, conversation)
    siblings = store.siblings(owner, conversation)
    everything = store.turns(owner, conversation)
    shown: list[dict[str, Any]] = []
    for number, (turn, pictures) in enumerate(zip(turns, number_pictures(turns), strict=True), 1):
        turn_shown = turn_view(store, owner, turn, pictures)
        family = siblings[turn.id]
        place = family.index(turn.id)
        turn_shown["number"] = number
        turn_shown["with_picture"] = any(before.pictures for before in turns[:number])
        if place and (again := repeated_answer(everything, turn)):
            turn_shown["facts"]["again"] = again
        turn_shown["branches"] = {
            "at": place + 1,
            "of": len(family),
            "before": family[place - 1] if place else None,
            "after": family[place + 1] if place + 1 < len(family) else None,
        }
        shown.append(turn_shown)
    left_out = _left_out(turns)
    for turn_shown in shown:
        turn_shown["left_out"] = turn_shown["id"] in left_out
    return {
        "conversation": conversation,
        "title": shown_title(store.title(owner, conversation)),
        "turns": shown,
        "meter": _context_usage(turns),
    }


def conversation_entry(summary: ConversationSummary) -> dict[str, Any]:
    """Return a conversation as the sidebar shows it."""
    return {
        "id": summary.id,
        "title": shown_title(summary.title),
        "when": summary.updated,
        "pinned": summary.pinned,
        "archived": summary.archived,
        "picture": summary.picture,
        "answer": first_words(summary.answer),
    }


def number_pictures(turns: Sequence[StoredTurn]) -> list[dict[str, int]]:
    """Return for each turn the numbers of its pictures, in the order in which the model sees them.

    A picture of an unanswered question keeps its number when it moves to the next one; see
    `build_conversation`.
    """
    found: list[dict[str, int]] = []
    unanswered: dict[str, int] = {}
    count = 0
    for turn in turns:
        numbers = {}
        for digest in turn.pictures:
            if digest not in unanswered:
                count += 1
            numbers[digest] = unanswered.get(digest, count)
        found.append(numbers)
        unanswered = {} if turn.answer else unanswered | numbers
    return found


def turn_view(
    store: Store, owner: str, turn: StoredTurn, numbers: dict[str, int]
) -> dict[str, Any]:
    """Return one turn as the page shows it, with the numbers of its pictures."""
    pictures = []
    for digest in turn.pictures:
        name, facts = store.picture(owner, digest) or ("picture", {})
        pictures.append(picture_view(digest, name, facts) | {"number": numbers[digest]})
    facts = dict(turn.facts)
    if facts.get("model"):
        facts["model"] = model_label(facts["model"])
    facts["ended_text"] = ended_text(turn)
    facts["ended"] = find_texts(facts["ended_text"])
    if facts.get("error"):
        facts["text"] = find_texts(str(facts["error"]))
    if "gain" in facts:
        facts["looked"] = image_gain_level(facts["gain"])
    return {
        "id": turn.id,
        "question": turn.question,
        "pictures": pictures,
        "state": turn.state,
        "answer": turn.answer,
        "html": to_html(turn.answer) if turn.answer else "",
        "facts": facts,
        "verdict": turn.verdict,
    }


def picture_view(digest: str, name: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Return a stored picture as the page shows it."""
    changes = [find_texts(change) for change in facts.get("changes", [])]
    return {"digest": digest, "name": name, **facts, "changes": changes}


def read_turns(turns: Sequence[StoredTurn]) -> list[StoredTurn]:
    """Return the turns that become messages in `build_conversation`, in their order."""
    return [turn for turn in turns if turn.answer or turn is turns[-1]]


def _latest_prompt(turns: Sequence[StoredTurn]) -> int | None:
    """Return the position of the latest turn whose prompt was counted; None if there is none."""
    found = (k for k in reversed(range(len(turns))) if "prompt_tokens" in turns[k].facts)
    return next(found, None)


def _left_out(turns: Sequence[StoredTurn]) -> set[str]:
    """Return the ids of the turns that were left out of the latest prompt and still exist."""
    number = _latest_prompt(turns)
    if number is None:
        return set()
    facts = turns[number].facts
    # Up to version 0.2.0 positions were stored, and before that only their number: the oldest.
    dropped = facts.get("dropped_turns") or range((int(facts.get("dropped", 0)) + 1) // 2)
    read = [turn.id for turn in read_turns(turns[: number + 1])]
    return {turn for place, turn in enumerate(read) if turn in dropped or place in dropped}


def _context_usage(turns: Sequence[StoredTurn]) -> dict[str, Any] | None:
    """Return how full the context is after the latest answer, and what that means.

    `level` is "ok", "soon" if few more questions fit, or "full" if turns are left out already.
    Unless it is "ok", `text` says so and `pictures` are those that a new chat would start with.
    """
    number = _latest_prompt(turns)
    if number is None or not turns[number].facts.get("context"):
        return None
    facts = turns[number].facts
    limit, image = facts["context"], facts.get("image_tokens", 0)
    used = facts["prompt_tokens"] + facts.get("new_tokens", 0)
    left_out = len(_left_out(turns))
    typical = max(_SHORT_TURN, (used - image) // max(1, number + 1 - left_out))
    room = limit - used - min(GenerationOptions.max_new_tokens, limit // 8)
    more = max(0, room // typical)
    level, text = "ok", None
    if left_out:
        level = "full"
        text = entry("chat.meterLeftOut", count=left_out)
    elif more:
        if more <= _FEW_QUESTIONS:
            level = "soon"
            text = entry("chat.meterRoom", count=more)
    else:
        level = "soon"
        text = entry("chat.meterLast")
    pictures = dict.fromkeys(digest for turn in turns for digest in turn.pictures)
    return {
        "used": used,
        "image": image,
        "limit": limit,
        "level": level,
        "text": text,
        "pictures": list(pictures)[-MAX_PICTURES:] if text else [],
    }
