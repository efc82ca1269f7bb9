"""Load a model, by name, from a folder or from a run, and check its files first."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from vqa_app.checkpoints import adapters
from vqa_app.checkpoints.calibration import Calibration, read_calibration
from vqa_app.checkpoints.manifest import quantization_of, read_manifest
from vqa_app.checkpoints.memory import check_memory
from vqa_app.checkpoints.processor import load_processor
from vqa_app.checkpoints.source import BUILTIN, Source, find, hub_cache, pickle_error
from vqa_app.checkpoints.validation import check_pictures, check_size, skeleton
from vqa_app.checkpoints.weights import fingerprint, model_files, stored_tensors
from vqa_app.devices import (
    Quantization,
    choose_device,
    choose_dtype,
    device_error,
    is_out_of_memory,
)
from vqa_app.errors import InsufficientMemoryError, ModelError, UsageError, first_line
from vqa_app.files import read_json
from vqa_app.models.anatomy import anatomy
from vqa_app.prompts.prompt import prompt_hash
from vqa_app.quiet import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

    from vqa_app.models.architecture import Capabilities

log = logging.getLogger(__name__)

_FAILURES = (ValueError, RuntimeError, KeyError, OSError, TypeError, MemoryError)
"""Errors that transformers raises if files are damaged or do not match."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to answer, with its processor and its origin."""

    model: PreTrainedModel
    processor: ProcessorMixin
    capabilities: Capabilities
    name: str
    """`builtin`, a hub id, or an absolute path."""
    adapter: str | None
    quantization: str | None
    fingerprint: str
    """Identifies the weights of base and adapter; see `weights.fingerprint`."""
    source: Path
    """The directory of the model; for a run, that of its adapter."""
    revision: str | None = None
    """The commit on the hub."""

    @property
    def label(self) -> str:
        """Names of model and adapter."""
        return f"{self.name} + {self.adapter}" if self.adapter else self.name

    @property
    def own_folder(self) -> Path | None:
        """The folder of the model or adapter, if the user named one to load.

        None for the built-in model and models of the hub, whose folders others manage.
        """
        folder = Path(self.adapter or self.name)
        return folder if folder.is_absolute() and not _in_hub_cache(folder) else None

    @cached_property
    def calibration(self) -> Calibration | None:
        """What `vqa-app eval --calibrate` found out about these weights."""
        return read_calibration(self.own_folder, self.source, self.fingerprint, self.quantization)

    @property
    def system_prompts(self) -> bool:
        """Whether the model can follow system prompts; the built-in one was trained without any.

        Somebody's own training of it may have had some.
        """
        return self.name != BUILTIN or self.adapter is not None


def _in_hub_cache(folder: Path) -> bool:
    return folder.is_relative_to(hub_cache().resolve())


def load_model(
    name: str | Path = BUILTIN,
    adapter: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    *,
    merge: bool = True,
    check: Callable[[], None] | None = None,
    trainable: bool = False,
) -> LoadedModel:
    """Load a model for inference: in evaluation mode, on its device, with nothing trainable.

    Args:
        name: `builtin`, a hub id, a folder with a model, or a folder written by `vqa-app finetune`
            or PEFT, whose base model is then loaded as well.
        adapter: Folder or hub id of a LoRA adapter or a projector.
        device: A torch device, or `auto` for the first available one of cuda, mps and cpu.
        dtype: `float32`, `bfloat16`, `float16` or `auto`. The latter is bfloat16 on GPUs with
            instructions for it, and also on such CPUs if the model has at least 100 million
            parameters. Older GPUs get float16, unless the model is known to overflow in it;
            otherwise it is float32.
        quantize: `4bit` or `8bit`, for the linear layers of the language model, never for the
            encoder and the projector. On a CPU torch's own kernels multiply them, and the output
            embedding has 8 bits; elsewhere bitsandbytes does (NF4 for `4bit`).
        revision: Branch, tag or commit on the hub.
        offline: Use only the local cache.
        merge: Merge adapters into the weights, unless these are quantised. False returns a
            `PeftModel` for LoRA adapters.
        check: Called several times a second while files are downloaded. An exception in it ends the
            download.
        trainable: Quantise with bitsandbytes on a CPU too, because LoRA can be trained on that
            alone. Adapters that were trained so always get such a base.

    Raises:
        ModelError: The model cannot be found, downloaded or loaded, or does not fit in memory.
        UsageError: The arguments are invalid.
    """
    if quantize not in (None, *get_args(Quantization)):
        raise UsageError(f"Unknown quantisation: {quantize!r}", "Choose 4bit or 8bit.")
    source = find(name, revision, offline, check=check)
    adapter_source = find(adapter, None, offline, check=check) if adapter else None
    if _needs_base(source):
        if adapter_source is not None:
            raise UsageError(
                f"{name} is itself an adapter, so {adapter} cannot be added to it.",
                "Merge the first one, then add the second.",
            )
        adapter_source = source
        base_name, base_revision = adapters.base_of(source)
        trainable = trainable or quantization_of(source.directory) is not None
        base = _load_base_of(
            source,
            base_name,
            lambda: load_model(
                base_name,
                None,
                device,
                dtype,
                quantize,
                base_revision,
                offline,
                trainable=trainable,
                check=check,
            ),
        )
    else:
        directory = source.directory if adapter_source is None else adapter_source.directory
        trainable = trainable or quantization_of(directory) is not None
        base = _load_whole(source, device, dtype, quantize, trainable)
    if adapter_source is None:
        return base
    if not adapters.is_adapter(adapter_source.directory):
        raise ModelError(
            f"{adapter_source.name} is not an adapter: it has neither {adapters.PEFT_CONFIG} nor"
            f" {adapters.PROJECTOR_FILE}.",
            "If it is a whole model, pass it as --model.",
        )
    return _with_adapter(base, source, adapter_source, merge=merge)


def base_source(source: Source, offline: bool = False, *, weights: bool = True) -> Source:
    """Return the source itself if it is a whole model, or the base model of its adapter.

    Args:
        source: A model or an adapter.
        offline: Use only the local cache.
        weights: Whether the base model's weights are needed; see `source.find`.

    Raises:
        ModelError: The adapter does not name its base, or that cannot be found.
    """
    if not _needs_base(source):
        return source
    name, revision = adapters.base_of(source)
    base = find(name, revision, offline, weights=weights)
    return base_source(base, offline, weights=weights)


def _needs_base(source: Source) -> bool:
    """Return whether a directory contains an adapter and no model that can be loaded alone."""
    directory = source.directory
    if not adapters.is_adapter(directory):
        return False
    manifest = read_manifest(directory)
    if manifest is not None:
        return not manifest.whole_model
    return not model_files(directory) or (directory / adapters.PEFT_CONFIG).is_file()


def _load_base_of(adapter: Source, name: str, load: Callable[[], LoadedModel]) -> LoadedModel:
    try:
        return load()
    except ModelError as error:
        hint = error.hint
        if os.path.isabs(name) and not os.path.exists(name):  # moved, or on another machine
            hint = f"Give the base's folder with --model, and --adapter {adapter.name}. {hint}"
        raise type(error)(
            f"Could not load the base model of {adapter.name}: {error.problem}", hint
        ) from error


def _with_adapter(
    base: LoadedModel, source: Source, adapter: Source, *, merge: bool
) -> LoadedModel:
    base_source = Source(base.name, base.source)
    adapters.check_base(adapter, base_source, base.fingerprint)
    quantized = base.quantization is not None
    with quiet():
        model = adapters.apply(base.model, adapter, merge=merge and not quantized)
    if merge and quantized and hasattr(model, "merge_and_unload"):
        model = model.base_model.model  # which still contains the LoRA layers
    model.requires_grad_(False)
    processor = base.processor
    manifest = read_manifest(adapter.directory)
    if manifest is not None and manifest.prompt_hash != prompt_hash(processor):
        log.warning(
            "%s was trained with another chat template than %s has now; answers may be worse.",
            adapter.name,
            base.name,
        )
    is_run = source is adapter
    return LoadedModel(
        model=model.eval(),
        processor=processor,
        capabilities=base.capabilities,
        name=source.name if is_run else base.name,
        adapter=None if is_run else adapter.name,
        quantization=base.quantization,
        fingerprint=adapters.fingerprint_with(base.fingerprint, adapter.directory),
        source=adapter.directory if is_run else base.source,
        revision=base.revision,
    )


def _load_whole(
    source: Source, device_name: str, dtype_name: str, quantize: str | None, trainable: bool
) -> LoadedModel:
    from vqa_app.models.architecture import Capabilities, overflows_in_float16
    from vqa_app.transformers_internals import shards_while_loading

    directory = source.directory
    config = load_config(source)
    files = _weight_files(source)
    tensors = list(stored_tensors(files))
    device = choose_device(device_name)
    parameters = sum(tensor.size for tensor in tensors)
    overflows = overflows_in_float16(config)
    dtype = choose_dtype(dtype_name, device, parameters, overflows=overflows)
    for_cpu = quantize is not None and device.type == "cpu" and not trainable
    if quantize is not None:
        _check_unquantized(source, config)
    needed = _cpu_quantized_bytes(source, config, dtype, quantize) if for_cpu else None
    check_memory(source.name, tensors, device, dtype, quantize, needed)
    check_size(source.name, config, tensors)
    processor = load_processor(source, config)
    check_pictures(source.name, config, processor)
    read_json(directory / "generation_config.json")  # transformers ignores a damaged one
    identity = fingerprint(files)
    options: dict[str, Any] = {"dtype": dtype}
    if quantize is not None and not for_cpu:
        options |= _bitsandbytes_options(source, config, dtype, quantize, device)
    elif device.type != "cpu" and not shards_while_loading():
        # This avoids a copy of the model in CPU memory, which on a Mac is the GPU's memory as well.
        options["device_map"] = {"": device}
    with quiet():
        if for_cpu:
            model = _load_for_cpu(source, config, dtype, quantize, identity)
        else:
            model = _from_pretrained(source, config, options)
    if quantize is None:
        if not shards_while_loading():
            try:
                model.to(device)
            except _FAILURES as error:
                raise _load_error(source, error) from error
    elif not for_cpu and not any(
        type(module).__module__.startswith("bitsandbytes") for module in model.modules()
    ):
        raise ModelError(
            f"No layer of {source.name} was quantised, because bitsandbytes does not support them.",
            "Leave out --quantize.",
        )
    model.eval().requires_grad_(False)
    _disable_pooling_head(model)
    manifest = read_manifest(directory)
    if manifest is not None and manifest.prompt_hash != prompt_hash(processor):
        log.warning("%s was trained with another chat template than it has now.", source.name)
    return LoadedModel(
        model=model,
        processor=processor,
        capabilities=Capabilities.of(model, processor),
        name=source.name,
        adapter=None,
        quantization=quantize,
        fingerprint=identity,
        source=directory,
        revision=source.revision,
    )


def _disable_pooling_head(model: Any) -> None:
    """Disable the pooling head of SigLIP encoders, whose output no image-text model uses.

    On a CPU it takes 4 GB for two pictures with so400m.
    """
    for module in model.modules():
        if type(module).__name__.startswith("Siglip") and getattr(module, "use_head", False):
            module.use_head = False


def load_config(source: Source) -> Any:
    """Load the config of a model, and check that it can answer questions about pictures.

    Raises:
        ModelError: There is no usable config, or it needs code from the repository.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig

    values = read_json(source.directory / "config.json")
    if not values:
        raise ModelError(
            f"{source.name} has no config.json, so it is not a transformers model.",
            "Use a hub id or folder of a transformers model.",
        )
    model_type = values.get("model_type")
    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                source.directory, trust_remote_code=False, local_files_only=True
            )
    except StrictDataclassError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ModelError(
            f"The config.json of {source.name} is invalid: {reason[:300]}",
            "Download it again, or choose another model.",
        ) from error
    except (ValueError, KeyError, OSError, TypeError, AttributeError) as error:
        if "auto_map" in values:
            raise ModelError(
                f"{source.name} (model type {model_type!r}) needs Python code from its own"
                " repository, which vqa-app does not run.",
                "Choose a model that transformers supports; `vqa-app models` lists some.",
            ) from error
        raise ModelError(
            f"{source.name} has the model type {model_type!r}, which the installed transformers"
            " does not support.",
            "Update transformers, or choose another model.",
        ) from error
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ModelError(
            f"{source.name} (model type {model_type!r}) cannot answer questions about pictures.",
            "Choose an image-text-to-text model; `vqa-app models` lists some.",
        )
    return config


def _weight_files(source: Source) -> list[Path]:
    files = model_files(source.directory)
    if files:
        return files
    if any(source.directory.glob("*.bin")) or any(source.directory.glob("*.pt*")):
        raise pickle_error(source.name)
    raise ModelError(f"{source.name} has no model.safetensors.", "Use a folder with a whole model.")


def _from_pretrained(source: Source, config: Any, options: dict[str, Any]) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForImageTextToText

    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            source.directory,
            config=config,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except (*_FAILURES, StrictDataclassError) as error:
        raise _load_error(source, error) from error
    model, info = loaded
    for key, problem in (
        ("missing_keys", "lacks the weight"),
        ("unexpected_keys", "has an unexpected weight,"),
        ("mismatched_keys", "has a weight of the wrong shape,"),
        ("error_msgs", "could not be loaded:"),
    ):
        if found := sorted(map(str, info[key])):
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise ModelError(
                f"{source.name} {problem} {found[0]}{more}.",
                "Its config.json and its weights do not match; download it again.",
            )
    return model


def _load_error(source: Source, error: Exception) -> ModelError:
    """Return what to say about an error of transformers or torch: memory, the GPU, or the files."""
    if is_out_of_memory(error):
        return InsufficientMemoryError(
            f"Not enough memory to load {source.name}.",
            "Use --quantize 4bit or a smaller model, or close other programs.",
        )
    return device_error(error) or ModelError(
        f"Could not load {source.name}: {first_line(error)}",
        "Its files do not match; download it again or choose another model.",
    )


def _check_unquantized(source: Source, config: Any) -> None:
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"{source.name} is already quantised.", "Leave out --quantize to load it as it is."
        )


def _bits(quantize: str | None) -> Literal[4, 8]:
    return 4 if quantize == "4bit" else 8


def _cpu_quantized_bytes(
    source: Source, config: Any, dtype: torch.dtype, quantize: str | None
) -> int:
    from vqa_app.checkpoints.cpu_quantization import quantized_model_bytes

    return quantized_model_bytes(skeleton(source.name, config), dtype, _bits(quantize))


def _load_for_cpu(
    source: Source, config: Any, dtype: torch.dtype, quantize: str | None, identity: str
) -> Any:
    from vqa_app.checkpoints.cpu_quantization import load_quantized

    def load(directory: Path, config: Any, options: dict[str, Any]) -> Any:
        return _from_pretrained(replace(source, directory=directory), config, options)

    return load_quantized(
        load, source.name, source.directory, config, dtype, _bits(quantize), identity
    )


def _bitsandbytes_options(
    source: Source, config: Any, dtype: torch.dtype, quantize: str, device: torch.device
) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    try:
        with quiet():
            import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"A model in {quantize[0]} bits needs the package bitsandbytes"
            f"{' for QLoRA' if device.type == 'cpu' else ''}.",
            "Install it with `pip install bitsandbytes`.",
        ) from error
    if device.type == "mps":
        raise ModelError(
            "bitsandbytes cannot quantise on mps.",
            "Use --device cpu, or leave out --quantize.",
        )
    skipped = anatomy(skeleton(source.name, config)).never_quantized
    if quantize == "4bit":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=skipped,
        )
    else:
        quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return {"quantization_config": quantization, "device_map": {"": device}}
