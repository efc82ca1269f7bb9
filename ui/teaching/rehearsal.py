"""Questions about the built-in model's generated world, for rehearsal and for evaluation."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from vqa_app.files import atomic_file
from vqa_app.prompts.conversation import SHORT_STYLE

if TYPE_CHECKING:
    from finetune.pretrain.world import QA, Split

SHORT_SHARE = 0.6
"""Share of short answers, as in the training of the built-in model; the others are sentences."""


@dataclass(frozen=True)
class WorldQuestion:
    """A question about a generated picture, and its answer."""

    image: Image.Image
    picture: str
    """Name of the picture."""
    question: str
    """The question, with LLaVA's instruction if a short answer is expected."""
    answer: str

    @classmethod
    def of(cls, qa: QA, image: Image.Image, picture: str, short: bool) -> WorldQuestion:
        """Create a question in the short or the sentence style."""
        if short:
            return cls(image, picture, qa.question + SHORT_STYLE, qa.short)
        return cls(image, picture, qa.question, qa.sentence)


def held_out_questions(
    count: int, seed: int = 7_000_000, short: bool = True
) -> list[WorldQuestion]:
    """Return questions about held-out pictures, taking the rooms of the world in turn.

    Args:
        count: Number of questions.
        seed: Seed of the first scene.
        short: Whether answers are short; otherwise they are sentences.
    """
    found: list[WorldQuestion] = []
    for name, image, questions, rng in _scenes(seed, "test"):
        if suitable := [qa for qa in questions if qa.short or not short]:
            found.append(WorldQuestion.of(rng.choice(suitable), image, name, short))
        if len(found) == count:
            return found
    raise AssertionError("the sequence of scenes is infinite")


def write_rehearsal(folder: Path, count: int, seed: int) -> Path:
    """Write `count` training questions in both styles as LLaVA data; return the JSON file.

    Each question is about another picture.
    """
    return _write(folder / "world", islice(_rehearsal_questions(seed), count))


def write_sample(folder: Path, count: int, seed: int) -> Path:
    """Write `count` held-out questions with short answers as LLaVA data; return the JSON file."""
    return _write(folder / "sample", held_out_questions(count, seed))


def _rehearsal_questions(seed: int) -> Iterator[WorldQuestion]:
    for name, image, questions, rng in _scenes(seed, "train"):
        if questions:
            qa = rng.choice(questions)
            yield WorldQuestion.of(qa, image, name, bool(qa.short) and rng.random() < SHORT_SHARE)


def _scenes(seed: int, split: Split) -> Iterator[tuple[str, Image.Image, list[QA], random.Random]]:
    """Yield name, picture and independent questions of one scene after another, rooms in turn."""
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


def _write(folder: Path, questions: Iterator[WorldQuestion] | list[WorldQuestion]) -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, question in enumerate(questions):
        name = f"images/{question.picture}.png"
        if not (folder / name).exists():
            with atomic_file(folder / name) as part:  # a resumed run uses what is there
                question.image.save(part, "PNG")
        asked = f"<image>\n{question.question}"
        rows.append(
            {
                "id": f"world-{number}",
                "image": name,
                "conversations": [
                    {"from": "human", "value": asked},
                    {"from": "gpt", "value": question.answer},
                ],
            }
        )
    file = folder / "world.json"
    with atomic_file(file) as part:
        part.write_text(json.dumps(rows), "utf-8")
    return file
