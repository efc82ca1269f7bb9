"""Pack published photographs and icons into arrays, which training maps into memory.

    python -m finetune.pretrain.pack_data --tiny-imagenet DIR --cifar-10 DIR --photos OUT
    python -m finetune.pretrain.pack_data --icon-sets DIR --icons OUT

Tiny ImageNet is read as published (train/, val/), CIFAR-10 as picture files in train/CLASS/ and
test/CLASS/. Icon sets are JSON files in Iconify's format, each named after its set, such as
`noto.json` from the package `@iconify-json/noto`.
"""

import argparse
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.pretrain.world.rooms.icons.store import ICON_SIZE, icon_concepts
from finetune.pretrain.world.rooms.photos.store import PHOTO_SIZE, photo_classes

TRAIN, HELD_OUT = 0, 1


@dataclass(frozen=True)
class PhotoFile:
    """A photograph to pack: its class, its split, and its object's box in fractions."""

    path: Path
    label: int
    split: int
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


def tiny_imagenet(folder: Path) -> Iterator[PhotoFile]:
    """Yield the pictures of train/ and val/, with their boxes."""
    label_of = {key: k for k, c in enumerate(photo_classes()) for key in c.keys}

    def labelled(path: Path, folder_name: str, split: int, corners: list[str]) -> PhotoFile:
        left, top, right, bottom = (int(v) for v in corners)
        box = (left / 64, top / 64, (right + 1) / 64, (bottom + 1) / 64)
        return PhotoFile(path, label_of[folder_name], split, box)

    for boxes in sorted(folder.glob("train/*/*_boxes.txt")):
        for line in boxes.read_text("utf-8").splitlines():
            name, *corners = line.split()
            yield labelled(boxes.parent / "images" / name, boxes.parent.name, TRAIN, corners)
    for line in (folder / "val/val_annotations.txt").read_text("utf-8").splitlines():
        name, folder_name, *corners = line.split()
        yield labelled(folder / "val/images" / name, folder_name, HELD_OUT, corners)


def cifar_10(folder: Path) -> Iterator[PhotoFile]:
    """Yield the pictures of train/ and test/; their boxes are the whole picture."""
    label_of = {key: k for k, c in enumerate(photo_classes()) for key in c.keys}
    for part, split in (("train", TRAIN), ("test", HELD_OUT)):
        for path in sorted((folder / part).glob("*/*")):
            yield PhotoFile(path, label_of[path.parent.name], split)


def pack_photos(photos: list[PhotoFile], out: Path) -> None:
    """Write images.npy [n, 64, 64, 3], labels.npy, splits.npy and boxes.npy (255 is the edge)."""
    out.mkdir(parents=True, exist_ok=True)
    shape = (len(photos), PHOTO_SIZE, PHOTO_SIZE, 3)
    images = np.lib.format.open_memmap(out / "images.npy", "w+", np.uint8, shape)
    for k, photo in enumerate(photos):
        picture = Image.open(photo.path).convert("RGB")
        if picture.size != (PHOTO_SIZE, PHOTO_SIZE):
            picture = picture.resize((PHOTO_SIZE, PHOTO_SIZE), Image.Resampling.BICUBIC)
        images[k] = np.asarray(picture)
    images.flush()
    np.save(out / "labels.npy", np.array([photo.label for photo in photos], np.int16))
    np.save(out / "splits.npy", np.array([photo.split for photo in photos], np.uint8))
    boxes = np.array([photo.box for photo in photos]) * 255
    np.save(out / "boxes.npy", boxes.round().astype(np.uint8))


def icon_svgs(icon_set: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (name, SVG document) for the icons of a set that are in the table of concepts."""
    icons, aliases = icon_set["icons"], icon_set.get("aliases", {})
    for concept in icon_concepts():
        for name in concept.keys:
            icon = icons.get(name) or icons.get(aliases.get(name, {}).get("parent", ""))
            if icon is None:
                continue
            width = icon.get("width", icon_set.get("width", 16))
            height = icon.get("height", icon_set.get("height", 16))
            left, top = icon.get("left", 0), icon.get("top", 0)
            yield (
                name,
                '<svg xmlns="http://www.w3.org/2000/svg" '
                'xmlns:xlink="http://www.w3.org/1999/xlink" color="#202020" '
                f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">'
                f"{icon['body']}</svg>",
            )


def render(svg: str) -> np.ndarray:
    """Render an icon as RGBA, centred in a square: [ICON_SIZE, ICON_SIZE, 4] uint8."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * ICON_SIZE, height=2 * ICON_SIZE))
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    picture.thumbnail((ICON_SIZE, ICON_SIZE), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (ICON_SIZE, ICON_SIZE))
    square.paste(picture, ((ICON_SIZE - picture.width) // 2, (ICON_SIZE - picture.height) // 2))
    return np.asarray(square)


def pack_icons(sets: Path, out: Path) -> None:
    """Write images.npy [n, 128, 128, 4], and icons.json with the set and name of every icon."""
    out.mkdir(parents=True, exist_ok=True)
    images, rows = [], []
    for path in sorted(sets.glob("*.json")):
        icon_set = json.loads(path.read_text("utf-8"))
        for name, svg in icon_svgs(icon_set) if "icons" in icon_set else ():
            picture = render(svg)
            if picture[..., 3].max() > 0:
                images.append(picture)
                rows.append([path.stem, name])
    np.save(out / "images.npy", np.stack(images))
    (out / "icons.json").write_text(json.dumps(rows), "utf-8")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m finetune.pretrain.pack_data", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--tiny-imagenet", type=Path, help="folder of Tiny ImageNet")
    parser.add_argument("--cifar-10", type=Path, help="folder of CIFAR-10 as picture files")
    parser.add_argument("--photos", type=Path, help="folder to write packed photographs to")
    parser.add_argument("--icon-sets", type=Path, help="folder of icon sets in JSON")
    parser.add_argument("--icons", type=Path, help="folder to write packed icons to")
    args = parser.parse_args()
    if args.icons and not args.icon_sets:
        parser.error("--icons needs --icon-sets.")
    if args.photos and not (args.tiny_imagenet or args.cifar_10):
        parser.error("--photos needs --tiny-imagenet or --cifar-10.")
    if args.photos:
        photos = list(tiny_imagenet(args.tiny_imagenet)) if args.tiny_imagenet else []
        photos += list(cifar_10(args.cifar_10)) if args.cifar_10 else []
        pack_photos(photos, args.photos)
        print(f"{len(photos)} photographs in {args.photos}")
    if args.icons:
        pack_icons(args.icon_sets, args.icons)
        print(f"Icons in {args.icons}")


if __name__ == "__main__":
    main()
