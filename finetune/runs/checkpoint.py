"""What a run directory holds, written so that it is whole at every moment.

A run can be read by itself: trained weights, processor, manifest, and golden prompts with the
logits they gave. Everything is written beside its place first, flushed to the disk and then
renamed; a full disk or a kill leaves what was there before.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file

from finetune.runs.golden import GOLDEN_FOLDER, record_golden
from vqa_app.checkpoints.adapters import PEFT_CONFIG, PEFT_FILE, PROJECTOR_FILE
from vqa_app.checkpoints.manifest import MANIFEST_FILE, Base, Manifest, write_manifest
from vqa_app.errors import ModelError
from vqa_app.files import UNFINISHED, flush, unfinished_directory, write_error_reason
from vqa_app.prompts.conversation import Conversation
from vqa_app.quiet import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

CHECKPOINTS = "checkpoints"
_STEP = "step-"


@contextmanager
def _into(root: Path) -> Iterator[Path]:
    """A folder whose files take their places in `root` at the end, the manifest last."""
    with unfinished_directory(root) as folder:
        yield folder
    files = sorted(
        (path for path in folder.rglob("*") if path.is_file()),
        key=lambda path: (path.name == MANIFEST_FILE, path),
    )
    for path in files:
        place = root / path.relative_to(folder)
        place.parent.mkdir(exist_ok=True)
        path.replace(place)
    shutil.rmtree(folder)
    flush(root)


def sweep(run: Path) -> None:
    """Removes what a killed process left half-written."""
    for parent in (run, run / CHECKPOINTS):
        for leftover in parent.glob(f"{UNFINISHED}*"):
            for whole in leftover.glob(f"{_STEP}*"):  # killed between the two renames
                if not (parent / whole.name).exists():
                    whole.rename(parent / whole.name)
            shutil.rmtree(leftover, ignore_errors=True)


def step_directory(run: Path, step: int) -> Path:
    return run / CHECKPOINTS / f"{_STEP}{step}"


def checkpoint_steps(run: Path) -> dict[int, Path]:
    """The whole checkpoints of a run by step, ascending."""
    found = {
        int(path.name.removeprefix(_STEP)): path
        for path in (run / CHECKPOINTS).glob(f"{_STEP}*")
        if path.name.removeprefix(_STEP).isdigit()
    }
    return dict(sorted(found.items()))


def latest_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint to resume from."""
    return next(reversed(checkpoint_steps(run).values()), None)


def save_weights(
    model: PreTrainedModel,
    kind: str,
    out: Path,
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Writes what trained, as safetensors, into an existing folder.

    Args:
        model: with LoRA attached (kinds lora and qlora: PEFT layout, the projector as one of its
            modules to save), or the plain model (projector: the parameters that train, by their
            names in it; full and merged: everything, as plain transformers loads it).
        kind: as in the manifest.
        state_dict: gathered parameters where the model itself is sharded (FSDP, DeepSpeed).
    """
    if kind in ("lora", "qlora"):
        # "auto" would ask the hub whether the base's vocabulary is still the same.
        model.save_pretrained(
            out, state_dict=state_dict, safe_serialization=True, save_embedding_layers=False
        )
        (out / "README.md").unlink(
            missing_ok=True
        )  # PEFT's template; the run has a card of its own
    elif kind == "projector":
        named = model.state_dict() if state_dict is None else state_dict
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        tensors = {name: named[name].detach().cpu().contiguous() for name in names}
        if not tensors:
            raise ModelError("Nothing in the model trains, so there is no projector to save.")
        save_file(tensors, out / PROJECTOR_FILE, metadata={"format": "pt"})
    else:
        with quiet():
            model.save_pretrained(out, state_dict=state_dict, max_shard_size="2GB")


def _name_base(config: Path, base: Base) -> None:
    """PEFT names the folder that the base was loaded from, which no other machine has."""
    values = json.loads(config.read_text(encoding="utf-8"))
    values["base_model_name_or_path"] = base.name if base.on_hub else None
    values["revision"] = base.revision
    config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def load_weights(model: PreTrainedModel, kind: str, directory: Path) -> None:
    """Puts what `save_weights` wrote back into a model that is set up as it was then.

    Raises:
        ModelError: the files do not hold exactly the parameters that train.
    """
    if kind in ("lora", "qlora"):
        from peft import set_peft_model_state_dict

        tensors = load_file(directory / PEFT_FILE)
        result = set_peft_model_state_dict(model, tensors)
        missing = [
            name for name in result.missing_keys if "lora_" in name or "modules_to_save" in name
        ]
        wrong = [*missing, *result.unexpected_keys]
    elif kind == "projector":
        result = model.load_state_dict(load_file(directory / PROJECTOR_FILE), strict=False)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        wrong = [*(trained & set(result.missing_keys)), *result.unexpected_keys]
    else:
        # In fp32, which holds every precision exactly; names on the disk are not the model's own.
        with quiet():
            saved = type(model).from_pretrained(directory, dtype="float32", local_files_only=True)
        result = model.load_state_dict(saved.state_dict(), strict=False)
        wrong = [*result.missing_keys, *result.unexpected_keys]
    if wrong:
        raise ModelError(
            f"{directory} does not hold what trains here: {', '.join(sorted(wrong)[:3])} differ.",
            "Resume with the command that started the run.",
        )


def save_run(
    run: Path,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    manifest: Manifest,
    golden: Sequence[Conversation] = (),
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Makes a directory that `load_model` opens: weights, processor, golden prompts, manifest.

    May be called again with better weights; until all of it is on the disk the old files stay.

    Args:
        golden: finished conversations whose logits `verify` will ask for again.
        state_dict: see `save_weights`.

    Raises:
        ModelError: the disk is full or the folder cannot be written; what was there is whole.
    """
    try:
        with _into(run) as folder:
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
            "What was saved there before is whole. Make room and run the same command again.",
        ) from error
