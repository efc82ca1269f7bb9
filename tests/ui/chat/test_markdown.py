"""Rendering of answers as HTML, and its safety."""

from __future__ import annotations

import sys
from html.parser import HTMLParser

import pytest

from ui.chat.markdown import to_html


def test_tables_code_lists_and_emphasis_are_rendered():
    html = to_html(
        "**two** things\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nx = 1\n```\n- one"
    )
    for tag in ("<strong>two</strong>", "<td>1</td>", 'class="language-python"', "<li>one</li>"):
        assert tag in html
    assert '<span class="n">x</span>' in html


@pytest.mark.parametrize("source", [r"\(x^2\)", "$x^2$", r"\[x^2\]", "$$x^2$$", "so $$x^2$$ is"])
def test_latex_becomes_mathml(source):
    assert "<msup>" in to_html(source)
    assert "$" not in to_html(source)
    assert "\\" not in to_html(source)


@pytest.mark.parametrize("name", ["aligned", "align", "align*", "gathered", "gather", "split"])
@pytest.mark.parametrize("around", [r"$$%s$$", r"\[%s\]"])
def test_multiline_environments_become_mathml(name, around):
    html = to_html(around % rf"\begin{{{name}}} x &= 1 \\ y &= 2 \end{{{name}}}")
    assert html.count("<mtr>") == 2
    assert "\\" not in html


@pytest.mark.parametrize(
    "text",
    [
        "text\n\\[\nx^2\n\\]\nmore",
        "text \\[x^2\\] more",
        "\\[x^2\\] more text",
        "text \\[x^2\\] (1) more",
        "text\n\\[x^2\\]\n(1) more",
        "text\n\\[\nx^2\n- y\n\n= z\n\\]\nmore",
        "- text \\[x^2\\]\n- more",
        "1. text\n   \\[\n   x^2\n   - y\n   \\]\n2. more",
        "1. text\n\n   \\[\n   x^2\n   \\]\n\n2. more",
        "- text\n\\[\nx^2\n\\]\nmore",
        "> text\n> \\[\n> x^2\n> + y\n> \\]\n\nmore",
        "| text |\n|---|\n| \\[x^2\\] |\n\nmore",
        "**text \\[x^2\\]** more",
        "text\n\\[\n    x^2\n\\]\nmore",
        "text\n    \\[x^2\\]\nmore",
    ],
)
def test_bracketed_formulas_become_mathml_everywhere(text):
    html = to_html(text)
    assert html.count("<msup>") == html.count('display="block"') == 1
    assert "text" in html
    assert "more" in html
    assert "&gt;" not in html
    assert "<code>" not in html
    assert "<h" not in html
    assert not set("\\[]") & set(html)


@pytest.mark.parametrize(
    "text", ["`\\[x^2\\]`", "```\n\\[x^2\\]\n```", "    \\[x^2\\]", "\\[ \\]", "\\[x"]
)
def test_brackets_in_code_or_without_a_formula_stay_text(text):
    assert "<math" not in to_html(text)


@pytest.mark.parametrize("name", ["align", "align*", "gather", "equation"])
def test_environments_without_dollars_become_mathml(name):
    html = to_html(f"So\n\\begin{{{name}}}\nx^2\n\\end{{{name}}}\nand on")
    assert "<msup>" in html
    assert "\\" not in html
    assert "and on" in html


@pytest.mark.parametrize("source", ["It costs $5 and $10.", "a $ b $ c"])
def test_prices_are_not_formulas(source):
    assert "<math" not in to_html(source)


@pytest.mark.parametrize("source", [r"$\frac{$", r"\(\begin{x}\)", "$" + "x" * 5000 + "$", r"$\\$"])
def test_invalid_latex_is_shown_as_code(source):
    assert to_html(f"before {source} after").startswith("<p>before")


@pytest.mark.parametrize(
    "attack",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "<form action=http://evil.example><input></form>",
        "![beacon](http://evil.example/pixel.png)",
        "[click](javascript:alert(1))",
        "[click](data:text/html,<script>alert(1)</script>)",
        "<a href='javascript:alert(1)'>x</a>",
        r"$\text{<img src=x onerror=alert(1)>}$",
        r"$\href{javascript:alert(1)}{x}$",
        r"$\style{position:fixed}{x}$",
        "\\begin{align}\n\\href{javascript:alert(1)}{x}\n\\end{align}",
        r"$\class{x}{y} \text{a}\\\href{http://evil.example}{b}$",
        "```<img src=x>\nx\n```",
        "| <img src=x> |\n|---|\n| <script>x</script> |",
    ],
)
def test_an_answer_cannot_run_scripts_or_load_resources(attack):
    tags = Tags()
    tags.feed(to_html(attack))
    names = {name for name, _ in tags.found}
    attributes = {attribute for _, found in tags.found for attribute in found}
    assert not names & {"script", "img", "form", "input", "iframe", "object", "style", "link"}
    assert not {name for name, _ in attributes if name.startswith("on") or name in ("src", "style")}
    assert not {value for name, value in attributes if "script" in value or "data:" in value}


class Tags(HTMLParser):
    """Collects tags with their attributes, as a browser reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, str]]]] = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, [(name, value or "") for name, value in attributes]))


def test_every_prefix_of_an_answer_renders():
    whole = "A **bold** claim: $x^2$\n\n```python\nprint(1)\n```\n\n| a |\n|---|\n| b |"
    for end in range(len(whole)):
        to_html(whole[:end])


def test_the_search_for_the_end_of_a_formula_is_limited():
    """Otherwise thousands of opening delimiters would take seconds."""
    assert "<math" in to_html("\\(" + "x" * 900 + "\\)")
    assert "<code" not in to_html("\\(" + "x" * 3000 + "\\)")

    def steps(count: int) -> int:
        executed = 0

        def count_lines(frame, event, argument):
            nonlocal executed
            executed += 1
            return count_lines

        previous = sys.gettrace()
        sys.settrace(count_lines)
        try:
            to_html.__wrapped__("\n\n\\begin{align}" * count)
        finally:
            sys.settrace(previous)
        return executed

    steps(1)
    assert steps(800) < 5 * steps(200)


def test_rendered_answers_are_cached():
    assert to_html("An *answer*.") is to_html("An *answer*.")


def test_links_send_no_referrer():
    assert 'rel="noreferrer noopener nofollow"' in to_html("[x](https://example.org)")


def test_task_lists_have_check_boxes():
    html = to_html("- [ ] **open**\n- [x] done\n- [y] no\n\n[ ] no")
    assert "<li>☐ <strong>open" in html
    assert "<li>☑ done" in html
    assert "[y] no" in html
    assert "<p>[ ] no" in html
