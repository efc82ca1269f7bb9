"""The texts of the page: one catalogue for each language, `ui/static/texts/TAG.json`.

A catalogue maps keys to texts with `{placeholders}`; a text with a number may have several plural
forms (`Intl.PluralRules`). The page gets the catalogue of its language with its scripts. The server
sends it entries of the catalogue, never texts in a language.

Messages of the packages are English, since the shell and programs read them, too. Those that people
meet on the page are in the catalogue under `server.`; `find_texts` finds them by their English
text, as gettext does. Others are shown in English.
"""

from __future__ import annotations

import json
import re
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, TypeAlias

from vqa_app.files import format_bytes

FOLDER = Path(__file__).parent / "static" / "texts"
ENGLISH = "en"
COOKIE = "vqa-language"
"""Name of the cookie with the language that a person chose on the page."""

Entry: TypeAlias = dict[str, Any]
"""A text of the catalogue for the page, `{"key": ..., "values": {...}}`; a size, `{"bytes": ...}`;
or a share from 0 to 1, `{"share": ...}`."""
Catalogue: TypeAlias = dict[str, str | dict[str, str]]


def entry(key: str, **values: Any) -> Entry:
    """Return a text of the catalogue, which the page writes in its language."""
    return {"key": key, "values": values}


@cache
def catalogue(language: str) -> Catalogue:
    """Return the texts of a language by key."""
    found: Catalogue = json.loads((FOLDER / f"{language}.json").read_text("utf-8"))
    return found


@cache
def language_names() -> dict[str, str]:
    """Return the name of each language in that language, by BCP 47 tag."""
    tags = sorted(file.stem for file in FOLDER.glob("*.json"))
    return {tag: str(catalogue(tag)["language.name"]) for tag in tags}


def choose_language(accepted: str, chosen: str = "") -> str:
    """Return the tag of the language for a visitor, English if there is no better one.

    Args:
        accepted: The browser's `Accept-Language` header.
        chosen: The tag that the person chose on the page, if any.
    """
    if chosen in language_names():
        return chosen
    tags = {_main(tag): tag for tag in language_names()}
    weighted = sorted(map(_weighted, accepted.split(",")), reverse=True, key=lambda one: one[0])
    wanted = (tags[_main(tag)] for weight, tag in weighted if weight and _main(tag) in tags)
    return next(wanted, ENGLISH)


def _main(tag: str) -> str:
    return tag.strip().lower().partition("-")[0]


def _weighted(part: str) -> tuple[float, str]:
    """Return weight and tag of a part of the header, such as `de-CH;q=0.8`."""
    tag, _, weight = part.partition(";")
    found = re.fullmatch(r"\s*q=([\d.]+)\s*", weight)
    try:
        return (float(found[1]) if found else 1.0), tag
    except ValueError:
        return 0.0, tag


def fill(template: str, language: str) -> str:
    """Return HTML with `{{key}}` replaced by texts, and `{{language}}` by the tag."""
    texts = {**catalogue(language), "language": language}
    return re.sub(r"\{\{([\w.]+)\}\}", lambda found: escape(str(texts[found[1]])), template)


def to_script(language: str) -> str:
    """Return the JavaScript that defines the catalogue of a language, and all languages' names."""
    texts = catalogue(language if language in language_names() else ENGLISH)
    values = {"TEXTS": texts, "LANGUAGES": language_names()}
    lines = (
        f"const {name} = {json.dumps(value, ensure_ascii=False)};\n"
        for name, value in values.items()
    )
    return '"use strict";\n' + "".join(lines)


def write(text: Entry | str | float | list[Entry | str], language: str) -> str:
    """Return texts without plural forms in a language, as the page writes them."""
    if isinstance(text, list):
        return " ".join(write(one, language) for one in text)
    if not isinstance(text, dict):
        return str(text)
    if "bytes" in text:
        return format_bytes(text["bytes"])
    if "share" in text:
        return f"{100 * text['share']:g} %"
    template = catalogue(language)[text["key"]]
    if not isinstance(template, str):  # only English, German, Spanish and French have two forms
        one = text["values"]["count"] == 1 and "one" in template
        template = template["one" if one else "other"]
    return template.format(
        **{name: write(value, language) for name, value in text["values"].items()}
    )


@cache
def _server_patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Return the keys of the packages' texts with patterns of their English, longest first."""
    texts = {key: str(text) for key, text in catalogue(ENGLISH).items() if key[:7] == "server."}
    return tuple(
        (key, re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(text)), re.DOTALL))
        for key, text in sorted(texts.items(), key=lambda one: -len(one[1]))
    )


def find_texts(message: str) -> list[Entry | str]:
    """Return the catalogue's entries for an English message of the packages.

    Sentences that the catalogue does not have stay as they are.
    """
    found: list[Entry | str] = []
    while message:
        ends = [end.start() for end in re.finditer(r"(?<=[.:]) ", message)] + [len(message)]
        end = next((end for end in ends if _find(message[:end])), ends[0])
        found.append(_find(message[:end]) or message[:end])
        message = message[end:].lstrip()
    return found


def model_label(label: str) -> Entry | str:
    """Return the name of a model: the built-in one's in the page's language."""
    own = label == catalogue(ENGLISH)["server.builtIn"]
    return entry("server.builtIn") if own else label


def _find(text: str) -> Entry | None:
    for key, pattern in _server_patterns():
        if match := pattern.fullmatch(text):
            return entry(key, **{name: _value(value) for name, value in match.groupdict().items()})
    return quantity(text)


def _value(value: str) -> Entry | str | float:
    """Return a value of a message such that the page writes it as its language does."""
    if re.fullmatch(r"\d{1,3}(,\d{3})+", value):
        return int(value.replace(",", ""))
    if re.fullmatch(r"\d+\.\d+", value):
        return float(value)
    return quantity(value) or (_find(value) if len(value) > 1 else None) or value


_BYTES = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
_COUNTED = {
    "row": "teach.rows",
    "answer": "train.answers",
    "picture": "train.pictures",
    "question": "train.questions",
    "step": "train.steps",
}


def quantity(text: str) -> Entry | None:
    """Return a number with its unit: "1.0 GB", "50.0 %", "3 rows"; None for another text."""
    if size := re.fullmatch(r"(\d+(?:\.\d+)?) (kB|MB|GB)", text):
        return {"bytes": round(float(size[1]) * _BYTES[size[2]])}
    if share := re.fullmatch(r"(\d+(?:\.\d+)?) %", text):
        return {"share": round(float(share[1]) / 100, 6)}
    counted = re.fullmatch(r"([\d,]+) ([a-z]+?)s?", text)
    if counted and counted[2] in _COUNTED:
        return entry(_COUNTED[counted[2]], count=int(counted[1].replace(",", "")))
    return None
