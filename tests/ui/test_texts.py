"""The texts of the page: catalogues that fit each other, the page, and the packages' messages."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.test_layers import ROOT, modules
from ui.texts import (
    ENGLISH,
    catalogue,
    choose_language,
    entry,
    fill,
    find_texts,
    language_names,
    model_label,
    to_script,
    write,
)
from vqa_app.serving.model_choices import BUILTIN

STATIC = ROOT / "ui" / "static"
KEY = r"\b[a-z]+\.[a-zA-Z0-9]+\b"
OTHERS = sorted({*language_names()} - {ENGLISH})
PLURALS = {"de": {"one", "other"}, "es": {"one", "other"}, "fr": {"one", "other"}} | {
    "en": {"one", "other"}, "zh-Hans": {"other"}
}  # fmt: skip
"""The plural forms that a language needs; those of millions are like `other`."""


def forms(text: str | dict[str, str]) -> list[str]:
    return [text] if isinstance(text, str) else list(text.values())


def placeholders(text: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", text))


@cache
def sources() -> dict[Path, str]:
    found = [*STATIC.glob("*.js"), STATIC / "page.html"]
    found += [file for name, file in modules().items() if name.startswith("ui.")]
    return {file: file.read_text("utf-8") for file in found}


def test_every_text_that_is_used_exists() -> None:
    used = {
        (file.name, key)
        for file, text in sources().items()
        for pattern in (rf'\b(?:t|entry)\(\s*"({KEY})"', rf"\{{\{{({KEY})\}}\}}")
        for key in re.findall(pattern, text)
    }
    assert len(used) > 200
    assert not [one for one in sorted(used) if one[1] not in catalogue(ENGLISH)]


def test_every_text_is_used() -> None:
    words = {key for text in sources().values() for key in re.findall(KEY, text)}
    own = {key for key in catalogue(ENGLISH) if not key.startswith("server.")}
    unused = own - words - {"language.name"}
    assert not unused


def test_every_message_of_the_packages_in_the_catalogue_stands_in_their_source() -> None:
    """A message that was changed there would silently be shown in English."""
    texts: set[str] = set()
    for file in modules().values():
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts |= {node.value, *re.split(r"(?<=\.) ", node.value)}
            elif isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
                joined = "".join(map(str, parts)).strip()
                texts |= {joined, *re.split(r"(?<=\.) ", joined)}
    messages = {k: str(v) for k, v in catalogue(ENGLISH).items() if k.startswith("server.")}
    assert len(messages) > 100
    assert not [
        key for key, text in messages.items() if re.sub(r"\{\w+\}", "{}", text) not in texts
    ]


@pytest.mark.parametrize("field", ["note", "figures_source"])
def test_the_page_describes_every_listed_model_in_its_language(field: str) -> None:
    from vqa_app.checkpoints.hub_models import CATALOGUE

    texts = {getattr(entry, field) for entry in CATALOGUE}
    assert not [text for text in texts for part in find_texts(text) if isinstance(part, str)]


TRAINER = (
    "Loading builtin.",
    "Reading small.json.",
    "35 rows, 66 answers, 6 pictures; 83 to 356 tokens, median 96; 1,372 trained."
    " Held out: 1 row with 8 questions.",
    "Note: Only 8 questions held out, so accuracy and the choice of the best checkpoint depend"
    " largely on chance.",
    "Training 949,632 of 7,495,104 parameters (13 %): projector 74,112, LLM 875,520,"
    " image encoder 0.",
    "Stage lora. Learning rate 0.00092, 0.000092 for the projector. LoRA of rank 48, alpha 96."
    " 3 steps of 8 rows; passes over the data: 0.686. Micro-batches in each step: 2."
    " Precision: fp32.",
    "Memory: about 801 MB; 17.9 GB are free.",
    'Without looking at the pictures: 12.5 % for always answering "unknown", 12.5 % for the most'
    " frequent answer to each type of question (counted in the training rows).",
    "Encoder outputs are kept: 295 kB for 6 pictures, 0 stored before. They are in features.",
    "Before training: accuracy 62.5 %, loss 0.198, image gain 4.986.",
    "The best evaluation was at step 2; its weights are kept.",
    "Answering with grey pictures.",
    "The same model with grey pictures: 12.5 % on 8 questions; with the pictures 62.5 % on these."
    " Measured in 1.8 s.",
    "Memory: at most 758 MB was in use.",
    "Saved run1; report: report.html",
)
"""What a training of the built-in model says."""


@pytest.mark.parametrize("message", TRAINER)
def test_the_page_says_in_its_language_what_the_trainer_says(message: str) -> None:
    assert not [part for part in find_texts(message) if isinstance(part, str)]


def test_numbers_in_messages_are_written_by_the_page() -> None:
    (found,) = find_texts("Memory: about 1.0 GB; 801 MB are free.")
    assert found == entry("server.trainMemory", total={"bytes": 10**9}, free={"bytes": 801 * 10**6})
    assert find_texts("0.8 GB") == [{"bytes": 8 * 10**8}]
    (found,) = find_texts("Before training: accuracy 62.5 %, loss 0.198, image gain 4.986.")
    values = {"accuracy": {"share": 0.625}, "loss": 0.198, "gain": 4.986}
    assert found == entry("server.trainBefore", **values)
    (found,) = find_texts("3 steps of 1 row; passes over the data: 0.686.")
    values = {"steps": entry("train.steps", count=3), "rows": entry("teach.rows", count=1)}
    assert found == entry("server.trainSteps", **values, epochs=0.686)
    assert write(found, "de") == "3 Schritte zu 1 Zeile; Durchgänge durch die Daten: 0.686."
    assert write({"bytes": 10**9}, "de") == "1.0 GB"
    assert write({"share": 0.625}, "de") == "62.5 %"


@pytest.mark.parametrize(
    "message",
    [
        "lab:8000 does not accept the key. It says: no. Put it into the environment variable"
        " VQA_API_KEY where vqa-app is started.",
        "lab:8000 sent nothing for 300 seconds. It may be overloaded, or still loading the model:"
        " try again later.",
        "qwen on lab:8000 does not take these pictures. Choose a model that can see, or check the"
        " pictures.",
        "lab:8000 failed with status 503. Try again later.",
        "The key of lab is missing. Set the environment variable LAB before vqa-app is started.",
    ],
)
def test_the_page_says_in_its_language_what_is_wrong_with_a_server(message: str) -> None:
    assert not [part for part in find_texts(message) if isinstance(part, str)]


def test_the_built_in_model_is_named_in_the_language_of_the_page() -> None:
    assert write(model_label(BUILTIN.label), "de") == "Eingebaut"
    assert model_label("Trained here") == "Trained here", "a run of that name"


def test_no_two_messages_of_the_packages_are_equal() -> None:
    messages = [v for k, v in catalogue(ENGLISH).items() if k.startswith("server.")]
    assert len(messages) == len({str(message) for message in messages})


@pytest.mark.parametrize("language", OTHERS)
def test_each_language_has_the_same_texts(language: str) -> None:
    english, other = catalogue(ENGLISH), catalogue(language)
    assert list(other) == list(english), "the same keys, in the same order"
    for key, text in english.items():
        assert isinstance(other[key], str) == isinstance(text, str), key
        wanted = {name for form in forms(text) for name in placeholders(form)}
        for form in forms(other[key]):
            assert form.strip(), key
            optional = set() if isinstance(text, str) else {"count"}  # "one" may be a word
            assert placeholders(form) | optional == wanted | optional, key


@pytest.mark.parametrize("language", sorted(language_names()))
def test_each_number_has_the_plural_forms_of_its_language(language: str) -> None:
    for key, text in catalogue(language).items():
        if not isinstance(text, str):
            assert set(text) == PLURALS[language], key


@pytest.mark.parametrize(
    ("accepted", "chosen", "expected"),
    [
        ("de-CH,en;q=0.5", "", "de"),
        ("en;q=0.5, fr;q=0.8", "", "fr"),
        ("pt,es;q=0.9,en;q=0.8", "", "es"),
        ("zh-CN", "", "zh-Hans"),
        ("ZH-tw", "", "zh-Hans"),
        ("en", "fr", "fr"),
        ("de;q=0,en", "", "en"),
        ("de", "../de", "de"),
        ("de", "xx", "de"),
    ],
)
def test_language_is_the_chosen_one_or_the_browsers(
    accepted: str, chosen: str, expected: str
) -> None:
    assert choose_language(accepted, chosen) == expected


@pytest.mark.parametrize(
    ("accepted", "chosen", "expected"),
    [
        ("", "", "en"),
        ("en-GB,en;q=0.9", "", "en"),
        ("pt-BR,pt", "", "en"),
        ("*", "", "en"),
        (";;q=x,,q=1", "", "en"),
        ("en;q=1.2.3,zz", "", "en"),
    ],
)
def test_unknown_languages_fall_back_to_english(accepted: str, chosen: str, expected: str) -> None:
    assert choose_language(accepted, chosen) == expected


def test_texts_are_plain_text() -> None:
    for language in language_names():
        for key, text in catalogue(language).items():
            for form in forms(text):
                assert form == form.strip(), key
                assert not re.search(r"[<>{}]|\s{2}", re.sub(r"\{\w+\}", "_", form)), key


def test_the_page_is_filled_with_escaped_texts() -> None:
    assert fill('<p title="{{page.skip}}">{{language}}</p>', "en") == (
        '<p title="Skip to the content">en</p>'
    )
    page = fill((STATIC / "page.html").read_text("utf-8"), "en")
    assert "{{" not in page
    assert '<html lang="en">' in page


def test_an_unknown_language_gets_the_english_script() -> None:
    assert to_script("../../secret") == to_script("en")
    assert to_script("en").startswith('"use strict";\nconst TEXTS = {')


def test_messages_of_the_packages_are_found_with_their_values() -> None:
    assert find_texts("odd.png is larger than 20 MB. Use a smaller picture.") == [
        entry("server.pictureTooLarge", name="odd.png", size="20"),
        entry("server.useSmaller"),
    ]
    assert find_texts("The question has 20,001 characters. At most 20,000 fit.") == [
        entry("server.questionLength", count=20001),
        entry("server.mostFit", most=20000),
    ]
    assert find_texts("") == []


def test_messages_that_the_catalogue_lacks_stay_as_they_are() -> None:
    message = "Odd thing: it broke. Try again. Or not."
    assert find_texts(message) == ["Odd thing:", "it broke.", entry("server.again"), "Or not."]
