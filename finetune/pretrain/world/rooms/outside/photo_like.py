"""Pictures with the statistics of photographs: fractal detail, light, depth, occlusion.

They use sums of octaves (Perlin, 1985), the dead leaves model (Lee, Mumford and Huang, 2001), and
Lambert and Phong shading of ellipsoids.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from finetune.pretrain.world.scene import Size

Field = npt.NDArray[np.floating]
"""Values of about 0..1, [height, width] or [height, width, 3]."""

# Frequent in photographs: skin, wood, leaves, stone, sky, water, brick, night, sand.
TONES = (
    np.array(
        [
            (224, 172, 140),
            (120, 80, 55),
            (70, 100, 45),
            (140, 140, 135),
            (135, 175, 215),
            (50, 85, 110),
            (150, 75, 60),
            (25, 28, 45),
            (205, 185, 145),
            (60, 60, 58),
            (235, 230, 220),
            (95, 130, 80),
            (180, 120, 60),
            (90, 60, 80),
            (245, 200, 120),
            (30, 45, 30),
        ]
    )
    / 255
)


def to_picture(field: Field) -> Image.Image:
    """Return the picture of a field: greyscale, or RGB if it has three channels."""
    return Image.fromarray((field.clip(0, 1) * 255).astype(np.uint8))


def octaves(size: Size, rng: np.random.Generator, fall: float | None = None) -> Field:
    """Return fractal noise, [height, width] in 0..1; each octave is `fall` times weaker."""
    fall = fall or rng.uniform(1.25, 2.4)
    total = np.zeros((size[1], size[0]), np.float32)
    cells, weight = int(rng.integers(2, 5)), 1.0
    while cells < max(size) and weight > 0.02:
        coarse = rng.normal(0, weight, (cells, cells)).astype(np.float32)
        total += np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
        cells, weight = cells * 2, weight / fall
    low, high = total.min(), total.max()
    return (total - low) / (high - low + 1e-6)


def tone(rng: np.random.Generator) -> Field:
    """Return a random colour near one of `TONES`, [3]."""
    shade = TONES[rng.integers(len(TONES))] + rng.normal(0, 0.06, 3)
    return shade.clip(0, 1).astype(np.float32)


def ramp(field: Field, low: Field, high: Field) -> Field:
    """Return the field as shades between two colours, [height, width, 3]."""
    return low + (high - low) * field[..., None]


def tinted(field: Field, rng: np.random.Generator) -> Image.Image:
    """Return the field as a picture in a palette of two to four colours."""
    stops = rng.integers(2, 5)
    wild = rng.random() < 0.4
    palette = rng.random((stops, 3)) if wild else np.stack([tone(rng) for _ in range(stops)])
    at = np.linspace(0, 1, stops)
    return to_picture(np.stack([np.interp(field, at, palette[:, c]) for c in range(3)], -1))


def speckle(size: Size, rng: np.random.Generator, strength: float) -> Field:
    """Return fine texture around 1 to multiply a field with, [height, width, 1]."""
    grain = octaves(size, rng, rng.uniform(1.0, 1.5))
    return (grain * np.float32(strength) + np.float32(1 - strength / 2))[..., None]


def landscape(size: Size, rng: np.random.Generator) -> Image.Image:
    """Paint a cloudy sky and ridges, with less haze the nearer they are."""
    wide, high = size
    down = np.linspace(0, 1, high, dtype=np.float32)[:, None]
    top, bottom = tone(rng) * np.array((0.5, 0.7, 1.0), np.float32), tone(rng) * 0.4 + 0.6
    field = ramp(np.broadcast_to(down, (high, wide)), top, bottom)
    cover = (octaves(size, rng, 1.7) - rng.uniform(0.3, 0.7)).clip(0, 1)[..., None] * 2
    field = field * (1 - cover.clip(0, 1)) + rng.uniform(0.75, 1) * cover.clip(0, 1)
    near, ridges = tone(rng) * 0.7, int(rng.integers(1, 5))
    horizon = rng.uniform(0.3, 0.65)
    rows, grain = np.arange(high)[:, None], octaves(size, rng, 1.3)
    for k in range(ridges):
        depth = (k + 1) / ridges
        line = octaves((wide, 4), rng, rng.uniform(1.5, 2.6))[0] - 0.5
        base = horizon + (1 - horizon) * 0.7 * k / ridges
        crest = high * (base + line * rng.uniform(0.02, 0.4) * (1.2 - depth))
        haze = bottom * (0.8 * (1 - depth))
        land = ramp(grain, near * (0.55 * depth) + haze, near * (1.1 * depth) + haze)
        field = np.where((rows > crest)[..., None], land, field)
    if rng.random() < 0.3:  # a lake or a road that mirrors the sky
        level = int(high * rng.uniform(0.65, 0.9))
        mirrored = field[level - 1 :: -1][: high - level]
        field[level : level + len(mirrored)] = mirrored * 0.75
    return to_picture(field * speckle(size, rng, 0.25))


def leaves(size: Size, rng: np.random.Generator) -> Image.Image:
    """Paint dead leaves: textured patches of all sizes that hide each other."""
    grain = octaves(size, rng, 1.3)
    shades = [
        ramp(grain if k % 2 else 1 - grain, c * 0.5, c * 1.15)
        for k, c in enumerate(tone(rng) for _ in range(5))
    ]
    layers = [to_picture(shade) for shade in shades]
    picture = layers[0].copy()
    many, boxy = int(rng.integers(20, 70)), rng.random()
    for _ in range(many):
        radius = min(size) * min(0.5, 0.04 * rng.random() ** -0.6)
        x, y = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        corners = int(rng.integers(3, 6)) if rng.random() < boxy else 14
        start, flat = rng.uniform(0, 7), rng.uniform(0.3, 1)
        turns = np.sort(rng.uniform(0, 2 * np.pi, corners)) + start
        far = radius * rng.uniform(0.6, 1.1, corners)
        spots = np.stack([x + far * np.cos(turns), y + far * np.sin(turns) * flat], -1)
        left, top = np.floor(spots.min(0)).astype(int).tolist()
        right, bottom = np.ceil(spots.max(0)).astype(int).tolist()
        mask = Image.new("L", (right - left + 1, bottom - top + 1))
        ImageDraw.Draw(mask).polygon([tuple(p) for p in (spots - (left, top)).tolist()], fill=255)
        leaf = layers[rng.integers(len(layers))].crop((left, top, right + 1, bottom + 1))
        picture.paste(leaf, (left, top), mask)
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.4)))


def body(
    field: Field,
    centre: tuple[float, float],
    radii: tuple[float, float],
    colour: Field,
    light: Field,
    gloss: float,
    texture: Field | None = None,
) -> None:
    """Paint a shaded ellipsoid with a soft edge into `field` [height, width, 3], in place.

    Args:
        field: The picture.
        centre: The centre in pixels.
        radii: The radii in pixels.
        colour: The colour, [3].
        light: The unit vector towards the light.
        gloss: The strength of the specular highlight.
        texture: A texture of the field's size to multiply with.
    """
    high, wide = field.shape[:2]
    left, right = (int(min(max(centre[0] + s * radii[0], 0), wide)) for s in (-1, 1))
    top, bottom = (int(min(max(centre[1] + s * radii[1], 0), high)) for s in (-1, 1))
    if right <= left or bottom <= top:
        return
    x = (np.arange(left, right, dtype=np.float32) - centre[0]) / radii[0]
    y = ((np.arange(top, bottom, dtype=np.float32) - centre[1]) / radii[1])[:, None]
    flat = x**2 + y**2
    depth = np.sqrt((1 - flat).clip(0, 1))
    facing = (x * light[0] + y * light[1] + depth * light[2]).clip(0, 1)
    shades = colour * (0.25 + 0.85 * facing)[..., None] + gloss * (facing**18)[..., None]
    if texture is not None:
        shades = shades * texture[top:bottom, left:right]
    mask = ((1 - flat) * min(radii) / 3).clip(0, 1)[..., None]
    part = field[top:bottom, left:right]
    part += (shades - part) * mask


def light_direction(rng: np.random.Generator) -> Field:
    """Return a unit vector towards the light, which is above and on the viewer's side."""
    way = np.array((rng.uniform(-1, 1), rng.uniform(-1, 0.1), rng.uniform(0.4, 1.2)))
    return (way / np.linalg.norm(way)).astype(np.float32)


def blurred_background(size: Size, rng: np.random.Generator) -> Field:
    """Return an out-of-focus background."""
    back = leaves(size, rng) if rng.random() < 0.5 else tinted(octaves(size, rng, 2.0), rng)
    back = back.filter(ImageFilter.GaussianBlur(rng.uniform(2, 7)))
    return np.asarray(back, dtype=np.float32) / 255


def portrait(size: Size, rng: np.random.Generator) -> Image.Image:
    """Paint a head and shoulders, or an animal's body, before a blurred background."""
    wide, high = size
    field, light = blurred_background(size, rng), light_direction(rng)
    x, y = wide * rng.uniform(0.35, 0.65), high * rng.uniform(0.3, 0.5)
    head = min(size) * rng.uniform(0.14, 0.28)
    skin, coat, hair = tone(rng), tone(rng), tone(rng) * 0.6
    grain = speckle(size, rng, rng.uniform(0.1, 0.6))
    parts = [
        ((x, y + head * 2.6), (head * 2, head * 1.6), coat),
        ((x, y - head * 0.2), (head * 0.95, head * 1.2), hair),
        ((x, y + head * 0.15), (head * 0.75, head), skin),
    ]
    for side in (-1, 1):
        eye = (x + side * head * 0.3, y)
        parts.append((eye, (head * 0.1, head * 0.07), np.full(3, 0.15)))
    parts.append(((x, y + head * 0.55), (head * 0.3, head * 0.09), skin * 0.6))
    if rng.random() < 0.4:  # an animal with four legs instead
        parts = [
            ((x, y + head), (head * 2.2, head * 1.1), coat),
            ((x + head * 1.8, y), (head * 0.8, head * 0.7), coat * 0.9),
            *(
                ((x + head * d, y + head * 2.2), (head * 0.25, head), coat * 0.8)
                for d in (-1.5, -1.0, 1.0, 1.5)
            ),
        ]
    for centre, radii, colour in parts:
        body(field, centre, radii, colour, light, 0.1, grain)
    return to_picture(field)


def rendered(size: Size, rng: np.random.Generator) -> Image.Image:
    """Paint a still life: ellipsoids on a table with their shadows."""
    wide, high = size
    light, level = light_direction(rng), rng.uniform(0.3, 0.65)
    wall, table = tone(rng), tone(rng)
    rows = np.linspace(0, 1, high, dtype=np.float32)[:, None, None]
    grain = octaves(size, rng, 1.4)
    field = np.where(
        rows > level, ramp(grain, table * 0.7, table * 1.1), wall * (0.7 + 0.5 * rows)
    ).astype(np.float32)
    rough = speckle(size, rng, 0.35)
    for _ in range(int(rng.integers(2, 7))):
        radius = min(size) * rng.uniform(0.06, 0.24)
        radii = (radius * rng.uniform(0.5, 1.1), radius * rng.uniform(0.6, 1.4))
        centre = (rng.uniform(0, wide), high * rng.uniform(level - 0.05, 0.9))
        shadow = (centre[0] - light[0] * radius, centre[1] + radii[1] * 0.85)
        body(field, shadow, (radii[0] * 1.2, radius * 0.3), table * 0.5, light, 0)
        body(field, centre, radii, tone(rng), light, rng.choice((0.0, 0.2, 0.7)), rough)
    return to_picture(field)


def silhouette(size: Size, middle: tuple[float, float], rng: np.random.Generator) -> Image.Image:
    """Return the soft mask of an irregular shape, as a picture of mode "L"."""
    count = int(rng.integers(5, 14))
    turns = np.sort(rng.uniform(0, 2 * np.pi, count))
    far = rng.uniform(0.45, 1.0, count)
    wide, high = rng.uniform(0.2, 0.5, 2)
    x = size[0] * (middle[0] + rng.normal(0, 0.08) + wide * far * np.cos(turns))
    y = size[1] * (middle[1] + rng.normal(0, 0.1) + high * far * np.sin(turns))
    if rng.random() < 0.3:  # extend it to the lower edge
        y = np.where(y > y.mean(), size[1] + 4, y)
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=255)
    if rng.random() < 0.5:  # round its corners
        mask = mask.filter(ImageFilter.GaussianBlur(min(size) * 0.05))
        mask = mask.point(lambda v: min(255, max(0, (v - 100) * 6)))
    return mask.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.2)))


def subject(size: Size, rng: np.random.Generator) -> Image.Image:
    """Paint a textured object of a few parts before a plain sky or wall."""
    wide, high = size
    down = np.broadcast_to(np.linspace(0, 1, high, dtype=np.float32)[:, None], (high, wide))
    low, top = tone(rng), tone(rng)
    if rng.random() < 0.35:
        low = top = np.full(3, rng.uniform(0.85, 1), np.float32)
    field = ramp(down, top, low * 0.4 + top * 0.6)
    middle = rng.uniform(0.35, 0.65), rng.uniform(0.4, 0.7)
    for _ in range(int(rng.integers(1, 5))):
        dark = np.maximum(tone(rng), 0.3)
        coat = ramp(octaves(size, rng, rng.uniform(1.0, 1.4)), dark * 0.15, dark * 1.6)
        light = 0.6 + 0.7 * octaves(size, rng, 2.4)[..., None]
        if rng.random() < 0.6:  # a fine weave, as of cloth, fur or girders
            x, y = np.arange(wide)[None, :], np.arange(high)[:, None]
            turn, pitch = rng.uniform(0, np.pi), rng.uniform(2.5, 9)
            weave = np.sin((x * np.cos(turn) + y * np.sin(turn)) * 2 * np.pi / pitch)
            weave = weave * np.sin((x * np.sin(turn) - y * np.cos(turn)) * 2 * np.pi / pitch)
            light = light * (1 + 0.5 * weave[..., None]).astype(np.float32)
        mask = np.asarray(silhouette(size, middle, rng), np.float32)[..., None] / 255
        field = field * (1 - mask) + coat * light * mask
    return to_picture(field)


def foliage(size: Size, rng: np.random.Generator) -> Image.Image:
    """Paint many thin strokes in about one direction, as in grass, fur or hair."""
    base, picture = tone(rng), tinted(octaves(size, rng), rng)
    pen = ImageDraw.Draw(picture)
    turn, spread = rng.uniform(0, np.pi), rng.uniform(0.1, 0.9)
    count = int(rng.integers(250, 700))
    starts = rng.random((count, 2)) * size
    angles = rng.normal(turn, spread, count)
    longs = rng.uniform(5, 28, count)
    shades = (base * rng.uniform(0.35, 1.3, (count, 1)) * 255).clip(0, 255).astype(int)
    ends = starts + np.stack([np.cos(angles), np.sin(angles)], -1) * longs[:, None]
    for start, end, shade in zip(starts.tolist(), ends.tolist(), shades.tolist(), strict=True):
        pen.line((*start, *end), fill=tuple(shade), width=1 + (len(shade) > 3))
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))


def shiny(size: Size, rng: np.random.Generator) -> Image.Image:
    """Paint a glossy relief in raking light, as of rock or water (held out of training)."""
    height = octaves(size, rng, rng.uniform(1.5, 2.2)) * rng.uniform(10, 40)
    down, across = np.gradient(height)
    light = light_direction(rng)
    facing = (-across * light[0] - down * light[1] + light[2]) / np.sqrt(across**2 + down**2 + 1)
    colour = tone(rng)
    return to_picture(
        colour * (0.2 + 0.8 * facing.clip(0, 1))[..., None]
        + 0.5 * (facing.clip(0, 1) ** 14)[..., None]
    )
