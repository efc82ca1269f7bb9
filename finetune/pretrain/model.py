"""The architecture of the built-in model and how it is saved."""

from pathlib import Path

from torch import nn
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)

from finetune.pretrain.padding import make_image_processor
from vqa_app.checkpoints.compose import assemble, llava_config, llava_processor
from vqa_app.transformers_internals import llava_projector


def two_tower_config(
    vision: SiglipVisionConfig, vocabulary: int, caption_tokens: int
) -> SiglipConfig:
    """Return the configuration of both towers; the text tower is small and reads captions."""
    width = vision.hidden_size
    text = SiglipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=vision.num_attention_heads,
        max_position_embeddings=caption_tokens,
        projection_size=width,
        hidden_act=vision.hidden_act,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())


def language_config(vocabulary: int, tiny: bool = False) -> LlamaConfig:
    """Return the configuration of the language model."""
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


def assemble_checkpoint(
    encoder: SiglipModel,
    projector: nn.Module,
    language: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Return model and processor of a standard checkpoint, which plain transformers loads."""
    model = assemble(encoder.vision_model, projector, language, tokenizer)
    model.generation_config = GenerationConfig(
        max_new_tokens=128,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return model, make_processor(tokenizer, encoder.vision_model.config)


def make_projector(
    vision: SiglipVisionConfig, text: LlamaConfig, tokenizer: PreTrainedTokenizerFast
) -> nn.Module:
    """Return a new two-layer MLP, as in LLaVA-1.5."""
    return llava_projector(llava_config(vision, text, tokenizer))


def make_processor(
    tokenizer: PreTrainedTokenizerFast, vision: SiglipVisionConfig
) -> LlavaProcessor:
    """Return the processor of a checkpoint, which pads pictures to a square."""
    side = vision.image_size
    assert isinstance(side, int)
    return llava_processor(make_image_processor(side), tokenizer, vision)


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Save bf16 safetensors in shards of at most 15 MB, with everything that loading needs."""
    model.bfloat16().save_pretrained(folder, max_shard_size="15MB")
    processor.save_pretrained(folder)
