"""Questions on what is there and how often: see `ask`."""

from finetune.pretrain.world.objects.asker import Asking
from finetune.pretrain.world.scene import QA
from finetune.pretrain.world.wording.phrasing import article, listed
from finetune.pretrain.world.wording.references import Ref, absent_ref, some_ref, unique_ref


class Presence(Asking):
    """Whether something is there, is not, and how many of it."""

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

    def logic(self) -> QA | None:
        """With "not", "and" or "or"."""
        if self.rng.random() < 0.3 and self.has("colour"):
            return self.others()
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

    def others(self) -> QA:
        """How many have another colour."""
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
        sentence = f"{number} of them {'is' if number == 1 else 'are'} not {item.colour}."
        return QA("logic", question, str(number), sentence)

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
            forms += ["Is the {r} {c}?"] * 2
        if self.has("fill") and not miss.fill:
            forms += ["Is the {r} solid, striped or outlined?"]
        other = self.pick("kind")
        ref = other and unique_ref(other, self.items, self.words.noun, self.rng)
        if ref:
            forms += ["Is the {r} left of the {o}?", "Is the {r} bigger than the {o}?"]
        colour = self.rng.choice(self.words.colours) if self.words.colours else ""
        question = self.say(forms, r=miss.text, o=ref.text if ref else "", c=colour)
        return QA("false_premise", question, "none", f"There is no {miss.text} in the picture.")
