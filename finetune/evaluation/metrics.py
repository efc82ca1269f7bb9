"""Metrics of answers, as functions of strings.

`normalize_answer` and `vqa_accuracy` follow the published VQA evaluator (Antol et al. 2015;
`vqaEval.py` in GT-Vision-Lab/VQA) exactly, including its oddities, so that scores are comparable
with published ones. Of its two versions, they follow the one that lmms-eval also uses
(`vqav2_process_results`): if the ten answers differ, they and the prediction are fully normalised;
if all agree, nothing is. The other version (commit c4e6a0e) always normalises the prediction, but
only the punctuation of differing answers.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

ANSWERERS = 10
"""Number of answers per question in VQA v1/v2, TextVQA, VizWiz and OK-VQA."""

_ANLS_THRESHOLD = 0.5
_RELAXED_TOLERANCE = 0.05
_MIN_TYPE_SHARE = 0.01
_RESAMPLINGS = 2000
"""Resamplings of a bootstrap or a permutation test."""
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER_WORDS = {word: str(value) for value, word in enumerate(_DIGITS)} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = (*';/[]"{}()=+\\_-><@`,?!',)
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32
"""The evaluator passes `re.UNICODE` (32) as the `count` of `sub`, so at most 32 periods are
removed."""

# The evaluator looks up lower-case words, so its entries with capitals ("Im", "Ive", "Id've") never
# match and "im" stays "im". It also removes the apostrophe of "somebody'd".
_CONTRACTION_PAIRS = """
    aint:ain't arent:aren't cant:can't couldve:could've couldnt:couldn't couldn'tve:couldn't've
    couldnt've:couldn't've didnt:didn't doesnt:doesn't dont:don't hadnt:hadn't hadnt've:hadn't've
    hadn'tve:hadn't've hasnt:hasn't havent:haven't hed:he'd hed've:he'd've he'dve:he'd've hes:he's
    howd:how'd howll:how'll hows:how's isnt:isn't itd:it'd itd've:it'd've it'dve:it'd've itll:it'll
    let's:let's maam:ma'am mightnt:mightn't mightnt've:mightn't've mightn'tve:mightn't've
    mightve:might've mustnt:mustn't mustve:must've neednt:needn't notve:not've oclock:o'clock
    oughtnt:oughtn't ow's'at:'ow's'at 'ows'at:'ow's'at 'ow'sat:'ow's'at shant:shan't
    shed've:she'd've she'dve:she'd've she's:she's shouldve:should've shouldnt:shouldn't
    shouldnt've:shouldn't've shouldn'tve:shouldn't've somebody'd:somebodyd
    somebodyd've:somebody'd've somebody'dve:somebody'd've somebodyll:somebody'll
    somebodys:somebody's someoned:someone'd someoned've:someone'd've someone'dve:someone'd've
    someonell:someone'll someones:someone's somethingd:something'd somethingd've:something'd've
    something'dve:something'd've somethingll:something'll thats:that's thered:there'd
    thered've:there'd've there'dve:there'd've therere:there're theres:there's theyd:they'd
    theyd've:they'd've they'dve:they'd've theyll:they'll theyre:they're theyve:they've twas:'twas
    wasnt:wasn't wed've:we'd've we'dve:we'd've weve:we've werent:weren't whatll:what'll
    whatre:what're whats:what's whatve:what've whens:when's whered:where'd wheres:where's
    whereve:where've whod:who'd whod've:who'd've who'dve:who'd've wholl:who'll whos:who's
    whove:who've whyll:why'll whyre:why're whys:why's wont:won't wouldve:would've
    wouldnt:wouldn't wouldnt've:wouldn't've wouldn'tve:wouldn't've yall:y'all yall'll:y'all'll
    y'allll:y'all'll yall'd've:y'all'd've y'alld've:y'all'd've y'all'dve:y'all'd've youd:you'd
    youd've:you'd've you'dve:you'd've youll:you'll youre:you're youve:you've
"""
_CONTRACTIONS = dict(pair.split(":") for pair in _CONTRACTION_PAIRS.split())


def _strip(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _process_punctuation(text: str) -> str:
    # The original text decides whether a mark is removed or becomes a space.
    digits = _DIGIT_COMMA_DIGIT.search(text) is not None
    result = text
    for mark in _PUNCTUATION:
        removed = digits or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if removed else " ")
    return _PERIOD.sub("", result, count=_MAX_PERIODS)


def _process_digits_and_articles(text: str) -> str:
    words = (_NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def normalize_answer(text: str) -> str:
    """Normalise as the official evaluator: lower case, digits, no articles, no punctuation."""
    return _process_digits_and_articles(_process_punctuation(_strip(text)))


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return the VQA accuracy of one prediction, 0 to 1.

    With ten answers this is the published formula: the mean of min(1, matching answers / 3) over
    the ten ways to leave one answer out. As in the evaluator, nothing is normalised if all ten
    answers agree, and blank answers count among the ten. With any other number, the answers are
    alternatives: the accuracy is 1 if one that is not blank matches after normalising.

    Raises:
        ValueError: There are no answers.
    """
    if not answers:
        raise ValueError("A question without answers has no accuracy.")
    if len(answers) != ANSWERERS:
        given = normalize_answer(prediction)
        return float(any(given == normalize_answer(answer) for answer in _without_blank(answers)))
    prepare = normalize_answer if len({_strip(answer) for answer in answers}) > 1 else _strip
    given = prepare(prediction)
    matches = [prepare(answer) == given for answer in answers]
    return sum(min(1.0, (sum(matches) - left_out) / 3) for left_out in matches) / ANSWERERS


def _without_blank(answers: Sequence[str]) -> Sequence[str]:
    """Return the answers that are not blank, or all if all are."""
    return [answer for answer in answers if answer.strip()] or answers


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the prediction equals an answer, ignoring surrounding white space, else 0."""
    return float(prediction.strip() in {answer.strip() for answer in _without_blank(answers)})


def _levenshtein(left: str, right: str) -> int:
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Return the normalised Levenshtein similarity (Biten et al. 2019, ST-VQA), 0 to 1.

    This is the maximum over the answers of 1 - distance / length of the longer string; 0 if that is
    below 0.5.
    """
    given = " ".join(prediction.lower().split())
    best = 0.0
    for answer in _without_blank(answers):
        expected = " ".join(answer.lower().split())
        longest = max(len(given), len(expected))
        best = max(best, 1 - _levenshtein(given, expected) / longest if longest else 1.0)
    return best if best >= _ANLS_THRESHOLD else 0.0


_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?%?")


def as_number(text: str) -> float | None:
    """Parse a number ("12", "1,200", "-3.5", "40%" as 0.4); None for other text."""
    text = text.strip()
    if not _NUMBER.fullmatch(text) or not any(c.isdigit() for c in text):
        return None
    value = float(text.rstrip("%").replace(",", ""))
    return value / 100 if text.endswith("%") else value


def relaxed_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 for a number within 5 % of an answer, or equal text (ChartQA, Masry et al. 2022)."""
    given = as_number(prediction)
    for answer in answers:
        expected = as_number(answer)
        if given is not None and expected is not None:
            if abs(given - expected) <= _RELAXED_TOLERANCE * abs(expected):
                return 1.0
        elif prediction.strip().lower() == answer.strip().lower():
            return 1.0
    return 0.0


def question_type(question: str) -> str:
    """Return a question's first two words ("how many"), similar to VQA's question types."""
    words = re.findall(r"[\w']+", question.lower())
    return " ".join(words[:2]) or "(empty)"


@dataclass(frozen=True)
class Scores:
    """Mean metrics of a set of predictions, 0 to 1."""

    questions: int
    vqa_accuracy: float
    exact_match: float
    anls: float
    relaxed_accuracy: float | None
    """Over the questions whose answer is a number; None if there are none."""
    numeric_questions: int = 0


def score(pairs: Iterable[tuple[str, Sequence[str]]]) -> Scores:
    """Average the metrics of (prediction, answers) pairs.

    Raises:
        ValueError: There are none.
    """
    pairs = list(pairs)
    if not pairs:
        raise ValueError("There are no predictions to score.")

    def mean(values: Iterable[float]) -> float:
        return math.fsum(values) / len(pairs)

    numeric = [(p, a) for p, a in pairs if as_number(a[0]) is not None]
    return Scores(
        questions=len(pairs),
        vqa_accuracy=mean(vqa_accuracy(p, a) for p, a in pairs),
        exact_match=mean(exact_match(p, a) for p, a in pairs),
        anls=mean(anls(p, a) for p, a in pairs),
        relaxed_accuracy=math.fsum(relaxed_accuracy(p, a) for p, a in numeric) / len(numeric)
        if numeric
        else None,
        numeric_questions=len(numeric),
    )


def by_type(types: Sequence[str], accuracies: Sequence[float]) -> dict[str, tuple[int, float]]:
    """Return the number of questions and the mean accuracy per type, largest type first.

    Types with fewer than 1 % of the questions are combined as "other", last.
    """
    groups: Mapping[str, list[float]] = defaultdict(list)
    for kind, accuracy in zip(types, accuracies, strict=True):
        groups[kind].append(accuracy)
    small = {k for k, v in groups.items() if len(v) < _MIN_TYPE_SHARE * len(types)}
    table = {
        kind: (len(values), math.fsum(values) / len(values))
        for kind, values in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
        if kind not in small
    }
    if rest := [value for kind in small for value in groups[kind]]:
        table["other"] = (len(rest), math.fsum(rest) / len(rest))
    return table


@dataclass(frozen=True)
class PairedTest:
    """Comparison of two models on the same questions."""

    difference: float
    """Mean score of the first minus that of the second."""
    low: float
    high: float
    """95 % interval of the difference, by bootstrap over questions."""
    p_value: float
    """Two-sided; the null hypothesis is no difference."""
    method: str
    first_better: int
    second_better: int
    """Number of questions on which one scored higher than the other."""


def mcnemar(first_only: int, second_only: int) -> float:
    """Return the p-value of the exact two-sided McNemar test.

    Args:
        first_only: Number of questions that only the first model answered correctly.
        second_only: Number of questions that only the second model answered correctly.
    """
    total = first_only + second_only
    term = tail = 1  # binomial coefficients, computed recursively
    for k in range(min(first_only, second_only)):
        term = term * (total - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << total))


def paired_test(first: Sequence[float], second: Sequence[float]) -> PairedTest:
    """Test whether two models' scores on the same questions differ by more than chance.

    Scores of 0 and 1 take the exact McNemar test; graded ones (ten answers, ANLS) a permutation
    test that swaps the two models' scores per question. The interval is a bootstrap's.

    Raises:
        ValueError: The lengths differ, or there is nothing to compare.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"Cannot pair {len(first)} scores with {len(second)}.")
    gaps = np.asarray(first, float) - np.asarray(second, float)
    rng = np.random.default_rng(0)
    resampled = np.array(
        [gaps[rng.integers(len(gaps), size=len(gaps))].mean() for _ in range(_RESAMPLINGS)]
    )
    better, worse = int((gaps > 0).sum()), int((gaps < 0).sum())
    if set(first) | set(second) <= {0.0, 1.0}:
        method, p_value = "exact McNemar test", mcnemar(better, worse)
    else:
        method, active = "permutation test", gaps[gaps != 0]
        swapped = np.array(
            [(active * rng.choice((-1.0, 1.0), len(active))).sum() for _ in range(_RESAMPLINGS)]
        )
        extreme = int((np.abs(swapped) >= abs(active.sum()) - 1e-9).sum())
        # The observed assignment is one of the permutations.
        p_value = (extreme + 1) / (_RESAMPLINGS + 1)
    low, high = np.quantile(resampled, (0.025, 0.975))
    return PairedTest(float(gaps.mean()), float(low), float(high), p_value, method, better, worse)
