"""Dialogues: pictures that come later, ordinals, small talk in between."""

import random

from finetune.pretrain.world import QA
from finetune.pretrain.world.dialogues import ORDINALS, make_dialogue, with_ordinal
from finetune.pretrain.world.mixture import World, open_rooms
from finetune.pretrain.world.wording.small_talk import OTHER_LANGUAGES, small_talk

ROOMS, _ = open_rooms(None, None)
WORLD = World({"wide shapes": 2.0, "things": 1.0, "writing": 1.0}, ROOMS, varied=True)


def dialogues(count: int, length: int | None = None):
    for number in range(count):
        rng = random.Random(number)
        scenes = [WORLD.make_scene(3 * number + k) for k in range(rng.randint(1, 3))]
        yield make_dialogue(WORLD, scenes, rng, length=length)


def test_every_picture_comes_once_and_in_order() -> None:
    for dialogue in dialogues(60):
        assert sum(turn.new_picture for turn in dialogue.turns) == len(dialogue.scenes)
        assert all(not turn.qa.before for turn in dialogue.turns)


def test_dialogues_have_up_to_thirty_turns_and_those_that_questions_need() -> None:
    lengths = [len(dialogue.turns) for dialogue in dialogues(20, length=30)]
    assert min(lengths) >= 30
    assert max(lengths) < 70


def test_earlier_pictures_are_asked_about_by_their_number() -> None:
    """An ordinal never refers to a picture that has not come yet."""
    mentioned = set()
    for dialogue in dialogues(80):
        shown = 0
        for turn in dialogue.turns:
            shown += turn.new_picture
            for k, ordinal in enumerate(ORDINALS):
                if f"{ordinal} picture" in turn.qa.question and len(dialogue.scenes) > 1:
                    assert shown > k, turn
                    mentioned.add(ordinal)
    assert mentioned == set(ORDINALS)


def test_an_ordinal_changes_the_picture_and_not_the_answer() -> None:
    qa = QA("colour", "What colour is the star?", "red", "The star is red.")
    for k in range(10):
        asked = with_ordinal(qa, "second", random.Random(k))
        assert asked is not None
        assert asked.short == "red"
        assert "the second picture" in asked.question.lower()
    absent = QA("false_premise", "Where is it?", "none", "There is no cat in the picture.")
    asked = with_ordinal(absent, "first", random.Random(0))
    assert asked is not None
    assert asked.sentence == "There is no cat in the first picture."
    described = QA("caption", "Describe the image.", "", "The picture shows a cat.")
    asked = with_ordinal(described, "third", random.Random(0))
    assert asked == QA("caption", "Describe the third image.", "", "The third picture shows a cat.")


def test_followups_and_quotations_get_no_ordinal() -> None:
    before = (QA("count", "How many cats?", "2", "There are 2 cats."),)
    followup = QA("followup", "What colour are they?", "red", "They are red.", before)
    quotation = QA("statement", '"There is a cat." Is that right?', "yes", "Yes.")
    assert with_ordinal(followup, "first", random.Random(0)) is None
    assert with_ordinal(quotation, "first", random.Random(0)) is None


def test_other_languages_and_sums_are_declined_in_english() -> None:
    made = [small_talk(random.Random(k), "train") for k in range(400)]
    foreign = [qa for qa in made if qa.skill == "other_language"]
    assert {qa.question for qa in foreign} <= set(OTHER_LANGUAGES)
    assert len({qa.sentence for qa in foreign}) == 1
    sums = [qa for qa in made if any(c.isdigit() for c in qa.question)]
    assert len(sums) > 10
    assert all("only answer questions about pictures" in qa.sentence for qa in sums)
