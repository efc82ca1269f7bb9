"""Questions about two words, one above the other: see `writing_ask`."""

from finetune.pretrain.world.rooms.writing.asking import Reading
from finetune.pretrain.world.rooms.writing.words import misread


class TwoWords(Reading):
    """What each line says and what both do."""

    def two(self) -> None:
        (upper, first), (lower, second) = self.words
        for where, word in (("top", upper), ("bottom", lower)):
            self.read_line(where, word)
        if first != second:
            for colour, word in ((first, upper), (second, lower)):
                self.read_coloured(colour, word)
        for _ in range(2):
            self.read_both(upper, lower)
        if upper != lower:
            self.one_of_two(*self.rng.choice((("top", upper, first), ("bottom", lower, second))))
        self.lines()
        self.either_says(upper, lower)
        if self.captioned:
            self.caption_both()

    def read_line(self, where: str, word: str) -> None:
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

    def read_coloured(self, colour: str, word: str) -> None:
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

    def read_both(self, upper: str, lower: str) -> None:
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

    def one_of_two(self, where: str, word: str, colour: str) -> None:
        """Where a word is, and its colour."""
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

    def lines(self) -> None:
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

    def either_says(self, upper: str, lower: str) -> None:
        """Is this word there? Often a near miss."""
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

    def caption_both(self) -> None:
        (upper, first), (lower, second) = self.words
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
