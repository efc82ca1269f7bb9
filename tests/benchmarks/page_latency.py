"""Compare the page with a plain `gr.ChatInterface` around `generate`: first word and page load.

    python -m tests.benchmarks.page_latency builtin
    python -m tests.benchmarks.page_latency real-size --rounds 1

Both pages run in this process on the same weights and are driven in turn by the same Chromium, with
a new picture in each round. The time is measured in the page, from the Enter key to the first text
of the answer. Three cases: ours with the picture encoded while the question is typed (the usual
one), ours asked at once while the picture is still being encoded, and the plain page. Times depend
on the machine and its load; ratios hardly do. `real-size` is described in
`tests.benchmarks.generation`.
"""

from __future__ import annotations

import argparse
import copy
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

QUESTION = "What is on the left ?"
TOKENS = 8
TIMEOUT = 600_000
"""Milliseconds that a step on a page may take."""

# Resolves to the milliseconds from Enter to the first text of the answer.
MEASURE = """([box, answer, waiting]) => {
  window.firstWord = new Promise((resolve) => {
    const field = document.querySelector(box);
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      const begun = performance.now();
      const check = () => {
        const found = [...document.querySelectorAll(answer)].at(-1);
        const text = found && !found.querySelector(waiting) && found.innerText.trim();
        if (text) resolve(performance.now() - begun);
        else requestAnimationFrame(check);
      };
      check();
    }, { once: true, capture: true });
  });
}"""


@contextmanager
def plain_page(loaded: Any) -> Iterator[str]:
    """Serve a multimodal ChatInterface of twenty lines that streams `generate`."""
    import gradio as gr
    import torch
    from PIL import Image
    from transformers import TextIteratorStreamer

    model, processor = loaded.model, loaded.processor

    def answer(message: dict[str, Any], history: list[Any]) -> Iterator[str]:
        content: list[dict[str, Any]] = [
            {"type": "image", "image": Image.open(file).convert("RGB")} for file in message["files"]
        ]
        content.append({"type": "text", "text": message["text"]})
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        streamer = TextIteratorStreamer(
            processor.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        options = {"max_new_tokens": TOKENS, "do_sample": False, "streamer": streamer}
        with torch.inference_mode():
            thread = threading.Thread(target=model.generate, kwargs={**inputs, **options})
            thread.start()
            text = ""
            for piece in streamer:
                text += piece
                yield text
            thread.join()

    page = gr.ChatInterface(answer, multimodal=True, api_visibility="private")
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, inbrowser=False, share=False)
    try:
        yield address
    finally:
        page.close()


@contextmanager
def our_page(loaded: Any, folder: Path) -> Iterator[Any]:
    """Serve the application on a loaded model."""
    from tests.ui.server import running
    from vqa_app.engine.local import LocalEngine

    engine = LocalEngine(loaded)
    with running({"model": engine}, folder) as server:
        yield server


class Bench:
    """A Chromium that uses a new profile for each question."""

    def __init__(self, browser: Any, folder: Path, model: str) -> None:
        self.browser, self.folder, self.model = browser, folder, model
        self.count = 0

    def picture(self) -> str:
        """Return the path of a new picture."""
        from tests.benchmarks.generation import new_picture

        self.count += 1
        file = self.folder / f"{os.getpid()}-{self.count}.png"
        new_picture(self.model, 1000 + self.count).image.save(file)
        return str(file)

    def _page(self, address: str, ready: str) -> tuple[Any, float]:
        context = self.browser.new_context(viewport={"width": 1280, "height": 820})
        context.set_default_timeout(TIMEOUT)
        page = context.new_page()
        begun = time.perf_counter()
        page.goto(address)
        page.wait_for_selector(ready)
        return page, time.perf_counter() - begun

    def ours(self, server: Any, encoded: bool) -> tuple[float, float]:
        """Return the seconds to the first word and of the page load."""
        engine = server.application.service.pool.get_loaded()
        warm, begun, warmed = engine.warm, threading.Event(), threading.Event()

        def observed_warm(*arguments: Any) -> None:
            begun.set()
            warm(*arguments)
            warmed.set()

        engine.warm = observed_warm
        try:
            page, load = self._page(server.address, "#cards .card")
            page.set_input_files("#files", self.picture())
            page.wait_for_selector("#tray .thumb img")
            while not (warmed if encoded else begun).is_set():  # meanwhile a person would be typing
                page.wait_for_timeout(20)
            page.evaluate(MEASURE, ["#question", "[data-testid=bot]", ".state"])
            page.fill("#question", QUESTION)
            page.press("#question", "Enter")
            seconds = page.evaluate("window.firstWord") / 1000
            page.wait_for_selector("#log[aria-busy=false] .foot *")
            page.context.close()
        finally:
            engine.warm = warm
        return seconds, load

    def plain(self, address: str) -> tuple[float, float]:
        box = "textarea"
        page, load = self._page(address, box)
        page.set_input_files("input[type=file]", self.picture())
        page.wait_for_selector(".thumbnail-item img, .thumbnails img, img.thumbnail-image")
        page.evaluate(MEASURE, [box, "[data-testid=bot]", ".pending, .dot-flashing"])
        page.fill(box, QUESTION)
        page.press(box, "Enter")
        seconds = page.evaluate("window.firstWord") / 1000
        page.context.close()
        return seconds, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="builtin or real-size")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    from tests.benchmarks.generation import load

    loaded = load(arguments.model)
    own = copy.copy(loaded)
    object.__setattr__(own, "model", copy.deepcopy(loaded.model))
    results: dict[str, list[tuple[float, float]]] = {"encoded": [], "at once": [], "plain": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        our_page(own, Path(folder) / "data") as server,
        plain_page(loaded) as address,
        sync_playwright() as playwright,
    ):
        path = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        bench = Bench(browser, Path(folder), arguments.model)
        bench.ours(server, True), bench.plain(address)  # warm-up
        for _ in range(arguments.rounds):
            results["encoded"].append(bench.ours(server, True))
            results["plain"].append(bench.plain(address))
            results["at once"].append(bench.ours(server, False))
        browser.close()
    report(arguments.model, arguments.rounds, results)


def report(model: str, rounds: int, results: dict[str, list[tuple[float, float]]]) -> None:
    first = {side: statistics.median(seconds for seconds, _ in r) for side, r in results.items()}
    load = {side: statistics.median(seconds for _, seconds in r) for side, r in results.items()}
    print(f"{model}, medians of {rounds} rounds; Enter to the first word in the page:")
    print(f"  plain ChatInterface around generate  {first['plain']:8.2f} s   1.00×")
    for side, words in (("encoded", "ours, encoded on drop"), ("at once", "ours, asked at once")):
        ratio = first[side] / first["plain"]
        print(f"  {words:36} {first[side]:8.2f} s   {ratio:.2f}×")
    print(f"page load: plain {load['plain']:.2f} s, ours {load['encoded']:.2f} s"
          f" ({load['encoded'] / load['plain']:.2f}×)")  # fmt: skip


if __name__ == "__main__":
    main()
