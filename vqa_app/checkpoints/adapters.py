"""Apply adapters to a loaded model: PEFT directories, ours and others', and projectors alone."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

from vqa_app.checkpoints.manifest import Manifest, read_manifest
from vqa_app.checkpoints.source import BUILTIN, Source
from vqa_app.checkpoints.weights import fingerprint
from vqa_app.errors import ModelError, library_reason
from vqa_app.files import read_json
from vqa_app.models.anatomy import anatomy

PROJECTOR_FILE = "projector.safetensors"
PEFT_FILE = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"


def is_adapter(directory: Path) -> bool:
    """Return whether a directory contains an adapter."""
    return (directory / PEFT_CONFIG).is_file() or (directory / PROJECTOR_FILE).is_file()


def base_of(source: Source) -> tuple[str, str | None]:
    """Return the name and revision of the model that an adapter was trained for.

    Raises:
        ModelError: The adapter does not name its model.
    """
    if manifest := read_manifest(source.directory):
        name = manifest.base.name
        relative = source.directory / name
        if name != BUILTIN and not Path(name).is_absolute() and relative.is_dir():
            name = str(relative.resolve())
        return name, manifest.base.revision
    config = read_json(source.directory / PEFT_CONFIG)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if base and isinstance(base, str) and isinstance(revision, str | None):
        return base, revision
    raise ModelError(
        f"The adapter {source.name} does not name the model it was trained for.",
        "Pass the model with --model and the adapter with --adapter.",
    )


def check_base(adapter: Source, base: Source, base_fingerprint: str) -> None:
    """Check that an adapter was trained for this base model.

    Raises:
        ModelError: It was trained for another model.
    """
    if manifest := read_manifest(adapter.directory):
        if manifest.base.fingerprint != base_fingerprint:
            raise _mismatch(adapter, base, manifest)
        return
    expected = str(read_json(adapter.directory / PEFT_CONFIG).get("base_model_name_or_path") or "")
    # Adapters without a manifest only name their base; a local copy of it keeps the last part.
    if expected and _last_part(expected) != _last_part(base.name):
        raise ModelError(
            f"The adapter {adapter.name} was trained for {expected}, not for {base.name}.",
            f"Load it with --model {expected}.",
        )


def fingerprint_with(base_fingerprint: str, adapter: Path) -> str:
    """Return 16 hex digits that identify the weights of base and adapter together."""
    files = [adapter / name for name in (PEFT_FILE, PROJECTOR_FILE) if (adapter / name).is_file()]
    return hashlib.sha256((base_fingerprint + fingerprint(files)).encode()).hexdigest()[:16]


def apply(model: Any, adapter: Source, *, merge: bool) -> Any:
    """Apply an adapter to a model.

    Args:
        model: The base model; modified in place.
        adapter: Where the adapter is.
        merge: Add LoRA weights to the model's own. False keeps them separate, as a quantised base
            requires.

    Returns:
        The same model, or the `PeftModel` around it if LoRA weights are not merged.

    Raises:
        ModelError: Weights are missing, unexpected, truncated or of the wrong shape.
    """
    from safetensors import SafetensorError

    try:
        return _apply(model, adapter, merge=merge)
    except SafetensorError as error:
        raise ModelError(
            f"The weights of the adapter {adapter.name} are damaged or incomplete.",
            "Download or copy the adapter again.",
        ) from error


def _apply(model: Any, adapter: Source, *, merge: bool) -> Any:
    directory = adapter.directory
    if (directory / PROJECTOR_FILE).is_file():
        _load_projector(model, adapter)
        return model
    if not (directory / PEFT_FILE).is_file():
        raise ModelError(
            f"The adapter {adapter.name} has no {PEFT_FILE}.",
            "Pickle files are not supported; save the adapter as safetensors.",
        )
    adapted = _load_peft(model, adapter)
    if not merge:
        return adapted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns about tied embeddings that are not adapted
        return adapted.merge_and_unload()


def _load_projector(model: Any, adapter: Source) -> None:
    import torch
    from safetensors.torch import load_file

    tensors = load_file(adapter.directory / PROJECTOR_FILE)
    prefixes = tuple(f"{name}." for name in anatomy(model).projector)
    expected = {
        name: parameter for name, parameter in model.named_parameters() if name.startswith(prefixes)
    }
    _compare_names(adapter, expected.keys(), tensors.keys())
    for name, parameter in expected.items():
        if parameter.shape != tensors[name].shape:
            raise ModelError(
                f"{name} has the shape {tuple(tensors[name].shape)} in the adapter {adapter.name},"
                f" but {tuple(parameter.shape)} in the model.",
                "Load it with the model it was trained for.",
            )
        with torch.no_grad():
            parameter.copy_(tensors[name])


def _load_peft(model: Any, adapter: Source) -> Any:
    from peft import PeftConfig, PeftModel
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
    from peft.utils import get_peft_model_state_dict, load_peft_weights

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # _compare_names reports these as errors
            config = PeftConfig.from_pretrained(str(adapter.directory))
            if config.is_prompt_learning or config.peft_type not in PEFT_TYPE_TO_PREFIX_MAPPING:
                raise ModelError(
                    f"The adapter {adapter.name} has the unsupported type"
                    f" {config.peft_type.value}.",
                    "Use LoRA or a similar type; prompt learning is not supported.",
                )
            _prepare_quantized_layers(model, adapter, config)
            adapted = PeftModel.from_pretrained(
                model, adapter.directory, config=config, torch_device=str(model.device)
            )
            expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
            given = load_peft_weights(str(adapter.directory), device="cpu")
    except (ValueError, RuntimeError, KeyError, OSError, TypeError, AttributeError) as error:
        raise ModelError(
            f"The adapter {adapter.name} does not match the model{library_reason(error)}",
            "Load it with the model it was trained for.",
        ) from error
    _compare_names(adapter, expected.keys(), given.keys())
    return adapted.eval()


def _prepare_quantized_layers(model: Any, adapter: Source, config: Any) -> None:
    """Make whole layers of those that the adapter replaces; see `QuantizedLinear`.

    Raises:
        ModelError: The adapter computes with the base's weights, of which there are only codes.
    """
    from vqa_app.models.quantized_linear import QuantizedLinear

    layers = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)
    }
    if not layers:
        return
    kind = "DORA" if getattr(config, "use_dora", False) else str(config.peft_type.value)
    if kind != "LORA":
        raise ModelError(
            f"The adapter {adapter.name} has the type {kind}, which works on whole weights only.",
            "Leave out --quantize.",
        )
    replaced = tuple(f".{name}" for name in config.modules_to_save or ())
    for name, layer in layers.items():
        if f".{name}".endswith(replaced):
            model.set_submodule(name, layer.whole(model.dtype))


def _compare_names(adapter: Source, expected: Any, given: Any) -> None:
    missing, unexpected = sorted(expected - given), sorted(given - expected)
    if missing or unexpected:
        problem, names = ("lacks", missing) if missing else ("has unexpected weights:", unexpected)
        raise ModelError(
            f"The adapter {adapter.name} {problem} {names[0]}"
            + (f" and {len(names) - 1} more." if len(names) > 1 else "."),
            "Load it with the model it was trained for.",
        )


def _last_part(name: str) -> str:
    """Return a hub id without its owner, or a folder's name without its path, in lower case."""
    return name.rstrip("/").rsplit("/")[-1].lower()


def _mismatch(adapter: Source, base: Source, manifest: Manifest) -> ModelError:
    return ModelError(
        f"The adapter {adapter.name} was trained for {manifest.base.name} with the weights"
        f" {manifest.base.fingerprint}, but {base.name} has other weights.",
        f"Load it with --model {manifest.base.name}, or train it again on {base.name}.",
    )
