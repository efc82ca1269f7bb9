"""Export conversations: as JSON, which can be imported again, as an HTML page, or as Markdown."""

from __future__ import annotations

import base64
import re
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from html import escape
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from PIL import Image

from ui.chat.requests import MAX_PICTURES, MAX_QUESTION
from ui.chat.settings import LONGEST_ANSWER
from ui.chat.views import conversation_view, make_title
from ui.storage.database import Store
from ui.storage.owned_pictures import add_owned_picture
from ui.storage.picture_files import PictureStore
from ui.texts import entry, write
from vqa_app.errors import ImageError, UsageError
from vqa_app.pictures.picture import STORED_PICTURE_LIMITS
from vqa_app.prompts.conversation_file import ConversationFile, FilePicture, FileTurn

_STYLE = Path(__file__).parent.parent / "static" / "export.css"


def to_json(store: Store, picture_store: PictureStore, owner: str, conversation: str) -> str:
    """Return a conversation with all its turns and pictures; see `PictureStore.portable`.

    Raises:
        UsageError: The conversation does not belong to this owner.
    """
    shown = {turn.id for turn in store.path(owner, conversation)}
    turns = store.turns(owner, conversation)
    digests = dict.fromkeys(digest for turn in turns for digest in turn.pictures)
    return ConversationFile(
        title=store.title(owner, conversation),
        system=store.system_prompt(owner, conversation),
        turns=[
            FileTurn(
                id=turn.id,
                parent=turn.parent,
                shown=turn.id in shown,
                question=turn.question,
                pictures=list(turn.pictures),
                answer=turn.answer,
                state=turn.state,
                verdict=turn.verdict,
                facts=turn.facts,
            )
            for turn in turns
        ],
        pictures=_pictures(store, picture_store, owner, digests),
    ).to_json()


def _pictures(
    store: Store, picture_store: PictureStore, owner: str, digests: Iterable[str]
) -> dict[str, FilePicture]:
    """Return the pictures by digest, without those that are no longer stored."""
    found: dict[str, FilePicture] = {}
    for digest in digests:
        name, facts = store.picture(owner, digest) or ("picture", {})
        with suppress(ImageError):
            data = picture_store.export_bytes(digest)
            found[digest] = FilePicture(
                name=name,
                changes=facts.get("changes", []),
                region=facts.get("region"),
                data=data,
            )
    return found


def from_json(store: Store, picture_store: PictureStore, owner: str, data: bytes) -> str:
    """Import an exported file as a new conversation of `owner` and return its id.

    Turns are checked before anything is stored. A picture that cannot be read leaves no
    conversation behind; those before it are deleted later, like other unused ones.

    Raises:
        DataError: The file is not an exported conversation.
        ImageError: A picture in it cannot be read.
    """
    file = ConversationFile.from_json(
        data,
        max_question=MAX_QUESTION,
        max_answer=20 * LONGEST_ANSWER,
        max_pictures=MAX_PICTURES,
    )
    limits = replace(STORED_PICTURE_LIMITS, max_pixels=picture_store.limits.max_pixels)
    # A forged file may name another digest than that of the pixels.
    digests: dict[str, str] = {}
    # Regions come last, because they name the picture that they are a region of.
    for digest, picture in sorted(file.pictures.items(), key=lambda item: bool(item[1].region)):
        facts: dict[str, Any] = {}
        if region := picture.region:
            of = digests.get(region.of, region.of)
            facts["region"] = region.model_dump(mode="json") | {"of": of}
        stored = add_owned_picture(
            store,
            picture_store,
            owner,
            picture.data,
            picture.name,
            limits=limits,
            changes=picture.changes,
            facts=facts,
        )
        digests[digest] = stored.digest
    conversation = store.create(owner, file.title or make_title(file.turns[0].question, 0))
    store.set_system_prompt(owner, conversation, file.system)
    ids: dict[str, str] = {}
    shown: str | None = None
    for turn in file.turns:
        parent = ids.get(turn.parent) if turn.parent else None
        shown_pictures = [digests[digest] for digest in turn.pictures if digest in digests]
        new = store.add_turn(owner, conversation, parent, turn.question, shown_pictures)
        answer_facts = dict(turn.facts)
        if dropped := turn.facts.get("dropped_turns"):
            answer_facts["dropped_turns"] = [ids.get(before, before) for before in dropped]
        store.finish_turn(new.id, turn.answer, turn.state, answer_facts)
        if turn.verdict is not None:
            store.set_verdict(owner, conversation, new.id, turn.verdict)
        ids[turn.id] = new.id
        shown = new.id if turn.shown else shown
    if shown is not None:
        store.show_branch(owner, conversation, shown)
    return conversation


def to_html(
    store: Store, picture_store: PictureStore, owner: str, conversation: str, language: str
) -> str:
    """Return an HTML page of the shown branch, with its pictures and without scripts.

    Args:
        store: The conversations.
        picture_store: Their pictures.
        owner: Whose conversation.
        conversation: Its id.
        language: Of labels, by BCP 47 tag.

    Raises:
        UsageError: The conversation does not belong to this owner.
    """
    view = conversation_view(store, owner, conversation)
    title = escape(write(view["title"], language))
    parts = []
    if system := store.system_prompt(owner, conversation):
        label = write(entry("settings.system"), language)
        parts.append(f"<footer>{label}: {escape(system)}</footer>")
    for turn in view["turns"]:
        pictures = "".join(
            f'<figure><img src="{_inline(picture_store, p["digest"])}" alt="{escape(p["name"])}">'
            f"<figcaption>{escape(_picture('picture.title', p, language))}</figcaption></figure>"
            for p in turn["pictures"]
        )
        facts = turn["facts"]
        footer = escape(
            " · ".join(
                filter(None, (_end(turn, language), write(facts.get("model", ""), language)))
            )
        )
        answer = turn["html"]
        if right := escape(facts.get("correction", "")):
            label = write(entry("chat.corrected"), language)
            answer = f"<del>{answer}</del><p>{label}: {right}</p>"
        parts.append(
            f'<section><div class="question">{pictures}<p>{escape(turn["question"])}</p></div>'
            f'<div class="answer">{answer}</div><footer>{footer}</footer></section>'
        )
    return (
        f'<!doctype html><html lang="{language}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\';'
        " img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{_STYLE.read_text('utf-8')}</style></head>"
        f"<body><main><h1>{title}</h1>{''.join(parts)}</main></body></html>"
    )


def to_markdown(
    store: Store,
    owner: str,
    conversation: str,
    language: str,
    link: Callable[[str], str] | None = None,
) -> str:
    """Return the shown branch as Markdown, in which answers are written anyway.

    Args:
        store: The conversations.
        owner: Whose conversation.
        conversation: Its id.
        language: Of labels, by BCP 47 tag.
        link: Returns the address of a picture by its digest; None names pictures only.

    Raises:
        UsageError: The conversation does not belong to this owner.
    """
    view = conversation_view(store, owner, conversation)
    parts = [f"# {_one_line(write(view['title'], language))}"]
    if system := _one_line(store.system_prompt(owner, conversation) or ""):
        parts.append(f"*{write(entry('settings.system'), language)}: {system}*")
    for turn in view["turns"]:
        for picture in turn["pictures"]:
            name = _one_line(_picture("picture.named", picture, language))
            parts.append(f"![{name}]({link(picture['digest'])})" if link else f"*{name}*")
        parts.append("\n".join(f"> {line}".rstrip() for line in turn["question"].splitlines()))
        parts.append(turn["answer"].strip())
        facts = turn["facts"]
        if right := _one_line(facts.get("correction", "")):
            parts.append(f"**{write(entry('chat.corrected'), language)}:** {right}")
        ending = " · ".join(
            filter(None, (_end(turn, language), write(facts.get("model", ""), language)))
        )
        parts.append(f"*{_one_line(ending)}*")
    return "\n\n".join(part for part in parts if part not in ("", "**")) + "\n"


def write_all(
    store: Store, picture_store: PictureStore, owner: str, language: str, file: IO[bytes]
) -> None:
    """Write a zip file with all conversations of an owner, as Markdown with pictures and as JSON.

    Args:
        store: The conversations.
        picture_store: Their pictures.
        owner: Whose conversations.
        language: Of labels, by BCP 47 tag.
        file: Where the zip file is written.
    """
    digests: dict[str, None] = {}

    def link(digest: str) -> str:
        digests[digest] = None
        return f"pictures/{digest[:16]}.png"

    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, summary in enumerate(store.conversations(owner), 1):
            name = f"{number:03} {file_name(summary.title)}".strip()
            with suppress(UsageError):  # it was deleted meanwhile
                markdown = to_markdown(store, owner, summary.id, language, link)
                document = to_json(store, picture_store, owner, summary.id)
                archive.writestr(f"{name}.md", markdown)
                archive.writestr(f"{name}.json", document)
        for digest in digests:
            with suppress(ImageError, FileNotFoundError):
                archive.write(
                    picture_store.file(digest), link(digest), compress_type=zipfile.ZIP_STORED
                )


def file_name(title: str) -> str:
    """Return a title as the name of a file, which may be empty."""
    return re.sub(r"[^\w\- ]+", "", title)[:60].strip()


def _picture(key: str, picture: dict[str, Any], language: str) -> str:
    """Return number and name of a picture; of a region, also where it is in the whole picture."""
    name = str(picture["name"])
    if region := picture.get("region"):
        left, top, right, bottom = region["box"]
        size = entry("region.size", width=right - left, height=bottom - top, left=left, top=top)
        whole = write(entry("region.of", name=region["name"]), language)
        name = f"{whole}, {write(size, language).rstrip('.。')}"
    return write(entry(key, number=picture["number"], name=name), language)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _end(turn: dict[str, Any], language: str) -> str:
    """Return why the answer of a turn is missing or not complete, or an empty text if it is."""
    facts = turn["facts"]
    if turn["state"] == "failed":
        return write(facts.get("text") or entry("page.failed"), language)
    if not turn["answer"]:
        return write(entry("chat.stoppedEarly"), language)
    return write(facts["ended"], language)


def _inline(picture_store: PictureStore, digest: str) -> str:
    try:
        image = picture_store.get(digest).image.copy()
    except ImageError:
        return "data:,"
    image.thumbnail((1024, 1024), Image.Resampling.LANCZOS)
    stream = BytesIO()
    image.save(stream, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
