"""Questions about a scene's objects, for every room whose scenes are made of items.

Each function makes one question of one skill, or returns None where the scene does not allow it
(no object fits, or the right answer would be a matter of taste). `about_items` draws from them.
"""

import random
from collections.abc import Callable
from dataclasses import replace

from finetune.builtin.world import ask_more
from finetune.builtin.world.phrasing import article
from finetune.builtin.world.refs import Ref, Vocabulary, absent_ref, some_ref, unique_ref
from finetune.builtin.world.scene import QA, Scene, Split

__all__ = ["Asker", "Vocabulary", "about_items"]


class Asker(ask_more.More):
    """A scene's objects, and what can be asked about them."""

    def existence(self) -> QA | None:
        ref = some_ref(self.items, self.words, self.rng)
        if self.rng.random() < 0.5:
            ref = absent_ref(self.items, self.words, self.rng)
        if ref is None or not ref.clear(self.items):
            return None
        here = bool(self.fitting(ref))
        thing = article(ref.text)
        question = self.say(
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
            s=ref.texts,
        )
        sentence = f"Yes, there is {thing}." if here else f"No, there is no {ref.text}."
        return QA("existence", question, "yes" if here else "no", sentence)

    def negation(self) -> QA | None:
        ref = some_ref(self.items, self.words, self.rng)
        if self.rng.random() < 0.5:
            ref = absent_ref(self.items, self.words, self.rng)
        if ref is None or not ref.clear(self.items):
            return None
        here = bool(self.fitting(ref))
        thing = article(ref.text)
        question = self.say(
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

    def colour(self) -> QA | None:
        item = self.pick("colour")
        ref = item and self.unique(item, ("colour",))
        if not ref:
            return None
        question = self.say(
            (
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
            r=ref.text,
        )
        return QA("colour", question, item.colour, f"The {ref.text} is {item.colour}.")

    def kind(self) -> QA | None:
        item = self.pick("kind")
        ref = item and self.unique(item, ("kind",))
        if not ref:
            return None
        noun = self.words.noun
        rest = ref.text.removesuffix(noun).strip()
        if not rest:  # a single object
            question = self.say(
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
                n=noun,
            )
            return QA("shape", question, item.word, f"It is {article(item.word)}.")
        question = self.say(
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
        return QA("shape", question, item.word, f"The {ref.text} is {article(item.word)}.")

    def fill(self) -> QA | None:
        item = self.pick("fill")
        ref = item and self.unique(item, ("fill",))
        if not ref:
            return None
        question = self.say(
            (
                "Is the {r} solid, striped or outlined?",
                "How is the {r} filled?",
                "What fill does the {r} have?",
                "What pattern does the {r} have?",
                "~Which fill does the {r} have?",
            ),
            r=ref.text,
        )
        return QA("fill", question, item.fill, f"The {ref.text} is {item.fill}.")

    def size(self) -> QA | None:
        item = self.pick("size")
        ref = item and self.unique(item, ("size",))
        if not ref:
            return None
        question = self.say(
            (
                "Is the {r} big or small?",
                "How big is the {r}?",
                "What size is the {r}?",
                "Is the {r} small or big?",
                "What is the size of the {r}?",
                "~Which size is the {r}?",
            ),
            r=ref.text,
        )
        return QA("size", question, item.size, f"The {ref.text} is {item.size}.")

    def count(self) -> QA | None:
        roll = self.rng.random()
        ref: Ref | None = Ref(self.words.noun)
        if roll > 0.3:
            ref = some_ref(self.items, self.words, self.rng)
        if roll > 0.94:
            ref = absent_ref(self.items, self.words, self.rng)
        if ref is None or not ref.clear(self.items):
            return None
        number = self.fitting(ref)
        question = self.say(
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
            s=ref.texts,
        )
        there = {0: f"There are no {ref.texts}.", 1: f"There is 1 {ref.text}."}
        sentence = there.get(number, f"There are {number} {ref.texts}.")
        return QA("count", question, str(number), sentence)

    def false_premise(self) -> QA | None:
        miss = absent_ref(self.items, self.words, self.rng)
        if miss is None or not miss.kind:
            return None
        self.fitting(miss)
        forms = [
            "Where is the {r}?",
            "How big is the {r}?",
            "Is the {r} big or small?",
            "Is the {r} on the left or on the right?",
            "~Where do you see the {r}?",
        ]
        if not miss.colour and self.has("colour"):
            forms += ["What colour is the {r}?", "What is the colour of the {r}?"] * 2
        if self.has("fill") and not miss.fill:
            forms += ["Is the {r} solid, striped or outlined?"]
        other = self.pick("kind")
        ref = other and unique_ref(other, self.items, self.words.noun, self.rng)
        if ref:
            forms += ["Is the {r} left of the {o}?", "Is the {r} bigger than the {o}?"]
        question = self.say(forms, r=miss.text, o=ref.text if ref else "")
        return QA("false_premise", question, "none", f"There is no {miss.text} in the picture.")

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
        if item is None:
            return None
        ref = self.unique(item)
        if ref is None:
            return None
        opening = QA(
            "existence",
            f"Is there {article(ref.text)}?",
            "yes",
            f"Yes, there is {article(ref.text)}.",
        )
        asks: list[QA] = []
        if item.colour and not ref.colour:
            asks.append(
                QA(
                    "followup",
                    self.rng.choice(
                        ("What colour is it?", "Which colour is it?", "And what colour is it?")
                    ),
                    item.colour,
                    f"It is {item.colour}.",
                )
            )
        if not ref.kind:
            asks.append(
                QA(
                    "followup",
                    self.rng.choice(
                        (f"What {self.words.noun} is it?", "What is it?", "And what is it?")
                    ),
                    item.word,
                    f"It is {article(item.word)}.",
                )
            )
        if item.fill and not ref.fill:
            asks.append(
                QA(
                    "followup",
                    "Is it solid, striped or outlined?",
                    item.fill,
                    f"It is {item.fill}.",
                )
            )
        where = ask_more.place_name(item)
        if where:
            asks.append(
                QA(
                    "followup",
                    self.rng.choice(("Where is it?", "And where is it?")),
                    where,
                    f"It is {ask_more.AT[where]}.",
                )
            )
        if not asks:
            return None
        qa = self.rng.choice(asks)
        return QA(qa.skill, qa.question, qa.short, qa.sentence, before=(opening,))


# Skill functions and how often each is drawn; relations and descriptions cost the most to learn.
WEIGHTS: dict[str, float] = {
    "existence": 8,
    "negation": 5,
    "colour": 10,
    "kind": 9,
    "fill": 3,
    "size": 2.5,
    "count": 12,
    "position": 8,
    "what_at": 3,
    "side": 3,
    "relation": 12,
    "beside": 4,
    "extreme": 6,
    "superlative": 4,
    "bigger": 4,
    "more": 3,
    "odd": 5,
    "same": 3,
    "all_same": 2,
    "logic": 5,
    "statement": 5,
    "colours": 1,
    "caption": 1.5,
    "describe": 0.7,
    "false_premise": 4,
    "unknowable": 0.7,
    "followup": 4,
}


def about_items(
    scene: Scene,
    rng: random.Random,
    split: Split,
    words: Vocabulary,
    count: int = 12,
    weights: dict[str, float] | None = None,
) -> list[QA]:
    """Up to `count` different questions about the scene's items, at least one of some skill.

    `weights` replaces `WEIGHTS` (the skill functions of `Asker` by name).
    """
    asker = Asker(scene, rng, split, words)
    weights = WEIGHTS if weights is None else weights
    names = rng.choices(list(weights), list(weights.values()), k=count * 2)
    made: dict[str, QA] = {}
    for name in names:
        skill: Callable[[], QA | None] = getattr(asker, name)
        asker.about, asker.counts = [], []
        qa = skill()
        if qa is not None:
            known = replace(qa, about=tuple(asker.about), counts=tuple(asker.counts))
            made.setdefault(qa.question, known)
        if len(made) == count:
            break
    return list(made.values())
