"""The questions of the things room: those about any objects, the time, categories of things."""

import random
from collections.abc import Mapping

from finetune.pretrain.world.drawing.paint import COLOURS
from finetune.pretrain.world.objects import (
    appearance,
    comparison,
    description,
    position,
    presence,
)
from finetune.pretrain.world.objects.context import Skill
from finetune.pretrain.world.objects.questions import ask_about_objects
from finetune.pretrain.world.rooms.things.kinds import CATEGORIES, KINDS, THINGS
from finetune.pretrain.world.scene import QA, Scene, Split
from finetune.pretrain.world.wording.false_premises import false_premise
from finetune.pretrain.world.wording.phrasing import fill_template, plural, with_article
from finetune.pretrain.world.wording.references import Vocabulary, unique_reference

WEIGHTS: Mapping[Skill, float] = {
    presence.existence: 10,
    presence.negation: 4,
    appearance.colour: 9,
    appearance.kind: 10,
    appearance.confirm: 6,
    presence.count: 9,
    position.position: 6,
    position.what_at: 4,
    position.side: 2,
    position.relation: 7,
    position.beside: 5,
    comparison.extreme: 4,
    comparison.superlative: 3,
    comparison.bigger: 3,
    comparison.more: 2,
    comparison.odd: 3,
    comparison.same: 2,
    comparison.all_same: 1,
    presence.logic: 4,
    description.statement: 5,
    description.colours: 1,
    description.caption: 4,
    description.describe: 1.5,
    presence.false_premise: 5,
    description.unknowable: 1,
    description.followup: 4,
}
"""How often each skill on objects is drawn for things."""


def ask(scene: Scene, rng: random.Random, split: Split) -> list[QA]:
    """Return questions about a scene of things."""
    words = Vocabulary("object", KINDS, tuple(COLOURS))
    asked = ask_about_objects(scene, rng, split, words, count=10, weights=WEIGHTS)
    for skill in (clock_time, category_member, category_count):
        if qa := skill(scene, rng, split):
            asked.append(qa)
    if rng.random() < 0.5:
        asked.append(false_premise("things", rng, split))
    return list({qa.question: qa for qa in asked}.values())


def clock_time(scene: Scene, rng: random.Random, split: Split) -> QA | None:
    """Ask for the time on the first clock of the scene."""
    clocks = [item for item in scene.items if item.kind == "clock"]
    if not clocks:
        return None
    reference = unique_reference(clocks[0], scene.items, "object", rng)
    if reference is None:
        return None
    name = reference.text if reference.kind else reference.text.replace("object", "clock")
    hour = clocks[0].extra["drawing"].facts["hour"]
    if rng.random() < 0.25:
        asked = hour if rng.random() < 0.5 else rng.randint(1, 12)
        yes = "Yes" if asked == hour else "No"
        sentence = f"{yes}, it is {hour} o'clock."
        return QA("time", f"Is it {asked} o'clock?", yes.lower(), sentence, about=(clocks[0],))
    question = fill_template(
        (
            "What time is it?",
            "What time does the {r} show?",
            "What is the time?",
            "What time is shown on the {r}?",
            "Which hour does the {r} show?",
            "Tell me the time.",
            "What does the {r} say the time is?",
            "Can you tell the time?",
            "~What time is shown?",
        ),
        rng,
        split,
        r=name,
    )
    sentence = f"It is {hour} o'clock."
    return QA("time", question, f"{hour} o'clock", sentence, about=(clocks[0],))


def category_member(scene: Scene, rng: random.Random, split: Split) -> QA | None:
    """Ask which animal (vehicle, fruit) there is, if it is one kind at most."""
    category = rng.choice(CATEGORIES)
    found = {item.kind for item in scene.items if THINGS[item.kind].category == category}
    if len(found) > 1 or (not found and rng.random() < 0.8):
        return None
    question = fill_template(
        (
            "What {s} is in the {pic}?",
            "Which {s} do you see?",
            "What {s} is this?",
            "Which {s} is in the {pic}?",
            "What kind of {s} is there?",
            "Name the {s}{in_pic}.",
            "~What {s} do you see?",
        ),
        rng,
        split,
        s=category,
    )
    if not found:
        return QA("false_premise", question, "none", f"There is no {category} in the picture.")
    kind = found.pop()
    return QA("shape", question, kind, f"It is {with_article(kind)}.")


def category_count(scene: Scene, rng: random.Random, split: Split) -> QA | None:
    """Ask whether there are animals (vehicles, fruit), or how many."""
    category = rng.choice(CATEGORIES)
    number = sum(THINGS[item.kind].category == category for item in scene.items)
    if number == 0 and rng.random() < 0.7:
        return None
    several = plural(category)
    if rng.random() < 0.5:
        question = fill_template(
            (
                "Is there {a}{in_pic}?",
                "Do you see {a}?",
                "Are there any {p}?",
                "Is any of them {a}?",
                "~Do you see {a}{in_pic}?",
            ),
            rng,
            split,
            a=with_article(category),
            p=several,
        )
        there = (
            f"Yes, there is {with_article(category)}." if number else f"No, there is no {category}."
        )
        return QA("existence", question, "yes" if number else "no", there, counts=(number,))
    question = fill_template(
        (
            "How many {p} are there?",
            "How many {p} are in the {pic}?",
            "How many {p} do you see?",
            "Count the {p}.",
            "Give me the number of {p}.",
            "~How many {p} are there in the {pic}?",
        ),
        rng,
        split,
        p=several,
    )
    sentence = {0: f"There are no {several}.", 1: f"There is 1 {category}."}.get(
        number, f"There are {number} {several}."
    )
    return QA("count", question, str(number), sentence, counts=(number,))
