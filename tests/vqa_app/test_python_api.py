"""What the Python API accepts, and how it rejects anything else."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vqa_app import (
    Conversation,
    GenerationOptions,
    ImageLimits,
    Message,
    VqaError,
    load_model,
    open_picture,
)
from vqa_app.errors import ImageError, UsageError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "square.png"
    Image.new("RGB", (4, 3), (200, 30, 30)).save(path)
    return path


def test_a_question_accepts_pictures_in_any_form(file: Path) -> None:
    picture = open_picture(file)
    assert open_picture(picture) is picture
    array = np.asarray(picture.image)
    for source in (picture, file, str(file), file.read_bytes(), picture.image, array):
        for pictures in (source, [source], (source,)):
            assert Conversation.ask("What is it?", pictures).pictures == (picture,)
    assert open_picture(np.zeros((2, 3), bool)).image.size == (3, 2)


@pytest.mark.parametrize("shape", [(2, 2, 5), (0, 4, 3), (1, 2, 3, 4)])
def test_an_array_of_the_wrong_shape_is_rejected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError):
        open_picture(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("value", [None, 5, ["a.png"], {}])
def test_the_error_for_another_value_says_what_is_accepted(value: Any) -> None:
    with pytest.raises(ImageError, match="Expected a picture") as caught:
        open_picture(value)
    assert "PIL image" in caught.value.hint


def test_the_error_for_an_unreadable_file_says_why(file: Path) -> None:
    with file.open(encoding="utf-8") as text, pytest.raises(ImageError, match="opened as text"):
        open_picture(text)  # type: ignore[arg-type]
    with file.open("rb") as closed:
        pass
    with pytest.raises(ImageError, match=r"Could not read square\.png: .*closed"):
        open_picture(closed)


def test_messages_contain_only_texts_and_pictures(file: Path) -> None:
    with Image.open(file) as image:
        for part in (image, file, 5, None):
            with pytest.raises(UsageError, match="Expected text or a picture in a message"):
                Message("user", ("What?", part))  # type: ignore[arg-type]
    for question in (5, None, b"What?"):
        with pytest.raises(UsageError, match="Expected text or a picture in a message"):
            Conversation.ask(question)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 2.5},
        {"max_new_tokens": True},
        {"max_new_tokens": None},
        {"temperature": "hot"},
        {"temperature": float("nan")},
        {"top_k": 1.5},
        {"seed": "1"},
        {"seed": 1 << 63},
        {"seed": 10**5000},
        {"seed": float("inf")},
        {"temperature": np.bool_(True)},
        {"temperature": 10**400},
        {"temperature": Fraction(10**400)},
        {"temperature": -1e-9},
        {"temperature": 10.000001},
        {"top_p": 0},
        {"top_p": float("-inf")},
        {"top_k": -1},
        {"top_k": 10**30},
        {"repetition_penalty": 0},
        {"max_new_tokens": 0},
        {"max_new_tokens": "5"},
        {"stop": "."},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_wrong_type_are_rejected(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(options))} is "):
        GenerationOptions(**options)


def test_options_become_pythons_own_numbers() -> None:
    given: dict[str, Any] = {
        "max_new_tokens": np.int64(3),
        "temperature": np.float32(0.5),
        "top_p": 1,
        "top_k": 5.0,
        "repetition_penalty": Fraction(2),
        "seed": np.float64(-7),
    }
    options = GenerationOptions(**given)
    for name, value in given.items():
        number = getattr(options, name)
        assert number == value
        whole = name in ("max_new_tokens", "top_k", "seed")
        assert type(number) is (int if whole else float), name


def test_limits_of_pictures_are_whole_numbers() -> None:
    limits = ImageLimits(max_bytes=1e6, max_pixels=np.int64(10))  # type: ignore[arg-type]
    assert limits == ImageLimits(1_000_000, 10)
    assert type(limits.max_bytes) is type(limits.max_pixels) is int
    for wrong in (1.5, -1, True, float("nan"), 1 << 64, "5", None):
        with pytest.raises(UsageError, match="max_bytes is"):
            ImageLimits(max_bytes=wrong)  # type: ignore[arg-type]


def test_a_model_is_named_by_a_string_or_a_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Expected the name of a model, got None"):
        load_model(None)  # type: ignore[arg-type]
    with pytest.raises(VqaError, match=r"no config\.json"):
        load_model(tmp_path)
    with pytest.raises(VqaError, match="There is no device None"):
        load_model(device=None)  # type: ignore[arg-type]
