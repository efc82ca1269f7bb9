"""Taught rows, stored as a data set that `finetune` reads."""

from __future__ import annotations

import base64
import errno
import io
import json
import tarfile
import zipfile

import pytest
from PIL import Image

from finetune.data.read import read_rows
from ui.storage.picture_files import PictureStore
from ui.teaching.taught_rows import TaughtRowStore
from ui.teaching.uploads import unpack
from vqa_app.errors import DataError, UsageError


@pytest.fixture
def picture_store(tmp_path):
    return PictureStore(tmp_path / "pictures")


@pytest.fixture
def taught_rows(tmp_path, picture_store):
    return TaughtRowStore(tmp_path / "taught", picture_store)


def picture(picture_store, colour="red"):
    return picture_store.add(Image.new("RGB", (24, 18), colour), f"{colour}.png")


def test_finetune_reads_taught_rows(taught_rows, picture_store):
    red, blue = picture(picture_store), picture(picture_store, "blue")
    taught_rows.add("ann", "What colour?", "red", [red], short=True)
    taught_rows.add("ann", "Do they differ?", "Yes, they do.", [red, blue])
    taught_rows.add("ann", "Literally <image>?", "No picture.", [red])
    found = read_rows(taught_rows.data_file("ann"))
    assert not found.problems
    assert len(found.rows) == 3
    first, second, third = (row.conversation() for row in found.rows)
    assert first.pictures == (red,)
    assert second.pictures == (red, blue) == second.pictures
    assert first.messages[0].text.strip().endswith("single word or phrase.")
    assert second.messages[1].text == "Yes, they do."
    assert len(third.pictures) == 1


def test_origin_of_a_correction_is_no_note_about_the_data(taught_rows, picture_store):
    taught_rows.add("ann", "What is it?", "a hat", [], turn="1", model_answer="a cat")
    assert read_rows(str(taught_rows.data_file("ann"))).notes == ()


def test_rows_are_restored_unchanged(taught_rows, picture_store):
    red = picture(picture_store)
    added = taught_rows.add(
        "ann", "What colour?", "red", [red], short=True, turn="t1", model_answer="blue"
    )
    (row,) = taught_rows.rows("ann")
    assert row == added
    assert (row.question, row.answer, row.model_answer) == ("What colour?", "red", "blue")
    assert row.pictures == (red.digest,)
    assert taught_rows.rows("bob") == []


@pytest.mark.parametrize("mark", ["<image>", "[IMG]", "<|image_1|>", "<img>cat.png</img>"])
def test_picture_mark_that_a_person_types_is_text(taught_rows, picture_store, mark):
    taught_rows.add("ann", f"What is {mark}?", f"a {mark}", [picture(picture_store)])
    (row,) = read_rows(taught_rows.data_file("ann")).rows
    assert len(row.pictures) == 1
    assert [turn.text for turn in row.turns] == ["What is <picture>?", "a <picture>"]


def test_answer_not_to_be_trained_is_not_imported(taught_rows):
    messages = [{"role": role, "content": f"{role} {n}"} for n in (1, 2)
                for role in ("user", "assistant")]  # fmt: skip
    messages[1]["weight"] = 0
    data = json.dumps([{"messages": messages}]).encode()
    assert taught_rows.import_rows("ann", data, "rows.json") == (1, [])
    assert [row.answer for row in taught_rows.rows("ann")] == ["assistant 2"]


def test_second_correction_of_a_turn_replaces_the_first(taught_rows, picture_store):
    taught_rows.add("ann", "What?", "a cat", [picture(picture_store)], turn="t1")
    taught_rows.add("ann", "What?", "a dog", [picture(picture_store)], turn="t1")
    assert [row.answer for row in taught_rows.rows("ann")] == ["a dog"]
    taught_rows.add("ann", "What?", "a cow", [picture(picture_store, "blue")], turn="t1")
    assert len(list((taught_rows.folder_of("ann") / "images").iterdir())) == 1
    taught_rows.delete_for_turn("ann", "t1")
    assert taught_rows.rows("ann") == []
    assert not list((taught_rows.folder_of("ann") / "images").iterdir())


def test_rows_can_be_edited_and_deleted_by_their_owner_only(taught_rows, picture_store):
    row = taught_rows.add("ann", "What?", "a cat", [picture(picture_store)])
    with pytest.raises(UsageError):
        taught_rows.edit("bob", row.id, "What?", "a dog")
    with pytest.raises(UsageError):
        taught_rows.delete("bob", row.id)
    taught_rows.edit("ann", row.id, "Which?", "a dog")
    assert [(r.question, r.answer) for r in taught_rows.rows("ann")] == [("Which?", "a dog")]
    with pytest.raises(DataError, match="answer is empty"):
        taught_rows.edit("ann", row.id, "Which?", "  ")
    (image,) = (taught_rows.folder_of("ann") / "images").iterdir()
    taught_rows.delete("ann", row.id)
    assert taught_rows.rows("ann") == []
    assert not image.exists()


def test_export_can_be_imported_by_another_owner(taught_rows, picture_store):
    red, blue = picture(picture_store), picture(picture_store, "blue")
    taught_rows.add("ann", "What colour?", "red", [red], short=True)
    taught_rows.add("ann", "Do they differ?", "Yes.", [red, blue])
    count, problems = taught_rows.import_rows("bob", taught_rows.export("ann"))
    assert (count, problems) == (2, [])
    exported = [
        (row.question, row.answer, row.pictures, row.short) for row in taught_rows.rows("ann")
    ]
    assert exported == [
        (r.question, r.answer, r.pictures, r.short) for r in taught_rows.rows("bob")
    ]


def test_missing_picture_does_not_prevent_an_export(taught_rows, picture_store):
    taught_rows.add("ann", "What colour?", "red", [picture(picture_store)])
    taught_rows.add("ann", "What colour?", "blue", [picture(picture_store, "blue")])
    taught_rows._image("ann", picture(picture_store).digest).unlink()
    with zipfile.ZipFile(io.BytesIO(taught_rows.export("ann"))) as archive:
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


def test_table_with_pictures_is_imported(taught_rows):
    table = b"image,question,answer\ngreen.png,What colour?,green\nmissing.png,What?,none\n"
    count, problems = taught_rows.import_rows(
        "ann", packed(**{"my.csv": table, "green.png": png()})
    )
    assert count == 1
    assert len(problems) == 1
    assert "missing.png" in problems[0]
    assert "vqa-app-import" not in problems[0], "messages contain no path of the server"
    assert taught_rows.rows("ann")[0].question == "What colour?"


def test_table_is_imported_without_a_zip_file(taught_rows):
    uri = "data:image/png;base64," + base64.b64encode(png()).decode()
    table = f'image,question,answer\n"{uri}",What colour?,green\nlost.png,What?,x\n'.encode()
    count, problems = taught_rows.import_rows("ann", table, "my.CSV")
    assert count == 1
    assert len(problems) == 1
    assert "lost.png" in problems[0]
    assert taught_rows.rows("ann")[0].question == "What colour?"


def test_zip_file_made_on_a_mac_has_no_problems(taught_rows):
    """MacOS adds a file of its own for each file, with its suffix."""
    data = packed(
        **{
            "rows.csv": b"image,question,answer\ngreen.png,What colour?,green\n",
            "green.png": png(),
            "__MACOSX/._rows.csv": b"\0\5\x16\7",
            "._rows.csv": b"\0\5\x16\7",
        }
    )
    assert taught_rows.import_rows("ann", data) == (1, [])


def test_tar_file_and_zip_file_of_powershell_are_imported(taught_rows):
    table = b"image,question,answer\nimages/green.png,What colour?,green\n"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, data in (("set/rows.csv", table), ("set/images/green.png", png())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert taught_rows.import_rows("ann", stream.getvalue(), "set.tar.gz") == (1, [])
    zipped = packed(**{"rows.csv": table, "images\\green.png": png()})
    assert taught_rows.import_rows("ann", zipped, "set.zip") == (1, [])


def test_archive_inside_an_archive_is_not_unpacked(taught_rows):
    for name in ("inner.zip", "rows.csv"):
        with pytest.raises(DataError, match="another"):
            taught_rows.import_rows("ann", packed(**{name: ZIPPED}))


def test_unreadable_file_is_reported(taught_rows):
    count, (problem,) = taught_rows.import_rows("ann", b'[{"id": 1', "rows.json")
    assert count == 0
    assert problem.startswith("The file ends")
    count, (problem,) = taught_rows.import_rows("ann", b"question,answer\nWhat?,a,b\n", "rows.csv")
    assert count == 0
    assert problem.startswith("row 2: ")


def damaged(data: bytes, after: bytes, place: int, value: int) -> bytes:
    """Replace one byte, counted from the last occurrence of `after`."""
    found = bytearray(data)
    found[found.rfind(after) + place] = value
    return bytes(found)


ZIPPED = packed(**{"rows.csv": b"question,answer\n" + b"What?,this\n" * 50})
ENTRY = b"PK\1\2"
"""Begins the entry of a file in the list at the end of a zip file."""


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"not a zip", "neither an archive nor a table"),
        (damaged(ZIPPED, ENTRY, 6, 99), "damaged"),  # a later version of the format
        (damaged(ZIPPED, ENTRY, 8, 1), "encrypted"),
        (damaged(damaged(ZIPPED, ENTRY, 9, 8), ENTRY, 46, 0xFF), "damaged"),  # a name in UTF-8
        (damaged(ZIPPED, b"rows.csv" + ZIPPED[38:39], 8, 0xFF), "damaged"),  # the compressed data
        (packed(**{"../evil.json": b"[]"}), "outside"),
        (packed(**{"/etc/evil.json": b"[]"}), "outside"),
        (packed(**{"readme.txt": b"hello"}), "no data file"),
        (packed(**{"a": b"x", "a/b.json": b"[]"}), "no file here can have that name"),
    ],
)
def test_invalid_zip_files_are_refused(taught_rows, tmp_path, data, words):
    with pytest.raises(DataError, match=words):
        taught_rows.import_rows("ann", data)
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("absolute", [True, False])
def test_upload_cannot_refer_to_files_of_the_server(taught_rows, tmp_path, absolute):
    secret = tmp_path / "secret.png"
    secret.write_bytes(png())
    name = str(secret) if absolute else "../" * 12 + str(secret).lstrip("/")
    row = {"id": "1", "image": name, "conversations": [
        {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "x"}]}  # fmt: skip
    data = packed(**{"rows.json": json.dumps([row]).encode()})
    count, problems = taught_rows.import_rows("ann", data)
    assert count == 0
    assert problems
    assert taught_rows.rows("ann") == []


def test_full_disk_is_not_reported_as_a_damaged_file(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(OSError, match="no space"):
        unpack(ZIPPED, tmp_path)


def test_zip_bomb_is_not_unpacked(taught_rows, monkeypatch):
    monkeypatch.setattr("ui.teaching.uploads.MAX_UNPACKED", 1000)
    with pytest.raises(DataError, match="too large when unpacked"):
        taught_rows.import_rows("ann", packed(**{"rows.json": json.dumps(["x" * 5000]).encode()}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[{", "line 1, column 3 is not JSON"),
        (f"[{'1' * 5000}]", r"more than 4,300 digits\."),
        ("[" * 100_000, r"nested too deeply\."),
        ('{"a": 1}', "not a list"),
        ("[5]", "row 1 is not a question"),
        ('[{"id": "1", "conversations": [{"value": "What?"}]}]', "row 1 is not a question"),
    ],
)
def test_file_damaged_by_hand_is_named(taught_rows, text, words):
    taught_rows.add("ann", "What?", "this", [])
    taught_rows.data_file("ann").write_text(text)
    with pytest.raises(DataError, match=rf"llava.json cannot be read: .*{words}"):
        taught_rows.rows("ann")
    with pytest.raises(DataError):
        taught_rows.add("ann", "Why?", "that", [])
    assert taught_rows.data_file("ann").read_text() == text, "expected the file to stay as it is"


def table(rows: int) -> bytes:
    return "".join(["question,answer\n", *(f"What is {n}?,{n}\n" for n in range(rows))]).encode()


def test_import_writes_the_file_once(taught_rows, monkeypatch):
    written = []
    write = TaughtRowStore._write
    monkeypatch.setattr(
        TaughtRowStore,
        "_write",
        lambda self, *given: (written.append(len(given[1])), write(self, *given)),
    )
    taught_rows.import_rows("ann", table(2), "first.csv")
    assert taught_rows.import_rows("ann", table(3000), "more.csv") == (3000, [])
    assert written == [2, 3002], "the file is written once per import, not per row"
    assert taught_rows.rows("ann")[0].answer == "2999", "most recent first"


def test_counting_reads_only_a_changed_file(taught_rows, monkeypatch):
    assert taught_rows.count("ann") == 0
    row = taught_rows.add("ann", "What?", "this", [])
    assert taught_rows.count("ann") == 1
    with monkeypatch.context() as patched:
        patched.setattr(TaughtRowStore, "_read", lambda *_: pytest.fail("read again"))
        assert taught_rows.count("ann") == 1, "every open page asks once a second"
    taught_rows.delete("ann", row.id)
    assert taught_rows.count("ann") == 0


def test_too_large_import_leaves_neither_rows_nor_pictures(taught_rows, monkeypatch):
    rows = b"image,question,answer\ngreen.png,What?,green\nred.png,What?,red\n"
    data = packed(**{"my.csv": rows, "green.png": png(), "red.png": png("red")})
    with monkeypatch.context() as patched:
        patched.setattr("ui.teaching.taught_rows.MAX_ROWS", 1)
        with pytest.raises(DataError, match="too many rows"):
            taught_rows.import_rows("ann", data)
    assert taught_rows.rows("ann") == []
    assert not list((taught_rows.folder_of("ann") / "images").iterdir())
    assert taught_rows.import_rows("ann", data) == (2, [])
    assert len(list((taught_rows.folder_of("ann") / "images").iterdir())) == 2


def test_picture_of_many_rows_is_read_once(taught_rows, picture_store, monkeypatch):
    rows = b"image,question,answer\n" + b"green.png,What?,green\n" * 5
    read, add = [], picture_store.add
    monkeypatch.setattr(
        picture_store, "add", lambda *given: (read.append(given[1]), add(*given))[1]
    )
    count, _ = taught_rows.import_rows("ann", packed(**{"my.csv": rows, "green.png": png()}))
    assert count == 5
    assert read == ["green.png"]
    assert len({row.pictures for row in taught_rows.rows("ann")}) == 1


def test_exported_table_holds_every_row(taught_rows, picture_store):
    red, blue = picture(picture_store), picture(picture_store, "blue")
    taught_rows.add("ann", "What colour?", "red", [red])
    taught_rows.add("ann", "Do they differ?", "Yes.", [red, blue])
    taught_rows.add("ann", "What is a cat?", "An animal.", [])
    with zipfile.ZipFile(io.BytesIO(taught_rows.export("ann"))) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    del files["llava.json"]
    assert taught_rows.import_rows("bob", packed(**files)) == (3, [])
    assert [(row.question, row.answer, row.pictures) for row in taught_rows.rows("bob")] == [
        (row.question, row.answer, row.pictures) for row in taught_rows.rows("ann")
    ]


def test_import_can_be_undone_and_all_rows_deleted(taught_rows, picture_store):
    own = taught_rows.add("ann", "What?", "a cat", [picture(picture_store)])
    assert taught_rows.count_imported("ann") == 0
    taught_rows.import_rows("ann", packed(**{"my.csv": b"image,question,answer\na.png,What?,b\n",
                                      "a.png": png()}))  # fmt: skip
    taught_rows.import_rows("ann", table(3), "wrong.csv")
    assert taught_rows.count_imported("ann") == 3
    assert taught_rows.count_imported("bob") == 0
    taught_rows.delete("ann", taught_rows.rows("ann")[0].id)
    assert taught_rows.count_imported("ann") == 2
    taught_rows.undo_import("ann")
    assert [row.answer for row in taught_rows.rows("ann")] == ["b", "a cat"]
    taught_rows.undo_import("ann")
    assert taught_rows.count("ann") == 2, "only the latest import is undone"
    taught_rows.add("bob", "What?", "his", [])
    taught_rows.delete_all("ann")
    assert taught_rows.rows("ann") == []
    assert taught_rows.count("bob") == 1
    assert not taught_rows._image("ann", own.pictures[0]).exists()


def test_lone_surrogates_are_replaced(taught_rows):
    data = json.dumps([{"question": "What \ud800?", "answer": "\udfff"}]).encode()
    count, problems = taught_rows.import_rows("ann", data, "rows.json")
    assert count + len(problems) == 1, "imported or reported, without an unexpected error"
    assert taught_rows.add("ann", "a\ud800", "b", []).question == "a?"
