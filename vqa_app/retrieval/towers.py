"""Two-tower models: one embeds pictures, the other texts; what belongs together is close.

SigLIP, SigLIP 2, CLIP and ALIGN; the built-in model has the two towers that it was pretrained with.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from vqa_app.checkpoints.memory import check_memory
from vqa_app.checkpoints.source import BUILTIN, find
from vqa_app.checkpoints.weights import model_files, stored_tensors
from vqa_app.devices import choose_device
from vqa_app.errors import ModelError, UsageError, VqaError, first_line
from vqa_app.prompts.conversation import replace_surrogates
from vqa_app.quiet import quiet

if TYPE_CHECKING:
    from PIL import Image

Embeddings: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"
"""Vectors of length 1 as rows, [pictures or texts, width]."""

ARCHITECTURES = ("siglip", "siglip2", "clip", "align")
PICTURES_AT_ONCE, TEXTS_AT_ONCE = 16, 64
NEUTRAL_TEXTS = (
    "A picture.",
    "A photo.",
    "An image of something.",
    "A photo of an object.",
    "A photo of a place.",
    "A drawing.",
)
"""What any picture may show. CLIP and ALIGN were trained to tell texts apart, so they can only say
how much better a text matches than these."""
_LOADING = {"trust_remote_code": False, "local_files_only": True}


class Towers:
    """Embeds pictures and texts. All methods are thread-safe.

    Args:
        name: Name of the model in messages.
        model: A `SiglipModel`, `Siglip2Model`, `CLIPModel` or `AlignModel`.
        tokenizer: Its tokenizer.
        image_processor: Its image processor.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, image_processor: Any) -> None:
        self.name = name
        self._model, self._tokenizer, self._image_processor = model, tokenizer, image_processor
        self._lock = threading.Lock()
        text = model.config.text_config
        self._is_siglip = model.config.model_type.startswith("siglip")
        self._lowercases = self._is_siglip and _is_of_siglip(tokenizer)
        self.max_text_tokens: int = min(text.max_position_embeddings, tokenizer.model_max_length)
        """Longest text, in tokens."""
        self.width: int = self.texts(["A picture."]).shape[1]
        """Length of an embedding."""
        self._neutral: Embeddings | None = None

    def pictures(self, images: Sequence[Image.Image]) -> Embeddings:
        """Return the embeddings of pictures.

        Args:
            images: Upright RGB pictures, such as `vqa_app.pictures.picture.Picture.image`.
        """
        return self._in_batches(images, PICTURES_AT_ONCE, self._embed_pictures)

    def texts(self, texts: Sequence[str]) -> Embeddings:
        """Return the embeddings of texts. Whole sentences work best: "a red car", not "red car".

        Raises:
            UsageError: A text is longer than the model reads.
        """
        for text in texts:
            self.checked_length(text)
        return self._in_batches(texts, TEXTS_AT_ONCE, self._embed_texts)

    def checked_length(self, text: str) -> int:
        """Return the length of a text in tokens, without padding.

        Raises:
            UsageError: It is longer than the model reads.
        """
        with self._lock, quiet():
            count = len(self._tokenizer(self._prepared(text)).input_ids)
        if count > self.max_text_tokens:
            raise UsageError(
                f"The text has {count} tokens; {self.name} reads {self.max_text_tokens}.",
                "Use a shorter one.",
            )
        return count

    def match_probabilities(self, pictures: Embeddings, texts: Embeddings) -> Embeddings:
        """Return how likely each picture matches each text, [pictures, texts].

        SigLIP was trained to say so of a pair alone; its sigmoid is taken. Of CLIP and ALIGN it is
        the softmax of the text among `NEUTRAL_TEXTS`.
        """
        model = self._model
        similarities = torch.from_numpy(pictures) @ torch.from_numpy(texts).T
        with torch.inference_mode():
            if self._is_siglip:
                logits = similarities * model.logit_scale.exp().cpu() + model.logit_bias.cpu()
                probabilities = logits.sigmoid()
            else:
                if self._neutral is None:
                    self._neutral = self.texts(NEUTRAL_TEXTS)
                scale = (
                    1 / model.temperature
                    if model.config.model_type == "align"
                    else model.logit_scale.exp()
                ).cpu()
                neutral = torch.from_numpy(pictures) @ torch.from_numpy(self._neutral).T
                others = torch.logsumexp(neutral * scale, dim=1, keepdim=True)
                probabilities = (similarities * scale - others).sigmoid()
        return np.asarray(probabilities.float().numpy())

    def _in_batches(
        self, items: Sequence[Any], size: int, embed: Callable[[Sequence[Any]], Tensor]
    ) -> Embeddings:
        found = []
        for start in range(0, len(items), size):
            batch = items[start : start + size]
            with self._lock, quiet(), torch.inference_mode():
                vectors = embed(batch).float()
                found.append(torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy())
        return np.concatenate(found) if found else np.zeros((0, self.width), np.float32)

    def _embed_pictures(self, images: Sequence[Image.Image]) -> Tensor:
        inputs = self._image_processor(list(images), return_tensors="pt").to(self._model.device)
        features: Tensor = self._model.get_image_features(**inputs).pooler_output
        return features

    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        # SigLIP learned from texts padded to one length, without a mask.
        inputs = self._tokenizer(
            [self._prepared(text) for text in texts],
            padding="max_length" if self._is_siglip else True,
            padding_side="right",
            max_length=self.max_text_tokens,
            truncation=True,
            return_tensors="pt",
        ).to(self._model.device)
        used = ("input_ids",) if self._is_siglip else ("input_ids", "attention_mask")
        chosen = {name: inputs[name] for name in used}
        features: Tensor = self._model.get_text_features(**chosen).pooler_output
        return features

    def _prepared(self, text: str) -> str:
        text = replace_surrogates(text)
        return text.lower() if self._lowercases else text


def load_towers(name: str = BUILTIN, *, device: str = "auto", offline: bool = False) -> Towers:
    """Load a two-tower model in float32.

    Args:
        name: `builtin`, or the folder or hub id of a SigLIP, SigLIP 2, CLIP or ALIGN checkpoint
            with both towers.
        device: See `vqa_app.checkpoints.loader.load_model`.
        offline: Download nothing.

    Raises:
        ModelError: It cannot be found or loaded, or has no two towers.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

    folder = find(name, offline=offline).directory
    if name == BUILTIN:
        folder = folder / "siglip"
    with _reporting_errors(name), quiet():
        config = AutoConfig.from_pretrained(folder, **_LOADING)
        if config.model_type not in ARCHITECTURES:
            raise ModelError(
                f"{name} has the model type {config.model_type!r}, and no towers for pictures and"
                " texts.",
                "Choose a SigLIP, SigLIP 2, CLIP or ALIGN checkpoint, or builtin.",
            )
        place = choose_device(device)
        tensors = list(stored_tensors(model_files(folder)))
        check_memory(name, tensors, place, torch.float32, None)
        model, info = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **_LOADING,
        )
        if missing := sorted([*info["missing_keys"], *info["mismatched_keys"]]):
            raise ModelError(f"{name} lacks weights, such as {missing[0]}.", "Download it again.")
        tokenizer = AutoTokenizer.from_pretrained(folder, **_LOADING)
        images = AutoImageProcessor.from_pretrained(folder, backend="pil", **_LOADING)
        return Towers(name, model.eval().to(place), tokenizer, images)


def _is_of_siglip(tokenizer: Any) -> bool:
    """Return whether a tokenizer is that of published checkpoints, which know lower case only."""
    from transformers import GemmaTokenizer, Siglip2Tokenizer

    return isinstance(tokenizer, (GemmaTokenizer, Siglip2Tokenizer))


@contextmanager
def _reporting_errors(name: str | Path) -> Iterator[None]:
    """Turn the errors of libraries into one that names the model."""
    try:
        yield
    except VqaError:
        raise
    except Exception as error:
        raise ModelError(
            f"Could not load the towers of {name}: {first_line(error)}",
            "Choose a SigLIP, SigLIP 2, CLIP or ALIGN checkpoint, or builtin.",
        ) from error
