"""Compare two ways to answer questions that are all known beforehand, as `eval` has them.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.known_questions builtin

"Batches" is `vqa_app.engine.batched`, which evaluation uses: prompts are read many at a time, and
those about one picture share its keys and values. "Scheduler" is the engine that serves people,
asked from eight threads. Figures are seconds of processor time, because they hardly depend on what
else a machine does, and the ratio of their medians over the rounds, each with new pictures.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tests.benchmarks.serving import questions
from vqa_app.engine.protocol import Answer, GenerationOptions
from vqa_app.prompts.conversation import Conversation

TEXTS = ("What is it?", "Which colour is it?", "Is it red?", "How many are there?", "Where is it?")


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", help="builtin, a path or a hub id")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    from vqa_app.checkpoints.loader import load_model
    from vqa_app.engine.batched import answer_prompts
    from vqa_app.engine.local import LocalEngine
    from vqa_app.prompts.prompt import encode

    loaded = load_model(options.model)
    engine = LocalEngine(load_model(options.model))

    def in_batches(asked: Sequence[Conversation], tokens: int) -> list[str]:
        prompts = [encode(loaded.processor, one, answer_next=True) for one in asked]
        model, processor = loaded.model, loaded.processor
        return answer_prompts(model, processor, loaded.capabilities, prompts, max_new_tokens=tokens)

    def by_the_scheduler(asked: Sequence[Conversation], tokens: int) -> list[str]:
        generation = GenerationOptions(max_new_tokens=tokens, temperature=0.0)

        def answer(conversation: Conversation) -> str:
            *_, last = engine.stream(conversation, generation)
            assert isinstance(last, Answer)
            return last.text.strip()

        with ThreadPoolExecutor(engine.info.concurrency) as pool:
            return list(pool.map(answer, asked))

    print("pictures  questions of each  tokens  batches, s  scheduler, s  ratio  same answers")
    rng = np.random.default_rng(0)
    for pictures, per_picture, tokens in ((60, 1, 4), (60, 1, 32), (20, 5, 4), (20, 5, 32)):
        rounds = []
        for _ in range(options.rounds + 1):
            asked = [
                Conversation.ask(text, one.pictures)
                for one in questions(rng, pictures)
                for text in TEXTS[:per_picture]
            ]
            batches, first = timed(in_batches, asked, tokens)
            scheduler, second = timed(by_the_scheduler, asked, tokens)
            same = sum(a == b for a, b in zip(first, second, strict=True))
            rounds.append((batches, scheduler, same / len(asked)))
        batches, scheduler, same = (
            statistics.median(column) for column in zip(*rounds[1:], strict=True)
        )
        print(
            f"{pictures:8}  {per_picture:17}  {tokens:6}  {batches:10.2f}  {scheduler:12.2f}"
            f"  {scheduler / batches:5.2f}  {same:.1%}",
            flush=True,
        )
    engine.close()


def timed(
    answer: Callable[[Sequence[Conversation], int], list[str]],
    asked: Sequence[Conversation],
    tokens: int,
) -> tuple[float, list[str]]:
    """Return the seconds of processor time that answers took, and the answers."""
    began = time.process_time()
    answers = answer(asked, tokens)
    return time.process_time() - began, answers


if __name__ == "__main__":
    main()
