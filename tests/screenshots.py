"""Take the screenshots of the README with the built-in model.

    python -m tests.screenshots [FOLDER]

FOLDER defaults to `tests/screenshots`. Needs Chromium.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image

from finetune.pretrain.world import ROOMS, make_scene
from tests.finetune.blorps import blorp
from tests.ui.browser.conftest import Visitor
from tests.ui.server import running
from vqa_app.serving import model_choices
from vqa_app.serving.model_choices import BUILTIN

WIDE = {"viewport": {"width": 1280, "height": 800}}
PHONE = {
    "viewport": {"width": 390, "height": 780}, "device_scale_factor": 2,
    "is_mobile": True, "has_touch": True,
}  # fmt: skip


def shoot(visitor: Visitor, folder: Path, name: str) -> None:
    visitor.page.evaluate("vqa.$('toasts').replaceChildren()")  # old notices
    visitor.page.wait_for_timeout(500)  # transitions end
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
    visitor.attach(scene(work, 29, "shapes"))
    visitor.ask("What is above the rectangle?")
    visitor.ask("How many circles are there?")
    page.locator(".foot .look").first.click()
    page.wait_for_selector(".overlay canvas, #sheet .note")
    shoot(visitor, folder, "looked")
    page.keyboard.press("Escape")
    page.focus("#question")  # instead of the button that opened the dialog
    page.mouse.move(900, 300)
    shoot(visitor, folder, "chat")
    page.click("[data-do=theme]")
    shoot(visitor, folder, "dark")
    page.click("[data-do=theme]")


def correct(visitor: Visitor, file: Path) -> None:
    """Ask about an object that the model does not know, and type the right answer."""
    page = visitor.page
    page.click(".new")
    page.wait_for_selector("#empty", state="visible")
    visitor.attach(file)
    visitor.ask("What is this?")
    page.get_by_label("This is wrong").click()
    page.fill(".correction input", "A blorp.")


def teach(visitor: Visitor, folder: Path, work: Path) -> None:
    """Teach a new object, train on it, and compare the answers before and after."""
    page = visitor.page
    for number in range(7):
        blorp(number).save(work / f"thing-{number}.png")
    for number in range(6):
        correct(visitor, work / f"thing-{number}.png")
        if number == 0:
            shoot(visitor, folder, "teach")
        page.press(".correction input", "Enter")
        page.wait_for_selector("[aria-label='This is wrong'][aria-pressed=true]")
    page.click("nav [data-view-of=teach]")
    page.wait_for_selector("#taught .right")
    shoot(visitor, folder, "taught")
    page.click("nav [data-view-of=train]")
    page.wait_for_selector("[name=source]:checked")
    page.fill("#train-name", "blorps")
    page.click("#train-form [type=submit]")
    # Until the first evaluation after the start, so that there are curves and changed answers.
    page.locator(".watch:has-text('→ A blorp.')").first.wait_for(timeout=600_000)
    shoot(visitor, folder, "train")
    page.wait_for_selector(".outcome", timeout=600_000)
    page.click("text=Use it in chat")
    page.wait_for_selector("#job :text('Go back to the previous model')")
    page.locator(".outcome").scroll_into_view_if_needed()
    shoot(visitor, folder, "trained")
    page.click("nav [data-view-of=compare]")
    page.locator("#compare-form input[type=file]").set_input_files(str(work / "thing-6.png"))
    page.wait_for_selector(".compare-picture img")
    page.fill("#compare-form input[aria-label=Question]", "What is this?")
    page.click("text=Ask all")
    page.locator("#compared .facts").nth(1).wait_for()
    shoot(visitor, folder, "compare")


def main(folder: Path) -> None:
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        work = Path(temporary)

        offered = lambda: [  # noqa: E731 - without the catalogue, which depends on the local cache
            choice for choice in model_choices.available_choices(BUILTIN, work / "data" / "runs")
            if choice.group not in (model_choices.DOWNLOADED, model_choices.TO_DOWNLOAD)
        ]  # fmt: skip
        with running({}, work / "data", load=model_choices.load_engine, choices=offered) as server:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            visitor = Visitor(browser, server.address, **WIDE)
            visitor.open()
            chat(visitor, folder, work)
            teach(visitor, folder, work)
            phone = Visitor(browser, server.address, **PHONE)
            phone.open()
            phone.page.locator("#cards .card").first.tap()
            phone.answered()
            shoot(phone, folder, "phone")
            browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "screenshots")
