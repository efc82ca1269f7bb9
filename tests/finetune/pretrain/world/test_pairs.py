"""Questions about two pictures: the answers agree with both scenes."""

import re

from finetune.data.read import read_rows
from finetune.pretrain.export import export_pairs
from finetune.pretrain.world.drawing.paint import COLOURS
from finetune.pretrain.world.pairs import MOST_OBJECTS, make_pair
from finetune.pretrain.world.wording.phrasing import plural


def matching(scene, phrase):
    """Return the items that a phrase such as "red star", "shape" or "solid star" refers to."""
    found = list(scene.items)
    for word in ("solid", "outlined", "striped"):
        if f"{word} " in phrase:
            found = [i for i in found if i.fill == word]
            phrase = phrase.replace(f"{word} ", "")
    for colour in COLOURS:
        if phrase.startswith(f"{colour} "):
            found = [i for i in found if i.colour == colour]
            phrase = phrase.removeprefix(f"{colour} ")
    if phrase in ("shape", "object", "shapes", "objects"):
        return found
    return [i for i in found if phrase in (i.kind, plural(i.kind))]


def asked(count):
    return [
        (pair, qa) for pair in (make_pair(seed) for seed in range(count)) for qa in pair.questions
    ]


def test_a_pair_is_reproducible_and_has_few_objects():
    for seed in range(20):
        one, other = make_pair(seed), make_pair(seed)
        assert one.questions == other.questions
        assert all(1 <= len(scene.items) <= MOST_OBJECTS for scene in one.scenes)


def test_questions_about_presence_agree_with_the_scenes():
    answers = set()
    for pair, qa in asked(120):
        named = re.search(
            r"(?:show|in|have|has|see|shows|there) an? (.+?)(?: in both| in the|, the|\?)",
            qa.question,
        )
        if not named:
            continue
        here = [bool(matching(scene, named[1])) for scene in pair.scenes]
        if "both" in qa.question or "each" in qa.question:
            assert qa.short == ("yes" if all(here) else "no"), qa
        elif qa.short in ("first", "second"):
            assert here == [qa.short == "first", qa.short == "second"], qa
        elif "first" in qa.question or "second" in qa.question:
            assert qa.short == ("yes" if here["second" in qa.question] else "no"), qa
        answers.add(qa.short)
    assert answers >= {"yes", "no", "first", "second"}


def test_counts_in_one_and_in_both_pictures_are_right():
    checked = 0
    for pair, qa in asked(120):
        named = re.search(r"(?:How many|Count the) (.+?) (?:are|do|in)", qa.question)
        if not named:
            continue
        counts = [len(matching(scene, named[1])) for scene in pair.scenes]
        if qa.question.endswith(("together?", "all?", "both pictures.")):
            expected = sum(counts)
        else:
            expected = counts["second" in qa.question]
        fits = " ".join(named[1].split()[-2:])
        if any(plural(i.kind) in fits for s in pair.scenes for i in s.items) or fits.endswith(
            ("shapes", "objects")
        ):
            assert qa.short == str(expected), (qa, counts)
            checked += 1
    assert checked > 60


def test_yes_and_no_are_about_as_frequent():
    answers = [qa.short for _, qa in asked(200) if qa.short in ("yes", "no")]
    assert 0.35 < answers.count("yes") / len(answers) < 0.65


def test_exported_pairs_are_rows_with_two_pictures(tmp_path):
    path = export_pairs(tmp_path, 10)
    read = read_rows(str(path))
    assert not read.problems
    assert read.rows
    assert all(len(row.conversation().pictures) == 2 for row in read.rows)
