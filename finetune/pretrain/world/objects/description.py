"""Skills on the whole picture: captions, statements to judge, follow-ups, unknowable facts."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from finetune.pretrain.world.objects.context import ObjectContext
from finetune.pretrain.world.objects.position import (
    OPPOSITE,
    PLACE_PHRASES,
    holds_between,
    place_name,
)
from finetune.pretrain.world.scene import QA, Item
from finetune.pretrain.world.wording.phrasing import capitalized, join_words, with_article
from finetune.pretrain.world.wording.references import (
    Reference,
    absent_reference,
    filled_fields,
    kind_and_colour,
    random_reference,
    reference_to,
    unique_reference,
)

Claim = tuple[str, bool]
"""A sentence without its full stop, and whether it is true."""


def statement(context: ObjectContext) -> QA | None:
    """Ask whether a sentence about the picture is true."""
    truth = context.rng.random() < 0.5
    ref = random_reference(context.items, context.words, context.rng)
    roll = context.rng.random()
    if roll < 0.35:
        claim = claim_existence(context, ref, truth)
    elif roll < 0.65 and context.all_have("colour"):
        claim = claim_colour(context, truth)
    elif roll < 0.85:
        claim = claim_number(context, ref, truth)
    else:
        claim = claim_relation(context)
    return claim and judge_claim(context, *claim)


def claim_existence(context: ObjectContext, ref: Reference, truth: bool) -> Claim | None:
    """Claim that something is in the picture: `ref`, or something absent if not `truth`."""
    named = ref if truth else absent_reference(context.items, context.words, context.rng)
    if named is None or not named.is_clear(context.items):
        return None
    context.count(named)
    return f"there is {with_article(named.text)}", truth


def claim_colour(context: ObjectContext, truth: bool) -> Claim | None:
    """Claim that an object has a colour: its own, or a wrong one if not `truth`."""
    item = context.rng.choice(context.items)
    ref = context.refer_to(item, ("colour",))
    if ref is None:
        return None
    wrong = [c for c in context.words.colours if c != item.colour]
    return f"the {ref.text} is {item.colour if truth else context.rng.choice(wrong)}", truth


def claim_number(context: ObjectContext, ref: Reference, truth: bool) -> Claim | None:
    """Claim how many objects match `ref`: the right number, or another one if not `truth`."""
    if not ref.is_clear(context.items):
        return None
    here = number = context.count(ref)
    if not truth:
        number = max(1, number + context.rng.choice((-1, 1, 2)))
    one = f"there is exactly one {ref.text}"
    return one if number == 1 else f"there are {number} {ref.plural_text}", number == here


def claim_relation(context: ObjectContext) -> Claim | None:
    """Claim that two objects are placed to each other in a certain way, which may be false."""
    pair = context.pick_two()
    relation = context.rng.choice(list(OPPOSITE))
    if pair is None:
        return None
    one, first, other, second = pair
    holds = holds_between(one, relation, other)
    if holds is None:
        return None
    return f"the {first.text} is {relation} the {second.text}", holds


def judge_claim(context: ObjectContext, claim: str, truth: bool) -> QA:
    """Ask whether a claim is true."""
    words = {"c": claim, "C": capitalized(claim)}
    if context.rng.random() < 0.5:
        question = context.phrase(
            ("True or false: {c}.", "True or false? {C}.", "{C}. True or false?"), **words
        )
        word = "true" if truth else "false"
        return QA("statement", question, word, f"That is {word}.")
    question = context.phrase(
        (
            "Is it true that {c}?",
            "Is this true of the {pic}: {c}?",
            '"{C}." Is that right?',
            "Is this sentence true of the {pic}? {C}.",
            "Would you say that {c}?",
            "~Is it right that {c}?",
        ),
        **words,
    )
    if truth:
        return QA("statement", question, "yes", "Yes, that is true.")
    return QA("statement", question, "no", "No, that is not true.")


def unknowable(context: ObjectContext) -> QA | None:
    """Ask for something that no picture can tell."""
    item = context.rng.choice(context.items)
    ref = unique_reference(item, context.items, context.words.noun, context.rng) or Reference(
        context.words.noun
    )
    question = context.phrase(
        (
            "Who drew the {r}?",
            "When was this {pic} made?",
            "How much does the {r} cost?",
            "What does the {r} weigh?",
            "What is behind the {r}?",
            "Who owns the {r}?",
            "What is the {r} thinking?",
            "What will happen next?",
            "Why is the {r} there?",
            "How old is the {r}?",
            "What is the {r} made of?",
            "Where was this {pic} taken?",
            "What does the {r} smell like?",
            "What is the name of the artist?",
            "How heavy is the {r}?",
            "~How much does this {pic} cost?",
        ),
        r=ref.text,
    )
    return QA("unknowable", question, "unknown", "I cannot tell that from the picture.")


def followup(context: ObjectContext) -> QA | None:
    """Ask a second question whose pronoun refers to the object of the first."""
    item = context.pick_with("kind")
    ref = item and context.refer_to(item)
    if not item or not ref:
        return None
    options = questions_about_it(context, item, ref)
    if not options:
        return None
    thing = with_article(ref.text)
    opening = QA("existence", f"Is there {thing}?", "yes", f"Yes, there is {thing}.")
    return QA("followup", *context.rng.choice(options), before=(opening,))


def questions_about_it(
    context: ObjectContext, item: Item, ref: Reference
) -> list[tuple[str, str, str]]:
    """Return what can be asked about an object that `ref` named: (question, short, sentence)."""
    options = []
    if item.colour and not ref.colour:
        question = context.rng.choice(
            ("What colour is it?", "Which colour is it?", "And what colour is it?")
        )
        options.append((question, item.colour, f"It is {item.colour}."))
    if not ref.kind:
        question = context.rng.choice(
            (f"What {context.words.noun} is it?", "What is it?", "And what is it?")
        )
        options.append((question, item.word, f"It is {with_article(item.word)}."))
    if item.fill and not ref.fill:
        question = "Is it solid, striped or outlined?"
        options.append((question, item.fill, f"It is {item.fill}."))
    where = place_name(item)
    if where:
        question = context.rng.choice(("Where is it?", "And where is it?"))
        options.append((question, where, f"It is {PLACE_PHRASES[where]}."))
    return options


def left_to_right(context: ObjectContext) -> list[Item] | None:
    """Return the objects from left to right, or None where the order is unclear.

    It is unclear where two objects with different names are almost at the same place.
    """
    row = sorted(context.items, key=lambda i: i.centre[0])
    for one, other in pairwise(row):
        if other.centre[0] - one.centre[0] < 0.04 and context.name_of(one) != context.name_of(
            other
        ):
            return None
    return row


def colours(context: ObjectContext) -> QA | None:
    """Ask which colours there are."""
    row = left_to_right(context)
    if row is None:
        return None
    found = list(dict.fromkeys(i.colour for i in row))
    if not found or "" in found or len(found) > 4:
        return None
    context.about += row
    question = context.phrase(
        (
            "Which colours do you see?",
            "What colours are the {n}s?",
            "Name the colours of the {n}s.",
            "~Which colours are the {n}s?",
        ),
        n=context.words.noun,
    )
    answer = join_words(found)
    return QA(
        "colours",
        question,
        answer,
        f"The colours are {answer}." if len(found) > 1 else f"The only colour is {answer}.",
    )


def grouped(context: ObjectContext, row: Sequence[Item]) -> str:
    """Return an enumeration such as "2 red stars and a blue circle", in order of appearance."""
    groups = Counter(kind_and_colour(i, context.words.noun) for i in row)
    return join_words(
        [
            with_article(ref.text) if n == 1 else f"{n} {ref.plural_text}"
            for ref, n in groups.items()
        ]
    )


def caption(context: ObjectContext) -> QA | None:
    """Ask for a caption of one sentence."""
    row = left_to_right(context)
    if row is None or len(row) > 6:
        return None
    context.about += row
    question = context.phrase(
        (
            "Describe the {pic} briefly.",
            "What is in the {pic}?",
            "What do you see?",
            "Give a short caption of the {pic}.",
            "What does the {pic} show?",
            "Caption this {pic}.",
            "Describe the {pic} in one sentence.",
            "Sum up the {pic}.",
            "~What can you see?",
        )
    )
    return QA("caption", question, "", f"The picture shows {grouped(context, row)}.")


def describe(context: ObjectContext) -> QA | None:
    """Ask for a detailed description with the place of every object."""
    row = left_to_right(context)
    if row is None or len(row) > 5 or not all(map(place_name, row)):
        return None
    context.about += row
    number = len(row)
    noun = context.words.noun
    parts = [f"There is 1 {noun}." if number == 1 else f"There are {number} {noun}s."]
    for item in row:
        where = place_name(item)
        ref = reference_to(item, filled_fields(item), noun)
        parts.append(f"{capitalized(with_article(ref.text))} is {PLACE_PHRASES[where]}.")
    question = context.phrase(
        (
            "Describe the {pic} in detail.",
            "Describe everything you see.",
            "What exactly is in the {pic}?",
            "Give a full description of the {pic}.",
            "~Describe everything in the {pic}.",
        )
    )
    return QA("describe", question, "", " ".join(parts))
