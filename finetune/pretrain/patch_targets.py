"""Patch targets: what is in every patch of a picture, to train the encoder's auxiliary heads.

The same table serves as a symbolic picture, on which the language model is trained before an
encoder is available (`language.SymbolEmbedding`).
"""

from collections.abc import Sequence

import numpy as np
import torch

from finetune.pretrain.world import ROOMS, Item, Scene
from finetune.pretrain.world.drawing.paint import COLOURS
from finetune.pretrain.world.rooms.charts.plots import PLOTS
from finetune.pretrain.world.rooms.icons.store import icon_concepts
from finetune.pretrain.world.rooms.photos.store import photo_classes
from finetune.pretrain.world.rooms.shapes.wide import WIDE_KINDS
from finetune.pretrain.world.scene import Box

# Each room has a block of classes of its own, so that rooms can grow without moving others.
# "wide shapes" continues the kinds of "shapes"; "plots" has those of "charts".
BLOCKS = {"shapes": 1, "things": 40, "writing": 160, "digits": 200, "charts": 240, "outside": 280}
FIRST_ICON_CLASS = 300
FIRST_PHOTO_CLASS = FIRST_ICON_CLASS + len(icon_concepts())
KIND_CLASSES = FIRST_PHOTO_CLASS + len(photo_classes())
KIND_INDEX: dict[tuple[str, str], int] = {
    **{
        (name, kind): BLOCKS[name] + k
        for name, room in ROOMS.items()
        for k, kind in enumerate(room.kinds)
    },
    **{("wide shapes", kind): BLOCKS["shapes"] + k for k, kind in enumerate(WIDE_KINDS)},
    **{("plots", kind): BLOCKS["charts"] + k for k, kind in enumerate(PLOTS.kinds)},
    **{("icons", c.name): FIRST_ICON_CLASS + k for k, c in enumerate(icon_concepts())},
    # Backwards, because a name that occurs twice means the first class.
    **{
        ("photos", c.name): FIRST_PHOTO_CLASS + k
        for k, c in reversed(tuple(enumerate(photo_classes())))
    },
}
COLOUR_INDEX = {name: k for k, name in enumerate(("", *COLOURS))}
SIZE_INDEX = {"": 0, "small": 1, "big": 2}
FILL_INDEX = {"": 0, "solid": 1, "outlined": 2, "striped": 3}
ORDERS = 14

# Columns of a patch's row. `OWNED`: 0 background, 1 an object, 2 ignored (an object's edge).
OWNED, KIND, COLOUR, SIZE, FILL, ORDER, CENTRE, X, Y, WIDTH, HEIGHT = range(11)
COLUMNS = 11
CLASSES = {
    KIND: KIND_CLASSES,
    COLOUR: len(COLOUR_INDEX),
    SIZE: len(SIZE_INDEX),
    FILL: len(FILL_INDEX),
    ORDER: ORDERS,
}
UNITS = 1000  # positions and extents are stored in thousandths of the picture


def item_row(room: str, item: Item) -> np.ndarray:
    """Return the row of the patch at an object's centre: [COLUMNS] int16."""
    x, y = item.centre
    row = np.zeros(COLUMNS, np.int16)
    row[OWNED] = row[CENTRE] = 1
    row[KIND] = KIND_INDEX[room, item.kind]
    row[COLOUR] = COLOUR_INDEX.get(item.colour, 0)
    row[SIZE], row[FILL] = SIZE_INDEX.get(item.size, 0), FILL_INDEX.get(item.fill, 0)
    row[ORDER] = min(max(item.order + 1, 0), ORDERS - 1)
    box = (x, y, item.box[2] - item.box[0], item.box[3] - item.box[1])
    row[X:] = [round(min(max(v, 0.0), 1.0) * UNITS) for v in box]
    return row


def objects(scene: Scene) -> np.ndarray:
    """Return the compact symbolic picture, one row per object: [objects, COLUMNS] int16."""
    rows = [item_row(scene.room, item) for item in scene.items]
    return np.stack(rows) if rows else np.zeros((0, COLUMNS), np.int16)


COUNTED = {KIND: FIRST_ICON_CLASS, COLOUR: CLASSES[COLOUR], FILL: CLASSES[FILL]}
"""The columns that are counted, with their classes; the many kinds of icons are left out."""
COUNT_CLASSES = 1 + sum(COUNTED.values())


def object_counts(scene: Scene) -> np.ndarray:
    """Return the number of objects, then of each kind, colour and fill: [COUNT_CLASSES] int64."""
    rows = objects(scene)
    counts = [
        np.bincount(rows[:, column], minlength=classes)[:classes]
        for column, classes in COUNTED.items()
    ]
    return np.concatenate(([len(rows)], *counts))


def patches(scene: Scene, side: int, boxes: Sequence[Box] | None = None) -> np.ndarray:
    """Return the symbolic picture as the encoder's grid: [side * side, COLUMNS] int16.

    A patch belongs to the object drawn last whose (slightly shrunk) box covers a third of it. The
    patch at an object's centre always belongs to that object. A photograph shows more than its
    labelled object, so that patches outside its box are ignored.

    Args:
        scene: The picture.
        side: Patches along an edge of the encoder's input.
        boxes: The objects' boxes in the encoder's input, if it is padded. They decide which patches
            an object covers; the positions in the rows are relative to the scene without padding.
    """
    grid = np.zeros((side, side, COLUMNS), np.int16)
    if scene.room == "photos":
        grid[..., OWNED] = 2
    boxes = [item.box for item in scene.items] if boxes is None else boxes
    rows = [item_row(scene.room, item) for item in scene.items]
    for (left, top, right, bottom), row in zip(boxes, rows, strict=True):
        dx, dy = 0.1 * (right - left), 0.1 * (bottom - top)
        across = _cover(left + dx, right - dx, side)
        down = _cover(top + dy, bottom - dy, side)
        share = down[:, None] * across[None, :]
        grid[(share > 0.02) & (share <= 0.33) & (grid[..., OWNED] == 0), OWNED] = 2
        owned = row.copy()
        owned[CENTRE] = 0
        grid[share > 0.33] = owned
    for (left, top, right, bottom), row in zip(boxes, rows, strict=True):
        centre = ((left + right) / 2, (top + bottom) / 2)
        column, line = (min(side - 1, max(0, int(place * side))) for place in centre)
        grid[line, column] = row
    return grid.reshape(side * side, COLUMNS)


def _cover(start: float, end: float, side: int) -> np.ndarray:
    """Return the share of each cell that the interval covers: [side] in 0..1."""
    edges = np.arange(side + 1) / side
    return (np.minimum(end, edges[1:]) - np.maximum(start, edges[:-1])).clip(0) * side


GEOMETRY = 28
_STEPS = torch.arange(1, 9) / 9
_SPANS = torch.tensor((0.12, 0.2, 0.3, 0.45))


def geometry(rows: torch.Tensor) -> torch.Tensor:
    """Return positions and extents as smooth thermometer codes, which a linear layer can compare.

    rows [..., COLUMNS] -> [..., GEOMETRY] float in about -1..1.
    """
    values = rows[..., X:].float() / UNITS
    place, span = values[..., :2, None], values[..., 2:, None]
    parts = (
        values * 2 - 1,
        torch.tanh((place - _STEPS.to(rows.device)) * 9).flatten(-2),
        torch.tanh((span - _SPANS.to(rows.device)) * 9).flatten(-2),
    )
    return torch.cat(parts, dim=-1)
