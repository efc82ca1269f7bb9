"""Marks inside a text that stand for a picture, as the data of many model families writes them.

`<image>` is LLaVA's, and that of LLaMA-Factory, ms-swift and InternVL. Data that was rendered for
one model, or copied from its chat template, has that model's own marks instead. All of them mean
the same, so they are read alike. Placeholders and control tokens that stand for anything else
would be trained letter by letter; `find_foreign` finds them, so that the row is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

PLACEHOLDER = "<image>"

_NUMBERED = r"<\|?image[ _-]?(?P<{}>\d+)\|?>"  # MMMU, MiniCPM-V, Phi-3-vision, ShareGPT
_TOKEN = "|".join(
    (
        r"<image>",
        r"<imagehere>",  # MiniGPT-4, XComposer
        r"<\|image\|>",  # Llama 3.2, Gemma 4, mPLUG-Owl, Qwen2.5-Omni
        r"<\|image_pad\|>",  # Qwen2-VL
        r"<\|img\|>",  # Aria
        r"<\|?image_placeholder\|?>",  # DeepSeek-VL, ERNIE
        r"<image_soft_token>",  # Gemma 3
        r"<im_patch>",  # LLaVA's first version
        r"<img_context>",  # InternVL
        r"<\|media_pad\|>",  # Kimi-VL
    )
)
_OPENING = (
    r"<\|vision_(start|bos)\|>|<\|begin_of_image\|>|<\|image_start\|>|<fake_token_around_image>"
    r"|<im_start>|<img>|<\|media_start\|>image<\|media_content\|>|<start_of_image>|<\|image>"
)
_CLOSING = (
    r"<\|vision_(end|eos)\|>|<\|end_of_image\|>|<\|image_end\|>|<fake_token_around_image>"
    r"|<im_end>|</img>|<\|media_end\|>|<end_of_image>|<image\|>"
)
_MARK = re.compile(
    r"(<image_id>(?P<id>\d+)</image_id>)?"  # MiniCPM-V, as is the next line; Mantis
    r"(\(<image>\./</image>\)|<image>(\./|<image>|(<unk>)+|(<\|image_pad\|>)+)</image>)"
    rf"|({_OPENING})(({_TOKEN}|<\|endoftext\|>)+|{_NUMBERED.format('inner')})({_CLOSING})"
    rf"|(Picture \d+: *)?<img>(?P<path>[^<>]*)</img>"  # Qwen-VL
    rf"|{_NUMBERED.format('number')}"
    rf"|(?!<im_patch>|<img_context>|<\|media_pad\|>|<image_soft_token>)({_TOKEN})"
    r"|<start_of_image>|(<image_soft_token>)+"  # Gemma 3; a picture has many soft tokens
    rf"|\[IMG\](?![^\[]{{0,500}}\[/IMG\])",  # Pixtral; with an end it is a forum's
    re.IGNORECASE,
)
_OBJECT_PLACEHOLDER = re.compile(
    r"<ref-object>|<bbox>(?!.{0,500}</bbox>)", re.IGNORECASE | re.DOTALL
)
"""Matches what ms-swift replaces by a row's `objects`; `<bbox>...</bbox>` holds its own value."""
_CONTROL_TOKEN = re.compile(
    r"(?P<token><\|(vision|image|img|video|audio|media|object_ref|box|quad)\w*\|>"
    r"|<\|(begin|end)_of_(image|video)\w*\|>"
    r"|<im_patch>|<img_context>|<fake_token_around_image>|<global-img>|<cot-process>|<start-image>"
    r"|<row_\d+_col_\d+>|<patch_index_\d+>"  # Idefics, Kosmos-2
    r"|<\|(image|audio|video)>|<(image|audio|video)\|>|<end_of_image>"  # Gemma
    r"|</?(image_id|slice)>"  # MiniCPM-V
    r"|<\|/?(ref|det|grounding)\|>)",  # DeepSeek
    re.IGNORECASE,
)
_END_WITHOUT_START = re.compile(
    r"\A(?!.*<(image|img)\s).*?(?P<token></(image|img)>)", re.IGNORECASE | re.DOTALL
)
"""Matches up to an end token; a tag of SVG or HTML, such as `<image href="a.png">`, has an end."""
_OTHER_MEDIUM = re.compile(r"\A\s*(<video>|<audio>)|(<video>|<audio>)\s*\Z")
"""Matches only at the ends of a text: HTML has such tags as well."""


@dataclass(frozen=True)
class PictureMark:
    """A mark in a text."""

    text: str
    number: int | None = None
    """The picture's number, as written; None if the mark has none."""
    path: str = ""
    """The picture's path, if the mark contains it."""


def split_at_marks(text: str) -> Iterator[str | PictureMark]:
    """Yield the pieces of a text: the marks of pictures, and the text around them."""
    start = 0
    for match in _MARK.finditer(text):
        yield text[start : match.start()]
        number = match["number"] or match["inner"] or match["id"]
        path = (match["path"] or "").strip()
        yield PictureMark(match[0], int(number) if number else None, path)
        start = match.end()
    yield text[start:]


def count_marks(text: str) -> int:
    """Return the number of picture marks in a text."""
    return sum(isinstance(piece, PictureMark) for piece in split_at_marks(text))


def replace_marks(text: str, replacement: str) -> str:
    """Return the text with another text in place of each picture mark."""
    return _MARK.sub(lambda _: replacement, text)


def find_foreign(text: str) -> tuple[str, str] | None:
    """Find what stands for something other than a picture.

    Args:
        text: A text without picture marks.

    Returns:
        What was found, with a description, and a hint; None if the text is plain.
    """
    if found := _OBJECT_PLACEHOLDER.search(text):
        return f"{found[0]}, which stands for a value under 'objects'", "Write the value itself."
    if found := _CONTROL_TOKEN.search(text) or _END_WITHOUT_START.search(text):
        hint = f"Remove it; mark pictures {PLACEHOLDER}."
        return f"{found['token']}, a control token of another model", hint
    if found := _OTHER_MEDIUM.search(text):
        return found[0].strip(), f"Only pictures are read, marked {PLACEHOLDER}."
    return None
