"""Measure eight people who ask about pictures at once, at a common size, against transformers' own.

    OMP_NUM_THREADS=2 python -m tests.benchmarks.serving_real_size --dtype float32

The model is that of `tests.benchmarks.generation` (`real-size`, random weights), the same on both
sides. `transformers serve` runs first, alone: it takes requests with pictures one after another, so
`--requests` of them are timed at once and count for all. Then the engine answers `--people` new
questions at once, asked again when their pictures are known. Memory is the peak of the process,
for one question and for all.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.benchmarks.generation import real_size
from tests.benchmarks.serving import answer_together, clock, decoding_rate, questions
from vqa_app.engine.protocol import GenerationOptions
from vqa_app.prompts.conversation import Conversation
from vqa_app.serving.listener import address_of, listen

PATIENCE = 600.0
CONTEXT = 760
"""About the tokens of a prompt."""


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--requests", type=int, default=2, help="to transformers (default: 2)")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer (default: 64)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    options = parser.parse_args()
    conversations = questions(np.random.default_rng(0), options.people)
    print(f"{options.dtype}, {options.people} people, load {os.getloadavg()[0]:.1f}", flush=True)
    loaded = load(options.dtype)
    with tempfile.TemporaryDirectory() as folder:
        loaded.model.save_pretrained(folder)
        loaded.processor.save_pretrained(folder)
        del loaded
        theirs = rate_of_transformers(Path(folder), conversations[: options.requests], options)
    print(f"transformers serve  {theirs:6.2f} tokens/s, load {os.getloadavg()[0]:.1f}", flush=True)

    from vqa_app.engine.local import LocalEngine

    engine = LocalEngine(load(options.dtype))
    # The penalty keeps answers of random weights from ending because they repeat themselves.
    generation = GenerationOptions(
        max_new_tokens=options.tokens, temperature=0.0, repetition_penalty=1.0001
    )
    kv = engine._runtime.kv_bytes(CONTEXT + options.tokens)
    answer_together(engine, conversations[:1], generation)  # learns how long a picture takes
    engine._runtime.clear_caches()
    with peak_memory() as one:
        alone_new = answer_together(engine, conversations[:1], generation)
    alone = answer_together(engine, conversations[:1], generation)
    engine._runtime.clear_caches()
    with peak_memory() as all_of_them:
        new = answer_together(engine, conversations, generation)
    print(f"one, new            {alone_new:6.2f} tokens/s", flush=True)
    print(f"one, seen           {alone:6.2f} tokens/s", flush=True)
    print(f"all, new            {new:6.2f} tokens/s  {new / theirs:5.2f} × theirs", flush=True)
    seen = answer_together(engine, conversations, generation)
    print(f"all, seen           {seen:6.2f} tokens/s  {seen / theirs:5.2f} × theirs", flush=True)
    decoder = engine._runtime._cpu_decoder
    single, batch = (decoding_rate(decoder, rows, CONTEXT, 10) for rows in (1, options.people))
    print(f"decoder {single:.2f} and {batch:.2f} tokens/s: {batch / single:.2f} × of one alone")
    grown = all_of_them[0] - one[0]
    print(
        f"memory of one {one[0] / 1e9:.2f} GB, of all {all_of_them[0] / 1e9:.2f} GB:"
        f" {grown / 1e9:+.2f} GB; keys and values of the others"
        f" {(options.people - 1) * kv / 1e9:.2f} GB"
    )
    print(f"load {os.getloadavg()[0]:.1f}")
    engine.close()


def load(dtype: str) -> Any:
    """Return the model in a data type; bfloat16 ones are what it is made in."""
    import torch

    loaded = real_size()
    loaded.model.to(getattr(torch, dtype))
    return loaded


def rate_of_transformers(
    folder: Path, conversations: Sequence[Conversation], options: argparse.Namespace
) -> float:
    """Return tokens per second of `transformers serve` for questions asked at once."""
    with listen("127.0.0.1", 0) as listener:
        address = address_of(listener).rstrip("/")
    program = [Path(sys.executable).with_name("transformers"), "serve", folder, "--device", "cpu"]
    process = subprocess.Popen(
        [*program, "--dtype", options.dtype, "--port", address.rpartition(":")[2]],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ask(content: Any, tokens: int) -> int:
        body = {
            "model": str(folder),
            "messages": [{"role": "user", "content": content}],
            "max_tokens": tokens,
            "temperature": 0,
        }
        answer = httpx.post(
            f"{address}/v1/chat/completions", json=body, timeout=PATIENCE, trust_env=False
        )
        answer.raise_for_status()
        # Each token of the model is a word; `usage` counts the prompt's image tokens as well.
        return len(answer.json()["choices"][0]["message"]["content"].split())

    try:
        while True:
            assert process.poll() is None, "the server has ended"
            try:
                httpx.get(f"{address}/health", trust_env=False).raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.5)
        ask("Hello", 2)  # loads the model
        with ThreadPoolExecutor(len(conversations)) as threads:
            began = clock()
            counts = threads.map(lambda one: ask(content_of(one), options.tokens), conversations)
            return sum(counts) / (clock() - began)
    finally:
        process.terminate()
        process.wait(20)


def content_of(conversation: Conversation) -> list[dict[str, Any]]:
    """Return a question with a picture as OpenAI's API takes it."""
    buffer = io.BytesIO()
    conversation.pictures[0].image.save(buffer, "PNG")
    address = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return [
        {"type": "image_url", "image_url": {"url": address}},
        {"type": "text", "text": conversation.messages[-1].text},
    ]


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Append the peak of this process's memory in the block, in bytes; Linux only."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    found: list[int] = []
    yield found
    line = next(
        x
        for x in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        if "VmHWM" in x
    )
    found.append(int(line.split()[1]) * 1024)


if __name__ == "__main__":
    main()
