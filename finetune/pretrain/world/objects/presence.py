"""Skills on presence and number: existence, negation, counts, logic, false premises."""

from finetune.pretrain.world.objects.context import ObjectContext
from finetune.pretrain.world.scene import QA
from finetune.pretrain.world.wording.phrasing import join_words, with_article
from finetune.pretrain.world.wording.references import (
    Reference,
    absent_reference,
    random_reference,
    unique_reference,
)


def maybe_absent(context: ObjectContext) -> Reference | None:
    """Return a reference that matches nothing in half of the cases; None if it is unclear."""
    ref: Reference | None = random_reference(context.items, context.words, context.rng)
    if context.rng.random() < 0.5:
        ref = absent_reference(context.items, context.words, context.rng)
    return ref if ref and ref.is_clear(context.items) else None


def existence(context: ObjectContext) -> QA | None:
    """Ask whether something is in the picture."""
    ref = maybe_absent(context)
    if ref is None:
        return None
    here = bool(context.count(ref))
    thing = with_article(ref.text)
    question = context.phrase(
        (
            "Is there {a}{in_pic}?",
            "Is there {a}?",
            "Do you see {a}?",
            "Does the {pic} contain {a}?",
            "Is {a} present?",
            "Can you see {a}{in_pic}?",
            "Does the {pic} show {a}?",
            "Are there any {s}{in_pic}?",
            "Is {a} in the {pic}?",
            "Has the {pic} got {a}?",
            "Can I find {a} here?",
            "Could you find me {a}?",
            "Have you found {a}?",
            "Any {s}{in_pic}?",
            "Do you notice {a}{in_pic}?",
            "~Can you find {a}{in_pic}?",
        ),
        a=thing,
        s=ref.plural_text,
    )
    sentence = f"Yes, there is {thing}." if here else f"No, there is no {ref.text}."
    return QA("existence", question, "yes" if here else "no", sentence)


def negation(context: ObjectContext) -> QA | None:
    """Ask with "not" or "no" whether something is in the picture."""
    ref = maybe_absent(context)
    if ref is None:
        return None
    here = bool(context.count(ref))
    thing = with_article(ref.text)
    question = context.phrase(
        (
            "Is there not {a}{in_pic}?",
            "Is there no {r}{in_pic}?",
            "Is no {r} present?",
            "Does the {pic} not contain {a}?",
            "Is there not {a}?",
            "Does the {pic} not show {a}?",
            "Is {a} missing from the {pic}?",
            "Is it true that no {r} is here?",
            "~Is no {r} in the {pic}?",
        ),
        a=thing,
        r=ref.text,
    )
    sentence = f"No, there is {thing}." if here else f"Yes, there is no {ref.text}."
    return QA("negation", question, "no" if here else "yes", sentence)


def count(context: ObjectContext) -> QA | None:
    """Ask how many objects match a description."""
    roll = context.rng.random()
    ref: Reference | None = Reference(context.words.noun)
    if roll > 0.3:
        ref = random_reference(context.items, context.words, context.rng)
    if roll > 0.94:
        ref = absent_reference(context.items, context.words, context.rng)
    if ref is None or not ref.is_clear(context.items):
        return None
    number = context.count(ref)
    question = context.phrase(
        (
            "How many {s} are there{in_pic}?",
            "How many {s} are there?",
            "How many {s} do you see?",
            "Count the {s}.",
            "What is the number of {s}?",
            "How many {s} does the {pic} contain?",
            "How many {s} can you count?",
            "Give me the number of {s}.",
            "~How many {s} are in the {pic}?",
        ),
        s=ref.plural_text,
    )
    there = {0: f"There are no {ref.plural_text}.", 1: f"There is 1 {ref.text}."}
    sentence = there.get(number, f"There are {number} {ref.plural_text}.")
    return QA("count", question, str(number), sentence)


def logic(context: ObjectContext) -> QA | None:
    """Ask a question with "not", "and" or "or"."""
    if context.rng.random() < 0.3 and context.all_have("colour"):
        return count_other_colours(context)
    first, second = (
        random_reference(context.items, context.words, context.rng)
        if context.rng.random() < 0.5
        else absent_reference(context.items, context.words, context.rng)
        for _ in range(2)
    )
    if first is None or second is None or first == second:
        return None
    refs = [first, second]
    if not all(r.is_clear(context.items) for r in refs):
        return None
    here = [bool(context.count(r)) for r in refs]
    both = context.rng.random() < 0.5
    yes = all(here) if both else any(here)
    a, b = (with_article(r.text) for r in refs)
    question = context.phrase(
        (
            "Is there {a} {w} {b}?",
            "Is there {a} {w} {b}{in_pic}?",
            "Do you see {a} {w} {b}?",
            "~Does the {pic} contain {a} {w} {b}?",
        ),
        a=a,
        b=b,
        w="and" if both else "or",
    )
    if yes:
        present = join_words([x for x, h in zip((a, b), here, strict=True) if h])
        return QA("logic", question, "yes", f"Yes, there is {present}.")
    missing = join_words([r.text for r, h in zip(refs, here, strict=True) if not h], "or")
    return QA("logic", question, "no", f"No, there is no {missing}.")


def count_other_colours(context: ObjectContext) -> QA:
    """Ask how many objects do not have a certain colour."""
    item = context.rng.choice(context.items)
    number = sum(i.colour != item.colour for i in context.items)
    context.counts.append(number)
    question = context.phrase(
        (
            "How many {n}s are not {c}?",
            "How many {n}s are there that are not {c}?",
            "~What is the number of {n}s that are not {c}?",
        ),
        n=context.words.noun,
        c=item.colour,
    )
    sentence = f"{number} of them {'is' if number == 1 else 'are'} not {item.colour}."
    return QA("logic", question, str(number), sentence)


def false_premise(context: ObjectContext) -> QA | None:
    """Ask about an object that is not in the picture."""
    absent = absent_reference(context.items, context.words, context.rng)
    if absent is None or not absent.kind:
        return None
    context.count(absent)
    templates = [
        "Where is the {r}?",
        "How big is the {r}?",
        "Is the {r} big or small?",
        "Is the {r} on the left or on the right?",
        "~Where do you see the {r}?",
    ]
    if not absent.colour and context.all_have("colour"):
        templates += ["What colour is the {r}?", "What is the colour of the {r}?"] * 2
        templates += ["Is the {r} {c}?"] * 2
    if context.all_have("fill") and not absent.fill:
        templates += ["Is the {r} solid, striped or outlined?"]
    other = context.pick_with("kind")
    ref = other and unique_reference(other, context.items, context.words.noun, context.rng)
    if ref:
        templates += ["Is the {r} left of the {o}?", "Is the {r} bigger than the {o}?"]
    colour = context.rng.choice(context.words.colours) if context.words.colours else ""
    question = context.phrase(templates, r=absent.text, o=ref.text if ref else "", c=colour)
    return QA("false_premise", question, "none", f"There is no {absent.text} in the picture.")
