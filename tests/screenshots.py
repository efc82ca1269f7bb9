"""Makes the pictures of the page that the README shows, on the built-in model.

    python -m tests.screenshots [FOLDER]

FOLDER is `tests/screenshots` unless given. Needs chromium.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from finetune.builtin.world import ROOMS, make_scene
from tests.browser.conftest import Visitor
from tests.ui_server import running
from ui.choices import BUILTIN, load

WIDE = {"viewport": {"width": 1280, "height": 800}}
PHONE = {
    "viewport": {"width": 390, "height": 780}, "device_scale_factor": 2,
    "is_mobile": True, "has_touch": True,
}  # fmt: skip


def shoot(visitor: Visitor, folder: Path, name: str) -> None:
    visitor.page.wait_for_timeout(500)  # colours and places settle
    image = Image.open(BytesIO(visitor.page.screenshot()))
    image.save(folder / f"{name}.webp", quality=82, method=6)


def scene(folder: Path, seed: int, room: str) -> Path:
    made = make_scene(seed, room, "test")
    file = folder / f"{room}.png"
    ROOMS[room].draw(made).save(file)
    return file


def chat(visitor: Visitor, folder: Path, work: Path) -> None:
    page = visitor.page
    shoot(visitor, folder, "home")
    visitor.attach(scene(work, 5, "shapes"))
    visitor.ask("What shape is the striped black one?")
    visitor.ask("How many shapes are there?")
    page.locator(".foot .look").first.click()
    page.wait_for_selector(".overlay canvas, #sheet .note")
    shoot(visitor, folder, "looked")
    page.keyboard.press("Escape")
    page.mouse.move(900, 300)
    shoot(visitor, folder, "chat")
    page.click("[data-do=theme]")
    shoot(visitor, folder, "dark")
    page.click("[data-do=theme]")


def teach(visitor: Visitor, folder: Path) -> None:
    page = visitor.page
    page.get_by_label("This is right").first.click()
    page.wait_for_selector("[aria-label='This is right'][aria-pressed=true]")
    page.get_by_label("This is wrong").last.click()
    page.fill(".correction input", "Three.")
    shoot(visitor, folder, "teach")
    page.press(".correction input", "Enter")
    page.click("nav [data-view-of=train]")
    page.wait_for_selector("[name=source]:checked")
    page.click("text=Check the data first")
    page.wait_for_selector("#preflight .badge")
    shoot(visitor, folder, "train")


def main(folder: Path) -> None:
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        work = Path(temporary)

        def loaded(choice: Any, progress: Any) -> Any:
            return load(BUILTIN, progress)

        with running({}, work / "data", load=loaded, choices=lambda: [BUILTIN]) as server:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            visitor = Visitor(browser, server.address, **WIDE)
            visitor.open()
            chat(visitor, folder, work)
            teach(visitor, folder)
            phone = Visitor(browser, server.address, **PHONE)
            phone.open()
            phone.page.locator("#cards .card").first.tap()
            phone.answered()
            shoot(phone, folder, "phone")
            browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "screenshots")
