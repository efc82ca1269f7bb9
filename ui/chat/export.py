"""Conversations as files: JSON that can be read back, and one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ui.chat.requests import MAX_PICTURES, MAX_QUESTION
from ui.chat.settings import LONGEST_ANSWER
from ui.chat.views import title_of, view_of
from ui.storage.database import Store
from ui.storage.picture_files import PictureShelf
from vqa_app.errors import DataError, ImageError
from vqa_app.pictures.picture import STORED_PICTURE_LIMITS
from vqa_app.serving.redact import sound

FORMAT = "vqa-app conversation"
VERSION = 1
MAX_TURNS = 2000
_LONGEST = {"id": 200, "question": MAX_QUESTION, "answer": 20 * LONGEST_ANSWER}
_LARGEST_FACT = 1e9
_KEPT_FACTS: dict[str, type] = {
    "style": str, "model": str, "finish": str, "error": str, "confidence": float, "gain": float,
    "prompt_tokens": int, "new_tokens": int, "image_tokens": int, "context": int, "dropped": int,
}  # fmt: skip
_LONGEST_FACT = {"error": 1000}
"""Characters of a text, where it is not 200."""
_MOST_CHANGES = 10
_STYLE = Path(__file__).parent.parent / "static" / "export.css"


def to_json(store: Store, shelf: PictureShelf, owner: str, conversation: str) -> str:
    """The whole tree of a conversation with its pictures; see `PictureShelf.portable`.

    Raises:
        UsageError: it is not this owner's.
    """
    shown = {turn.id for turn in store.path(owner, conversation)}
    turns = store.turns(owner, conversation)
    digests = dict.fromkeys(digest for turn in turns for digest in turn.pictures)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "title": store.title(owner, conversation),
        "turns": [
            {
                "id": turn.id,
                "parent": turn.parent,
                "shown": turn.id in shown,
                "question": turn.question,
                "pictures": list(turn.pictures),
                "answer": turn.answer,
                "state": turn.state,
                "verdict": turn.verdict,
                "facts": {k: v for k, v in turn.facts.items() if k in _KEPT_FACTS},
            }
            for turn in turns
        ],
        "pictures": {
            digest: {
                **_known(store, owner, digest),
                "data": base64.b64encode(shelf.portable(digest)).decode(),
            }
            for digest in digests
            if shelf.file(digest).exists()
        },
    }
    return json.dumps(document, ensure_ascii=False, indent=1)


def _known(store: Store, owner: str, digest: str) -> dict[str, Any]:
    name, facts = store.picture(owner, digest) or ("picture", {})
    return {"name": name, "changes": facts.get("changes", [])}


def from_json(store: Store, shelf: PictureShelf, owner: str, data: bytes) -> str:
    """Reads what `to_json` wrote as a new conversation of `owner`; gives its id.

    Raises:
        DataError: it is not such a file.
        ImageError: a picture in it cannot be read.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError("This file is not JSON.", "Choose one exported here.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DataError("This file holds no conversation.", "Choose a JSON file exported here.")
    if document.get("version") != VERSION:
        raise DataError("This conversation comes from another version.", "Export it again.")
    turns = _turns(document)
    pictures = _pictures(document, {d for turn in turns for d in turn["pictures"]}, shelf)
    title = " ".join(sound(str(document.get("title") or "")).split())[:120]
    for digest, name, changes in pictures.values():
        facts = {"changes": changes, "size": list(shelf.get(digest).image.size)}
        store.remember_picture(owner, digest, name, facts)
    conversation = store.create(owner, title or title_of(turns[0]["question"], 0))
    ids: dict[str, str] = {}
    shown: str | None = None
    for turn in turns:
        parent = ids.get(str(turn.get("parent"))) if turn.get("parent") else None
        known = [pictures[digest][0] for digest in turn["pictures"] if digest in pictures]
        facts = {name: value for name, value in turn["facts"].items() if _is_fact(name, value)}
        new = store.add_turn(owner, conversation, parent, turn["question"], known)
        ends = ("answered", "stopped", "failed")
        state = turn.get("state") if turn.get("state") in ends else "stopped"
        store.finish_turn(new.id, turn["answer"], state, facts)
        if turn.get("verdict") in ("right", "wrong"):
            store.judge(owner, conversation, new.id, turn["verdict"])
        ids[turn["id"]] = new.id
        shown = new.id if turn.get("shown") else shown
    if shown is not None:
        store.show(owner, conversation, shown)
    return conversation


def _turns(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The turns of a file, which anybody may have written, in the shape that `to_json` gives them.

    All is checked before anything is kept, so that a bad file leaves nothing behind.
    """
    turns = document.get("turns")
    if not isinstance(turns, list) or not turns or len(turns) > MAX_TURNS:
        raise DataError("This file holds no questions, or too many.", "Choose one exported here.")
    for number, turn in enumerate(turns, 1):
        if not _is_turn(turn):
            raise DataError(f"Question {number} of the file is damaged.", "Export it again.")
    return turns


def _is_turn(turn: Any) -> bool:
    if not _is_dict(turn) or not _is_dict(turn.setdefault("facts", {})):
        return False
    texts = [(turn.get(key), longest) for key, longest in _LONGEST.items()]
    pictures = turn.setdefault("pictures", [])
    return (
        all(isinstance(text, str) and len(text) <= longest for text, longest in texts)
        and all(text == sound(text) for text, _ in texts)
        and isinstance(pictures, list)
        and len(pictures) <= MAX_PICTURES
        and all(isinstance(digest, str) for digest in pictures)
    )


def _is_fact(name: str, value: object) -> bool:
    """Whether it is one that is kept, and no trap such as NaN, which no browser reads as JSON."""
    kind = _KEPT_FACTS.get(name)
    if kind is str:
        longest = _LONGEST_FACT.get(name, 200)
        return isinstance(value, str) and len(value) < longest and value == sound(value)
    kinds = (int, float) if kind is float else (int,)
    plain = isinstance(value, kinds) and not isinstance(value, bool)
    return kind is not None and plain and -_LARGEST_FACT < value < _LARGEST_FACT


def _pictures(
    document: dict[str, Any], shown: set[str], shelf: PictureShelf
) -> dict[str, tuple[str, str, list[str]]]:
    """For each digest that a turn shows the true digest of its pixels, the name, and what was
    changed when it came.
    """
    found: dict[str, tuple[str, str, list[str]]] = {}
    listed = document.get("pictures")
    for digest, entry in listed.items() if _is_dict(listed) else ():
        if digest not in shown:
            continue
        try:
            name = sound(str(entry["name"]))[:120]
            data = base64.b64decode(entry["data"], validate=True)
        except (TypeError, KeyError, ValueError) as error:
            raise ImageError("A picture in the file is damaged.", "Export it again.") from error
        limits = replace(STORED_PICTURE_LIMITS, max_pixels=shelf.limits.max_pixels)
        found[digest] = (shelf.add(data, name, limits).digest, name, _changes(entry))
    return found


def _changes(entry: dict[str, Any]) -> list[str]:
    """The short texts that a file has for them; an older one has none."""
    listed = entry.get("changes")
    texts = listed[:_MOST_CHANGES] if isinstance(listed, list) else []
    return [sound(text)[:200] for text in texts if isinstance(text, str)]


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def to_html(store: Store, shelf: PictureShelf, owner: str, conversation: str) -> str:
    """One page with the shown branch and its pictures; no scripts, nothing to load.

    Raises:
        UsageError: it is not this owner's.
    """
    view = view_of(store, owner, conversation)
    title = escape(view["title"])
    parts = []
    for turn in view["turns"]:
        pictures = "".join(
            f'<figure><img src="{_inline(shelf, p["digest"])}" alt="{escape(p["name"])}">'
            f"<figcaption>Picture {p['number']} · {escape(p['name'])}</figcaption></figure>"
            for p in turn["pictures"]
        )
        model = escape(str(turn["facts"].get("model", "")))
        parts.append(
            f'<section><div class="question">{pictures}<p>{escape(turn["question"])}</p></div>'
            f'<div class="answer">{turn["html"]}</div><footer>{model}</footer></section>'
        )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\';'
        " img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{_STYLE.read_text('utf-8')}</style></head>"
        f"<body><main><h1>{title}</h1>{''.join(parts)}</main></body></html>"
    )


def _inline(shelf: PictureShelf, digest: str) -> str:
    try:
        image = shelf.get(digest).image.copy()
    except ImageError:
        return "data:,"
    image.thumbnail((1024, 1024), Image.Resampling.LANCZOS)
    stream = BytesIO()
    image.save(stream, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
