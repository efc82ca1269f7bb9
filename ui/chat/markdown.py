"""Renders answers as safe HTML: Markdown, tables, code and LaTeX.

HTML in an answer is shown as text, `javascript:` links stay text (a rule of markdown-it), and
pictures are named instead of loaded. The page and the exported file use the same HTML.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from html import escape
from typing import Any
from xml.etree import ElementTree

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

_LONGEST_FORMULA = 2000
_MAX_LINES = 100
_MATH_ATTRIBUTES = {
    *("display", "displaystyle", "scriptlevel", "mathvariant", "mathcolor", "mathbackground"),
    *("stretchy", "fence", "separator", "form", "symmetric", "minsize", "maxsize", "lspace"),
    *("rspace", "largeop", "movablelimits", "accent", "accentunder", "linethickness", "notation"),
    *("columnalign", "columnlines", "rowlines", "columnspacing", "rowspacing", "frame"),
    *("width", "height", "depth", "voffset"),
}
"""Allowed attributes of MathML: LaTeX can also produce links and styles (`\\href`, `\\style`)."""
_ENVIRONMENTS = {
    **{"aligned": "align*", "gathered": "matrix", "gather": "matrix", "gather*": "matrix"},
    **{"dcases": "cases", "equation": "", "equation*": ""},
}
"""Environments that the converter does not know, and one that looks the same."""


@lru_cache(1024)  # each view of a chat shows all its answers
def to_html(text: str) -> str:
    """Render a complete answer."""
    return partial_html(text)


def partial_html(text: str) -> str:
    """Render an answer in progress.

    Not cached: the next version is longer, and would displace complete answers from the cache.
    """
    return _renderer().render(text)


@lru_cache(4096)  # each list of chats has one
def first_words(text: str, most: int = 100) -> str:
    """Return the beginning of an answer as one line of plain text."""
    inline = (token for token in _renderer().parse(text) if token.type in ("inline", "fence"))
    words: list[str] = []
    for token in inline:
        parts = [part.content or " " for part in token.children or [token]]
        words += "".join(parts).split()
        if len(" ".join(words)) > most:
            break
    return " ".join(words)[:most]


@cache
def _renderer() -> MarkdownIt:
    from mdit_py_plugins.amsmath import amsmath_plugin
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    markdown = MarkdownIt(
        "commonmark",
        {"html": False, "linkify": False, "breaks": True, "highlight": _highlight},
    ).enable(["table", "strikethrough"])
    also = ["paragraph", "reference", "blockquote", "list"]  # blocks that this one may interrupt
    markdown.block.ruler.before("fence", "brackets", _display_formula, {"alt": also})
    markdown.inline.ruler.before("escape", "brackets", _brackets)
    markdown.use(dollarmath_plugin, allow_space=False, allow_digits=False, double_inline=True)
    markdown.use(amsmath_plugin)
    markdown.core.ruler.push("tasks", _check_boxes)
    markdown.block.ruler.at("amsmath", _short_environment, {"alt": also})
    for name in ("math_inline", "math_inline_double", "math_block", "math_block_label", "amsmath"):
        markdown.add_render_rule(name, _math)
    markdown.add_render_rule("image", _image)
    markdown.add_render_rule("link_open", _link)
    markdown.add_render_rule("table_open", lambda *_: '<div class="table" tabindex="0"><table>\n')
    markdown.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return markdown


def _display_formula(state: StateBlock, first: int, end: int, silent: bool) -> bool:
    r"""Parse `\[...\]` on lines of its own, also directly below a line of text."""
    start = state.bMarks[first] + state.tShift[first]
    close = _end_of_formula(state.src, start, "\\[", "\\]")
    if close is None or state.is_code_block(first):
        return False
    last = first
    while last < end and state.eMarks[last] < close:
        last += 1
        if last < end and not state.isEmpty(last) and state.sCount[last] < state.blkIndent:
            return False  # the list item ended before the formula
    if last >= end or state.src[close + 2 : state.eMarks[last]].strip():
        return False  # text follows on the same line: an inline formula
    if not silent:
        token = state.push("math_block", "math", 0)
        token.block = True
        token.content = state.getLines(first, last + 1, state.blkIndent, False).strip()[2:-2]
        token.map = [first, last + 1]
        state.line = last + 1
    return True


def _brackets(state: StateInline, silent: bool) -> bool:
    r"""Parse `\(...\)` and `\[...\]` within a text."""
    for opening, closing, kind in (
        ("\\(", "\\)", "math_inline"), ("\\[", "\\]", "math_inline_double")
    ):  # fmt: skip
        close = _end_of_formula(state.src, state.pos, opening, closing)
        if close is not None:
            if not silent:
                state.push(kind, "math", 0).content = state.src[state.pos + 2 : close]
            state.pos = close + 2
            return True
    return False


def _end_of_formula(text: str, start: int, opening: str, closing: str) -> int | None:
    """Return where the closing delimiter begins of a formula that begins at `start`.

    Returns None if there is no formula or it is empty. The search is limited to the longest
    formula, because a hostile text may have thousands of opening delimiters.
    """
    if not text.startswith(opening, start):
        return None
    close = text.find(closing, start + 2, start + _LONGEST_FORMULA + 4)
    return close if close > 0 and text[start + 2 : close].strip() else None


def _short_environment(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Parse LaTeX environments of at most `_MAX_LINES` lines."""
    from mdit_py_plugins.amsmath import amsmath_block

    return amsmath_block(state, start, min(end, start + _MAX_LINES), silent)


def _check_boxes(state: Any) -> None:
    """Replace `[ ]` and `[x]` at the start of list items by boxes."""
    boxes = {"[ ] ": "☐ ", "[x] ": "☑ ", "[X] ": "☑ "}
    for item, token in zip(state.tokens, state.tokens[2:], strict=False):
        if item.type == "list_item_open" and token.type == "inline" and token.children:
            first = token.children[0]
            if first.type == "text" and (box := boxes.get(first.content[:4])):
                first.content = box + first.content[4:]


def _math(_: Any, tokens: Sequence[Token], index: int, *rest: Any) -> str:
    token = tokens[index]
    block = token.block or token.type == "math_inline_double"
    return formula(token.content, block)


def formula(source: str, block: bool = False) -> str:
    """Convert LaTeX to MathML; text that is not valid LaTeX becomes code."""
    from latex2mathml.converter import convert

    source = source.strip()
    try:
        if len(source) > _LONGEST_FORMULA:
            raise ValueError("too long")
        known = re.sub(r"\\(begin|end)\{(\w+\*?)\}", _environment, source)
        tree = ElementTree.fromstring(convert(known, display="block" if block else "inline"))
        return ElementTree.tostring(
            _sanitised(tree), encoding="unicode", short_empty_elements=False
        )
    except Exception:  # the parser raises many types on invalid LaTeX, even IndexError
        return f"<code>{escape(source)}</code>"


def _environment(found: re.Match[str]) -> str:
    name = _ENVIRONMENTS.get(found[2], found[2])
    return f"\\{found[1]}{{{name}}}" if name else ""


def _sanitised(tree: ElementTree.Element) -> ElementTree.Element:
    """Keep only MathML elements and harmless attributes."""
    for element in tree.iter():
        name = element.tag.rpartition("}")[2]
        element.tag = name if name == "math" or name.startswith("m") else "mtext"
        for attribute in set(element.attrib) - _MATH_ATTRIBUTES:
            del element.attrib[attribute]
    return tree


def _image(_: Any, tokens: Sequence[Token], index: int, *rest: Any) -> str:
    return f'<span class="no-image">[picture: {escape(tokens[index].content or "no name")}]</span>'


def _link(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    tokens[index].attrSet("target", "_blank")
    tokens[index].attrSet("rel", "noreferrer noopener nofollow")
    return renderer.renderToken(tokens, index, options, env)


def _highlight(code: str, language: str, _: Any) -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_by_name(language) if language else None
    except ClassNotFound:
        lexer = None
    return highlight(code, lexer, HtmlFormatter(nowrap=True)) if lexer else escape(code)
