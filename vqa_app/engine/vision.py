"""Picture features: run through the encoder once, then from the cache."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vqa_app.engine.feature_cache import FeatureCache, Features
from vqa_app.engine.worker import Steps
from vqa_app.prompts.conversation import Conversation
from vqa_app.prompts.prompt import Prompt, encode, image_token_id


class PictureEncoder:
    """The encoder and projector of a model that takes their output apart from its text.

    Attributes:
        inputs: names of the model inputs that the encoder consumes.
        cache: features of earlier pictures.
    """

    def __init__(self, model: Any, processor: Any, budget: int) -> None:
        self.model = model
        self.cache = FeatureCache(budget)
        signature = inspect.signature(model.base_model.get_image_features)
        self.inputs = set(signature.parameters) - {"kwargs"}
        self._processor = processor
        self._image_token = image_token_id(processor)
        self._type: type = dict
        self._listed = True

    def features(self, prompt: Prompt, start: int, end: int) -> Steps[list[Features]]:
        """The features of the pictures that stand in tokens [start, end)."""
        filled = prompt.inputs["input_ids"][0] == self._image_token
        counts = [int(filled[a:b].sum()) for a, b in prompt.image_spans]
        found: list[Features] = []
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

    def _encode(self, prompt: Prompt, index: int, counts: list[int]) -> Features:
        """One picture by itself; in company only where its company decides how it is tiled."""
        if len(prompt.pictures) > 1:
            alone = Conversation.ask("", [prompt.pictures[index]])
            inputs = encode(self._processor, alone, answer_next=False).inputs
            features = self.run(inputs)
            if len(features.rows) == counts[index]:
                return features
        together = self.run(prompt.inputs)
        first = sum(counts[:index])
        here = slice(first, first + counts[index])
        return Features(together.rows[here], tuple(layer[here] for layer in together.deepstack))

    def run(self, inputs: dict[str, Any]) -> Features:
        known = on_device(self.model, {name: inputs[name] for name in inputs.keys() & self.inputs})
        output = self.model.base_model.get_image_features(**known, return_dict=True)
        self._type = type(output)
        self._listed = not isinstance(output.pooler_output, Tensor)
        deepstack = getattr(output, "deepstack_features", None) or ()
        return Features(_rows(output.pooler_output), tuple(_rows(layer) for layer in deepstack))

    def output(self, features: Sequence[Features]) -> Any:
        """What `get_image_features` would have given for these pictures."""

        def joined(parts: list[Tensor]) -> Any:
            rows = torch.cat(parts)
            return [rows] if self._listed else rows[None]

        output = self._type(pooler_output=joined([one.rows for one in features]))
        if features[0].deepstack:
            layers = zip(*(one.deepstack for one in features), strict=True)
            output["deepstack_features"] = [joined(list(layer)) for layer in layers]
        return output


def on_device(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs where the model is, pictures in its precision."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        if isinstance(value, Tensor)
        else value
        for name, value in inputs.items()
    }


def _rows(features: Any) -> Tensor:
    """[tokens, width], whether they came as a tensor or a list, one for each picture or tile."""
    return torch.cat([one.reshape(-1, one.shape[-1]) for one in features])
