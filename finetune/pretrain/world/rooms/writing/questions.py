"""Questions about one word, number or letter: see `writing_ask`."""

from collections import Counter

from finetune.pretrain.world.drawing.paint import COLOURS
from finetune.pretrain.world.rooms.writing.asking import Reading
from finetune.pretrain.world.rooms.writing.words import misread
from finetune.pretrain.world.scene import QA
from finetune.pretrain.world.wording.phrasing import article

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


class OneWord(Reading):
    """What it says, its letters and its colour."""

    def one(self, word: str, colour: str) -> None:
        noun = self.noun
        bearer = {"sign": "the sign", "plate": "the plate"}.get(self.scene.layout, "it")
        for _ in range(3):
            self.read(word, bearer)
        self.says(word, bearer)
        self.letters(
            word, "letter" if word.isalpha() else "digit" if word.isdigit() else "character"
        )
        self.colour(noun, colour)
        self.statement(word)
        self.followup(word, colour)
        if self.captioned:
            self.caption(word, colour, noun)

    def read(self, word: str, bearer: str) -> None:
        self.add(
            "read",
            self.say(
                "What does {b} say?",
                "What is written here?",
                "What is written{in_pic}?",
                "Read the {n}.",
                "What {n} is this?",
                "Which {n} do you see?",
                "What does {b} say?",
                "Which {n} is in the {pic}?",
                "What {n} is written here?",
                "Can you read this?",
                "Read it to me.",
                "What text is in the {pic}?",
                "What do the letters spell?"
                if word.isalpha()
                else "What characters are written here?",
                "~Tell me what it says.",
                b=bearer,
                n=self.noun,
            ),
            word,
            f"It says {word}."
            if bearer == "it" or self.rng.random() < 0.5
            else f"{bearer.capitalize()} says {word}.",
        )

    def says(self, word: str, bearer: str) -> None:
        """Does it say this? Often a near miss."""
        told = word if self.rng.random() < 0.5 else misread(word, self.rng)
        self.yes_no(
            "read",
            self.say(
                "Does {b} say {t}?",
                'Does {b} say "{t}"?',
                "Is the {n} {t}?",
                "Does it read {t}?",
                "~Is {t} written here?",
                b=bearer,
                n=self.noun,
                t=told,
            ),
            told == word,
            f"it says {word}",
        )

    def letters(self, word: str, unit: str) -> None:
        if len(word) > 1:
            self.how_many(word, unit)
        self.at_places(word, unit)
        if unit == "letter" and len(word) > 1:
            self.how_often(word, self.contains(word))

    def how_many(self, word: str, unit: str) -> None:
        self.add(
            "count",
            self.say(
                "How many {u}s does the {n} have?",
                "How many {u}s are there?",
                "How many {u}s do you see?",
                "Count the {u}s.",
                "How long is the {n} in {u}s?",
                "Give me the number of {u}s.",
                "~How many {u}s are in the {n}?",
                u=unit,
                n=self.noun,
            ),
            str(len(word)),
            f"The {self.noun} has {len(word)} {unit}s.",
        )

    def at_places(self, word: str, unit: str) -> None:
        """Which letter is the first, the second, ...?"""
        asked = {0: "first", len(word) - 1: "last"}
        asked |= {k: ORDINALS[k] for k in range(1, len(word) - 1)}
        for at in self.rng.sample(sorted(asked), min(2, len(asked))):
            self.add(
                "letter",
                self.say(
                    "What is the {w} {u}?",
                    "Which {u} comes {w}?",
                    "What {u} is {w}?",
                    "What is the {w} {u} of the {n}?",
                    "Name the {w} {u}.",
                    "~Which is the {w} {u}?",
                    w=asked[at],
                    u=unit,
                    n=self.noun,
                ),
                word[at],
                f"The {asked[at]} {unit} is {word[at]}.",
            )

    def contains(self, word: str) -> str:
        """Is this letter in the word? Returns the letter."""
        here = self.rng.random() < 0.5
        others = [x for x in "ABCDEFGHIJKLMNOPRSTUVWY" if x not in word]
        letter = self.rng.choice(word if here else others)
        self.yes_no(
            "letter",
            self.say(
                "Is there {a} {x}?",
                "Does the word contain the letter {x}?",
                "Is the letter {x} in the word?",
                "Does it have {a} {x}?",
                "Do you see the letter {x}?",
                "~Does the word have the letter {x}?",
                x=letter,
                a="an" if letter in "AEFHILMNORSX" else "a",
            ),
            here,
            f"there is {'an' if letter in 'AEFHILMNORSX' else 'a'} {letter}"
            if here
            else f"there is no {letter}",
        )
        return letter

    def how_often(self, word: str, letter: str) -> None:
        """How often a letter occurs: mostly one that is there twice, or else `letter`."""
        twice, number = Counter(word).most_common(1)[0]
        if number > 1 or self.rng.random() < 0.15:
            letter = twice if self.rng.random() < 0.7 else letter
            count = word.count(letter)
            self.add(
                "count",
                self.say(
                    "How many times does {x} occur?",
                    "How often is the letter {x} there?",
                    "How many {x}s are in the word?",
                    x=letter,
                ),
                str(count),
                f"The letter {letter} occurs {count} time{'' if count == 1 else 's'}.",
            )

    def colour(self, noun: str, colour: str) -> None:
        self.add(
            "colour",
            self.say(
                "What colour is the {n}?",
                "What is the colour of the {n}?",
                "Which colour is the {n}?",
                "In which colour is it written?",
                "What colour are the letters?",
                "What colour is the writing?",
                "Name the colour of the {n}.",
                "~Which colour are the letters?",
                n=noun,
            ),
            colour,
            f"The {noun} is {colour}.",
        )
        if self.rng.random() < 0.4:
            asked = colour if self.rng.random() < 0.5 else self.rng.choice(list(COLOURS))
            self.yes_no(
                "colour",
                self.say(
                    "Is the {n} {c}?",
                    "Is it written in {c}?",
                    "~Are the letters {c}?",
                    n=noun,
                    c=asked,
                ),
                asked == colour,
                f"it is {colour}",
            )
        if self.scene.layout == "sign":
            plate = self.scene.items[0].colour
            self.add(
                "colour",
                self.say(
                    "What colour is the sign?",
                    "What is the colour of the sign?",
                    "Which colour is the sign?",
                    "What is the colour of the sign's background?",
                    "Name the colour of the sign.",
                    "~Which colour does the sign have?",
                ),
                plate,
                f"The sign is {plate}.",
            )

    def statement(self, word: str) -> None:
        told = word if self.rng.random() < 0.5 else misread(word, self.rng)
        truth = "true" if told == word else "false"
        if self.rng.random() < 0.5:
            self.add(
                "statement",
                self.say(
                    "True or false: it says {t}.",
                    "True or false? The {n} is {t}.",
                    "It says {t}. True or false?",
                    n=self.noun,
                    t=told,
                ),
                truth,
                f"That is {truth}.",
            )

    def followup(self, word: str, colour: str) -> None:
        if self.rng.random() < 0.6:
            return
        opening = QA("read", "What does it say?", word, f"It says {word}.")
        unit = "letters" if word.isalpha() else "characters"
        question, short, sentence = self.rng.choice(
            (
                ("And what colour is it?", colour, f"It is {colour}."),
                ("What colour is it?", colour, f"It is {colour}."),
                (f"How many {unit} does it have?", str(len(word)), f"It has {len(word)} {unit}."),
                ("What does it start with?", word[0], f"It starts with {word[0]}."),
                ("What does it end with?", word[-1], f"It ends with {word[-1]}."),
            )
        )
        if len(word) > 1 or ("letters" not in sentence and "characters" not in sentence):
            self.add("followup", question, short, sentence, (opening,))

    def caption(self, word: str, colour: str, noun: str) -> None:
        question = self.say(
            "What does the {pic} show?",
            "Describe the {pic} briefly.",
            "What is in the {pic}?",
            "Caption this {pic}.",
            "What do you see?",
            "Describe the {pic} in one sentence.",
            "~What do you see in the {pic}?",
        )
        if self.scene.layout == "sign":
            plate = self.scene.items[0].colour
            text = f"The picture shows {article(plate)} sign that says {word} in {colour}."
        else:
            text = f"The picture shows the {noun} {word} in {colour}."
        self.add("caption", question, "", text)
