"""Stored turns as what the page draws, what the model reads, and what a file keeps.

The page gets plain JSON values; every text in them that came from a person is text for it, every
`html` was made here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ui.chat.markdown import to_html
from ui.storage.database import Store, Turn
from vqa_app.pictures.picture import Picture
from vqa_app.prompts.conversation import SHORT_STYLE, Conversation, Message

LOOKED_WELL, LOOKED_SOME = 1.5, 0.4
"""Nats that a whole answer gains by the pictures: 4.5 times, and half as likely again. Of the whole
answer, because most words of a sentence ("The shape is a ...") need no picture."""


def build_conversation(
    turns: Sequence[Turn], picture: Callable[[str], Picture], system: str = ""
) -> Conversation:
    """What the model reads: the turns with their styles, the last one open if it has no answer yet.

    A question that got no answer is left out, its pictures move on to the next one.
    """
    messages: list[Message] = []
    waiting: list[str] = []
    for position, turn in enumerate(turns):
        last = position == len(turns) - 1
        digests = list(dict.fromkeys([*waiting, *turn.pictures]))
        if not turn.answer and not last:
            waiting = digests
            continue
        waiting = []
        text = turn.question + (SHORT_STYLE if turn.facts.get("style") == "short" else "")
        messages.append(Message.user(text, [picture(digest) for digest in digests]))
        if turn.answer:
            messages.append(Message.assistant(turn.answer))
    return Conversation(tuple(messages)).with_system(system)


def make_title(question: str, pictures: int) -> str:
    """A conversation's first title."""
    words = " ".join(question.split())
    if not words:
        return "A picture" if pictures == 1 else f"{pictures} pictures"
    return words if len(words) <= 60 else words[:59].rsplit(" ", 1)[0] + " …"


def looked(gain: float) -> tuple[str, str]:
    """The badge of a whole answer's gain in nats: a level for colours, and words."""
    if gain >= LOOKED_WELL:
        return "well", "The answer comes from the picture"
    if gain >= LOOKED_SOME:
        return "some", "The picture helped a little"
    return "not", "Would say this about any picture"


def conversation_view(store: Store, owner: str, conversation: str | None) -> dict[str, Any]:
    """A conversation as the page shows it; None is the empty screen."""
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
        "meter": _meter(turns),
    }


def number_pictures(turns: Sequence[Turn]) -> list[dict[str, int]]:
    """For each turn the numbers of its pictures, as `conversation_of` shows them to the model: one
    that was asked about in vain and is asked about again keeps its number.
    """
    found: list[dict[str, int]] = []
    waiting: dict[str, int] = {}
    count = 0
    for turn in turns:
        numbers = {}
        for digest in turn.pictures:
            if digest not in waiting:
                count += 1
            numbers[digest] = waiting.get(digest, count)
        found.append(numbers)
        waiting = {} if turn.answer else waiting | numbers
    return found


def turn_view(store: Store, owner: str, turn: Turn, numbers: dict[str, int]) -> dict[str, Any]:
    """One turn as the page shows it, with the numbers of its pictures."""
    pictures = []
    for digest in turn.pictures:
        name, facts = store.picture(owner, digest) or ("picture", {})
        pictures.append({"digest": digest, "name": name, "number": numbers[digest], **facts})
    facts = dict(turn.facts)
    if "gain" in facts:
        facts["looked"], facts["looked_text"] = looked(facts["gain"])
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


def _mark_left_out(shown: list[dict[str, Any]], turns: Sequence[Turn]) -> None:
    """Marks the turns that the model did not read for the latest answer."""
    answered = [turn for turn in turns if turn.answer]
    messages = int(answered[-1].facts.get("dropped", 0)) if answered else 0
    left_out = {turn.id for turn in answered[: (messages + 1) // 2]}
    for entry in shown:
        entry["left_out"] = entry["id"] in left_out


def _meter(turns: Sequence[Turn]) -> dict[str, int] | None:
    """Tokens of the latest answer's prompt and answer, and how many there is room for."""
    for turn in reversed(turns):
        if "prompt_tokens" in turn.facts and turn.facts.get("context"):
            used = turn.facts["prompt_tokens"] + turn.facts.get("new_tokens", 0)
            return {
                "used": used,
                "image": turn.facts.get("image_tokens", 0),
                "limit": turn.facts["context"],
            }
    return None
