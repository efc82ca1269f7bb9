"""Skills on the appearance of one object: its colour, fill, size and kind."""

from finetune.pretrain.world.objects.context import ObjectContext
from finetune.pretrain.world.scene import FILLS, QA, SIZES, Item
from finetune.pretrain.world.wording.phrasing import with_article

ATTRIBUTE_TEMPLATES = {
    "colour": (
        "What colour is the {r}?",
        "What is the colour of the {r}?",
        "Which colour is the {r}?",
        "What colour is the {r}{in_pic}?",
        "Which colour does the {r} have?",
        "Tell me the colour of the {r}.",
        "The {r} is which colour?",
        "What colour has the {r} got?",
        "Name the colour of the {r}.",
        "~Which colour is the {r}{in_pic}?",
    ),
    "fill": (
        "Is the {r} solid, striped or outlined?",
        "How is the {r} filled?",
        "What fill does the {r} have?",
        "What pattern does the {r} have?",
        "~Which fill does the {r} have?",
    ),
    "size": (
        "Is the {r} big or small?",
        "How big is the {r}?",
        "What size is the {r}?",
        "Is the {r} small or big?",
        "What is the size of the {r}?",
        "~Which size is the {r}?",
    ),
}

CONFIRM_TEMPLATES = {
    "colour": (
        "Is the {r} {v}?",
        "Is the {r} {v}?",
        "Is the {r} {v}{in_pic}?",
        "Is the colour of the {r} {v}?",
        "The {r} is {v}, isn't it?",
        "~Is {v} the colour of the {r}?",
    ),
    "kind": ("Is the {r} {a}?", "Is the {r} {a}{in_pic}?", "~The {r} is {a}, isn't it?"),
    "fill": ("Is the {r} {v}?", "Is the {r} {v}{in_pic}?", "~The {r} is {v}, isn't it?"),
    "size": ("Is the {r} {v}?", "Is the {r} {v}{in_pic}?", "~The {r} is {v}, isn't it?"),
}
CONFIRM_TEMPLATES_ONE_OBJECT = {
    "colour": ("Is it {v}?", "Is this {n} {v}?"),
    "kind": ("Is this {a}?", "Is it {a}?", "Is this {n} {a}?"),
    "fill": ("Is it {v}?",),
    "size": ("Is it {v}?",),
}


def colour(context: ObjectContext) -> QA | None:
    """Ask for the colour of an object."""
    return attribute(context, "colour")


def fill(context: ObjectContext) -> QA | None:
    """Ask for the fill of an object: solid, striped or outlined."""
    return attribute(context, "fill")


def size(context: ObjectContext) -> QA | None:
    """Ask for the size of an object: small or big."""
    return attribute(context, "size")


def attribute(context: ObjectContext, field: str) -> QA | None:
    """Ask for one attribute of an object: "colour", "fill" or "size"."""
    item = context.pick_with(field)
    ref = item and context.refer_to(item, (field,))
    if not item or not ref:
        return None
    value = getattr(item, field)
    question = context.phrase(ATTRIBUTE_TEMPLATES[field], r=ref.text)
    return QA(field, question, value, f"The {ref.text} is {value}.")


def confirm(context: ObjectContext) -> QA | None:
    """Ask whether an object has the attribute that the question names."""
    field = context.rng.choice(("colour", "colour", "kind", "fill", "size"))
    item = context.pick_with(field)
    ref = item and context.refer_to(item, (field,))
    if not item or not ref or (field == "fill" and not context.all_have("fill")):
        return None
    value = asked = getattr(item, field)
    if context.rng.random() < 0.5:
        asked = context.rng.choice([other for other in values(context, field) if other != value])
    templates = [*CONFIRM_TEMPLATES[field]]
    if len(context.items) == 1:
        templates += CONFIRM_TEMPLATES_ONE_OBJECT[field]
    words = {"r": ref.text, "v": asked, "a": with_article(asked), "n": context.words.noun}
    question = context.phrase(templates, **words)
    truth = with_article(value) if field == "kind" else value
    sentence = f"{'Yes' if asked == value else 'No'}, the {ref.text} is {truth}."
    return QA("confirm", question, "yes" if asked == value else "no", sentence)


def values(context: ObjectContext, field: str) -> tuple[str, ...]:
    """Return every value that a field can have."""
    words = context.words
    return {"colour": words.colours, "kind": words.kinds, "fill": FILLS, "size": SIZES}[field]


def kind(context: ObjectContext) -> QA | None:
    """Ask what an object is."""
    item = context.pick_with("kind")
    ref = item and context.refer_to(item, ("kind",))
    if not item or not ref:
        return None
    noun = context.words.noun
    rest = ref.text.removesuffix(noun).strip()
    if not rest:
        return kind_of_only_object(context, item)
    question = context.phrase(
        (
            "What is the {r}?",
            "What {n} is {rest}?",
            "Which {n} is {rest}?",
            "What is the {rest} {n}?",
            "What is the {r}{in_pic}?",
            "What kind of {n} is the {rest} one?",
            "What {n} is the {rest} one?",
            "Name the {r}.",
            "~Which {n} is the {rest} one?",
        ),
        r=ref.text,
        rest=rest,
        n=noun,
    )
    return QA("shape", question, item.word, f"The {ref.text} is {with_article(item.word)}.")


def kind_of_only_object(context: ObjectContext, item: Item) -> QA:
    """Ask what the only object of the scene is."""
    question = context.phrase(
        (
            "What {n} is in the {pic}?",
            "What {n} does the {pic} contain?",
            "What {n} is this?",
            "What {n} is present?",
            "Which {n} is it?",
            "What {n} do you see?",
            "What is the {n}{in_pic}?",
            "~Which {n} does the {pic} contain?",
        ),
        n=context.words.noun,
    )
    return QA("shape", question, item.word, f"It is {with_article(item.word)}.")
