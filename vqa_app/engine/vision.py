"""Image features, computed once for each picture and then cached."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vqa_app.engine.feature_cache import FeatureCache, ImageFeatures
from vqa_app.engine.scheduler import Steps
from vqa_app.prompts.conversation import Conversation
from vqa_app.prompts.prompt import Prompt, encode, image_token_id


class ImageEncoder:
    """Encoder and projector of a model that accepts image features computed earlier.

    Args:
        model: A model whose `Capabilities.caches_features` is true.
        processor: Its processor.
        budget: Bytes of features to cache.

    Attributes:
        inputs: Names of the model inputs that the encoder consumes.
        cache: Features of earlier pictures.
    """

    def __init__(self, model: Any, processor: Any, budget: int) -> None:
        self.model = model
        self.cache = FeatureCache(budget)
        signature = inspect.signature(model.base_model.get_image_features)
        self.inputs = set(signature.parameters) - {"kwargs"}
        self._processor = processor
        self._image_token = image_token_id(processor)
        self._output_type: type = dict
        self._returns_list = True

    def features(self, prompt: Prompt, start: int, end: int) -> Steps[list[ImageFeatures]]:
        """Return the features of the pictures in tokens [start, end); pauses after each picture."""
        is_image = prompt.inputs["input_ids"][0] == self._image_token
        counts = [int(is_image[a:b].sum()) for a, b in prompt.image_spans]
        found: list[ImageFeatures] = []
        for index, (a, _) in enumerate(prompt.image_spans):
            if not start <= a < end:
                continue
            digest = prompt.pictures[index].digest
            features = self.cache.get(digest, counts[index])
            if features is None:
                features = self._encode(prompt, index, counts)
                self.cache.put(digest, features)
                yield
            found.append(features)
        return found

    def _encode(self, prompt: Prompt, index: int, counts: list[int]) -> ImageFeatures:
        """Encode one picture; together with the others only if these change how it is tiled."""
        if len(prompt.pictures) > 1:
            alone = Conversation.ask("", [prompt.pictures[index]])
            inputs = encode(self._processor, alone, answer_next=False).inputs
            features = self.run(inputs)
            if len(features.embeddings) == counts[index]:
                return features
        together = self.run(prompt.inputs)
        first = sum(counts[:index])
        span = slice(first, first + counts[index])
        return ImageFeatures(
            together.embeddings[span], tuple(layer[span] for layer in together.deepstack)
        )

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
