"""Forward passes: prompts in chunks into reusable KV caches, then one token at a time.

There are three ways; a model takes the first that its architecture allows:

- Prefix reuse: the prompt is prefilled in chunks into a cache that outlives the answer, and the
  next prompt starts where it diverges from an earlier one. Needs a causal model whose cache can be
  cropped.
- Cached image features (PaliGemma, where every prompt token attends to the whole prompt): pictures
  are encoded once, prompts are read whole.
- Neither (Mllama, BLIP-2, Kosmos-2): the loop of `generate`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from math import inf
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from vqa_app.devices import clear_frames
from vqa_app.engine.cache_budget import CacheBudget
from vqa_app.engine.cpu_decoder import CpuDecoder
from vqa_app.engine.feature_cache import ImageFeatures
from vqa_app.engine.kv_cache import CacheKey, KVCache, PrefixCache, bytes_per_token
from vqa_app.engine.scheduler import DecodeStep, EncodeStep, Steps
from vqa_app.engine.static_decoder import StaticDecoder, capacity_for
from vqa_app.engine.vision import ImageEncoder, on_device
from vqa_app.models.architecture import Capabilities
from vqa_app.prompts.prompt import Prompt
from vqa_app.transformers_internals import (
    GenerateLoop,
    accepts_logits_to_keep,
    attention_implementation,
    cache_argument,
    count_cache_layers,
    image_features_argument,
)

CHUNK = 512
"""Tokens per forward pass of a prompt, which can be cancelled between two chunks."""

TOKEN_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})
"""Model inputs with one value for each token."""


class Generation(Protocol):
    """A prefilled prompt and the answer generated after it."""

    logits: Tensor
    """[kept, vocabulary] of the prompt's last tokens."""
    cached_tokens: int
    """Number of prompt tokens that came from the cache."""
    repeats_steps: bool
    """Whether a step that ran out of memory can be taken again."""

    def step(self, token: int) -> Tensor:
        """Append a token and return the logits of the next one, [vocabulary]."""
        ...

    def close(self, tokens: Sequence[int]) -> None:
        """Keep what was computed; `tokens` are those passed to `step`."""
        ...


class Runtime:
    """Forward passes of one model. For one thread at a time, under `torch.inference_mode`.

    Args:
        model: Model of transformers.
        processor: Its processor.
        capabilities: What its architecture allows.
        budget: Memory for the KV caches of earlier prompts and for image features.
        fast_decoding: Use `CpuDecoder` where it supports the model.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        capabilities: Capabilities,
        *,
        budget: CacheBudget,
        fast_decoding: bool = True,
    ) -> None:
        self.model = model
        self.processor = processor
        self.capabilities = capabilities
        self.prefixes = PrefixCache(budget)
        self.encoder: ImageEncoder | None = None
        if capabilities.caches_features:
            self.encoder = ImageEncoder(model, processor, budget)
        # Gemma 4's picture tokens attend to each other in both directions.
        self._marks_pictures = "mm_token_type_ids" in inspect.signature(model.forward).parameters
        self._cpu_decoder: CpuDecoder | None = None
        self._static_decoder: StaticDecoder | None = None
        if fast_decoding and capabilities.reuses_prefixes:
            self._cpu_decoder = CpuDecoder.of(model)
            if self._cpu_decoder is None:
                self._static_decoder = StaticDecoder.of(model, budget)

    def prefill(
        self, prompt: Prompt, cancelled: Callable[[], bool], keep: int = 1
    ) -> Steps[Generation | None]:
        """Read a prompt; the result is None if it was cancelled.

        Args:
            prompt: The prompt.
            cancelled: Checked between chunks.
            keep: Number of last tokens whose logits are returned.
        """
        encoder = self._chunk_encoder(prompt)
        if encoder is None:
            inputs = yield from self._whole_inputs(prompt)
            return None if cancelled() else UncachedGeneration(self.model, inputs, keep)
        key, length = cache_key(prompt), len(prompt)
        # First all pictures, together with those of other questions. Then prompts are read one by
        # one, so that a prompt with the same beginning as the one before finds it in the cache.
        start = self.prefixes.match_length(key, prompt.image_spans, length - keep)
        features: list[ImageFeatures] = []
        for a, b in prompt.image_spans:
            if cancelled():
                return None
            if a >= start:
                features += yield from encoder.features(prompt, a, b)
        yield None
        if cancelled():
            return None
        kv = self._take(prompt, key, length - keep)
        cached = kv.length
        if cached < start:  # dropped in the meantime
            features = yield from encoder.features(prompt, cached, length)
        first = [a for a, _ in prompt.image_spans if a >= min(start, cached)]
        start = cached
        positions = self._positions(prompt)
        logits: Tensor | None = None
        for end in [*self._chunk_ends(prompt, start, length - keep), length]:
            if cancelled():
                self.prefixes.put(key[:start], kv)
                return None
            chunk = [one for a, one in zip(first, features, strict=True) if start <= a < end]
            logits = self._forward(prompt, kv, start, end, chunk, positions, keep)
            start = end
            yield None
        assert logits is not None
        offset = 0 if positions is None else int(positions.max()) + 1 - length
        self.prefixes.lend(key, kv)
        return CachedGeneration(self, key, kv, logits, cached, offset)

    def kv_bytes(self, tokens: int) -> int:
        """Return the memory of the keys and values of a sequence, in bytes."""
        if self._static_decoder is not None:
            tokens = capacity_for(tokens)
        return tokens * bytes_per_token(self.model.config, self.model.dtype.itemsize)

    def prompt_logits(self, prompt: Prompt, start: int) -> Steps[Tensor]:
        """Return the logits of the prompt's tokens from `start` on, [n - start, vocabulary]."""
        generation = yield from self.prefill(prompt, lambda: False, len(prompt) - start)
        assert generation is not None
        generation.close(())
        return generation.logits

    def warm(self, prompt: Prompt, cancelled: Callable[[], bool]) -> Steps[None]:
        """Prefill a prompt before its question is asked.

        Holds no cache during a pause, so that a question in between can use what is done so far.
        """
        encoder = self._chunk_encoder(prompt)
        if encoder is None:
            if self.encoder is not None:
                yield from self.encoder.features(prompt, 0, len(prompt))
            return
        key, length = cache_key(prompt), len(prompt)
        positions = self._positions(prompt)
        done = -1
        while not cancelled():
            start = self.prefixes.match_length(key, prompt.image_spans, length)
            if start <= done or start >= length:
                return
            end = next(iter(self._chunk_ends(prompt, start, length)), length)
            features = yield from encoder.features(prompt, start, end)
            kv = self._take(prompt, key, start)
            done = kv.length
            if done == start:
                self._forward(prompt, kv, start, end, features, positions, keep=1)
            self.prefixes.put(key[: kv.length], kv)
            yield None

    def attention_weights(
        self, prompt: Prompt, start: int
    ) -> Steps[tuple[Tensor, tuple[Tensor, ...]]]:
        """Compute logits and attention weights, with gradients from the first to the second.

        Only tokens from `start` on use attention that keeps its weights; the tokens before are
        prefilled as usual.

        Args:
            prompt: A prompt that can be prefilled in chunks.
            start: First token, after all pictures.

        Returns:
            The logits [n - start, vocabulary], and the weights [1, heads, n - start, n] of each
            layer.
        """
        generation = yield from self.prefill(prompt, lambda: False, keep=len(prompt) - start)
        assert isinstance(generation, CachedGeneration)
        inputs = self._inputs(prompt, start, len(prompt), self._positions(prompt))
        decoder = self.model.get_decoder()
        before = attention_implementation(decoder.config)
        with torch.inference_mode(False), torch.enable_grad():
            # Copies, because autograd rejects tensors made in inference mode.
            inputs = {name: value.clone() for name, value in inputs.items()}
            kv = generation.kv.to_dynamic(start)
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
        generation.close(())
        return logits, output.attentions

    def clear_caches(self) -> None:
        """Drop all KV caches and image features."""
        self.prefixes.clear()
        if self.encoder is not None:
            self.encoder.cache.clear()

    def close(self) -> None:
        """Drop the caches and the model; afterwards no prompt can be read."""
        self.clear_caches()
        self.model = self.encoder = self._cpu_decoder = self._static_decoder = None

    def _chunk_encoder(self, prompt: Prompt) -> ImageEncoder | None:
        """Return the image encoder if the prompt can be prefilled in chunks, else None.

        For that, every input must belong to tokens or to pictures.
        """
        if self.encoder is None or not self.capabilities.reuses_prefixes:
            return None
        known = TOKEN_INPUTS | self.encoder.inputs
        return self.encoder if prompt.inputs.keys() <= known else None

    def encode(self, steps: Sequence[EncodeStep]) -> Mapping[str, ImageFeatures | Exception]:
        """Encode pictures; see `Scheduler`."""
        assert self.encoder is not None
        return self.encoder.run_some(steps)

    def decode(self, steps: Sequence[DecodeStep]) -> list[Tensor | Exception]:
        """Append a token to each of several sequences.

        Returns:
            For each sequence the logits of the next token, [vocabulary], or what went wrong with
            it alone.
        """
        joint = [step.sequence for step in steps if isinstance(step.sequence, CachedGeneration)]
        if len(joint) == len(steps) and len(joint) >= self._min_joint_rows:
            lengths = [sequence.kv.length for sequence in joint]
            try:
                return self._decode_together(steps, joint)
            except Exception as error:
                clear_frames(error)
            for sequence, length in zip(joint, lengths, strict=True):
                sequence.kv.truncate(length)
        results: list[Tensor | Exception] = []
        for step in steps:
            # Caught here and not in a helper, whose traceback would keep this frame's sequences.
            try:
                results.append(step.sequence.step(step.token))
            except Exception as error:
                results.append(error)
        return results

    @property
    def _min_joint_rows(self) -> float:
        """Smallest number of sequences that are decoded together."""
        if self._static_decoder is not None:
            return self._static_decoder.min_rows
        return inf if self._cpu_decoder is None else 2

    def _decode_together(
        self, steps: Sequence[DecodeStep], sequences: Sequence[CachedGeneration]
    ) -> list[Tensor | Exception]:
        caches = [sequence.kv for sequence in sequences]
        positions = [sequence.position for sequence in sequences]
        if self._static_decoder is not None:
            tokens = [step.sampled for step in steps]
            return [*self._static_decoder.step(tokens, caches, positions)]
        assert self._cpu_decoder is not None
        return [*self._cpu_decoder.step([step.token for step in steps], caches, positions)]

    def release(self, kv: KVCache) -> None:
        """Take a sequence that has ended out of the buffers that it shares with others."""
        if self._static_decoder is not None:
            self._static_decoder.release(kv)

    def append(self, token: int, kv: KVCache, position: int) -> Tensor:
        """Append one token to a cache and return the logits of the next one, [vocabulary]."""
        if self._cpu_decoder is not None:
            return self._cpu_decoder.step([token], [kv], [position])[0]
        inputs: dict[str, Any] = {}
        if hasattr(self.model.base_model, "get_rope_index"):
            # Without positions it would use those of the last prompt's pictures.
            inputs["position_ids"] = torch.full((3, 1, 1), position, device=self.model.device)
        ids = torch.tensor([[token]], device=self.model.device)
        output = self.model(input_ids=ids, **cache_argument(kv), use_cache=True, **inputs)
        return cast(Tensor, output.logits[0, -1])

    def _take(self, prompt: Prompt, key: CacheKey, limit: int) -> KVCache:
        """Return a cache with the longest cached prefix, possibly none."""
        kv = self.prefixes.take(key, prompt.image_spans, limit)
        if kv is None:
            transposed = self._cpu_decoder is not None and self._cpu_decoder.transposes_keys
            kv = KVCache.empty(count_cache_layers(self.model.config), transposed=transposed)
        return kv

    def _chunk_ends(self, prompt: Prompt, start: int, limit: int) -> Iterator[int]:
        """Yield the ends of chunks between `start` and `limit`, never inside a picture.

        They depend on the prompt alone, because where a prompt is cut changes the last bits of its
        keys and values.
        """
        end = CHUNK
        while end < limit:
            end = next((b for a, b in prompt.image_spans if a < end < b), end)
            if start < end < limit:
                yield end
            end += CHUNK

    def _forward(
        self,
        prompt: Prompt,
        kv: KVCache,
        start: int,
        end: int,
        features: Sequence[ImageFeatures],
        positions: Tensor | None,
        keep: int,
    ) -> Tensor:
        """Append tokens [start, end) to the cache; return logits [keep, vocabulary]."""
        inputs = self._inputs(prompt, start, end, positions)
        if features and self.encoder is not None:
            inputs |= image_features_argument(self.encoder.output(features))
        output = self.model(
            **inputs, **cache_argument(kv), use_cache=True, logits_to_keep=min(keep, end - start)
        )
        return cast(Tensor, output.logits[0])

    def _inputs(
        self, prompt: Prompt, start: int, end: int, positions: Tensor | None
    ) -> dict[str, Any]:
        """Return the text inputs of tokens [start, end), on the model's device."""
        inputs: dict[str, Any] = {"input_ids": prompt.inputs["input_ids"][:, start:end]}
        if "token_type_ids" in prompt.inputs:
            inputs["token_type_ids"] = prompt.inputs["token_type_ids"][:, :end]
        if positions is None and self._marks_pictures and "mm_token_type_ids" in prompt.inputs:
            inputs["mm_token_type_ids"] = prompt.inputs["mm_token_type_ids"][:, :end]
        if positions is not None:
            inputs["position_ids"] = positions[..., start:end]
        return on_device(self.model, inputs)

    def _positions(self, prompt: Prompt) -> Tensor | None:
        """Return [3, 1, n] for models with M-RoPE, which place pictures on a grid; else None."""
        names = self._rope_inputs()
        if not names:
            return None
        get_rope_index = self.model.base_model.get_rope_index
        arguments = {name: prompt.inputs.get(name) for name in names}
        if arguments.get("mm_token_type_ids") is None:
            arguments["mm_token_type_ids"] = torch.zeros_like(prompt.inputs["input_ids"])
        given = {name: value for name, value in arguments.items() if value is not None}
        return cast(Tensor, get_rope_index(**given)[0])

    def _rope_inputs(self) -> set[str]:
        """Return the inputs from which positions of M-RoPE are computed; none without M-RoPE."""
        get_rope_index = getattr(self.model.base_model, "get_rope_index", None)
        return set(inspect.signature(get_rope_index).parameters) if get_rope_index else set()

    def _whole_inputs(self, prompt: Prompt) -> Steps[dict[str, Any]]:
        """Return all inputs of a prompt, with image features where these can be cached."""
        inputs: dict[str, Any] = dict(prompt.inputs)
        if self.encoder is not None and prompt.pictures:
            features = yield from self.encoder.features(prompt, 0, len(prompt))
            encoded = self.encoder.inputs - self._rope_inputs()
            inputs = {name: inputs[name] for name in inputs.keys() - encoded}
            inputs |= image_features_argument(self.encoder.output(features))
        yield None
        return on_device(self.model, inputs)


class CachedGeneration:
    """A `Generation` whose KV cache is kept for later prompts."""

    repeats_steps = True

    def __init__(
        self,
        runtime: Runtime,
        key: CacheKey,
        kv: KVCache,
        logits: Tensor,
        cached_tokens: int,
        position_offset: int,
    ) -> None:
        self.logits = logits
        self.cached_tokens = cached_tokens
        self.kv = kv
        self._runtime, self._key, self._position_offset = runtime, key, position_offset

    @property
    def position(self) -> int:
        """Rotary position of the next token."""
        return self.kv.length + self._position_offset

    def step(self, token: int) -> Tensor:
        """Append a token and return the logits of the next one, [vocabulary]."""
        length = self.kv.length
        try:
            return self._runtime.append(token, self.kv, self.position)
        except BaseException:
            self.kv.truncate(length)  # some layers may have appended the token already
            raise

    def close(self, tokens: Sequence[int]) -> None:
        """Put the cache back; `tokens` are those passed to `step`."""
        self._runtime.release(self.kv)
        self._runtime.prefixes.take_back(self.kv)
        key = np.concatenate((self._key, np.asarray(tokens, dtype=np.int64)))
        self._runtime.prefixes.put(key[: self.kv.length], self.kv)


class UncachedGeneration:
    """A `Generation` with the loop of `generate`."""

    cached_tokens = 0
    repeats_steps = False  # its cache may hold the token in some layers, and cannot always be cut

    def __init__(self, model: Any, inputs: dict[str, Any], keep: int) -> None:
        if keep > 1:  # for likelihoods; no token follows
            some = {"logits_to_keep": keep} if accepts_logits_to_keep(model) else {}
            self.logits = model(**inputs, **some).logits[0, -keep:]
            return
        self._loop = GenerateLoop(model, inputs)
        self.logits = self._loop.logits[None]

    def step(self, token: int) -> Tensor:
        """Append a token and return the logits of the next one, [vocabulary]."""
        return self._loop.step(token)

    def close(self, tokens: Sequence[int]) -> None:
        """Do nothing: there is no cache to keep."""


def cache_key(prompt: Prompt) -> CacheKey:
    """Return the token ids [n], each picture's replaced by a negative number.

    The number comes from the picture's digest and length, because LLaVA-OneVision splits a picture
    into tiles only if it is the only one.
    """
    key = prompt.inputs["input_ids"][0].numpy().astype(np.int64)
    for picture, (start, end) in zip(prompt.pictures, prompt.image_spans, strict=True):
        digest = sha256(f"{picture.digest} {end - start}".encode()).digest()
        key[start:end] = -1 - int.from_bytes(digest[:7], "big")
    return key
