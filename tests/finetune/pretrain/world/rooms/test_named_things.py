"""Questions about names and kinds of things."""

import random

import pytest

from finetune.pretrain.world.rooms import named_things
from finetune.pretrain.world.rooms.concepts import Concept, it_is
from finetune.pretrain.world.rooms.named_things import NamedScene, ask_about_names
from finetune.pretrain.world.scene import Item

DOG = Concept(("dog", "puppy"), "animal", ("dog",))
CAT = Concept(("cat",), "animal", ("cat",))
GRAPES = Concept(("grapes",), "fruit", ("grapes",))
BELL = Concept(("bell",), "(sound)", ("bell",))
KNOWN = (DOG, CAT, GRAPES, BELL)


def scene(*shown: Concept, seed: int = 0) -> NamedScene:
    items = tuple(Item(concept.name, (0.0, 0.0, 1.0, 1.0)) for concept in shown)
    return NamedScene(items, shown, KNOWN, random.Random(seed), "test")


def questions(skill: named_things.Skill, *shown: Concept) -> dict[str, tuple[str, str]]:
    made = (skill(scene(*shown, seed=seed)) for seed in range(300))
    return {qa.question: (qa.short, qa.sentence) for qa in made if qa}


def test_the_answer_names_everything_in_the_picture() -> None:
    assert questions(named_things.name, DOG)["What is this?"] == ("dog", "It is a dog.")
    assert questions(named_things.name, GRAPES)["What is this?"] == ("grapes", "They are grapes.")
    several = questions(named_things.name, DOG, GRAPES, DOG)
    assert several["What do you see?"] == (
        "2 dogs and grapes",
        "The picture shows 2 dogs and grapes.",
    )
    assert "What is this?" not in several


def test_synonyms_are_accepted_as_names() -> None:
    found = questions(named_things.is_it, DOG)
    assert found["Is this a puppy?"] == ("yes", "Yes, it is a puppy.")
    assert found["Is this a cat?"] == ("no", "No, it is a dog.")


def test_kinds_in_brackets_are_never_asked_for() -> None:
    assert questions(named_things.kind, DOG)["What kind of thing is this?"] == (
        "animal",
        "It is an animal: a dog.",
    )
    assert questions(named_things.kind, BELL) == {}
    found = questions(named_things.kind_presence, CAT)
    assert found["Is it an animal?"] == ("yes", "Yes, there is a cat.")
    assert found["Is it a fruit?"] == ("no", "No, there is no fruit.")


def test_which_animal_is_asked_only_about_at_most_one_animal() -> None:
    assert questions(named_things.member, DOG)["What animal is this?"] == ("dog", "It is a dog.")
    assert questions(named_things.member, BELL)["What animal is this?"][0] == "none"
    assert "What animal is this?" not in questions(named_things.member, DOG, CAT)


def test_things_are_counted_by_name_and_by_kind() -> None:
    found = questions(named_things.kind_count, DOG, CAT, DOG)
    assert found["How many dogs are there?"] == ("2", "There are 2 dogs.")
    assert found["How many animals are there?"] == ("3", "There are 3 animals.")
    assert not any("grapes" in question for question in questions(named_things.kind_count, GRAPES))


def test_held_out_wordings_are_not_trained_on() -> None:
    one = NamedScene(scene(DOG).items, (DOG,), KNOWN, random.Random(0), "train")
    wordings = {qa.question for _ in range(200) for qa in ask_about_names(one, 6)}
    assert "What am I looking at?" not in wordings
    assert "What is this?" in wordings


@pytest.mark.parametrize(
    ("word", "clause"),
    [("bus", "it is a bus"), ("scissors", "they are scissors"), ("bread", "it is bread")],
)
def test_it_is_agrees_in_number(word: str, clause: str) -> None:
    assert it_is(word) == clause
