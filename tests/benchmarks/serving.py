"""Measure many questions at once against the same questions one after another.

    python -m tests.benchmarks.serving builtin
    python -m tests.benchmarks.serving real-size --people 8 --rounds 1

Both sides are the engine, in one process and alternately; `alone` asks the next question when the
last is answered, `together` asks all at once from as many threads. Each round has new pictures,
which are asked about twice, so that the second time their features and prompts are known. The last
table times decoding alone. Figures are medians over the rounds. Times depend on the machine and its
load; ratios hardly do.

`real-size` is the model of `tests.benchmarks.generation`.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from tests.benchmarks.generation import load
from vqa_app.engine.protocol import Answer, GenerationOptions
from vqa_app.pictures.picture import open_picture
from vqa_app.prompts.conversation import Conversation

clock = time.perf_counter


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", help="builtin, real-size, a path or a hub id")
    parser.add_argument("--people", type=int, default=32, help="questions at once (default: 32)")
    parser.add_argument("--tokens", type=int, default=64, help="longest answer (default: 64)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    from vqa_app.engine.local import LocalEngine

    engine = LocalEngine(load(options.model))
    generation = GenerationOptions(max_new_tokens=options.tokens, temperature=0.0)
    rng = np.random.default_rng(0)
    answer_together(engine, questions(rng, 8), generation)  # learn what is exact and quick
    rates: dict[tuple[str, str], list[float]] = {}
    for _ in range(options.rounds):
        conversations = questions(rng, options.people)
        for pictures in ("new", "seen"):
            for side, answer in (("alone", answer_alone), ("together", answer_together)):
                if pictures == "new":
                    engine._runtime.clear_caches()
                rate = answer(engine, conversations, generation)
                rates.setdefault((pictures, side), []).append(rate)
    print(f"{engine.info.architecture}, {engine.info.dtype}, {options.people} questions")
    print("pictures  alone, tokens/s  together, tokens/s  ratio")
    for pictures in ("new", "seen"):
        alone, together = rates[pictures, "alone"], rates[pictures, "together"]
        ratio = statistics.median(b / a for a, b in zip(alone, together, strict=True))
        print(
            f"{pictures:8}  {statistics.median(alone):15.1f}"
            f"  {statistics.median(together):18.1f}  {ratio:5.2f}"
        )
    decoder = engine._runtime._cpu_decoder
    if decoder is not None:
        print("\nrows  decoding, tokens/s  ratio")
        single = 0.0
        for rows in (1, 2, 4, 8):
            rate = decoding_rate(decoder, rows)
            single = single or rate
            print(f"{rows:4}  {rate:18.1f}  {rate / single:5.2f}")
    engine.close()


def questions(rng: np.random.Generator, count: int) -> list[Conversation]:
    """Return questions about new pictures."""
    found = []
    for _ in range(count):
        blocks = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(blocks).resize((256, 256), Image.Resampling.NEAREST)
        found.append(Conversation.ask("Describe the picture .", [open_picture(image)]))
    return found


def answer_alone(
    engine: Any, conversations: Sequence[Conversation], options: GenerationOptions
) -> float:
    """Return tokens per second of questions asked one after another."""
    began = clock()
    tokens = sum(answer(engine, conversation, options) for conversation in conversations)
    return tokens / (clock() - began)


def answer_together(
    engine: Any, conversations: Sequence[Conversation], options: GenerationOptions
) -> float:
    """Return tokens per second of questions asked at once."""
    counts: list[int] = []

    def ask(conversation: Conversation) -> None:
        counts.append(answer(engine, conversation, options))

    threads = [threading.Thread(target=ask, args=(one,)) for one in conversations]
    began = clock()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (clock() - began)


def answer(engine: Any, conversation: Conversation, options: GenerationOptions) -> int:
    """Return the number of tokens of an answer."""
    *_, last = engine.stream(conversation, options)
    assert isinstance(last, Answer)
    return last.new_tokens


def decoding_rate(decoder: Any, rows: int, context: int = 150, times: int = 40) -> float:
    """Return tokens per second of the decoder alone, behind `context` tokens in each row."""
    import torch

    from vqa_app.engine.kv_cache import KVCache

    with torch.inference_mode():
        caches = []
        for _ in range(rows):
            kv = KVCache.empty(len(decoder._layers), transposed=decoder.transposes_keys)
            for layer in kv.layers:
                shape = (1, decoder._kv_heads, context, decoder._head_width)
                states = torch.randn(2, *shape).to(decoder._embedding.dtype)
                layer.update(states[0], states[1])
            caches.append(kv)
        seconds = median_seconds(
            lambda: decoder.step([5] * rows, caches, [kv.length for kv in caches]), times
        )
    return rows / seconds


def median_seconds(function: Callable[[], Any], times: int = 40) -> float:
    """Return how long a function takes."""
    measured = []
    for _ in range(times):
        began = clock()
        function()
        measured.append(clock() - began)
    return statistics.median(measured)


if __name__ == "__main__":
    main()
