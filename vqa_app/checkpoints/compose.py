"""Compose a new LLaVA from a vision encoder, a new projector and a causal language model.

The result is a plain `LlavaForConditionalGeneration` (Liu et al. 2023, with the two-layer MLP
projector of LLaVA-1.5), which transformers, vLLM and llama.cpp's converter support. Its answers
about pictures are nonsense until its projector is trained.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqa_app.checkpoints.memory import check_memory
from vqa_app.checkpoints.source import Source, find, find_gguf
from vqa_app.checkpoints.weights import model_files, stored_tensors
from vqa_app.devices import check_dtype
from vqa_app.errors import ModelError, UsageError, first_line
from vqa_app.files import atomic_directory
from vqa_app.numeric import checked_integer
from vqa_app.prompts.prompt import prompt_hash
from vqa_app.quiet import quiet

IMAGE_TOKEN = "<image>"
_LOADING = {"trust_remote_code": False, "local_files_only": True}

FLATTEN_CONTENT = (
    "{%- set flattened = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}"
    "{%- set flattened.messages = flattened.messages + [message] -%}"
    "{%- else -%}"
    "{%- set flat = namespace(text='') -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{%- set flat.text = flat.text + '<image>\n' -%}"
    "{%- else -%}{%- set flat.text = flat.text + part['text'] -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- set flattened.messages = flattened.messages + [dict(message, content=flat.text)] -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = flattened.messages -%}"
)
"""Put before a chat template that expects strings: each picture becomes `<image>` and a newline at
its place in the message, as LLaVA-1.5 was trained, and the template still receives strings."""


@dataclass(frozen=True)
class _FeatureSelection:
    """Which features of the vision tower are used."""

    strategy: str
    layer: int
    other_tokens: int
    """Tokens of the tower that are not patches."""


def compose(
    encoder: str,
    llm: str,
    out: str | Path,
    *,
    dtype: str = "auto",
    seed: int = 0,
    offline: bool = False,
) -> Path:
    """Compose a LLaVA and save it in the layout of a hub repository.

    SigLIP and SigLIP 2 have no class token: all patches of the last layer are used ("full"). With
    CLIP, the patches of the last layer but one are used, without the class token, as in LLaVA-1.5.

    Args:
        encoder: Hub id or folder of a SigLIP, SigLIP 2 (with fixed resolution) or CLIP checkpoint:
            the whole model or its vision tower.
        llm: Hub id or folder of a causal language model with a chat template, or a GGUF file of
            one, as for llama.cpp, whose blocks are turned into 16-bit weights. With `--quantize
            4bit` on a CPU, those of 4 bits become the same codes again, with rounded scales.
        out: A folder that does not exist yet.
        dtype: `auto` keeps the language model's; otherwise `float32`, `bfloat16` or `float16`.
        seed: Seed of the projector's initial weights.
        offline: Download nothing.

    Returns:
        The folder.

    Raises:
        UsageError: `out` exists, or the dtype is unknown.
        ModelError: A part cannot be found or used.
    """
    import torch

    out = Path(out)
    if out.exists():
        raise UsageError(f"{out} already exists.", "Choose a folder that does not exist.")
    check_dtype(dtype)
    seed = checked_integer("The seed", seed, -(1 << 63), (1 << 63) - 1)
    encoder_source, gguf = find(encoder, offline=offline), find_gguf(llm)
    llm_source = gguf or find(llm, offline=offline)
    for source in (encoder_source, llm_source):
        tensors = list(stored_tensors(model_files(source.directory)))
        # A GGUF file is at first read into float32 weights, up to eight times as large.
        needed = 8 * Path(source.name).stat().st_size if source is gguf else None
        check_memory(source.name, tensors, torch.device("cpu"), torch.bfloat16, None, needed)
    with quiet(), _reporting_errors(encoder_source):
        tower = _load_tower(encoder_source)
        image_processor = _image_processor(encoder_source, tower.config)
    with quiet(), _reporting_errors(llm_source):
        with redirect_stderr(io.StringIO()) if gguf else nullcontext():  # an own progress bar
            language_model = _load_llm(llm_source, dtype, options := _gguf_options(gguf))
        tokenizer = _tokenizer(llm_source, options)
    tower.to(language_model.dtype)
    processor = llava_processor(image_processor, tokenizer, tower.config)
    prompt_hash(processor)  # raises if the template cannot place pictures
    _resize_embeddings(language_model, tokenizer)
    model = assemble(
        tower, _new_projector(tower, language_model, tokenizer, seed), language_model, tokenizer
    )
    with atomic_directory(out) as folder, quiet():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return out


def llava_config(vision: Any, text: Any, tokenizer: Any, *, dtype: Any = None) -> Any:
    """Return the config of a LLaVA.

    Args:
        vision: Config of the vision tower.
        text: Config of the language model.
        tokenizer: The language model's tokenizer, with `<image>` in its vocabulary.
        dtype: Precision of the weights.
    """
    from transformers import LlavaConfig

    selection = _feature_selection(vision)
    values: dict[str, Any] = dict(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        projector_hidden_act="gelu",
        vision_feature_select_strategy=selection.strategy,
        vision_feature_layer=selection.layer,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        tie_word_embeddings=text.tie_word_embeddings,
        pad_token_id=tokenizer.pad_token_id,
        dtype=dtype,
    )
    return LlavaConfig(**values)


def llava_processor(image_processor: Any, tokenizer: Any, vision: Any) -> Any:
    """Return the processor of a LLaVA.

    Args:
        image_processor: The vision tower's image processor.
        tokenizer: The language model's tokenizer, with a chat template for pictures.
        vision: Config of the vision tower.
    """
    from transformers import LlavaProcessor

    selection = _feature_selection(vision)
    return LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=selection.strategy,
        chat_template=tokenizer.chat_template,
        num_additional_image_tokens=selection.other_tokens,
    )


def assemble(tower: Any, projector: Any, language_model: Any, tokenizer: Any) -> Any:
    """Assemble the parts, without copying them, into a `LlavaForConditionalGeneration`.

    Args:
        tower: The vision tower.
        projector: A `LlavaMultiModalProjector`.
        language_model: A causal language model.
        tokenizer: Its tokenizer, with `<image>` in its vocabulary.
    """
    import torch
    from transformers import LlavaForConditionalGeneration

    config = llava_config(
        tower.config, language_model.config, tokenizer, dtype=language_model.dtype
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = tower
    model.model.multi_modal_projector = projector
    model.model.language_model = language_model.get_decoder()
    model.lm_head = language_model.get_output_embeddings()
    model.generation_config = language_model.generation_config
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.tie_weights()
    return model.eval()


def accept_pictures(template: str) -> str:
    """Return a language model's chat template extended to message contents with pictures."""
    return FLATTEN_CONTENT + template


@contextmanager
def _reporting_errors(source: Source) -> Iterator[None]:
    """Report errors of transformers with the name of the checkpoint."""
    try:
        yield
    except (ValueError, KeyError, OSError, RuntimeError, TypeError) as error:
        raise ModelError(
            f"Could not load {source.name}: {first_line(error)}",
            "Choose another one. Code in repositories is never run.",
        ) from error


def _load_tower(source: Source) -> Any:
    """Load the vision tower in its own dtype, without its pooling head: LLaVA uses the patches."""
    from transformers import AutoConfig, CLIPVisionModel, SiglipVisionModel

    config = AutoConfig.from_pretrained(source.directory, **_LOADING)
    towers: dict[str, Any] = {
        "siglip": SiglipVisionModel,
        "siglip_vision_model": SiglipVisionModel,
        "clip": CLIPVisionModel,
        "clip_vision_model": CLIPVisionModel,
    }
    if config.model_type in ("siglip2", "siglip2_vision_model"):
        raise ModelError(
            f"{source.name} is a SigLIP 2 with variable resolution (NaFlex), which LLaVA does not"
            " support.",
            "Choose one with fixed resolution, such as google/siglip2-base-patch16-224.",
        )
    if config.model_type not in towers:
        raise ModelError(
            f"Expected a SigLIP or CLIP model, but {source.name} has the model type"
            f" {config.model_type!r}.",
            "Choose a SigLIP, SigLIP 2 or CLIP checkpoint.",
        )
    vision = getattr(config, "vision_config", config)
    if hasattr(vision, "vision_use_head"):
        vision.vision_use_head = False
    tower, info = towers[config.model_type].from_pretrained(
        source.directory,
        config=vision,
        dtype="auto",
        use_safetensors=True,
        output_loading_info=True,
        **_LOADING,
    )
    if info["missing_keys"] or info["mismatched_keys"]:
        raise ModelError(
            f"{source.name} lacks weights of its vision tower, such as"
            f" {sorted([*info['missing_keys'], *info['mismatched_keys']])[0]}.",
            "Download it again.",
        )
    return tower


def _gguf_options(source: Source | None) -> dict[str, Any]:
    """Return the arguments that let `from_pretrained` read a GGUF file."""
    return {} if source is None else {"gguf_file": Path(source.name).name}


def _load_llm(source: Source, dtype: str, gguf: dict[str, Any]) -> Any:
    import torch
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        AutoConfig,
        AutoModelForCausalLM,
        GgufConfig,
    )

    config = AutoConfig.from_pretrained(source.directory, **gguf, **_LOADING)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"Expected a causal language model, but {source.name} has the model type"
            f" {config.model_type!r}.",
            "Choose a language model for chat.",
        )
    options: dict[str, Any] = {"use_safetensors": True}
    if gguf:
        # The GGUF kernels of transformers need a GPU, and a model of packed blocks cannot be saved.
        options = {**gguf, "quantization_config": GgufConfig(dequantize=True)}
        dtype = "bfloat16" if dtype == "auto" else dtype
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source.directory,
        dtype="auto" if dtype == "auto" else getattr(torch, dtype),
        output_loading_info=True,
        **options,
        **_LOADING,
    )
    model, info = loaded
    if wrong := [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]:
        raise ModelError(
            f"The weights of {source.name} do not match its config.json: {wrong[0]}.",
            "Download it again.",
        )
    return model


def _tokenizer(source: Source, gguf: dict[str, Any]) -> Any:
    """Load the tokenizer, and add `<image>` and a padding token if they are missing."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.directory, **gguf, **_LOADING)
    if not isinstance(tokenizer.chat_template, str):
        raise ModelError(
            f"{source.name} has no chat template, so it is not a chat model.",
            "Choose its instruction-tuned version.",
        )
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    tokenizer.chat_template = accept_pictures(tokenizer.chat_template)
    return tokenizer


def _image_processor(source: Source, tower: Any) -> Any:
    from transformers import AutoImageProcessor, LlavaImageProcessorPil

    original = AutoImageProcessor.from_pretrained(source.directory, backend="pil", **_LOADING)
    if tower.model_type == "siglip_vision_model":
        return original
    # CLIP's own processor crops pictures to a square; LLaVA-1.5 pads them instead.
    return LlavaImageProcessorPil(
        do_pad=True,
        size={"shortest_edge": tower.image_size},
        crop_size={"height": tower.image_size, "width": tower.image_size},
        image_mean=original.image_mean,
        image_std=original.image_std,
    )


def _feature_selection(vision: Any) -> _FeatureSelection:
    if vision.model_type == "siglip_vision_model":
        return _FeatureSelection("full", -1, 0)
    return _FeatureSelection("default", -2, 1)


def _new_projector(tower: Any, language_model: Any, tokenizer: Any, seed: int) -> Any:
    """Return a projector with the default initialisation of `torch.nn.Linear`, like LLaVA's."""
    import torch

    from vqa_app.transformers_internals import llava_projector

    config = llava_config(tower.config, language_model.config, tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        projector = llava_projector(config)
    return projector.to(language_model.dtype)


def _resize_embeddings(language_model: Any, tokenizer: Any) -> None:
    """Add the mean embedding for each new token, which makes it neither likely nor extreme."""
    import torch

    rows = language_model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) <= rows:  # many models have spare rows
        return
    language_model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tables = {language_model.get_input_embeddings(), language_model.get_output_embeddings()}
    with torch.no_grad():
        for table in tables:
            table.weight[rows:] = table.weight[:rows].float().mean(0).to(table.weight.dtype)
