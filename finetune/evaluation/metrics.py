"""What an answer is worth: pure functions over strings, no torch.

`normalize_answer` and `vqa_accuracy` follow the published VQA evaluator (Antol et al. 2015;
`vqaEval.py` in GT-Vision-Lab/VQA) rule by rule, its oddities included, because figures are only
comparable with those of others when the rules are the same. Of its two forms they follow the one
that lmms-eval has too (`vqav2_process_results`): where the ten answers differ, they and the
prediction are normalised in full; where all agree, nothing is. The other form (commit c4e6a0e)
normalises the prediction always, and of differing answers the punctuation alone.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

ANSWERERS = 10
"""How many people answered each question of VQA v1/v2, TextVQA, VizWiz and OK-VQA."""

_LEAST_SIMILAR = 0.5
_TOLERANCE = 0.05
_SMALLEST_SHARE = 0.01
_ROUNDS = 2000
"""Resamplings of a bootstrap or a permutation test."""
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER_WORDS = {word: str(value) for value, word in enumerate(_DIGITS)} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = (*';/[]"{}()=+\\_-><@`,?!',)
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32
"""The evaluator hands `re.UNICODE` (32) to `sub` as its `count`, so no more than 32 periods go."""

# The evaluator looks lower-case words up, so its entries with capitals ("Im", "Ive", "Id've") never
# match and "im" stays "im". "somebody'd" loses its apostrophe there too.
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
    # Whether a mark goes or turns into a space is decided on the text as it came.
    digits = _DIGIT_COMMA_DIGIT.search(text) is not None
    result = text
    for mark in _PUNCTUATION:
        gone = digits or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if gone else " ")
    return _PERIOD.sub("", result, count=_MOST_PERIODS)


def _process_digits_and_articles(text: str) -> str:
    words = (_NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def normalize_answer(text: str) -> str:
    """The official VQA form: lower case, digits for number words, no articles, no punctuation."""
    return _process_digits_and_articles(_process_punctuation(_strip(text)))


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy of one prediction, 0 to 1.

    With ten answers this is the published formula: the mean, over ten ways to leave one answerer
    out, of min(1, agreeing answerers / 3); like there, answers on which all ten agree are compared
    without normalising. With any other number, the answers are alternatives: 1 where one of them
    matches after normalising. An answer that somebody left blank counts among the ten, as there,
    and is no alternative.

    Raises:
        ValueError: there is no answer.
    """
    if not answers:
        raise ValueError("a question without answers has no accuracy")
    if len(answers) != ANSWERERS:
        given = normalize_answer(prediction)
        return float(any(given == normalize_answer(answer) for answer in _written(answers)))
    prepare = normalize_answer if len({_strip(answer) for answer in answers}) > 1 else _strip
    given = prepare(prediction)
    agrees = [prepare(answer) == given for answer in answers]
    return sum(min(1.0, (sum(agrees) - left_out) / 3) for left_out in agrees) / ANSWERERS


def _written(answers: Sequence[str]) -> Sequence[str]:
    """Without those that were left blank, unless all were."""
    return [answer for answer in answers if answer.strip()] or answers


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where the prediction is one of the answers to the letter (outer white space aside)."""
    return float(prediction.strip() in {answer.strip() for answer in _written(answers)})


def _levenshtein(left: str, right: str) -> int:
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Normalised Levenshtein similarity of one prediction (Biten et al. 2019, ST-VQA), 0 to 1.

    1 - distance / length of the longer string, the best over the answers; 0 where that is below a
    half.
    """
    given = " ".join(prediction.lower().split())
    best = 0.0
    for answer in _written(answers):
        wanted = " ".join(answer.lower().split())
        longest = max(len(given), len(wanted))
        best = max(best, 1 - _levenshtein(given, wanted) / longest if longest else 1.0)
    return best if best >= _LEAST_SIMILAR else 0.0


_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?%?")


def as_number(text: str) -> float | None:
    """The number that a text is ("12", "1,200", "-3.5", "40%" as 0.4), or None."""
    text = text.strip()
    if not _NUMBER.fullmatch(text) or not any(c.isdigit() for c in text):
        return None
    value = float(text.rstrip("%").replace(",", ""))
    return value / 100 if text.endswith("%") else value


def relaxed_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """1 for a number within 5 % of an answer or an equal text (ChartQA, Masry et al. 2022)."""
    given = as_number(prediction)
    for answer in answers:
        wanted = as_number(answer)
        if given is not None and wanted is not None:
            if abs(given - wanted) <= _TOLERANCE * abs(wanted):
                return 1.0
        elif prediction.strip().lower() == answer.strip().lower():
            return 1.0
    return 0.0


def question_type(question: str) -> str:
    """A type from the question's first two words ("how many"), as VQA's own types are."""
    words = re.findall(r"[\w']+", question.lower())
    return " ".join(words[:2]) or "(empty)"


@dataclass(frozen=True)
class Scores:
    """Mean metrics of a set of predictions; all 0 to 1."""

    questions: int
    vqa_accuracy: float
    exact_match: float
    anls: float
    relaxed_accuracy: float | None
    """Over the questions whose answer is a number; None where there are none."""
    numeric_questions: int = 0


def score(pairs: Iterable[tuple[str, Sequence[str]]]) -> Scores:
    """Means over (prediction, answers) pairs.

    Raises:
        ValueError: there are none.
    """
    pairs = list(pairs)
    if not pairs:
        raise ValueError("no predictions to score")

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
    """Questions and mean accuracy of each type, the largest first.

    Types with fewer than 1 % of the questions come together as "other", last.
    """
    groups: Mapping[str, list[float]] = defaultdict(list)
    for kind, accuracy in zip(types, accuracies, strict=True):
        groups[kind].append(accuracy)
    small = {k for k, v in groups.items() if len(v) < _SMALLEST_SHARE * len(types)}
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
    """Two models on the same questions."""

    difference: float
    """Mean score of the first minus that of the second."""
    low: float
    high: float
    """95 % interval of the difference, by bootstrap over questions."""
    p_value: float
    """Two-sided; of no difference."""
    method: str
    first_better: int
    second_better: int
    """On how many questions one scored above the other."""


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided McNemar test over the questions that only one of two models got right."""
    total = first_only + second_only
    term = tail = 1  # binomial coefficients, each from the one before
    for k in range(min(first_only, second_only)):
        term = term * (total - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << total))


def paired_test(first: Sequence[float], second: Sequence[float]) -> PairedTest:
    """Whether two models' scores on the same questions differ by more than chance.

    Right-or-wrong scores take the exact McNemar test; graded ones (ten answers, ANLS) a permutation
    test that swaps the two models' scores question by question.

    Raises:
        ValueError: the lengths differ, or there is nothing to compare.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"cannot pair {len(first)} scores with {len(second)}")
    gaps = np.asarray(first, float) - np.asarray(second, float)
    rng = np.random.default_rng(0)
    resampled = np.array(
        [gaps[rng.integers(len(gaps), size=len(gaps))].mean() for _ in range(_ROUNDS)]
    )
    better, worse = int((gaps > 0).sum()), int((gaps < 0).sum())
    if set(first) | set(second) <= {0.0, 1.0}:
        method, p_value = "exact McNemar test", mcnemar(better, worse)
    else:
        method, active = "permutation test", gaps[gaps != 0]
        swapped = np.array(
            [(active * rng.choice((-1.0, 1.0), len(active))).sum() for _ in range(_ROUNDS)]
        )
        extreme = int((np.abs(swapped) >= abs(active.sum()) - 1e-9).sum())
        p_value = (extreme + 1) / (
            _ROUNDS + 1
        )  # the observed assignment is one of the permutations
    low, high = np.quantile(resampled, (0.025, 0.975))
    return PairedTest(float(gaps.mean()), float(low), float(high), p_value, method, better, worse)
