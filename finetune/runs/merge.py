"""Merging an adapter into its unquantised base, with a check that the result is the same model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.runs.golden import GOLDEN_FOLDER, compare, read_golden, record_golden
from finetune.runs.layout import require_folder
from finetune.runs.verify import Verification, tolerance_of
from vqa_app.checkpoints.manifest import Manifest, read_manifest, write_manifest
from vqa_app.errors import ModelError, UsageError
from vqa_app.files import atomic_directory, require_writable, write_error_reason
from vqa_app.pictures.picture import open_picture
from vqa_app.prompts.conversation import Conversation, Message
from vqa_app.quiet import quiet

if TYPE_CHECKING:
    from vqa_app.checkpoints.loader import LoadedModel


def merge(run: str | Path, out: str | Path, *, dtype: str = "auto") -> Verification:
    """Write a run's model as one checkpoint that `AutoModelForImageTextToText` loads by itself.

    Args:
        run: Directory of a projector, lora or qlora run.
        out: Directory to write; must not exist.
        dtype: Precision of the result; `auto` as in `load_model`: float32 for small models.

    Returns:
        A comparison of the run's logits with those of the merged checkpoint, which is loaded from
        the disk without this package.

    Raises:
        UsageError: The run is a whole model already, or `out` exists or cannot be created.
        ModelError: There is no run in the directory, the merged model computes other logits, or the
            disk is full. `out` is then not created.
    """
    run, out = Path(run), Path(out)
    require_folder(run)
    manifest = read_manifest(run)
    if manifest is None:
        raise ModelError(f"{run} is not a run.", "Give a folder that `vqa-app finetune` wrote.")
    if manifest.whole_model:
        raise UsageError(f"{run} is a whole model already.", "Use it as it is.")
    if out.exists():
        raise UsageError(f"{out} exists already.", "Give a folder that does not exist.")
    require_writable(out.parent)
    loaded = _load(run, dtype)
    conversations = [prompt.conversation for prompt in read_golden(run)] or [_any_conversation()]
    try:
        with atomic_directory(out) as folder:
            found = _write_merged(folder, loaded, manifest, conversations)
    except Exception as error:
        if (why := write_error_reason(error)) is None:
            raise
        raise ModelError(
            f"Cannot write {out}: {why}.", "Make room, or give another --out."
        ) from error
    return dataclasses.replace(found, directory=out)


def _write_merged(
    folder: Path, loaded: LoadedModel, manifest: Manifest, conversations: Sequence[Conversation]
) -> Verification:
    """Merge in memory, write the checkpoint and check that it reproduces the run's logits."""
    (folder / GOLDEN_FOLDER).mkdir()
    # The run's own logits, which the merged model must reproduce.
    record_golden(loaded.model, loaded.processor, conversations, folder / GOLDEN_FOLDER)
    model: Any = loaded.model
    if hasattr(model, "merge_and_unload"):  # PEFT's wrapper
        model = model.merge_and_unload()
    with quiet():
        model.save_pretrained(folder, max_shard_size="2GB")
    loaded.processor.save_pretrained(folder)
    write_manifest(folder, dataclasses.replace(manifest, kind="merged"))
    found = _compare_from_disk(folder, loaded)
    if not found.ok:
        raise ModelError(
            f"The merged model differs from the run: {found.problem}.",
            "Merge with --dtype float32, or use the run as it is.",
        )
    return found


def _any_conversation() -> Conversation:
    """Return a conversation to compare logits on, for a run without golden prompts."""
    from PIL import Image

    picture = open_picture(Image.linear_gradient("L"), name="gradient")
    question = Conversation.ask("What is in the picture?", [picture])
    return question.then(Message.assistant("It is grey, lighter towards the bottom."))


def _load(run: Path, dtype: str) -> LoadedModel:
    from vqa_app.checkpoints.loader import load_model

    return load_model(str(run), device="cpu", dtype=dtype, merge=False)


def _compare_from_disk(folder: Path, loaded: LoadedModel) -> Verification:
    """Compare logits after loading with transformers alone, without missing or unexpected keys."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    with quiet():
        # With `output_loading_info` it returns a pair, which its annotation does not say.
        model_and_info: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=loaded.model.dtype, output_loading_info=True
        )
    model, info = model_and_info
    if wrong := [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]:
        raise ModelError(
            f"The merged checkpoint's keys do not match its model: {wrong[:3]}.", "This is a bug."
        )
    golden = read_golden(folder)
    processor = AutoProcessor.from_pretrained(folder)
    found = compare(model.eval(), processor, golden)
    return Verification(folder, found, tolerance_of(golden[0].dtype))
