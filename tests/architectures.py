"""Tiny random checkpoints of the most common image-text architectures on the hub.

Each factory takes a directory, saves a checkpoint to it like a hub repository, and returns it. Chat
templates are written for these tests in each family's format; PaliGemma, BLIP-2 and Kosmos-2 have
none on the hub and none here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.tiny import (
    CHATML_TOKENS,
    IMAGE_SIZE,
    PATCH_SIZE,
    llm_config,
    make_tokenizer,
    save,
    seeded,
    tiny_llava,
    vision_config,
)

_SPREAD = 0.3
"""Standard deviation of random weights: large enough for answers to depend on the pictures."""


def _chatml(picture: str, end: str = "<|im_end|>") -> str:
    """Return a ChatML template in which a picture is `picture`."""
    return (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        f"{{{{ '{picture}' }}}}"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
        f"{{{{ '{end}\n' }}}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


def _llm(kind: str, tokenizer: Any, **changes: Any) -> dict[str, Any]:
    return llm_config(
        kind,
        len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **changes,
    )


def _finish(model: Any, tokenizer: Any) -> None:
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id


def llava_siglip(directory: Path) -> Path:
    return tiny_llava(directory, "siglip", "llama")


def llava_clip(directory: Path) -> Path:
    return tiny_llava(directory, "clip", "qwen2")


def llava_next(directory: Path) -> Path:
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    tokenizer = make_tokenizer((*CHATML_TOKENS, "<image>"))
    grid = [[32, 64], [64, 32], [64, 64]]
    config = LlavaNextConfig(
        vision_config=vision_config("clip"),
        text_config=_llm("llama", tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        image_grid_pinpoints=grid,
        initializer_range=_SPREAD,
    )
    model = seeded(LlavaNextForConditionalGeneration, config)
    _finish(model, tokenizer)
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_grid_pinpoints=grid,
    )
    processor = LlavaNextProcessor(
        pictures,
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_chatml("<image>\n"),
    )
    return save(model, processor, directory)


def llava_onevision(directory: Path) -> Path:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionProcessor,
    )
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    from vqa_app.checkpoints.processor import no_video, without_video

    tokenizer = make_tokenizer((*CHATML_TOKENS, "<image>", "<video>"))
    grid = [[32, 32], [32, 64], [64, 32], [64, 64]]
    config = LlavaOnevisionConfig(
        vision_config=vision_config("siglip"),
        text_config=_llm("qwen2", tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        vision_aspect_ratio="anyres_max_9",
        image_grid_pinpoints=grid,
        initializer_range=_SPREAD,
    )
    model = seeded(LlavaOnevisionForConditionalGeneration, config)
    _finish(model, tokenizer)
    pictures = LlavaOnevisionImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_grid_pinpoints=grid
    )
    processor = without_video(LlavaOnevisionProcessor)(
        pictures,
        tokenizer,
        no_video(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=_chatml("<image>"),
    )
    return save(model, processor, directory)


def paligemma(directory: Path, llm: str = "gemma", **changes: Any) -> Path:
    from transformers import (
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
    )
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokenizer = make_tokenizer(
        ("<pad>", "<eos>", "<bos>", "<image>"), eos="<eos>", bos="<bos>", template=None
    )
    pictures = SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    pictures.image_seq_length = 16
    processor = PaliGemmaProcessor(pictures, tokenizer)
    config = PaliGemmaConfig(
        vision_config=vision_config("siglip") | {"projection_dim": 32},
        text_config=_llm(llm, tokenizer, hidden_activation="gelu_pytorch_tanh", **changes),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
        vocab_size=len(tokenizer),
        initializer_range=_SPREAD,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = seeded(PaliGemmaForConditionalGeneration, config)
    _finish(model, tokenizer)
    return save(model, processor, directory)


def paligemma2(directory: Path) -> Path:
    """Save a PaliGemma 2, whose Gemma 2 has sliding windows and caps its logits."""
    return paligemma(
        directory,
        "gemma2",
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=16,
        final_logit_softcapping=30.0,
        attn_logit_softcapping=50.0,
    )


_SMOL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
_SMOL = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<end_of_utterance>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def _idefics_parts(tokenizer: Any) -> dict[str, Any]:
    tower = vision_config("siglip") | {"image_size": 32}
    tower.pop("model_type")
    return {
        "vision_config": tower,
        "text_config": _llm("llama", tokenizer),
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "scale_factor": 2,
        "initializer_range": _SPREAD,
        "pad_token_id": 0,
    }


def idefics3(directory: Path) -> Path:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tokenizer = make_tokenizer(_SMOL_TOKENS, eos="<end_of_utterance>")
    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    )
    processor = Idefics3Processor(pictures, tokenizer, image_seq_len=4, chat_template=_SMOL)
    model = seeded(Idefics3ForConditionalGeneration, Idefics3Config(**_idefics_parts(tokenizer)))
    _finish(model, tokenizer)
    return save(model, processor, directory)


def granite_docling(directory: Path) -> Path:
    from transformers import (
        GraniteDoclingConfig,
        GraniteDoclingForConditionalGeneration,
        GraniteDoclingProcessor,
    )
    from transformers.models.granite_docling.image_processing_pil_granite_docling import (
        GraniteDoclingImageProcessorPil,
    )

    tokenizer = make_tokenizer(_SMOL_TOKENS, eos="<end_of_utterance>")
    pictures = GraniteDoclingImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, max_patches=4
    )
    processor = GraniteDoclingProcessor(pictures, tokenizer, image_seq_len=4, chat_template=_SMOL)
    tower = vision_config("siglip") | {
        "scale_factor": 2,
        "out_hidden_size": 32,
        "deepstack_visual_indexes": [0],
        "initializer_range": _SPREAD,
    }
    tower.pop("model_type")
    config = GraniteDoclingConfig(
        vision_config=tower,
        text_config=_llm("granite_docling_text", tokenizer, attention_multiplier=0.25),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        initializer_range=_SPREAD,
    )
    model = seeded(GraniteDoclingForConditionalGeneration, config)
    _finish(model, tokenizer)
    return save(model, processor, directory)


def lfm2_vl(directory: Path) -> Path:
    """Save an LFM2-VL, half of whose layers are convolutions; see `tests.lfm2_pictures`."""
    from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration, Lfm2VlProcessor

    from tests.lfm2_pictures import Lfm2VlImageProcessor, register

    register()
    names = {
        "image_token": "<image>",
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail_token": "<|img_thumbnail|>",
    }
    tiles = (f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5))
    tokenizer = make_tokenizer(
        (*CHATML_TOKENS, *names.values(), *tiles), extra_special_tokens=names
    )
    pictures = Lfm2VlImageProcessor(
        encoder_patch_size=PATCH_SIZE,
        tile_size=IMAGE_SIZE,
        min_image_tokens=2,
        max_image_tokens=4,
        max_tiles=4,
    )
    processor = Lfm2VlProcessor(pictures, tokenizer, chat_template=_chatml("<image>"))
    config = Lfm2VlConfig(
        vision_config={
            "model_type": "siglip2_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_patches": 16,
            "patch_size": PATCH_SIZE,
            "vision_use_head": False,
        },
        text_config=_llm(
            "lfm2",
            tokenizer,
            layer_types=["conv", "full_attention"],
            block_auto_adjust_ff_dim=False,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projector_hidden_size=32,
        tie_word_embeddings=False,
        initializer_range=_SPREAD,
    )
    model = seeded(Lfm2VlForConditionalGeneration, config)
    _finish(model, tokenizer)
    return save(model, processor, directory)


def smolvlm(directory: Path) -> Path:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMProcessor
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    from vqa_app.checkpoints.processor import no_video, without_video

    tokenizer = make_tokenizer(_SMOL_TOKENS, eos="<end_of_utterance>")
    pictures = SmolVLMImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    )
    processor = without_video(SmolVLMProcessor)(
        pictures, tokenizer, no_video(), image_seq_len=4, chat_template=_SMOL
    )
    model = seeded(SmolVLMForConditionalGeneration, SmolVLMConfig(**_idefics_parts(tokenizer)))
    _finish(model, tokenizer)
    return save(model, processor, directory)


_QWEN_TOKENS = (
    *CHATML_TOKENS,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def qwen3_5(directory: Path) -> Path:
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration, Qwen3VLProcessor

    tokenizer = make_tokenizer(_QWEN_TOKENS)
    tower = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": PATCH_SIZE,
        "num_position_embeddings": 64,
        "initializer_range": _SPREAD,
    }
    parts = _qwen_parts(tokenizer) | {"text_config": _qwen3_5_text(tokenizer)}
    parts.pop("initializer_range")
    model = seeded(Qwen3_5ForConditionalGeneration, Qwen3_5Config(vision_config=tower, **parts))
    return _qwen_save(model, Qwen3VLProcessor, tokenizer, directory)


def _qwen3_5_text(tokenizer: Any) -> dict[str, Any]:
    """Return the config of a language model with a layer of linear and one of full attention."""
    return _llm("qwen3_5_text", tokenizer) | {
        "head_dim": 32,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.25,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
    }


def _qwen_parts(tokenizer: Any) -> dict[str, Any]:
    return {
        "text_config": _llm("qwen2", tokenizer)
        | {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [2, 3, 3],
            }
        },
        "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        "initializer_range": _SPREAD,
    }


def _qwen_save(model: Any, processor_class: Any, tokenizer: Any, directory: Path) -> Path:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from vqa_app.checkpoints.processor import no_video, without_video

    pictures = Qwen2VLImageProcessorPil(
        patch_size=PATCH_SIZE, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    )
    template = _chatml("<|vision_start|><|image_pad|><|vision_end|>")
    _finish(model, tokenizer)
    return save(
        model,
        without_video(processor_class)(pictures, tokenizer, no_video(), chat_template=template),
        directory,
    )


def qwen2_vl(directory: Path) -> Path:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    tokenizer = make_tokenizer(_QWEN_TOKENS)
    tower = {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 32,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": PATCH_SIZE,
    }
    config = Qwen2VLConfig(vision_config=tower, **_qwen_parts(tokenizer))
    return _qwen_save(
        seeded(Qwen2VLForConditionalGeneration, config), Qwen2VLProcessor, tokenizer, directory
    )


def qwen2_5_vl(directory: Path) -> Path:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
    )

    tokenizer = make_tokenizer(_QWEN_TOKENS)
    tower = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": PATCH_SIZE,
        "window_size": 32,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(vision_config=tower, **_qwen_parts(tokenizer))
    model = seeded(Qwen2_5_VLForConditionalGeneration, config)
    return _qwen_save(model, Qwen2_5_VLProcessor, tokenizer, directory)


def qwen3_vl(directory: Path) -> Path:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

    tokenizer = make_tokenizer(_QWEN_TOKENS)
    tower = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": PATCH_SIZE,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 64,
    }
    parts = _qwen_parts(tokenizer)
    parts["text_config"]["model_type"] = "qwen3_vl_text"
    model = seeded(Qwen3VLForConditionalGeneration, Qwen3VLConfig(vision_config=tower, **parts))
    return _qwen_save(model, Qwen3VLProcessor, tokenizer, directory)


_GEMMA_3 = (
    "{{ bos_token }}{% set first = messages[0]['role'] == 'system' %}"
    "{% for message in (messages[1:] if first else messages) %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' }}"
    "{% if loop.first and first %}{{ messages[0]['content'][0]['text'] + '\n\n' }}{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def gemma3(directory: Path) -> Path:
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    tokenizer = make_tokenizer(
        (
            "<pad>",
            "<eos>",
            "<bos>",
            "<start_of_turn>",
            "<end_of_turn>",
            "<start_of_image>",
            "<end_of_image>",
            "<image_soft_token>",
        ),
        eos="<eos>",
        bos="<bos>",
        adds_bos=True,
        extra_special_tokens={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
    )
    pictures = Gemma3ImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    processor = Gemma3Processor(pictures, tokenizer, chat_template=_GEMMA_3, image_seq_length=4)
    ids = tokenizer.convert_tokens_to_ids
    config = Gemma3Config(
        vision_config=vision_config("siglip"),
        text_config=_llm(
            "gemma3_text",
            tokenizer,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
        ),
        mm_tokens_per_image=4,
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids("<image_soft_token>"),
        initializer_range=_SPREAD,
    )
    model = seeded(Gemma3ForConditionalGeneration, config)
    _finish(model, tokenizer)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, ids("<end_of_turn>")]
    projection = model.model.multi_modal_projector.mm_input_projection_weight
    projection.data = torch.randn(projection.shape, generator=torch.Generator().manual_seed(0))
    return save(model, processor, directory)


def internvl(directory: Path) -> Path:
    return _internvl(directory, "qwen2")


def internvl3_5(directory: Path) -> Path:
    return _internvl(directory, "qwen3")


def _internvl(directory: Path, llm: str) -> Path:
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    from vqa_app.checkpoints.processor import no_video, without_video

    tokenizer = make_tokenizer(
        (*CHATML_TOKENS, "<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )
    pictures = GotOcr2ImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, crop_to_patches=True, max_patches=3
    )
    processor = without_video(InternVLProcessor)(
        pictures,
        tokenizer,
        no_video(),
        image_seq_length=4,
        chat_template=_chatml("<IMG_CONTEXT>\n"),
    )
    tower = vision_config("siglip") | {"image_size": [32, 32], "patch_size": [8, 8]}
    tower.pop("model_type")
    config = InternVLConfig(
        vision_config=tower,
        text_config=_llm(llm, tokenizer),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        initializer_range=_SPREAD,
    )
    model = seeded(InternVLForConditionalGeneration, config)
    _finish(model, tokenizer)
    return save(model, processor, directory)


_GEMMA_4 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ '\n\n<|image|>\n\n' }}"
    "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}{{ '<turn|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% endif %}"
)


def gemma4(directory: Path, **text: Any) -> Path:
    from transformers import (
        Gemma4AudioFeatureExtractor,
        Gemma4Config,
        Gemma4ForConditionalGeneration,
        Gemma4Processor,
    )
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    from vqa_app.checkpoints.processor import no_video, without_video

    names = {
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    }
    tokenizer = make_tokenizer(
        ("<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<|video|>", *names.values()),
        eos="<eos>",
        bos="<bos>",
        adds_bos=True,
        extra_special_tokens=names,
    )
    pictures = Gemma4ImageProcessorPil(
        patch_size=PATCH_SIZE, max_soft_tokens=70, pooling_kernel_size=2
    )
    processor = without_video(Gemma4Processor)(
        Gemma4AudioFeatureExtractor(),
        pictures,
        tokenizer,
        no_video(),
        chat_template=_GEMMA_4,
        image_seq_length=70,
    )
    ids = tokenizer.convert_tokens_to_ids
    config = Gemma4Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "patch_size": PATCH_SIZE,
            "pooling_kernel_size": 2,
            "position_embedding_size": 128,
            "initializer_range": _SPREAD,
        },
        audio_config=None,
        text_config=_llm(
            "gemma4_text",
            tokenizer,
            global_head_dim=16,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"] * 2,
            num_hidden_layers=4,
            vocab_size_per_layer_input=len(tokenizer),
            hidden_size_per_layer_input=8,
            **{"num_kv_shared_layers": 2, **text},
        ),
        boi_token_id=ids("<|image>"),
        eoi_token_id=ids("<image|>"),
        image_token_id=ids("<|image|>"),
        video_token_id=ids("<|video|>"),
        audio_token_id=ids("<|audio|>"),
        initializer_range=_SPREAD,
    )
    model = seeded(Gemma4ForConditionalGeneration, config)
    _finish(model, tokenizer)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, ids("<turn|>")]
    return save(model, processor, directory)


_MLLAMA = (
    "{{ bos_token }}{% set first = messages[0]['role'] == 'system' %}"
    "{% for message in messages %}"
    "{% for part in message['content'] if part['type'] == 'image' and first %}"
    "{{ raise_exception('Prompting with images is incompatible with system messages.') }}"
    "{% endfor %}{% endfor %}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<|image|>' }}"
    "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def mllama(directory: Path) -> Path:
    from transformers import MllamaConfig, MllamaForConditionalGeneration, MllamaProcessor
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    # The image token comes last, because the output embedding has no row for it.
    special = (
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|python_tag|>",
        "<|finetune_right_pad_id|>",
    )
    tokenizer = make_tokenizer(
        special,
        eos="<|eot_id|>",
        bos="<|begin_of_text|>",
        adds_bos=True,
        pad="<|finetune_right_pad_id|>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    image = tokenizer.convert_tokens_to_ids("<|image|>")
    pictures = MllamaImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, max_image_tiles=2
    )
    processor = MllamaProcessor(pictures, tokenizer, chat_template=_MLLAMA)
    tower = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "intermediate_size": 64,
        "vision_output_dim": 64,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "max_num_tiles": 2,
        "intermediate_layers_indices": [0],
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }
    text = llm_config("mllama_text_model", image, cross_attention_layers=[1])
    text |= {
        "num_hidden_layers": 3,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": 1,
        "bos_token_id": 0,
    }
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    config = MllamaConfig(
        vision_config=tower, text_config=text, image_token_index=image, initializer_range=_SPREAD
    )
    model = seeded(MllamaForConditionalGeneration, config)
    _open_gates(model)
    _finish(model, tokenizer)
    return save(model, processor, directory)


def _open_gates(model: Any) -> None:
    """Open the gates of cross-attention, with which pictures would have no effect at first."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name and parameter.numel() == 1:
                parameter.fill_(1.0)


def minicpm_v_4_6(directory: Path) -> Path:
    from transformers import (
        MiniCPMV4_6Config,
        MiniCPMV4_6ForConditionalGeneration,
        MiniCPMV4_6Processor,
    )

    return _minicpm(
        directory, MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration, MiniCPMV4_6Processor
    )


def minicpm_v_4_7(directory: Path) -> Path:
    from transformers import (
        MiniCPMV4_7Config,
        MiniCPMV4_7ForConditionalGeneration,
        MiniCPMV4_7Processor,
    )

    return _minicpm(
        directory,
        MiniCPMV4_7Config,
        MiniCPMV4_7ForConditionalGeneration,
        MiniCPMV4_7Processor,
        image_start_id="<image>",
        image_end_id="</image>",
        slice_start_id="<slice>",
        slice_end_id="</slice>",
        newline_id="\n",
    )


def _minicpm(
    directory: Path, config_class: Any, model_class: Any, processor_class: Any, **ids: str
) -> Path:
    from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import (
        MiniCPMV4_6ImageProcessorPil,
    )

    from vqa_app.checkpoints.processor import no_video, without_video

    names = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    }
    tokenizer = make_tokenizer((*CHATML_TOKENS, *names.values()), extra_special_tokens=names)
    pictures = MiniCPMV4_6ImageProcessorPil(
        patch_size=PATCH_SIZE, scale_resolution=32, max_slice_nums=3
    )
    processor = without_video(processor_class)(
        pictures, no_video(), tokenizer, chat_template=_chatml("<|image_pad|>\n")
    )
    config = config_class(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": PATCH_SIZE,
            "initializer_range": _SPREAD,
        },
        text_config=_qwen3_5_text(tokenizer),
        insert_layer_id=0,
        image_size=32,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        **{name: tokenizer.encode(text)[0] for name, text in ids.items()},
    )
    model = seeded(model_class, config)
    _finish(model, tokenizer)
    return save(model, processor, directory)


def blip2(directory: Path) -> Path:
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    tokenizer = make_tokenizer(
        ("<pad>", "<unk>", "</s>", "<image>"), eos="</s>", bos="</s>", adds_bos=True, template=None
    )
    processor = Blip2Processor(
        BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        tokenizer,
        num_query_tokens=4,
    )
    config = Blip2Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "initializer_range": _SPREAD,
        },
        qformer_config={
            "vocab_size": 8,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "encoder_hidden_size": 32,
            "initializer_range": _SPREAD,
        },
        text_config={
            "model_type": "opt",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 512,
            "init_std": _SPREAD,
            "bos_token_id": 2,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = seeded(Blip2ForConditionalGeneration, config)
    _finish(model, tokenizer)
    return save(model, processor, directory)


def kosmos2(directory: Path) -> Path:
    from transformers import Kosmos2Config, Kosmos2ForConditionalGeneration, Kosmos2Processor

    from tests.tiny import image_processor

    tokenizer = make_tokenizer(
        ("<s>", "<pad>", "</s>", "<unk>", *(f"<filler-{i}>" for i in range(64))),
        eos="</s>",
        bos="<s>",
        pad="<pad>",
        unk="<unk>",
        template=None,
    )
    processor = Kosmos2Processor(image_processor("clip"), tokenizer, num_patch_index_tokens=16)
    config = Kosmos2Config(
        text_config={
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 512,
            "embed_dim": 32,
            "layers": 2,
            "ffn_dim": 64,
            "attention_heads": 2,
            "init_std": _SPREAD,
        },
        vision_config=vision_config("clip") | {"model_type": "kosmos_2_vision_model"},
        latent_query_num=64,
    )
    model = seeded(Kosmos2ForConditionalGeneration, config)
    _finish(model, tokenizer)
    return save(model, processor, directory)


ARCHITECTURES: dict[str, Callable[[Path], Path]] = {
    "llava-siglip": llava_siglip,
    "llava-clip": llava_clip,
    "llava-next": llava_next,
    "llava-onevision": llava_onevision,
    "paligemma": paligemma,
    "paligemma2": paligemma2,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "granite-docling": granite_docling,
    "lfm2-vl": lfm2_vl,
    "qwen2-vl": qwen2_vl,
    "qwen2.5-vl": qwen2_5_vl,
    "qwen3-vl": qwen3_vl,
    "qwen3.5": qwen3_5,
    "gemma3": gemma3,
    "gemma4": gemma4,
    "internvl": internvl,
    "internvl3.5": internvl3_5,
    "minicpm-v-4.6": minicpm_v_4_6,
    "minicpm-v-4.7": minicpm_v_4_7,
    "mllama": mllama,
    "blip-2": blip2,
    "kosmos-2": kosmos2,
}

CATALOGUE_ARCHITECTURES = {
    "HuggingFaceTB/SmolVLM-256M-Instruct": "idefics3",
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": "smolvlm",
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": "smolvlm",
    "LiquidAI/LFM2.5-VL-450M": "lfm2-vl",
    "Qwen/Qwen3.5-0.8B": "qwen3.5",
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": "llava-onevision",
    "OpenGVLab/InternVL3_5-1B-HF": "internvl3.5",
    "openbmb/MiniCPM-V-4.6": "minicpm-v-4.6",
    "openbmb/MiniCPM-V-4.7-1B": "minicpm-v-4.7",
    "Qwen/Qwen3-VL-2B-Instruct": "qwen3-vl",
    "google/paligemma2-3b-mix-448": "paligemma2",
    "google/gemma-3-4b-it": "gemma3",
    "google/gemma-4-E2B-it": "gemma4",
    "llava-hf/llava-1.5-7b-hf": "llava-clip",
    "Qwen/Qwen2.5-VL-7B-Instruct": "qwen2.5-vl",
}
"""The architecture of each model in `vqa_app.checkpoints.catalogue`."""
