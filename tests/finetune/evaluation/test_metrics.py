"""Metrics follow the rules of the published evaluators."""

from __future__ import annotations

import pytest

from finetune.evaluation.metrics import (
    anls,
    as_number,
    by_type,
    exact_match,
    mcnemar,
    normalize_answer,
    paired_test,
    question_type,
    relaxed_accuracy,
    score,
    vqa_accuracy,
)

# Computed by hand with the published evaluator's `processPunctuation` and `processDigitArticle`.
OFFICIAL = [
    ("Yes.", "yes"),
    ("The cat", "cat"),
    ("a dog and an apple", "dog and apple"),
    ("two", "2"),
    ("none", "0"),
    ("ten o'clock", "10 o'clock"),
    ("twelve", "twelve"),  # number words end at ten
    ("1,000", "1000"),  # a comma between digits joins them
    ("1,000 t-shirts", "1000 tshirts"),  # and then every mark is removed without a space
    ("t-shirt", "t shirt"),  # otherwise a mark inside a word becomes a space
    ("red, white", "red white"),  # and one next to a space is removed
    ("red,white", "red white"),
    ("black/white", "black white"),
    ("black / white", "black white"),
    ("what?!", "what"),
    ("3.5", "3.5"),  # a period before a digit stays
    ("5.", "5"),
    ("p.m.", "pm"),
    (".5", ".5"),
    ("v2.0.", "v2.0"),
    ("dont", "don't"),
    ("don't", "don't"),  # apostrophes stay
    ("cant", "can't"),
    ("im", "im"),  # the table's capital "Im" never matches
    ("somebody'd", "somebodyd"),
    ("whats that", "what's that"),
    ("A", ""),  # an answer that is only an article
    ("\tleft\nside ", "left side"),
    ("50%", "50%"),  # not among the removed marks
    ("10:30", "10:30"),
    ("$5", "$5"),
    ("me & you", "me & you"),
    ("#1 (one)", "#1 1"),
]


@pytest.mark.parametrize(("given", "expected"), OFFICIAL)
def test_answers_are_normalised_by_the_official_rules(given: str, expected: str) -> None:
    assert normalize_answer(given) == expected


def test_at_most_32_periods_are_removed_as_in_the_published_evaluator() -> None:
    assert normalize_answer("x" + "." * 40) == "x" + "." * 8


@pytest.mark.parametrize(
    ("agreeing", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)]
)
def test_ten_answers_are_scored_by_the_published_formula(agreeing: int, expected: float) -> None:
    answers = ["Two"] * agreeing + ["3"] * (10 - agreeing)
    assert vqa_accuracy("2.", answers) == pytest.approx(expected)


def test_ten_equal_answers_are_not_normalised() -> None:
    assert vqa_accuracy("yes\n", ["yes"] * 10) == 1.0
    assert vqa_accuracy("Yes.", ["yes"] * 10) == 0.0
    assert vqa_accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1.0


def test_fewer_answers_are_alternatives() -> None:
    assert vqa_accuracy("The bike", ["bicycle", "bike"]) == 1.0
    assert vqa_accuracy("car", ["bicycle", "bike"]) == 0.0
    with pytest.raises(ValueError, match="has no accuracy"):
        vqa_accuracy("car", [])


def test_a_blank_answer_counts_among_ten_but_is_no_alternative() -> None:
    answers = ["red"] * 8 + ["grey", ""]
    assert vqa_accuracy("grey", answers) == pytest.approx(0.3)
    assert vqa_accuracy("", answers) == pytest.approx(0.3)
    assert vqa_accuracy("", ["red", ""]) == exact_match("", answers) == anls("", answers) == 0.0


def test_exact_match_does_not_normalise() -> None:
    assert exact_match(" red ", ["red"]) == 1.0
    assert exact_match("Red", ["red"]) == 0.0


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("hello world", ["Hello  World"], 1.0),
        ("hallo", ["hello"], 0.8),
        ("kitten", ["sitting", "mitten"], 1 - 1 / 6),
        ("abc", ["xyz"], 0.0),
        ("ab", ["cdab"], 0.5),  # exactly at the threshold counts
        ("a", ["abc"], 0.0),
        ("", [""], 1.0),
    ],
)
def test_anls(prediction: str, answers: list[str], expected: float) -> None:
    assert anls(prediction, answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("95", "100", 1.0),
        ("94.9", "100", 0.0),
        ("-105", "-100", 1.0),
        ("0", "0", 1.0),
        ("0.01", "0", 0.0),
        ("40%", "0.41", 1.0),
        ("1,234", "1200", 1.0),
        ("Blue", "blue", 1.0),
        ("about 100", "100", 0.0),
    ],
)
def test_relaxed_accuracy_allows_five_percent(
    prediction: str, answer: str, expected: float
) -> None:
    assert relaxed_accuracy(prediction, [answer]) == expected


@pytest.mark.parametrize("text", ["", "%", ".", "-", "12 cats", "1,2", "nan", "1e5"])
def test_other_text_is_not_a_number(text: str) -> None:
    assert as_number(text) is None


def test_scores_are_means_and_relaxed_accuracy_counts_numbers_only() -> None:
    scores = score([("red", ["red"]), ("Blue.", ["blue"]), ("96", ["100"]), ("7", ["blue"])])
    assert scores.questions == 4
    assert scores.vqa_accuracy == 0.5
    assert scores.exact_match == 0.25
    assert scores.numeric_questions == 1
    assert scores.relaxed_accuracy == 1.0


def test_the_table_says_that_relaxed_accuracy_is_of_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """ChartQA's own score is over all questions."""
    from finetune.cli.evaluate import _print
    from finetune.evaluation.evaluate import summarize_predictions
    from finetune.evaluation.predictions import Prediction

    def answered(given: str, answer: str) -> Prediction:
        return Prediction(given, "d.json, row 1", (), "what", "What?", (answer,), given, 0.0, None)

    result = summarize_predictions("m", [answered("96", "100"), answered("7", "blue")], 1.0)
    _print([result], ["m"], None)
    row = next(line for line in capsys.readouterr().out.splitlines() if "relaxed" in line)
    assert row.split() == ["relaxed", "accuracy,", "numbers", "1", "100.00", "%"]


def test_types_are_sorted_by_size_and_rare_ones_combined() -> None:
    types = ["is there"] * 300 + ["how many"] * 200 + ["why is", "who has"]
    table = by_type(types, [1.0] * 300 + [0.5] * 200 + [0.0, 1.0])
    assert list(table.items()) == [
        ("is there", (300, 1.0)),
        ("how many", (200, 0.5)),
        ("other", (2, 0.5)),
    ]


def test_a_question_type_is_the_first_two_words() -> None:
    assert question_type("How many cats?") == "how many"
    assert question_type("What's this?") == "what's this"


def test_mcnemar_equals_hand_computed_values() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 1024)
    assert mcnemar(0, 10) == pytest.approx(2 / 1024)


def test_a_paired_test_detects_a_difference() -> None:
    right, wrong = [1.0] * 60 + [0.0] * 40, [0.0] * 60 + [0.0] * 40
    clear = paired_test(right, wrong)
    assert clear.difference == pytest.approx(0.6)
    assert clear.low < 0.6 < clear.high
    assert clear.p_value < 1e-9
    assert clear.method == "exact McNemar test"
    assert (clear.first_better, clear.second_better) == (60, 0)
    assert paired_test([1.0, 0.0] * 20, [0.0, 1.0] * 20).p_value == 1.0


def test_graded_scores_take_a_permutation_test() -> None:
    rising = paired_test([0.9] * 30, [0.3] * 30)
    assert rising.method == "permutation test"
    assert rising.p_value < 0.01
    assert paired_test([0.3, 0.9] * 15, [0.9, 0.3] * 15).p_value > 0.5


def test_unpaired_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="Cannot pair 1 scores with 2"):
        paired_test([1.0], [1.0, 0.0])
