"""Questions about what a chart shows: see `charts_ask`."""

from finetune.pretrain.world.drawing.paint import COLOURS
from finetune.pretrain.world.rooms.charts.asking import KIND_NAMES, Analysis, Entry
from finetune.pretrain.world.wording.phrasing import article, listed


class Appearance(Analysis):
    """Its kind, how many entries it has, and their colours."""

    def kind(self) -> None:
        name = KIND_NAMES[self.scene.layout]
        if self.rng.random() < 0.5:
            self.add(
                "kind",
                self.say(
                    "What kind of chart is this?",
                    "What type of chart is it?",
                    "Which chart is this?",
                    "~What chart is this?",
                ),
                name,
                f"It is a {name}.",
            )
            return
        asked = self.rng.choice(("bar chart", "line chart", "pie chart", name))
        self.yes_no(
            "kind",
            self.say(
                "Is this a {k}?",
                "Is there a {k}?",
                "Do you see a {k}?",
                "Is it a {k}?",
                "Does the {pic} show a {k}?",
                k=asked,
            ),
            asked == name,
            f"it is a {name}",
        )

    def counting(self) -> None:
        number = len(self.entries)
        self.add(
            "count",
            self.say(
                "How many {n}s are there?",
                "How many {n}s does the chart have?",
                "Count the {n}s.",
                "How many {n}s do you see?",
                "Give me the number of {n}s.",
                "~How many {n}s are in the chart?",
                n=self.word,
            ),
            str(number),
            f"There are {number} {self.word}s.",
        )
        if self.pie or self.rng.random() < 0.4:
            return
        limit = self.rng.randint(2, 8)
        more = self.rng.random() < 0.5
        hits = sum(e.value > limit if more else e.value < limit for e in self.entries)
        side = "above" if more else "below"
        self.add(
            "count",
            self.say(
                "How many {n}s are {s} {v}?",
                "How many {n}s have a value {s} {v}?",
                "~Count the {n}s {s} {v}.",
                n=self.word,
                s=side,
                v=limit,
            ),
            str(hits),
            f"{hits} {self.word}{'s are' if hits != 1 else ' is'} {side} {limit}.",
        )

    def colour(self) -> None:
        one = self.rng.choice(self.entries)
        if self.scene.layout == "line":
            self.colour_of_line(one.colour)
        elif self.scene.extra["names"]:
            self.colour_of_entry(one)
        else:
            self.has_colour(one.colour)
            if not self.pie:
                self.colour_of_best()

    def colour_of_line(self, colour: str) -> None:
        self.add(
            "colour",
            self.say(
                "What colour is the line?",
                "Which colour is the line?",
                "What is the colour of the line?",
                "~Tell me the colour of the line.",
            ),
            colour,
            f"The line is {colour}.",
        )

    def colour_of_entry(self, one: Entry) -> None:
        self.add(
            "colour",
            self.say(
                "What colour is {x}?",
                "Which colour is {x}?",
                "What is the colour of {x}?",
                "What colour has {x} got?",
                "~Which colour does {x} have?",
                x=one.name,
            ),
            one.colour,
            f"{one.name} is {one.colour}.",
        )

    def has_colour(self, colour: str) -> None:
        """Is there a bar of this colour, or of another one?"""
        asked = colour if self.rng.random() < 0.5 else self.rng.choice(list(COLOURS))
        here = asked in [e.colour for e in self.entries]
        self.yes_no(
            "existence",
            self.say(
                "Is there {a} {n}?",
                "Do you see {a} {n}?",
                "Is one {n} {c}?",
                "~Does the chart have {a} {n}?",
                a=article(asked),
                n=self.word,
                c=asked,
            ),
            here,
            f"there is {article(asked)} {self.word}"
            if here
            else f"there is no {asked} {self.word}",
        )

    def colour_of_best(self) -> None:
        high = self.rng.random() < 0.5
        word, top = "highest" if high else "lowest", self.best(high)
        if top is None:
            return
        self.add(
            "extreme",
            self.say(
                "What colour is the {w} {n}?",
                "What is the colour of the {w} {n}?",
                w=word,
                n=self.word,
            ),
            top.colour,
            f"The {word} {self.word} is {top.colour}.",
        )

    def caption(self) -> None:
        question = self.say(
            "What does the {pic} show?",
            "Describe the {pic} briefly.",
            "What is in the {pic}?",
            "Caption this {pic}.",
            "What do you see?",
            "Describe the chart.",
            "~What do you see in the {pic}?",
        )
        name = KIND_NAMES[self.scene.layout]
        if self.pie and not self.scene.extra["told"]:
            parts = [e.short for e in self.entries]
            text = f"The picture shows a pie chart with {len(parts)} slices: {listed(parts)}."
        else:
            parts = [f"{e.short} {self.told(e.value)}" for e in self.entries]
            text = f"The picture shows a {name}: {listed(parts)}."
        self.add("caption", question, "", text)
