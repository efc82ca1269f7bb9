"""Common formats are read into rows; errors are reported with file and row."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finetune.data.read import read_rows
from tests.finetune.data_rows import CAT, llava, only_problem, only_row, turns_of, write

# Formats


def test_llava_json_is_read(folder: Path) -> None:
    row = only_row(write(folder, [llava()]))
    assert turns_of(row) == CAT
    assert row.turns[0].pictures[0].name == "cat.png"
    assert row.conversation().pictures[0].image.size == (8, 6)


@pytest.mark.parametrize(
    "value", ["What is it?\n<image>", "<image>What is it?", "<image>\n\nWhat is it?"]
)
def test_a_single_picture_is_moved_to_the_front(folder: Path, value: str) -> None:
    row = only_row(write(folder, [llava(value)]))
    assert turns_of(row) == CAT
    assert not isinstance(row.turns[0].parts[0], str)


def test_jsonl_is_recognised_by_content(folder: Path) -> None:
    lines = "\n".join(json.dumps(llava(id=str(number))) for number in range(3))
    data = read_rows(write(folder, lines, "data.txt"))
    assert [row.id for row in data.rows] == ["0", "1", "2"]
    assert [row.number for row in data.rows] == [1, 2, 3]


def test_several_pictures_keep_their_positions(folder: Path) -> None:
    record = llava("Is <image> like <image>?", "no", image=["cat.png", "dog.png"])
    row = only_row(write(folder, [record]))
    assert [p if isinstance(p, str) else p.name for p in row.turns[0].parts] == [
        "Is", "cat.png", "like", "dog.png", "?"
    ]  # fmt: skip


def test_rows_without_pictures_are_read(folder: Path) -> None:
    record = llava("What is 2 + 2?", "4")
    del record["image"]
    assert turns_of(only_row(write(folder, [record]))) == [
        ("user", "What is 2 + 2?", 0),
        ("assistant", "4", 0),
    ]


def test_openai_messages_with_image_parts_are_read(folder: Path) -> None:
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
        assert turns_of(row) == [("system", "Be brief.", 0), *CAT]
        assert row.conversation().pictures[0].image.getpixel((0, 0)) == (255, 0, 0)


def test_hugging_face_messages_take_pictures_from_the_images_column(folder: Path) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "a cat"},
    ]
    assert turns_of(only_row(write(folder, [{"messages": messages, "images": ["cat.png"]}]))) == CAT


def test_sharegpt_variants_are_read(folder: Path) -> None:
    variants = [
        {"conversation": llava()["conversations"], "images": ["cat.png"]},
        {"messages": [{"role": "user", "content": "<image>What is it?"},
                      {"role": "assistant", "content": "a cat"}], "images": ["cat.png"]},
        {"conversations": [{"from": "user", "value": "<image>What is it?"},
                           {"from": "chatgpt", "value": "a cat"}], "image": "cat.png"},
    ]  # fmt: skip
    for record in variants:
        assert turns_of(only_row(write(folder, [record]))) == CAT
    with_system = llava() | {"system": "Be brief."}
    assert turns_of(only_row(write(folder, [with_system])))[0] == ("system", "Be brief.", 0)


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_tables_with_image_question_and_answer_columns_are_read(
    folder: Path, delimiter: str
) -> None:
    lines = [["image", "question", "answer"], ["cat.png", "What is it?", "a cat"]]
    row = only_row(write(folder, "\n".join(delimiter.join(line) for line in lines), "data.csv"))
    assert turns_of(row) == CAT
    assert row.number == 2


def test_easy_vqa_is_read(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "images" / "7.png")
    row = only_row(write(folder, [["What is it?", "a cat", 7]], "questions.json"))
    assert turns_of(row) == CAT


def test_the_most_frequent_answer_is_trained_and_all_are_references(folder: Path) -> None:
    answers = ["a cat", "a cat", "kitten"]
    as_objects = [{"answer": answer} for answer in answers]
    for value in (answers, as_objects, json.dumps(answers)):
        row = only_row(
            write(folder, [{"image": "cat.png", "question": "What is it?", "answers": value}])
        )
        assert turns_of(row) == CAT
        assert row.references == (("a cat", "a cat", "kitten"),)


def test_vqa_v2_files_are_joined_by_question_id(folder: Path) -> None:
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
    assert problem.row == 2
    assert "COCO_val2014_000000000043" in problem.message
    assert "annotations" in read_rows(sources[1:], [folder / "images"]).problems[0].message


def test_unicode_line_separators_do_not_split_jsonl_lines(folder: Path) -> None:
    lines = [json.dumps(llava(answer="a\u2028cat"), ensure_ascii=False), json.dumps(llava())]
    assert len(read_rows(write(folder, "\n".join(lines), "data.jsonl")).rows) == 2


def test_a_single_object_with_ten_answers_is_one_row(folder: Path) -> None:
    answers = [{"answer": "cat"}] * 9 + [{"answer": "dog"}]
    row = only_row(write(folder, {"image": "cat.png", "question": "What?", "answers": answers}))
    assert turns_of(row)[1] == ("assistant", "cat", 0)
    assert len(row.references[0]) == 10


def test_an_empty_system_prompt_is_ignored(folder: Path) -> None:
    assert turns_of(only_row(write(folder, [llava(system="")]))) == CAT
    assert turns_of(only_row(write(folder, [llava(system="Be kind.")])))[0][0] == "system"


# Errors


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
def test_an_object_without_rows_is_a_problem_of_the_whole_file(
    folder: Path, content: dict, what: str
) -> None:
    problem = only_problem(write(folder, content))
    assert problem.row is None
    assert what in problem.message
    assert problem.hint


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
        ({"image": "cat.png", "conversations": [{"from": "cat", "value": "?"}]}, "role 'cat'"),
        ({"image": "cat.png", "conversations": llava()["conversations"][:1]}, "has no answer"),
        ({"image": "cat.png", "conversations": llava()["conversations"][1:]}, "1 picture but 0"),
        ({"conversations": [{"from": "gpt", "value": "a cat"}]}, "assistant, expected the user"),
        ({"image": "cat.png", "question": "What is it?"}, "no answer"),
        ({"image": "cat.png", "answer": "a cat"}, "no question"),
        ({"picture_of": "cat"}, "Unknown format"),
        ("cat", "not an object"),
        (llava(image="a picture" * 500), "is not a path"),
        (llava(image="a\0.png"), "is not a path"),
        (llava(image={"bytes": "iVBORw0KGgo"}), "which contains no path"),
        ({"texts": [], "system": "Be kind."}, "conversation is empty"),
    ],
)  # fmt: skip
def test_a_bad_row_is_reported_with_its_number(folder: Path, record: Any, what: str) -> None:
    data = read_rows(write(folder, [llava(), record]))
    assert len(data.rows) == 1
    (problem,) = data.problems
    assert what in problem.message
    assert (problem.row, problem.file) == (2, str(folder / "data.json"))


def test_a_missing_picture_in_a_large_file_is_reported_with_its_row(folder: Path) -> None:
    lines = [json.dumps(llava())] * 5_210 + [json.dumps(llava(image="gone.png"))]
    data = read_rows(write(folder, "\n".join(lines), "data.jsonl"))
    assert str(data.problems[0]).startswith(
        f"{folder / 'data.jsonl'}, row 5,211: There is no picture gone.png"
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
        ("hello", "neither JSON objects nor a table", "header"),
        ('{"a": 1},\n{"a": 2}\n', "second object begins after line 1", "[ ]"),
        ("[" * 100_000, "is not valid JSON", ""),
        ("version https://git-lfs.github.com/spec/v1", "a Git LFS pointer", ""),
        ("<!doctype html><p>Not found", "a web page", ""),
        ('image,"question\ncat.png,What?', "Not a table", "quotes"),
        ("cat.png,What is it?,a cat\n", "is a row, not a header", "above it"),
    ],
)
def test_a_syntax_error_is_reported_with_its_line(
    folder: Path, text: str, what: str, hint: str
) -> None:
    problem = only_problem(write(folder, text))
    assert what in problem.message
    assert hint in problem.hint


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"7z\xbc\xaf\x27\x1c\0", "a 7z archive"),
        (b"Rar!\x1a\x07\0", "a RAR archive"),
        (b"SQLite format 3\0", "an SQLite database"),
        (b"\x93NUMPY\x01\0v\0{'descr'", "binary, not text"),
    ],
)
def test_a_file_of_another_type_is_named(folder: Path, start: bytes, what: str) -> None:
    (folder / "data.json").write_bytes(start + bytes(100))
    assert what in only_problem(folder / "data.json").message


def test_one_zero_byte_makes_no_text_utf_16(folder: Path) -> None:
    (folder / "data.csv").write_bytes(b"image,question,answer\ncat.png,What\0?,a\n")
    data = read_rows(folder / "data.csv")
    assert ["NUL" in problem.message for problem in data.problems] == [True]
    assert not data.notes


@pytest.mark.parametrize("name", ["cat.jpg", "pets/cat.png", r"C:\pictures\cat.jpeg"])
def test_a_picture_with_another_ending_or_folder_is_suggested(folder: Path, name: str) -> None:
    problem = only_problem(write(folder, json.dumps([llava(image=name)])))
    assert "there is cat.png" in problem.message


def test_a_broken_jsonl_line_affects_no_other_line(folder: Path) -> None:
    lines = [json.dumps(llava()), json.dumps(llava())[:-1] + ",}", json.dumps(llava())]
    data = read_rows(write(folder, "\n".join(lines)))
    assert [row.number for row in data.rows] == [1, 3]
    assert data.problems[0].row == 2
    assert "comma" in data.problems[0].message


def test_a_byte_order_mark_is_ignored_with_a_note(folder: Path) -> None:
    path = folder / "data.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([llava()]).encode())
    data = read_rows(path)
    assert len(data.rows) == 1
    assert data.problems == ()
    assert "byte-order mark" in data.notes[0].message


def test_text_in_another_encoding_is_reported_with_its_line(folder: Path) -> None:
    path = folder / "data.json"
    path.write_bytes('[\n{"a": "café"}]'.encode("latin-1"))
    assert "Line 2 is not UTF-8" in only_problem(path).message


def test_a_table_row_with_an_unquoted_comma_is_reported(folder: Path) -> None:
    text = "image,question,answer\ncat.png,What is it?,a cat\ncat.png,What, then?,a cat\n"
    data = read_rows(write(folder, text, "data.csv"))
    assert len(data.rows) == 1
    assert data.problems[0].row == 3
    assert "4 fields" in data.problems[0].message


def test_embedded_pictures_with_equal_content_are_equal() -> None:
    from finetune.data.read import PictureSource

    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "green").save(buffer, "PNG")
    first, second = (PictureSource.data(buffer.getvalue(), name) for name in ("a", "b"))
    assert first.key == second.key
    assert first.open() == second.open()
