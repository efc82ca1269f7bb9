"""Questions about things: what is asked of any objects, the time, and sorts of things."""

import random

from finetune.pretrain.world.drawing.paint import COLOURS, plural
from finetune.pretrain.world.objects import questions
from finetune.pretrain.world.rooms.things.kinds import KINDS, SORTS, THINGS
from finetune.pretrain.world.scene import QA, Scene, Split
from finetune.pretrain.world.wording.false_premises import stranger
from finetune.pretrain.world.wording.phrasing import article, capital, say
from finetune.pretrain.world.wording.references import unique_ref

WEIGHTS: dict[str, float] = {
    "existence": 10,
    "negation": 4,
    "colour": 9,
    "kind": 10,
    "confirm": 6,
    "count": 9,
    "position": 6,
    "what_at": 4,
    "side": 2,
    "relation": 7,
    "beside": 5,
    "extreme": 4,
    "superlative": 3,
    "bigger": 3,
    "more": 2,
    "odd": 3,
    "same": 2,
    "all_same": 1,
    "logic": 4,
    "statement": 5,
    "colours": 1,
    "caption": 4,
    "describe": 1.5,
    "false_premise": 5,
    "unknowable": 1,
    "followup": 4,
}


def about_things(scene: Scene, rng: random.Random, split: Split) -> list[QA]:
    """What `Room.ask` promises, for the things room."""
    words = questions.Vocabulary("object", KINDS, tuple(COLOURS))
    asked = questions.about_items(scene, rng, split, words, count=10, weights=WEIGHTS)
    asked += [qa for about in (clock_time, sort_of, sort_count) if (qa := about(scene, rng, split))]
    if rng.random() < 0.5:
        asked.append(stranger("things", rng, split))
    return list({qa.question: qa for qa in asked}.values())


def clock_time(scene: Scene, rng: random.Random, split: Split) -> QA | None:
    clocks = [item for item in scene.items if item.kind == "clock"]
    if not clocks:
        return None
    ref = unique_ref(clocks[0], scene.items, "object", rng)
    if ref is None:
        return None
    name = ref.text if ref.kind else ref.text.replace("object", "clock")
    hour = clocks[0].extra["drawn"].facts["hour"]
    if rng.random() < 0.25:
        told = hour if rng.random() < 0.5 else rng.randint(1, 12)
        yes = "Yes" if told == hour else "No"
        sentence = f"{yes}, it is {hour} o'clock."
        return QA("time", f"Is it {told} o'clock?", yes.lower(), sentence, about=(clocks[0],))
    question = say(
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


def sort_of(scene: Scene, rng: random.Random, split: Split) -> QA | None:
    """Which animal (vehicle, fruit) there is, where there is one kind of it or none."""
    sort = rng.choice(SORTS)
    found = {item.kind for item in scene.items if THINGS[item.kind].sort == sort}
    if len(found) > 1 or (not found and rng.random() < 0.8):
        return None
    question = say(
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
        s=sort,
    )
    if not found:
        return QA("false_premise", question, "none", f"There is no {sort} in the picture.")
    kind = found.pop()
    return QA("shape", question, kind, f"It is {article(kind)}.")


def sort_count(scene: Scene, rng: random.Random, split: Split) -> QA | None:
    sort = rng.choice(SORTS)
    number = sum(THINGS[item.kind].sort == sort for item in scene.items)
    if number == 0 and rng.random() < 0.7:
        return None
    several = plural(sort)
    if rng.random() < 0.5:
        question = say(
            (
                "Is there {a}{in_pic}?",
                "Do you see {a}?",
                "Are there any {p}?",
                "Is any of them {a}?",
                "~Do you see {a}{in_pic}?",
            ),
            rng,
            split,
            a=article(sort),
            p=several,
        )
        there = f"Yes, there is {article(sort)}." if number else f"No, there is no {sort}."
        return QA("existence", question, "yes" if number else "no", there, counts=(number,))
    question = say(
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
    sentence = {0: f"There are no {several}.", 1: f"There is 1 {sort}."}.get(
        number, f"There are {number} {several}."
    )
    return QA("count", question, str(number), capital(sentence), counts=(number,))
