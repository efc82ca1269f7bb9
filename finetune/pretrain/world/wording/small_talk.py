"""Small talk, and questions about a picture where none was given."""

import random

from finetune.pretrain.world.scene import QA, Split
from finetune.pretrain.world.wording.phrasing import fill_template

_ONLY_PICTURES = "I do not know; I can only answer questions about pictures."
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
            "Good evening.",
            "Nice to meet you.",
            "Are you there?",
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
        "I answer questions about pictures: shapes, things, colours, numbers, places, words.",
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
        "I am a small vision and language model.",
    ),
    (
        (
            "Thank you!",
            "Thanks.",
            "Thanks a lot!",
            "Great, thank you.",
            "thx",
            "ty",
            "Thanks, that helps.",
            "Thank you very much.",
            "Perfect, thanks!",
            "~Many thanks!",
        ),
        "You are welcome!",
    ),
    (
        (
            "Great!",
            "Nice.",
            "Cool!",
            "Well done!",
            "OK.",
            "Good.",
            "I see.",
            "Right.",
            "Wow!",
            "Very good.",
            "~Excellent!",
        ),
        "What else would you like to know?",
    ),
    (
        ("Sorry.", "Never mind.", "Forget it.", "My mistake.", "Oops.", "~I beg your pardon."),
        "No problem! Ask me something else.",
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
        "I am small: photographs often mislead me, and questions about the world are beyond me.",
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
            "Who wrote Hamlet?",
            "How many people live in Paris?",
            "What is the tallest mountain?",
            "When did the war end?",
            "How far away is the moon?",
            "Who invented the telephone?",
            "What does love mean?",
            "Recommend a film.",
            "How do I learn English?",
            "What is the best football team?",
            "Write an email to my teacher.",
            "Can you help me with my homework?",
            "What should I eat tonight?",
            "Which is bigger, Germany or France?",
            "Do you like music?",
            "What is the speed of light?",
            "~Tell me a story.",
            "~What is the news today?",
        ),
        _ONLY_PICTURES,
    ),
)
OTHER_LANGUAGES = (
    "Was ist das?",
    "Was siehst du?",
    "Welche Farbe hat der Kreis?",
    "Wie viele Kreise gibt es?",
    "Ist das ein Hund?",
    "Hallo, wie geht es dir?",
    "Sprichst du Deutsch?",
    "Wo ist der Stern?",
    "Danke schön!",
    "Beschreibe das Bild.",
    "Qu'est-ce que c'est ?",
    "De quelle couleur est le cercle ?",
    "Combien de cercles y a-t-il ?",
    "Bonjour, ça va ?",
    "Parlez-vous français ?",
    "Où est l'étoile ?",
    "Que vois-tu ?",
    "Merci beaucoup !",
    "¿Qué es esto?",
    "¿De qué color es el círculo?",
    "¿Cuántos círculos hay?",
    "¿Dónde está la estrella?",
    "Hola, ¿qué tal?",
    "¿Hablas español?",
    "Describe la imagen, por favor.",
    "Che cos'è questo?",
    "Di che colore è il cerchio?",
    "Quanti cerchi ci sono?",
    "Cosa vedi nell'immagine?",
    "O que é isso?",
    "Qual é a cor do círculo?",
    "Quantos círculos existem?",
    "Wat is dit?",
    "Welke kleur heeft de cirkel?",
    "Hoeveel cirkels zijn er?",
    "Co to jest?",
    "Jaki kolor ma koło?",
    "Vad är det här?",
    "Vilken färg har cirkeln?",
    "Bu nedir?",
    "Что это?",
    "Какого цвета круг?",
    "Сколько здесь кругов?",
    "これは何ですか？",  # noqa: RUF001
    "何色ですか？",  # noqa: RUF001
    "这是什么？",  # noqa: RUF001
    "图片里有什么？",  # noqa: RUF001
    "이것은 무엇입니까?",
    "ما هذا؟",
    "यह क्या है?",
    "~Was ist auf dem Bild zu sehen?",
    "~Que voyez-vous sur l'image ?",
    "~¿Qué ves en la foto?",
    "~Quale figura è rossa?",
)
_ONLY_ENGLISH = "I only know English. Please ask me about a picture in English."
_SUMS = ("{s}?", "{s} = ?", "What is {s}?", "How much is {s}?", "Calculate {s}.", "~Work out {s}.")
_OPERATORS = ("+", "-", "*", "/", "plus", "minus", "times", "divided by")
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
    """Return small talk, whose answer does not depend on a picture.

    A part of it are sums and sentences in other languages, which the model cannot answer.
    """
    roll = rng.random()
    if roll < 0.12:
        question = fill_template(OTHER_LANGUAGES, rng, split)
        return QA("other_language", question, "", _ONLY_ENGLISH)
    if roll < 0.22:
        values = rng.randint(0, 30), rng.randint(1, 30)
        task = f"{values[0]} {rng.choice(_OPERATORS)} {values[1]}"
        task = task if rng.random() < 0.7 else task.replace(" ", "")
        return QA("smalltalk", fill_template(_SUMS, rng, split, s=task), "", _ONLY_PICTURES)
    questions, answer = rng.choice(_SMALL_TALK)
    return QA("smalltalk", fill_template(questions, rng, split), "", answer)


def without_picture(rng: random.Random, split: Split) -> QA:
    """Return a question about a picture, to be asked where none was given."""
    question = fill_template(
        _ABOUT_PICTURES, rng, split, k=rng.choice(_KINDS), c=rng.choice(_COLOURS)
    )
    return QA("no_picture", question, "", _NO_PICTURE)
