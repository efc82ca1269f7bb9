"""Measure what a schema costs per token.

    python -m tests.benchmarks.structured builtin

The same engine answers alternately without and with a JSON schema, both sampled so hot that the
texts are long and nothing is forced by the model's habits. Figures are medians over the rounds of
the processor's time for each token after the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from tests.benchmarks.generation import load
from tests.benchmarks.load import picture_uri
from vqa_app.engine.protocol import Delta, Engine, GenerationOptions
from vqa_app.pictures.picture import open_picture
from vqa_app.prompts.conversation import Conversation

SCHEMA = {
    "type": "object",
    "properties": {
        "objects": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "colour": {"enum": ["red", "green", "blue"]},
                    "count": {"type": "integer"},
                },
                "required": ["name", "colour", "count"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["objects"],
    "additionalProperties": False,
}


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="builtin")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()

    from vqa_app.engine.local import LocalEngine

    engine = LocalEngine(load(options.model))
    asked = Conversation.ask("Describe it.", [open_picture(picture_uri("red", "ellipse"))])
    schema = json.dumps(SCHEMA)
    seconds: dict[str, list[float]] = {"free": [], "schema": []}
    for number in range(-2, options.rounds):  # the first two prepare tokenizer and caches
        for kind, chosen in (("free", None), ("schema", schema)):
            sampled = GenerationOptions(
                max_new_tokens=160, temperature=3.0, seed=number + 2, schema=chosen
            )
            spent = seconds_per_token(engine, asked, sampled)
            if number >= 0 and spent is not None:
                seconds[kind].append(spent)
    free, bound = (statistics.median(values) for values in seconds.values())
    print(
        f"free {1e3 * free:.3f} ms, with a schema {1e3 * bound:.3f} ms a token: {bound / free:.2f}"
    )
    engine.close()


def seconds_per_token(
    engine: Engine, asked: Conversation, options: GenerationOptions
) -> float | None:
    """Return the processor's time for each token after the first; None for short answers."""
    start, count = 0.0, 0
    for event in engine.stream(asked, options):
        if isinstance(event, Delta):
            start = start or time.process_time()
        else:
            count = getattr(event, "new_tokens", 0)
    return (time.process_time() - start) / (count - 1) if count > 20 else None


if __name__ == "__main__":
    main()
