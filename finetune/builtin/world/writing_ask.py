"""Questions about what is written: reading it, its letters, its colour."""

import random
from collections import Counter

from finetune.builtin.world.paint import COLOURS
from finetune.builtin.world.phrasing import article
from finetune.builtin.world.scene import QA, Scene, Split
from finetune.builtin.world.strangers import stranger
from finetune.builtin.world.teller import Teller
from finetune.builtin.world.writing_words import HELD_OUT_WORDS, WORDS

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
TRAINING_WORDS = tuple(w.upper() for w in WORDS if w not in HELD_OUT_WORDS)
LOOKS_LIKE = {
    "A": "RH",
    "B": "PRE",
    "C": "GO",
    "D": "OP",
    "E": "FB",
    "F": "EP",
    "G": "CO",
    "H": "NK",
    "I": "LT",
    "J": "IU",
    "K": "XR",
    "L": "IE",
    "M": "NW",
    "N": "MH",
    "O": "CD",
    "P": "RB",
    "Q": "O",
    "R": "PB",
    "S": "Z",
    "T": "IF",
    "U": "VJ",
    "V": "YU",
    "W": "MV",
    "X": "KY",
    "Y": "VT",
    "Z": "S",
}


def misread(word: str, rng: random.Random) -> str:
    """A near miss: one sign changed to one that looks like it, or any other word."""
    if rng.random() < 0.3 and word.isalpha():
        other = rng.choice(TRAINING_WORDS)
        return other if other != word else other + "S"
    at = rng.randrange(len(word))
    near = LOOKS_LIKE.get(word[at]) or "".join(d for d in "0123456789" if d != word[at])
    return word[:at] + rng.choice(near) + word[at + 1 :]


class Reader(Teller):
    """Asks about one scene of the writing room."""

    def __init__(self, scene: Scene, rng: random.Random, split: Split) -> None:
        super().__init__(scene, rng, split)
        self.words = [(text.word, text.colour) for text in scene.extra["texts"]]

    def all(self) -> list[QA]:
        """Some eight to twelve questions, in random order."""
        self.captioned = self.rng.random() < 0.5  # long answers cost most to learn
        if len(self.words) == 2:
            self.two()
        else:
            self.one(*self.words[0])
        self.other()
        return self.chosen()

    @property
    def noun(self) -> str:
        """What the writing is called."""
        word = self.words[0][0]
        if len(word) == 1 and word.isalpha():
            return "letter"
        return "number" if word.isdigit() else "word" if word.isalpha() else "text"

    def one(self, word: str, colour: str) -> None:
        noun = self.noun
        bearer = {"sign": "the sign", "plate": "the plate"}.get(self.scene.layout, "it")
        for _ in range(3):
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
                    n=noun,
                ),
                word,
                f"It says {word}."
                if bearer == "it" or self.rng.random() < 0.5
                else f"{bearer.capitalize()} says {word}.",
            )
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
                n=noun,
                t=told,
            ),
            told == word,
            f"it says {word}",
        )
        self.letters(
            word, "letter" if word.isalpha() else "digit" if word.isdigit() else "character"
        )
        self.colour(noun, colour)
        self.statement(word)
        self.followup(word, colour, noun)
        if self.captioned:
            self.caption(word, colour, noun)

    def letters(self, word: str, unit: str) -> None:
        if len(word) > 1:
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
        if unit != "letter" or len(word) == 1:
            return
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

    def followup(self, word: str, colour: str, noun: str) -> None:
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
        if len(word) > 1 or "letters" not in sentence and "characters" not in sentence:
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

    def two(self) -> None:
        (upper, first), (lower, second) = self.words
        for where, word in (("top", upper), ("bottom", lower)):
            self.add(
                "read",
                self.say(
                    "What does the {w} line say?",
                    "What is written at the {w}?",
                    "What is the {w} word?",
                    "Read the {w} line.",
                    "Which word is at the {w}?",
                    "~What does it say at the {w}?",
                    w=where,
                ),
                word,
                f"The {where} line says {word}.",
            )
        if first != second:
            for colour, word in ((first, upper), (second, lower)):
                self.add(
                    "read",
                    self.say(
                        "What does the {c} word say?",
                        "What is written in {c}?",
                        "Which word is {c}?",
                        "Read the {c} word.",
                        "What do the {c} letters spell?",
                        "~What does it say in {c}?",
                        c=colour,
                    ),
                    word,
                    f"The {colour} word says {word}.",
                )
        for _ in range(2):
            self.add(
                "read",
                self.say(
                    "What does it say?",
                    "What is written here?",
                    "Read everything.",
                    "What is written{in_pic}?",
                    "Read it to me.",
                    "~Tell me what it says.",
                ),
                f"{upper} {lower}",
                f"It says {upper} {lower}.",
            )
        if upper != lower:
            where, word, colour = self.rng.choice(
                (("top", upper, first), ("bottom", lower, second))
            )
            self.add(
                "position",
                self.say(
                    "Where is the word {t}?",
                    "Is {t} at the top or at the bottom?",
                    "Where does it say {t}?",
                    t=word,
                ),
                where,
                f"{word} is at the {where}.",
            )
            self.add(
                "colour",
                self.say(
                    "What colour is the word {t}?",
                    "What colour is {t}?",
                    "In which colour is {t} written?",
                    t=word,
                ),
                colour,
                f"{word} is {colour}.",
            )
        self.add(
            "count",
            self.say(
                "How many words are there?",
                "How many lines are there?",
                "How many words do you see?",
            ),
            "2",
            "There are 2 words.",
        )
        told = self.rng.choice((upper, lower, misread(upper, self.rng), misread(lower, self.rng)))
        here = told in (upper, lower)
        self.yes_no(
            "read",
            self.say(
                "Does it say {t}?",
                "Is the word {t} in the {pic}?",
                "Do you see the word {t}?",
                "~Is the word {t} written here?",
                t=told,
            ),
            here,
            f"it says {upper} {lower}",
        )
        if self.captioned:
            self.add(
                "caption",
                self.say(
                    "What does the {pic} show?",
                    "Describe the {pic} briefly.",
                    "Caption this {pic}.",
                    "What do you see?",
                ),
                "",
                f"The picture shows the words {upper} in {first} and {lower} in {second}.",
            )

    def other(self) -> None:
        """What is not there, and what cannot be known."""
        roll = self.rng.random()
        used = {colour for _, colour in self.words}
        if roll < 0.35:
            colour = self.rng.choice([c for c in COLOURS if c not in used])
            self.add(
                "false_premise",
                self.say(
                    "What does the {c} word say?",
                    "What is written in {c}?",
                    "Read the {c} word.",
                    "What do the {c} letters spell?",
                    "~What does it say in {c}?",
                    c=colour,
                ),
                "none",
                f"There is no {colour} word in the picture.",
            )
        elif roll < 0.5:
            self.made.append(stranger("writing", self.rng, self.split))
        elif roll < 0.6:
            self.add(
                "existence",
                self.say(
                    "Is there any writing{in_pic}?",
                    "Is something written here?",
                    "Do you see any text?",
                    "~Do you see any writing?",
                ),
                "yes",
                "Yes, there is writing.",
            )
        elif roll < 0.68:
            self.add(
                "unknowable",
                self.say(
                    "Who wrote this?",
                    "When was this written?",
                    "Where does this sign stand?"
                    if self.scene.layout == "sign"
                    else "Who is it for?",
                ),
                "unknown",
                "I cannot tell that from the picture.",
            )
