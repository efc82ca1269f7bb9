"""Writing: letters are drawn in their boxes, and questions about them are answered right."""

import random
import re

import numpy as np
import pytest

from finetune.pretrain.world.drawing.lettering import FONTS, HELD_OUT_FONT, font, font_folder
from finetune.pretrain.world.rooms.writing.room import KINDS, WRITING
from finetune.pretrain.world.rooms.writing.words import HELD_OUT_WORDS, WORDS, misread

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


def scenes(split, count):
    return [WRITING.make(random.Random(f"{split}{seed}"), split) for seed in range(count)]


def letters(scene):
    return [item for item in scene.items if item.kind != "sign"]


def lines(scene):
    """Return the words that the items spell, from the top."""
    words = []
    for item in letters(scene):
        if item.order == 0:
            words.append("")
        words[-1] += item.kind
    return words


def asked(count):
    return [
        (scene, qa)
        for seed, scene in enumerate(scenes("train", count))
        for qa in WRITING.ask(scene, random.Random(seed), "train")
    ]


def test_words_have_two_to_six_letters_and_some_are_held_out():
    assert all(2 <= len(word) <= 6 and word.isalpha() for word in WORDS)
    assert len(WORDS) > 400
    assert 50 < len(HELD_OUT_WORDS) < len(WORDS) / 4


def test_fonts_are_installed_and_differ():
    assert font_folder() is not None
    drawn = {font(name, 40).getmask("Rag").getbbox() for name in (*FONTS, HELD_OUT_FONT)}
    assert len(drawn) > 8


def test_the_held_out_font_and_words_occur_in_the_test_split_only():
    def seen(split):
        texts = [text for scene in scenes(split, 500) for text in scene.extra["texts"]]
        return {t.line.font for t in texts}, {t.word for t in texts}

    held = {word.upper() for word in HELD_OUT_WORDS}
    fonts, words = seen("train")
    assert HELD_OUT_FONT not in fonts
    assert fonts == set(FONTS)
    assert not words & held
    fonts, words = seen("test")
    assert HELD_OUT_FONT in fonts
    assert words & held


def test_letters_are_legible_inside_the_picture_and_in_different_patches():
    for scene in scenes("test", 500):
        for item in letters(scene):
            left, top, right, bottom = item.box
            assert -0.01 <= left < right <= 1.01
            assert -0.01 <= top < bottom <= 1.01
            assert item.kind in KINDS
        # Small letters such as "a" are lower than capitals.
        assert max(i.box[3] - i.box[1] for i in letters(scene)) >= 0.06
        for one, other in zip(letters(scene), letters(scene)[1:], strict=False):
            if other.order:
                assert other.centre[0] - one.centre[0] > 0.105


def test_letters_are_drawn_in_their_boxes():
    for scene in scenes("train", 40):
        if scene.layout != "word":
            continue
        picture = np.asarray(WRITING.draw(scene)).astype(int)
        for item in letters(scene):
            left, top, right, bottom = (
                round(v * (scene.width, scene.height)[k % 2]) for k, v in enumerate(item.box)
            )
            pen = np.array(scene.extra["texts"][0].rgb)
            inside = np.abs(picture[top:bottom, left:right] - pen).sum(-1)
            assert (inside < 90).mean() > 0.08


def test_reading_questions_agree_with_the_items():
    for scene, qa in asked(350):
        words = lines(scene)
        if qa.skill == "read":
            capitals = [w for w in re.findall(r"\b[A-Z0-9]+\b", qa.question)]
            if qa.short in ("yes", "no"):
                assert qa.short == ("yes" if capitals[-1] in words else "no")
            elif len(words) == 1:
                assert qa.short == words[0]
            elif "top" in qa.question or "bottom" in qa.question:
                assert qa.short == words["bottom" in qa.question]
            else:
                assert qa.short in (*words, " ".join(words))
        if qa.skill == "letter" and qa.short not in ("yes", "no"):
            at = next((k for k, w in enumerate(ORDINALS) if w in qa.question), -1)
            assert qa.short == words[0][at]
        if qa.skill == "letter" and qa.short in ("yes", "no"):
            single = re.findall(r"\b[A-Z]\b", qa.question)[-1]
            assert qa.short == ("yes" if single in words[0] else "no")


def test_letters_are_counted_right():
    for scene, qa in asked(350):
        if qa.skill != "count" or scene.layout == "two":
            continue
        word = lines(scene)[0]
        single = re.findall(r"\b([A-Z])s?\b", qa.question)
        if "times" in qa.question or "often" in qa.question or "in the word" in qa.question:
            assert qa.short == str(word.count(single[-1]))
        else:
            assert qa.short == str(len(word))


def test_answered_colours_are_those_of_the_items():
    for scene, qa in asked(400):
        if qa.skill == "colour" and qa.short not in ("yes", "no"):
            if "sign" in qa.question:
                assert qa.short == scene.items[0].colour
                assert scene.items[0].kind == "sign"
            elif scene.layout != "two":
                assert qa.short == letters(scene)[0].colour
        if qa.skill == "false_premise":
            assert not any(f" {i.colour}" in qa.question for i in letters(scene))


@pytest.mark.parametrize("word", ["STOP", "A", "2024", "AB12"])
def test_a_misread_word_is_another_word(word):
    assert all(misread(word, random.Random(k)) != word for k in range(200))
