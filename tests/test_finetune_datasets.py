"""Every format becomes the same rows, and whatever is wrong is named with file and row."""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finetune.datasets import FOR_TESTING, FOR_TRAINING, read_rows
from tests.data_rows import (
    CAT,
    llava,
    only_problem,
    only_row,
    picture_folder,
    question,
    said,
    write,
)
from vqa_app.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return picture_folder(tmp_path)


# Formats


def test_llava_json_gives_the_turns_that_serving_renders(folder: Path) -> None:
    row = only_row(write(folder, [llava()]))
    assert said(row) == CAT
    assert row.turns[0].pictures[0].name == "cat.png"
    assert row.conversation().pictures[0].image.size == (8, 6)


@pytest.mark.parametrize(
    "value", ["What is it?\n<image>", "<image>What is it?", "<image>\n\nWhat is it?"]
)
def test_a_picture_stands_first_wherever_the_placeholder_was(folder: Path, value: str) -> None:
    row = only_row(write(folder, [llava(value)]))
    assert said(row) == CAT
    assert not isinstance(row.turns[0].parts[0], str)


def test_llava_jsonl_is_told_from_json_by_its_content(folder: Path) -> None:
    lines = "\n".join(json.dumps(llava(id=str(number))) for number in range(3))
    data = read_rows(write(folder, lines, "data.txt"))
    assert [row.id for row in data.rows] == ["0", "1", "2"]
    assert [row.number for row in data.rows] == [1, 2, 3]


def test_several_pictures_keep_their_places(folder: Path) -> None:
    record = llava("Is <image> like <image>?", "no", image=["cat.png", "dog.png"])
    row = only_row(write(folder, [record]))
    assert [p if isinstance(p, str) else p.name for p in row.turns[0].parts] == [
        "Is", "cat.png", "like", "dog.png", "?"
    ]  # fmt: skip


def test_text_only_rows_are_rows(folder: Path) -> None:
    record = llava("What is 2 + 2?", "4")
    del record["image"]
    assert said(only_row(write(folder, [record]))) == [
        ("user", "What is 2 + 2?", 0),
        ("assistant", "4", 0),
    ]


def test_openai_messages_with_image_parts(folder: Path) -> None:
    raw = (folder / "images" / "cat.png").read_bytes()
    uri = "data:image/png;base64," + base64.b64encode(raw).decode()
    for part in (
        {"type": "image", "image": "cat.png"},
        {"type": "image_url", "image_url": {"url": "cat.png"}},
        {"type": "image_url", "image_url": {"url": uri}},
    ):
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
        ]
        row = only_row(write(folder, [{"messages": messages}]))
        assert said(row) == [("system", "Be brief.", 0), *CAT]
        assert row.conversation().pictures[0].image.getpixel((0, 0)) == (255, 0, 0)


def test_hugging_face_messages_take_pictures_from_the_images_column(folder: Path) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "a cat"},
    ]
    assert said(only_row(write(folder, [{"messages": messages, "images": ["cat.png"]}]))) == CAT


def test_sharegpt_variants(folder: Path) -> None:
    variants = [
        {"conversation": llava()["conversations"], "images": ["cat.png"]},
        {"messages": [{"role": "user", "content": "<image>What is it?"},
                      {"role": "assistant", "content": "a cat"}], "images": ["cat.png"]},
        {"conversations": [{"from": "user", "value": "<image>What is it?"},
                           {"from": "chatgpt", "value": "a cat"}], "image": "cat.png"},
    ]  # fmt: skip
    for record in variants:
        assert said(only_row(write(folder, [record]))) == CAT
    with_system = llava() | {"system": "Be brief."}
    assert said(only_row(write(folder, [with_system])))[0] == ("system", "Be brief.", 0)


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_tables_with_image_question_answer(folder: Path, delimiter: str) -> None:
    lines = [["image", "question", "answer"], ["cat.png", "What is it?", "a cat"]]
    row = only_row(write(folder, "\n".join(delimiter.join(line) for line in lines), "data.csv"))
    assert said(row) == CAT
    assert row.number == 2


def test_easy_vqa_lists_a_question_an_answer_and_the_number_of_a_picture(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "images" / "7.png")
    row = only_row(write(folder, [["What is it?", "a cat", 7]], "questions.json"))
    assert said(row) == CAT


def test_several_answers_train_the_commonest_and_keep_all(folder: Path) -> None:
    answers = ["a cat", "a cat", "kitten"]
    as_objects = [{"answer": answer} for answer in answers]
    for value in (answers, as_objects, json.dumps(answers)):
        row = only_row(
            write(folder, [{"image": "cat.png", "question": "What is it?", "answers": value}])
        )
        assert said(row) == CAT
        assert row.references == (("a cat", "a cat", "kitten"),)


def test_the_vqa_v2_pair_is_joined_by_question_id(folder: Path) -> None:
    name = "COCO_val2014_000000000042.jpg"
    Image.new("RGB", (8, 6)).save(folder / "images" / name)
    questions = {"data_subtype": "val2014", "questions": [
        {"question_id": 7, "image_id": 42, "question": "What is it?"},
        {"question_id": 8, "image_id": 43, "question": "And this?"},
    ]}  # fmt: skip
    annotations = {"annotations": [
        {"question_id": q, "image_id": 42, "multiple_choice_answer": "cat", "answer_type": "other",
         "question_type": "what is", "answers": [{"answer": "cat", "id": 1}, {"answer": "cats"}]}
        for q in (7, 8)
    ]}  # fmt: skip
    sources = [write(folder, annotations, "a.json"), write(folder, questions, "q.json")]
    data = read_rows(sources, [folder / "images"])
    (row,) = data.rows
    assert row.turns[0].text == "What is it?\nAnswer the question using a single word or phrase."
    assert (row.turns[1].text, row.references) == ("cat", (("cat", "cats"),))
    assert (row.question_type, row.answer_type) == ("what is", "other")
    (problem,) = data.problems
    assert problem.row == 2 and "COCO_val2014_000000000043" in problem.what
    assert "annotations" in read_rows(sources[1:], [folder / "images"]).problems[0].what


def test_a_parquet_data_set_with_picture_columns_in_the_cauldron_layout(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    texts = [
        {"user": "Question: What is it?", "assistant": "a cat", "source": "x"},
        {"user": "And its colour?", "assistant": "red", "source": "x"},
    ]
    features = datasets.Features(
        {"images": datasets.List(datasets.Image()),
         "texts": datasets.List({key: datasets.Value("string") for key in texts[0]})}
    )  # fmt: skip
    table = datasets.Dataset.from_dict(
        {"images": [[str(folder / "images" / "cat.png")]], "texts": [texts]}, features=features
    )
    table.save_to_disk(folder / "saved")
    (folder / "parquet").mkdir()
    table.to_parquet(folder / "parquet" / "train.parquet")
    for source in ("saved", "parquet", "parquet/train.parquet"):
        row = only_row(folder / source, images=[folder / "images"])
        assert said(row) == [
            ("user", "Question: What is it?", 1),
            ("assistant", "a cat", 0),
            ("user", "And its colour?", 0),
            ("assistant", "red", 0),
        ]
        assert row.conversation().pictures[0].image.getpixel((0, 0)) == (255, 0, 0)


def test_lines_of_jsonl_may_hold_what_unicode_calls_a_line_break(folder: Path) -> None:
    lines = [json.dumps(llava(answer="a\u2028cat"), ensure_ascii=False), json.dumps(llava())]
    assert len(read_rows(write(folder, "\n".join(lines), "data.jsonl")).rows) == 2


def test_a_single_line_of_jsonl_with_ten_answers_is_one_row(folder: Path) -> None:
    answers = [{"answer": "cat"}] * 9 + [{"answer": "dog"}]
    row = only_row(write(folder, {"image": "cat.png", "question": "What?", "answers": answers}))
    assert said(row)[1] == ("assistant", "cat", 0) and len(row.references[0]) == 10


def test_an_empty_system_prompt_is_none(folder: Path) -> None:
    assert said(only_row(write(folder, [llava(system="")]))) == CAT
    assert said(only_row(write(folder, [llava(system="Be kind.")])))[0][0] == "system"


def test_a_folder_of_splits_gives_its_train_split(folder: Path) -> None:
    import datasets

    table = datasets.Dataset.from_dict({"question": ["What?"], "answer": ["a cat"]})
    for name in ("train-00000", "test-00000"):
        table.to_parquet(folder / "data" / f"{name}.parquet")
    found = read_rows(folder / "data")
    assert len(found.rows) == 1 and "train" in found.notes[0].what


def test_rows_to_test_with_are_those_of_the_test_split(folder: Path) -> None:
    import datasets

    def table(answer: str) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"question": ["What?"], "answer": [answer]})

    def read(source: object, purpose: str = FOR_TESTING) -> tuple[str, str]:
        found = read_rows(str(source), (), purpose)
        (row,) = found.rows
        return row.turns[1].text, " ".join(note.what for note in found.notes)

    saved, three = folder / "saved", ("train", "validation", "test")
    datasets.DatasetDict({name: table(name) for name in three}).save_to_disk(saved)
    write(folder, {name: [question(answer=name)] for name in three}, "splits.json")
    for name in three:
        (folder / "files").mkdir(exist_ok=True)
        table(name).to_parquet(folder / "files" / f"{name}-0.parquet")
        (folder / "pictures" / name).mkdir(parents=True)
        write(folder / "pictures" / name, f"question,answer\nWhat?,{name}\n", "metadata.csv")
    for source in (saved, folder / "splits.json", folder / "files", folder / "pictures"):
        assert read(source, FOR_TRAINING)[0] == "train"
        answer, note = read(source)
        assert answer == "test" and "Only the split test is read" in note
        assert read(f"{source}@validation")[0] == read(f"{source}@validation@2")[0] == "validation"
        with pytest.raises(DataError, match="None is called dev"):
            read(f"{source}@dev")
    assert read_rows(f"{saved}@test").rows[0].file == f"{saved}@test"
    alone = folder / "alone"
    datasets.DatasetDict({"test": table("test")}).save_to_disk(alone)
    assert read(alone, FOR_TRAINING) == ("test", read(alone, FOR_TRAINING)[1])
    assert "Its only split, test, is read" in read(alone, FOR_TRAINING)[1]
    datasets.DatasetDict({"test": table("a"), "dev": table("b")}).save_to_disk(folder / "two")
    with pytest.raises(DataError, match="none is for training alone") as refused:
        read(folder / "two", FOR_TRAINING)
    assert "@test" in refused.value.hint
    with pytest.raises(DataError, match="has no splits"):
        read_rows(f"{write(folder, [question()])}@test")


def test_pictures_of_two_splits_are_not_taken_for_each_other(folder: Path) -> None:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "question": datasets.Value("string"),
         "answer": datasets.Value("string")}
    )  # fmt: skip
    made = {
        split: datasets.Dataset.from_dict(
            {"image": [str(folder / "images" / f"{name}.png")], "question": ["What?"],
             "answer": [name]}, features=features
        )
        for split, name in (("train", "cat"), ("test", "dog"))
    }  # fmt: skip
    datasets.DatasetDict(made).save_to_disk(folder / "saved")
    train, test = (read_rows(folder / "saved", (), p).rows[0] for p in (FOR_TRAINING, FOR_TESTING))
    assert train.pictures[0].key != test.pictures[0].key


def test_only_a_word_tells_what_is_for_training(folder: Path) -> None:
    from finetune.datasets.tables import train_files

    trains, planes = folder / "trains.json", folder / "planes.json"
    assert train_files([trains, planes], folder) == [trains, planes]
    ours, theirs = folder / "data" / "train-0.json", folder / "data" / "test-0.json"
    assert train_files([ours, theirs], folder) == [ours]


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow_files_of_both_kinds_are_read(folder: Path, kind: str) -> None:
    import pyarrow

    table = pyarrow.table({"question": ["What?"], "answer": ["a cat"]})
    path = folder / "data.arrow"
    writer = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
    with writer(path, table.schema) as out:
        out.write_table(table)
    assert said(only_row(path))[1] == ("assistant", "a cat", 0)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="Cannot read"):
        read_rows(path)


def test_files_mix_with_weights(folder: Path) -> None:
    first, second = write(folder, [llava()], "a.json"), write(folder, [llava()] * 2, "b.json")
    data = read_rows([f"{first}@2.5", second])
    assert [row.weight for row in data.rows] == [2.5, 1, 1]
    with pytest.raises(DataError, match="weight"):
        read_rows([f"{first}@-1"])


# What is wrong


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"image": ["cat.png"] * 2, "question": ["What?"] * 2, "answer": ["a"] * 2}, "columns"),
        ({"question": {"0": "What?"}, "answer": {"0": "a"}}, "columns"),
        ({"images": [{"id": 1}], "annotations": [{"caption": "A cat."}]}, "captions"),
        ({"images": [{"id": 1}], "boxes": [{"id": 1}]}, "its keys are 'images', 'boxes'"),
        ({"columns": ["question"], "index": [0], "data": [["What?"]]}, "without a list of rows"),
    ],
)
def test_an_object_without_rows_is_a_problem_of_the_file(
    folder: Path, content: dict, what: str
) -> None:
    problem = only_problem(write(folder, content))
    assert problem.row is None and what in problem.what and problem.hint


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (llava("What is it?"), "1 picture but 0 <image>"),
        (llava("<image><image> What is it?"), "no picture"),
        (llava(answer="  "), "Answer 1 is empty"),
        (llava(image="bird.png"), "There is no picture bird.png"),
        (llava(image="../../../etc/passwd"), "outside the picture folder"),
        (llava(image="/etc/passwd"), "outside the picture folder"),
        (llava(image="https://example.org/cat.png"), "web address"),
        (llava(answer="<image>"), "no picture"),
        ({"image": "cat.png", "conversations": [{"from": "human"}]}, '"value"'),
        ({"image": "cat.png", "conversations": [{"from": "cat", "value": "<image>"}]}, "from 'cat"),
        ({"image": "cat.png", "conversations": llava()["conversations"][:1]}, "has no answer"),
        ({"image": "cat.png", "conversations": llava()["conversations"][1:]}, "1 picture but 0"),
        ({"conversations": [{"from": "gpt", "value": "a cat"}]}, "assistant, expected the user"),
        ({"image": "cat.png", "question": "What is it?"}, "no answer"),
        ({"image": "cat.png", "answer": "a cat"}, "no question"),
        ({"picture_of": "cat"}, "No known format"),
        ("cat", "not an object"),
        (llava(image="a picture" * 500), "is not a path"),
        (llava(image="a\0.png"), "is not a path"),
        (llava(image={"bytes": "iVBORw0KGgo"}), "which holds no path"),
        ({"texts": [], "system": "Be kind."}, "conversation is empty"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(folder: Path, record: Any, what: str) -> None:
    data = read_rows(write(folder, [llava(), record]))
    assert len(data.rows) == 1
    (problem,) = data.problems
    assert what in problem.what
    assert (problem.row, problem.file) == (2, str(folder / "data.json"))


def test_a_missing_picture_far_down_is_named_with_its_row(folder: Path) -> None:
    lines = [json.dumps(llava())] * 48_210 + [json.dumps(llava(image="gone.png"))]
    data = read_rows(write(folder, "\n".join(lines), "data.jsonl"))
    assert str(data.problems[0]).startswith(
        f"{folder / 'data.jsonl'}, row 48,211: There is no picture gone.png"
    )


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ('[\n{"a": 1},\n]', "Line 2 ends with a comma", "trailing comma"),
        ('[\n{"a": 1,\n}]', "Line 2 ends with a comma", "trailing comma"),
        ('[\n{"a": 1}\n{"a": 2}]', "comma is missing after line 2", ""),
        ('[\n{"a": 1},\n{"b": ', "middle of a value, at line 3", "cut off"),
        ("[\n{'a': 1}]", "single quotes", "double quotes"),
        ('[\n{"a": "x\ny"}]', "line break or tab inside text", "\\n"),
        ("", "empty", ""),
        ("hello", "neither JSON nor a table", "header"),
        ('{"a": 1},\n{"a": 2}\n', "second object begins after line 1", "[ ]"),
        ("[" * 100_000, "is not valid JSON", ""),
        ('image,"question\ncat.png,What?', "Not a table", "quotes"),
        ("cat.png,What is it?,a cat\n", "is a row, not a header", "above it"),
    ],
)
def test_a_broken_file_is_named_with_its_line(
    folder: Path, text: str, what: str, hint: str
) -> None:
    problem = only_problem(write(folder, text))
    assert what in problem.what
    assert hint in problem.hint


def test_a_broken_line_of_jsonl_costs_that_line_only(folder: Path) -> None:
    lines = [json.dumps(llava()), json.dumps(llava())[:-1] + ",}", json.dumps(llava())]
    data = read_rows(write(folder, "\n".join(lines)))
    assert [row.number for row in data.rows] == [1, 3]
    assert data.problems[0].row == 2 and "comma" in data.problems[0].what


def test_a_byte_order_mark_is_read_past_and_said(folder: Path) -> None:
    path = folder / "data.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([llava()]).encode())
    data = read_rows(path)
    assert len(data.rows) == 1 and data.problems == ()
    assert "byte-order mark" in data.notes[0].what


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("a.tar", "a tar archive"),
        ("a.jsonl.gz", "a gzip archive"),
        ("a.zip", "a ZIP archive"),
        ("a.xlsx", "an Excel workbook"),
        ("images/cat.png", "a PNG picture"),
    ],
)
def test_what_is_no_data_file_is_called_what_it_is(folder: Path, name: str, what: str) -> None:
    raw = json.dumps([llava()]).encode()
    with tarfile.open(folder / "a.tar", "w") as tar, gzip.open(folder / "a.jsonl.gz", "w") as file:
        tar.add(folder / "images" / "cat.png", "cat.png")
        file.write(raw)
    for archive, inside in (("a.zip", "data.json"), ("a.xlsx", "xl/workbook.xml")):
        with zipfile.ZipFile(folder / archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr(inside, raw * 50)
    problem = only_problem(folder / name)
    assert what in problem.what and "UTF-8 text" not in problem.what and problem.hint


def test_a_folder_without_a_data_set_is_told_what_it_holds(folder: Path) -> None:
    with pytest.raises(DataError, match="holds no data set: it has 2 .png files"):
        read_rows(folder / "images")
    (folder / "images" / "cat.txt").write_text("a cat")
    with pytest.raises(DataError, match="it has 2 .png files and 1 .txt file"):
        read_rows(folder / "images")
    write(folder, [llava()])
    with pytest.raises(DataError, match="holds no data set that says what it is") as refused:
        read_rows(folder)
    assert str(folder / "data.json") in refused.value.hint


def test_text_in_another_encoding_is_named_with_its_line(folder: Path) -> None:
    path = folder / "data.json"
    path.write_bytes('[\n{"a": "café"}]'.encode("latin-1"))
    assert "Line 2 is not UTF-8" in only_problem(path).what


def test_a_table_row_with_an_unquoted_comma_is_named(folder: Path) -> None:
    text = "image,question,answer\ncat.png,What is it?,a cat\ncat.png,What, then?,a cat\n"
    data = read_rows(write(folder, text, "data.csv"))
    assert len(data.rows) == 1
    assert data.problems[0].row == 3 and "4 fields" in data.problems[0].what


def test_a_missing_file_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"There is no file .*gone\.json"):
        read_rows(folder / "gone.json")


def test_a_picture_inside_the_data_is_the_same_picture_by_content() -> None:
    from finetune.datasets import PictureSource

    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "green").save(buffer, "PNG")
    first, second = (PictureSource.data(buffer.getvalue(), name) for name in ("a", "b"))
    assert first.key == second.key and first.open() == second.open()
