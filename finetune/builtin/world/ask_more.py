"""Questions on places, relations, comparisons, logic, and descriptions: see `ask`."""

import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from finetune.builtin.world.phrasing import article, capital, listed, say
from finetune.builtin.world.refs import (
    Ref,
    Vocabulary,
    absent_ref,
    fields_of,
    ref_of,
    some_ref,
    unique_ref,
)
from finetune.builtin.world.scene import QA, Item, Scene, Split

AT = {
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
SPOKEN = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "higher than"),
    "below": ("below", "lower than", "under"),
}


def place_name(item: Item, margin: float = 0.045) -> str:
    """Which ninth of the picture the centre is in; "" too near a border to say."""
    names = []
    for value, words in zip(
        item.centre, (("left", "", "right"), ("top", "", "bottom")), strict=True
    ):
        if min(abs(value - 1 / 3), abs(value - 2 / 3)) < margin:
            return ""
        names.append(words[min(2, int(value * 3))])
    return f"{names[1]} {names[0]}".strip() or "middle"


def related(one: Item, relation: str, other: Item) -> bool | None:
    """Whether `one` stands so to `other`; None when it is too close to say."""
    axis = 0 if relation in ("left of", "right of") else 1
    gap = other.centre[axis] - one.centre[axis]
    if abs(gap) < 0.09:
        return None
    return (gap > 0) == (relation in ("left of", "above"))


def extent(item: Item) -> float:
    return item.area**0.5


class More:
    """The skills that need more than one look; `ask.Asker` adds the simple ones."""

    def __init__(self, scene: Scene, rng: random.Random, split: Split, words: Vocabulary) -> None:
        self.items, self.rng, self.split, self.words = scene.items, rng, split, words
        self.about: list[Item] = []
        self.counts: list[int] = []
        """What the question in the making turns on: see `QA.about` and `QA.counts`."""

    def say(self, templates: Sequence[str], **values: object) -> str:
        return say(templates, self.rng, self.split, **values)

    def has(self, field: str) -> bool:
        return all(getattr(item, field) for item in self.items)

    def pick(self, field: str) -> Item | None:
        """Any item that has the field."""
        usable = [item for item in self.items if getattr(item, field)]
        return self.rng.choice(usable) if usable else None

    def unique(self, item: Item, without: Sequence[str] = ()) -> Ref | None:
        self.about.append(item)
        return unique_ref(item, self.items, self.words.noun, self.rng, without)

    def fitting(self, ref: Ref) -> int:
        """How many objects fit a description of the question."""
        self.counts.append(len(ref.match(self.items)))
        return self.counts[-1]

    def full(self, item: Item) -> str:
        """ "red star": what an item is called in answers."""
        fields = [f for f in ("kind", "colour") if getattr(item, f)]
        return ref_of(item, fields, self.words.noun).text

    def two(self) -> tuple[Item, Ref, Item, Ref] | None:
        """Two different objects and a unique reference to each."""
        if len(self.items) < 2:
            return None
        one, other = self.rng.sample(self.items, 2)
        first, second = self.unique(one), self.unique(other)
        return (one, first, other, second) if first and second else None

    # Places

    def position(self) -> QA | None:
        item = self.rng.choice(self.items)
        ref, where = self.unique(item), place_name(item)
        if not ref or not where:
            return None
        question = self.say(
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
        return QA("position", question, where, f"The {ref.text} is {AT[where]}.")

    def what_at(self) -> QA | None:
        item = self.rng.choice(self.items)
        where = place_name(item)
        if not where or any(place_name(o) in (where, "") for o in self.items if o is not item):
            return None
        question = self.say(
            (
                "What is {at} of the {pic}?",
                "What is {at}?",
                "Which {n} is {at}?",
                "What do you see {at} of the {pic}?",
                "Name the {n} {at}.",
                "~Which {n} do you see {at}?",
            ),
            at=AT[where],
            n=self.words.noun,
        )
        self.about.append(item)
        name = self.full(item)
        return QA("position", question, name, f"{capital(article(name))} is {AT[where]}.")

    def side(self) -> QA | None:
        item = self.rng.choice(self.items)
        ref = self.unique(item)
        axis = self.rng.randrange(2)
        value = item.centre[axis]
        if not ref or abs(value - 0.5) < 0.07:
            return None
        sides = (("left", "right"), ("top", "bottom"))[axis]
        truth = sides[value > 0.5]
        if self.rng.random() < 0.5:
            on = "on the" if axis == 0 else "at the"
            question = f"Is the {ref.text} {on} {sides[0]} or {on} {sides[1]}?"
            return QA("position", question, truth, f"The {ref.text} is {on} {truth}.")
        asked = self.rng.choice(sides)
        yes = asked == truth
        half = f"{asked} half of the " + self.rng.choice(("picture", "image"))
        question = self.say(
            ("Is the {r} in the {h}?", "Is the {r} on the {s} side?"), r=ref.text, h=half, s=asked
        )
        sentence = f"{'Yes' if yes else 'No'}, it is {'on' if axis == 0 else 'at'} the {truth}."
        return QA("position", question, "yes" if yes else "no", sentence)

    def relation(self) -> QA | None:
        pair = self.two()
        if pair is None:
            return None
        one, first, other, second = pair
        relation = self.rng.choice(list(OPPOSITE))
        holds = related(one, relation, other)
        if holds is None:
            return None
        truth = relation if holds else OPPOSITE[relation]
        if self.rng.random() < 0.3:
            ways = ("left of", "right of") if "of" in relation else ("above", "below")
            a, b = (w.removesuffix(" of") for w in ways)
            forms = (
                (
                    f"Is the {first.text} to the {a} or to the {b} of the {second.text}?",
                    f"Is the {first.text} {a} or {b} of the {second.text}?",
                )
                if "of" in relation
                else (f"Is the {first.text} above or below the {second.text}?",)
            )
            return QA(
                "relation",
                self.rng.choice(forms),
                truth.removesuffix(" of"),
                f"The {first.text} is {truth} the {second.text}.",
            )
        question = self.say(
            (
                "Is the {a} {rel} the {b}?",
                "Is the {a} {rel} the {b}?",
                "Does the {a} stand {rel} the {b}?",
                "Would you say that the {a} is {rel} the {b}?",
                "~Do you see the {a} {rel} the {b}?",
            ),
            a=first.text,
            b=second.text,
            rel=self.rng.choice(SPOKEN[relation]),
        )
        sentence = f"{'Yes' if holds else 'No'}, the {first.text} is {truth} the {second.text}."
        return QA("relation", question, "yes" if holds else "no", sentence)

    def beside(self) -> QA | None:
        """What is left of X, where there is just one such thing."""
        if not 2 <= len(self.items) <= 5:
            return None
        anchor = self.rng.choice(self.items)
        ref = self.unique(anchor)
        relation = self.rng.choice(list(OPPOSITE))
        holds = [related(o, relation, anchor) for o in self.items if o is not anchor]
        if not ref or None in holds or sum(holds) != 1:
            return None
        item = [o for o in self.items if o is not anchor][holds.index(True)]
        self.about.append(item)
        name = self.full(item)
        question = self.say(
            (
                "What is {rel} the {r}?",
                "Which {n} is {rel} the {r}?",
                "What do you see {rel} the {r}?",
                "What stands {rel} the {r}?",
                "~Which {n} do you see {rel} the {r}?",
            ),
            rel=self.rng.choice(SPOKEN[relation]),
            r=ref.text,
            n=self.words.noun,
        )
        return QA(
            "relation", question, name, f"{capital(article(name))} is {relation} the {ref.text}."
        )

    def extreme(self) -> QA | None:
        if len(self.items) < 2:
            return None
        word, axis, last = self.rng.choice(
            (
                ("leftmost", 0, False),
                ("rightmost", 0, True),
                ("topmost", 1, False),
                ("lowest", 1, True),
            )
        )
        ranked = sorted(self.items, key=lambda i: i.centre[axis], reverse=last)
        if abs(ranked[0].centre[axis] - ranked[1].centre[axis]) < 0.06:
            return None
        return self.about_best(ranked[0], word, "extreme")

    def superlative(self) -> QA | None:
        if len(self.items) < 2:
            return None
        last = self.rng.random() < 0.5
        ranked = sorted(self.items, key=extent, reverse=last)
        if max(extent(i) for i in ranked[:2]) < 1.2 * min(extent(i) for i in ranked[:2]):
            return None
        word = self.rng.choice(("biggest", "largest") if last else ("smallest",))
        return self.about_best(ranked[0], word, "superlative")

    def about_best(self, item: Item, word: str, skill: str) -> QA:
        self.about.append(item)
        noun = self.words.noun
        roll = self.rng.random()
        if item.colour and roll < 0.35:
            question = self.say(
                (
                    "What colour is the {w} {n}?",
                    "What is the colour of the {w} {n}?",
                    "~Which colour is the {w} {n}?",
                ),
                w=word,
                n=noun,
            )
            return QA(skill, question, item.colour, f"The {word} {noun} is {item.colour}.")
        name = self.full(item)
        question = self.say(
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
        return QA(skill, question, name, f"The {word} {noun} is {article(name)}.")

    # Comparing

    def bigger(self) -> QA | None:
        pair = self.two()
        if pair is None:
            return None
        one, first, other, second = pair
        sizes = extent(one), extent(other)
        if max(sizes) < 1.22 * min(sizes) or first.size or second.size:
            return None
        word = self.rng.choice(("bigger", "smaller", "larger"))
        wins = (sizes[0] > sizes[1]) == (word != "smaller")
        if self.rng.random() < 0.5:
            yes = "Yes" if wins else "No"
            truth = word if wins else ("smaller" if word != "smaller" else "bigger")
            return QA(
                "compare",
                f"Is the {first.text} {word} than the {second.text}?",
                yes.lower(),
                f"{yes}, the {first.text} is {truth} than the {second.text}.",
            )
        best, rest = (first, second) if wins else (second, first)
        question = self.say(
            ("Which is {w}, the {a} or the {b}?", "What is {w}: the {a} or the {b}?"),
            w=word,
            a=first.text,
            b=second.text,
        )
        return QA(
            "compare", question, best.text, f"The {best.text} is {word} than the {rest.text}."
        )

    def more(self) -> QA | None:
        if len(self.items) < 3:
            return None
        field = self.rng.choice([f for f in ("kind", "colour") if self.has(f)] or [""])
        counts = Counter(getattr(i, field) for i in self.items) if field else Counter()
        if len(counts) < 2:
            return None
        a, b = self.rng.sample(sorted(counts), 2)
        if counts[a] == counts[b] and self.rng.random() < 0.6:
            return None
        self.counts += [counts[a], counts[b]]
        refs = [Ref(self.words.noun, **{field: value}).texts for value in (a, b)]
        word = self.rng.choice(("more", "fewer"))
        holds = counts[a] > counts[b] if word == "more" else counts[a] < counts[b]
        question = self.say(
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

    def odd(self) -> QA | None:
        if len(self.items) < 3:
            return None
        for field in self.rng.sample(("kind", "colour", "fill"), 3):
            counts = Counter(getattr(i, field) for i in self.items)
            if len(counts) == 2 and min(counts.values()) == 1 and "" not in counts:
                item = next(i for i in self.items if counts[getattr(i, field)] == 1)
                others = [f for f in ("kind", "colour", "fill") if f != field]
                if any(len({getattr(i, f) for i in self.items}) > 1 for f in others):
                    continue
                self.about.append(item)
                name = self.full(item)
                question = self.say(
                    (
                        "Which {n} is the odd one out?",
                        "What is the odd one out?",
                        "Which {n} does not belong?",
                        "Which one is different?",
                        "~Which {n} is different?",
                    ),
                    n=self.words.noun,
                )
                return QA("odd", question, name, f"The {name} is the odd one out.")
        return None

    def same(self) -> QA | None:
        pair = self.two()
        if pair is None:
            return None
        one, first, other, second = pair
        if not (one.colour and other.colour) or first.colour or second.colour:
            return None
        yes = one.colour == other.colour
        question = self.say(
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

    def all_same(self) -> QA | None:
        field = self.rng.choice([f for f in ("kind", "colour") if self.has(f)] or [""])
        if len(self.items) < 2 or not field:
            return None
        values = {getattr(i, field) for i in self.items}
        if len(values) > 1 and self.rng.random() < 0.4:
            return None
        noun, word = self.words.noun, {"kind": "kind", "colour": "colour"}[field]
        question = self.say(
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
        ref = Ref(noun, **{field: value})
        return QA(
            "same",
            question,
            "yes",
            f"Yes, they are all {value if field == 'colour' else ref.texts}.",
        )

    # Logic

    def logic(self) -> QA | None:
        if self.rng.random() < 0.3 and self.has("colour"):
            item = self.rng.choice(self.items)
            number = sum(i.colour != item.colour for i in self.items)
            self.counts.append(number)
            question = self.say(
                (
                    "How many {n}s are not {c}?",
                    "How many {n}s are there that are not {c}?",
                    "~What is the number of {n}s that are not {c}?",
                ),
                n=self.words.noun,
                c=item.colour,
            )
            return QA(
                "logic",
                question,
                str(number),
                f"{number} of them are not {item.colour}."
                if number != 1
                else f"1 of them is not {item.colour}.",
            )
        refs = [
            some_ref(self.items, self.words, self.rng)
            if self.rng.random() < 0.5
            else absent_ref(self.items, self.words, self.rng)
            for _ in range(2)
        ]
        if None in refs or refs[0] == refs[1] or not all(r.clear(self.items) for r in refs):
            return None
        here = [bool(self.fitting(r)) for r in refs]
        both = self.rng.random() < 0.5
        yes = all(here) if both else any(here)
        a, b = (article(r.text) for r in refs)
        question = self.say(
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
            found = listed([x for x, h in zip((a, b), here, strict=True) if h])
            return QA("logic", question, "yes", f"Yes, there is {found}.")
        lost = listed([r.text for r, h in zip(refs, here, strict=True) if not h], "or")
        return QA("logic", question, "no", f"No, there is no {lost}.")

    def statement(self) -> QA | None:
        """A sentence to be judged: another skill's answer, or one that is changed to be wrong."""
        truth = self.rng.random() < 0.5
        ref = some_ref(self.items, self.words, self.rng)
        roll = self.rng.random()
        if roll < 0.35:
            ref = ref if truth else absent_ref(self.items, self.words, self.rng)
            if ref is None or not ref.clear(self.items):
                return None
            self.fitting(ref)
            claim = f"there is {article(ref.text)}"
        elif roll < 0.65 and self.has("colour"):
            item = self.rng.choice(self.items)
            unique = self.unique(item, ("colour",))
            if unique is None:
                return None
            wrong = [c for c in self.words.colours if c != item.colour]
            claim = f"the {unique.text} is {item.colour if truth else self.rng.choice(wrong)}"
        elif roll < 0.85:
            if not ref.clear(self.items):
                return None
            here = number = self.fitting(ref)
            if not truth:
                number = max(1, number + self.rng.choice((-1, 1, 2)))
            truth = number == here
            claim = (
                f"there are {number} {ref.texts}"
                if number != 1
                else f"there is exactly one {ref.text}"
            )
        else:
            pair = self.two()
            relation = self.rng.choice(list(OPPOSITE))
            holds = related(pair[0], relation, pair[2]) if pair else None
            if holds is None:
                return None
            truth = holds
            claim = f"the {pair[1].text} is {relation} the {pair[3].text}"
        if self.rng.random() < 0.5:
            question = self.say(
                ("True or false: {c}.", "True or false? {C}.", "{C}. True or false?"),
                c=claim,
                C=capital(claim),
            )
            word = "true" if truth else "false"
            return QA("statement", question, word, f"That is {word}.")
        question = self.say(
            (
                "Is it true that {c}?",
                "Is this true of the {pic}: {c}?",
                '"{C}." Is that right?',
                "Is this sentence true of the {pic}? {C}.",
                "Would you say that {c}?",
                "~Is it right that {c}?",
            ),
            c=claim,
            C=capital(claim),
        )
        return QA(
            "statement",
            question,
            "yes" if truth else "no",
            "Yes, that is true." if truth else "No, that is not true.",
        )

    # Descriptions

    def ordered(self) -> list[Item] | None:
        """From left to right; None where two that look different stand too level to say."""
        row = sorted(self.items, key=lambda i: i.centre[0])
        for one, other in pairwise(row):
            if other.centre[0] - one.centre[0] < 0.04 and self.full(one) != self.full(other):
                return None
        return row

    def colours(self) -> QA | None:
        row = self.ordered()
        found = list(dict.fromkeys(i.colour for i in row or ()))
        if not found or "" in found or len(found) > 4:
            return None
        self.about += row
        question = self.say(
            (
                "Which colours do you see?",
                "What colours are the {n}s?",
                "Name the colours of the {n}s.",
                "~Which colours are the {n}s?",
            ),
            n=self.words.noun,
        )
        answer = listed(found)
        return QA(
            "colours",
            question,
            answer,
            f"The colours are {answer}." if len(found) > 1 else f"The only colour is {answer}.",
        )

    def groups(self, row: Sequence[Item]) -> str:
        """ "2 red stars and a blue circle", by first sight."""
        groups = Counter(
            ref_of(i, [f for f in ("kind", "colour") if f in fields_of(i)], self.words.noun)
            for i in row
        )
        return listed(
            [article(ref.text) if n == 1 else f"{n} {ref.texts}" for ref, n in groups.items()]
        )

    def caption(self) -> QA | None:
        row = self.ordered()
        if row is None or len(row) > 6:
            return None
        self.about += row
        question = self.say(
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
        return QA("caption", question, "", f"The picture shows {self.groups(row)}.")

    def describe(self) -> QA | None:
        row = self.ordered()
        if row is None or len(row) > 5 or not all(map(place_name, row)):
            return None
        self.about += row
        number = len(row)
        noun = self.words.noun
        parts = [f"There is 1 {noun}." if number == 1 else f"There are {number} {noun}s."]
        for item in row:
            where = place_name(item)
            ref = ref_of(item, fields_of(item), noun)
            parts.append(f"{capital(article(ref.text))} is {AT[where]}.")
        question = self.say(
            (
                "Describe the {pic} in detail.",
                "Describe everything you see.",
                "What exactly is in the {pic}?",
                "Give a full description of the {pic}.",
                "~Describe everything in the {pic}.",
            )
        )
        return QA("describe", question, "", " ".join(parts))
