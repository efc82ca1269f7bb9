"""Compose a new LLaVA from a vision encoder, a fresh projector and a causal language model.

The result is a plain `LlavaForConditionalGeneration` (Liu et al. 2023; the two-layer MLP projector
is LLaVA-1.5's): transformers, vLLM and llama.cpp's converter know it. It answers nonsense about
pictures until its projector is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vqa_app.checkpoints.memory import check_memory
from vqa_app.checkpoints.source import Source, find
from vqa_app.checkpoints.weights import model_files, stored_tensors
from vqa_app.devices import check_dtype
from vqa_app.errors import ModelError, UsageError
from vqa_app.files import atomic_directory
from vqa_app.prompts.prompt import prompt_hash
from vqa_app.quiet import quiet

IMAGE_TOKEN = "<image>"
_SAFELY = {"trust_remote_code": False, "local_files_only": True}

FLATTEN = (
    "{%- set pictured = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}"
    "{%- set pictured.messages = pictured.messages + [message] -%}"
    "{%- else -%}"
    "{%- set flat = namespace(text='') -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{%- set flat.text = flat.text + '<image>\n' -%}"
    "{%- else -%}{%- set flat.text = flat.text + part['text'] -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- set pictured.messages = pictured.messages + [dict(message, content=flat.text)] -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = pictured.messages -%}"
)
"""Put in front of any chat template for strings: pictures become `<image>` and a newline where they
stand in a message, as LLaVA-1.5 was trained; the template then sees strings as ever."""


def compose(
    encoder: str,
    llm: str,
    out: str | Path,
    *,
    dtype: str = "auto",
    seed: int = 0,
    offline: bool = False,
) -> Path:
    """Makes a LLaVA and saves it as a hub repository holds one.

    SigLIP and SigLIP 2 give all their patches ("full", last layer): they have no class token. CLIP
    gives the patches of its last layer but one, without the class token, as in LLaVA-1.5.

    Args:
        encoder: hub id or folder of a SigLIP, SigLIP 2 (of fixed resolution) or CLIP checkpoint,
            the whole or its vision tower.
        llm: hub id or folder of a causal language model with a chat template.
        out: a folder that does not exist yet.
        dtype: `auto` keeps the language model's; else `float32`, `bfloat16` or `float16`.
        seed: of the projector's initial weights.

    Returns:
        The folder.

    Raises:
        UsageError: `out` exists, or an unknown dtype.
        ModelError: a part that cannot be had or used.
    """
    import torch

    out = Path(out)
    if out.exists():
        raise UsageError(f"{out} exists already.", "Give a folder that does not.")
    check_dtype(dtype)
    eye, brain = find(encoder, offline=offline), find(llm, offline=offline)
    for source in (eye, brain):
        tensors = list(stored_tensors(model_files(source.directory)))
        check_memory(source.name, tensors, torch.device("cpu"), torch.bfloat16, None)
    with quiet(), _named(eye):
        tower = _load_tower(eye)
        pictures = _image_processor(eye, tower.config)
    with quiet(), _named(brain):
        language_model = _load_llm(brain, dtype)
        words = _tokenizer(brain)
    tower.to(language_model.dtype)
    processor = _processor(pictures, words, tower.config)
    prompt_hash(processor)  # raises if the template cannot place pictures
    model = _assemble(tower, language_model, words, seed)
    with atomic_directory(out) as folder, quiet():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return out


def teach_pictures(template: str) -> str:
    """A language model's chat template that also takes content lists with pictures."""
    return FLATTEN + template


@contextmanager
def _named(source: Source) -> Iterator[None]:
    """Tells transformers' errors with the name of what was loaded."""
    try:
        yield
    except (ValueError, KeyError, OSError, RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines() or [repr(error)]
        raise ModelError(
            f"{source.name} cannot be loaded: {reason[0][:300]}",
            "Choose another one; code from repositories is not run.",
        ) from error


def _load_tower(source: Source) -> Any:
    """The vision tower in its own dtype. Its pooling head is left out: LLaVA uses patches."""
    from transformers import AutoConfig, CLIPVisionModel, SiglipVisionModel

    config = AutoConfig.from_pretrained(source.directory, **_SAFELY)
    towers = {
        "siglip": SiglipVisionModel,
        "siglip_vision_model": SiglipVisionModel,
        "clip": CLIPVisionModel,
        "clip_vision_model": CLIPVisionModel,
    }
    if config.model_type in ("siglip2", "siglip2_vision_model"):
        raise ModelError(
            f"{source.name} is a SigLIP 2 of free resolution (NaFlex), which LLaVA cannot hold.",
            "Choose one of fixed resolution, such as google/siglip2-base-patch16-224.",
        )
    if config.model_type not in towers:
        raise ModelError(
            f"{source.name} has the model type {config.model_type!r}; it is no SigLIP or CLIP.",
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
        **_SAFELY,
    )
    if info["missing_keys"] or info["mismatched_keys"]:
        raise ModelError(
            f"{source.name} lacks weights of its vision tower: {sorted(info['missing_keys'])[:1]}.",
            "Download it again.",
        )
    return tower


def _load_llm(source: Source, dtype: str) -> Any:
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source.directory, **_SAFELY)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{source.name} has the model type {config.model_type!r}; it is not a causal LM.",
            "Choose a language model for chat.",
        )
    model, info = AutoModelForCausalLM.from_pretrained(
        source.directory,
        dtype="auto" if dtype == "auto" else getattr(torch, dtype),
        use_safetensors=True,
        output_loading_info=True,
        **_SAFELY,
    )
    if wrong := [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]:
        raise ModelError(
            f"The weights of {source.name} do not fit its config.json: {wrong[0]}.",
            "Download it again.",
        )
    return model


def _tokenizer(source: Source) -> Any:
    """The language model's tokenizer, which knows `<image>` and has a padding token."""
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(source.directory, **_SAFELY)
    if not isinstance(words.chat_template, str):
        raise ModelError(
            f"{source.name} has no chat template, so it is not made for dialogue.",
            "Choose its instruction-tuned sibling.",
        )
    if IMAGE_TOKEN not in words.get_vocab():
        words.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    if words.pad_token is None:
        words.pad_token = words.unk_token or words.eos_token
    words.chat_template = teach_pictures(words.chat_template)
    return words


def _image_processor(source: Source, tower: Any) -> Any:
    from transformers import AutoImageProcessor, LlavaImageProcessorPil

    own = AutoImageProcessor.from_pretrained(source.directory, backend="pil", **_SAFELY)
    if tower.model_type == "siglip_vision_model":
        return own
    # CLIP's would cut off the sides of a picture; LLaVA-1.5 pads it to a square instead.
    return LlavaImageProcessorPil(
        do_pad=True,
        size={"shortest_edge": tower.image_size},
        crop_size={"height": tower.image_size, "width": tower.image_size},
        image_mean=own.image_mean,
        image_std=own.image_std,
    )


def _selection(tower: Any) -> tuple[str, int, int]:
    """Strategy, layer, and the number of tokens that are no patches."""
    return ("full", -1, 0) if tower.model_type == "siglip_vision_model" else ("default", -2, 1)


def _processor(pictures: Any, words: Any, tower: Any) -> Any:
    from transformers import LlavaProcessor

    strategy, _, others = _selection(tower)
    return LlavaProcessor(
        pictures,
        words,
        patch_size=tower.patch_size,
        vision_feature_select_strategy=strategy,
        chat_template=words.chat_template,
        num_additional_image_tokens=others,
    )


def _assemble(tower: Any, language_model: Any, words: Any, seed: int) -> Any:
    """The parts in one model; the projector as `torch.nn.Linear` begins, like LLaVA's."""
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    _grow(language_model, words)
    strategy, layer, _ = _selection(tower.config)
    text = language_model.config
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        image_token_index=words.convert_tokens_to_ids(IMAGE_TOKEN),
        projector_hidden_act="gelu",
        vision_feature_select_strategy=strategy,
        vision_feature_layer=layer,
        image_seq_length=(tower.config.image_size // tower.config.patch_size) ** 2,
        tie_word_embeddings=text.tie_word_embeddings,
        pad_token_id=words.pad_token_id,
        dtype=language_model.dtype,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = tower
    model.model.language_model = language_model.get_decoder()
    model.lm_head = language_model.get_output_embeddings()
    projector = model.model.multi_modal_projector.to_empty(device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        projector.linear_1.reset_parameters()
        projector.linear_2.reset_parameters()
    projector.to(language_model.dtype)
    model.generation_config = language_model.generation_config
    model.generation_config.pad_token_id = words.pad_token_id
    model.tie_weights()
    return model.eval()


def _grow(language_model: Any, words: Any) -> None:
    """A row for every token. New rows are the mean of the others: neither likely nor far off."""
    import torch

    rows = language_model.get_input_embeddings().weight.shape[0]
    if len(words) <= rows:  # many models have spare rows
        return
    language_model.resize_token_embeddings(len(words), mean_resizing=False)
    tables = {language_model.get_input_embeddings(), language_model.get_output_embeddings()}
    with torch.no_grad():
        for table in tables:
            table.weight[rows:] = table.weight[:rows].float().mean(0).to(table.weight.dtype)
