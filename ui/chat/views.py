"""Converts stored turns into what the page draws and what the model reads.

The page gets plain JSON values. It treats texts from people as text; only `html` values, which are
rendered here, are inserted as HTML.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ui.chat.markdown import to_html
from ui.storage.database import Store, StoredTurn
from ui.texts import find_texts
from vqa_app.pictures.picture import Picture
from vqa_app.prompts.conversation import SHORT_STYLE, Conversation, Message

HIGH_IMAGE_GAIN, LOW_IMAGE_GAIN = 1.5, 0.4
"""Thresholds of the image gain, in nats: an answer 4.5 and 1.5 times as likely with the pictures.
They apply to the whole answer, because most words of a sentence ("The shape is a ...") need no
picture."""


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
    """Return the title of a new conversation."""
    words = " ".join(question.split())
    if not words:
        return "A picture" if pictures == 1 else f"{pictures} pictures"
    return words if len(words) <= 60 else words[:59].rsplit(" ", 1)[0] + " …"


_ENDS = {
    "length": "cut off at the length limit",
    "repetition": "stopped, because it went on repeating itself",
}


def ended_text(turn: StoredTurn) -> str:
    """Return why an answer is not complete, or an empty text if it is."""
    if turn.state == "stopped" and turn.answer:
        return "stopped"
    return _ENDS.get(str(turn.facts.get("finish")), "")


def image_gain_level(gain: float) -> str:
    """Return the level of a whole answer's image gain, in nats; the page has a text for each."""
    if gain >= HIGH_IMAGE_GAIN:
        return "well"
    if gain >= LOW_IMAGE_GAIN:
        return "some"
    return "not"


def conversation_view(store: Store, owner: str, conversation: str | None) -> dict[str, Any]:
    """Return a conversation as the page shows it; None is the empty screen."""
    if conversation is None:
        return {"conversation": None, "title": "", "turns": [], "meter": None}
    turns = store.path(owner, conversation)
    siblings = store.siblings(owner, conversation)
    shown: list[dict[str, Any]] = []
    for number, (turn, pictures) in enumerate(zip(turns, number_pictures(turns), strict=True), 1):
        entry = turn_view(store, owner, turn, pictures)
        family = siblings[turn.id]
        place = family.index(turn.id)
        entry["number"] = number
        entry["branches"] = {
            "at": place + 1,
            "of": len(family),
            "before": family[place - 1] if place else None,
            "after": family[place + 1] if place + 1 < len(family) else None,
        }
        shown.append(entry)
    _mark_left_out(shown, turns)
    return {
        "conversation": conversation,
        "title": store.title(owner, conversation),
        "turns": shown,
        "meter": _context_usage(turns),
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


def _mark_left_out(shown: list[dict[str, Any]], turns: Sequence[StoredTurn]) -> None:
    """Mark the turns that were dropped from the prompt of the latest answer."""
    answered = [turn for turn in turns if turn.answer]
    messages = int(answered[-1].facts.get("dropped", 0)) if answered else 0
    left_out = {turn.id for turn in answered[: (messages + 1) // 2]}
    for entry in shown:
        entry["left_out"] = entry["id"] in left_out


def _context_usage(turns: Sequence[StoredTurn]) -> dict[str, int] | None:
    """Return the tokens that the latest prompt and answer use, and the context length."""
    for turn in reversed(turns):
        if "prompt_tokens" in turn.facts and turn.facts.get("context"):
            used = turn.facts["prompt_tokens"] + turn.facts.get("new_tokens", 0)
            return {
                "used": used,
                "image": turn.facts.get("image_tokens", 0),
                "limit": turn.facts["context"],
            }
    return None
