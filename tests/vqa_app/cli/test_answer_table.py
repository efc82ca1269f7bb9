"""Answers of `--each` as CSV and Parquet."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from vqa_app.cli.answer_table import is_table, write_table
from vqa_app.errors import UsageError


def row(name: str, **more: Any) -> dict[str, Any]:
    return {"picture": name, "answer": "{}", "confidence": 0.5, "finish_reason": "stop", **more}


ROWS = [
    row("a.png", value={"n": 1, "size": {"w": 2.5, "h": None}, "tags": ["é", 'x"']}),
    row("b.png", value={"n": 2, "size": {}, "ok": True}),
    row("c\n.png", answer="I am not sure."),
]


def test_each_value_has_a_column(tmp_path: Path) -> None:
    write_table(tmp_path / "a.CSV", ROWS)
    with (tmp_path / "a.CSV").open(encoding="utf-8", newline="") as file:
        first, second, third = csv.DictReader(file)
    assert list(first) == [
        *("picture", "n", "size.w", "size.h", "tags", "ok", "answer"),
        *("confidence", "finish_reason"),
    ]
    assert (first["n"], first["size.w"], first["size.h"], first["tags"]) == (
        *("1", "2.5", "", '["é", "x\\""]'),
    )
    assert (second["ok"], second["size.w"], second["tags"]) == ("true", "", "")
    assert (third["picture"], third["answer"], third["n"]) == ("c\n.png", "I am not sure.", "")


def test_parquet_keeps_types(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write_table(tmp_path / "a.parquet", [*ROWS, row("d", value={"tags": {"odd": 1}, "ok": "no"})])
    table = pq.read_table(tmp_path / "a.parquet").to_pydict()
    assert table["n"] == [1, 2, None, None]
    assert table["size.w"] == [2.5, None, None, None]
    assert table["tags"] == [["é", 'x"'], None, None, None]
    assert table["ok"] == [None, "true", None, '"no"'], "of two types, so as JSON"
    assert table["confidence"] == [0.5] * 4


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_odd_values_are_written(tmp_path: Path, name: str) -> None:
    odd = {"\ud800": "\ud800", "big": 10**30, "objects": [{}, {"a": 1}], "mixed": [1, "x", None]}
    write_table(tmp_path / name, [row("\ud800.png", value=odd), row("b", value={"mixed": 1})])
    assert (tmp_path / name).stat().st_size > 50


def test_answers_that_are_single_values_stand_in_one_column(tmp_path: Path) -> None:
    chosen = {"picture": "a.png", "answer": "yes", "confidence": None}
    write_table(tmp_path / "a.csv", [chosen, row("b.png", value=[1, 2])])
    lines = (tmp_path / "a.csv").read_text("utf-8").splitlines()
    assert lines == [
        *("picture,answer,confidence,finish_reason", "a.png,yes,,", 'b.png,"[1, 2]",0.5,stop')
    ]


def test_no_answers_are_a_table_without_rows(tmp_path: Path) -> None:
    for name in ("a.csv", "a.parquet"):
        write_table(tmp_path / name, [])
        assert (tmp_path / name).exists()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(UsageError, match=r"a\.csv"):
        write_table(tmp_path / "a.csv", ROWS)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_only_names_of_tables_make_one() -> None:
    names = ["a.csv", "a.Parquet", "a.jsonl", "csv", "-"]
    assert [is_table(Path(name)) for name in names] == [True, True, False, False, False]
