"""A small data set: coloured pictures, short and long answers, rows without a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune.config import FinetuneConfig

COLOURS = ("red", "blue", "green", "white", "black", "pink", "orange", "grey")


def write_data(folder: Path, pictures: int = 6, text_rows: int = 2) -> Path:
    """Write `data.json` and its pictures; picture rows have one to three questions."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number in range(pictures):
        colour = COLOURS[number % len(COLOURS)]
        Image.new("RGB", (20 + number, 16), colour).save(folder / f"{number}.png")
        turns = [("<image>\nWhich colour has the picture?", colour)]
        if number % 2:
            turns += [("Is it red?", "yes" if colour == "red" else "no"), ("Is there a cat?", "no")]
        rows.append({"id": f"p{number}", "image": f"{number}.png", "conversations": _turns(turns)})
    for number in range(text_rows):
        turns = [
            (f"What is {number} and {number}?", f"The answer of the question is {2 * number}.")
        ]
        rows.append({"id": f"t{number}", "conversations": _turns(turns)})
    path = folder / "data.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def _turns(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"from": speaker, "value": text}
        for turn in turns
        for speaker, text in zip(("human", "gpt"), turn, strict=True)
    ]


def small_config(model: Path, data: Path, out: Path, **options: Any) -> FinetuneConfig:
    """Return a config for a tiny model on the CPU; features are stored beside the run."""
    return FinetuneConfig(
        **{
            "model": str(model),
            "data": (str(data),),
            "out": str(out),
            "feature_dir": str(out.parent / "features"),
            "rank": 4,
            "workers": 1,
            "device": "cpu",
            "precision": "fp32",
            **options,
        }
    )


def metrics(run: Path) -> list[dict[str, float]]:
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
