"""Fixtures: a server with a fake engine, and Chromium to visit it."""

from __future__ import annotations

import importlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.fake_engine import FakeEngine
from tests.ui.server import RunningServer, running
from tests.waiting import PATIENCE, until

WAIT = 1000 * PATIENCE
"""Milliseconds that anything on the page may take; long, because machines are shared."""
_KEEP_NOTICES = """(() => {
  const real = window.setTimeout;
  window.setTimeout = (callback, delay, ...values) =>
    String(callback).includes("node.remove()") ? 0 : real(callback, delay, ...values);
})()"""
"""Keeps notices on the page, which otherwise disappear before a slow machine has checked them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every browser test as slow."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


def import_or_skip(name: str):
    """Import a module, or skip the test without it unless VQA_REQUIRE_BROWSER=1."""
    required = os.environ.get("VQA_REQUIRE_BROWSER") == "1"
    return importlib.import_module(name) if required else pytest.importorskip(name)


def expect(what: Any) -> Any:
    """Return Playwright's assertions for a page or locator, which wait until they hold."""
    return import_or_skip("playwright.sync_api").expect(what)


def wait_for(page: Any, script: str) -> None:
    """Wait until a script is true in the page.

    Playwright's `wait_for_function` evaluates strings in the page, which its policy forbids.
    """
    until(lambda: page.evaluate(script))


@pytest.fixture(scope="session")
def playwright_chromium():
    """Return a function that starts Chromium with command-line options."""
    playwright = import_or_skip("playwright.sync_api")
    playwright.expect.set_options(timeout=WAIT)
    path = chromium()
    if path is None:
        if os.environ.get("VQA_REQUIRE_BROWSER") == "1":
            pytest.fail("VQA_REQUIRE_BROWSER=1, but there is no chromium.")
        pytest.skip("no chromium here: apt-get install chromium")
    with playwright.sync_playwright() as started:

        @contextmanager
        def launched(*options: str) -> Iterator[Any]:
            arguments = ["--no-sandbox", *options]
            found = started.chromium.launch(executable_path=path, args=arguments, timeout=WAIT)
            yield found
            found.close()

        yield launched


@pytest.fixture(scope="session")
def browser(playwright_chromium):
    # Tabs of a visitor share a process, and so what it has loaded for the tests before.
    with playwright_chromium("--renderer-process-limit=1") as found:
        yield found


class Site:
    """The server of the session; each test configures its engine."""

    def __init__(self, running: RunningServer, engine: FakeEngine) -> None:
        self.address, self.application, self.engine = running.address, running.application, engine


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Iterator[Site]:
    engine = FakeEngine()
    other = FakeEngine("The other model says hello.")
    with running({"fake": engine, "other": other}, tmp_path_factory.mktemp("data")) as found:
        yield Site(found, engine)


@pytest.fixture
def engine(site) -> Iterator[FakeEngine]:
    """Provide the engine behind the page and reset it after the test."""
    yield site.engine
    site.engine.reset()


@pytest.fixture
def gate(engine) -> Iterator[threading.Event]:
    """Provide an event that code may wait for; it is set when the test ends."""
    event = threading.Event()
    yield event
    event.set()


def new_context(browser, **options) -> Any:
    """Create a browser profile."""
    context = browser.new_context(
        **{"viewport": {"width": 1280, "height": 820}, "locale": "en", **options}
    )
    context.set_default_timeout(WAIT)
    context.add_init_script(_KEEP_NOTICES)
    return context


class Contexts:
    """Browser profiles that one test after another uses: a new one takes over a second.

    The first page of each stays open, so that its process does.
    """

    def __init__(self, browser) -> None:
        self._browser, self._free = browser, []

    def take(self) -> Any:
        if self._free:
            return self._free.pop()
        context = new_context(self._browser)
        context.new_page()
        return context

    def give_back(self, context: Any, address: str) -> None:
        """Close the pages of a profile and delete what they stored."""
        kept, *pages = context.pages
        for page in pages:
            page.close()
        context.set_offline(False)
        context.unroute_all()
        context.clear_permissions()
        if kept.url == "about:blank":
            kept.goto(address + "vqa/icon.svg")
        context.clear_cookies()
        session = context.new_cdp_session(kept)
        session.send("Network.clearBrowserCache")
        origin = address.rstrip("/")
        session.send("Storage.clearDataForOrigin", {"origin": origin, "storageTypes": "all"})
        session.detach()
        self._free.append(context)


@pytest.fixture(scope="session")
def contexts(browser) -> Contexts:
    return Contexts(browser)


class Visitor:
    """A browser profile with one tab that records errors and external requests.

    Args:
        browser: Where a profile is created.
        address: The page.
        contexts: Where a profile is taken from instead.
        options: Options of the profile that is created.

    Attributes:
        changed: Whether the profile must not be used again: its clock is replaced, or scripts were
            added to its pages.
    """

    def __init__(self, browser, address: str, contexts: Contexts | None = None, **options) -> None:
        self.address, self.changed = address, False
        self._contexts = contexts
        self.context = contexts.take() if contexts else new_context(browser, **options)
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.page = self.tab()

    def tab(self):
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._note)
        return page

    def close(self) -> None:
        if self._contexts is None or self.changed:
            self.context.close()
        else:
            self._contexts.give_back(self.context, self.address)

    def _note(self, request) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.outside.append(request.url)

    def open(self, page=None, path: str = ""):
        page = page or self.page
        page.goto(self.address + path)
        page.wait_for_selector("#cards .card", state="attached")
        return page

    def ask(self, question: str, wait: bool = True) -> None:
        before = self.page.locator("article.turn").count()
        self.page.fill("#question", question)
        self.page.press("#question", "Enter")
        if wait:
            self.page.locator("article.turn").nth(before).wait_for()
            self.answered()

    def answered(self) -> None:
        self.page.wait_for_selector("#log[aria-busy=false] article:last-child .foot *")

    @property
    def answers(self) -> Any:
        return self.page.get_by_test_id("bot")

    @property
    def questions(self) -> Any:
        return self.page.locator(".bubble")

    def attach(self, *files) -> None:
        before = self.page.locator("#tray .thumb img").count()
        self.page.set_input_files("#files", [str(file) for file in files])
        self.page.locator("#tray .thumb img").nth(before + len(files) - 1).wait_for()


@pytest.fixture
def visit(browser, contexts, site, engine):
    """Return a function that opens the page for a new visitor; errors fail the test."""
    visitors: list[Visitor] = []

    def open_page(path: str = "", **options) -> Visitor:
        shared = None if options else contexts
        visitors.append(Visitor(browser, site.address, shared, **options))
        visitors[-1].open(path=path)
        return visitors[-1]

    yield open_page
    for visitor in visitors:
        visitor.close()
    for visitor in visitors:
        assert not visitor.errors
        assert not visitor.outside


@pytest.fixture
def pictures(tmp_path):
    """Two picture files."""
    made = []
    for colour in ("red", "blue"):
        made.append(tmp_path / f"{colour}.png")
        Image.new("RGB", (120, 90), colour).save(made[-1])
    return made
