"""Checkpoints and finished runs on the disk, never half-written.

A run describes itself: trained weights, processor, manifest, and golden prompts with their logits.
Everything is written to a temporary folder, flushed to the disk and then renamed; a full disk or a
kill leaves the earlier files as they were.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from finetune.runs.golden import GOLDEN_FOLDER, record_golden
from vqa_app.checkpoints.adapters import PEFT_CONFIG, PEFT_FILE, PROJECTOR_FILE
from vqa_app.checkpoints.manifest import MANIFEST_FILE, Base, Manifest, write_manifest
from vqa_app.errors import ModelError
from vqa_app.files import UNFINISHED, add_to_directory, move, write_error_reason
from vqa_app.prompts.conversation import Conversation
from vqa_app.quiet import quiet

if TYPE_CHECKING:
    import torch
    from transformers import ProcessorMixin

CHECKPOINTS = "checkpoints"
_STEP = "step-"


def sweep(run: Path) -> None:
    """Remove unfinished files of a killed process, and restore a checkpoint that it had moved."""
    for parent in (run, run / CHECKPOINTS):
        for leftover in parent.glob(f"{UNFINISHED}*"):
            for complete in leftover.glob(f"{_STEP}*"):  # killed between two renames
                if not (parent / complete.name).exists():
                    move(complete, parent / complete.name)
            shutil.rmtree(leftover, ignore_errors=True)


def step_directory(run: Path, step: int) -> Path:
    """Return the folder of a checkpoint."""
    return run / CHECKPOINTS / f"{_STEP}{step}"


def checkpoint_steps(run: Path) -> dict[int, Path]:
    """Return the checkpoints of a run by step, ascending."""
    found = {
        int(path.name.removeprefix(_STEP)): path
        for path in (run / CHECKPOINTS).glob(f"{_STEP}*")
        if path.name.removeprefix(_STEP).isdigit()
    }
    return dict(sorted(found.items()))


def latest_checkpoint(run: Path) -> Path | None:
    """Return the newest checkpoint, if there is one."""
    return next(reversed(checkpoint_steps(run).values()), None)


def save_weights(
    model: Any,
    kind: str,
    out: Path,
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write the trained weights, as safetensors, into an existing folder.

    Args:
        model: PEFT's wrapper (kinds lora and qlora: PEFT's layout, with the projector among its
            modules to save), or the model itself (projector: the trainable parameters by name; full
            and merged: everything, as plain transformers loads it).
        kind: Kind of run, as in the manifest.
        out: The folder.
        state_dict: Gathered parameters if the model itself is sharded (FSDP, DeepSpeed).

    Raises:
        ModelError: The kind is projector, and nothing in the model is trainable.
    """
    if kind in ("lora", "qlora"):
        # "auto" would check on the hub whether the base's vocabulary has changed.
        model.save_pretrained(
            out, state_dict=state_dict, safe_serialization=True, save_embedding_layers=False
        )
        (out / "README.md").unlink(missing_ok=True)  # a template; the run has a card of its own
    elif kind == "projector":
        named = model.state_dict() if state_dict is None else state_dict
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        tensors = {name: named[name].detach().cpu().contiguous() for name in names}
        if not tensors:
            raise ModelError("Nothing in the model is trainable, so there is no projector to save.")
        save_file(tensors, out / PROJECTOR_FILE, metadata={"format": "pt"})
    else:
        with quiet():
            model.save_pretrained(out, state_dict=state_dict, max_shard_size="2GB")


def _name_base(config: Path, base: Base) -> None:
    """Replace the local folder that PEFT names as the base, which no other machine has."""
    values = json.loads(config.read_text(encoding="utf-8"))
    values["base_model_name_or_path"] = base.name if base.on_hub else None
    values["revision"] = base.revision
    config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def load_weights(model: Any, kind: str, directory: Path) -> None:
    """Load what `save_weights` wrote into a model that is frozen in the same way.

    Args:
        model: See `save_weights`.
        kind: Kind of run, as in the manifest.
        directory: Where the weights are.

    Raises:
        ModelError: The files do not hold exactly the trainable parameters.
    """
    if kind in ("lora", "qlora"):
        from peft import set_peft_model_state_dict

        tensors = load_file(directory / PEFT_FILE)
        result: Any = set_peft_model_state_dict(model, tensors)
        missing = [
            name for name in result.missing_keys if "lora_" in name or "modules_to_save" in name
        ]
        wrong = [*missing, *result.unexpected_keys]
    elif kind == "projector":
        result = model.load_state_dict(load_file(directory / PROJECTOR_FILE), strict=False)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        wrong = [*(trained & set(result.missing_keys)), *result.unexpected_keys]
    else:
        # Names on the disk differ from the model's own. fp32 represents every precision exactly.
        with quiet():
            saved = type(model).from_pretrained(directory, dtype="float32", local_files_only=True)
        result = model.load_state_dict(saved.state_dict(), strict=False)
        wrong = [*result.missing_keys, *result.unexpected_keys]
    if wrong:
        raise ModelError(
            f"{directory} does not hold the weights that this stage trains:"
            f" missing or unexpected are {', '.join(sorted(wrong)[:3])}.",
            "Resume with the command that started the run.",
        )


def save_run(
    run: Path,
    model: Any,
    processor: ProcessorMixin,
    manifest: Manifest,
    golden: Sequence[Conversation] = (),
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a directory that `load_model` opens: weights, processor, golden prompts, manifest.

    May be called again with better weights; the old files stay until all new ones are on the disk.

    Args:
        run: The directory.
        model: See `save_weights`.
        processor: The model's processor.
        manifest: Manifest of the run.
        golden: Finished conversations whose logits are recorded for `verify`.
        state_dict: See `save_weights`.

    Raises:
        ModelError: The disk is full or the folder cannot be written; earlier files are complete.
    """
    try:
        with add_to_directory(run, last=MANIFEST_FILE) as folder:
            save_weights(model, manifest.kind, folder, state_dict=state_dict)
            if manifest.kind in ("lora", "qlora"):
                _name_base(folder / PEFT_CONFIG, manifest.base)
            processor.save_pretrained(folder)
            if golden:
                (folder / GOLDEN_FOLDER).mkdir()
                record_golden(model, processor, golden, folder / GOLDEN_FOLDER)
            write_manifest(folder, manifest)
    except Exception as error:
        if (why := write_error_reason(error)) is None:
            raise
        raise ModelError(
            f"Cannot write {run}: {why}.",
            "What was saved there before is complete. Free disk space, and run the same command"
            " again.",
        ) from error
