"""Questions about what things are."""

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


def asked(skill: named_things.Skill, *shown: Concept) -> dict[str, tuple[str, str]]:
    made = (skill(scene(*shown, seed=seed)) for seed in range(300))
    return {qa.question: (qa.short, qa.sentence) for qa in made if qa}


def test_what_is_in_the_picture_names_everything() -> None:
    assert asked(named_things.name, DOG)["What is this?"] == ("dog", "It is a dog.")
    assert asked(named_things.name, GRAPES)["What is this?"] == ("grapes", "They are grapes.")
    several = asked(named_things.name, DOG, GRAPES, DOG)
    assert several["What do you see?"] == (
        "2 dogs and grapes",
        "The picture shows 2 dogs and grapes.",
    )
    assert "What is this?" not in several


def test_synonyms_are_as_good_as_names() -> None:
    found = asked(named_things.is_it, DOG)
    assert found["Is this a puppy?"] == ("yes", "Yes, it is a puppy.")
    assert found["Is this a cat?"] == ("no", "No, it is a dog.")


def test_kinds_are_asked_for_where_they_are_words() -> None:
    assert asked(named_things.kind, DOG)["What kind of thing is this?"] == (
        "animal",
        "It is an animal: a dog.",
    )
    assert asked(named_things.kind, BELL) == {}
    found = asked(named_things.kind_presence, CAT)
    assert found["Is it an animal?"] == ("yes", "Yes, there is a cat.")
    assert found["Is it a fruit?"] == ("no", "No, there is no fruit.")


def test_which_animal_has_an_answer_only_where_one_is_meant() -> None:
    assert asked(named_things.member, DOG)["What animal is this?"] == ("dog", "It is a dog.")
    assert asked(named_things.member, BELL)["What animal is this?"][0] == "none"
    assert "What animal is this?" not in asked(named_things.member, DOG, CAT)


def test_counts_are_of_names_and_of_kinds() -> None:
    found = asked(named_things.kind_count, DOG, CAT, DOG)
    assert found["How many dogs are there?"] == ("2", "There are 2 dogs.")
    assert found["How many animals are there?"] == ("3", "There are 3 animals.")
    assert not any("grapes" in question for question in asked(named_things.kind_count, GRAPES))


def test_held_out_wordings_are_not_trained_on() -> None:
    one = NamedScene(scene(DOG).items, (DOG,), KNOWN, random.Random(0), "train")
    questions = {qa.question for _ in range(200) for qa in ask_about_names(one, 6)}
    assert "What am I looking at?" not in questions
    assert "What is this?" in questions


@pytest.mark.parametrize(
    ("word", "said"),
    [("bus", "it is a bus"), ("scissors", "they are scissors"), ("bread", "it is bread")],
)
def test_it_is(word: str, said: str) -> None:
    assert it_is(word) == said
