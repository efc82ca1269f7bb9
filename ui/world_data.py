"""Rows from the built-in model's own world: to mix into training, and to see what was forgotten."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ui.render import SHORT_STYLE


@dataclass(frozen=True)
class Known:
    """A question of the world with its short answer."""

    image: Image.Image
    question: str
    answer: str


def held_out(count: int, seed: int = 7_000_000) -> list[Known]:
    """Questions about pictures that no training shows, the rooms in turn."""
    return _questions(count, seed, "test")


def write_rehearsal(folder: Path, count: int, seed: int) -> Path:
    """Writes a LLaVA data set of `count` training questions; gives its JSON file."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, known in enumerate(_questions(count, seed, "train")):
        name = f"images/{number:05}.png"
        known.image.save(folder / name)
        asked = f"<image>\n{known.question}{SHORT_STYLE}"
        rows.append(
            {
                "id": f"world-{number}",
                "image": name,
                "conversations": [
                    {"from": "human", "value": asked},
                    {"from": "gpt", "value": known.answer},
                ],
            }
        )
    file = folder / "world.json"
    file.write_text(json.dumps(rows), "utf-8")
    return file


def _questions(count: int, seed: int, split: str) -> list[Known]:
    from finetune.builtin.world import ROOMS, make_scene

    rooms = list(ROOMS)
    found: list[Known] = []
    number = seed
    while len(found) < count:
        room = rooms[number % len(rooms)]
        scene = make_scene(number, room, split)  # type: ignore[arg-type]
        rng = random.Random(f"{split}-{number}")
        asked = [qa for qa in ROOMS[room].ask(scene, rng, split) if qa.short and not qa.before]  # type: ignore[arg-type]
        number += 1
        if asked:
            qa = rng.choice(asked)
            found.append(Known(ROOMS[room].draw(scene), qa.question, qa.short))
    return found
