"""Pictures unlike those of the other rooms: photograph-like, noise, textures, pages, screens.

Every question about them is answered with the statement that this kind of picture is unknown. They
are generated (fractal noise, shaded surfaces, dead leaves), so that no files have to be shipped.
Real photographs occur in the test split only.
"""

import importlib.util
import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from finetune.pretrain.world.rooms.outside.photo_like import (
    Field,
    foliage,
    landscape,
    leaves,
    octaves,
    portrait,
    rendered,
    shiny,
    subject,
    tinted,
    to_picture,
)
from finetune.pretrain.world.scene import QA, Item, Room, Scene, Size, Split
from finetune.pretrain.world.wording.phrasing import fill_template

KINDS = ("outside",)
LONGEST_PAINTED = 128
"""Larger pictures are painted with this longer side and enlarged, which saves time."""
SHORT = "unknown"
SENTENCE = "I do not know this kind of picture."

OWN_QUESTIONS = (
    "What is this?",
    "What do you see?",
    "What is in the {pic}?",
    "Describe the {pic}.",
    "What does this {pic} show?",
    "What am I looking at?",
    "Who is this?",
    "What is happening here?",
    "Is this a photo?",
    "Where was this {pic} taken?",
    "What animal is this?",
    "What is the person doing?",
    "Is there a person{in_pic}?",
    "How many people are there?",
    "What is the weather like?",
    "Can you read this?",
    "What is written here?",
    "Tell me about this {pic}.",
    "Is it day or night?",
    "What is the man holding?",
    "Caption this {pic}.",
    "~What can you tell me about this {pic}?",
    "~Do you recognise this?",
    "~What is going on{in_pic}?",
)


def noise(size: Size, rng: np.random.Generator) -> Image.Image:
    """Paint noise of any grain, grey or coloured, dense or sparse."""
    grain = rng.choice((1, 1, 2, 4, 8, 14))
    shape = (max(2, size[1] // grain), max(2, size[0] // grain), rng.choice((1, 3)))
    if rng.random() < 0.4:
        field = rng.random(shape)
    elif rng.random() < 0.6:
        field = rng.normal(rng.uniform(0.3, 0.7), rng.uniform(0.12, 0.4), shape)
    else:
        field = (rng.random(shape) < rng.uniform(0.1, 0.6)).astype(float)
    field = np.broadcast_to(field, (*shape[:2], 3)) * rng.uniform(0.5, 1, 3)
    return to_picture(field).resize(size, rng.choice((0, 2)))


def clouds(size: Size, rng: np.random.Generator) -> Image.Image:
    """Paint fractal noise, in a palette or in three independent channels."""
    if rng.random() < 0.4:
        return to_picture(np.stack([octaves(size, rng) for _ in range(3)], -1))
    return tinted(octaves(size, rng), rng)


def blend(size: Size, rng: np.random.Generator) -> Image.Image:
    """Paint a few strong colours that blend into each other."""
    shape = (rng.integers(2, 5), rng.integers(2, 5), 3)
    return to_picture(rng.random(shape)).resize(size, Image.Resampling.BICUBIC)


def waves(size: Size, rng: np.random.Generator) -> Image.Image:
    """Paint interfering waves bent by noise, as in marble, fabric or ripples."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    field = np.zeros_like(x)
    for _ in range(rng.integers(1, 4)):
        turn, speed = rng.uniform(0, np.pi), rng.uniform(15, 110)
        bend = octaves(size, rng) * rng.uniform(0, 9)
        field += np.sin((x * np.cos(turn) + y * np.sin(turn)) * speed + bend)
    return tinted(0.5 + field / (2 * np.abs(field).max()), rng)


def bokeh(size: Size, rng: np.random.Generator) -> Image.Image:
    """Paint out-of-focus lights."""
    picture = tinted(octaves(size, rng, 2.2) * 0.6, rng)
    pen = ImageDraw.Draw(picture, "RGBA")
    for _ in range(rng.integers(15, 60)):
        x, y, r = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(2, 14)
        pen.ellipse(
            (x - r, y - r, x + r, y + r),
            fill=(*rng.integers(80, 256, 3).tolist(), int(rng.integers(40, 180))),
        )
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(1, 5)))


def page(size: Size, rng: np.random.Generator) -> Image.Image:
    """Paint a printed page in columns, too small to read, with figures."""
    ink, paper = sorted(rng.integers((0, 200), (90, 256)))
    picture = Image.new("RGB", size, tuple(int(paper - d) for d in rng.integers(0, 12, 3)))
    pen = ImageDraw.Draw(picture)
    columns, gap = rng.integers(1, 4), rng.uniform(3, 7)
    wide = size[0] / columns
    for column in range(columns):
        left, right = column * wide + wide * 0.08, (column + 1) * wide - wide * 0.06
        y = rng.uniform(3, 14)
        while y < size[1] - 4:
            if rng.random() < 0.04:
                deep = rng.uniform(10, 30)
                tone = rng.integers(60, 220, 3).tolist()
                pen.rectangle((left, y, right, y + deep), fill=tuple(tone))
                y += deep + gap
                continue
            x, end = left, right if rng.random() < 0.8 else left + (right - left) * rng.random()
            tall = gap * rng.uniform(0.3, 0.5)
            while x < end:
                long = rng.uniform(2, 14)
                pen.rectangle((x, y, min(end, x + long), y + tall), fill=(int(ink),) * 3)
                x += long + rng.uniform(1.5, 4)
            y += gap * (1 if rng.random() < 0.9 else 2)
    turned = picture.rotate(rng.normal(0, 3), fillcolor=picture.getpixel((0, 0)))
    return turned.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9)))


def screen(size: Size, rng: np.random.Generator) -> Image.Image:
    """Paint the window of a program, divided into panes with lines of text."""
    dark = rng.random() < 0.4
    tone = (lambda: rng.integers(15, 75)) if dark else (lambda: rng.integers(205, 256))
    picture = Image.new("RGB", size, tuple(int(tone()) for _ in range(3)))
    pen = ImageDraw.Draw(picture)
    accent = tuple(rng.integers(30, 230, 3).tolist())

    def pane(box: tuple[float, float, float, float], depth: int) -> None:
        left, top, right, bottom = box
        wide, high = right - left, bottom - top
        if depth and max(wide, high) > 26:
            cut = rng.uniform(0.2, 0.75)
            if wide > high:
                pane((left, top, left + wide * cut, bottom), depth - 1)
                pane((left + wide * cut, top, right, bottom), depth - 1)
            else:
                pane((left, top, right, top + high * cut), depth - 1)
                pane((left, top + high * cut, right, bottom), depth - 1)
            return
        grey = int(tone())
        pen.rectangle(
            (left + 1, top + 1, right - 1, bottom - 1),
            fill=accent if rng.random() < 0.15 else (grey, grey, grey),
            outline=(128,) * 3 if rng.random() < 0.5 else None,
        )
        y = top + 4
        while y < bottom - 5 and wide > 12 and rng.random() < 0.93:
            ink = accent if rng.random() < 0.2 else ((200,) * 3 if dark else (70,) * 3)
            pen.rectangle(
                (left + 4, y, left + 4 + (wide - 8) * rng.uniform(0.2, 1), y + 1.6), fill=ink
            )
            y += rng.uniform(4, 7)

    pane((0, 0, *size), int(rng.integers(3, 6)))
    return picture


def cells(size: Size, rng: np.random.Generator) -> Image.Image:
    """Paint a Voronoi mosaic (held out of training)."""
    count = int(rng.integers(12, 70))
    seeds = rng.random((count, 2)) * (size[1], size[0])
    y, x = np.arange(size[1])[:, None, None], np.arange(size[0])[None, :, None]
    apart = (y - seeds[:, 0]) ** 2 + (x - seeds[:, 1]) ** 2
    nearest = apart.argmin(-1)
    shade = 1 - np.sqrt(apart.min(-1)) / max(size) * rng.uniform(0, 3)
    return to_picture(rng.random((count, 3))[nearest] * shade[..., None])


def rings(size: Size, rng: np.random.Generator) -> Image.Image:
    """Paint rings around a centre, as in wood or ripples (held out of training)."""
    x, y = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]))
    far = np.hypot(x - rng.uniform(-1, 1), (y - rng.uniform(-1, 1)) * rng.uniform(0.3, 1.5))
    field = np.sin(far * rng.uniform(20, 70) + octaves(size, rng) * rng.uniform(2, 8))
    return tinted(0.5 + field / 2 * (0.6 + 0.4 * octaves(size, rng)), rng)


# Real photographs that ship with installed packages.
PHOTOS = (
    ("gradio", "media_assets/images/cheetah1.jpg"),
    ("gradio", "media_assets/images/lion.jpg"),
    ("gradio", "media_assets/images/tower.jpg"),
    ("gradio", "media_assets/images/groot.jpeg"),
    ("gradio", "test_data/cheetah2.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)


@lru_cache(maxsize=1)
def photos() -> tuple[Image.Image, ...]:
    """Load those of `PHOTOS` that are installed, reduced to a longer side of 320 pixels."""
    found = []
    for package, name in PHOTOS:
        spec = importlib.util.find_spec(package)
        path = Path(spec.origin).parent / name if spec and spec.origin else None
        if path and path.is_file():
            with Image.open(path) as picture:
                picture.draft("RGB", (320, 320))
                picture.thumbnail((320, 320))
                found.append(picture.convert("RGB"))
    return tuple(found)


def photo(size: Size, rng: np.random.Generator) -> Image.Image:
    """Return a crop of a real photograph (held out of training), or a relief without any."""
    if not photos():
        return shiny(size, rng)
    picture = photos()[rng.integers(len(photos()))]
    share = rng.uniform(0.5, 1)
    wide, high = picture.width * share, picture.height * share
    x, y = rng.uniform(0, picture.width - wide), rng.uniform(0, picture.height - high)
    part = picture.resize(size, Image.Resampling.BICUBIC, (x, y, x + wide, y + high))
    return ImageOps.mirror(part) if rng.random() < 0.5 else part


Painter = Callable[[Size, np.random.Generator], Image.Image]
STYLES: dict[str, tuple[Painter, float]] = {
    "landscape": (landscape, 4),
    "leaves": (leaves, 5),
    "portrait": (portrait, 5),
    "rendered": (rendered, 4),
    "foliage": (foliage, 3),
    "clouds": (clouds, 2.5),
    "blend": (blend, 1.2),
    "waves": (waves, 2),
    "bokeh": (bokeh, 2),
    "noise": (noise, 2.5),
    "page": (page, 2.5),
    "screen": (screen, 2.5),
    "subject": (subject, 6),
}
"""The styles of training pictures, each with how often it is drawn."""
HELD_OUT_STYLES: dict[str, Painter] = {
    "cells": cells,
    "rings": rings,
    "shiny": shiny,
    "photo": photo,
}
PAINTERS: dict[str, Painter] = {name: paint for name, (paint, _) in STYLES.items()}
PAINTERS |= HELD_OUT_STYLES


def apply_camera(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Apply what a camera adds: uneven light, a colour cast, grain, blur, sometimes greyscale."""
    field: Field = np.asarray(picture, dtype=np.float32) / 255
    high, wide = field.shape[:2]
    x = np.linspace(-1, 1, wide, dtype=np.float32)
    y = np.linspace(-1, 1, high, dtype=np.float32)[:, None]
    light = 1 + rng.normal(0, 0.12) * x + rng.normal(0, 0.15) * y
    light = light - rng.uniform(0, 0.3) * (x**2 + y**2)
    field = field * light[..., None] * rng.normal(1, 0.06, 3).astype(np.float32)
    field = (field - 0.5) * rng.uniform(0.6, 1.25) + 0.5 + rng.normal(0, 0.06)
    if rng.random() < 0.12:
        field = np.broadcast_to(field.mean(-1, keepdims=True), field.shape)
    grain = rng.standard_normal((high, wide, rng.choice((1, 3))), dtype=np.float32)
    field = field + grain * np.float32(rng.uniform(0, 0.05))
    done = to_picture(field)
    if rng.random() < 0.25:
        return done.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.3)))
    return done


class Outside:
    """The `Room` of unknown pictures; questions of other `rooms` are asked and refused here."""

    name = "outside"
    kinds = KINDS

    def __init__(self, rooms: Sequence[Room]) -> None:
        self.rooms = tuple(rooms)

    def make(self, rng: random.Random, split: Split) -> Scene:
        """Make a scene of a random style; see `Room.make`."""
        if split == "test" and rng.random() < 0.4:
            style = rng.choice(list(HELD_OUT_STYLES))
        else:
            style = rng.choices(list(STYLES), [weight for _, weight in STYLES.values()])[0]
        side = rng.randint(112, 168) if rng.random() < 0.9 else rng.choice((64, 96, 256, 384))
        aspect = 1.0 if rng.random() < 0.4 else rng.uniform(0.62, 1.6)
        width, height = round(side * aspect**0.5), round(side / aspect**0.5)
        item = Item("outside", (0.0, 0.0, 1.0, 1.0))
        return Scene(self.name, style, width, height, (item,), rng.getrandbits(32))

    def draw(self, scene: Scene) -> Image.Image:
        """Draw the scene; see `Room.draw`."""
        rng = np.random.default_rng(scene.seed)
        paint = PAINTERS[scene.layout]
        shrink = min(1.0, LONGEST_PAINTED / max(scene.width, scene.height))
        picture = paint((round(scene.width * shrink), round(scene.height * shrink)), rng)
        plain = ("page", "screen", "noise", "blend")
        if scene.layout != "photo" and (scene.layout not in plain or rng.random() < 0.4):
            picture = apply_camera(picture, rng)
        if shrink == 1:
            return picture
        return picture.resize((scene.width, scene.height), Image.Resampling.BICUBIC)

    def ask(self, scene: Scene, rng: random.Random, split: Split) -> list[QA]:
        """Return questions about the scene; see `Room.ask`."""
        questions = [fill_template(OWN_QUESTIONS, rng, split) for _ in range(3)]
        for room in rng.sample(self.rooms, min(2, len(self.rooms))):
            other_scene = room.make(rng, split)
            asked = [qa.question for qa in room.ask(other_scene, rng, split)]
            questions += rng.sample(asked, min(5, len(asked)))
        return [QA("outside", question, SHORT, SENTENCE) for question in dict.fromkeys(questions)]
