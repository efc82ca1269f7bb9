"""Rows from the built-in model's own world: to mix into training, and to see what was forgotten."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from vqa_app.prompts.conversation import SHORT_STYLE

if TYPE_CHECKING:
    from finetune.pretrain.world import QA, Split

SHORT_SHARE = 0.6
"""Of the rehearsed answers, as when the built-in model was trained; the others are sentences."""


@dataclass(frozen=True)
class Known:
    """A question of the world with its answer."""

    image: Image.Image
    picture: str
    """A name for the picture."""
    question: str
    """With LLaVA's instruction where a short answer is wanted."""
    answer: str

    @classmethod
    def of(cls, qa: QA, image: Image.Image, picture: str, short: bool) -> Known:
        """In one of the two styles."""
        if short:
            return cls(image, picture, qa.question + SHORT_STYLE, qa.short)
        return cls(image, picture, qa.question, qa.sentence)


def held_out(count: int, seed: int = 7_000_000, short: bool = True) -> list[Known]:
    """Questions about pictures that no training shows, the rooms in turn.

    Args:
        short: those with short answers; else as they are answered in sentences.
    """
    found: list[Known] = []
    for name, image, questions, rng in _scenes(seed, "test"):
        if fitting := [qa for qa in questions if qa.short or not short]:
            found.append(Known.of(rng.choice(fitting), image, name, short))
        if len(found) == count:
            return found
    raise AssertionError("scenes have no end")


def write_rehearsal(folder: Path, count: int, seed: int) -> Path:
    """Writes a LLaVA data set of `count` training questions in both styles, each about another
    picture; gives its JSON file.
    """
    return _write(folder / "world", islice(_rehearsed(seed), count))


def write_sample(folder: Path, count: int, seed: int) -> Path:
    """The same of held-out questions with short answers."""
    return _write(folder / "sample", held_out(count, seed))


def _rehearsed(seed: int) -> Iterator[Known]:
    for name, image, questions, rng in _scenes(seed, "train"):
        if questions:
            qa = rng.choice(questions)
            yield Known.of(qa, image, name, bool(qa.short) and rng.random() < SHORT_SHARE)


def _scenes(seed: int, split: Split) -> Iterator[tuple[str, Image.Image, list[QA], random.Random]]:
    """Name, picture and questions that stand alone of scene after scene, the rooms in turn."""
    from finetune.pretrain.world import ROOMS, make_scene

    rooms = list(ROOMS)
    number = seed
    while True:
        room = ROOMS[rooms[number % len(rooms)]]
        scene = make_scene(number, room.name, split)
        rng = random.Random(f"{split}-{number}")
        questions = [qa for qa in room.ask(scene, rng, split) if not qa.before]
        yield f"{room.name}-{number}", room.draw(scene), questions, rng
        number += 1


def _write(folder: Path, questions: Iterator[Known] | list[Known]) -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, known in enumerate(questions):
        name = f"images/{known.picture}.png"
        if not (folder / name).exists():
            known.image.save(folder / name)
        asked = f"<image>\n{known.question}"
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
