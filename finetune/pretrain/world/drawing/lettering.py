"""Fonts, and letters set in a row: shared by writing and charts."""

import importlib.util
import itertools
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont
from PIL.ImageFont import FreeTypeFont

from finetune.pretrain.world.drawing.paint import RGB, Canvas, ground_rgb
from finetune.pretrain.world.scene import Split

AILERON = "Aileron"
"""The font that Pillow itself carries."""
# These come with matplotlib, which the project depends on.
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
"""Those whose digits stay legible when small."""


@lru_cache(maxsize=1)
def font_folder() -> Path | None:
    spec = importlib.util.find_spec("matplotlib")
    return Path(spec.origin).parent / "mpl-data/fonts/ttf" if spec and spec.origin else None


@lru_cache(maxsize=1024)
def font(name: str, size: int) -> FreeTypeFont:
    """A font at so many pixels an em; Pillow's own one where matplotlib is not installed."""
    folder = font_folder()
    if name == AILERON or folder is None:
        return ImageFont.load_default(size)
    return ImageFont.truetype(folder / f"{name}.ttf", size)


def pick_font(rng: random.Random, split: Split) -> str:
    """Any font; the held-out one for a third of the test split and never in training."""
    if split == "test" and rng.random() < 0.33:
        return HELD_OUT_FONT
    return rng.choice(FONTS)


def lightness(rgb: RGB) -> float:
    """Luma, 0..255."""
    return 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2]


def legible_ground(pen: RGB, rng: random.Random) -> RGB:
    """A background that thin lines of the colour `pen` can be read on: lighter or darker."""
    for _ in range(12):
        ground = ground_rgb(rng, [pen])
        if abs(lightness(ground) - lightness(pen)) > 70:
            return ground
    return (20, 20, 25) if lightness(pen) > 110 else (245, 245, 240)


@dataclass(frozen=True)
class Glyph:
    """A letter in its place: pixel origin on the baseline, and the box of its ink."""

    letter: str
    x: float
    y: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Line:
    """A row of letters in one font, `size` pixels an em."""

    glyphs: tuple[Glyph, ...]
    font: str
    size: float

    @property
    def box(self) -> tuple[float, float, float, float]:
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
    """Advance and ink box around the baseline's origin, in ems."""
    face = font(name, _EM)
    box = face.getbbox(letter, anchor="ls")
    return face.getlength(letter) / _EM, tuple(v / _EM for v in box)


def advances(name: str, text: str) -> list[float]:
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
    """Letters from `left` on; neighbours' centres at least `pitch` pixels apart; the baseline
    falls by `slope` pixels a pixel.
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
    """Pixels from the first letter's left to the last one's right."""
    wide = [a * size for a in advances(name, text)]
    steps = (max(pitch, (a + b) / 2) for a, b in itertools.pairwise(wide))
    return wide[0] / 2 + sum(steps) + wide[-1] / 2


def draw_line(
    canvas: Canvas, line: Line, rgb: RGB, edge: RGB | None = None, shadow: RGB | None = None
) -> None:
    """Draw the letters; `edge` gives them a thin contour, `shadow` a shade to the right below."""
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
    """A line whose ink is centred on (x, y)."""
    line = set_line(text, name, size, 0, 0)
    left, top, right, bottom = line.box
    return set_line(text, name, size, x - (left + right) / 2, y - (top + bottom) / 2)
