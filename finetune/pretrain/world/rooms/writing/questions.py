"""The questions of the writing room: reading, letters, colours."""

import random
from collections import Counter

from finetune.pretrain.world.drawing.paint import COLOURS
from finetune.pretrain.world.rooms.writing.words import misread
from finetune.pretrain.world.scene import QA, Scene, Split
from finetune.pretrain.world.wording.false_premises import false_premise
from finetune.pretrain.world.wording.phrasing import with_article
from finetune.pretrain.world.wording.question_maker import QuestionMaker

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


class WritingQuestionMaker(QuestionMaker):
    """The questions about one scene of writing; `words` holds each text and its colour."""

    def __init__(self, scene: Scene, rng: random.Random, split: Split) -> None:
        super().__init__(scene, rng, split)
        self.words = [(text.word, text.colour) for text in scene.extra["texts"]]
        self.captioned = self.rng.random() < 0.5  # long answers take the longest to learn

    @property
    def noun(self) -> str:
        """What the writing is called in questions."""
        word = self.words[0][0]
        if len(word) == 1 and word.isalpha():
            return "letter"
        return "number" if word.isdigit() else "word" if word.isalpha() else "text"


def ask(scene: Scene, rng: random.Random, split: Split) -> list[QA]:
    """Return at most twelve questions about a scene of writing, in random order."""
    maker = WritingQuestionMaker(scene, rng, split)
    if len(maker.words) == 2:
        ask_about_two_words(maker)
    else:
        ask_about_one_text(maker, *maker.words[0])
    ask_in_general(maker)
    return maker.selection()


def ask_about_one_text(maker: WritingQuestionMaker, word: str, colour: str) -> None:
    """Ask about a single word, number or letter."""
    noun = maker.noun
    bearer = {"sign": "the sign", "plate": "the plate"}.get(maker.scene.layout, "it")
    for _ in range(3):
        read(maker, word, bearer)
    confirm_text(maker, word, bearer)
    ask_about_letters(
        maker, word, "letter" if word.isalpha() else "digit" if word.isdigit() else "character"
    )
    ask_colours(maker, noun, colour)
    judge_statement(maker, word)
    ask_followup(maker, word, colour)
    if maker.captioned:
        caption(maker, word, colour, noun)


def read(maker: WritingQuestionMaker, word: str, bearer: str) -> None:
    """Ask what is written; `bearer` is what bears the writing, such as "the sign"."""
    maker.add(
        "read",
        maker.phrase(
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
            "What do the letters spell?" if word.isalpha() else "What characters are written here?",
            "~Tell me what it says.",
            b=bearer,
            n=maker.noun,
        ),
        word,
        f"It says {word}."
        if bearer == "it" or maker.rng.random() < 0.5
        else f"{bearer.capitalize()} says {word}.",
    )


def confirm_text(maker: WritingQuestionMaker, word: str, bearer: str) -> None:
    """Ask whether a certain text is written, which is often a near miss."""
    claimed = word if maker.rng.random() < 0.5 else misread(word, maker.rng)
    maker.add_yes_no(
        "read",
        maker.phrase(
            "Does {b} say {t}?",
            'Does {b} say "{t}"?',
            "Is the {n} {t}?",
            "Does it read {t}?",
            "~Is {t} written here?",
            b=bearer,
            n=maker.noun,
            t=claimed,
        ),
        claimed == word,
        f"it says {word}",
    )


def ask_about_letters(maker: WritingQuestionMaker, word: str, unit: str) -> None:
    """Ask about the letters of a text: how many, which, how often."""
    if len(word) > 1:
        count_letters(maker, word, unit)
    letters_at_positions(maker, word, unit)
    if unit == "letter" and len(word) > 1:
        count_letter(maker, word, contains_letter(maker, word))


def count_letters(maker: WritingQuestionMaker, word: str, unit: str) -> None:
    """Ask how many letters, digits or characters there are."""
    maker.add(
        "count",
        maker.phrase(
            "How many {u}s does the {n} have?",
            "How many {u}s are there?",
            "How many {u}s do you see?",
            "Count the {u}s.",
            "How long is the {n} in {u}s?",
            "Give me the number of {u}s.",
            "~How many {u}s are in the {n}?",
            u=unit,
            n=maker.noun,
        ),
        str(len(word)),
        f"The {maker.noun} has {len(word)} {unit}s.",
    )


def letters_at_positions(maker: WritingQuestionMaker, word: str, unit: str) -> None:
    """Ask for the letters at one or two positions."""
    asked = {0: "first", len(word) - 1: "last"}
    asked |= {k: ORDINALS[k] for k in range(1, len(word) - 1)}
    for at in maker.rng.sample(sorted(asked), min(2, len(asked))):
        maker.add(
            "letter",
            maker.phrase(
                "What is the {w} {u}?",
                "Which {u} comes {w}?",
                "What {u} is {w}?",
                "What is the {w} {u} of the {n}?",
                "Name the {w} {u}.",
                "~Which is the {w} {u}?",
                w=asked[at],
                u=unit,
                n=maker.noun,
            ),
            word[at],
            f"The {asked[at]} {unit} is {word[at]}.",
        )


def contains_letter(maker: WritingQuestionMaker, word: str) -> str:
    """Ask whether the word contains a letter, and return that letter."""
    here = maker.rng.random() < 0.5
    others = [x for x in "ABCDEFGHIJKLMNOPRSTUVWY" if x not in word]
    letter = maker.rng.choice(word if here else others)
    maker.add_yes_no(
        "letter",
        maker.phrase(
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


def count_letter(maker: WritingQuestionMaker, word: str, letter: str) -> None:
    """Ask how often a letter occurs: mostly one that repeats, else `letter`."""
    twice, number = Counter(word).most_common(1)[0]
    if number > 1 or maker.rng.random() < 0.15:
        letter = twice if maker.rng.random() < 0.7 else letter
        count = word.count(letter)
        maker.add(
            "count",
            maker.phrase(
                "How many times does {x} occur?",
                "How often is the letter {x} there?",
                "How many {x}s are in the word?",
                x=letter,
            ),
            str(count),
            f"The letter {letter} occurs {count} time{'' if count == 1 else 's'}.",
        )


def ask_colours(maker: WritingQuestionMaker, noun: str, colour: str) -> None:
    """Ask for the colour of the writing, and of the sign if there is one."""
    maker.add(
        "colour",
        maker.phrase(
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
    if maker.rng.random() < 0.4:
        asked = colour if maker.rng.random() < 0.5 else maker.rng.choice(list(COLOURS))
        maker.add_yes_no(
            "colour",
            maker.phrase(
                "Is the {n} {c}?",
                "Is it written in {c}?",
                "~Are the letters {c}?",
                n=noun,
                c=asked,
            ),
            asked == colour,
            f"it is {colour}",
        )
    if maker.scene.layout == "sign":
        plate = maker.scene.items[0].colour
        maker.add(
            "colour",
            maker.phrase(
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


def judge_statement(maker: WritingQuestionMaker, word: str) -> None:
    """Ask whether a statement about the text is true, in half of the cases."""
    claimed = word if maker.rng.random() < 0.5 else misread(word, maker.rng)
    truth = "true" if claimed == word else "false"
    if maker.rng.random() < 0.5:
        maker.add(
            "statement",
            maker.phrase(
                "True or false: it says {t}.",
                "True or false? The {n} is {t}.",
                "It says {t}. True or false?",
                n=maker.noun,
                t=claimed,
            ),
            truth,
            f"That is {truth}.",
        )


def ask_followup(maker: WritingQuestionMaker, word: str, colour: str) -> None:
    """Ask a second question whose pronoun refers to the text."""
    if maker.rng.random() < 0.6:
        return
    opening = QA("read", "What does it say?", word, f"It says {word}.")
    unit = "letters" if word.isalpha() else "characters"
    question, short, sentence = maker.rng.choice(
        (
            ("And what colour is it?", colour, f"It is {colour}."),
            ("What colour is it?", colour, f"It is {colour}."),
            (f"How many {unit} does it have?", str(len(word)), f"It has {len(word)} {unit}."),
            ("What does it start with?", word[0], f"It starts with {word[0]}."),
            ("What does it end with?", word[-1], f"It ends with {word[-1]}."),
        )
    )
    if len(word) > 1 or ("letters" not in sentence and "characters" not in sentence):
        maker.add("followup", question, short, sentence, (opening,))


def caption(maker: WritingQuestionMaker, word: str, colour: str, noun: str) -> None:
    """Ask for a caption."""
    question = maker.phrase(
        "What does the {pic} show?",
        "Describe the {pic} briefly.",
        "What is in the {pic}?",
        "Caption this {pic}.",
        "What do you see?",
        "Describe the {pic} in one sentence.",
        "~What do you see in the {pic}?",
    )
    if maker.scene.layout == "sign":
        plate = maker.scene.items[0].colour
        text = f"The picture shows {with_article(plate)} sign that says {word} in {colour}."
    else:
        text = f"The picture shows the {noun} {word} in {colour}."
    maker.add("caption", question, "", text)


def ask_about_two_words(maker: WritingQuestionMaker) -> None:
    """Ask about two words, one above the other."""
    (upper, first), (lower, second) = maker.words
    for where, word in (("top", upper), ("bottom", lower)):
        read_line(maker, where, word)
    if first != second:
        for colour, word in ((first, upper), (second, lower)):
            read_coloured(maker, colour, word)
    for _ in range(2):
        read_both(maker, upper, lower)
    if upper != lower:
        ask_about_one_word(
            maker, *maker.rng.choice((("top", upper, first), ("bottom", lower, second)))
        )
    count_lines(maker)
    confirm_either_word(maker, upper, lower)
    if maker.captioned:
        caption_both(maker)


def read_line(maker: WritingQuestionMaker, where: str, word: str) -> None:
    """Ask for the word at the top or at the bottom."""
    maker.add(
        "read",
        maker.phrase(
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


def read_coloured(maker: WritingQuestionMaker, colour: str, word: str) -> None:
    """Ask for the word of a certain colour."""
    maker.add(
        "read",
        maker.phrase(
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


def read_both(maker: WritingQuestionMaker, upper: str, lower: str) -> None:
    """Ask for the whole text."""
    maker.add(
        "read",
        maker.phrase(
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


def ask_about_one_word(maker: WritingQuestionMaker, where: str, word: str, colour: str) -> None:
    """Ask where one of the two words is, and for its colour."""
    maker.add(
        "position",
        maker.phrase(
            "Where is the word {t}?",
            "Is {t} at the top or at the bottom?",
            "Where does it say {t}?",
            t=word,
        ),
        where,
        f"{word} is at the {where}.",
    )
    maker.add(
        "colour",
        maker.phrase(
            "What colour is the word {t}?",
            "What colour is {t}?",
            "In which colour is {t} written?",
            t=word,
        ),
        colour,
        f"{word} is {colour}.",
    )


def count_lines(maker: WritingQuestionMaker) -> None:
    """Ask how many words there are."""
    maker.add(
        "count",
        maker.phrase(
            "How many words are there?",
            "How many lines are there?",
            "How many words do you see?",
        ),
        "2",
        "There are 2 words.",
    )


def confirm_either_word(maker: WritingQuestionMaker, upper: str, lower: str) -> None:
    """Ask whether a word is in the picture, which is often a near miss."""
    claimed = maker.rng.choice((upper, lower, misread(upper, maker.rng), misread(lower, maker.rng)))
    here = claimed in (upper, lower)
    maker.add_yes_no(
        "read",
        maker.phrase(
            "Does it say {t}?",
            "Is the word {t} in the {pic}?",
            "Do you see the word {t}?",
            "~Is the word {t} written here?",
            t=claimed,
        ),
        here,
        f"it says {upper} {lower}",
    )


def caption_both(maker: WritingQuestionMaker) -> None:
    """Ask for a caption of both words."""
    (upper, first), (lower, second) = maker.words
    maker.add(
        "caption",
        maker.phrase(
            "What does the {pic} show?",
            "Describe the {pic} briefly.",
            "Caption this {pic}.",
            "What do you see?",
        ),
        "",
        f"The picture shows the words {upper} in {first} and {lower} in {second}.",
    )


def ask_in_general(maker: WritingQuestionMaker) -> None:
    """Ask for something absent, whether there is writing, or for something unknowable."""
    roll = maker.rng.random()
    used = {colour for _, colour in maker.words}
    if roll < 0.35:
        colour = maker.rng.choice([c for c in COLOURS if c not in used])
        maker.add(
            "false_premise",
            maker.phrase(
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
        maker.questions.append(false_premise("writing", maker.rng, maker.split))
    elif roll < 0.6:
        maker.add(
            "existence",
            maker.phrase(
                "Is there any writing{in_pic}?",
                "Is something written here?",
                "Do you see any text?",
                "~Do you see any writing?",
            ),
            "yes",
            "Yes, there is writing.",
        )
    elif roll < 0.68:
        maker.add(
            "unknowable",
            maker.phrase(
                "Who wrote this?",
                "When was this written?",
                "Where does this sign stand?" if maker.scene.layout == "sign" else "Who is it for?",
            ),
            "unknown",
            "I cannot tell that from the picture.",
        )
