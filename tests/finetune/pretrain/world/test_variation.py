"""Synonyms, overviews and references: the answers, recomputed from the scenes."""

import random
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from finetune.pretrain.world import QA, Item, Scene
from finetune.pretrain.world.mixture import World, open_rooms
from finetune.pretrain.world.variation import KIND_SYNONYMS, replace_word, varied, with_synonym
from finetune.pretrain.world.wording.phrasing import plural

ROOMS, _ = open_rooms(None, None)
WORLD = World({"wide shapes": 3.0, "things": 1.0}, ROOMS, varied=True)
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def added(skill: str, scenes: int = 400) -> Iterator[tuple[Scene, QA]]:
    """Yield the questions that `varied` adds to none."""
    for number in range(scenes):
        scene = WORLD.make_scene(number)
        for qa in varied([], scene, random.Random(number), "train"):
            if qa.skill == skill:
                yield scene, qa


def matching(scene: Scene, phrase: str) -> list[Item]:
    """Return the objects that a phrase such as "red circles" or "small star" refers to."""
    found = list(scene.items)
    words = phrase.split(" ")
    for field in ("size", "fill", "colour"):
        if words and words[0] in {getattr(item, field) for item in scene.items} - {""}:
            found = [item for item in found if getattr(item, field) == words[0]]
            words = words[1:]
    rest = " ".join(words)
    nouns = ("shape", "object", "item", "thing", "figure", "")
    if rest in nouns or rest in map(plural, nouns):
        return found
    kinds = {rest}
    for kind, others in KIND_SYNONYMS.items():
        if any(rest in (other, plural(other)) for other in others):
            kinds.add(kind)
    return [item for item in found if kinds & {item.kind, plural(item.kind)}]


def test_an_overview_names_everything() -> None:
    seen = 0
    for scene, qa in added("overview"):
        listing = re.sub(r"^(It is|The picture shows) |\.$", "", qa.sentence)
        parts = re.split(r", | and ", listing)
        total = 0
        for part in parts:
            amount, phrase = part.split(" ", 1)
            number = 1 if amount in ("a", "an") else int(amount)
            if not phrase.startswith("other "):
                assert len(matching(scene, phrase)) == number, qa
            total += number
        assert total == len(scene.items), qa
        seen += len(parts) > 3
    assert seen > 20


def test_they_are_the_objects_that_were_counted() -> None:
    answers = Counter()
    for scene, qa in added("followup"):
        opening = qa.before[0]
        if opening.skill != "count":
            continue
        phrase = re.sub(
            r".*?(?:how many|count the) (.+?)(?: are there\?|\.|\?).*",
            r"\1",
            opening.question,
            flags=re.I,
        )
        items = matching(scene, phrase)
        assert opening.short == str(len(items)), (opening, phrase)
        colours = {item.colour for item in items}
        if asked := re.search(r"all(?: of them)? (\w+)\?", qa.question):
            assert qa.short == ("yes" if colours == {asked[1]} else "no"), qa
        else:
            assert set(qa.short.split(" and ")) == colours, qa
        answers[qa.short] += 1
    assert answers["yes"] > 3
    assert answers["no"] > 3


def test_the_other_one_is_the_second_of_two() -> None:
    seen = 0
    for scene, qa in added("followup", 700):
        if qa.before[0].skill == "count":
            continue
        one, other = scene.items
        values = {"colour": lambda i: i.colour, "shape": lambda i: i.word}.get(qa.before[0].skill)
        if values and not any(word in qa.before[0].question for word in ("ball", "dot")):
            assert {qa.before[0].short, qa.short} == {values(one), values(other)}, qa
            seen += 1
    assert seen > 20


def test_relations_between_descriptions_hold_for_some_objects() -> None:
    answers = Counter()
    for scene, qa in added("relation"):
        found = re.search(
            r"(?:there|Is|see|is) an? (.+?) (left of|right of|above|below) an? (.+?)[?,]",
            qa.question,
        )
        assert found, qa.question
        axis = 0 if "of" in found[2] else 1
        sign = 1 if found[2] in ("left of", "above") else -1
        gaps = [
            sign * (other.centre[axis] - one.centre[axis])
            for one in matching(scene, found[1])
            for other in matching(scene, found[3])
            if one is not other
        ]
        assert qa.short == ("yes" if max(gaps) > 0 else "no"), qa
        answers[qa.short] += 1
    assert min(answers["yes"], answers["no"]) > 20


def test_statements_of_number_and_of_all_are_judged_rightly() -> None:
    compare = {
        "exactly": lambda a, b: a == b,
        "at least": lambda a, b: a >= b,
        "more than": lambda a, b: a > b,
        "fewer than": lambda a, b: a < b,
        "at most": lambda a, b: a <= b,
    }
    seen = Counter()
    for scene, qa in added("statement", 800):
        text = qa.question.lower()
        if found := re.search(
            rf"there (?:is|are) ({'|'.join(compare)}) (\w+) (.+?)(?:[.?,]|$)",
            text,
        ):
            asked = NUMBERS.index(found[2]) if found[2] in NUMBERS else int(found[2])
            truth = compare[found[1]](len(matching(scene, found[3])), asked)
        elif found := re.search(
            r"(all|every|none of the|at least one of the) (.+?) (?:is|are) (\w+)", text
        ):
            items = matching(scene, found[2])
            right = sum(item.colour == found[3] for item in items)
            truth = {
                "all": right == len(items),
                "every": right == len(items),
                "none of the": right == 0,
                "at least one of the": right > 0,
            }[found[1]]
        else:
            continue
        assert qa.short == ("yes" if truth else "no"), qa
        seen[qa.short] += 1
    assert min(seen["yes"], seen["no"]) > 50


@pytest.mark.parametrize(
    ("text", "word", "other", "expected"),
    [
        ("Is there an ellipse?", "ellipse", "oval", "Is there an oval?"),
        ("An ellipse and a circle.", "ellipse", "ball", "A ball and a circle."),
        ("Count the squares.", "square", "box", "Count the boxes."),
        ("Where is a shape?", "shape", "object", "Where is an object?"),
        ("Is the semicircle red?", "circle", "ball", "Is the semicircle red?"),
        ("RECTANGLE", "rectangle", "box", "Box"),
    ],
)
def test_a_word_is_replaced_with_its_article_and_number(
    text: str, word: str, other: str, expected: str
) -> None:
    assert replace_word(text, word, other) == expected


def test_a_box_is_never_ambiguous() -> None:
    square = Item("square", (0.0, 0.0, 0.2, 0.2), "red")
    rectangle = Item("rectangle", (0.5, 0.5, 0.9, 0.7), "blue")
    qa = QA("colour", "What colour is the square?", "red", "The square is red.")
    for items, clear in (((square,), True), ((square, rectangle), False)):
        scene = Scene("wide shapes", "", 100, 100, items, 0)
        asked = {with_synonym(qa, scene, random.Random(k)).question for k in range(20)}
        assert any("box" in question for question in asked) == clear
    absent = QA("existence", "Is there a rectangle?", "no", "No, there is no rectangle.")
    scene = Scene("wide shapes", "", 100, 100, (square,), 0)
    asked = {with_synonym(absent, scene, random.Random(k)).question for k in range(20)}
    assert asked == {"Is there a rectangle?"}


def test_a_kind_that_is_asked_for_is_answered_with_its_plain_name() -> None:
    circle = Item("circle", (0.0, 0.0, 0.2, 0.2), "red")
    qa = QA("shape", "What is the red shape?", "circle", "The red shape is a circle.")
    scene = Scene("wide shapes", "", 100, 100, (circle,), 0)
    for k in range(20):
        assert with_synonym(qa, scene, random.Random(k)).short == "circle"


def test_without_variation_a_world_asks_as_its_rooms_do() -> None:
    """Early checkpoints do not know the further wordings and are measured without them."""
    plain = World(WORLD.weights, ROOMS)
    scene = plain.make_scene(3)
    expected = ROOMS[scene.room].ask(scene, random.Random(1), "test")
    assert plain.ask(scene, random.Random(1), "test") == expected
    assert WORLD.ask(scene, random.Random(1), "test") != expected
