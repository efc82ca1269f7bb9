"""Compress packed photographs and icons into small files, to copy them to another machine.

    python -m finetune.pretrain.shards write --photos DIR --icons DIR --out DIR --megabytes 30
    python -m finetune.pretrain.shards read --shards DIR --photos OUT --icons OUT

Pictures become WebP, a tenth of the size of the arrays that `pack_data` writes. Every shard of
photographs is a random sample of them, so any number of shards is enough to train on.
"""

import argparse
import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

PHOTO_QUALITY, ICON_QUALITY = 15, 40
"""WebP's quality settings; photographs of 64 x 64 pixels keep a PSNR of 25 dB."""


def encode(pixels: np.ndarray, quality: int) -> bytes:
    """Compress a picture [height, width, 3 or 4] to WebP."""
    buffer = io.BytesIO()
    # With transparency, the slowest method takes a hundred times as long and saves two per cent.
    Image.fromarray(pixels).save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()


def decode(data: bytes, channels: int) -> np.ndarray:
    """Decode a picture to [height, width, channels]."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA" if channels == 4 else "RGB"))


def _compressed_groups(
    images: np.ndarray, order: Sequence[int], quality: int, limit: int
) -> Iterator[tuple[list[int], list[bytes]]]:
    """Compress the images `order` and yield (rows, WebP files) in groups of up to `limit` bytes."""
    rows: list[int] = []
    parts: list[bytes] = []
    size = 0
    with ThreadPoolExecutor() as threads:
        for row, part in zip(
            order, threads.map(lambda row: encode(images[row], quality), order), strict=True
        ):
            if parts and size + len(part) > limit:
                yield rows, parts
                rows, parts, size = [], [], 0
            rows.append(int(row))
            parts.append(part)
            size += len(part)
    yield rows, parts


def write_photo_shards(photos: Path, out: Path, limit: int, held_out: int = 3000) -> None:
    """Write photos-000.npz, ... with all training photographs and `held_out` of the others."""
    images = np.load(photos / "images.npy", mmap_mode="r")
    columns = {name: np.load(photos / f"{name}.npy") for name in ("labels", "splits", "boxes")}
    rng = np.random.default_rng(0)
    training = np.flatnonzero(columns["splits"] == 0)
    others = np.flatnonzero(columns["splits"] == 1)
    others = rng.choice(others, min(held_out, len(others)), replace=False)
    order = rng.permutation(np.concatenate((training, others))).tolist()
    for number, (rows, parts) in enumerate(_compressed_groups(images, order, PHOTO_QUALITY, limit)):
        chosen = {name: column[rows] for name, column in columns.items()}
        _save(out / f"photos-{number:03}.npz", parts, **chosen)


def write_icon_shards(icons: Path, out: Path, limit: int) -> None:
    """Write icons-000.npz, ... with the set and the name of every icon."""
    images = np.load(icons / "images.npy", mmap_mode="r")
    names = json.loads((icons / "icons.json").read_text("utf-8"))
    for number, (rows, parts) in enumerate(
        _compressed_groups(images, range(len(images)), ICON_QUALITY, limit)
    ):
        _save(out / f"icons-{number:03}.npz", parts, names=np.array([names[row] for row in rows]))


def _save(path: Path, parts: list[bytes], **columns: np.ndarray) -> None:
    edges = np.cumsum([0, *(len(part) for part in parts)])
    data = np.frombuffer(b"".join(parts), np.uint8)
    np.savez(path, data=data, edges=edges, **columns)  # type: ignore[arg-type]


def _pictures(shard: dict[str, np.ndarray], channels: int) -> np.ndarray:
    """Decode all pictures of a shard to [n, height, width, channels]."""
    data = shard["data"].tobytes()
    parts = [data[start:end] for start, end in pairwise(shard["edges"].tolist())]
    with ThreadPoolExecutor() as threads:
        return np.stack(list(threads.map(lambda part: decode(part, channels), parts)))


def read_shards(folder: Path, photos: Path, icons: Path) -> None:
    """Write packed data, as `pack_data` does, from the shards in a folder."""
    loaded = [dict(np.load(path)) for path in sorted(folder.glob("photos-*.npz"))]
    if loaded:
        photos.mkdir(parents=True, exist_ok=True)
        np.save(photos / "images.npy", np.concatenate([_pictures(s, 3) for s in loaded]))
        for name in ("labels", "splits", "boxes"):
            np.save(photos / f"{name}.npy", np.concatenate([s[name] for s in loaded]))
    loaded = [dict(np.load(path)) for path in sorted(folder.glob("icons-*.npz"))]
    if loaded:
        icons.mkdir(parents=True, exist_ok=True)
        np.save(icons / "images.npy", np.concatenate([_pictures(s, 4) for s in loaded]))
        names = [row for s in loaded for row in s["names"].tolist()]
        (icons / "icons.json").write_text(json.dumps(names), "utf-8")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m finetune.pretrain.shards", description=__doc__.split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write", help="write shards of packed data")
    write.add_argument("--photos", type=Path, help="folder of packed photographs")
    write.add_argument("--icons", type=Path, help="folder of packed icons")
    write.add_argument("--out", type=Path, required=True, help="folder of the shards")
    write.add_argument("--megabytes", type=float, default=30, help="largest size of a shard")
    read = commands.add_parser("read", help="write packed data from shards")
    read.add_argument("--shards", type=Path, required=True, help="folder of the shards")
    read.add_argument("--photos", type=Path, required=True, help="folder to write to")
    read.add_argument("--icons", type=Path, required=True, help="folder to write to")
    args = parser.parse_args()
    if args.command == "read":
        read_shards(args.shards, args.photos, args.icons)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    limit = round(args.megabytes * 1e6)
    if args.icons:
        write_icon_shards(args.icons, args.out, limit)
    if args.photos:
        write_photo_shards(args.photos, args.out, limit)


if __name__ == "__main__":
    main()
