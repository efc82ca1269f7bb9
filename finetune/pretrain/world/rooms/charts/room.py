"""The charts room: bar, line and pie charts with large labels."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from finetune.pretrain.world.drawing.lettering import CLEAR_FONTS, centred, draw_line, lightness
from finetune.pretrain.world.drawing.paint import (
    COLOURS,
    RGB,
    Canvas,
    background,
    background_rgb,
    colour_rgb,
    far_enough,
    mixed,
    picture_size,
)
from finetune.pretrain.world.rooms.charts.questions import LETTERS, ask
from finetune.pretrain.world.scene import QA, Box, Item, Scene, Size, Split, to_fractions, to_pixels

TOP = 10
"""The greatest value of a bar or point, where every axis ends; slices count in tenths."""
# Append only: positions are classes of the encoder. The value is part of the kind, because the
# encoder has to recognise it.
KINDS = (
    *(f"bar {v}" for v in range(1, TOP + 1)),
    *(f"point {v}" for v in range(1, TOP + 1)),
    *(f"slice {v}" for v in range(1, 9)),
)
LAYOUTS = ("bars", "flat", "line", "pie")


def held_out(colour: str, value: int) -> bool:
    """Return whether training never draws the colour with the value: one in nine combinations."""
    return (list(COLOURS).index(colour) + value) % 9 == 4


def shares(count: int, rng: random.Random) -> list[int]:
    """Return `count` random shares of a pie in tenths, 1..8 each, that add up to ten."""
    cuts = sorted(rng.sample(range(1, 10), count - 1))
    parts = [b - a for a, b in zip([0, *cuts], [*cuts, 10], strict=True)]
    return parts if max(parts) <= 8 else shares(count, rng)


def random_values(layout: str, count: int, rng: random.Random) -> list[int]:
    """Return random values; those of a line are sometimes sorted, which makes a trend."""
    if layout == "pie":
        return shares(count, rng)
    values = [rng.randint(1, TOP) for _ in range(count)]
    if layout == "line" and rng.random() < 0.3:
        values.sort(reverse=rng.random() < 0.5)
    return values


def random_colours(count: int, several: bool, rng: random.Random) -> list[tuple[str, RGB]]:
    """Return names and shades that differ clearly, or one of them `count` times."""
    found: list[tuple[str, RGB]] = []
    while len(found) < count:
        name = rng.choice([c for c in COLOURS if c not in {n for n, _ in found}])
        rgb = colour_rgb(name, rng)
        if far_enough(rgb, [r for _, r in found], 70):
            found.append((name, rgb))
    return found if several else [found[0]] * count


Extra = Mapping[str, Any]
"""What drawing a chart needs besides its items: `Scene.extra`."""


class Charts:
    """The `Room` of charts."""

    name = "charts"
    kinds = KINDS

    def make(self, rng: random.Random, split: Split) -> Scene:
        """Make a scene of a random layout; see `Room.make`."""
        layout = rng.choices(LAYOUTS, (44, 12, 20, 24))[0]
        size = picture_size(rng)
        while True:
            count = rng.randint(2, 4) if layout == "pie" else rng.randint(2, 5)
            if layout == "line":
                count = max(3, count)
            values = random_values(layout, count, rng)
            named = layout == "line" or (layout != "pie" and rng.random() < 0.6)
            several = layout == "pie" or (layout != "line" and (not named or rng.random() < 0.5))
            colours = random_colours(count, several, rng)
            if split == "test" or not any(
                held_out(c, v) for (c, _), v in zip(colours, values, strict=True)
            ):
                break
        names = ""
        if named:
            start = rng.choice((0, 0, 0, rng.randint(0, len(LETTERS) - count)))
            names = (
                LETTERS[start : start + count]
                if rng.random() < 0.8
                else "".join(rng.sample(LETTERS, count))
            )
        ground = background_rgb(rng, [rgb for _, rgb in colours])
        extra = {
            "ground": ground,
            "font": rng.choice(CLEAR_FONTS),
            "names": names,
            "values": tuple(values),
            "colours": tuple(rgb for _, rgb in colours),
            "labelled": rng.random() < 0.75,
            "grid": rng.random() < 0.6,
            "turn": rng.uniform(0, 360),
            "gap": rng.uniform(0.2, 0.5),
            "edge": rng.random() < 0.2,
            "hole": rng.choice((0, 0, 0, 0.4)),
        }
        boxes = entry_boxes(layout, size, extra)
        word = {"line": "point", "pie": "slice"}.get(layout, "bar")
        items = tuple(
            Item(
                f"{word} {value}",
                to_fractions(box, size),
                colour,
                name=word,
                order=LETTERS.index(names[at]) if names else -1,
            )
            for at, (box, value, (colour, _)) in enumerate(zip(boxes, values, colours, strict=True))
        )
        return Scene(self.name, layout, *size, items, rng.getrandbits(32), extra)

    def draw(self, scene: Scene) -> Image.Image:
        """Draw the scene; see `Room.draw`."""
        size = scene.width, scene.height
        canvas = Canvas(background(*size, scene.extra["ground"], scene.seed))
        dark = lightness(scene.extra["ground"]) < 128
        ink = (235, 235, 235) if dark else (30, 30, 35)
        if scene.layout == "pie":
            draw_pie(canvas, scene, ink)
            return canvas.finish()
        draw_axes(canvas, scene, ink)
        boxes = [to_pixels(item.box, size) for item in scene.items]
        if scene.layout == "line":
            middles = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in boxes]
            canvas.line(middles, scene.extra["colours"][0], max(1.4, 0.022 * min(size)))
        for box, rgb in zip(boxes, scene.extra["colours"], strict=True):
            if scene.layout == "line":
                canvas.ellipse(box, rgb)
            else:
                canvas.rectangle(box, rgb, ink if scene.extra["edge"] else None, 1.0)
        draw_labels(canvas, scene, boxes, ink)
        return canvas.finish()

    def ask(self, scene: Scene, rng: random.Random, split: Split) -> list[QA]:
        """Return questions about the scene; see `Room.ask`."""
        return ask(scene, rng, split)


def plot_area(layout: str, size: Size, extra: Extra) -> Box:
    """Return the axes' rectangle in pixels, which leaves space for the labels."""
    width, height = size
    axis, named = not extra["labelled"], bool(extra["names"])
    left, bottom, top, right = 0.05, 0.95, 0.05, 0.97
    if layout == "flat":
        left += 0.11 * named
        bottom -= 0.12 * axis
        right -= 0.14 if extra["labelled"] else 0.03
    else:
        left += 0.13 * axis
        bottom -= 0.15 * named
        top += 0.12 if extra["labelled"] else 0.03
        if layout == "line":
            top += 0.04
    return left * width, top * height, right * width, bottom * height


def entry_boxes(layout: str, size: Size, extra: Extra) -> list[Box]:
    """Return the pixel boxes of the bars, points or slices."""
    values = extra["values"]
    if layout == "pie":
        return [slice_box(middle, share, size, extra) for middle, share in slices(extra)]
    left, top, right, bottom = plot_area(layout, size, extra)
    count = len(values)
    if layout == "flat":
        step = (bottom - top) / count
        thick = step * (1 - extra["gap"])
        return [
            (
                left,
                top + step * k + (step - thick) / 2,
                left + (right - left) * v / TOP,
                top + step * k + (step + thick) / 2,
            )
            for k, v in enumerate(values)
        ]
    step = (right - left) / count
    if layout == "line":
        r = max(2.0, 0.035 * min(size))
        spots = [
            (left + step * (k + 0.5), bottom - (bottom - top) * v / TOP)
            for k, v in enumerate(values)
        ]
        return [(x - r, y - r, x + r, y + r) for x, y in spots]
    thick = step * (1 - extra["gap"])
    return [
        (
            left + step * k + (step - thick) / 2,
            bottom - (bottom - top) * v / TOP,
            left + step * k + (step + thick) / 2,
            bottom,
        )
        for k, v in enumerate(values)
    ]


def slices(extra: Extra) -> list[tuple[float, float]]:
    """Return each slice's middle angle in degrees and its share (0..1)."""
    found, at = [], extra["turn"]
    for value in extra["values"]:
        found.append((at + 18 * value, value / 10))
        at += 36 * value
    return found


def pie_ellipse(size: Size) -> tuple[float, float, float, float]:
    """Return the pie's centre and radii in pixels; in a picture that is not square, an ellipse."""
    return size[0] / 2, size[1] / 2, size[0] * 0.45, size[1] * 0.45


def slice_centre(middle: float, share: float, size: Size, extra: Extra) -> tuple[float, float]:
    """Return the pixel in the middle of a slice."""
    x, y, rx, ry = pie_ellipse(size)
    far = 0.72 if extra["hole"] or share < 0.25 else 0.62 - 0.2 * max(0.0, share - 0.5)
    turn = math.radians(middle)
    return x + far * rx * math.cos(turn), y + far * ry * math.sin(turn)


def slice_box(middle: float, share: float, size: Size, extra: Extra) -> Box:
    """Return a pixel box around the middle of a slice that grows with its share."""
    x, y = slice_centre(middle, share, size, extra)
    half = 0.16 + 0.2 * share
    return (
        x - half * size[0] / 2,
        y - half * size[1] / 2,
        x + half * size[0] / 2,
        y + half * size[1] / 2,
    )


def draw_label(
    canvas: Canvas, scene: Scene, word: str, at: tuple[float, float], em: float, rgb: RGB
) -> None:
    """Draw a word centred on the pixel `at`, `em` pixels per em."""
    draw_line(canvas, centred(word, scene.extra["font"], em, *at), rgb)


def draw_axes(canvas: Canvas, scene: Scene, ink: RGB) -> None:
    """Draw the axes; with a scale and grid lines where the values are not labelled."""
    extra, size = scene.extra, (scene.width, scene.height)
    left, top, right, bottom = plot_area(scene.layout, size, extra)
    side = min(size)
    pale = mixed(scene.extra["ground"], ink, 0.22)
    if not extra["labelled"]:
        for value in range(0, TOP + 1, 2):
            if scene.layout == "flat":
                x = left + (right - left) * value / TOP
                canvas.line([(x, top), (x, bottom)], pale, max(0.7, side * 0.006))
                draw_label(
                    canvas, scene, str(value), (x, bottom + 0.075 * size[1]), 0.1 * size[1], ink
                )
            else:
                y = bottom - (bottom - top) * value / TOP
                canvas.line([(left, y), (right, y)], pale, max(0.7, side * 0.006))
                draw_label(
                    canvas, scene, str(value), (left - 0.075 * size[0], y), 0.1 * size[1], ink
                )
    wide = max(0.9, side * 0.009)
    if scene.layout == "flat":
        canvas.line([(left, top), (left, bottom)], ink, wide)
        return
    canvas.line([(left, bottom), (right, bottom)], ink, wide)
    if not extra["labelled"] or extra["grid"]:
        canvas.line([(left, top), (left, bottom)], ink, wide)


def draw_labels(canvas: Canvas, scene: Scene, boxes: Sequence[Box], ink: RGB) -> None:
    """Draw the names along the axis, and the values at the ends of the bars."""
    extra, size = scene.extra, (scene.width, scene.height)
    left, _, _, bottom = plot_area(scene.layout, size, extra)
    em = 0.125 * size[1]
    for k, (box, value) in enumerate(zip(boxes, extra["values"], strict=True)):
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        if extra["names"]:
            at = (
                (left - 0.065 * size[0], y)
                if scene.layout == "flat"
                else (x, bottom + 0.085 * size[1])
            )
            draw_label(canvas, scene, extra["names"][k], at, em, ink)
        if extra["labelled"]:
            at = (
                (box[2] + 0.065 * size[0], y)
                if scene.layout == "flat"
                else (x, box[1] - 0.07 * size[1])
            )
            draw_label(canvas, scene, str(value), at, em, ink)


def draw_pie(canvas: Canvas, scene: Scene, ink: RGB) -> None:
    """Draw a pie chart or a ring chart, with its values if they are labelled."""
    extra, size = scene.extra, (scene.width, scene.height)
    x, y, rx, ry = pie_ellipse(size)
    edge = scene.extra["ground"] if not extra["edge"] else ink
    parts = list(zip(slices(extra), extra["colours"], strict=True))
    for (middle, share), rgb in parts:
        angles = [math.radians(middle + 360 * share * (k / 30 - 0.5)) for k in range(31)]
        rim = [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]
        canvas.polygon([(x, y), *rim], rgb)
    for (middle, share), _ in parts:
        a = math.radians(middle - 180 * share)
        canvas.line(
            [(x, y), (x + rx * math.cos(a), y + ry * math.sin(a))],
            edge,
            max(1.0, 0.012 * min(size)),
        )
    if extra["hole"]:
        canvas.ellipse(
            (
                x - rx * extra["hole"],
                y - ry * extra["hole"],
                x + rx * extra["hole"],
                y + ry * extra["hole"],
            ),
            scene.extra["ground"],
        )
    if extra["labelled"]:
        for ((middle, share), rgb), value in zip(parts, extra["values"], strict=True):
            pen = (20, 20, 25) if lightness(rgb) > 120 else (250, 250, 250)
            draw_label(
                canvas,
                scene,
                f"{value * 10}",
                slice_centre(middle, share, size, extra),
                0.13 * size[1],
                pen,
            )


CHARTS = Charts()
