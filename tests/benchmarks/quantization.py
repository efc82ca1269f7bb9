"""Compare 4- and 8-bit weights on a CPU with whole ones: decoding speed and memory.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.quantization
    OMP_NUM_THREADS=1 python -m tests.benchmarks.quantization --rounds 5 --steps 8

A Qwen2 of random weights, 24 layers and 1024 wide with a vocabulary of 152k, decodes with the
engine's decoder behind 150 tokens of context: whole in bfloat16, whole in what `--dtype auto`
chooses here if that is another one, in 8 bits and in 4 bits with an 8-bit head. The variants take
turns in one process; ratios are medians over the rounds. Times are processor time, so use one
thread. `--prefill` also
times a prompt of 512 tokens, which takes minutes where bfloat16 is emulated.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from vqa_app.devices import choose_dtype
from vqa_app.engine.cpu_decoder import CpuDecoder
from vqa_app.engine.cpu_weights import can_pack, make_column_major, pack_weights
from vqa_app.engine.kv_cache import KVCache
from vqa_app.models.quantized_linear import Bits, QuantizedLinear

CONTEXT = 150
ROWS = (1, 2, 4, 8)


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="tokens for each figure of a round")
    parser.add_argument("--prefill", action="store_true")
    options = parser.parse_args()

    whole = language_model()
    automatic = choose_dtype("auto", torch.device("cpu"), 1_000_000_000)
    variants: dict[str, Any] = {"bfloat16": whole}
    if automatic != torch.bfloat16:
        variants[str(automatic).removeprefix("torch.")] = copy.deepcopy(whole).to(automatic)
    for bits in (8, 4):
        variants[f"{bits} bits"] = quantized(whole, bits, automatic)
    memory = {name: layer_bytes(model) for name, model in variants.items()}
    decoders = {name: decoder(model) for name, model in variants.items()}

    seconds: dict[tuple[str, int], list[float]] = {}
    with torch.inference_mode():
        for _ in range(options.rounds):
            for name, one in decoders.items():
                for rows in ROWS:
                    spent = decoding_seconds(one, rows, options.steps)
                    seconds.setdefault((name, rows), []).append(spent)
                if options.prefill:
                    spent = fastest(partial(prefill, variants[name]), 1)
                    seconds.setdefault((name, 0), []).append(spent)
    print("memory of layers; tokens per second (against bfloat16) at")
    print(f"{'':18}" + "".join(f"{rows} row{'s'[: rows > 1]:13}" for rows in ROWS))
    for name in variants:
        rates = {rows: rows / statistics.median(seconds[name, rows]) for rows in ROWS}
        cells = [f"{rates[rows]:6.2f} ({ratio(seconds, name, rows):.2f})" for rows in ROWS]
        last = f"   prefill ({ratio(seconds, name, 0):.2f})" if options.prefill else ""
        share = memory[name] / memory["bfloat16"]
        print(f"{name:10}  {share:5.2f}  {'   '.join(cells)}{last}")


def language_model() -> Any:
    """Return the whole model in bfloat16, with random weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.initialization import no_init_weights

    config = Qwen2Config(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=151_936,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
    )
    torch.set_default_dtype(torch.bfloat16)
    with no_init_weights():
        model = Qwen2ForCausalLM(config).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, 0.02, generator=generator)
        else:
            parameter.fill_(1.0)
    return model


def quantized(whole: Any, bits: Bits, dtype: torch.dtype) -> Any:
    """Return a copy with quantised layers and an 8-bit head; the rest in `dtype`."""
    layers = {name: one for name, one in whole.named_modules() if type(one) is nn.Linear}
    model = copy.deepcopy(whole)
    for name, layer in layers.items():
        its_bits = 8 if layer is whole.lm_head else bits
        model.set_submodule(name, QuantizedLinear.of(layer, its_bits))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def layer_bytes(model: Any) -> int:
    """Return the memory of the decoder layers."""
    layers = model.get_decoder().layers
    tensors = [
        *layers.parameters(),
        *(
            buffer
            for layer in layers.modules()
            if isinstance(layer, QuantizedLinear)
            for buffer in layer.buffers()
        ),
    ]
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def decoder(model: Any) -> CpuDecoder:
    """Return the engine's decoder, after the engine's changes of the layout."""
    if can_pack(model):
        pack_weights(model)
    else:
        make_column_major(model)
    return CpuDecoder(model.get_decoder(), model.get_output_embeddings())


def decoding_seconds(decoder: CpuDecoder, rows: int, steps: int) -> float:
    """Return the time of a step that appends a token to each of `rows` sequences."""
    caches = []
    for _ in range(rows):
        kv = KVCache.empty(len(decoder._layers), transposed=decoder.transposes_keys)
        for layer in kv.layers:
            states = torch.randn(2, 1, decoder._kv_heads, CONTEXT, decoder._head_width)
            layer.update(*states.to(decoder._embedding.dtype))
        caches.append(kv)
    return fastest(lambda: decoder.step([5] * rows, caches, [kv.length for kv in caches]), steps)


def prefill(model: Any) -> None:
    """Read a prompt of 512 tokens."""
    model(input_ids=torch.full((1, 512), 5), logits_to_keep=1)


def fastest(function: Callable[[], Any], times: int) -> float:
    """Return the processor time of a function: the least, as other work only adds to it."""
    measured = []
    for _ in range(times):
        began = time.process_time()
        function()
        measured.append(time.process_time() - began)
    return min(measured)


def ratio(seconds: dict[tuple[str, int], list[float]], name: str, rows: int) -> float:
    """Return how much faster a variant is than bfloat16, as the median over the rounds."""
    pairs = zip(seconds["bfloat16", rows], seconds[name, rows], strict=True)
    return statistics.median(whole / one for whole, one in pairs)


if __name__ == "__main__":
    main()
