"""Unusual layouts are read as their authors mean them, or refused with a hint."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from finetune.data.read import read_rows
from tests.finetune.data_rows import CAT, llava, only_problem, only_row, question, turns_of, write


def chat(content: object = "What is it?", **answer: object) -> list[dict]:
    return [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "a cat"} | answer,
    ]


# Messages


@pytest.mark.parametrize(
    "mark",
    [
        {"weight": 0},
        {"weight": 0.0},
        {"loss": False},
        {"loss_scale": 0},
        {"train": False},
        {"training": False},
        {"masked": True},
    ],
)
def test_an_answer_marked_as_not_trained_is_context(folder: Path, mark: dict) -> None:
    path = write(folder, [{"messages": [*chat(**mark), *chat("Is it red?")]}])
    row = only_row(path)
    assert [turn.trained for turn in row.turns] == [True, False, True, True]
    assert row.references == (("a cat",),)
    assert read_rows(path).notes == ()
    problem = only_problem(write(folder, [{"messages": chat(**mark)}]))
    assert "Every answer of the row is marked as not to be trained" in problem.message


@pytest.mark.parametrize(
    ("mark", "what"),
    [
        ({"weight": 0.5}, "'weight': 0.5, but an answer is trained or not"),
        ({"loss": "low"}, "'loss': 'low', but an answer is trained or not"),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]}, "marks parts"),
    ],
)
def test_an_answer_trained_in_part_is_refused(folder: Path, mark: dict, what: str) -> None:
    assert what in only_problem(write(folder, [{"messages": chat(**mark)}])).message


def test_an_answer_marked_as_trained_is_read(folder: Path) -> None:
    for mark in ({"weight": 1}, {"weight": None}, {"loss": True}, {"train": True},
                 {"masked": False}):  # fmt: skip
        path = write(folder, [{"messages": chat(**mark)}])
        assert turns_of(only_row(path))[1] == ("assistant", "a cat", 0)
        assert read_rows(path).notes == ()


def test_unused_keys_of_messages_are_noted(folder: Path) -> None:
    path = write(folder, [{"messages": chat(reasoning_content="It purrs.", tool_calls=None)}])
    assert "model: message.reasoning_content (1 row)" in read_rows(path).notes[0].message
    question_message = {"role": "user", "content": "What is it?", "shot": "cat.png"}
    path = write(folder, [{"messages": [question_message, chat()[1]]}])
    assert "'shot' is a picture" in only_problem(path).message


def test_an_overridden_system_prompt_is_noted(folder: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *chat()]
    path = write(folder, [{"system": "Be kind.", "messages": messages}])
    assert turns_of(only_row(path))[0] == ("system", "Be brief.", 0)
    assert "The text under 'system' is not shown" in read_rows(path).notes[0].message
    assert read_rows(write(folder, [{"system": "Be brief.", "messages": messages}])).notes == ()


def test_indices_of_image_parts_must_be_in_order(folder: Path) -> None:
    def parts(*places: int) -> list[dict]:
        return [{"type": "image", "index": place} for place in places] + [
            {"type": "text", "text": "What is it?", "index": None}
        ]

    record = {"images": ["cat.png", "dog.png"], "messages": chat(parts(0, 1))}
    row = only_row(write(folder, [record]))
    assert [picture.name for picture in row.pictures] == ["cat.png", "dog.png"]
    record["messages"] = chat(parts(1, 0))
    assert "index 1; expected 0" in only_problem(write(folder, [record])).message


def test_trl_messages_without_placeholders_show_their_pictures_first(folder: Path) -> None:
    question_message, answer = chat()
    for record in (
        {"prompt": [question_message], "completion": [answer]},
        {"messages": [question_message, answer]},
        {
            "messages": [
                question_message | {"content": [{"type": "text", "text": "What is it?"}]},
                answer,
            ]
        },
    ):
        path = write(folder, [record | {"images": ["cat.png"]}])
        assert turns_of(only_row(path)) == CAT
        assert "No message marks where the pictures belong" in read_rows(path).notes[0].message
    some = chat("<image>What is it?")
    problem = only_problem(write(folder, [{"images": ["cat.png", "dog.png"], "messages": some}]))
    assert "2 pictures but 1 <image>" in problem.message


def test_anthropic_pictures_are_read_and_an_image_part_without_one_is_refused(folder: Path) -> None:
    raw = base64.b64encode((folder / "images" / "cat.png").read_bytes()).decode()
    text = {"type": "text", "text": "What is it?"}
    source = {"type": "base64", "media_type": "image/png", "data": raw}
    row = only_row(write(folder, [{"messages": chat([{"type": "image", "source": source}, text])}]))
    assert turns_of(row) == CAT
    assert row.conversation().pictures[0].image.getpixel((0, 0)) == (255, 0, 0)
    lacking = chat([{"type": "image", "shot": "cat.png"}, text])
    problem = only_problem(write(folder, [{"messages": lacking}]))
    assert "an image part without a picture; its keys are type, shot" in problem.message


@pytest.mark.parametrize(
    "record",
    [
        {"question": "What is it?"},
        {"prompt": chat()[:1]},
        {"messages": chat()[:1]},
        {},
    ],
)
def test_preference_data_is_refused(folder: Path, record: dict) -> None:
    path = write(folder, [record | {"chosen": "a cat", "rejected": "a dog"}])
    assert "preferences (chosen and rejected answers)" in only_problem(path).message
    path = write(folder, [question(chosen="a cat", rejected="a dog")])
    assert "model: chosen, rejected" in read_rows(path).notes[0].message


# Pictures


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("image_a", "image_b"),
        ("image", "image_b"),
        ("left_image", "right_image"),
        ("image_left", "image_right"),
        ("before_image", "after_image"),
        ("first image", "second image"),
    ],
)
def test_pictures_under_positional_keys_are_shown_in_order(
    folder: Path, first: str, second: str
) -> None:
    row = only_row(write(folder, [{second: "dog.png", first: "cat.png"} | question()]))
    assert [picture.name for picture in row.pictures] == ["cat.png", "dog.png"]


def test_an_unused_picture_is_refused_or_noted(folder: Path) -> None:
    record = question(image="cat.png")
    for key in ("reference_image", "ref_image_path", "image_reference"):
        problem = only_problem(write(folder, [record | {key: "dog.png"}]))
        assert f"'{key}' is a second picture" in problem.message
        assert "image_1" in problem.hint
    path = write(folder, [record | {"mask": "dog.png", "img_w": 8, "shape": "round"}])
    assert [note.message for note in read_rows(path).notes] == [
        "Pictures or picture names that are not shown to the model: mask (1 row).",
        "Not shown to the model: shape (1 row).",
    ]


def test_a_file_is_found_by_its_path_if_its_name_is_not_enough(folder: Path) -> None:
    (folder / "images" / "coco-text").mkdir()
    (folder / "images" / "dog.png").rename(folder / "images" / "coco-text" / "c0.png")
    record = question(file_path="coco-text/c0.png", file_name="c0.png")
    row = only_row(write(folder, [record]))
    assert turns_of(row) == CAT
    assert row.pictures[0].name == "c0.png"
    assert turns_of(only_row(write(folder, [question(file_path="coco-text/c0.png")]))) == CAT
    assert only_row(write(folder, [question(file_path="data/1.json")])).pictures == ()
    problem = only_problem(write(folder, [question(file_name="gone.png", file_path="x/gone.png")]))
    assert "There is no picture gone.png" in problem.message


def test_a_space_after_a_picture_name_is_ignored(folder: Path) -> None:
    assert turns_of(only_row(write(folder, [question(image="cat.png ")]))) == CAT


def test_pictures_inside_the_messages_of_a_table_are_read(folder: Path) -> None:
    import datasets

    part = {"type": datasets.Value("string"), "text": datasets.Value("string"),
            "image": datasets.Image()}  # fmt: skip
    features = datasets.Features(
        {"messages": datasets.List(
            {"role": datasets.Value("string"), "content": datasets.List(part)})}
    )  # fmt: skip
    question_message = [
        {"type": "image", "text": None, "image": str(folder / "images" / "cat.png")},
        {"type": "text", "text": "What is it?", "image": None},
    ]
    answer = [{"type": "text", "text": "a cat", "image": None}]
    messages = [
        {"role": "user", "content": question_message},
        {"role": "assistant", "content": answer},
    ]
    table = datasets.Dataset.from_dict({"messages": [messages]}, features=features)
    table.save_to_disk(folder / "saved")
    table.to_parquet(folder / "table.parquet")
    for source in ("saved", "table.parquet"):
        row = only_row(folder / source, images=[folder / "images"])
        assert turns_of(row) == CAT
        assert row.conversation().pictures[0].image.getpixel((0, 0)) == (255, 0, 0)


# Answers


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        ([1.5, 2, 3, 4], "[1.5, 2, 3, 4]"),
        ([[1, 2], [3, 4]], "[[1, 2], [3, 4]]"),
        ([5], "5"),
        (["red", "red", "grey"], "red"),
    ],
)
def test_a_bounding_box_is_one_answer(folder: Path, value: list, answer: str) -> None:
    assert only_row(write(folder, [question(answer=value)])).turns[1].text == answer
    assert only_row(
        write(folder, [{"question": "How many?", "answers": [3, 3, 4]}])
    ).references == (("3", "3", "4"),)


def test_a_blank_answer_counts_among_the_ten(folder: Path) -> None:
    from finetune.evaluation.metrics import vqa_accuracy

    blank = {"answer": ""}
    for answers in (["", *["red"] * 8, "grey"], [blank, *[{"answer": "red"}] * 8, "grey"]):
        row = only_row(write(folder, [{"question": "Colour?", "answers": answers}]))
        assert row.turns[1].text == "red"
        assert row.references == ((*["red"] * 8, "grey", ""),)
        assert vqa_accuracy("grey", row.references[0]) == pytest.approx(0.3)
    mostly = {"question": "Colour?", "answers": ["unanswerable", *[""] * 9]}
    assert only_row(write(folder, [mostly])).turns[1].text == "unanswerable"
    problem = only_problem(write(folder, [{"question": "Colour?", "answers": ["", ""]}]))
    assert "The answer is empty" in problem.message


# Tables


def test_a_stray_quote_in_a_tab_separated_file_is_text(folder: Path) -> None:
    lines = ["image\tquestion\tanswer"] + ["cat.png\tWhat is it?\ta cat"] * 8
    lines[3] = 'cat.png\tWhat is it?\t"a cat'
    lines[6] = 'cat.png\tWhat is it?\ta 5" cat"'
    lines[7] = 'cat.png\t"What" is it?\ta cat'
    data = read_rows(write(folder, "\n".join(lines), "data.tsv"))
    assert data.problems == ()
    assert len(data.rows) == 8
    assert [data.rows[place].turns[1].text for place in (2, 5)] == ['"a cat', 'a 5" cat"']
    assert data.rows[6].turns[0].text == '"What" is it?'


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 1, 0), (0, 2, 1)])
def test_quoted_text_may_span_lines(folder: Path, delimiter: str, order: tuple[int, ...]) -> None:
    rows = [["image", "question", "answer"], ["cat.png", '"What, then,\nis\nit?"', "a cat"]]
    text = "\n".join(delimiter.join(row[place] for place in order) for row in rows)
    row = only_row(write(folder, text, "data.csv"))
    assert row.turns[0].text == "What, then,\nis\nit?"
    assert len(row.pictures) == 1


def test_an_unclosed_quote_affects_no_other_row(folder: Path) -> None:
    lines = ["image,question,answer"] + ["cat.png,What is it?,a cat"] * 8
    lines[3], lines[6] = 'cat.png,What is it?,"a cat', 'cat.png,What is it?,a cat"'
    data = read_rows(write(folder, "\n".join(lines), "data.csv"))
    (problem,) = data.problems
    assert problem.row == 4
    assert "it would continue to line 7" in problem.message
    assert len(data.rows) == 7


def test_duplicate_column_names_are_refused(folder: Path) -> None:
    text = "image,question,answer, Answer\ncat.png,What is it?,a cat,a dog\n"
    problem = only_problem(write(folder, text, "data.csv"))
    assert problem.row is None
    assert "Two columns are called 'answer'" in problem.message
    assert turns_of(only_row(write(folder, "image,question,answer,,\ncat.png,What is it?,a cat,,\n",
                               "data.csv"))) == CAT  # fmt: skip


def test_a_space_before_a_quote_is_ignored(folder: Path) -> None:
    text = 'image, question, answer\ncat.png, "What, then?", a cat\n'
    row = only_row(write(folder, text, "data.csv"))
    assert turns_of(row) == [("user", "What, then?", 1), ("assistant", "a cat", 0)]


def test_lists_one_per_line_are_read(folder: Path) -> None:
    lines = [json.dumps(["What is it?", "a cat", "cat"]), json.dumps(["What is it?", "a cat", 7])]
    data = read_rows(write(folder, "\n".join(lines), "data.jsonl"))
    assert [problem.row for problem in data.problems] == [1, 2]
    assert "There is no picture 7.png" in data.problems[1].message
    (folder / "images" / "cat.png").rename(folder / "images" / "7.png")
    row = read_rows(folder / "data.jsonl").rows[0]
    assert turns_of(row) == CAT
    assert row.number == 2
    text = f"[\n{json.dumps(llava(image='7.png'))}\n]"
    assert turns_of(only_row(write(folder, text))) == CAT
