"""Every row is tokenised and measured; problems stop the run or their rows are skipped."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.data.preflight import (
    check_rows,
    find_leaks,
    mixture_lines,
    split_samples,
    summarize_samples,
)
from finetune.data.read import read_rows
from finetune.data.samples import Sample
from finetune.evaluation.questions import make_questions
from finetune.parallel import parallel_map
from tests.finetune.training_data import write_data
from vqa_app.errors import DataError


@pytest.fixture(scope="module")
def processor(tiny_llava_dir: Path) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(tiny_llava_dir)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path)


def test_rows_pictures_and_tokens_are_counted(data: Path, processor: Any) -> None:
    found = check_rows(read_rows(data), processor, max_length=1000)
    summary = summarize_samples(found.samples)
    assert (summary.rows, summary.answers, summary.sequences) == (8, 14, 8)
    assert (summary.pictures, summary.picture_counts) == (6, ((0, 2), (1, 6)))
    assert summary.tokens == sum(len(sample) for sample in found.samples)
    assert sum(count for _, _, count in summary.histogram) == 8
    assert summary.longest[0] is max(found.samples, key=len)


def test_the_share_of_each_source_is_listed(data: Path, processor: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.json"
    text.write_text(json.dumps([{"question": "What is 1 and 1?", "answer": "2"}] * 4))
    found = check_rows(read_rows([data, f"{text}@6"]), processor, max_length=1000)
    assert mixture_lines(summarize_samples(found.samples)) == [
        f"   75.0% of an epoch: 4 rows of {text}",
        f"   25.0% of an epoch: 8 rows of {data}",
    ]
    alone = check_rows(read_rows(data), processor, max_length=1000)
    assert mixture_lines(summarize_samples(alone.samples)) == []


def test_a_broken_picture_and_a_long_row_are_reported_with_their_rows(
    data: Path, processor: Any, tmp_path: Path
) -> None:
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:40])
    rows = json.loads(data.read_text(encoding="utf-8"))
    rows[7]["conversations"][0]["value"] = "long " * 500
    data.write_text(json.dumps(rows), encoding="utf-8")
    found = check_rows(read_rows(data), processor, max_length=400)
    assert [problem.row for problem in found.problems] == [3, 8]
    assert "2.png" in found.problems[0].message
    assert "more than 400" in found.problems[1].message
    with pytest.raises(DataError, match=r"2 problems in the data, the first: .*row 3") as stopped:
        found.enforce_limit(1)
    assert "--max-bad 2" in stopped.value.hint
    found.enforce_limit(2, tmp_path / "run" / "skipped.jsonl")
    skipped = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in skipped] == [3, 8]
    assert len(found.samples) == 6
    with pytest.raises(DataError, match=r"All rows are bad, the first: .*row 3"):
        replace(found, samples=()).enforce_limit(2)


def test_the_number_of_threads_does_not_change_the_result(data: Path, processor: Any) -> None:
    rows = read_rows(data)
    alone, together = (check_rows(rows, processor, max_length=1000, workers=n) for n in (1, 3))
    assert alone.data_hash() == together.data_hash()


def test_duplicate_and_leaking_rows_are_found(data: Path, processor: Any) -> None:
    rows = json.loads(data.read_text(encoding="utf-8"))
    data.write_text(json.dumps([*rows, rows[1]]), encoding="utf-8")
    found = check_rows(read_rows(data), processor, max_length=1000)
    ((first, later),) = found.duplicates()
    assert (first.row.number, later.row.number) == (2, 9)
    train, held_out = split_samples(found, 0.34, seed=0)
    assert held_out.samples
    assert not find_leaks(train, held_out)
    assert find_leaks(found, held_out) == list(held_out.samples)  # including those without pictures


def test_the_data_hash_changes_with_the_data(data: Path, processor: Any) -> None:
    before = check_rows(read_rows(data), processor, max_length=1000).data_hash()
    assert check_rows(read_rows(data), processor, max_length=1000).data_hash() == before
    data.write_text(data.read_text(encoding="utf-8").replace("a cat?", "a dog?"), encoding="utf-8")
    assert check_rows(read_rows(data), processor, max_length=1000).data_hash() != before


def test_packed_questions_equal_separate_ones(data: Path, processor: Any) -> None:
    """Tokens, positions and trained tokens of every branch equal those of the question alone."""
    rows = read_rows(data)
    packed = check_rows(rows, processor, max_length=1000).samples[1]
    alone = check_rows(rows, processor, max_length=1000, share_prefix=False).samples[1:4]
    assert packed.segments is not None
    assert packed.segments.max() == 3
    assert [sample.row.id for sample in alone] == ["p1#1", "p1#2", "p1#3"]
    for number, sample in enumerate(alone, 1):
        branch = np.isin(packed.segments, (0, number))
        assert packed.input_ids[branch].tolist() == sample.input_ids.tolist()
        assert packed.answer_mask[branch].tolist() == sample.answer_mask.tolist()
        assert packed.positions[branch].tolist() == list(range(len(sample)))
    assert packed.positions_needed == max(len(sample) for sample in alone)


def test_the_turn_mode_determines_the_context_of_a_question(data: Path, processor: Any) -> None:
    rows = read_rows(data)
    together = check_rows(rows, processor, max_length=1000, turns="together").samples[1]
    auto = check_rows(rows, processor, max_length=1000).samples
    assert together.segments is None
    assert auto[1].segments is not None
    assert auto[6].segments is None


def _mark_answer(data: Path, row: int, message: int) -> None:
    """Mark an answer as not to be trained."""
    rows = json.loads(data.read_text(encoding="utf-8"))
    rows[row]["conversations"][message]["train"] = False
    data.write_text(json.dumps(rows), encoding="utf-8")


def _trained(sample: Sample, processor: Any) -> str:
    return processor.tokenizer.decode(sample.input_ids[sample.answer_mask])


def test_an_answer_not_to_be_trained_is_masked_alone(data: Path, processor: Any) -> None:
    """The tokens stay as they are: the answer is context for later turns."""
    whole = check_rows(read_rows(data), processor, max_length=1000, turns="together").samples[1]
    _mark_answer(data, 1, 3)
    masked = check_rows(read_rows(data), processor, max_length=1000, turns="together").samples[1]
    assert masked.input_ids.tolist() == whole.input_ids.tolist()
    assert _trained(whole, processor) == "blue<|im_end|>no<|im_end|>no<|im_end|>"
    assert _trained(masked, processor) == "blue<|im_end|>no<|im_end|>"
    runs = np.flatnonzero(np.diff(whole.answer_mask.astype(int)))
    middle = slice(runs[2], runs[3] + 1)  # the second answer
    whole.answer_mask[middle] = False
    assert masked.answer_mask.tolist() == whole.answer_mask.tolist()


@pytest.mark.parametrize("share_prefix", [True, False])
def test_a_question_alone_is_left_out_if_its_answer_is_not_to_be_trained(
    data: Path, processor: Any, share_prefix: bool
) -> None:
    _mark_answer(data, 1, 1)  # the message with the picture
    rows = read_rows(data)
    found = check_rows(rows, processor, max_length=1000, share_prefix=share_prefix)
    samples = [sample for sample in found.samples if sample.row.id.startswith("p1")]
    assert len(samples) == (1 if share_prefix else 2)
    trained = "".join(_trained(sample, processor) for sample in samples)
    assert trained == "no<|im_end|>no<|im_end|>"
    assert all(sample.digests for sample in samples), "later questions see the picture"
    assert summarize_samples(samples).answers == 2
    assert [q.text for q in make_questions(rows.rows[1:2])] == ["Is it red?", "Is there a cat?"]


def test_a_row_without_a_trained_token_is_a_problem(data: Path, processor: Any) -> None:
    rows = read_rows(data)
    turns = tuple(replace(turn, trained=turn.role == "user") for turn in rows.rows[1].turns)
    rows = replace(rows, rows=(replace(rows.rows[1], turns=turns, references=()),))
    for mode in ("together", "apart"):
        found = check_rows(rows, processor, max_length=1000, turns=mode)
        assert "No token of an answer would be trained" in found.problems[0].message


def test_parallel_map_keeps_order_and_raises_errors() -> None:
    assert list(parallel_map(lambda n: n * n, range(500), workers=3)) == [n * n for n in range(500)]

    def fail(number: int) -> int:
        if number == 70:
            raise ValueError("seventy")
        return number

    with pytest.raises(ValueError, match="seventy"):
        list(parallel_map(fail, range(200), workers=2))


def test_a_broken_file_is_not_skipped_as_a_bad_row(data: Path, processor: Any) -> None:
    broken = data.with_name("broken.json")
    broken.write_text(data.read_text(encoding="utf-8")[:-20])
    found = check_rows(read_rows([data, broken]), processor, max_length=1000)
    assert len(found.problems) == 1
    assert found.samples
    with pytest.raises(DataError, match=r"broken\.json: Line 1") as stopped:
        found.enforce_limit(1000)
    assert stopped.value.hint.startswith("Fix the file")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TypeError("TextEncodeInput must be Union"), "The row cannot be rendered."),
        (ValueError("Roles must alternate."), "The row cannot be rendered: Roles must alternate."),
    ],
)
def test_any_error_in_rendering_a_row_is_reported_with_the_row(
    data: Path,
    processor: Any,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    message: str,
) -> None:
    module = import_module("finetune.data.preflight")
    make_samples = module.make_samples

    def fail(row: Any, *args: Any, **options: Any) -> Any:
        if row.number == 2:
            raise error
        return make_samples(row, *args, **options)

    monkeypatch.setattr(module, "make_samples", fail)
    found = check_rows(read_rows(data), processor, max_length=1000)
    (problem,) = found.problems
    assert problem.row == 2
    assert problem.message == message


def test_few_held_out_questions_are_noted(data: Path, processor: Any) -> None:
    from finetune.training.load_data import describe, validation_warning

    found = check_rows(read_rows(data), processor, max_length=1000)
    train, held_out = split_samples(found, 0.2, seed=0)
    questions = sum(len(row.references) for row in held_out.rows)
    assert 1 < questions < 30
    assert f"Only {questions} questions held" in validation_warning(held_out, None)
    assert "No validation split" in validation_warning(split_samples(found, 0.0, seed=0)[1], None)
    assert validation_warning(split_samples(found, 0.0, seed=0)[1], 0.0) == ""
    many = replace(
        held_out, samples=tuple(replace(s, row=replace(s.row)) for s in train.samples * 5)
    )
    assert validation_warning(many, None) == ""
    one = replace(found, samples=found.samples[:1])
    description = describe(summarize_samples(one.samples), one)
    assert description.startswith("1 row, 1 answer, 1 picture;")
    assert description.endswith("Held out: 1 row with 1 question.")
