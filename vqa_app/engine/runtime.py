"""A prompt through a model: each picture encoded once, known prefixes skipped, then token by token.

Three ways, the best that an architecture allows:

- prefix reuse: the prompt is read in pieces into a cache that outlives the answer, the next prompt
  goes on from where it agrees with an earlier one. Needs a causal model whose cache can be cropped.
- features only (PaliGemma: every prompt token sees the whole prompt): pictures are encoded once,
  prompts read whole.
- neither (Mllama, BLIP-2, Kosmos-2): what `generate` does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vqa_app.engine.cpu_decoder import LeanDecoder
from vqa_app.engine.feature_cache import Features
from vqa_app.engine.kv_cache import Identity, KVCache, PrefixCache
from vqa_app.engine.vision import PictureEncoder, on_device
from vqa_app.engine.worker import Steps, finish
from vqa_app.models.architecture import Capabilities
from vqa_app.prompts.prompt import Prompt
from vqa_app.transformers_internals import (
    GenerateLoop,
    attention_implementation,
    cache_argument,
    count_cache_layers,
    image_features_argument,
)

CHUNK = 512
"""Tokens read at once; between chunks reading can be cancelled."""

PLAIN_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})


class Reading(Protocol):
    """A prompt that has been read, and the answer that grows behind it."""

    logits: Tensor
    """[kept, vocabulary] of the prompt's last tokens."""
    cached_tokens: int
    """How much of the prompt did not have to be computed."""

    def step(self, token: int) -> Tensor:
        """Appends a token and gives the logits [vocabulary] of what comes next."""
        ...

    def close(self, tokens: Sequence[int]) -> None:
        """Keeps what was computed; `tokens` are those that `step` got."""
        ...


class Runtime:
    """Runs one model. For one thread at a time, under `torch.inference_mode`.

    Args:
        cache_bytes: for keys and values of earlier prompts; 0 reuses nothing.
        feature_bytes: for picture features; 0 keeps none.
        lean: whether the lean decoder may be used where it can.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        capabilities: Capabilities,
        *,
        cache_bytes: int,
        feature_bytes: int,
        lean: bool = True,
    ) -> None:
        self.model = model
        self.processor = processor
        self.prefixes = PrefixCache(cache_bytes)
        self.capabilities = capabilities
        self.encoder = (
            PictureEncoder(model, processor, feature_bytes)
            if capabilities.caches_features
            else None
        )
        self._lean = LeanDecoder.of(model) if lean and capabilities.reuses_prefixes else None

    def read(
        self, prompt: Prompt, cancelled: Callable[[], bool], keep: int = 1
    ) -> Steps[Reading | None]:
        """Reads a prompt; None if cancelled.

        Args:
            keep: for how many of the last tokens logits are wanted.
        """
        if not self.can_piece(prompt):
            inputs = yield from self._whole_inputs(prompt)
            return None if cancelled() else WholeReading(self.model, inputs, keep)
        identity, length = token_identity(prompt), len(prompt)
        kv = self._take(prompt, identity, length - keep)
        cached = start = kv.length
        positions = self._positions(prompt)
        logits: Tensor | None = None
        for end in [*self._ends(prompt, start, length - keep), length]:
            if cancelled():
                self.prefixes.put(identity[:start], kv)
                return None
            features = yield from self.encoder.features(prompt, start, end)
            logits = self._forward(prompt, kv, start, end, features, positions, keep)
            start = end
            yield
        assert logits is not None
        delta = 0 if positions is None else int(positions.max()) + 1 - length
        return PrefixReading(self, identity, kv, logits, cached, delta)

    def warm(self, prompt: Prompt, cancelled: Callable[[], bool]) -> Steps[None]:
        """Reads a prompt without an answer in view. Nothing is held across a pause: whoever comes
        in between finds what was done so far.
        """
        if self.encoder is None:
            return
        if not self.can_piece(prompt):
            yield from self.encoder.features(prompt, 0, len(prompt))
            return
        identity, length = token_identity(prompt), len(prompt)
        positions = self._positions(prompt)
        done = -1
        while not cancelled():
            start = self.prefixes.known(identity, prompt.image_spans, length)
            if start <= done or start >= length:
                return
            end = next(iter(self._ends(prompt, start, length)), length)
            features = yield from self.encoder.features(prompt, start, end)
            kv = self._take(prompt, identity, start)
            done = kv.length
            if done == start:
                self._forward(prompt, kv, start, end, features, positions, keep=1)
            self.prefixes.put(identity[: kv.length], kv)
            yield

    def attend(self, prompt: Prompt, start: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits [n - start, vocabulary] of the tokens from `start` on, behind all pictures, and
        the attention weights [1, heads, n - start, n] of each layer, from which gradients flow to
        them.

        Only these tokens go through attention that keeps its weights; what stands before them is
        read as ever.
        """
        reading = finish(self.read(prompt, lambda: False, keep=len(prompt) - start))
        assert isinstance(reading, PrefixReading)
        inputs = self._inputs(prompt, start, len(prompt), self._positions(prompt))
        decoder = self.model.get_decoder()
        before = attention_implementation(decoder.config)
        with torch.inference_mode(False), torch.enable_grad():
            # Copies: autograd takes nothing that was made in inference mode.
            inputs = {name: value.clone() for name, value in inputs.items()}
            kv = reading.kv.differentiable(start)
            decoder.set_attn_implementation("eager")
            self.model.enable_input_require_grads()
            try:
                output = self.model(
                    **inputs, **cache_argument(kv), use_cache=True, output_attentions=True
                )
            finally:
                self.model.disable_input_require_grads()
                decoder.set_attn_implementation(before)
            logits = output.logits[0]
        reading.close(())
        return logits, output.attentions

    def forget(self) -> None:
        """Empties the caches."""
        self.prefixes.clear()
        if self.encoder is not None:
            self.encoder.cache.clear()

    def close(self) -> None:
        """Empties the caches and lets go of the model; after that nothing can be read."""
        self.forget()
        self.model = self.encoder = self._lean = None

    def can_piece(self, prompt: Prompt) -> bool:
        """Whether the prompt can be read in pieces: every input is known to belong to tokens or
        pictures.
        """
        return (
            self.encoder is not None
            and self.capabilities.reuses_prefixes
            and prompt.inputs.keys() <= PLAIN_INPUTS | self.encoder.inputs
        )

    def token(self, token: int, kv: KVCache, position: int) -> Tensor:
        """Appends one token to a cache; the logits [vocabulary] of what comes next."""
        if self._lean is not None:
            return self._lean.step(token, kv, position)
        inputs: dict[str, Any] = {}
        if hasattr(self.model.base_model, "get_rope_index"):  # it would remember another's pictures
            inputs["position_ids"] = torch.full((3, 1, 1), position, device=self.model.device)
        ids = torch.tensor([[token]], device=self.model.device)
        return self.model(input_ids=ids, **cache_argument(kv), use_cache=True, **inputs).logits[
            0, -1
        ]

    def _take(self, prompt: Prompt, identity: Identity, limit: int) -> KVCache:
        kv = self.prefixes.take(identity, prompt.image_spans, limit)
        if kv is None:
            layers = count_cache_layers(self.model.config)
            transposed = self._lean is not None and self._lean.transposes_keys
            kv = KVCache.empty(layers, transposed=transposed)
        return kv

    def _ends(self, prompt: Prompt, start: int, limit: int) -> Iterator[int]:
        """Where to pause between `start` and `limit`: every `CHUNK` tokens, never inside a
        picture.
        """
        end = start + CHUNK
        while end < limit:
            end = next((b for a, b in prompt.image_spans if a < end < b), end)
            if end < limit:
                yield end
            end += CHUNK

    def _forward(
        self,
        prompt: Prompt,
        kv: KVCache,
        start: int,
        end: int,
        features: Sequence[Features],
        positions: Tensor | None,
        keep: int,
    ) -> Tensor:
        """Reads tokens [start, end) into the cache; logits [keep, vocabulary] of the last ones."""
        inputs = self._inputs(prompt, start, end, positions)
        if features:
            inputs |= image_features_argument(self.encoder.output(features))
        output = self.model(
            **inputs, **cache_argument(kv), use_cache=True, logits_to_keep=min(keep, end - start)
        )
        return output.logits[0]

    def _inputs(
        self, prompt: Prompt, start: int, end: int, positions: Tensor | None
    ) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": prompt.inputs["input_ids"][:, start:end]}
        if "token_type_ids" in prompt.inputs:
            inputs["token_type_ids"] = prompt.inputs["token_type_ids"][:, :end]
        if positions is not None:
            inputs["position_ids"] = positions[..., start:end]
        return on_device(self.model, inputs)

    def _positions(self, prompt: Prompt) -> Tensor | None:
        """[3, 1, n] for models that place pictures on a grid of positions (M-RoPE), else None."""
        locate = getattr(self.model.base_model, "get_rope_index", None)
        if locate is None:
            return None
        known = {name: prompt.inputs.get(name) for name in inspect.signature(locate).parameters}
        if known.get("mm_token_type_ids") is None:
            known["mm_token_type_ids"] = torch.zeros_like(prompt.inputs["input_ids"])
        return locate(**{name: value for name, value in known.items() if value is not None})[0]

    def _whole_inputs(self, prompt: Prompt) -> Steps[dict[str, Any]]:
        inputs = dict(prompt.inputs)
        if self.encoder is not None and prompt.pictures:
            features = yield from self.encoder.features(prompt, 0, len(prompt))
            inputs = {name: inputs[name] for name in inputs.keys() - self.encoder.inputs}
            inputs |= image_features_argument(self.encoder.output(features))
        yield
        return on_device(self.model, inputs)


class PrefixReading:
    """A prompt in a cache that will be kept."""

    def __init__(
        self,
        runtime: Runtime,
        identity: Identity,
        kv: KVCache,
        logits: Tensor,
        cached_tokens: int,
        delta: int,
    ) -> None:
        self.logits = logits
        self.cached_tokens = cached_tokens
        self.kv = kv
        self._runtime, self._identity, self._delta = runtime, identity, delta

    def step(self, token: int) -> Tensor:
        return self._runtime.token(token, self.kv, self.kv.length + self._delta)

    def close(self, tokens: Sequence[int]) -> None:
        identity = np.concatenate((self._identity, np.asarray(tokens, dtype=np.int64)))
        self._runtime.prefixes.put(identity[: self.kv.length], self.kv)


class WholeReading:
    """A prompt read by the machinery of `generate`, for architectures that know their own way
    only.
    """

    cached_tokens = 0

    def __init__(self, model: Any, inputs: dict[str, Any], keep: int) -> None:
        if keep > 1:
            self.logits = model(**inputs).logits[0, -keep:]
            return
        self._loop = GenerateLoop(model, inputs)
        self.logits = self._loop.logits[None]

    def step(self, token: int) -> Tensor:
        return self._loop.step(token)

    def close(self, tokens: Sequence[int]) -> None:
        pass


def token_identity(prompt: Prompt) -> Identity:
    """[n] int64: the token ids, each picture's replaced by a negative number from its digest and
    its length: LLaVA-OneVision tiles a picture only while it is the only one.
    """
    identity = prompt.inputs["input_ids"][0].numpy().astype(np.int64)
    for picture, (start, end) in zip(prompt.pictures, prompt.image_spans, strict=True):
        seen = sha256(f"{picture.digest} {end - start}".encode()).digest()
        identity[start:end] = -1 - int.from_bytes(seen[:7], "big")
    return identity
