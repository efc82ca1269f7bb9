"""The shapes and sizes of the built-in model."""

from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipTextConfig,
    SiglipVisionConfig,
)

from finetune.builtin.pictures import SIZE

CAPTION_TOKENS = 48


def vision_config(tiny: bool = False) -> SiglipVisionConfig:
    width, layers = (32, 2) if tiny else (192, 6)
    return SiglipVisionConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32), image_size=SIZE, patch_size=16)


def siglip_config(vocabulary: int, tiny: bool = False) -> SiglipConfig:
    """Both towers; the text tower is small and reads captions."""
    vision = vision_config(tiny)
    width = vision.hidden_size
    text = SiglipTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width,
        num_hidden_layers=2, num_attention_heads=vision.num_attention_heads,
        max_position_embeddings=CAPTION_TOKENS, projection_size=width,
        pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())


def language_config(vocabulary: int, tiny: bool = False) -> LlamaConfig:
    width, layers = (32, 2) if tiny else (192, 5)
    heads = max(1, width // 32)
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=width * 8 // 3,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=2048, tie_word_embeddings=True, pad_token_id=0,
        bos_token_id=1, eos_token_id=2)
