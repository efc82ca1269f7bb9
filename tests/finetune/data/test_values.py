"""Every type of value that JSON, CSV and Arrow deliver becomes what it means, or is refused."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from finetune.data.read import read_rows
from tests.finetune.data_rows import CAT, only_problem, only_row, question, turns_of, write
from vqa_app.errors import DataError


def parquet(folder: Path, **columns: pyarrow.Array) -> Path:
    """Write a table with one row; question, answer and image have defaults."""
    defaults = {"image": "cat.png", "question": "What is it?", "answer": "a cat"}
    arrays = {key: pyarrow.array([value]) for key, value in defaults.items()} | columns
    pyarrow.parquet.write_table(pyarrow.table(arrays), folder / "data.parquet")
    return folder / "data.parquet"


ARROW_TEXTS = {
    "int8": (pyarrow.array([3], pyarrow.int8()), "3"),
    "uint64": (pyarrow.array([2**64 - 1], pyarrow.uint64()), "18446744073709551615"),
    "float16": (pyarrow.array([0.1], pyarrow.float16()), "0.1"),
    "float32": (pyarrow.array([0.1], pyarrow.float32()), "0.1"),
    "float64": (pyarrow.array([0.1]), "0.1"),
    "whole float": (pyarrow.array([2.0]), "2"),
    "decimal": (pyarrow.array([Decimal("2.50")]), "2.50"),
    "text": (pyarrow.array(["a cat"], pyarrow.large_string()), "a cat"),
    "text view": (pyarrow.array(["a cat"], pyarrow.string_view()), "a cat"),
    "dictionary": (pyarrow.array(["a cat"]).dictionary_encode(), "a cat"),
    "bytes": (pyarrow.array(["ein Kätzchen".encode()]), "ein Kätzchen"),
    "bytes of fixed length": (pyarrow.array([b"BM W"], pyarrow.binary(4)), "BM W"),
    "date": (pyarrow.array([datetime.date(2024, 5, 1)]), "2024-05-01"),
    "time": (pyarrow.array([datetime.time(12, 30)]), "12:30:00"),
    "timestamp": (
        pyarrow.array([datetime.datetime(2024, 5, 1, 12, 30)], pyarrow.timestamp("ns")),
        "2024-05-01 12:30:00",
    ),
}


def test_a_date_that_python_does_not_know_makes_only_its_own_row_unusable(folder: Path) -> None:
    dates = pyarrow.array([0, 2**62], pyarrow.timestamp("us"))
    two = {
        key: pyarrow.array([value] * 2)
        for key, value in (("image", "cat.png"), ("question", "When?"))
    }
    pyarrow.parquet.write_table(pyarrow.table({**two, "answer": dates}), folder / "data.parquet")
    data = read_rows(folder / "data.parquet")
    assert [row.number for row in data.rows] == [1]
    (problem,) = data.problems
    assert problem.row == 2
    assert "cannot be read" in problem.message


def test_a_duration_is_refused_as_a_person_would_write_it(folder: Path) -> None:
    value = pyarrow.array([datetime.timedelta(seconds=90)])
    assert "The answer is 0:01:30" in only_problem(parquet(folder, answer=value)).message


def test_a_table_without_rows_is_no_damaged_file(folder: Path) -> None:
    table = pyarrow.table({"question": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(table, folder / "data.parquet")
    with pytest.raises(DataError, match="It has no rows"):
        read_rows(folder / "data.parquet")


@pytest.mark.parametrize(("value", "text"), ARROW_TEXTS.values(), ids=ARROW_TEXTS)
def test_a_column_of_this_type_is_read_as_its_text(
    folder: Path, value: pyarrow.Array, text: str
) -> None:
    row = only_row(parquet(folder, question=value, answer=value))
    assert turns_of(row) == [("user", text, 1), ("assistant", text, 0)]
    assert row.references == ((text,),)


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (pyarrow.array([True]), "yes"),
        (pyarrow.array([["a cat", "a cat", "a dog"]]), "a cat"),
        (pyarrow.array([[b"a cat"]]), "a cat"),
        (pyarrow.array([[[1.5, 2], [3, 4]]], pyarrow.list_(pyarrow.list_(pyarrow.float32()))),
         "[[1.5, 2.0], [3.0, 4.0]]"),
        (pyarrow.array([[0.1, 0.2]], pyarrow.list_(pyarrow.float32())), "[0.1, 0.2]"),
        (pyarrow.array([{"answer": b"a cat"}]), "a cat"),
        (pyarrow.array([{"text": ["a cat"], "answer_start": [0]}]), "a cat"),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)  # fmt: skip
def test_an_answer_column_of_this_type_is_read(
    folder: Path, value: pyarrow.Array, answer: str
) -> None:
    assert only_row(parquet(folder, answer=value)).turns[1].text == answer


@pytest.mark.parametrize("column", ["question", "answer"])
@pytest.mark.parametrize(
    ("value", "what"),
    [
        (pyarrow.array([b"\xff\xfe\x01"]), "is bytes that are not UTF-8 text"),
        (pyarrow.array([b"a\0cat"]), "is bytes that are not UTF-8 text"),
        (pyarrow.array([float("inf")]), "is inf, not text"),
        (pyarrow.array([float("nan")]), "is empty"),
        (pyarrow.nulls(1), "is empty"),
        (pyarrow.array([datetime.timedelta(seconds=3)]), "is 0:00:03, not text"),
        (pyarrow.array([{"animal": "a cat"}]), "is {'animal': 'a cat'}"),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_a_column_of_this_type_is_refused(
    folder: Path, column: str, value: pyarrow.Array, what: str
) -> None:
    problem = only_problem(parquet(folder, **{column: value}))
    assert problem.message.startswith(f"The {column} {what}")
    assert problem.row == 1
    assert problem.hint
    assert "PictureSource" not in str(problem)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (pyarrow.array([b"cat.png"]), True),
        (pyarrow.array(["cat.png"]).dictionary_encode(), True),
        (pyarrow.array([["cat.png"]]), True),
        (pyarrow.array([{"bytes": None, "path": "cat.png"}]), True),
        (pyarrow.nulls(1), False),
        (pyarrow.array([b""]), False),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_a_picture_column_of_this_type_is_read(
    folder: Path, value: pyarrow.Array, shown: bool
) -> None:
    row = only_row(parquet(folder, image=value))
    assert [picture.name for picture in row.pictures] == ["cat.png"] * shown


@pytest.mark.parametrize("number", [pyarrow.int16(), pyarrow.float32(), pyarrow.decimal128(21, 1)])
def test_a_picture_column_of_numbers_names_files(folder: Path, number: pyarrow.DataType) -> None:
    (folder / "images" / "cat.png").rename(folder / "images" / "7.png")
    seven = pyarrow.array([7]).cast(number)
    assert [p.name for p in only_row(parquet(folder, image=seven)).pictures] == ["7.png"]


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (pyarrow.array([True]), "Picture 1 is True"),
        (pyarrow.array([2.5]), "Picture 1 is 2.5"),
        (pyarrow.array([datetime.date(2024, 5, 1)]), "Picture 1 is 2024-05-01"),
        (pyarrow.array([b"<svg xmlns='http://www.w3.org/2000/svg'/>"]), "is an SVG drawing"),
        (pyarrow.array([{"name": "cat.png"}]), "which contains no path"),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_a_picture_column_of_this_type_is_refused(
    folder: Path, value: pyarrow.Array, what: str
) -> None:
    assert what in only_problem(parquet(folder, image=value)).message


@pytest.mark.parametrize("kind", ["map", "uuid"])
def test_a_column_that_no_value_comes_from_is_named(folder: Path, kind: str) -> None:
    pair = pyarrow.map_(pyarrow.string(), pyarrow.string())
    value = {
        "map": pyarrow.array([[("k", "v")]], pair),
        "uuid": pyarrow.array([b"\0" * 16], pyarrow.uuid()),
    }[kind]
    with pytest.raises(DataError, match=kind) as refused:
        read_rows(parquet(folder, answer=value))
    assert "text, numbers or bytes" in refused.value.hint


def test_two_columns_of_one_name_in_a_table_are_refused(folder: Path) -> None:
    text = pyarrow.array(["a cat"])
    table = pyarrow.table([text, text], names=["answer", "answer"])
    pyarrow.parquet.write_table(table, folder / "data.parquet")
    with pytest.raises(DataError, match="Two columns are called 'answer'"):
        read_rows(folder / "data.parquet")


# JSON


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"answer": 3}, "3"),
        ({"answer": 10**20}, "1" + "0" * 20),
        ({"answer": 1e300}, "1e+300"),
        ({"answer": False}, "no"),
        ({"answer": {"answer": "a cat", "answer_id": 1}}, "a cat"),
        ({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": 2.0}]},
         "2"),
        ({"messages": [{"from": None, "value": None, "role": "user", "content": "?"},
                       {"from": None, "value": None, "role": "assistant", "content": "a"}]}, "a"),
    ],
)  # fmt: skip
def test_a_json_value_is_read_as_its_text(folder: Path, record: dict, text: str) -> None:
    if "answer" in record:
        record = question(**record)
    assert only_row(write(folder, [record])).turns[-1].text == text


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (question(question=True), "The question is True, not text"),
        (question(question=["What?", "Where?"]), "The question is ['What?', 'Where?'], not text"),
        (question(question={"en": "What?"}), "The question is {'en': 'What?'}, not text"),
        (question(answer={"en": "a cat"}), "The answer is {'en': 'a cat'}."),
        (question(answer=float("inf")), "The answer is inf"),
        (question(answer="a\0cat"), "Message 2 contains a NUL character"),
        (question(system={"text": "Be kind."}), "The system prompt is {'text': 'Be kind.'}"),
        (question(Answer="a dog"), "The row has both 'answer' and 'Answer'"),
        ({"messages": [{"role": "user", "content": True}, {"role": "assistant", "content": "a"}]},
         "Message 1 is True, not text"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "content": "What?"}]},
                       {"role": "assistant", "content": "a"}]}, "A text part of message 1 is None"),
    ],
)  # fmt: skip
def test_a_json_value_that_is_no_text_is_refused(folder: Path, record: dict, what: str) -> None:
    problem = only_problem(write(folder, [record]))
    assert what in problem.message
    assert problem.hint


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_a_repeated_key_makes_only_its_own_row_unusable(folder: Path, name: str) -> None:
    good = json.dumps(question())
    bad = good[:-1] + ', "answer": "a dog"}'
    nested = json.dumps({"messages": [json.loads(good)]}).replace(good, bad)
    same = good[:-1] + ', "answer": "a cat"}'
    rows = [good, bad, same, nested]
    text = "\n".join(rows) if name.endswith("l") else f"[{', '.join(rows)}]"
    data = read_rows(write(folder, text, name))
    assert [row.number for row in data.rows] == [1, 3]
    assert [problem.row for problem in data.problems] == [2, 4]
    assert "The key 'answer' is written twice" in data.problems[0].message


def test_a_repeated_key_around_the_rows_makes_the_file_unusable(folder: Path) -> None:
    text = f'{{"data": [{json.dumps(question())}], "data": []}}'
    problem = only_problem(write(folder, text))
    assert problem.row is None
    assert "The key 'data' is written twice" in problem.message


def test_text_in_a_csv_stays_as_it_is(folder: Path) -> None:
    for text in ("2.0", "True", "007", "None", "1e3", "2024-05-01"):
        path = write(folder, f"image,question,answer\ncat.png,What is it?,{text}\n", "data.csv")
        assert turns_of(only_row(path)) == [CAT[0], ("assistant", text, 0)]


# Choices

SHAPES = ["a cat", "a dog", "a rock"]


@pytest.mark.parametrize(
    ("answer", "choices", "text"),
    [
        ("A, B", SHAPES, "a cat, a dog"),
        ("(a) and (c)", SHAPES, "a cat, a rock"),
        ("A;C", SHAPES, "a cat, a rock"),
        ("AB", SHAPES, "a cat, a dog"),
        (["A", "C"], SHAPES, "a cat, a rock"),
        ([0, 2], SHAPES, "a cat, a rock"),
        ("[0, 2]", json.dumps(SHAPES), "a cat, a rock"),
        (["A", "A", "B"], SHAPES, "a cat"),
        ("BA", SHAPES, "a dog, a cat"),
        ("CA", SHAPES, "a rock, a cat"),
        ("A, B, and C", SHAPES, "a cat, a dog, a rock"),
        ("A or B", SHAPES, "a cat or a dog"),
        ("A, B, or C", SHAPES, "a cat or a dog or a rock"),
        ("[A, C]", SHAPES, "a cat, a rock"),
        ("(B).", SHAPES, "a dog"),
        ("0, 2", SHAPES, "a cat, a rock"),
        ("1,2", SHAPES, "a dog, a rock"),
        ("0 and 1", SHAPES, "a cat, a dog"),
        ("1, 3", {"text": SHAPES, "label": ["1", "2", "3"]}, "a cat, a rock"),
        ("A, C", {"a": "a cat", "c": "a rock"}, "a cat, a rock"),
        ("1, 2", ["1", "2", "3"], "1, 2"),
        ("1/2", SHAPES, "1/2"),
        ("1,200", SHAPES, "1,200"),
        ("B, A", ["B", "A"], "B, A"),
        ("NO", "a cat or a rock", "NO"),
        ("TV", SHAPES, "TV"),
        ("A  " * 60 + "!", SHAPES, "A  " * 60 + "!"),
        ("AB", ["A", "AB", "0"], "AB"),
        ("a cat and a dog", SHAPES, "a cat and a dog"),
        ("2", {"text": SHAPES, "label": ["1", "2", "3"]}, "a dog"),
        ("B", [{"label": "A", "text": "a cat"}, {"label": "B", "text": "a dog"}], "a dog"),
        ("c", {"a": "a cat", "c": "a rock"}, "a rock"),
        (Decimal(1), SHAPES, "a dog"),
        ("a rock", "a cat or a rock", "a rock"),
    ],
)
def test_an_answer_that_names_choices_becomes_their_texts(
    answer: Any, choices: Any, text: str
) -> None:
    from finetune.data.cells import parse_answers

    assert parse_answers(answer, choices)[0] == text


@pytest.mark.parametrize(
    ("answer", "choices", "what"),
    [
        ("A, E", SHAPES, "there are 3 choices"),
        ("AE", SHAPES, "The answer is AE, but there are 3 choices"),
        ("AA", SHAPES, "The answer is AA, which names a choice twice"),
        ("0, 3", SHAPES, "The answer is 0, 3, but there are 3 choices"),
        ("0, 1", {"text": SHAPES, "label": ["1", "2", "3"]}, "there are 3 choices: 1, 2, 3"),
        ([0, 7], SHAPES, "there are 3 choices"),
        (-1, SHAPES, "there are 3 choices"),
        ("0", {"text": SHAPES, "label": ["1", "2", "3"]}, "there are 3 choices: 1, 2, 3"),
        ("B", "A. a cat B. a dog", "the choices are not a list"),
        ("A, B", "A. a cat B. a dog", "the choices are not a list"),
        ("B", ["a cat", {"image": "dog.png"}], "that choice has no text"),
        ("A", [None, "a dog"], "that choice has no text"),
    ],
)
def test_a_choice_that_is_not_there_is_refused(
    folder: Path, answer: Any, choices: Any, what: str
) -> None:
    path = write(folder, [question(answer=answer, choices=choices)])
    assert what in only_problem(path).message


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        ("A, B", "a cat, a dog"),
        (["A", "B"], "a cat, a dog"),
        (["A, B"], "a cat, a dog"),
        (["0", "2"], "a cat, a rock"),
        ("1", "a dog"),
        (["a rock", "a cat"], "a rock, a cat"),
        (["a cat", "a cat", "a dog"], "a cat"),
        (["5", "2", "2"], "2"),
        (["a lion", "a cat"], "a lion"),
        ([{"answer": "2"}, {"answer": "5"}], "2"),
        (True, "yes"),
    ],
)
def test_answers_select_choices_unless_annotators_gave_them(
    folder: Path, answers: Any, text: str
) -> None:
    record = {"question": "Which?", "choices": SHAPES, "answers": answers}
    assert only_row(write(folder, [record])).turns[1].text == text


def test_words_of_annotators_are_no_letters_of_choices(folder: Path) -> None:
    record = {"question": "Which?", "choices": SHAPES, "direct_answers": ["AC", "AC", "1, 2"]}
    assert only_row(write(folder, [record])).turns[1].text == "AC"
