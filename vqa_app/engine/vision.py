"""Image features, computed once for each picture and then cached."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vqa_app.devices import clear_frames
from vqa_app.engine.cache_budget import CacheBudget
from vqa_app.engine.feature_cache import FeatureCache, ImageFeatures
from vqa_app.engine.scheduler import EncodeStep, Steps
from vqa_app.prompts.conversation import Conversation
from vqa_app.prompts.prompt import Prompt, encode, image_token_id

MAX_PICTURES = 8
"""Largest number of pictures that are encoded at once."""
MAX_SECONDS = 0.1
"""Longest time for which pictures of others may delay one that could be encoded alone."""


class ImageEncoder:
    """Encoder and projector of a model that accepts image features computed earlier.

    Args:
        model: A model whose `Capabilities.caches_features` is true.
        processor: Its processor.
        budget: Memory for features.

    Attributes:
        inputs: Names of the model inputs that the encoder consumes.
        cache: Features of earlier pictures.
    """

    def __init__(self, model: Any, processor: Any, budget: CacheBudget) -> None:
        self.model = model
        self.cache = FeatureCache(budget)
        signature = inspect.signature(model.base_model.get_image_features)
        self.inputs = set(signature.parameters) - {"kwargs"}
        self._processor = processor
        self._image_token = image_token_id(processor)
        self._seconds = 0.0
        """That the latest picture took; 0 before the first."""
        self._is_exact: dict[int, bool] = {}
        """Whether so many pictures at once get the same features, bit for bit, as alone."""
        self._output_type: type = dict
        self._returns_list = True

    def features(self, prompt: Prompt, start: int, end: int) -> Steps[list[ImageFeatures]]:
        """Return the features of the pictures that begin in tokens [start, end)."""
        is_image = prompt.inputs["input_ids"][0] == self._image_token
        counts = [int(is_image[a:b].sum()) for a, b in prompt.image_spans]
        found: list[ImageFeatures] = []
        for index, (a, _) in enumerate(prompt.image_spans):
            if not start <= a < end:
                continue
            digest = prompt.pictures[index].digest
            features = self.cache.get(digest, counts[index])
            if features is None:
                features = yield from self._encode(prompt, index, counts)
                self.cache.put(digest, features)
            found.append(features)
        return found

    def _encode(self, prompt: Prompt, index: int, counts: list[int]) -> Steps[ImageFeatures]:
        """Encode one picture; with the prompt's others only if these change how it is tiled."""
        digest = prompt.pictures[index].digest
        if len(prompt.pictures) > 1:
            alone = Conversation.ask("", [prompt.pictures[index]])
            inputs = encode(self._processor, alone, answer_next=False).inputs
            features: ImageFeatures = yield EncodeStep(self, inputs, digest)
            if len(features.embeddings) == counts[index]:
                return features
        key = " ".join((digest, *(picture.digest for picture in prompt.pictures)))
        together: ImageFeatures = yield EncodeStep(
            self, prompt.inputs, key if len(prompt.pictures) > 1 else digest
        )
        first = sum(counts[:index])
        span = slice(first, first + counts[index])
        return ImageFeatures(
            together.embeddings[span], tuple(layer[span] for layer in together.deepstack)
        )

    def run_some(self, steps: Sequence[EncodeStep]) -> dict[str, ImageFeatures | Exception]:
        """Run the first of several steps, and others with it while that is short and exact.

        Args:
            steps: Steps of this encoder.

        Returns:
            Features by the keys of the steps that were run, or what went wrong with one of them.
        """
        first = steps[0]
        pixels: dict[str, Tensor] = {}
        for step in steps:
            own = {name: step.inputs[name] for name in step.inputs.keys() & self.inputs}
            if own.keys() == {"pixel_values"} and len(own["pixel_values"]) == 1:
                pixels.setdefault(step.key, own["pixel_values"])
        shape = pixels[first.key].shape if first.key in pixels else None
        room = int(MAX_SECONDS / self._seconds) if self._seconds else 1
        keys = [key for key, value in pixels.items() if value.shape == shape]
        keys = keys[: min(room, MAX_PICTURES)]
        if len(keys) > 1 and self._is_exact.get(len(keys), True):
            try:
                features = self._run_exactly([pixels[key] for key in keys])
                return dict(zip(keys, features, strict=True))
            except Exception as error:  # perhaps there is enough memory for one
                clear_frames(error)
        began = time.perf_counter()
        alone = self.run(first.inputs)
        self._seconds = time.perf_counter() - began
        return {first.key: alone}

    def _run_exactly(self, pixels: Sequence[Tensor]) -> list[ImageFeatures]:
        """Encode pictures together; at first also alone, to learn whether that is the same."""
        together = self._run_batch(pixels)
        if len(pixels) in self._is_exact:
            return together
        alone = [self.run({"pixel_values": one}) for one in pixels]
        pairs = zip(alone, together, strict=True)
        self._is_exact[len(pixels)] = all(
            torch.equal(one.embeddings, other.embeddings) for one, other in pairs
        )
        return alone

    def _run_batch(self, pixels: Sequence[Tensor]) -> list[ImageFeatures]:
        """Encode pictures [1, 3, height, width] of one size as a batch."""
        features = self.run({"pixel_values": torch.cat(list(pixels))})
        tokens = len(features.embeddings) // len(pixels)
        layers = [torch.split(layer, tokens) for layer in features.deepstack]
        return [
            ImageFeatures(embeddings, tuple(layer[index] for layer in layers))
            for index, embeddings in enumerate(torch.split(features.embeddings, tokens))
        ]

    def run(self, inputs: Mapping[str, Any]) -> ImageFeatures:
        """Run encoder and projector on all pictures of a prompt's inputs."""
        own = on_device(self.model, {name: inputs[name] for name in inputs.keys() & self.inputs})
        output = self.model.base_model.get_image_features(**own, return_dict=True)
        self._output_type = type(output)
        self._returns_list = not isinstance(output.pooler_output, Tensor)
        deepstack = getattr(output, "deepstack_features", None) or ()
        return ImageFeatures(
            _flatten(output.pooler_output), tuple(_flatten(layer) for layer in deepstack)
        )

    def output(self, features: Sequence[ImageFeatures]) -> Any:
        """Return features in the form in which `get_image_features` returns them."""

        def joined(parts: list[Tensor]) -> Any:
            tokens = torch.cat(parts)
            return [tokens] if self._returns_list else tokens[None]

        output = self._output_type(pooler_output=joined([one.embeddings for one in features]))
        if features[0].deepstack:
            layers = zip(*(one.deepstack for one in features), strict=True)
            output["deepstack_features"] = [joined(list(layer)) for layer in layers]
        return output


def on_device(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return model inputs on the model's device, pixels in its precision."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        if isinstance(value, Tensor)
        else value
        for name, value in inputs.items()
    }


def _flatten(features: Any) -> Tensor:
    """Join the features of pictures or tiles, a tensor or a list, to [tokens, width]."""
    return torch.cat([one.reshape(-1, one.shape[-1]) for one in features])
