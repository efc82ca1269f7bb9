"""Measure whether the attention map of an answer peaks on the object in question.

The scenes are held out from all training of the built-in model.

    python -m tests.benchmarks.attention_peak
    python -m tests.benchmarks.attention_peak --scenes 200
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator

import numpy as np

from finetune.pretrain.world import make_scene
from finetune.pretrain.world.rooms.shapes.room import SHAPES
from finetune.pretrain.world.scene import Item
from vqa_app.engine.protocol import Engine
from vqa_app.pictures.picture import open_picture
from vqa_app.prompts.conversation import SHORT_STYLE, Conversation


def asked_objects(count: int) -> Iterator[tuple[Conversation, str, Item]]:
    """Yield questions about the only object of its kind in scenes of three or more objects."""
    for seed in itertools.count():
        scene = make_scene(seed, "shapes", "test")
        kinds = [item.kind for item in scene.items]
        for item in scene.items:
            if len(kinds) > 2 and kinds.count(item.kind) == 1 and item.area < 0.15:
                shown = open_picture(SHAPES.draw(scene))
                question = f"What colour is the {item.word}?{SHORT_STYLE}"
                yield Conversation.ask(question, [shown]), item.colour, item
                count -= 1
                break
        if count == 0:
            return


def peaks_on_objects(engine: Engine, scenes: int) -> tuple[float, float]:
    """Return the share of maps that peak inside the box of the object in question, and by chance.

    The chance level is the mean share of the map that the box covers.
    """
    hits, chances = [], []
    for conversation, answer, item in asked_objects(scenes):
        (maps,) = engine.attention_map(conversation, answer).maps
        grid = maps.mean(0)
        rows, columns = grid.shape
        left, top, right, bottom = item.box
        y, x = np.mgrid[:rows, :columns]
        on_object = (x + 1 > left * columns) & (x < right * columns)
        on_object &= (y + 1 > top * rows) & (y < bottom * rows)
        hits.append(on_object.ravel()[grid.argmax()])
        chances.append(on_object.mean())
    return float(np.mean(hits)), float(np.mean(chances))


def main() -> None:
    from vqa_app.checkpoints.loader import load_model
    from vqa_app.engine.local import LocalEngine

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scenes", type=int, default=100)
    arguments = parser.parse_args()
    engine = LocalEngine(load_model())
    hits, chance = peaks_on_objects(engine, arguments.scenes)
    print(f"peak on the object in question: {hits:.2f} of {arguments.scenes} scenes")
    print(f"by chance: {chance:.2f}")
    engine.close()


if __name__ == "__main__":
    main()
