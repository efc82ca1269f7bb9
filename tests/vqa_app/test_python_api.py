"""What Python code may give, and what it is told of what it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vqa_app import Conversation, GenerationOptions, Message, VqaError, load_model, open_picture
from vqa_app.errors import ImageError, UsageError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "square.png"
    Image.new("RGB", (4, 3), (200, 30, 30)).save(path)
    return path


def test_a_question_takes_pictures_as_they_are_at_hand(file: Path) -> None:
    picture = open_picture(file)
    assert open_picture(picture) is picture
    array = np.asarray(picture.image)
    for given in (picture, file, str(file), file.read_bytes(), picture.image, array):
        for pictures in (given, [given], (given,)):
            assert Conversation.ask("What is it?", pictures).pictures == (picture,)
    assert open_picture(np.zeros((2, 3), bool)).image.size == (3, 2)


@pytest.mark.parametrize("shape", [(2, 2, 5), (0, 4, 3), (1, 2, 3, 4)])
def test_an_array_that_is_no_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError):
        open_picture(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("value", [None, 5, ["a.png"], {}])
def test_what_is_no_picture_is_told_what_is(value: Any) -> None:
    with pytest.raises(ImageError, match="expected a picture") as caught:
        open_picture(value)
    assert "PIL image" in caught.value.hint


def test_files_that_cannot_be_read_are_told_why(file: Path) -> None:
    with file.open() as text, pytest.raises(ImageError, match="opened as text"):
        open_picture(text)  # type: ignore[arg-type]
    with file.open("rb") as closed:
        pass
    with pytest.raises(ImageError, match=r"Could not read square\.png: .*closed"):
        open_picture(closed)


def test_messages_hold_texts_and_pictures_alone(file: Path) -> None:
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
        {"stop": "."},
    ],
    ids=str,
)
def test_options_of_another_type_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(options))} is "):
        GenerationOptions(**options)


def test_numbers_of_numpy_are_numbers() -> None:
    GenerationOptions(max_new_tokens=np.int64(3), temperature=np.float32(0.5), seed=np.int32(1))


def test_a_model_is_named_by_a_text_or_a_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Expected the name of a model, got None"):
        load_model(None)  # type: ignore[arg-type]
    with pytest.raises(VqaError, match=r"no config\.json"):
        load_model(tmp_path)
    with pytest.raises(VqaError, match="device None cannot be used"):
        load_model(device=None)  # type: ignore[arg-type]
