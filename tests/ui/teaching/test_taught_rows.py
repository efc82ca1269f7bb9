"""Taught rows: kept as the data set that fine-tuning reads."""

from __future__ import annotations

import base64
import io
import json
import zipfile

import pytest
from PIL import Image

from finetune.data.read import read_rows
from ui.storage.picture_files import PictureStore
from ui.teaching.taught_rows import Teaching
from vqa_app.errors import DataError, UsageError


@pytest.fixture
def picture_store(tmp_path):
    return PictureStore(tmp_path / "pictures")


@pytest.fixture
def teaching(tmp_path, picture_store):
    return Teaching(tmp_path / "taught", picture_store)


def picture(picture_store, colour="red"):
    return picture_store.add(Image.new("RGB", (24, 18), colour), f"{colour}.png")


def test_finetune_reads_what_was_taught(teaching, picture_store):
    red, blue = picture(picture_store), picture(picture_store, "blue")
    teaching.add("ann", "What colour?", "red", [red], short=True)
    teaching.add("ann", "Do they differ?", "Yes, they do.", [red, blue])
    teaching.add("ann", "Literally <image>?", "No picture.", [red])
    found = read_rows(teaching.file("ann"))
    assert not found.problems
    assert len(found.rows) == 3
    first, second, third = (row.conversation() for row in found.rows)
    assert first.pictures == (red,)
    assert second.pictures == (red, blue) == second.pictures
    assert first.messages[0].text.strip().endswith("single word or phrase.")
    assert second.messages[1].text == "Yes, they do."
    assert len(third.pictures) == 1


def test_rows_come_back_as_they_were_taught(teaching, picture_store):
    red = picture(picture_store)
    teaching.add("ann", "What colour?", "red", [red], short=True, turn="t1", said="blue")
    (row,) = teaching.rows("ann")
    assert (row.question, row.answer, row.short, row.said) == ("What colour?", "red", True, "blue")
    assert row.pictures == (red.digest,)
    assert teaching.rows("bob") == []


def test_a_second_correction_of_a_turn_replaces_the_first(teaching, picture_store):
    teaching.add("ann", "What?", "a cat", [picture(picture_store)], turn="t1")
    teaching.add("ann", "What?", "a dog", [picture(picture_store)], turn="t1")
    assert [row.answer for row in teaching.rows("ann")] == ["a dog"]
    teaching.add("ann", "What?", "a cow", [picture(picture_store, "blue")], turn="t1")
    assert len(list((teaching.home("ann") / "images").iterdir())) == 1
    teaching.forget("ann", "t1")
    assert teaching.rows("ann") == []
    assert not list((teaching.home("ann") / "images").iterdir())


def test_rows_can_be_edited_and_deleted_by_their_owner_only(teaching, picture_store):
    row = teaching.add("ann", "What?", "a cat", [picture(picture_store)])
    with pytest.raises(UsageError):
        teaching.edit("bob", row.id, "What?", "a dog")
    with pytest.raises(UsageError):
        teaching.delete("bob", row.id)
    teaching.edit("ann", row.id, "Which?", "a dog")
    assert [(r.question, r.answer) for r in teaching.rows("ann")] == [("Which?", "a dog")]
    with pytest.raises(DataError, match="answer is empty"):
        teaching.edit("ann", row.id, "Which?", "  ")
    (image,) = (teaching.home("ann") / "images").iterdir()
    teaching.delete("ann", row.id)
    assert teaching.rows("ann") == []
    assert not image.exists()


def test_an_export_can_be_taken_in_by_somebody_else(teaching, picture_store):
    red, blue = picture(picture_store), picture(picture_store, "blue")
    teaching.add("ann", "What colour?", "red", [red], short=True)
    teaching.add("ann", "Do they differ?", "Yes.", [red, blue])
    count, problems = teaching.take_in("bob", teaching.export("ann"))
    assert (count, problems) == (2, [])
    told = [(row.question, row.answer, row.pictures, row.short) for row in teaching.rows("ann")]
    assert told == [(r.question, r.answer, r.pictures, r.short) for r in teaching.rows("bob")]


def test_a_lost_picture_does_not_hold_back_the_rest_of_an_export(teaching, picture_store):
    teaching.add("ann", "What colour?", "red", [picture(picture_store)])
    teaching.add("ann", "What colour?", "blue", [picture(picture_store, "blue")])
    teaching._image("ann", picture(picture_store).digest).unlink()
    with zipfile.ZipFile(io.BytesIO(teaching.export("ann"))) as archive:
        assert len([name for name in archive.namelist() if name.startswith("images/")]) == 1


def packed(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def png(colour="green"):
    stream = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(stream, "PNG")
    return stream.getvalue()


def test_a_table_with_pictures_is_taken_in(teaching):
    table = b"image,question,answer\ngreen.png,What colour?,green\nmissing.png,What?,none\n"
    count, problems = teaching.take_in("ann", packed(**{"my.csv": table, "green.png": png()}))
    assert count == 1
    assert len(problems) == 1
    assert "missing.png" in problems[0]
    assert "vqa-app-import" not in problems[0], "no path of the server's is told"
    assert teaching.rows("ann")[0].question == "What colour?"


def test_a_table_is_taken_in_without_a_zip_file_around_it(teaching):
    uri = "data:image/png;base64," + base64.b64encode(png()).decode()
    table = f'image,question,answer\n"{uri}",What colour?,green\nlost.png,What?,x\n'.encode()
    count, problems = teaching.take_in("ann", table, "my.CSV")
    assert count == 1
    assert len(problems) == 1
    assert "lost.png" in problems[0]
    assert teaching.rows("ann")[0].question == "What colour?"


def test_a_file_that_cannot_be_read_is_told_without_a_row(teaching):
    count, (problem,) = teaching.take_in("ann", b'[{"id": 1', "rows.json")
    assert count == 0
    assert problem.startswith("The file ends")
    count, (problem,) = teaching.take_in("ann", b"question,answer\nWhat?,a,b\n", "rows.csv")
    assert count == 0
    assert problem.startswith("row 2: ")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"not a zip", "not a zip"),
        (packed(**{"../evil.json": b"[]"}), "outside"),
        (packed(**{"/etc/evil.json": b"[]"}), "outside"),
        (packed(**{"readme.txt": b"hello"}), "no data file"),
        (packed(**{"a": b"x", "a/b.json": b"[]"}), "damaged"),
    ],
)
def test_odd_zip_files_are_refused(teaching, tmp_path, data, words):
    with pytest.raises(DataError, match=words):
        teaching.take_in("ann", data)
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("absolute", [True, False])
def test_a_zip_file_cannot_name_pictures_of_the_server(teaching, tmp_path, absolute):
    secret = tmp_path / "secret.png"
    secret.write_bytes(png())
    name = str(secret) if absolute else "../" * 12 + str(secret).lstrip("/")
    row = {"id": "1", "image": name, "conversations": [
        {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "x"}]}  # fmt: skip
    data = packed(**{"rows.json": json.dumps([row]).encode()})
    try:
        count, problems = teaching.take_in("ann", data)
    except DataError as error:
        assert "secret.png" in str(error)
    else:
        assert count == 0
        assert problems
    assert teaching.rows("ann") == []


def test_a_bomb_is_not_unpacked(teaching, monkeypatch):
    monkeypatch.setattr("ui.teaching.uploads.MAX_UNPACKED", 1000)
    with pytest.raises(DataError, match="too much"):
        teaching.take_in("ann", packed(**{"rows.json": json.dumps(["x" * 5000]).encode()}))


def table(rows: int) -> bytes:
    return "".join(["question,answer\n", *(f"What is {n}?,{n}\n" for n in range(rows))]).encode()


def test_an_import_writes_the_file_once(teaching, monkeypatch):
    written = []
    write = Teaching._write
    monkeypatch.setattr(
        Teaching,
        "_write",
        lambda self, *given: (written.append(len(given[1])), write(self, *given)),
    )
    teaching.take_in("ann", table(2), "first.csv")
    assert teaching.take_in("ann", table(3000), "more.csv") == (3000, [])
    assert written == [2, 3002], "written per row, a thousand rows take most of a minute"
    assert teaching.rows("ann")[0].answer == "2999", "latest first"


def test_the_rows_are_counted_without_reading_them_anew(teaching, monkeypatch):
    assert teaching.count("ann") == 0
    row = teaching.add("ann", "What?", "this", [])
    assert teaching.count("ann") == 1
    with monkeypatch.context() as patched:
        patched.setattr(Teaching, "_read", lambda *_: pytest.fail("read again"))
        assert teaching.count("ann") == 1, "once a second in every open page"
    teaching.delete("ann", row.id)
    assert teaching.count("ann") == 0


def test_what_does_not_fit_leaves_neither_rows_nor_pictures(teaching, monkeypatch):
    rows = b"image,question,answer\ngreen.png,What?,green\nred.png,What?,red\n"
    data = packed(**{"my.csv": rows, "green.png": png(), "red.png": png("red")})
    with monkeypatch.context() as patched:
        patched.setattr("ui.teaching.taught_rows.MAX_ROWS", 1)
        with pytest.raises(DataError, match="too many rows"):
            teaching.take_in("ann", data)
    assert teaching.rows("ann") == []
    assert not list((teaching.home("ann") / "images").iterdir())
    assert teaching.take_in("ann", data) == (2, [])
    assert len(list((teaching.home("ann") / "images").iterdir())) == 2


def test_a_picture_of_many_rows_is_read_once(teaching, picture_store, monkeypatch):
    rows = b"image,question,answer\n" + b"green.png,What?,green\n" * 5
    read, add = [], picture_store.add
    monkeypatch.setattr(
        picture_store, "add", lambda *given: (read.append(given[1]), add(*given))[1]
    )
    count, _ = teaching.take_in("ann", packed(**{"my.csv": rows, "green.png": png()}))
    assert count == 5
    assert read == ["green.png"]
    assert len({row.pictures for row in teaching.rows("ann")}) == 1


def test_the_exported_table_holds_every_row(teaching, picture_store):
    red, blue = picture(picture_store), picture(picture_store, "blue")
    teaching.add("ann", "What colour?", "red", [red])
    teaching.add("ann", "Do they differ?", "Yes.", [red, blue])
    teaching.add("ann", "What is a cat?", "An animal.", [])
    with zipfile.ZipFile(io.BytesIO(teaching.export("ann"))) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    del files["llava.json"]
    assert teaching.take_in("bob", packed(**files)) == (3, [])
    assert [(row.question, row.answer, row.pictures) for row in teaching.rows("bob")] == [
        (row.question, row.answer, row.pictures) for row in teaching.rows("ann")
    ]


def test_an_import_can_be_taken_back_and_all_be_deleted(teaching, picture_store):
    own = teaching.add("ann", "What?", "a cat", [picture(picture_store)])
    assert teaching.imported("ann") == 0
    teaching.take_in("ann", packed(**{"my.csv": b"image,question,answer\na.png,What?,b\n",
                                      "a.png": png()}))  # fmt: skip
    teaching.take_in("ann", table(3), "wrong.csv")
    assert teaching.imported("ann") == 3
    assert teaching.imported("bob") == 0
    teaching.delete("ann", teaching.rows("ann")[0].id)
    assert teaching.imported("ann") == 2
    teaching.undo_import("ann")
    assert [row.answer for row in teaching.rows("ann")] == ["b", "a cat"]
    teaching.undo_import("ann")
    assert teaching.count("ann") == 2, "only the latest import"
    teaching.add("bob", "What?", "his", [])
    teaching.delete_all("ann")
    assert teaching.rows("ann") == []
    assert teaching.count("bob") == 1
    assert not teaching._image("ann", own.pictures[0]).exists()


def test_halves_of_characters_do_not_come_in(teaching):
    data = json.dumps([{"question": "What \ud800?", "answer": "\udfff"}]).encode()
    count, problems = teaching.take_in("ann", data, "rows.json")
    assert count + len(problems) == 1, "taken in or told, no mistake of ours"
    assert teaching.add("ann", "a\ud800", "b", []).question == "a?"
