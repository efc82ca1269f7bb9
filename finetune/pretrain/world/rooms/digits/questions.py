"""Questions about numbers that are seen: which, how much in all, which is more."""

from finetune.pretrain.world.rooms.digits.dice import Dots
from finetune.pretrain.world.rooms.digits.numbers import Numbers
from finetune.pretrain.world.rooms.digits.sums import Sums
from finetune.pretrain.world.scene import QA
from finetune.pretrain.world.wording.false_premises import stranger


class Reckoner(Numbers, Dots, Sums):
    """Asks about one scene of the digits room."""

    def all(self) -> list[QA]:
        """Some eight to twelve questions, in random order."""
        layout = self.scene.layout
        if layout == "dice":
            self.dice()
        elif layout == "domino":
            self.domino()
        elif layout == "sum":
            self.sum()
        elif layout == "clock":
            self.clock()
        else:
            self.number()
        self.wrong_room()
        self.followup()
        return self.chosen()

    def wrong_room(self) -> None:
        """What is there in general, what is not, and what cannot be known."""
        names = {"dice": "die", "domino": "domino", "clock": "clock"}
        here = names.get(self.scene.layout, "number")
        roll = self.rng.random()
        if roll < 0.45:
            self.made.append(stranger("digits", self.rng, self.split))
        elif roll < 0.6:
            noun = self.rng.choice([n for n in ("die", "domino", "clock") if n != here])
            self.add(
                "existence",
                self.say("Is there a {n}?", "Do you see a {n}?", "Is there a {n}{in_pic}?", n=noun),
                "no",
                f"No, there is no {noun}.",
            )
        elif roll < 0.8:
            self.add(
                "existence",
                self.say("Is there a {n}?", "Do you see a {n}?", "Is there a {n}{in_pic}?", n=here),
                "yes",
                f"Yes, there is a {here}.",
            )
        elif roll < 0.88:
            self.add(
                "unknowable",
                self.say(
                    "Who wrote this?",
                    "When was this {pic} made?",
                    "Who owns it?",
                    "What will happen next?",
                ),
                "unknown",
                "I cannot tell that from the picture.",
            )

    def followup(self) -> None:
        """A second question whose pronoun stands for what was read."""
        layout, items = self.scene.layout, self.scene.items
        if layout not in ("drawn", "display", "dice") or self.rng.random() < 0.6:
            return
        if layout == "dice" and len(items) > 1:
            return
        text = str(items[0].extra["number"]) if layout == "dice" else self.scene.extra["text"]
        opening = QA("read", "What number is it?", text, f"It is {text}.")
        word = "odd" if int(text) % 2 else "even"
        question, short, sentence = self.rng.choice(
            (
                ("What colour is it?", items[0].colour, f"It is {items[0].colour}."),
                ("And what colour is it?", items[0].colour, f"It is {items[0].colour}."),
                ("Is it even or odd?", word, f"It is {word}."),
                ("And if you add 1?", str(int(text) + 1), f"Then it is {int(text) + 1}."),
            )
        )
        self.add("followup", question, short, sentence, (opening,))
