"""The shapes and sizes of the built-in model."""

import copy
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
    SiglipTextConfig,
    SiglipVisionConfig,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from finetune.pretrain.scene_pool import SIZE

CAPTION_TOKENS = 48


def vision_config(tiny: bool = False) -> SiglipVisionConfig:
    width, layers = (32, 2) if tiny else (192, 6)
    return SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        image_size=SIZE,
        patch_size=16,
    )


def siglip_config(vocabulary: int, tiny: bool = False) -> SiglipConfig:
    """Both towers; the text tower is small and reads captions."""
    vision = vision_config(tiny)
    width = vision.hidden_size
    text = SiglipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=vision.num_attention_heads,
        max_position_embeddings=CAPTION_TOKENS,
        projection_size=width,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())


def language_config(vocabulary: int, tiny: bool = False) -> LlamaConfig:
    width, layers = (32, 2) if tiny else (192, 5)
    heads = max(1, width // 32)
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def assemble(
    encoder: SiglipModel,
    projector: LlavaMultiModalProjector,
    language: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The parts as one standard checkpoint: plain transformers loads and runs what this saves."""
    config = llava_config(encoder.config.vision_config, language.config, tokenizer)
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(encoder.vision_model.state_dict())
    model.model.multi_modal_projector.load_state_dict(projector.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.generation_config = GenerationConfig(
        max_new_tokens=128,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return model.eval(), make_processor(tokenizer)


def llava_config(
    vision: SiglipVisionConfig, text: LlamaConfig, tokenizer: PreTrainedTokenizerFast
) -> LlavaConfig:
    """`full` and -1: SigLIP has no CLS token, so every patch of the last layer is a token."""
    return LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=64,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )


def make_projector(
    vision: SiglipVisionConfig, text: LlamaConfig, tokenizer: PreTrainedTokenizerFast
) -> LlavaMultiModalProjector:
    """The two-layer MLP of LLaVA-1.5, freshly initialised."""
    return LlavaMultiModalProjector(llava_config(vision, text, tokenizer))


def make_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    pictures = SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=tokenizer.chat_template,
    )


def save_two_towers(encoder: SiglipModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """The encoder with its text tower, in bf16, as a checkpoint of its own: for retrieval."""
    copy.deepcopy(encoder).bfloat16().save_pretrained(folder)
    pictures = SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    SiglipProcessor(pictures, tokenizer).save_pretrained(folder)


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """bf16 safetensors in shards of at most 15 MB, with everything that loading needs."""
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="15MB")
    processor.save_pretrained(folder)
