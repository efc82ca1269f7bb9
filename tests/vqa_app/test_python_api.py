"""What the Python API accepts, and how it rejects anything else."""

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
    with file.open() as text, pytest.raises(ImageError, match="opened as text"):
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
        {"stop": "."},
    ],
    ids=str,
)
def test_options_of_the_wrong_type_are_rejected(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(options))} is "):
        GenerationOptions(**options)


def test_options_accept_numbers_of_numpy() -> None:
    GenerationOptions(max_new_tokens=np.int64(3), temperature=np.float32(0.5), seed=np.int32(1))


def test_a_model_is_named_by_a_string_or_a_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Expected the name of a model, got None"):
        load_model(None)  # type: ignore[arg-type]
    with pytest.raises(VqaError, match=r"no config\.json"):
        load_model(tmp_path)
    with pytest.raises(VqaError, match="device None cannot be used"):
        load_model(device=None)  # type: ignore[arg-type]
