"""Where an image-text model keeps its encoder, projector and language model, as module names.

Found by the attribute names that transformers' architectures use, never by a model's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vqa_app.errors import ModelError

_ENCODERS = ("vision_tower", "vision_model", "visual", "vision_encoder")
_PROJECTORS = (
    "multi_modal_projector",
    "connector",
    "visual.merger",
    "qformer",
    "language_projection",
    "image_to_text_projection",
)
_LANGUAGE_MODELS = ("language_model", "text_model")


@dataclass(frozen=True)
class Anatomy:
    """Full names of submodules, as `named_modules` gives them."""

    encoder: str
    """The vision tower. Qwen-VL's holds its projector."""
    projector: tuple[str, ...]
    """What maps image features into the language model's space; two modules for BLIP-2."""
    language_model: str
    head: str
    """The output embedding, which gives logits; empty where that is no module of its own."""

    @property
    def never_quantized(self) -> list[str]:
        """Everything but the language model's body."""
        parts = [self.encoder, *self.projector, self.head]
        return [name for name in parts if name]  # "" would stand for every module


def anatomy(model: Any) -> Anatomy:
    """The parts of a transformers image-text model; a meta-device one will do.

    Raises:
        ModelError: an architecture whose parts have other names.
    """
    modules = {name for name, _ in model.named_modules()}

    def find(names: tuple[str, ...]) -> list[str]:
        return [full for name in names for full in (f"model.{name}", name) if full in modules]

    encoder, language = find(_ENCODERS), find(_LANGUAGE_MODELS)
    projector = tuple(find(_PROJECTORS))
    output = model.get_output_embeddings()
    head = next((name for name, module in model.named_modules() if module is output), "")
    if not (encoder and language and projector):
        raise ModelError(
            f"{type(model).__name__} is not built of an encoder, a projector and a language model.",
            "Choose a LLaVA-style model.",
        )
    return Anatomy(encoder[0], projector, language[0], head)
