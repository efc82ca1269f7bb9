"""Fonts, and lines of letters with known ink boxes, for the writing and charts rooms."""

import importlib.util
import itertools
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont
from PIL.ImageFont import FreeTypeFont

from finetune.pretrain.world.drawing.paint import RGB, Canvas, background_rgb
from finetune.pretrain.world.scene import Split

AILERON = "Aileron"
"""The font that ships with Pillow."""
# Except for Aileron they ship with matplotlib, on which the project depends.
FONTS = (
    AILERON,
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "cmr10",
    "cmss10",
    "cmb10",
)
HELD_OUT_FONT = "cmtt10"
CLEAR_FONTS = (AILERON, "DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold")
"""Fonts whose digits stay legible when small."""


@lru_cache(maxsize=1)
def font_folder() -> Path | None:
    """Return matplotlib's folder of TrueType fonts, or None without matplotlib."""
    spec = importlib.util.find_spec("matplotlib")
    return Path(spec.origin).parent / "mpl-data/fonts/ttf" if spec and spec.origin else None


@lru_cache(maxsize=1024)
def font(name: str, size: int) -> FreeTypeFont:
    """Load a font at `size` pixels per em; without matplotlib, always Pillow's own font."""
    folder = font_folder()
    if name == AILERON or folder is None:
        default = ImageFont.load_default(size)
        assert isinstance(default, FreeTypeFont)  # a bitmap font only where FreeType is missing
        return default
    return ImageFont.truetype(folder / f"{name}.ttf", size)


def pick_font(rng: random.Random, split: Split) -> str:
    """Pick a font; the held-out one in a third of the test split and never in training."""
    if split == "test" and rng.random() < 0.33:
        return HELD_OUT_FONT
    return rng.choice(FONTS)


def lightness(rgb: RGB) -> float:
    """Return the luma, 0..255."""
    return 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2]


def legible_background(pen: RGB, rng: random.Random) -> RGB:
    """Return a background colour on which thin lines of the colour `pen` are legible."""
    for _ in range(12):
        ground = background_rgb(rng, [pen])
        if abs(lightness(ground) - lightness(pen)) > 70:
            return ground
    return (20, 20, 25) if lightness(pen) > 110 else (245, 245, 240)


@dataclass(frozen=True)
class Glyph:
    """A placed letter: its origin on the baseline and its ink box, in pixels."""

    letter: str
    x: float
    y: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Line:
    """A row of letters in one font at `size` pixels per em."""

    glyphs: tuple[Glyph, ...]
    font: str
    size: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The box around all ink: left, top, right, bottom in pixels."""
        boxes = [glyph.box for glyph in self.glyphs]
        return (
            min(b[0] for b in boxes),
            min(b[1] for b in boxes),
            max(b[2] for b in boxes),
            max(b[3] for b in boxes),
        )


_EM = 100


@lru_cache(maxsize=4096)
def metrics(name: str, letter: str) -> tuple[float, tuple[float, float, float, float]]:
    """Return a letter's advance and its ink box around the origin on the baseline, in ems."""
    face = font(name, _EM)
    box = face.getbbox(letter, anchor="ls")
    left, top, right, bottom = (v / _EM for v in box)
    return face.getlength(letter) / _EM, (left, top, right, bottom)


def advances(name: str, text: str) -> list[float]:
    """Return the advance of each letter, in ems."""
    return [metrics(name, letter)[0] for letter in text]


def set_line(
    text: str,
    name: str,
    size: float,
    left: float,
    baseline: float,
    pitch: float = 0.0,
    slope: float = 0.0,
) -> Line:
    """Place the letters of `text` in a row.

    Args:
        text: What is written.
        name: The font's name.
        size: Pixels per em.
        left: Where the first letter begins, in pixels.
        baseline: The height of the baseline at the first letter, in pixels.
        pitch: The least distance between the centres of neighbouring letters, in pixels.
        slope: How far the baseline falls per pixel to the right.
    """
    wide = [a * size for a in advances(name, text)]
    centres = [left + wide[0] / 2]
    for a, b in itertools.pairwise(wide):
        centres.append(centres[-1] + max(pitch, (a + b) / 2))
    glyphs = []
    for letter, centre, advance in zip(text, centres, wide, strict=True):
        ink = metrics(name, letter)[1]
        x, y = centre - advance / 2, baseline + slope * (centre - left)
        glyphs.append(
            Glyph(
                letter,
                x,
                y,
                (x + ink[0] * size, y + ink[1] * size, x + ink[2] * size, y + ink[3] * size),
            )
        )
    return Line(tuple(glyphs), name, size)


def line_width(text: str, name: str, size: float, pitch: float = 0.0) -> float:
    """Return the width in pixels of the line that `set_line` would place."""
    wide = [a * size for a in advances(name, text)]
    steps = (max(pitch, (a + b) / 2) for a, b in itertools.pairwise(wide))
    return wide[0] / 2 + sum(steps) + wide[-1] / 2


def draw_line(
    canvas: Canvas, line: Line, rgb: RGB, edge: RGB | None = None, shadow: RGB | None = None
) -> None:
    """Draw the letters, with a thin contour in `edge` and a drop shadow in `shadow` if given."""
    scale = canvas.scale
    face = font(line.font, max(6, round(line.size * scale)))
    width = max(1, round(line.size * scale * 0.03)) if edge else 0
    for glyph in line.glyphs:
        at = (glyph.x * scale, glyph.y * scale)
        if shadow:
            off = line.size * scale * 0.06
            canvas.pen.text(
                (at[0] + off, at[1] + off), glyph.letter, fill=shadow, font=face, anchor="ls"
            )
        canvas.pen.text(
            at, glyph.letter, fill=rgb, font=face, anchor="ls", stroke_width=width, stroke_fill=edge
        )


def centred(text: str, name: str, size: float, x: float, y: float) -> Line:
    """Place a line so that its ink is centred on pixel (x, y)."""
    line = set_line(text, name, size, 0, 0)
    left, top, right, bottom = line.box
    return set_line(text, name, size, x - (left + right) / 2, y - (top + bottom) / 2)
