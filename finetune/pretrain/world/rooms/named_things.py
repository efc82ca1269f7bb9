"""Questions about what things are: their names, their synonyms and their kinds.

For rooms whose pictures show known concepts, icons and photographs. A skill is a function of a
`NamedScene`; it returns None where the scene does not allow it.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from finetune.pretrain.world.rooms.concepts import (
    Concept,
    is_countable,
    it_is,
    it_may_be,
    noun_phrase,
)
from finetune.pretrain.world.scene import QA, Item, Split
from finetune.pretrain.world.wording.phrasing import (
    capitalized,
    fill_template,
    join_words,
    plural,
)


@dataclass(frozen=True)
class NamedScene:
    """What a picture shows, and how questions about it are worded.

    `shown` are the concepts of `items`, in the same order; `candidates` may be asked for.
    """

    items: tuple[Item, ...]
    shown: tuple[Concept, ...]
    candidates: Sequence[Concept]
    rng: random.Random
    split: Split
    sure: bool = True
    """Whether answers name what is shown without "may"; only for a single thing."""

    def phrase(self, templates: Sequence[str], **values: object) -> str:
        """Fill one of the templates; see `fill_template`."""
        return fill_template(templates, self.rng, self.split, **values)

    @property
    def words(self) -> frozenset[str]:
        """The names and kinds of everything in the picture."""
        return frozenset(word for concept in self.shown for word in concept.words)

    def clause(self, word: str) -> str:
        """Return a clause such as "it is a dog", or "it may be a dog"."""
        return it_is(word) if self.sure else it_may_be(word)

    def absent(self, near: Concept) -> Concept:
        """Return a concept that is not in the picture, half of the time of the kind of `near`."""
        others = [c for c in self.candidates if not self.words & set(c.names)]
        same_kind = [c for c in others if c.kind == near.kind]
        return self.rng.choice(same_kind if same_kind and self.rng.random() < 0.5 else others)

    def kinds(self) -> list[str]:
        """Return the kinds that people use as words, in alphabetical order."""
        return sorted({c.kind for c in self.candidates if not c.kind.startswith("(")})


Skill = Callable[[NamedScene], QA | None]


def enumeration(shown: Sequence[Concept]) -> str:
    """Return an enumeration such as "a dog", "2 cats and an apple" or "grapes"."""
    groups = Counter(concept.name for concept in shown)
    parts = [
        noun_phrase(name) if number == 1 or not is_countable(name) else f"{number} {plural(name)}"
        for name, number in groups.items()
    ]
    return join_words(parts)


def name(scene: NamedScene) -> QA:
    """Ask what the picture shows; the answer names everything."""
    templates = [
        "What do you see?",
        "What is in the {pic}?",
        "What's in the {pic}?",
        "What does the {pic} show?",
        "What can you see here?",
        "What is shown in the {pic}?",
        "Tell me what you see.",
        "What is this a picture of?",
        "~What am I looking at?",
    ]
    if len(scene.items) == 1:
        templates += ["What is this?", "What is it?", "What is that?", "~What is this thing?"] * 2
    question = scene.phrase(templates)
    listing = enumeration(scene.shown)
    if len(scene.items) == 1:
        concept = scene.shown[0]
        sentence = f"{capitalized(scene.clause(concept.name))}."
        return QA("name", question, concept.name, sentence, about=scene.items)
    return QA("name", question, listing, f"The picture shows {listing}.", about=scene.items[:4])


def is_it(scene: NamedScene) -> QA | None:
    """Ask whether the only thing in the picture is what the question names, by any of its names."""
    if len(scene.items) != 1:
        return None
    concept = scene.shown[0]
    yes = scene.rng.random() < 0.5
    word = scene.rng.choice(concept.names if yes else scene.absent(concept).names)
    question = scene.phrase(
        (
            "Is this {a}?",
            "Is it {a}?",
            "Is that {a}?",
            "Does the {pic} show {a}?",
            "Is this {pic} of {a}?",
            "This is {a}, isn't it?",
            "~Could this be {a}?",
        ),
        a=noun_phrase(word),
    )
    no = "No" if scene.sure else "Probably not"
    sentence = f"{'Yes' if yes else no}, {scene.clause(word if yes else concept.name)}."
    return QA("is_it", question, "yes" if yes else "no", sentence, about=scene.items)


def presence(scene: NamedScene) -> QA:
    """Ask whether something is in the picture, by any of its names."""
    concept = scene.rng.choice(scene.shown)
    yes = scene.rng.random() < 0.5
    word = scene.rng.choice(concept.names if yes else scene.absent(concept).names)
    question = scene.phrase(
        (
            "Is there {a}{in_pic}?",
            "Do you see {a}?",
            "Can you see {a}{in_pic}?",
            "Does the {pic} contain {a}?",
            "Is {a} in the {pic}?",
            "~Can you find {a}?",
        ),
        a=noun_phrase(word),
    )
    number = sum(word in c.words for c in scene.shown)
    sentence = f"Yes, there is {noun_phrase(word)}." if yes else f"No, there is no {word}."
    return QA("existence", question, "yes" if yes else "no", sentence, counts=(number,))


def kind_presence(scene: NamedScene) -> QA:
    """Ask whether something of a kind is in the picture."""
    kinds = [c.kind for c in scene.shown if not c.kind.startswith("(")]
    others = [kind for kind in scene.kinds() if kind not in scene.words]
    yes = bool(kinds) and scene.rng.random() < 0.5
    word = scene.rng.choice(kinds if yes else others)
    templates = [
        "Is there {a}{in_pic}?",
        "Do you see {a}?",
        "Is there any {k}{in_pic}?",
        "~Does the {pic} show {a}?",
    ]
    if len(scene.items) == 1:
        templates += ["Is it {a}?", "Is this {a}?", "~Is that {a}?"]
    question = scene.phrase(templates, a=noun_phrase(word), k=word)
    number = sum(word in c.words for c in scene.shown)
    first = next((c for c in scene.shown if c.kind == word), None)
    if first is None:
        return QA("existence", question, "no", f"No, there is no {word}.", counts=(number,))
    sentence = f"Yes, there is {noun_phrase(first.name)}."
    return QA("existence", question, "yes", sentence, counts=(number,))


def member(scene: NamedScene) -> QA | None:
    """Ask which animal (fruit, tool) there is, if the picture shows one at most."""
    kind = scene.rng.choice(scene.shown).kind
    if kind.startswith("(") or scene.rng.random() < 0.15:
        kind = scene.rng.choice(scene.kinds())
    members = {c.name for c in scene.shown if kind in c.words}
    if len(members) > 1:
        return None
    question = scene.phrase(
        (
            "What {k} is this?",
            "Which {k} is it?",
            "What {k} is in the {pic}?",
            "Which {k} do you see?",
            "What kind of {k} is this?",
            "Name the {k}{in_pic}.",
            "~What {k} does the {pic} show?",
        ),
        k=kind,
    )
    if not members:
        return QA("false_premise", question, "none", f"There is no {kind} in the picture.")
    found = members.pop()
    about = tuple(i for i, c in zip(scene.items, scene.shown, strict=True) if c.name == found)
    return QA("name", question, found, f"{capitalized(scene.clause(found))}.", about=about[:4])


def kind(scene: NamedScene) -> QA | None:
    """Ask what kind of thing the only thing in the picture is."""
    concept = scene.shown[0]
    if len(scene.items) != 1 or concept.kind.startswith("("):
        return None
    question = scene.phrase(
        (
            "What kind of thing is this?",
            "What kind of thing is it?",
            "What sort of thing is this?",
            "What type of thing does the {pic} show?",
            "~What sort of thing is it?",
        )
    )
    sentence = f"{capitalized(scene.clause(concept.kind))}: {noun_phrase(concept.name)}."
    return QA("kind", question, concept.kind, sentence, about=scene.items)


def kind_count(scene: NamedScene) -> QA | None:
    """Ask how many things of a name or kind there are."""
    concept = scene.rng.choice(scene.shown)
    word = scene.rng.choice(concept.words)
    if scene.rng.random() < 0.1:
        word = scene.absent(concept).name
    if not all(map(is_countable, (word, *(c.name for c in scene.shown if word in c.words)))):
        return None
    number = sum(word in c.words for c in scene.shown)
    several = plural(word)
    question = scene.phrase(
        (
            "How many {p} are there?",
            "How many {p} are in the {pic}?",
            "How many {p} do you see?",
            "Count the {p}.",
            "~How many {p} can you see?",
        ),
        p=several,
    )
    there = {0: f"There are no {several}.", 1: f"There is 1 {word}."}
    sentence = there.get(number, f"There are {number} {several}.")
    return QA("count", question, str(number), sentence, counts=(number,))


WEIGHTS: Mapping[Skill, float] = {
    name: 6,
    is_it: 3,
    presence: 3,
    kind_presence: 3,
    member: 3,
    kind: 1,
    kind_count: 2,
}
"""How often each skill is drawn."""


def ask_about_names(
    scene: NamedScene, count: int, weights: Mapping[Skill, float] = WEIGHTS
) -> list[QA]:
    """Return up to `count` different questions; the first asks what the picture shows."""
    made: dict[str, QA] = {}
    skills = [name, *scene.rng.choices(list(weights), list(weights.values()), k=2 * count)]
    for skill in skills:
        qa = skill(scene)
        if qa is not None:
            made.setdefault(qa.question, qa)
        if len(made) == count:
            break
    return list(made.values())
