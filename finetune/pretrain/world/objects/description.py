"""Descriptions, statements to be judged, follow-ups, and what cannot be known: see `ask`."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from finetune.pretrain.world.objects.asker import Asking
from finetune.pretrain.world.objects.position import AT, OPPOSITE, place_name, related
from finetune.pretrain.world.scene import QA, Item
from finetune.pretrain.world.wording.phrasing import article, capital, listed
from finetune.pretrain.world.wording.references import (
    Ref,
    absent_ref,
    fields_of,
    ref_of,
    some_ref,
    unique_ref,
)

Claim = tuple[str, bool]
"""A sentence without its full stop, and whether it is true."""


class Telling(Asking):
    """What is told of the whole picture, and talk about it."""

    def statement(self) -> QA | None:
        """A sentence to be judged: another skill's answer, or one that is changed to be wrong."""
        truth = self.rng.random() < 0.5
        ref = some_ref(self.items, self.words, self.rng)
        roll = self.rng.random()
        if roll < 0.35:
            claim = self.claimed_presence(ref, truth)
        elif roll < 0.65 and self.has("colour"):
            claim = self.claimed_colour(truth)
        elif roll < 0.85:
            claim = self.claimed_number(ref, truth)
        else:
            claim = self.claimed_relation()
        return claim and self.judged(*claim)

    def claimed_presence(self, ref: Ref, truth: bool) -> Claim | None:
        named = ref if truth else absent_ref(self.items, self.words, self.rng)
        if named is None or not named.clear(self.items):
            return None
        self.fitting(named)
        return f"there is {article(named.text)}", truth

    def claimed_colour(self, truth: bool) -> Claim | None:
        item = self.rng.choice(self.items)
        ref = self.unique(item, ("colour",))
        if ref is None:
            return None
        wrong = [c for c in self.words.colours if c != item.colour]
        return f"the {ref.text} is {item.colour if truth else self.rng.choice(wrong)}", truth

    def claimed_number(self, ref: Ref, truth: bool) -> Claim | None:
        if not ref.clear(self.items):
            return None
        here = number = self.fitting(ref)
        if not truth:
            number = max(1, number + self.rng.choice((-1, 1, 2)))
        one = f"there is exactly one {ref.text}"
        return one if number == 1 else f"there are {number} {ref.texts}", number == here

    def claimed_relation(self) -> Claim | None:
        pair = self.two()
        relation = self.rng.choice(list(OPPOSITE))
        holds = related(pair[0], relation, pair[2]) if pair else None
        return (
            None
            if holds is None
            else (f"the {pair[1].text} is {relation} the {pair[3].text}", holds)
        )

    def judged(self, claim: str, truth: bool) -> QA:
        words = {"c": claim, "C": capital(claim)}
        if self.rng.random() < 0.5:
            question = self.say(
                ("True or false: {c}.", "True or false? {C}.", "{C}. True or false?"), **words
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
            **words,
        )
        if truth:
            return QA("statement", question, "yes", "Yes, that is true.")
        return QA("statement", question, "no", "No, that is not true.")

    def unknowable(self) -> QA | None:
        item = self.rng.choice(self.items)
        ref = unique_ref(item, self.items, self.words.noun, self.rng) or Ref(self.words.noun)
        question = self.say(
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

    def followup(self) -> QA | None:
        """A second question whose pronoun stands for what the first was about."""
        item = self.pick("kind")
        ref = item and self.unique(item)
        if not ref:
            return None
        asks = self.about_it(item, ref)
        if not asks:
            return None
        thing = article(ref.text)
        opening = QA("existence", f"Is there {thing}?", "yes", f"Yes, there is {thing}.")
        return QA("followup", *self.rng.choice(asks), before=(opening,))

    def about_it(self, item: Item, ref: Ref) -> list[tuple[str, str, str]]:
        """What can be asked of an object that `ref` named: (question, short, sentence)."""
        asks = []
        if item.colour and not ref.colour:
            question = self.rng.choice(
                ("What colour is it?", "Which colour is it?", "And what colour is it?")
            )
            asks.append((question, item.colour, f"It is {item.colour}."))
        if not ref.kind:
            question = self.rng.choice(
                (f"What {self.words.noun} is it?", "What is it?", "And what is it?")
            )
            asks.append((question, item.word, f"It is {article(item.word)}."))
        if item.fill and not ref.fill:
            question = "Is it solid, striped or outlined?"
            asks.append((question, item.fill, f"It is {item.fill}."))
        where = place_name(item)
        if where:
            question = self.rng.choice(("Where is it?", "And where is it?"))
            asks.append((question, where, f"It is {AT[where]}."))
        return asks

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
