"""Further wordings of a room's questions, as people ask: synonyms, politeness, references.

The rooms ask about objects by one name each. Here some questions get synonyms ("ball", "box",
"item"), and questions are added that name everything in a picture, that point back at objects
("they", "the other one"), and that state how many objects have something in common.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from finetune.pretrain.world.objects.context import ObjectContext
from finetune.pretrain.world.objects.description import grouped, left_to_right
from finetune.pretrain.world.objects.position import (
    OPPOSITE,
    PLACE_PHRASES,
    holds_between,
    place_name,
)
from finetune.pretrain.world.pairs import VOCABULARIES
from finetune.pretrain.world.scene import QA, Scene, Split
from finetune.pretrain.world.wording.phrasing import (
    capitalized,
    fill_template,
    join_words,
    plural,
    with_article,
)
from finetune.pretrain.world.wording.references import random_reference

SYNONYM_SHARE, POLITE_SHARE = 0.25, 0.08
"""The shares of questions with a synonym, and with words of politeness."""
KIND_SYNONYMS = {
    "circle": ("ball", "dot"),
    "ellipse": ("oval",),
    "square": ("box", "block"),
    "rectangle": ("box",),
    "diamond": ("rhombus",),
    "semicircle": ("half circle",),
    "cross": ("plus sign",),
}
_BOXES = frozenset({"square", "rectangle", "rounded square", "rounded rectangle"})
NOUN_SYNONYMS = {
    "shape": ("item", "object", "figure", "thing"),
    "object": ("item", "thing"),
    "thing": ("item", "object"),
}
_ASKS_FOR_NOUN = re.compile(r"\b(what|which|same|name the|kind of) (shape|object|thing)\b", re.I)
OVERVIEWS = (
    "What is this?",
    "What's this?",
    "What is that?",
    "What do you see?",
    "What do you see here?",
    "What's in the {pic}?",
    "What is in this {pic}?",
    "What can you see?",
    "What is shown here?",
    "What are these?",
    "Tell me what is in the {pic}.",
    "What does this {pic} show?",
    "What am I looking at?",
    "~What is on the {pic}?",
    "~What is there to see?",
)
POLITE = (
    "Please tell me: {q}",
    "Can you tell me: {q}",
    "Excuse me, {q}",
    "I wonder: {q}",
    "Hey, {q}",
    "{Q} Thanks!",
    "{Q} Please.",
    "OK. {Q}",
    "~Be so kind: {q}",
)
MOST_GROUPS = 6
"""The most different objects that an overview names; the rest is counted."""


def varied(
    room_questions: Sequence[QA], scene: Scene, rng: random.Random, split: Split
) -> list[QA]:
    """Return a room's questions with some reworded and some added."""
    asked = list(room_questions)
    if scene.items and scene.room in VOCABULARIES and scene.room != "icons":
        context = ObjectContext(scene, rng, split, VOCABULARIES[scene.room])
        skills = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=4)
        added = [overview(context), *(skill(context) for skill in skills)]
        asked += [replace(qa, about=(), counts=()) for qa in added if qa is not None]
    elif scene.room not in ("icons", "photos"):  # these name everything themselves
        asked = [_as_overview(qa, rng, split) for qa in asked]
    asked = [with_synonym(qa, scene, rng) if rng.random() < SYNONYM_SHARE else qa for qa in asked]
    return [polite(qa, rng, split) if rng.random() < POLITE_SHARE else qa for qa in asked]


def polite(qa: QA, rng: random.Random, split: Split) -> QA:
    """Return a question with words of politeness around it."""
    lower = f"{qa.question[:1].lower()}{qa.question[1:]}"
    if '"' in qa.question or ". " in qa.question:
        return qa
    return replace(qa, question=fill_template(POLITE, rng, split, q=lower, Q=qa.question))


def with_synonym(qa: QA, scene: Scene, rng: random.Random) -> QA:
    """Return a question, its earlier turns and its answers with another word for something.

    Only words of the question are replaced, and only where the other word has a single meaning.
    """
    words = _synonyms(qa, scene)
    if not words:
        return qa
    word, others = rng.choice(words)
    other = rng.choice(others)
    before = tuple(_reworded(q, word, other) for q in qa.before)
    return replace(_reworded(qa, word, other), before=before)


def _reworded(qa: QA, word: str, other: str) -> QA:
    return replace(
        qa,
        question=replace_word(qa.question, word, other),
        short=replace_word(qa.short, word, other),
        sentence=replace_word(qa.sentence, word, other),
    )


def _synonyms(qa: QA, scene: Scene) -> list[tuple[str, tuple[str, ...]]]:
    """Return the words of a question that have synonyms in this scene."""
    text = " ".join(q.question for q in (*qa.before, qa))
    found = []
    if scene.room in ("shapes", "wide shapes"):
        boxes = {item.kind for item in scene.items} & _BOXES
        boxes |= {kind for kind in _BOXES if _word(kind).search(text)}
        for kind, synonyms in KIND_SYNONYMS.items():
            # Whether a rounded square is a box is a matter of opinion.
            unclear = kind in _BOXES and boxes != {kind}
            # A name that is asked for is answered with the plain word.
            asked_for = kind not in qa.question and re.search(rf"\b{kind}\b", qa.short)
            if _word(kind).search(text) and not unclear and not asked_for:
                found.append((kind, synonyms))
    if scene.room in VOCABULARIES:
        noun = VOCABULARIES[scene.room].noun
        if _word(noun).search(text) and not _ASKS_FOR_NOUN.search(text):
            found.append((noun, NOUN_SYNONYMS[noun]))
    if scene.room == "writing" and "sign" in scene.extra and "sign" in text:
        shape, posted = scene.extra["sign"][1], scene.extra["sign"][4]
        if shape == "rectangle" and not posted:
            found.append(("sign", ("label", "button")))
    return found


def _word(word: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:(an?) )?({re.escape(word)}|{re.escape(plural(word))})\b", re.I)


def replace_word(text: str, word: str, other: str) -> str:
    """Replace a noun in the singular and plural by another, with the right article."""

    def replacement(match: re.Match[str]) -> str:
        article, found = match.groups()
        new = other if found.lower() == word else plural(other)
        if found[0].isupper():
            new = capitalized(new)
        if not article:
            return new
        new = with_article(new)
        return capitalized(new) if article[0].isupper() else new

    return _word(word).sub(replacement, text)


def _as_overview(qa: QA, rng: random.Random, split: Split) -> QA:
    """Return a caption as the answer to "What is this?", half of the time."""
    if qa.skill != "caption" or rng.random() < 0.5:
        return qa
    return replace(qa, question=fill_template(OVERVIEWS, rng, split))


def overview(context: ObjectContext) -> QA | None:
    """Ask what the picture shows; the answer names everything."""
    row = left_to_right(context)
    if row is None:
        return None
    question = context.phrase(OVERVIEWS)
    if len(row) == 1:
        name = context.name_of(row[0])
        return QA("overview", question, name, f"It is {with_article(name)}.")
    names = list(dict.fromkeys(context.name_of(item) for item in row))
    named = [item for item in row if context.name_of(item) in names[:MOST_GROUPS]]
    listing = grouped(context, named)
    rest = len(row) - len(named)
    if rest:
        noun = context.words.noun if rest == 1 else plural(context.words.noun)
        listing = f"{listing.replace(' and ', ', ')} and {rest} other {noun}"
    return QA("overview", question, listing, f"The picture shows {listing}.")


def they(context: ObjectContext) -> QA | None:
    """Count objects of a kind, then ask for the colours that "they" have."""
    numbers = Counter(item.kind for item in context.items)
    kinds = [kind for kind, number in numbers.items() if number > 1]
    if not kinds or not context.all_have("colour"):
        return None
    kind = context.rng.choice(kinds)
    items = [item for item in context.items if item.kind == kind]
    colours = list(dict.fromkeys(i.colour for i in sorted(items, key=lambda i: i.centre[0])))
    several, number = plural(kind), str(len(items))
    opening = context.rng.choice((f"How many {several} are there?", f"Count the {several}."))
    before = (QA("count", opening, number, f"There are {number} {several}."),)
    if len(colours) <= 2 and context.rng.random() < 0.6:
        question = context.rng.choice(("What colour are they?", "Which colours do they have?"))
        answer = join_words(sorted(colours))
        return QA("followup", question, answer, f"They are {answer}.", before=before)
    asked = context.rng.choice(colours)
    question = context.rng.choice((f"Are they all {asked}?", f"Are all of them {asked}?"))
    if len(colours) == 1:
        return QA("followup", question, "yes", f"Yes, they are all {asked}.", before=before)
    right = sum(item.colour == asked for item in items)
    are = "is" if right == 1 else "are"
    sentence = f"No, only {right} of them {are} {asked}."
    return QA("followup", question, "no", sentence, before=before)


def the_other_one(context: ObjectContext) -> QA | None:
    """Ask about one of two objects, then about "the other one"."""
    if len(context.items) != 2:
        return None
    one, other = context.rng.sample(context.items, 2)
    field = context.rng.choice(("colour", "kind", "place"))
    ref = context.refer_to(one, (field,) if field != "place" else ())
    if ref is None or not ref.kind + ref.colour + ref.size + ref.fill:
        return None
    if field == "colour" and one.colour and other.colour:
        first = (f"What colour is the {ref.text}?", one.colour, f"The {ref.text} is {one.colour}.")
        then = ("And the other one?", "What colour is the other one?")
        answer = (other.colour, f"The other one is {other.colour}.")
    elif field == "kind":
        name = with_article(one.word)
        first = (f"What is the {ref.text}?", one.word, f"The {ref.text} is {name}.")
        then = ("And the other one?", "What is the other one?")
        answer = (other.word, f"The other one is {with_article(other.word)}.")
    elif field == "place" and (here := place_name(one)) and (there := place_name(other)):
        first = (f"Where is the {ref.text}?", here, f"The {ref.text} is {PLACE_PHRASES[here]}.")
        then = ("And the other one?", "Where is the other one?")
        answer = (there, f"The other one is {PLACE_PHRASES[there]}.")
    else:
        return None
    skill = {"colour": "colour", "kind": "shape", "place": "position"}[field]
    question = context.rng.choice(then)
    return QA("followup", question, *answer, before=(QA(skill, *first),))


def related_pair(context: ObjectContext) -> QA | None:
    """Ask whether there is something left of (above, ...) something else."""
    if len(context.items) < 2:
        return None
    first, second = (random_reference(context.items, context.words, context.rng) for _ in range(2))
    if not (first.is_clear(context.items) and second.is_clear(context.items)):
        return None
    relation = context.rng.choice(list(OPPOSITE))
    holds = [
        holds_between(one, relation, other)
        for one in first.match(context.items)
        for other in second.match(context.items)
        if one is not other
    ]
    if not holds or (None in holds and True not in holds):
        return None
    yes = True in holds
    a, b = with_article(first.text), with_article(second.text)
    question = context.phrase(
        (
            "Is there {a} {r} {b}?",
            "Is {a} {r} {b}?",
            "Do you see {a} {r} {b}?",
            "There is {a} {r} {b}, right?",
            "~Can you find {a} {r} {b}?",
        ),
        a=a,
        b=b,
        r=relation,
    )
    if yes:
        return QA("relation", question, "yes", f"Yes, there is {a} {relation} {b}.")
    return QA("relation", question, "no", f"No, there is no {first.text} {relation} {b}.")


def quantity(context: ObjectContext) -> QA | None:
    """State how many objects match a description, or how many of a kind have a colour."""
    kinds = [kind for kind, n in Counter(item.kind for item in context.items).items() if n > 1]
    if kinds and context.all_have("colour") and context.rng.random() < 0.5:
        claim, truth = _claim_of_all(context, context.rng.choice(kinds))
    else:
        ref = random_reference(context.items, context.words, context.rng)
        if not ref.is_clear(context.items):
            return None
        number = len(ref.match(context.items))
        asked = max(1, number + context.rng.choice((0, 0, 0, -1, 1, 2)))
        word = context.rng.choice(("exactly", "at least", "more than", "fewer than", "at most"))
        if word == "fewer than" and asked == 1:
            asked = 2
        named = ref.text if asked == 1 else ref.plural_text
        truth = {
            "exactly": number == asked,
            "at least": number >= asked,
            "more than": number > asked,
            "fewer than": number < asked,
            "at most": number <= asked,
        }[word]
        claim = f"there {'is' if asked == 1 else 'are'} {word} {_NUMBERS[asked]} {named}"
    question = context.phrase(
        ("Is it true that {c}?", "{C}.", "{C}. True?", "{C}, right?", "~Is it the case that {c}?"),
        c=claim,
        C=capitalized(claim),
    )
    if truth:
        return QA("statement", question, "yes", "Yes, that is true.")
    return QA("statement", question, "no", "No, that is not true.")


_NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *map(str, range(11, 40)),
)
"""How numbers are written in sentences."""


def _claim_of_all(context: ObjectContext, kind: str) -> tuple[str, bool]:
    """Return a claim about all objects of a kind, and whether it is true."""
    items = [item for item in context.items if item.kind == kind]
    colour = context.rng.choice(items if context.rng.random() < 0.7 else context.items).colour
    right = sum(item.colour == colour for item in items)
    several = plural(kind)
    return context.rng.choice(
        (
            (f"all {several} are {colour}", right == len(items)),
            (f"every {kind} is {colour}", right == len(items)),
            (f"none of the {several} is {colour}", right == 0),
            (f"at least one of the {several} is {colour}", right > 0),
            (f"there is {with_article(kind)} that is not {colour}", right < len(items)),
        )
    )


Skill = Callable[[ObjectContext], QA | None]
WEIGHTS: Mapping[Skill, float] = {they: 2, the_other_one: 3, related_pair: 3, quantity: 3}
"""How often each skill is drawn, besides an overview."""
