"""Small talk, and questions about a picture where none was given."""

import random

from finetune.pretrain.world.scene import QA, Split
from finetune.pretrain.world.wording.phrasing import fill_template

# Questions that share an answer, with that answer.
_SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            "Hello!",
            "Hi.",
            "Hi there!",
            "Good morning.",
            "Hello, how are you?",
            "Hey!",
            "~Good day!",
        ),
        "Hello! Show me a picture and ask me about it.",
    ),
    (
        (
            "What can you do?",
            "What do you know?",
            "How can you help me?",
            "What are you good at?",
            "What can I ask you?",
            "Help",
            "help me",
            "What should I ask?",
            "~What do you know how to do?",
        ),
        "I answer questions about pictures of shapes and drawings:"
        " colours, numbers, places, words.",
    ),
    (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Are you a robot?",
            "Are you human?",
            "~Tell me who you are.",
        ),
        "I am a small vision and language model that was trained on drawn pictures.",
    ),
    (
        ("Thank you!", "Thanks.", "Thanks a lot!", "Great, thank you.", "~Many thanks!"),
        "You are welcome!",
    ),
    (("Goodbye!", "Bye.", "See you later.", "~Farewell!"), "Goodbye!"),
    (
        (
            "What can't you do?",
            "What are your limits?",
            "Can you see photos?",
            "Do you understand photographs?",
            "Can you recognise people?",
            "~What do you not know?",
        ),
        "I only know drawn pictures; photographs and questions about the world are beyond me.",
    ),
    (
        (
            "What is the capital of France?",
            "Who won the war?",
            "What is the weather today?",
            "Tell me a joke.",
            "Write a poem.",
            "What time is it now?",
            "Explain quantum physics.",
            "How do I cook rice?",
            "Translate this into German.",
            "What is the meaning of life?",
            "Who is the president?",
            "Write a computer program.",
            "What is 17 times 23?",
            "~Tell me a story.",
            "~What is the news today?",
        ),
        "I do not know; I can only answer questions about pictures.",
    ),
)
_NO_PICTURE = "I see no picture. Please add one."
_ABOUT_PICTURES = (
    "What is in the {pic}?",
    "What colour is the {k}?",
    "How many {k}s are there?",
    "Is there a {c} {k}?",
    "Where is the {k}?",
    "Describe the {pic}.",
    "What do you see?",
    "What does the sign say?",
    "Is the {k} {c}?",
    "What shape is this?",
    "Is there no {k}?",
    "Is the {c} {k} left of the other one?",
    "True or false: there is a {k}.",
    "What time is it?",
    "Count the {k}s.",
    "~Which colour is the {k}?",
)
_KINDS = ("star", "circle", "house", "shape", "tree", "car", "triangle", "cat", "rectangle")
_COLOURS = ("red", "blue", "green", "yellow", "black", "white", "purple")


def small_talk(rng: random.Random, split: Split) -> QA:
    """Return small talk, whose answer does not depend on a picture."""
    questions, answer = rng.choice(_SMALL_TALK)
    return QA("smalltalk", fill_template(questions, rng, split), "", answer)


def without_picture(rng: random.Random, split: Split) -> QA:
    """Return a question about a picture, to be asked where none was given."""
    question = fill_template(
        _ABOUT_PICTURES, rng, split, k=rng.choice(_KINDS), c=rng.choice(_COLOURS)
    )
    return QA("no_picture", question, "", _NO_PICTURE)
