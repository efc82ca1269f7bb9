"""All calls of this project into private or changing parts of transformers.

Tried with transformers 5.23.0 and 5.24.0. Check every function here when the upper bound in
`pyproject.toml` moves. Importing this module imports torch and transformers. Three uses stay where
they are because they override methods: `finetune.training.trainer` subclasses the Trainer,
`vqa_app.engine.kv_cache` subclasses the cache classes, and `vqa_app.checkpoints.cpu_quantization`
subclasses the quantiser.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, DynamicLayer, GenerationMixin, LogitsProcessorList
from transformers.cache_utils import DynamicSlidingWindowLayer
from transformers.core_model_loading import ConversionOps as ConversionOps  # re-exported, as below
from transformers.integrations.sdpa_attention import (
    sdpa_attention_forward as sdpa_attention_forward,
)
from transformers.masking_utils import sdpa_mask as sdpa_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.quantizers import HfQuantizer as HfQuantizer
from transformers.quantizers import register_quantization_config as register_quantization_config
from transformers.quantizers import register_quantizer as register_quantizer
from transformers.utils.quantization_config import (
    QuantizationConfigMixin as QuantizationConfigMixin,
)

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import (
        Cache,
        GenerationConfig,
        LlavaConfig,
        PreTrainedConfig,
        TrainerCallback,
        TrainingArguments,
    )


def name_of_cache_argument(output: type) -> str:
    """Return the argument of `forward` that takes the KV cache; 5.24 renamed it.

    Args:
        output: The class of what `forward` returns, which has a field of the same name.
    """
    return "cache" if "cache" in {field.name for field in fields(output)} else "past_key_values"


CACHE_ARGUMENT = name_of_cache_argument(BaseModelOutputWithPast)


def cache_argument(cache: Cache) -> dict[str, Cache]:
    """Return the KV cache as a keyword argument for a model's `forward`."""
    return {CACHE_ARGUMENT: cache}


def enable_activation_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass; 5.24 renamed the method."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    # transformers lets all embeddings require gradients, those of the frozen image encoder as well,
    # whose activations would then be kept. Only reentrant checkpointing needs that.
    model.disable_input_require_grads()


# Caches and attention


def count_cache_layers(config: PreTrainedConfig) -> int:
    """Return how many layers the KV cache of a model has."""
    return len(DynamicCache(config=config).layers)


def has_croppable_cache(config: PreTrainedConfig) -> bool:
    """Return whether every layer caches keys and values that can be cut off at any token."""
    text = config.get_text_config(decoder=True)
    layers = DynamicCache(config=config).layers
    # A sliding window is applied by the mask, so a full cache of such a layer can be cut too.
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return len(layers) == text.num_hidden_layers and all(type(layer) in kinds for layer in layers)


def attends_to_all_previous_tokens(config: PreTrainedConfig) -> bool:
    """Return whether no layer has a sliding window or linear attention."""
    cache = DynamicCache(config=config)
    return not any(cache.is_sliding) and not any(cache.is_linear)


def attention_implementation(config: PreTrainedConfig) -> str:
    """Return the name of the attention function of a (text) config: "sdpa", "eager", ..."""
    return str(config._attn_implementation)


def set_attention_implementation(config: PreTrainedConfig, name: str) -> None:
    """Select an attention function without the checks of `set_attn_implementation`."""
    config._attn_implementation = name


# Image features


def accepts_image_features(model: Any) -> bool:
    """Return whether `forward` and `generate` take image features that were computed before."""
    return (
        "mm_encoder_outputs" in inspect.signature(model.forward).parameters
        and hasattr(model.base_model, "get_image_features")
        and type(model).generate is GenerationMixin.generate
    )


def image_features_argument(output: Any) -> dict[str, Any]:
    """Return an output of `get_image_features` as a keyword argument for `forward`."""
    return {"mm_encoder_outputs": {"image": output}}


def accepts_logits_to_keep(model: Any) -> bool:
    """Return whether `forward` can compute the logits of only some tokens; BLIP-2's cannot."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


# Generation


def prepare_generation_config(model: Any, **changes: Any) -> GenerationConfig:
    """Return the generation config that `generate` would use with these arguments."""
    config, _ = model._prepare_generation_config(None, **changes)
    return cast("GenerationConfig", config)


def logits_processors(
    model: Any, config: GenerationConfig, prompt_ids: Tensor, own: LogitsProcessorList
) -> LogitsProcessorList:
    """Return the logits processors of `generate`.

    A config may ask for more than our own options do: Idefics forbids its image tokens as "bad
    words". transformers has no public function that builds these processors.

    Args:
        model: Model that generates.
        config: Result of `prepare_generation_config`; its special tokens are completed.
        prompt_ids: Token ids of the prompt, [1, n].
        own: Further processors, which run before the temperature is applied.
    """
    model._prepare_special_tokens(config, True, device=prompt_ids.device)
    return cast(
        LogitsProcessorList,
        model._get_logits_processor(
            config,
            prompt_ids.shape[1],
            encoder_input_ids=prompt_ids,
            logits_processor=own,
            device=prompt_ids.device,
        ),
    )


class GenerateLoop:
    """The decoding loop of `generate`, one token at a time.

    Attributes:
        logits: Logits of the next token, [vocabulary].
    """

    def __init__(self, model: Any, inputs: Mapping[str, Any]) -> None:
        self._model, self._ids, config, self._state = model.generate(
            **inputs, custom_generate=_return_prepared, do_sample=False, max_new_tokens=1
        )
        output = self._model._prefill(self._ids, config, self._state, is_first_iteration=True)
        self.logits = self._update(output)

    def step(self, token: int) -> Tensor:
        """Append a token and return the logits of the next one, [vocabulary]."""
        self._ids = torch.cat((self._ids, self._ids.new_tensor([[token]])), 1)
        inputs = self._model.prepare_inputs_for_generation(
            self._ids, next_sequence_length=1, **self._state
        )
        self.logits = self._update(self._model(**inputs, return_dict=True))
        return self.logits

    def _update(self, output: Any) -> Tensor:
        self._state = self._model._update_model_kwargs_for_generation(
            output, self._state, is_encoder_decoder=self._model.config.is_encoder_decoder
        )
        return cast(Tensor, output.logits[0, -1])


def _return_prepared(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    generation_config: Any = None,
    **state: Any,
) -> tuple[Any, Tensor, Any, dict[str, Any]]:
    """Return what `generate` prepared, as a `custom_generate` function."""
    return model, input_ids, generation_config, state


# Processors


def run_image_processor(
    processor: Any, images: Sequence[Image], **options: Any
) -> tuple[Mapping[str, Any], Sequence[str]]:
    """Run a processor's image processor on the images of one conversation.

    Args:
        processor: The processor.
        images: The images.
        options: Arguments of the image processor, instead of those that it was saved with.

    Returns:
        The image processor's output, and the text that replaces each image's placeholder.
    """
    merged = processor._merge_kwargs(
        tokenizer_init_kwargs=processor.tokenizer.init_kwargs, return_tensors="pt"
    )
    # Some options of the processor itself change what replaces a picture, as LFM2-VL's does.
    parameters = inspect.signature(processor._process_images).parameters
    own = {name: merged[name] for name in parameters if name in merged}
    arguments = {**own, **merged["images_kwargs"], **options}
    # One nested list, because some processors treat the images of a conversation by their number.
    inputs, expansions = processor._process_images([list(images)], **arguments)
    if hasattr(processor, "_prepend_local_ids"):  # MiniCPM-V numbers the images of a conversation
        use_ids = merged.get("use_image_id")
        if processor.default_use_image_id if use_ids is None else use_ids:
            token = processor.image_token
            expansions = processor._prepend_local_ids([token * len(images)], expansions, token)
    return inputs, expansions


def render_chat_template(
    template: str, messages: list[dict[str, Any]], add_generation_prompt: bool, **variables: Any
) -> str:
    """Render a chat template as `apply_chat_template` does."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: Any = render_jinja_template(
        conversations=[messages],
        chat_template=template,
        add_generation_prompt=add_generation_prompt,
        **variables,
    )
    texts, _ = rendered
    return str(texts[0])


def mllama_cross_attention_mask(processor: Any, ids: list[int], tiles: Any) -> Tensor:
    """Return Mllama's mask from tokens to image tiles, [1, tokens, images, tiles]."""
    from transformers.models.mllama.processing_mllama import (
        convert_sparse_cross_attention_mask_to_dense,
        get_cross_attention_token_mask,
    )

    dense = convert_sparse_cross_attention_mask_to_dense(
        [get_cross_attention_token_mask(ids, processor.image_token_id)],
        num_tiles=tiles,
        max_num_tiles=processor.image_processor.max_image_tiles,
        length=len(ids),
    )
    return torch.as_tensor(dense)


# Models


def llava_projector(config: LlavaConfig) -> nn.Module:
    """Return a new projector, as in LLaVA models; its weights are torch's defaults."""
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    return LlavaMultiModalProjector(config)


def shards_while_loading() -> bool:
    """Return whether DeepSpeed ZeRO-3 is configured, which shards models as they are loaded."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    return bool(is_deepspeed_zero3_enabled())


def shards_on_cpu() -> bool:
    """Return whether the shards of models that are loaded wait in CPU memory, or on a disk."""
    from transformers.integrations import deepspeed_config

    zero = (deepspeed_config() or {}).get("zero_optimization") or {}
    return (zero.get("offload_param") or {}).get("device") in ("cpu", "nvme")


@contextlib.contextmanager
def without_sharding() -> Iterator[None]:
    """Build models whole inside the block, whatever DeepSpeed's config says."""
    from transformers.integrations import deepspeed

    before = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = before


# Training


@contextlib.contextmanager
def sharding_while_loading(config: dict[str, Any]) -> Iterator[None]:
    """Shard models that are loaded inside the block, if a DeepSpeed config asks for ZeRO-3.

    transformers refers weakly to the object, which must exist before the model does.
    """
    from transformers.integrations import HfDeepSpeedConfig

    held = HfDeepSpeedConfig(config)
    try:
        yield
    finally:
        del held
        stop_sharding_while_loading()


def stop_sharding_while_loading() -> None:
    """Forget the DeepSpeed config, so that models are loaded whole from now on."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def reporter(name: str) -> type[TrainerCallback] | None:
    """Return the Trainer's callback for this value of `report_to`, or None if there is none."""
    from transformers.integrations import integration_utils

    return cast("type[TrainerCallback] | None", integration_utils.INTEGRATION_TO_CALLBACK.get(name))


def train_on(arguments: TrainingArguments, device: torch.device) -> None:
    """Make the Trainer of a single process use this device.

    It would take the first GPU, and wrap the model in `nn.DataParallel` on machines with several.
    """
    from accelerate import PartialState

    chosen = arguments.device  # sets up the state, too
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    if device.type == chosen.type == "cuda" and chosen != device:
        torch.cuda.set_device(device)
        PartialState().device = device
        vars(arguments)["_setup_devices"] = device  # where the property keeps its value


def unsplittable_modules(model: Any) -> set[str]:
    """Return the class names of the modules that FSDP wraps whole."""
    return set(model._no_split_modules or ())
