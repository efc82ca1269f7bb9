"""Pictures, answers and tables in unusual places are found or refused.

No row is trained without its picture, or with an answer that nobody wrote.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from PIL import Image

from finetune.data.read import check_sources, read_rows
from tests.finetune.data_rows import CAT, llava, only_problem, only_row, question, turns_of, write
from vqa_app.errors import DataError

# Pictures


@pytest.mark.parametrize(
    "record",
    [
        question(image_id="cat"),
        question(image_name="cat.png"),
        question(imageId="cat"),
        question(img_path="cat.png", image_url="https://example.org/cat.jpg"),
        question(image_url="https://example.org/1.jpg", image_local_name="cat.png"),
        question(image_index=1, image_filename="cat.png"),
        question(img_id=1, img_name="cat.png"),
        question(image=1, file_name="cat.png"),
        question(image="cat"),
    ],
)
def test_a_picture_is_found_by_its_name_or_id(folder: Path, record: dict) -> None:
    Image.new("RGB", (8, 8)).save(folder / "images" / "1.png")  # belongs to another row
    row = only_row(write(folder, [record]))
    assert turns_of(row) == CAT
    assert row.pictures[0].name == "cat.png"


@pytest.mark.parametrize("number", [0, 7, 7.0])
def test_a_picture_is_found_by_its_number(folder: Path, number: float) -> None:
    for name in ("0.png", "000000000007.jpg"):
        Image.new("RGB", (8, 8)).save(folder / "images" / name)
    assert turns_of(only_row(write(folder, [question(image_id=number)]))) == CAT


def test_text_vqa_is_read_with_its_pictures(folder: Path) -> None:
    entry = {"question": "What is it?", "image_id": "cat", "answers": ["a cat"] * 10,
             "flickr_original_url": "https://example.org/1_o.jpg", "image_width": 8}  # fmt: skip
    assert turns_of(only_row(write(folder, {"dataset_name": "textvqa", "data": [entry]}))) == CAT


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (question(image_id="bird"), "There is no picture bird in"),
        (question(image_id=3), "There is no picture 3 in"),
        (question(image_idx=3), "There is no picture 3 in"),
        (question(shot="cat.png"), "'shot' is a picture or names one"),
        (question(coco_url="https://example.org/1.jpg"), "web address of a picture"),
        (question(image_url="https://example.org/1.jpg"), "is a web address"),
        (question(image="CAT.PNG"), "there is cat.png"),
        (question(image=".\\cat.png"), "there is cat.png"),
        (
            question(image="ku\u0308che.png"),
            "there is k\u00fcche.png, spelt with different Unicode",
        ),
    ],
)
def test_a_row_whose_picture_is_not_found_is_refused(folder: Path, record: dict, what: str) -> None:
    Image.new("RGB", (8, 8)).save(folder / "images" / "k\u00fcche.png")
    assert what in only_problem(write(folder, [record])).message


def test_pictures_listed_in_a_message_belong_to_it(folder: Path) -> None:
    for key, value in (("images", ["cat.png"]), ("image", "cat.png")):
        question_message = {"role": "user", "content": "What is it?", key: value}
        record = {"messages": [question_message, {"role": "assistant", "content": "a cat"}]}
        assert turns_of(only_row(write(folder, [record]))) == CAT
        question_message["content"] = "<image>\nWhat is it?"
        assert turns_of(only_row(write(folder, [record]))) == CAT
        question_message["content"] = "<image><image>\nWhat is it?"
        assert "no picture" in only_problem(write(folder, [record])).message


def test_links_inside_the_picture_folder_may_lead_out_of_it(folder: Path) -> None:
    far = folder / "far"
    far.mkdir()
    (folder / "images" / "cat.png").rename(far / "cat.png")
    (folder / "images" / "coco").symlink_to(far)
    assert turns_of(only_row(write(folder, [llava(image="coco/cat.png")]))) == CAT
    assert (
        turns_of(only_row(write(folder, [llava(image=str(folder / "images/coco/cat.png"))]))) == CAT
    )
    out = write(folder, [llava(image="coco/../../data.json")])
    assert "outside" in only_problem(out).message


def test_placeholders_in_addition_to_image_parts_are_removed(folder: Path) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "<image>\nWhat is it?"}]
    answer = {"role": "assistant", "content": "a cat"}
    record = {"messages": [{"role": "user", "content": parts}, answer], "images": ["cat.png"]}
    assert turns_of(only_row(write(folder, [record]))) == CAT
    assert turns_of(only_row(write(folder, [record | {"messages": [
        {"role": "user", "content": parts[1:]}, answer]}]))) == CAT  # fmt: skip
    parts[1]["text"] = "<image><image>What is it?"
    assert "1 picture but 2 <image>" in only_problem(write(folder, [record])).message
    texts = [{"user": "<image>\nWhat is it?", "assistant": "a cat"}]
    assert turns_of(only_row(write(folder, [{"images": ["cat.png"], "texts": texts}]))) == CAT
    texts[0]["user"] = "<image><image>"
    assert (
        "no picture"
        in only_problem(write(folder, [{"images": ["cat.png"], "texts": texts}])).message
    )


def test_pictures_under_numbered_keys_are_shown_in_order(folder: Path) -> None:
    for first, second in (("image", "image2"), ("image_1", "image_2")):
        record = {second: "dog.png", first: "cat.png"} | question()
        row = only_row(write(folder, [record]))
        assert [picture.name for picture in row.pictures] == ["cat.png", "dog.png"]
    record |= {"question": "Is <image 1> like <image 2>?"}
    parts = only_row(write(folder, [record])).turns[0].parts
    assert [p if isinstance(p, str) else p.name for p in parts] == [
        "Is", "cat.png", "like", "dog.png", "?"
    ]  # fmt: skip
    record |= {"question": "Is <image 2> like <image 1>?"}
    assert "has <image 2>; expected <image 1>" in only_problem(write(folder, [record])).message


def test_qwen_vl_pictures_in_the_text_are_shown(folder: Path) -> None:
    record = llava("Picture 1: <img>cat.png</img>\nWhat is it?")
    del record["image"]
    assert turns_of(only_row(write(folder, [record]))) == CAT
    record = llava("<img>bird.png</img>\nWhat is it?")
    assert "There is no picture bird.png" in only_problem(write(folder, [record])).message


def test_base64_is_recognised_without_a_data_uri(folder: Path) -> None:
    raw = (folder / "images" / "cat.png").read_bytes()
    text = base64.b64encode(raw).decode()
    for key, value in (("image", text), ("img_b64", text), ("image_base64_str", [text])):
        row = only_row(write(folder, [question(**{key: value})]))
        assert turns_of(row) == CAT
        assert row.conversation().pictures[0].image.getpixel((0, 0)) == (255, 0, 0)
    assert "is not a known key" in only_problem(write(folder, [question(shot=text)])).message


@pytest.mark.parametrize("path", ["/cats" * 40_000, "cats" * 55 + "/cat", "a picture " * 9_000])
def test_messages_are_short(folder: Path, path: str) -> None:
    assert len(only_problem(write(folder, [question(image=path)])).message) < 400 + len(str(folder))


# Questions


def test_the_input_of_an_instruction_is_part_of_the_question(folder: Path) -> None:
    record = {"instruction": "Translate.", "input": "a cat", "output": "eine Katze"}
    for images in ({}, {"images": ["cat.png"]}):
        row = only_row(write(folder, [record | images]))
        assert row.turns[0].text == "Translate.\na cat"
        assert len(row.pictures) == len(images)
    assert only_row(write(folder, [record | {"input": ""}])).turns[0].text == "Translate."


def test_a_history_becomes_earlier_turns(folder: Path) -> None:
    history = [["Look.", "I will."]]
    record = {"query": "What is it?", "response": "a cat", "images": ["cat.png"]}
    row = only_row(write(folder, [record | {"history": history}]))
    assert turns_of(row) == [
        ("user", "Look.", 1), ("assistant", "I will.", 0),
        ("user", "What is it?", 0), ("assistant", "a cat", 0),
    ]  # fmt: skip
    assert row.references == (("I will.",), ("a cat",))
    problem = only_problem(write(folder, [record | {"history": ["Look."]}]))
    assert "The history is ['Look.']" in problem.message


def test_prompt_and_completion_messages_are_one_conversation(folder: Path) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    question_message = {"images": ["cat.png"], "prompt": [{"role": "user", "content": parts}]}
    answers = ({"completion": [{"role": "assistant", "content": "a cat"}]}, {"answer": "a cat"})
    for answer in answers:
        assert turns_of(only_row(write(folder, [question_message | answer]))) == CAT


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (question(question={"de": "Was?", "en": "What?"}), "The question is {'de': 'Was?'"),
        (question(question=["What?", "Why?"]), "not text"),
        (question(instruction="Do.", question=None, input=["a"]), "The question is ['a']"),
        (question(image="cat.png", answer="<image> a cat"), "(assistant) contains a picture"),
        (llava("<video>\nWhat?", image=None), "contains <video>"),
        (llava("What? <audio>", image=None), "contains <audio>"),
        (question(video="a.mp4"), "The row has a 'video'"),
    ],
)
def test_an_unusable_question_is_refused(folder: Path, record: dict, what: str) -> None:
    assert what in only_problem(write(folder, [record])).message


def test_unused_keys_are_noted_once_per_file(folder: Path) -> None:
    record = question(hint="It purrs.", choices=["a cat", "a dog"], question_id=7, split="train")
    path = write(folder, [record, record, question()])
    assert [str(note) for note in read_rows(path).notes] == [
        f"{path}: Not shown to the model: hint, choices (2 rows).",
        f"{path}: None of the 3 rows has a picture.",
    ]
    lettered = question(answer="B", A="a dog", B="a cat", image="cat.png")
    assert "model: A, B (1 row)" in read_rows(write(folder, [lettered])).notes[0].message
    assert read_rows(write(folder, [llava(width=8, source="x"), llava()])).notes == ()


# Answers


@pytest.mark.parametrize(
    ("record", "answer"),
    [
        (question(answer=2.0), "2"),
        (question(answer=2.5), "2.5"),
        (question(answer=1, choices=["a dog", "a cat"]), "a cat"),
        (question(answer=1.0, options='["a dog", "a cat"]'), "a cat"),
        (question(answer="['red', 'red', 'grey']"), "red"),
        (question(answer="[illegible]"), "[illegible]"),
        (question(answer="[12, 40, 80, 99]"), "[12, 40, 80, 99]"),
        ({"question": "How many?", "answers": "[3, 3, 4]"}, "3"),
        (question(answer="B", choices=["a dog", "a cat"]), "a cat"),
        (question(answer="(b)", options={"A": "a dog", "B": "a cat"}), "a cat"),
        (question(answer="B", A="a dog", B="a cat", C=None), "a cat"),
        (question(answer="B", choices={"text": ["a dog", "a cat"], "label": ["A", "B"]}), "a cat"),
        (question(answer="1", options=["a dog", "a cat"]), "a cat"),
        (question(answer="1", options=["1", "2"]), "1"),
        (question(answer=None, answers=["1", "1", "3"], choices=["3", "4"]), "1"),
        (
            question(
                answer=None,
                correct_choice_idx=1,
                choices=["dog", "cat"],
                direct_answers=["kitten"] * 10,
            ),
            "cat",
        ),
    ],
)
def test_answers_are_parsed(folder: Path, record: dict, answer: str) -> None:
    assert only_row(write(folder, [record])).turns[1].text == answer


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (question(answer=float("nan")), "The answer is empty"),
        (question(question=float("nan")), "The question is empty"),
        ({"question": "What?"}, "There is no answer"),
        ({"answer": "a cat"}, "There is no question"),
        (question(answer=2, choices=["a dog", "a cat"]), "there are 2 choices"),
        (question(answer="C", choices=["a dog", "a cat"]), "there are 2 choices"),
        (question(answer=1, choices=["1", "2"]), "it is a choice and the position of another"),
        (question(answer="['red' 'grey']"), "is not a list"),
        (question(answer="['red', oh, 'grey']"), "is not a list"),
        ({"texts": [{"user": "What?", "assistant": None}]}, "as text"),
        (question(answer="caf\ud83d"), r"Message 2 contains half a character (\ud83d)"),
        (question(answers=["a cat", "\ude00"]), "An answer contains half a character"),
    ],
)
def test_an_unusable_answer_is_refused(folder: Path, record: dict, what: str) -> None:
    assert what in only_problem(write(folder, [record])).message


def test_half_a_character_in_an_id_is_replaced(folder: Path) -> None:
    assert only_row(write(folder, [llava(id="caf\ud83d")])).id == "caf?"


def test_class_labels_become_names(folder: Path) -> None:
    import datasets

    features = datasets.Features(
        {"question": datasets.Value("string"), "label": datasets.ClassLabel(names=["dog", "cat"])}
    )
    table = datasets.Dataset.from_dict({"question": ["What?"], "label": [1]}, features=features)
    table.save_to_disk(folder / "saved")
    assert only_row(folder / "saved").turns[1].text == "cat"


# Tables and folders


@pytest.mark.parametrize("column", ["image", "image_bytes"])
def test_a_column_of_bytes_contains_pictures(folder: Path, column: str) -> None:
    import pyarrow
    import pyarrow.parquet

    raw = (folder / "images" / "cat.png").read_bytes()
    table = pyarrow.table({"question": ["What is it?"], "answer": ["a cat"], column: [raw]})
    pyarrow.parquet.write_table(table, folder / "data.parquet")
    row = only_row(folder / "data.parquet")
    assert turns_of(row) == CAT
    assert row.conversation().pictures[0].image.getpixel((0, 0)) == (255, 0, 0)


def test_a_picture_folder_with_metadata_is_read(folder: Path) -> None:
    for part in ("train", "test"):
        (folder / "set" / part).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "set" / part / f"{part}.png")
        table = f"file_name,question,answer\n{part}.png,What is it?,a cat\n"
        write(folder / "set" / part, table, "metadata.csv")
    row = only_row(folder / "set")
    assert turns_of(row) == CAT
    assert row.pictures[0].name == "train.png"
    assert row.file == str(folder / "set" / "train" / "metadata.csv")
    for part in ("train", "test"):
        (folder / "set" / part).rename(folder / "set" / f"{part}s")
    with pytest.raises(
        DataError, match=r"several tables: tests/metadata\.csv, trains/metadata\.csv"
    ):
        read_rows(folder / "set")


def test_excels_separator_line_is_skipped(folder: Path) -> None:
    text = 'sep=;\r\nimage;question;answer\r\ncat.png;"What is it?";a cat\r\n'
    row = only_row(write(folder, text, "data.csv"))
    assert turns_of(row) == CAT
    assert row.number == 3


def test_questions_by_id_are_read(folder: Path) -> None:
    data = read_rows(write(folder, {"0512": question(imageId="cat"), "0513": question()}))
    assert [row.id for row in data.rows] == ["0512", "0513"]
    assert turns_of(data.rows[0]) == CAT


def test_a_developer_message_is_the_system_prompt(folder: Path) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "4"},
    ]
    assert turns_of(only_row(write(folder, [{"messages": messages}])))[0] == (
        "system",
        "Be brief.",
        0,
    )


@pytest.mark.parametrize("stray", ['cat.png,"What" is it?,a cat', 'cat.png,"What is it?,a cat'])
def test_a_stray_quote_affects_no_other_row(folder: Path, stray: str) -> None:
    good = 'cat.png,"What, then,\nis it?",a cat'
    text = "\n".join(["image,question,answer", good, stray, good, stray, good, ""])
    data = read_rows(write(folder, text, "data.csv"))
    assert [row.number for row in data.rows] == [2, 5, 8]
    assert [problem.row for problem in data.problems] == [4, 7]
    assert "quotes do not match" in data.problems[0].message


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("~nobody-of-that-name/data.json", "There is no file ~nobody"),
        ("", "Expected the name of a data file"),
        (" @2", "Expected the name of a data file"),
        (os.devnull, "is a pipe or device"),
    ],
)
def test_what_names_no_data_file_is_refused(source: str, what: str) -> None:
    with pytest.raises(DataError, match=what):
        check_sources([source])
    with pytest.raises(DataError, match=what):
        read_rows([source])


def test_the_home_of_an_unknown_user_is_no_picture_folder(folder: Path) -> None:
    with pytest.raises(DataError, match="There is no folder"):
        read_rows(write(folder, [llava()]), ["~nobody-of-that-name"])


@pytest.mark.parametrize(
    ("value", "words"),
    [("1" * 5000, "it has a number of more than 4,300"), ("[" * 100_000, "nested too deeply")],
)
def test_a_line_that_python_cannot_parse_affects_no_other_row(
    folder: Path, value: str, words: str
) -> None:
    path = folder / "rows.jsonl"
    path.write_text(f'{{"question": "a", "answer": "b"}}\n{{"question": "a", "answer": {value}}}\n')
    found = read_rows(path)
    assert len(found.rows) == 1
    assert "row 2: The line is not valid JSON" in str(found.problems[0])
    assert words in found.problems[0].message, "Python's own message speaks of its functions"
