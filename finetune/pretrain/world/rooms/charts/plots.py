"""The plots room: charts as matplotlib draws them by default, with titles and axis labels.

The questions are those of the charts room, and some about what is written.
"""

import functools
import random
from typing import Any

import numpy as np
from PIL import Image

from finetune.pretrain.world.rooms.charts.questions import LETTERS
from finetune.pretrain.world.rooms.charts.questions import ask as ask_about_chart
from finetune.pretrain.world.rooms.charts.room import KINDS, held_out, random_values
from finetune.pretrain.world.scene import QA, Box, Item, Scene, Split, to_fractions
from finetune.pretrain.world.wording.question_maker import QuestionMaker

# matplotlib's default colours, as far as the world has words for them.
CYCLE = {
    "blue": "tab:blue",
    "orange": "tab:orange",
    "green": "tab:green",
    "red": "tab:red",
    "purple": "tab:purple",
    "brown": "tab:brown",
    "pink": "tab:pink",
    "gray": "tab:gray",
}
TITLES = (
    "Sales", "Rain", "Visitors", "Votes", "Apples", "Growth", "Results", "Prices", "Trees", "Books",
    "Points", "Sunny days", "Cars sold", "Test scores", "Daily rain", "Cups of tea", "Pets",
)  # fmt: skip
AXIS_LABELS = ("count", "value", "days", "week", "month", "year", "score", "price", "time", "size")
STYLES = ("default", "default", "default", "ggplot", "bmh", "dark_background")
SIZES = ((640, 480), (640, 480), (480, 480), (600, 400), (480, 320))


class Plots:
    """The `Room` of matplotlib's charts."""

    name = "plots"
    kinds = KINDS

    def make(self, rng: random.Random, split: Split) -> Scene:
        """Make a scene; see `Room.make`."""
        layout = rng.choices(("bars", "flat", "line", "pie"), (40, 12, 24, 24))[0]
        while True:
            count = rng.randint(2, 4) if layout == "pie" else rng.randint(3, 5)
            values = random_values(layout, count, rng)
            colours = list(CYCLE)[:count]
            if rng.random() < 0.3:
                colours = rng.sample(list(CYCLE), count)
            if layout == "line" or (layout != "pie" and rng.random() < 0.7):
                colours = [colours[0]] * count
            pairs = zip(colours, values, strict=True)
            if split == "test" or not any(held_out(c, v) for c, v in pairs):
                break
        labels = layout != "pie"
        extra = {
            "names": LETTERS[:count] if labels else "",
            "values": tuple(values),
            "colours": tuple(colours),
            "labelled": rng.random() < (0.3 if labels else 0.8),
            "title": rng.choice(TITLES) if rng.random() < 0.7 else "",
            "x": rng.choice(AXIS_LABELS) if labels and rng.random() < 0.5 else "",
            "y": rng.choice(AXIS_LABELS) if labels and rng.random() < 0.5 else "",
            "style": rng.choice(STYLES),
            "grid": rng.random() < 0.25,
            "font": rng.choice((10, 12, 14, 18)),
        }
        size = rng.choice(SIZES)
        _, boxes = _render(layout, size, tuple(sorted(extra.items())))
        word = {"line": "point", "pie": "slice"}.get(layout, "bar")
        items = tuple(
            Item(f"{word} {value}", to_fractions(box, size), colour, name=word, order=order)
            for box, value, colour, order in zip(
                boxes, values, colours, range(count) if labels else [-1] * count, strict=True
            )
        )
        return Scene(self.name, layout, *size, items, rng.getrandbits(32), extra)

    def draw(self, scene: Scene) -> Image.Image:
        """Draw the scene; see `Room.draw`."""
        size = (scene.width, scene.height)
        return Image.fromarray(_render(scene.layout, size, tuple(sorted(scene.extra.items())))[0])

    def ask(self, scene: Scene, rng: random.Random, split: Split) -> list[QA]:
        """Return questions about the scene; see `Room.ask`."""
        maker = QuestionMaker(scene, rng, split)
        for what in ("title", "x", "y"):
            if rng.random() < 0.7:
                _ask_written(maker, what)
        return [*maker.questions, *ask_about_chart(scene, rng, split)]


def _ask_written(maker: QuestionMaker, what: str) -> None:
    """Ask for the title, or for the label of an axis; a part of the charts have none."""
    name = "title" if what == "title" else f"label of the {what} axis"
    text = maker.scene.extra[what]
    templates = [f"What is the {name}?", f"Read the {name}.", f"What does the {name} say?"]
    if what == "title":
        templates += ["What is the title of the chart?", "What is the chart called?"]
    else:
        templates += [f"What is on the {what} axis?", f"~What does the {what} axis show?"]
    question = maker.phrase(*templates)
    if text:
        maker.add("read", question, text, f'The {name} is "{text}".')
    else:
        has_no = "has no title" if what == "title" else f"has no label on the {what} axis"
        maker.add("false_premise", question, "none", f"The chart {has_no}.")


@functools.lru_cache(maxsize=4)  # `make` needs the boxes, `draw` the pixels
def _render(
    layout: str, size: tuple[int, int], extra: tuple[tuple[str, Any], ...]
) -> tuple[np.ndarray, list[Box]]:
    """Return the pixels [height, width, 3] and the pixel boxes of the bars, points or slices."""
    import matplotlib as mpl
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chart = dict(extra)
    values, names = chart["values"], list(chart["names"])
    colours = [CYCLE[name] for name in chart["colours"]]
    with mpl.rc_context({"font.size": chart["font"]}), style.context(chart["style"]):
        mpl.rcParams["font.size"] = chart["font"]
        figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100)
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        if layout == "pie":
            label = "%d%%" if chart["labelled"] else None
            wedges = axes.pie(values, colors=colours, autopct=label)[0]
        elif layout == "line":
            axes.plot(names, values, marker="o", color=colours[0])
        elif layout == "flat":
            bars = axes.barh(names, values, color=colours)
        else:
            bars = axes.bar(names, values, color=colours)
        if layout in ("bars", "flat") and chart["labelled"]:
            axes.bar_label(bars)
        if chart["grid"] and layout != "pie":
            axes.grid(True)
        axes.set_title(chart["title"])
        axes.set_xlabel(chart["x"])
        axes.set_ylabel(chart["y"])
        figure.tight_layout()
        canvas.draw()
        if layout == "pie":
            boxes = [_slice_box(axes, wedge) for wedge in wedges]
        elif layout == "line":
            places = axes.transData.transform(list(enumerate(values)))
            half = 0.016 * min(size)
            boxes = [(x - half, y - half, x + half, y + half) for x, y in places]
        else:
            boxes = [bar.get_window_extent().extents for bar in bars]
        pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    # matplotlib counts pixels from the bottom.
    found = [(left, size[1] - top, right, size[1] - bottom) for left, bottom, right, top in boxes]
    return pixels, [_as_box(box) for box in found]


def _slice_box(axes: Any, wedge: Any) -> tuple[float, float, float, float]:
    """Return a box around the middle of a slice that grows with its share."""
    middle = np.radians((wedge.theta1 + wedge.theta2) / 2)
    share = (wedge.theta2 - wedge.theta1) / 360
    (x, y), (edge, _) = axes.transData.transform(
        [(0.6 * np.cos(middle), 0.6 * np.sin(middle)), (0.6 * np.cos(middle) + 1, 0)]
    )
    half = (edge - x) * (0.16 + 0.2 * share)
    return x - half, y - half, x + half, y + half


def _as_box(values: Any) -> Box:
    left, top, right, bottom = (float(value) for value in values)
    return left, top, right, bottom


PLOTS = Plots()
