"""Skills on position: where an object is, and how two objects are placed to each other."""

from finetune.pretrain.world.objects.context import ObjectContext
from finetune.pretrain.world.scene import QA, Item
from finetune.pretrain.world.wording.phrasing import capitalized, with_article

PLACE_PHRASES = {
    "top left": "at the top left",
    "top": "at the top",
    "top right": "at the top right",
    "left": "on the left",
    "middle": "in the middle",
    "right": "on the right",
    "bottom left": "at the bottom left",
    "bottom": "at the bottom",
    "bottom right": "at the bottom right",
}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATION_PHRASES = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "higher than"),
    "below": ("below", "lower than", "under"),
}


def place_name(item: Item, margin: float = 0.045) -> str:
    """Return the ninth of the picture that holds an object's centre, such as "top left".

    Returns "" where the centre is within `margin` of the border between two ninths.
    """
    names = []
    for value, words in zip(
        item.centre, (("left", "", "right"), ("top", "", "bottom")), strict=True
    ):
        if min(abs(value - 1 / 3), abs(value - 2 / 3)) < margin:
            return ""
        names.append(words[min(2, int(value * 3))])
    return f"{names[1]} {names[0]}".strip() or "middle"


def holds_between(one: Item, relation: str, other: Item) -> bool | None:
    """Return whether `one` is, say, "left of" `other`; None where they are almost level."""
    axis = 0 if relation in ("left of", "right of") else 1
    gap = other.centre[axis] - one.centre[axis]
    if abs(gap) < 0.09:
        return None
    return (gap > 0) == (relation in ("left of", "above"))


def position(context: ObjectContext) -> QA | None:
    """Ask where an object is."""
    item = context.rng.choice(context.items)
    ref, where = context.refer_to(item), place_name(item)
    if not ref or not where:
        return None
    question = context.phrase(
        (
            "Where is the {r}?",
            "Where is the {r}{in_pic}?",
            "In which part of the {pic} is the {r}?",
            "Where can I find the {r}?",
            "What is the position of the {r}?",
            "~Where do you see the {r}?",
        ),
        r=ref.text,
    )
    return QA("position", question, where, f"The {ref.text} is {PLACE_PHRASES[where]}.")


def what_at(context: ObjectContext) -> QA | None:
    """Ask what is at a certain place."""
    item = context.rng.choice(context.items)
    where = place_name(item)
    if not where or any(place_name(o) in (where, "") for o in context.items if o is not item):
        return None
    question = context.phrase(
        (
            "What is {at} of the {pic}?",
            "What is {at}?",
            "Which {n} is {at}?",
            "What do you see {at} of the {pic}?",
            "Name the {n} {at}.",
            "~Which {n} do you see {at}?",
        ),
        at=PLACE_PHRASES[where],
        n=context.words.noun,
    )
    context.about.append(item)
    name = context.name_of(item)
    return QA(
        "position", question, name, f"{capitalized(with_article(name))} is {PLACE_PHRASES[where]}."
    )


def side(context: ObjectContext) -> QA | None:
    """Ask which half of the picture an object is in."""
    item = context.rng.choice(context.items)
    ref = context.refer_to(item)
    axis = context.rng.randrange(2)
    value = item.centre[axis]
    if not ref or abs(value - 0.5) < 0.07:
        return None
    sides = (("left", "right"), ("top", "bottom"))[axis]
    truth = sides[value > 0.5]
    if context.rng.random() < 0.5:
        on = "on the" if axis == 0 else "at the"
        question = f"Is the {ref.text} {on} {sides[0]} or {on} {sides[1]}?"
        return QA("position", question, truth, f"The {ref.text} is {on} {truth}.")
    asked = context.rng.choice(sides)
    yes = asked == truth
    half = f"{asked} half of the " + context.rng.choice(("picture", "image"))
    question = context.phrase(
        ("Is the {r} in the {h}?", "Is the {r} on the {s} side?"), r=ref.text, h=half, s=asked
    )
    sentence = f"{'Yes' if yes else 'No'}, it is {'on' if axis == 0 else 'at'} the {truth}."
    return QA("position", question, "yes" if yes else "no", sentence)


def relation(context: ObjectContext) -> QA | None:
    """Ask how two objects are placed to each other."""
    pair = context.pick_two()
    if pair is None:
        return None
    one, first, other, second = pair
    relation = context.rng.choice(list(OPPOSITE))
    holds = holds_between(one, relation, other)
    if holds is None:
        return None
    truth = relation if holds else OPPOSITE[relation]
    if context.rng.random() < 0.3:
        ways = ("left of", "right of") if "of" in relation else ("above", "below")
        a, b = (w.removesuffix(" of") for w in ways)
        templates = (
            (
                f"Is the {first.text} to the {a} or to the {b} of the {second.text}?",
                f"Is the {first.text} {a} or {b} of the {second.text}?",
            )
            if "of" in relation
            else (f"Is the {first.text} above or below the {second.text}?",)
        )
        return QA(
            "relation",
            context.rng.choice(templates),
            truth.removesuffix(" of"),
            f"The {first.text} is {truth} the {second.text}.",
        )
    question = context.phrase(
        (
            "Is the {a} {rel} the {b}?",
            "Is the {a} {rel} the {b}?",
            "Does the {a} stand {rel} the {b}?",
            "Would you say that the {a} is {rel} the {b}?",
            "~Do you see the {a} {rel} the {b}?",
        ),
        a=first.text,
        b=second.text,
        rel=context.rng.choice(RELATION_PHRASES[relation]),
    )
    sentence = f"{'Yes' if holds else 'No'}, the {first.text} is {truth} the {second.text}."
    return QA("relation", question, "yes" if holds else "no", sentence)


def beside(context: ObjectContext) -> QA | None:
    """Ask what is, say, left of an object, where that is exactly one other object."""
    if not 2 <= len(context.items) <= 5:
        return None
    anchor = context.rng.choice(context.items)
    ref = context.refer_to(anchor)
    relation = context.rng.choice(list(OPPOSITE))
    holds = [holds_between(o, relation, anchor) for o in context.items if o is not anchor]
    if not ref or None in holds or holds.count(True) != 1:
        return None
    item = [o for o in context.items if o is not anchor][holds.index(True)]
    context.about.append(item)
    name = context.name_of(item)
    question = context.phrase(
        (
            "What is {rel} the {r}?",
            "Which {n} is {rel} the {r}?",
            "What do you see {rel} the {r}?",
            "What stands {rel} the {r}?",
            "~Which {n} do you see {rel} the {r}?",
        ),
        rel=context.rng.choice(RELATION_PHRASES[relation]),
        r=ref.text,
        n=context.words.noun,
    )
    return QA(
        "relation",
        question,
        name,
        f"{capitalized(with_article(name))} is {relation} the {ref.text}.",
    )
