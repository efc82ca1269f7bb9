"""Data that users reported as read wrongly, made small: what each file becomes."""

from __future__ import annotations

import gzip
import json
import os
import re
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from finetune.data.read import read_rows
from finetune.data.samples import make_samples
from tests import architectures
from tests.finetune.data_rows import CAT, only_problem, only_row, question, turns_of, write
from vqa_app.errors import DataError


def chat(asked: Any, answer: Any = "a cat") -> list[dict[str, Any]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def shown(folder: Path, record: dict[str, Any]) -> list[str]:
    """Return the first question of a record, with pictures by name."""
    parts = only_row(write(folder, [record])).turns[0].parts
    return [part if isinstance(part, str) else part.name for part in parts]


@pytest.fixture(scope="module")
def processor(tiny_llava_dir: Path) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(tiny_llava_dir)


def trained_text(path: Path, processor: Any) -> str:
    """Return the text of the trained tokens."""
    row = only_row(path)
    (sample,) = make_samples(
        row, row.conversation(), processor, turns="together", share_prefix=False
    )
    return processor.tokenizer.decode(sample.input_ids[sample.answer_mask])


# An answer in several text parts


def test_an_answer_in_several_text_parts_has_one_end_token(folder: Path, processor: Any) -> None:
    parts = [{"type": "text", "text": text} for text in ("It is a red circle", " in the middle.")]
    asked = [{"type": "image", "image": "cat.png"}, {"type": "text", "text": "What is it?"}]
    several = trained_text(write(folder, [{"messages": chat(asked, parts)}]), processor)
    whole = chat(asked, "It is a red circle in the middle.")
    assert several == trained_text(write(folder, [{"messages": whole}]), processor)
    assert several.startswith("It is a red circle in the middle.")


@pytest.mark.parametrize("side", [0, 1])
def test_a_list_of_texts_is_no_message(folder: Path, side: int) -> None:
    messages = chat("Which numbers are shown?", "3 and 4")
    messages[side]["content"] = ["3", "4"]
    problem = only_problem(write(folder, [{"messages": messages}]))
    assert f"Message {side + 1} is a list of 2 texts: ['3', '4']" in problem.message
    messages[side]["content"] = ["3", {"type": "text", "text": "4"}]
    problem = only_problem(write(folder, [{"messages": messages}]))
    assert f"Message {side + 1} is a list of 2 texts" in problem.message
    for part in ("What is it?", {"type": "text", "text": "What is it?"}):
        record = {"messages": chat(["<image>", part]), "images": ["cat.png"]}
        assert turns_of(only_row(write(folder, [record]))) == CAT


# Bytes


@pytest.mark.parametrize("column", ["question", "answer"])
def test_a_column_of_bytes_is_text(folder: Path, column: str) -> None:
    record = {"image": "cat.png", "question": "What is it?", "answer": "a cat"}
    record[column] = record[column].encode()
    table = pyarrow.table({key: [value] for key, value in record.items()})
    pyarrow.parquet.write_table(table, folder / "data.parquet")
    assert turns_of(only_row(folder / "data.parquet")) == CAT


# Placeholders and picture marks of other model families


@pytest.mark.parametrize(
    ("asked", "answer", "what"),
    [
        ("<image>Find <ref-object>", "here", "Message 1 contains <ref-object>"),
        ("<image>Where is the cat?", "<bbox>", "Message 2 contains <bbox>"),
        ("<image>What?", "<|box_start|>(1,2),(3,4)<|box_end|>", "Message 2 contains <|box_start|>"),
        ("<image>What? <|video_pad|>", "a cat", "Message 1 contains <|video_pad|>"),
        ("<image>\n<fake_token_around_image>What?", "a cat", "contains <fake_token_around_image>"),
        ("<image>What?", "<start-image>", "Message 2 contains <start-image>"),
        ("<video>What?", "a cat", "Message 1 contains <video>"),
        ("<image>Is it like <image>?", "no", "has <image> for which there is no picture"),
        ("<image_02>What?", "a cat", "has <image_02>; expected <image_01>"),
        ("<image>What?", "The cat in <image1>.", "no picture"),
    ],
)
def test_a_placeholder_that_stands_for_something_else_is_refused(
    folder: Path, asked: str, answer: str, what: str
) -> None:
    objects = {"ref": ["the cat"], "bbox": [[1, 1, 5, 5]]}
    record = {"messages": chat(asked, answer), "images": ["cat.png"], "objects": objects}
    problem = only_problem(write(folder, [record]))
    assert what in problem.message
    assert problem.hint


@pytest.mark.parametrize(
    "text",
    [
        "<bbox>1,2,3,4</bbox>",
        "[IMG]a.gif[/IMG]",
        '<img src="a.gif">',
        '<image href="a.png"></image>',
        "a <video> tag",
        "<|end|>",
    ],
)
def test_markup_that_holds_its_own_value_is_text(folder: Path, text: str) -> None:
    assert only_row(write(folder, [{"messages": chat("What?", text)}])).turns[1].text == text


MARKS = [
    "<image>",
    "<IMAGE>",
    "<image 1>",
    "<image1>",
    "<image_1>",
    "<image_00>",
    "<|image_1|>",
    "<|image|>",
    "<ImageHere>",
    "<Img><ImageHere></Img>",
    "<img></img>",
    "<img><IMG_CONTEXT><IMG_CONTEXT></img>",
    "<img><|image_1|></img>",
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>",
    "<|vision_bos|><|IMAGE|><|vision_eos|>",
    "<|image_pad|>",
    "(<image>./</image>)",
    "<image>./</image>",
    "<Image><image></Image>",
    "<im_start><im_patch><im_patch><im_end>",
    "<fake_token_around_image><image><fake_token_around_image>",
    "<|begin_of_image|><|endoftext|><|end_of_image|>",
    "<|media_start|>image<|media_content|><|media_pad|><|media_end|>",
    "<start_of_image>",
    "<start_of_image><image_soft_token><image_soft_token><end_of_image>",
    "<image_soft_token><image_soft_token>",
    "<|image><|image|><|image|><image|>",
    "<image_id>1</image_id><image>./</image>",
    "<image_id>1</image_id>(<image>./</image>)",
    "<image><|image_pad|><|image_pad|></image>",
    "<image_placeholder>",
    "[IMG]",
]


@pytest.mark.parametrize("mark", MARKS)
def test_the_mark_of_every_model_family_is_a_pictures_place(folder: Path, mark: str) -> None:
    record = {"messages": chat(f"{mark}\nWhat is it?"), "images": ["cat.png"]}
    assert turns_of(only_row(write(folder, [record]))) == CAT
    second = re_number(mark)
    record = {"messages": chat(f"Is {mark} like {second}?"), "images": ["cat.png", "dog.png"]}
    assert shown(folder, record) == ["Is", "cat.png", "like", "dog.png", "?"]
    row = {"question": f"Is {mark} like {second}?", "answer": "no", "image": ["cat.png", "dog.png"]}
    assert shown(folder, row) == ["Is", "cat.png", "like", "dog.png", "?"]


@pytest.mark.parametrize("where", ["question", "answer", "system"])
@pytest.mark.parametrize(
    "token",
    [
        "<image_id>0</image_id>",
        "<slice>",
        "</image>",
        "<|image>",
        "<image|>",
        "<|ref|>",
        "<|/det|>",
        "<|vision_start|>",
    ],
)
def test_a_control_token_without_its_picture_is_refused_by_name(
    folder: Path, token: str, where: str
) -> None:
    record = {"question": "What is it?", "answer": "a cat", "system": "Be kind."}
    record[where] += f" {token}"
    problem = only_problem(write(folder, [record]))
    assert token[:10] in problem.message
    assert problem.hint


def test_a_system_prompt_contains_no_pictures(folder: Path) -> None:
    record = question(system="Look at <image>.", image="cat.png")
    problem = only_problem(write(folder, [record]))
    assert "The system prompt contains <image>, the mark of a picture." in problem.message


def image_tokens() -> list[str]:
    """Return the tokens for pictures of the checkpoints of the tests, from their definitions."""
    source = Path(architectures.__file__).read_text(encoding="utf-8")
    tokens = {*re.findall(r"""["'](</?\|?[\w-]+\|?>)["']""", source)}
    return sorted(t for t in tokens if re.search(r"image|img|vision|slice|video.+pad", t, re.I))


def test_the_tokens_of_the_architectures_are_found() -> None:
    assert {"<|image>", "<image|>", "<start_of_image>", "<IMG_CONTEXT>"} <= {*image_tokens()}


@pytest.mark.parametrize("token", [t for t in image_tokens() if t != "<img>"])
def test_no_image_token_of_an_architecture_is_trained_as_letters(folder: Path, token: str) -> None:
    """Only `<img>` may be: it is HTML as well."""
    record = {"messages": chat(f"{token}\nWhat is it?"), "images": ["cat.png"]}
    data = read_rows(write(folder, [record]))
    assert [turns_of(row) for row in data.rows] in ([], [CAT])
    assert data.rows or token in data.problems[0].message


def re_number(mark: str) -> str:
    """Return the mark of the following picture."""
    return mark.replace("00", "01") if "00" in mark else mark.replace("1", "2")


def test_marks_in_the_text_of_image_parts_are_the_places(folder: Path) -> None:
    parts = [
        {"type": "image"},
        {"type": "image"},
        {"type": "text", "text": "Is <image1> <image2>?"},
    ]
    record = {"messages": chat(parts), "images": ["cat.png", "dog.png"]}
    assert shown(folder, record) == ["Is", "cat.png", "dog.png", "?"]


@pytest.mark.parametrize(
    "text",
    [
        "<image>" * 50_000,
        "<bbox>" * 50_000 + "</bbox>",
        "[IMG]" * 50_000 + "[/IMG]",
        "<fake_token_around_image>" + "<image>" * 50_000,
        "<im_start><im_patch>" * 50_000,
        "(<image><unk>" * 50_000,
        "<start_of_image>" + "<image_soft_token>" * 50_000 + "<image>",
        "<image_id>1</image_id><image>" + "<|image_pad|>" * 50_000,
        "</image>" * 50_000,
    ],
    ids=lambda text: text[:25],
)
def test_long_texts_of_marks_take_no_time(folder: Path, text: str) -> None:
    path = write(folder, [{"messages": chat(text)}])
    started = time.perf_counter()
    only_problem(path)
    assert time.perf_counter() - started < 5


# Spreadsheets


@pytest.mark.parametrize("blank", [",,", ",", " , ,\t", ",,,,"])
def test_blank_rows_of_a_spreadsheet_are_skipped(folder: Path, blank: str) -> None:
    lines = ["image,question,answer", blank, "cat.png,What is it?,a cat", blank, blank, ""]
    row = only_row(write(folder, "\n".join(lines), "data.csv"))
    assert turns_of(row) == CAT
    assert row.number == 3


def test_blank_rows_of_other_formats_are_skipped(folder: Path) -> None:
    blank: dict[str, Any] = {"question": None, "answer": float("nan"), "image": ""}
    assert only_row(write(folder, [blank, question(), blank])).number == 2
    assert "its keys are" not in only_problem(write(folder, [question(), {}])).hint
    table = pyarrow.table({"question": ["What is it?", None], "answer": ["a cat", None]})
    pyarrow.parquet.write_table(table, folder / "data.parquet")
    assert only_row(folder / "data.parquet").number == 1


# Letters of choices


@pytest.mark.parametrize("answer", ["A, B", "AB", "A and B", "A, and B", "0, 1"])
def test_the_letters_of_several_choices_become_their_texts(folder: Path, answer: str) -> None:
    text = f'image,question,choices,answer\ncat.png,Which?,"[""a cat"",""a dog""]","{answer}"\n'
    assert only_row(write(folder, text, "data.csv")).turns[1].text == "a cat, a dog"


# Text in UTF-16 and UTF-32


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("name", ["data.csv", "data.json", "data.jsonl"])
def test_utf_16_and_32_are_read_with_and_without_a_mark(
    folder: Path, mark: str, encoding: str, name: str
) -> None:
    rows = [question(question="这是什么?", answer="一只猫", image="cat.png")] * 2
    text = {
        "data.csv": "image,question,answer\r\n" + "cat.png,这是什么?,一只猫\r\n" * 2,
        "data.json": json.dumps(rows, ensure_ascii=False),
        "data.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
    }[name]
    (folder / name).write_bytes((mark + text).encode(encoding))
    data = read_rows(folder / name)
    assert data.problems == ()
    assert [turns_of(row) for row in data.rows] == [
        [("user", "这是什么?", 1), ("assistant", "一只猫", 0)]
    ] * 2
    assert f"The file is {encoding[:6].upper()}" in data.notes[0].message


def test_cut_utf_16_is_refused_with_its_line(folder: Path) -> None:
    text = "image,question,answer\ncat.png,What is it?,a cat\n"
    (folder / "data.csv").write_bytes(text.encode("utf-16") + b"\x41")
    problem = only_problem(folder / "data.csv")
    assert problem.row is None
    assert "Line 3 is not UTF-16" in problem.message


def test_nul_characters_in_utf_8_are_refused(folder: Path) -> None:
    path = write(folder, "image,question,answer\ncat.png,What is it?,a\0cat\n", "data.csv")
    assert "Message 2 contains a NUL character" in only_problem(path).message


# Published layouts


def test_answers_with_weights_are_read(folder: Path) -> None:
    from finetune.evaluation.metrics import vqa_accuracy

    label = {"ids": ["kitten", "cat"], "weights": [0.3, 1.0]}
    record = {"image_id": "cat.png", "question": "What is it?", "label": label}
    row = only_row(write(folder, [record]))
    assert turns_of(row) == [CAT[0], ("assistant", "cat", 0)]
    assert vqa_accuracy("kitten", row.references[0]) == pytest.approx(0.3)
    assert vqa_accuracy("cat", row.references[0]) == pytest.approx(1)
    label["weights"] = [0.75, 0.25]
    assert only_row(write(folder, [record])).references == (("kitten", "cat"),)
    label["weights"] = [1.0]
    assert "must have one weight for each" in only_problem(write(folder, [record])).hint
    record["label"] = {"ids": [], "weights": []}
    assert "The answer is empty" in only_problem(write(folder, [record])).message


def test_pictures_by_their_marks_are_shown_in_order(folder: Path) -> None:
    images = {"<image_01>": "dog.png", "<image_00>": "cat.png"}
    record = {"image": images, "conversations": chat("<image_00>\n<image_01>\nWhat differs?")}
    assert shown(folder, record) == ["cat.png", "dog.png", "What differs?"]
    record["conversations"] = chat("Compare <image_01> and <image_00>.")
    problem = only_problem(write(folder, [record]))
    assert "has <image_00>, the first picture, behind another" in problem.message


# Archives


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vqa-app" / "archives"


def zipped(folder: Path, files: dict[str, str | bytes], name: str = "my.zip") -> Path:
    """Write an archive; a picture is named by what it shows."""
    with zipfile.ZipFile(folder / name, "w") as archive:
        for inner, content in files.items():
            if isinstance(content, str) and content.endswith(".png"):
                content = (folder / "images" / content).read_bytes()
            archive.writestr(inner, content)
    return folder / name


TABLE = "image,question,answer\ncat.png,What is it?,a cat\n"


@pytest.mark.parametrize(
    "files",
    [
        {"my/data.csv": TABLE, "__MACOSX/my/._data.csv": b"\0\5\x16\7", "my/.DS_Store": b"\0",
         "my/images/cat.png": "cat.png", "__MACOSX/my/images/._cat.png": b"\0\5\x16\7"},
        {"data.csv": TABLE, "images\\cat.png": "cat.png"},
        {"annotations/train.csv": TABLE, "annotations/test.csv": TABLE * 2, "images/cat.png":
         "cat.png"},
        {"my/data.json": json.dumps([{"image": "cat.png"} | question()]), "my/table.csv": TABLE,
         "my/cat.png": "cat.png", "my/dataset_info.json": "{}"},
        {"set/train/metadata.csv": TABLE.replace("image", "file_name"),
         "set/train/cat.png": "cat.png"},
    ],
    ids=["macOS", "PowerShell", "splits", "JSON and CSV", "picture folder"],
)  # fmt: skip
def test_an_archive_is_read_like_what_it_holds(
    folder: Path, cache: Path, files: dict[str, Any]
) -> None:
    path = zipped(folder, files)
    row = only_row(path)
    assert turns_of(row) == CAT
    assert row.file.startswith(f"{path}/")
    assert row.conversation().pictures[0].image.getpixel((0, 0)) == (255, 0, 0)
    assert len([*cache.iterdir()]) == 1
    assert only_row(path).pictures == row.pictures, "expected the archive to be unpacked once"
    assert len([*cache.iterdir()]) == 1


def test_a_tar_file_and_a_compressed_file_are_read(folder: Path, cache: Path) -> None:
    write(folder, TABLE, "data.csv")
    with tarfile.open(folder / "my.tar.gz", "w:gz") as tar:
        tar.add(folder / "data.csv", "set/data.csv")
        tar.add(folder / "images", "set/images")
    assert turns_of(only_row(folder / "my.tar.gz")) == CAT
    with gzip.open(folder / "my.jsonl.gz", "wb") as file:
        file.write(json.dumps(question()).encode())
    assert only_row(folder / "my.jsonl.gz").turns[1].text == "a cat"


def test_a_split_of_an_archive_can_be_chosen(folder: Path, cache: Path) -> None:
    path = zipped(folder, {"train.csv": TABLE, "test.csv": TABLE.replace("a cat", "a dog"),
                           "images/cat.png": "cat.png"})  # fmt: skip
    assert [row.turns[1].text for row in read_rows(f"{path}@test@2").rows] == ["a dog"]
    assert [row.turns[1].text for row in read_rows(path, purpose="for testing").rows] == ["a dog"]


def test_problems_in_an_archive_name_it_and_not_the_cache(folder: Path, cache: Path) -> None:
    path = zipped(folder, {"set/data.csv": TABLE.replace("cat.png", "bird.png")})
    problem = only_problem(path)
    assert problem.file == f"{path}/set/data.csv"
    assert f"There is no picture bird.png in {path}/set" in problem.message
    assert str(cache) not in str(problem)
    with pytest.raises(DataError, match="contains no data file"):
        read_rows(zipped(folder, {"cat.png": "cat.png"}, "pictures.zip"))


def test_the_vqa_v2_pair_is_read_from_an_archive(folder: Path, cache: Path) -> None:
    asked = {"question_id": 5, "image_id": 7, "question": "What is it?"}
    answered = {"question_id": 5, "image_id": 7, "multiple_choice_answer": "cat"}
    path = zipped(
        folder,
        {
            "v2_questions.json": json.dumps({"data_subtype": "val2014", "questions": [asked]}),
            "v2_annotations.json": json.dumps({"annotations": [answered]}),
            "images/COCO_val2014_000000000007.png": "cat.png",
        },
    )
    row = only_row(path)
    assert row.turns[1].text == "cat"
    assert row.file == f"{path}/v2_questions.json"
    assert len(row.pictures) == 1


def test_archives_unused_for_a_month_are_removed(folder: Path, cache: Path) -> None:
    read_rows(zipped(folder, {"data.csv": "question,answer\nWhat?,this\n"}))
    (first,) = cache.iterdir()
    os.utime(first, (1e9, 1e9))
    read_rows(zipped(folder, {"data.csv": "question,answer\nWhat?,that\n"}))
    assert first not in cache.iterdir()
