"""Questions on where objects are: see `ask`."""

from finetune.pretrain.world.objects.asker import Asking
from finetune.pretrain.world.scene import QA, Item
from finetune.pretrain.world.wording.phrasing import article, capital

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


class Places(Asking):
    """Where an object is in the picture, and how two stand to each other."""

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
