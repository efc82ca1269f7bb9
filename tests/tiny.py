"""Tiny random checkpoints for tests, saved like hub repositories.

Each factory writes `config.json`, `model.safetensors`, the tokenizer, the image processor and the
chat template to a directory and returns it. Weights are random from a fixed seed: answers are
meaningless, but shapes and code paths are real. Images are 32x32 pixels in 8-pixel patches (16
image tokens) unless a factory says otherwise.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

IMAGE_SIZE = 32
PATCH_SIZE = 8

SENTENCES = [
    "What is in the picture? A red circle is left of the blue square.",
    "How many stars are there? There are three stars and one cat on the mat.",
    "You are a helpful assistant. Answer the question using a single word or phrase.",
    "Describe the image. The picture shows a green triangle above a small yellow house.",
    "Is there a dog? No, there is no dog. USER: ASSISTANT: user assistant system Question: Answer:",
    "Which colour has the big shape? White, black, grey, orange, purple, pink. 0123456789",
]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML in which a picture is `<image>` and a newline, as in the built-in model."""

CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@lru_cache
def _tokenizer_json(special: tuple[str, ...], bos: str | None, metaspace: bool) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    if metaspace:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
        alphabet = sorted(set("".join(SENTENCES)) | {"\n", "[", "]", "/", "<", ">"})
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=480 + len(special),
        special_tokens=list(special),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, special.index(bos))],
        )
    return tokenizer.to_str()


def make_tokenizer(
    special: tuple[str, ...] = CHATML_TOKENS,
    *,
    eos: str = "<|im_end|>",
    pad: str | None = None,
    bos: str | None = None,
    unk: str | None = None,
    adds_bos: bool = False,
    metaspace: bool = False,
    template: str | None = CHATML,
    **extra: Any,
) -> Any:
    """Train a BPE tokenizer with up to 480 tokens besides the special ones.

    Args:
        special: Special tokens, with ids from 0.
        eos: End token.
        pad: Padding token; default the first special token.
        bos: Begin token.
        unk: Token for unknown characters.
        adds_bos: Make the tokenizer itself put `bos` before every text.
        metaspace: Split words like SentencePiece, with `<unk>` for unknown characters; otherwise
            byte-level, so that any text round-trips.
        template: Chat template.
        extra: Further arguments of the transformers class, such as `extra_special_tokens`.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    text = _tokenizer_json(special, bos if adds_bos else None, metaspace)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text),
        eos_token=eos,
        pad_token=pad or special[0],
        bos_token=bos,
        unk_token="<unk>" if metaspace else unk,
        padding_side="left",
        **extra,
    )
    fast.chat_template = template
    return fast


def vision_config(kind: str) -> dict[str, Any]:
    """Return the config of a tiny SigLIP or CLIP vision tower: 16 patches, 2 layers, width 32."""
    return {
        "model_type": {"siglip": "siglip_vision_model", "clip": "clip_vision_model"}[kind],
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }


def llm_config(kind: str, vocab_size: int, **changes: Any) -> dict[str, Any]:
    """Return the config of a tiny causal LM: 2 layers, width 32, 2 heads."""
    config: dict[str, Any] = {
        "model_type": kind,
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 1024,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "initializer_range": 0.3,
    }
    return config | changes


def llava_processor(tokenizer: Any, vision: str = "siglip") -> Any:
    """Return a LLaVA processor with a tokenizer that has the token `<image>`."""
    from transformers import LlavaProcessor

    return LlavaProcessor(
        image_processor(vision),
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="full" if vision == "siglip" else "default",
        chat_template=tokenizer.chat_template,
        num_additional_image_tokens=0 if vision == "siglip" else 1,
    )


def image_processor(kind: str) -> Any:
    """Return the image processor for a tower of `vision_config`; PIL backend."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    if kind == "siglip":
        return SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    )


def save(model: Any, processor: Any, directory: Path) -> Path:
    """Save model and processor like a hub repository."""
    model.eval()
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def seeded(build: Any, config: Any) -> Any:
    """Build a model with random weights that are always the same."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(config)


def tiny_llava(
    directory: Path,
    vision: str = "siglip",
    llm: str = "llama",
    *,
    processor_tokenizer: Any = None,
    **llm_changes: Any,
) -> Path:
    """Save a LLaVA-1.5: SigLIP ("full", layer -1) or CLIP ("default", layer -2), MLP, causal LM.

    Args:
        directory: Where to save it.
        vision: `siglip` or `clip`.
        llm: Model type of the language model.
        processor_tokenizer: Replaces the ChatML tokenizer; must have the token `<image>`.
        llm_changes: Config values of the language model.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    tokenizer = processor_tokenizer or make_tokenizer((*CHATML_TOKENS, "<image>"))
    strategy = "full" if vision == "siglip" else "default"
    config = LlavaConfig(
        vision_config=vision_config(vision),
        text_config=llm_config(
            llm,
            len(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **llm_changes,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy=strategy,
        vision_feature_layer=-1 if vision == "siglip" else -2,
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        initializer_range=0.3,
    )
    model = seeded(LlavaForConditionalGeneration, config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return save(model, llava_processor(tokenizer, vision), directory)


def picture(seed: int = 0, size: tuple[int, int] = (48, 40)) -> Any:
    """Return a picture of coloured noise from `vqa_app.pictures.picture.open_picture`."""
    import numpy as np
    from PIL import Image

    from vqa_app.pictures.picture import open_picture

    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return open_picture(Image.fromarray(noise), name=f"noise-{seed}.png")


def edit_json(path: Path, **changes: Any) -> None:
    """Change values of a JSON file; None removes one."""
    data = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(
        json.dumps({key: value for key, value in data.items() if value is not None}),
        encoding="utf-8",
    )
