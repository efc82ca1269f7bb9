"""Names of the modules that are an image-text model's encoder, projector and language model.

They are found by the attribute names that transformers uses, never by a model's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vqa_app.errors import ModelError

_ENCODERS = ("vision_tower", "vision_model", "visual", "vision_encoder")
_PROJECTORS = (
    "multi_modal_projector",
    "connector",
    "vision_model.connector",
    "visual.merger",
    "merger",
    "embed_vision",
    "qformer",
    "language_projection",
    "image_to_text_projection",
)
_LANGUAGE_MODELS = ("language_model", "text_model")


@dataclass(frozen=True)
class Anatomy:
    """Full names of submodules, as in `named_modules`."""

    encoder: str
    """The vision tower; in Qwen-VL and Granite Docling the projector is part of it."""
    projector: tuple[str, ...]
    """The modules that map image features to the language model's width; two in BLIP-2."""
    language_model: str
    head: str
    """The output embedding, which computes logits; empty if the model has no such module."""

    @property
    def never_quantized(self) -> list[str]:
        """Names of the modules that stay in full precision: all but the language model's body."""
        parts = [self.encoder, *self.projector, self.head]
        return [name for name in parts if name]  # "" would match every module


def anatomy(model: Any) -> Anatomy:
    """Return the parts of a transformers image-text model; one on the meta device is enough.

    Raises:
        ModelError: The parts of this architecture have other names.
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
            f"{type(model).__name__} does not consist of an encoder, a projector and a language"
            " model.",
            "Choose a LLaVA-style model.",
        )
    return Anatomy(encoder[0], projector, language[0], head)
