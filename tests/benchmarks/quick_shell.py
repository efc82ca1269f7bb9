"""`vqa-app ask` with and without a running server: CPU time of the process, and time to the words.

    python -m tests.benchmarks.quick_shell [--rounds 5] [--cold-rounds 2]

Starts a server of the built-in model that answers nobody else, and stops it.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from PIL import Image, ImageDraw

QUESTION = "What colour is the circle?"


def ask(*words: str) -> tuple[float, float, float]:
    """Ask once; return CPU seconds of the process, and seconds to the first and the last word."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    command = [sys.executable, "-m", "vqa_app", "ask", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        first = time.perf_counter() - start
        process.stdout.read()
        last = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"`vqa-app ask` ended with exit code {process.returncode}.")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, first, last


def draw(path: Path, number: int) -> str:
    """Draw a picture that no earlier question was about."""
    image = Image.new("RGB", (224, 224), "white")
    ImageDraw.Draw(image).ellipse((40 + number, 40, 180, 180), "red", "black", 3)
    image.save(path)
    return str(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold-rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vqa-") as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        picture = Path(folder) / "picture.png"
        serve = [sys.executable, "-m", "vqa_app", "serve"]
        subprocess.run([*serve, "--background", "--no-port"], check=True)
        try:
            ask(draw(picture, 0), QUESTION)  # the first answer of a process warms it up
            cold, new, known = [], [], []
            for number in range(1, options.rounds + 1):
                if number <= options.cold_rounds:
                    cold.append(ask("--no-server", draw(picture, number), QUESTION))
                new.append(ask(draw(picture, number), QUESTION))
                known.append(ask(str(picture), QUESTION))
        finally:
            subprocess.run([*serve, "--stop"], check=True)
    rows = {"model loaded for it": cold, "server, new picture": new, "server, known picture": known}
    print("| | CPU of the process, s | first word, s | last word, s |\n|---|---|---|---|")
    for name, figures in rows.items():
        cells = [median(column) for column in zip(*figures, strict=True)]
        print(f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
    ratios = [
        median(a) / median(b)
        for a, b in zip(zip(*cold, strict=True), zip(*new, strict=True), strict=True)
    ]
    print("| loaded / new picture | " + " | ".join(f"{ratio:.0f}×" for ratio in ratios) + " |")


if __name__ == "__main__":
    main()
