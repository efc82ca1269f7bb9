"""Skills that compare objects: superlatives, sizes, numbers, the odd one out, sameness."""

from collections import Counter

from finetune.pretrain.world.objects.context import ObjectContext
from finetune.pretrain.world.scene import QA, Item
from finetune.pretrain.world.wording.phrasing import with_article
from finetune.pretrain.world.wording.references import Reference


def extent(item: Item) -> float:
    """Return the side of a square of the same area, as a fraction of the picture."""
    return item.area**0.5


def extreme(context: ObjectContext) -> QA | None:
    """Ask for the leftmost, rightmost, topmost or lowest object."""
    if len(context.items) < 2:
        return None
    word, axis, last = context.rng.choice(
        (
            ("leftmost", 0, False),
            ("rightmost", 0, True),
            ("topmost", 1, False),
            ("lowest", 1, True),
        )
    )
    ranked = sorted(context.items, key=lambda i: i.centre[axis], reverse=last)
    if abs(ranked[0].centre[axis] - ranked[1].centre[axis]) < 0.06:
        return None
    return ask_about_winner(context, ranked[0], word, "extreme")


def superlative(context: ObjectContext) -> QA | None:
    """Ask for the biggest or smallest object."""
    if len(context.items) < 2:
        return None
    last = context.rng.random() < 0.5
    ranked = sorted(context.items, key=extent, reverse=last)
    if max(extent(i) for i in ranked[:2]) < 1.2 * min(extent(i) for i in ranked[:2]):
        return None
    word = context.rng.choice(("biggest", "largest") if last else ("smallest",))
    return ask_about_winner(context, ranked[0], word, "superlative")


def ask_about_winner(context: ObjectContext, item: Item, word: str, skill: str) -> QA:
    """Ask for the object that a superlative such as "leftmost" or "biggest" fits."""
    context.about.append(item)
    noun = context.words.noun
    roll = context.rng.random()
    if item.colour and roll < 0.35:
        question = context.phrase(
            (
                "What colour is the {w} {n}?",
                "What is the colour of the {w} {n}?",
                "~Which colour is the {w} {n}?",
            ),
            w=word,
            n=noun,
        )
        return QA(skill, question, item.colour, f"The {word} {noun} is {item.colour}.")
    name = context.name_of(item)
    question = context.phrase(
        (
            "What is the {w} {n}?",
            "Which {n} is the {w}?",
            "Which is the {w} {n}?",
            "Name the {w} {n}.",
            "~What {n} is the {w}?",
        ),
        w=word,
        n=noun,
    )
    return QA(skill, question, name, f"The {word} {noun} is {with_article(name)}.")


def bigger(context: ObjectContext) -> QA | None:
    """Ask which of two objects is bigger, or whether one is."""
    pair = context.pick_two()
    if pair is None:
        return None
    one, first, other, second = pair
    sizes = extent(one), extent(other)
    if max(sizes) < 1.22 * min(sizes) or first.size or second.size:
        return None
    word = context.rng.choice(("bigger", "smaller", "larger"))
    wins = (sizes[0] > sizes[1]) == (word != "smaller")
    if context.rng.random() < 0.5:
        yes = "Yes" if wins else "No"
        truth = word if wins else ("smaller" if word != "smaller" else "bigger")
        return QA(
            "compare",
            f"Is the {first.text} {word} than the {second.text}?",
            yes.lower(),
            f"{yes}, the {first.text} is {truth} than the {second.text}.",
        )
    best, rest = (first, second) if wins else (second, first)
    question = context.phrase(
        ("Which is {w}, the {a} or the {b}?", "What is {w}: the {a} or the {b}?"),
        w=word,
        a=first.text,
        b=second.text,
    )
    return QA("compare", question, best.text, f"The {best.text} is {word} than the {rest.text}.")


def more(context: ObjectContext) -> QA | None:
    """Ask whether there are more objects of one kind or colour than of another."""
    if len(context.items) < 3:
        return None
    field = context.rng.choice([f for f in ("kind", "colour") if context.all_have(f)] or [""])
    counts = Counter(getattr(i, field) for i in context.items) if field else Counter()
    if len(counts) < 2:
        return None
    a, b = context.rng.sample(sorted(counts), 2)
    if counts[a] == counts[b] and context.rng.random() < 0.6:
        return None
    context.counts += [counts[a], counts[b]]
    refs = [Reference(context.words.noun, **{field: value}).plural_text for value in (a, b)]
    word = context.rng.choice(("more", "fewer"))
    holds = counts[a] > counts[b] if word == "more" else counts[a] < counts[b]
    question = context.phrase(
        (
            "Are there {w} {a} than {b}?",
            "Are there {w} {a} than {b}{in_pic}?",
            "Do you see {w} {a} than {b}?",
            "~Does the {pic} contain {w} {a} than {b}?",
        ),
        w=word,
        a=refs[0],
        b=refs[1],
    )
    yes = "Yes" if holds else "No"
    return QA(
        "compare",
        question,
        yes.lower(),
        f"{yes}, there are {counts[a]} {refs[0]} and {counts[b]} {refs[1]}."
        if min(counts[a], counts[b]) > 1
        else f"{yes}.",
    )


def odd(context: ObjectContext) -> QA | None:
    """Ask for the odd one out, which differs from all others in one attribute."""
    if len(context.items) < 3:
        return None
    for field in context.rng.sample(("kind", "colour", "fill"), 3):
        counts = Counter(getattr(i, field) for i in context.items)
        if len(counts) == 2 and min(counts.values()) == 1 and "" not in counts:
            item = next(i for i in context.items if counts[getattr(i, field)] == 1)
            others = [f for f in ("kind", "colour", "fill") if f != field]
            if any(len({getattr(i, f) for i in context.items}) > 1 for f in others):
                continue
            context.about.append(item)
            name = context.name_of(item)
            question = context.phrase(
                (
                    "Which {n} is the odd one out?",
                    "What is the odd one out?",
                    "Which {n} does not belong?",
                    "Which one is different?",
                    "~Which {n} is different?",
                ),
                n=context.words.noun,
            )
            return QA("odd", question, name, f"The {name} is the odd one out.")
    return None


def same(context: ObjectContext) -> QA | None:
    """Ask whether two objects have the same colour."""
    pair = context.pick_two()
    if pair is None:
        return None
    one, first, other, second = pair
    if not (one.colour and other.colour) or first.colour or second.colour:
        return None
    yes = one.colour == other.colour
    question = context.phrase(
        (
            "Are the {a} and the {b} the same colour?",
            "Do the {a} and the {b} have the same colour?",
            "Is the {a} the same colour as the {b}?",
            "~Are the {a} and the {b} of the same colour?",
        ),
        a=first.text,
        b=second.text,
    )
    sentence = (
        f"Yes, both are {one.colour}."
        if yes
        else f"No, the {first.text} is {one.colour} and the {second.text} is {other.colour}."
    )
    return QA("same", question, "yes" if yes else "no", sentence)


def all_same(context: ObjectContext) -> QA | None:
    """Ask whether all objects have the same kind or colour."""
    field = context.rng.choice([f for f in ("kind", "colour") if context.all_have(f)] or [""])
    if len(context.items) < 2 or not field:
        return None
    values = {getattr(i, field) for i in context.items}
    if len(values) > 1 and context.rng.random() < 0.4:
        return None
    noun, word = context.words.noun, {"kind": "kind", "colour": "colour"}[field]
    question = context.phrase(
        (
            "Do all {n}s have the same {w}?",
            "Are all the {n}s of the same {w}?",
            "Are all {n}s the same {w}?",
        ),
        n=noun,
        w=word,
    )
    if len(values) > 1:
        return QA("same", question, "no", f"No, the {noun}s have different {word}s.")
    value = next(iter(values))
    ref = Reference(noun, **{field: value})
    return QA(
        "same",
        question,
        "yes",
        f"Yes, they are all {value if field == 'colour' else ref.plural_text}.",
    )
