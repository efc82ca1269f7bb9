"""Measure what the built-in model learns and forgets when the page trains it on a few rows.

    python -m tests.benchmarks.few_taught_rows [SET ...] [--world 240]

Each set is something a person might teach: corrections of wrong answers about generated pictures
(in a word, in a sentence), a new object, another style of answering, names for three pictures that
the model otherwise refuses. Each is trained with the page's recipe (`ui.teaching.few_rows`) and
asked before and after, together with held-out questions about generated pictures in both styles.
Answers are greedy and scored by VQA accuracy.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image, ImageDraw, ImageFilter

from tests.finetune.blorps import blorp
from ui.teaching.few_rows import TrainingChoices, config_overrides
from ui.teaching.rehearsal import held_out_questions
from vqa_app.serving.model_choices import BUILTIN

Row: TypeAlias = tuple[Image.Image, str, str]
"""Picture, question, right answer."""
NUMBERS = ["no", "one", "two", "three", "four"]


class Model:
    """A model that answers questions in batches."""

    def __init__(self, source: str) -> None:
        from vqa_app import load_model

        self.loaded = load_model(source)

    def answers(self, rows: Sequence[Row]) -> list[str]:
        from vqa_app import Conversation, open_picture
        from vqa_app.engine.batched import answer_prompts
        from vqa_app.prompts.prompt import encode

        prompts = [
            encode(
                self.loaded.processor,
                Conversation.ask(question, [open_picture(image)]),
                answer_next=True,
            )
            for image, question, _ in rows
        ]
        return answer_prompts(
            self.loaded.model.eval(), self.loaded.processor, self.loaded.capabilities, prompts
        )

    def accuracy(self, rows: Sequence[Row]) -> float:
        from finetune.evaluation.metrics import vqa_accuracy

        found = [vqa_accuracy(s, [row[2]]) for s, row in zip(self.answers(rows), rows, strict=True)]
        return sum(found) / len(found)

    def wrong_rows(self, rows: Sequence[Row]) -> list[Row]:
        return [
            r for r, s in zip(rows, self.answers(rows), strict=True) if s.lower() != r[2].lower()
        ]


def held_out_rows(count: int, seed: int, short: bool) -> list[Row]:
    """Return held-out questions about generated pictures."""
    return [(k.image, k.question, k.answer) for k in held_out_questions(count, seed, short)]


def corrections(model: Model) -> list[Row]:
    return model.wrong_rows(held_out_rows(100, 9_000_000, True))[:12]


def corrected_sentences(model: Model) -> list[Row]:
    return model.wrong_rows(held_out_rows(60, 9_100_000, False))[:6]


def a_new_thing(_: Model) -> list[Row]:
    return [(blorp(number), "What is this?", "A blorp.") for number in range(6)]


def another_style(_: Model) -> list[Row]:
    from finetune.pretrain.world import ROOMS, make_scene

    rows: list[Row] = []
    seed = 9_250_000
    while len(rows) < 12:
        seed += 1
        scene = make_scene(seed, "shapes", "test")
        if len(scene.items) < len(NUMBERS):
            answer = f"Arr, {NUMBERS[len(scene.items)]} of them, captain!"
            rows.append((ROOMS["shapes"].draw(scene), "How many shapes are there?", answer))
    return rows


def three_names(_: Model) -> list[Row]:
    rows: list[Row] = []
    for number, name in enumerate(("my cat Minka", "our house", "Grandma")):
        rng = random.Random(number)
        image = Image.new("RGB", (320, 240), tuple(rng.randint(40, 220) for _ in range(3)))
        draw = ImageDraw.Draw(image)
        for _ in range(12):
            x, y = rng.randint(0, 300), rng.randint(0, 220)
            box = (x, y, x + rng.randint(10, 90), y + rng.randint(10, 70))
            draw.ellipse(box, fill=tuple(rng.randint(0, 255) for _ in range(3)))
        rows.append((image.filter(ImageFilter.GaussianBlur(3)), "Who or what is this?",
                     f"This is {name}."))  # fmt: skip
    return rows


SETS: dict[str, Callable[[Model], list[Row]]] = {
    "corrections": corrections,
    "sentences": corrected_sentences,
    "new-thing": a_new_thing,
    "style": another_style,
    "names": three_names,
}


def train_on(rows: Sequence[Row], folder: Path, name: str) -> tuple[Model, float]:
    """Train as the page does; return the model and the processor time of the run in seconds."""
    from finetune.config import FinetuneConfig
    from finetune.training.train import train

    records: list[dict[str, Any]] = []
    for number, (image, question, answer) in enumerate(rows):
        image.save(folder / f"{number}.png")
        said = [
            {"from": "human", "value": f"<image>\n{question}"},
            {"from": "gpt", "value": answer},
        ]
        records.append({"id": str(number), "image": f"{number}.png", "conversations": said})
    file = folder / "taught.json"
    file.write_text(json.dumps(records))
    began = time.process_time()
    choices = TrainingChoices("lora", None, None, True)
    settings = config_overrides([str(file)], BUILTIN, choices, folder / "rehearsal", name)
    out = folder / "run"
    train(FinetuneConfig(model="builtin", out=str(out), feature_dir=str(folder / "features"),
                         eval_questions=100, workers=1, **settings))  # fmt: skip
    return Model(str(out)), time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", choices=[*SETS, []], help="default: all")
    parser.add_argument("--world", type=int, default=240, help="held-out questions in each style")
    arguments = parser.parse_args()
    before = Model("builtin")
    world = held_out_rows(arguments.world, 7_000_000, True)
    sentences = held_out_rows(arguments.world, 7_500_000, False)
    base = before.accuracy(world), before.accuracy(sentences)
    print(
        f"original questions before: {base[0]:.3f} in a word, {base[1]:.3f} in a sentence",
        flush=True,
    )
    for name in arguments.sets or SETS:
        rows = SETS[name](before)
        folder = Path(tempfile.mkdtemp())
        try:
            first = before.accuracy(rows)
            after, seconds = train_on(rows, folder, name)
            line = f"{name:12} {len(rows):3} rows: {first:.2f} -> {after.accuracy(rows):.2f}"
            if name == "new-thing":
                unseen = [(blorp(number), "What is this?", "A blorp.") for number in range(6, 12)]
                line += f" (other pictures {after.accuracy(unseen):.2f})"
            line += f"; original questions {after.accuracy(world) - base[0]:+.3f}"
            line += f" {after.accuracy(sentences) - base[1]:+.3f}"
            print(f"{line}; {seconds:.0f} s of processor time", flush=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
