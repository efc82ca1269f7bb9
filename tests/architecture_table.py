"""The table of architectures in ARCHITECTURE.md, made from the models and processors themselves.

`python -m tests.architecture_table` writes it anew. `tests/test_architecture_table.py` checks that
it is up to date, and the tests of the engine and of training prove what it says.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.architectures import ARCHITECTURES, CATALOGUE_ARCHITECTURES
from tests.tiny import picture

PAGE = Path(__file__).parent.parent / ".github" / "ARCHITECTURE.md"
HEADER = (
    "architecture",
    "models in the list",
    "prefix reuse",
    "features kept",
    "warming",
    "training",
    "attention map",
    "batched answers",
    "tokens of a picture",
)
_SIZES = ((48, 40), (40, 160), (200, 50))
_TILING = ("do_image_splitting", "crop_to_patches", "image_grid_pinpoints", "max_slice_nums")


def table(checkpoints: dict[str, Path]) -> str:
    """Return the table in Markdown.

    Args:
        checkpoints: For each name in `ARCHITECTURES`, a checkpoint of it.
    """
    lines = [HEADER, tuple("---" for _ in HEADER)]
    lines += [_row(name, checkpoint) for name, checkpoint in checkpoints.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def table_on_page() -> str:
    """Return the table as it is in ARCHITECTURE.md."""
    text = PAGE.read_text(encoding="utf-8")
    start = text.index(f"| {HEADER[0]} |")
    return text[start : text.index("\n\n", start) + 1]


def _row(name: str, checkpoint: Path) -> tuple[str, ...]:
    from vqa_app.checkpoints.loader import load_model

    loaded = load_model(str(checkpoint), device="cpu", dtype="float32")
    allows = loaded.capabilities
    listed = [hub for hub, kind in CATALOGUE_ARCHITECTURES.items() if kind == name]
    return (
        name,
        ", ".join(hub.split("/")[1] for hub in listed),
        "yes" if allows.reuses_prefixes else "no",
        "yes" if allows.caches_features else "no",
        "prompt" if allows.reuses_prefixes else "pictures" if allows.caches_features else "no",
        "questions share a prefix" if allows.trains_shared_prefixes else "yes",
        "yes" if allows.maps_attention else "no",
        _batching(loaded),
        _picture_tokens(loaded.processor),
    )


def _batching(loaded: Any) -> str:
    from vqa_app.engine.batched import _stack
    from vqa_app.prompts.conversation import Conversation
    from vqa_app.prompts.prompt import encode

    if loaded.capabilities.shares_prefixes:
        return "share a prefix"
    prompts = [
        encode(loaded.processor, Conversation.ask("What?", [picture(0, size)]), answer_next=True)
        for size in _SIZES
    ]
    stacked = _stack([prompt.inputs for prompt in prompts], True, 0)
    return "padded" if stacked is not None else "padded, if tiled alike"


def _picture_tokens(processor: Any) -> str:
    from vqa_app.prompts.conversation import Conversation
    from vqa_app.prompts.prompt import encode

    counts = {
        encode(
            processor, Conversation.ask("What?", [picture(0, size)]), answer_next=True
        ).image_tokens
        for size in _SIZES
    }
    if len(counts) == 1:
        return "always as many"
    tiled = any(getattr(processor.image_processor, name, False) for name in _TILING)
    return "by its tiles" if tiled else "by its size"


def main() -> None:
    """Write the table into ARCHITECTURE.md."""
    from vqa_app.quiet import quiet

    with tempfile.TemporaryDirectory() as folder, quiet():
        checkpoints = {name: make(Path(folder) / name) for name, make in ARCHITECTURES.items()}
        new = table(checkpoints)
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(text.replace(table_on_page(), new), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
