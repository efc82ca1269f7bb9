"""Decode several sequences at once with a model's own layers, in tensors whose shapes never change.

`cpu_decoder` knows a few architectures on CPUs; this serves others whose caches can be cropped, and
all of them on GPUs. Sequences of similar length share buffers of a fixed capacity, a row for each.
The next token, its place and its position stay on the device, so that a step reads nothing from the
device and copies nothing to it unless sequences join or leave. On CUDA a step is captured as a
graph, one for each capacity and number of rows, and replayed: its thousand kernels are launched at
once.

Graphs were never run, for want of a GPU: `python -m tests.gpu` compares them with single steps.

Tried with transformers 5.24.0, whose cache classes are subclassed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from vqa_app.devices import clear_frames, is_out_of_memory
from vqa_app.engine.cache_budget import CacheBudget
from vqa_app.transformers_internals import cache_argument

if TYPE_CHECKING:
    from vqa_app.engine.kv_cache import KVCache

MIN_CAPACITY = 256
"""Tokens in the smallest buffers; larger ones double it."""
_FULL, _SLIDING = "full_attention", "sliding_attention"
CHANGING_ROPE_TYPES = frozenset({"dynamic", "longrope"})
"""Rotary embeddings that depend on the longest sequence of a batch."""


def capacity_for(tokens: int) -> int:
    """Return the capacity of the buffers in which a sequence gets its next token.

    One column stays free, where a row that gets no token in a step can be written.
    """
    capacity = MIN_CAPACITY
    while capacity < tokens + 2:
        capacity *= 2
    return capacity


class StaticDecoder:
    """Decode token by token into `KVCache`s, whose content moves into common buffers meanwhile.

    Args:
        model: Model for which `supports` is true.
        budget: Memory that buffers without sequences share with the caches.
    """

    def __init__(self, model: Any, budget: CacheBudget) -> None:
        self._model = model
        self._budget = budget
        self._groups: dict[int, _Group] = {}
        """By capacity."""
        self.min_rows = 1 if model.device.type == "cuda" else 2
        """With fewer sequences a plain step is as fast."""
        budget.register(self)

    @classmethod
    def of(cls, model: Any, budget: CacheBudget) -> StaticDecoder | None:
        """Return the decoder of a model; None if it is not supported."""
        return cls(model, budget) if supports(model) else None

    def step(
        self, tokens: Sequence[Tensor], caches: Sequence[KVCache], positions: Sequence[int]
    ) -> list[Tensor]:
        """Append a token to each of several sequences; return the logits after it, [vocabulary].

        They are valid until the next step.

        Args:
            tokens: A token id [] for each sequence, on the model's device.
            caches: Caches of the tokens before them.
            positions: Their rotary positions: the index in the cache, except after M-RoPE pictures.
        """
        alike: dict[int, list[int]] = {}
        for index, kv in enumerate(caches):
            alike.setdefault(capacity_for(kv.length), []).append(index)
        logits: dict[int, Tensor] = {}
        for capacity, indices in alike.items():
            with self._budget.lock:
                group = self._groups.get(capacity)
                if group is None:
                    group = self._groups[capacity] = _Group(self._model, capacity)
                members = [caches[index] for index in indices]
                for other in self._groups.values():
                    if other is not group:
                        other.forget(members)
                group.admit(members)
                group.used = self._budget.now()
            rows = group.step(
                [tokens[index] for index in indices],
                members,
                [positions[index] - caches[index].length for index in indices],
            )
            logits |= dict(zip(indices, rows, strict=True))
        for kv in caches:
            for layer in kv.layers:
                layer.length += 1
        return [logits[index] for index in range(len(caches))]

    def release(self, kv: KVCache) -> None:
        """Give a cache buffers of its own, of just its size; its row is free."""
        with self._budget.lock:
            if any(kv in group.rows for group in self._groups.values()):
                for layer in kv.layers:
                    layer.keys = layer.keys[:, :, : layer.length].clone()
                    layer.values = layer.values[:, :, : layer.length].clone()
            for group in self._groups.values():
                group.forget([kv])

    @property
    def captured_graphs(self) -> int:
        """Number of CUDA graphs that are kept."""
        return sum(group.captured_graphs for group in self._groups.values())

    @property
    def nbytes(self) -> int:
        """Memory of the buffers' free rows, in bytes; the others count as caches that are lent."""
        return sum(group.nbytes for group in self._groups.values())

    @property
    def oldest(self) -> int | None:
        """See `vqa_app.engine.cache_budget.Cache`; buffers in use cannot be dropped."""
        return min((group.used for group in self._groups.values() if not group.rows), default=None)

    def drop_oldest(self) -> None:
        """Drop the buffers without sequences that were used first, and their graphs."""
        idle = [capacity for capacity, group in self._groups.items() if not group.rows]
        del self._groups[min(idle, key=lambda capacity: self._groups[capacity].used)]


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # transformers' own
    """Keys and values of one layer: views of the first rows of the buffers."""

    keys: Tensor
    values: Tensor
    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor, places: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers' own
        self.keys, self.values = keys, values  # [rows, heads, capacity, width]
        self._rows, self._places = rows, places
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the buffers exist."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write states [rows, heads, 1, width] at each row's place; return the whole buffers."""
        self.keys[self._rows, :, self._places] = key_states[:, :, 0]
        self.values[self._rows, :, self._places] = value_states[:, :, 0]
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys that a mask covers, and its offset."""
        return self.get_max_length(), 0

    def get_seq_length(self) -> int:
        """Return a number of tokens; masks and positions are given and do not depend on it."""
        return self.get_max_length() - 1

    def get_max_length(self) -> int:
        """Return the capacity."""
        return int(self.values.shape[2])


class _Group:
    """Buffers of one capacity, and the sequences in them.

    Attributes:
        rows: The row of each sequence: the numbers from 0 on.
        used: When a step was taken last, as `CacheBudget.now` gave it.
    """

    def __init__(self, model: Any, capacity: int) -> None:
        self.rows: WeakKeyDictionary[KVCache, int] = WeakKeyDictionary()
        self.used = 0
        self._model, self._capacity = model, capacity
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        """Of each layer, [room, heads, capacity, width]."""
        self._batches: dict[int, _Batch] = {}
        """By number of rows."""
        self._state: tuple[list[int], ...] = ()
        """Places, offsets and advances that the tensors of the latest batch now have."""

    @property
    def captured_graphs(self) -> int:
        """Number of CUDA graphs."""
        return sum(batch.captured for batch in self._batches.values())

    @property
    def room(self) -> int:
        """Number of rows."""
        return len(self._keys[0]) if self._keys else 0

    @property
    def nbytes(self) -> int:
        """Memory of the free rows, in bytes."""
        if not self._keys:
            return 0
        whole = sum(buffer.nbytes for buffer in (*self._keys, *self._values))
        return whole - whole // self.room * len(self.rows)

    def forget(self, caches: Sequence[KVCache]) -> None:
        """Free the rows of sequences that have left."""
        for kv in caches:
            self.rows.pop(kv, None)

    def admit(self, caches: Sequence[KVCache]) -> None:
        """Give sequences rows, the first ones, without a gap."""
        members = [*self.rows]
        arriving = [kv for kv in caches if kv not in self.rows]
        if (needed := _power_of_two(len(members) + len(arriving))) > self.room:
            self._grow(needed, caches[0])
            for kv in members:
                self._view(kv, self.rows[kv])
        taken = set(self.rows.values())
        count = len(members) + len(arriving)
        gaps = [row for row in range(count) if row not in taken]
        for kv in [*(kv for kv in members if self.rows[kv] >= count), *arriving]:
            self._move(kv, gaps.pop(0))

    def _grow(self, room: int, like: KVCache) -> None:
        """Replace the buffers by larger ones, layer by layer."""
        self._batches.clear()  # their graphs write to the old ones
        for index, layer in enumerate(like.layers):
            for buffers, given in ((self._keys, layer.keys), (self._values, layer.values)):
                shape = (room, given.shape[1], self._capacity, given.shape[3])
                larger = given.new_zeros(shape)  # not empty: zero times NaN would be NaN
                if index < len(buffers):
                    larger[: len(buffers[index])].copy_(buffers[index])
                    buffers[index] = larger
                else:
                    buffers.append(larger)

    def _move(self, kv: KVCache, row: int) -> None:
        """Copy a sequence to a row."""
        for index, layer in enumerate(kv.layers):
            length = layer.length
            self._keys[index][row, :, :length].copy_(layer.keys[0, :, :length])
            self._values[index][row, :, :length].copy_(layer.values[0, :, :length])
        self._view(kv, row)
        self.rows[kv] = row

    def _view(self, kv: KVCache, row: int) -> None:
        """Make a cache a view of its row."""
        for index, layer in enumerate(kv.layers):
            layer.keys = self._keys[index][row : row + 1]
            layer.values = self._values[index][row : row + 1]

    def step(
        self, tokens: Sequence[Tensor], caches: Sequence[KVCache], offsets: Sequence[int]
    ) -> list[Tensor]:
        """Append a token to each of some members; return the logits [vocabulary] after it."""
        count = _power_of_two(max(self.rows.values()) + 1)
        batch = self._batches.get(count)
        if batch is None:
            batch = self._batches[count] = _Batch(self._model, self._keys, self._values, count)
            self._state = ()
        rows = [self.rows[kv] for kv in caches]
        places, shifts, advances = [0] * count, [0] * count, [0] * count
        for kv, row in self.rows.items():  # also of those that get no token now
            places[row] = kv.length
        for row, offset in zip(rows, offsets, strict=True):
            shifts[row], advances[row] = offset, 1
        known, self._state = self._state, ()  # unknown if the step fails
        if known != (places, shifts, advances):
            batch.place(places, shifts, advances)
        logits = batch.step(tokens, rows)
        after = [place + advance for place, advance in zip(places, advances, strict=True)]
        self._state = (after, shifts, advances)
        return [logits[row] for row in rows]


class _Batch:
    """A forward pass of one shape."""

    def __init__(
        self, model: Any, keys: Sequence[Tensor], values: Sequence[Tensor], rows: int
    ) -> None:
        device = keys[0].device
        self._model, self._dtype = model, keys[0].dtype
        self._ids = torch.zeros((rows, 1), dtype=torch.long, device=device)
        self._places = torch.zeros(rows, dtype=torch.long, device=device)
        self._offsets = torch.zeros(rows, dtype=torch.long, device=device)
        self._advances = torch.zeros(rows, dtype=torch.long, device=device)
        self._columns = torch.arange(keys[0].shape[2], device=device)
        text = model.config.get_text_config(decoder=True)
        self._kinds = _attention_kinds(text)
        self._window: int | None = text.sliding_window if _SLIDING in self._kinds else None
        # Without positions such a model would use those of the last prompt's pictures.
        self._on_grid = hasattr(model.base_model, "get_rope_index")
        numbers = torch.arange(rows, device=device)
        self._cache = Cache(
            layers=[
                _Layer(k[:rows], v[:rows], numbers, self._places)
                for k, v in zip(keys, values, strict=True)
            ]
        )
        self._graph: Any = None
        self._captures = device.type == "cuda"
        self._logits: Tensor | None = None

    @property
    def captured(self) -> bool:
        """Whether steps replay a CUDA graph."""
        return self._graph is not None

    def place(self, places: Sequence[int], offsets: Sequence[int], advances: Sequence[int]) -> None:
        """Set where each row's next token goes, its position minus that, and 1 if it gets one."""
        self._places.copy_(torch.tensor(places, device="cpu"))
        self._offsets.copy_(torch.tensor(offsets, device="cpu"))
        self._advances.copy_(torch.tensor(advances, device="cpu"))

    def step(self, tokens: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
        """Append tokens to rows; return the logits of all rows, [rows, vocabulary]."""
        for row, token in zip(rows, tokens, strict=True):
            self._ids[row, 0].copy_(token)
        logits = self._run()
        self._places.add_(self._advances)
        return logits

    def _run(self) -> Tensor:
        if self._graph is None and self._captures:
            self._capture()
        if self._graph is None:
            return self._forward()
        self._graph.replay()
        return cast(Tensor, self._logits)

    def _forward(self) -> Tensor:
        """Compute the logits; the same input gives the same output and the same caches."""
        positions = (self._places + self._offsets)[:, None]
        if self._on_grid:
            positions = positions.expand(3, -1, -1)
        output = self._model(
            input_ids=self._ids,
            attention_mask=self._masks(),
            position_ids=positions,
            **cache_argument(self._cache),
            use_cache=True,
        )
        return cast(Tensor, output.logits[:, -1])

    def _masks(self) -> Tensor | dict[str, Tensor]:
        """Return what is added to attention scores, [rows, 1, 1, capacity]; one for each kind."""
        places = self._places[:, None]

        def mask(hidden: Tensor) -> Tensor:
            return hidden[:, None, None].to(self._dtype).mul_(torch.finfo(self._dtype).min)

        whole = self._columns > places  # [rows, capacity]
        if self._window is None:
            return mask(whole)
        sliding = mask(whole | (self._columns <= places - self._window))
        if _FULL not in self._kinds:
            return sliding
        return {_FULL: mask(whole), _SLIDING: sliding}

    def _capture(self) -> None:
        """Capture the forward pass as a graph, and keep the graph if it computes the same."""
        self._captures = False
        try:
            with torch.cuda.device(self._ids.device):
                current = torch.cuda.current_stream()
                side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's own
                side.wait_stream(current)
                with torch.cuda.stream(side):
                    expected = self._forward()  # kernels choose their workspaces, too
                current.wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                # Other threads may use the GPU meanwhile, such as those of other engines.
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    self._logits = self._forward()
                graph.replay()
                if torch.allclose(self._logits, expected, 0.02, 0.02, equal_nan=True):
                    self._graph = graph
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            clear_frames(error)


def _power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below a positive number."""
    return 1 << (number - 1).bit_length()


def _attention_kinds(text_config: Any) -> set[str]:
    """Return which kinds of attention layers a language model has, by transformers' names."""
    window = getattr(text_config, "sliding_window", None)
    kinds = getattr(text_config, "layer_types", None) or [_FULL if window is None else _SLIDING]
    return set(kinds)


def supports(model: Any) -> bool:
    """Return whether `StaticDecoder` computes the same as single steps.

    The cache must be one that can be cropped (`Capabilities.reuses_prefixes`).
    """
    decoder = model.get_decoder()
    kinds = _attention_kinds(model.config.get_text_config(decoder=True))
    rotary = any(name.endswith("inv_freq") for name, _ in decoder.named_buffers())
    ropes = [getattr(module, "rope_type", "") for module in decoder.modules()]  # or one per kind
    names = {name for one in ropes for name in (one.values() if isinstance(one, dict) else [one])}
    return rotary and kinds <= {_FULL, _SLIDING} and not names & CHANGING_ROPE_TYPES
