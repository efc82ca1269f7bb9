"""Questions on how one object looks: see `ask`."""

from finetune.pretrain.world.objects.asker import Asking
from finetune.pretrain.world.scene import FILLS, QA, SIZES, Item
from finetune.pretrain.world.wording.phrasing import article

ASKED = {
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

CONFIRMED = {
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
CONFIRMED_ALONE = {
    "colour": ("Is it {v}?", "Is this {n} {v}?"),
    "kind": ("Is this {a}?", "Is it {a}?", "Is this {n} {a}?"),
    "fill": ("Is it {v}?",),
    "size": ("Is it {v}?",),
}


class Looks(Asking):
    """One object's colour, fill, size and kind."""

    def colour(self) -> QA | None:
        return self.attribute("colour")

    def fill(self) -> QA | None:
        return self.attribute("fill")

    def size(self) -> QA | None:
        return self.attribute("size")

    def attribute(self, field: str) -> QA | None:
        item = self.pick(field)
        ref = item and self.unique(item, (field,))
        if not ref:
            return None
        value = getattr(item, field)
        question = self.say(ASKED[field], r=ref.text)
        return QA(field, question, value, f"The {ref.text} is {value}.")

    def confirm(self) -> QA | None:
        """Whether an object looks as the question says."""
        field = self.rng.choice(("colour", "colour", "kind", "fill", "size"))
        item = self.pick(field)
        ref = item and self.unique(item, (field,))
        if not item or not ref or (field == "fill" and not self.has("fill")):
            return None
        value = asked = getattr(item, field)
        if self.rng.random() < 0.5:
            asked = self.rng.choice([other for other in self.values(field) if other != value])
        forms = [*CONFIRMED[field]]
        if len(self.items) == 1:
            forms += CONFIRMED_ALONE[field]
        words = {"r": ref.text, "v": asked, "a": article(asked), "n": self.words.noun}
        question = self.say(forms, **words)
        said = article(value) if field == "kind" else value
        sentence = f"{'Yes' if asked == value else 'No'}, the {ref.text} is {said}."
        return QA("confirm", question, "yes" if asked == value else "no", sentence)

    def values(self, field: str) -> tuple[str, ...]:
        """All that a field may hold."""
        known = {"colour": self.words.colours, "kind": self.words.kinds}
        return known.get(field) or {"fill": FILLS, "size": SIZES}[field]

    def kind(self) -> QA | None:
        item = self.pick("kind")
        ref = item and self.unique(item, ("kind",))
        if not ref:
            return None
        noun = self.words.noun
        rest = ref.text.removesuffix(noun).strip()
        if not rest:
            return self.only_kind(item)
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

    def only_kind(self, item: Item) -> QA:
        """Of an object that is alone."""
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
            n=self.words.noun,
        )
        return QA("shape", question, item.word, f"It is {article(item.word)}.")
