"""Measure what the page says under an answer: its confidence, and whether the picture mattered.

    python -m finetune.pretrain.export --style both --n 400 --seed 100000 --out DIR
    python -m tests.benchmarks.confidence --model builtin --data DIR/test.json

`export` draws scenes that neither training nor the calibration has seen.
"""

from __future__ import annotations

import argparse

import numpy as np

from finetune.evaluation.calibration import bins, calibration_error
from finetune.evaluation.metrics import vqa_accuracy
from finetune.evaluation.questions import load_questions
from ui.chat.views import HIGH_IMAGE_GAIN, LOW_IMAGE_GAIN
from vqa_app import Answer, GenerationOptions, LocalEngine, load_model


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.confidence", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", action="append", default=[])
    parser.add_argument("--limit", type=int, help="number of questions, evenly spaced")
    args = parser.parse_args()
    questions = load_questions(args.data, args.images, limit=args.limit).questions
    engine = LocalEngine(load_model(args.model))
    rows = []
    for question in questions:
        pictures = {source.key: source.open() for source in question.row.pictures}
        conversation = question.conversation(pictures)
        *_, answer = engine.stream(conversation, GenerationOptions(temperature=0.0))
        assert isinstance(answer, Answer)
        right = vqa_accuracy(answer.text, question.answers)
        gain = engine.image_gain(conversation, answer.text) * answer.new_tokens
        rows.append((answer.confidence, right, gain, answer.calibrated))
    confidence, right, gain, calibrated = np.array(rows).T
    held = calibrated.astype(bool)
    error = calibration_error(bins(confidence[held], right[held]))
    print(f"{len(rows):,} answers, {right.mean():.1%} right; {held.mean():.0%} calibrated")
    print(f"expected calibration error of the calibrated ones: {error:.1%}")
    for name, low, high in (
        ("depends on the picture", HIGH_IMAGE_GAIN, np.inf),
        ("depends a little", LOW_IMAGE_GAIN, HIGH_IMAGE_GAIN),
        ("the same about a blank picture", -np.inf, LOW_IMAGE_GAIN),
    ):
        shown = (gain >= low) & (gain < high)
        shares = [shown[right > 0.5].mean(), shown[right <= 0.5].mean()]
        print(f"{name:32s} right answers {shares[0]:6.1%}   wrong answers {shares[1]:6.1%}")
    engine.close()


if __name__ == "__main__":
    main()
