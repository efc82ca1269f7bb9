"""Tables, folders, data sets with splits, and files of other types."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from finetune.data.read import FOR_TESTING, FOR_TRAINING, read_rows
from tests.finetune.data_rows import llava, only_problem, only_row, question, turns_of, write
from vqa_app.errors import DataError


def test_the_cauldron_layout_is_read_from_parquet(folder: Path) -> None:
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
        assert turns_of(row) == [
            ("user", "Question: What is it?", 1),
            ("assistant", "a cat", 0),
            ("user", "And its colour?", 0),
            ("assistant", "red", 0),
        ]
        assert row.conversation().pictures[0].image.getpixel((0, 0)) == (255, 0, 0)


def test_the_train_split_of_a_folder_is_read(folder: Path) -> None:
    import datasets

    table = datasets.Dataset.from_dict({"question": ["What?"], "answer": ["a cat"]})
    for name in ("train-00000", "test-00000"):
        table.to_parquet(folder / "data" / f"{name}.parquet")
    found = read_rows(folder / "data")
    assert len(found.rows) == 1
    assert "train" in found.notes[0].message


def test_for_testing_the_test_split_is_read(folder: Path) -> None:
    import datasets

    def table(answer: str) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"question": ["What?"], "answer": [answer]})

    def read(source: object, purpose: str = FOR_TESTING) -> tuple[str, str]:
        found = read_rows(str(source), (), purpose)
        (row,) = found.rows
        return row.turns[1].text, " ".join(note.message for note in found.notes)

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
        assert answer == "test"
        assert "Only the split test of " in note
        assert read(f"{source}@validation")[0] == read(f"{source}@validation@2")[0] == "validation"
        with pytest.raises(DataError, match="has no split dev"):
            read(f"{source}@dev")
    assert read_rows(f"{saved}@test").rows[0].file == f"{saved}@test"
    alone = folder / "alone"
    datasets.DatasetDict({"test": table("test")}).save_to_disk(alone)
    assert read(alone, FOR_TRAINING) == ("test", read(alone, FOR_TRAINING)[1])
    assert "Its only split, test, is read" in read(alone, FOR_TRAINING)[1]
    datasets.DatasetDict({"test": table("a"), "dev": table("b")}).save_to_disk(folder / "two")
    with pytest.raises(DataError, match="it is unclear which is for training") as refused:
        read(folder / "two", FOR_TRAINING)
    assert "@test" in refused.value.hint
    with pytest.raises(DataError, match="has no splits"):
        read_rows(f"{write(folder, [question()])}@test")


def test_pictures_of_different_splits_are_different(folder: Path) -> None:
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


def test_splits_are_recognised_by_whole_words(folder: Path) -> None:
    from finetune.data.tables import training_files

    trains, planes = folder / "trains.json", folder / "planes.json"
    assert training_files([trains, planes], folder) == [trains, planes]
    ours, theirs = folder / "data" / "train-0.json", folder / "data" / "test-0.json"
    assert training_files([ours, theirs], folder) == [ours]


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow_files_and_streams_are_read(folder: Path, kind: str) -> None:
    import pyarrow

    table = pyarrow.table({"question": ["What?"], "answer": ["a cat"]})
    path = folder / "data.arrow"
    writer = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
    with writer(path, table.schema) as out:
        out.write_table(table)
    assert turns_of(only_row(path))[1] == ("assistant", "a cat", 0)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="Cannot read"):
        read_rows(path)


def test_files_are_combined_with_weights(folder: Path) -> None:
    first, second = write(folder, [llava()], "a.json"), write(folder, [llava()] * 2, "b.json")
    data = read_rows([f"{first}@2.5", second])
    assert [row.weight for row in data.rows] == [2.5, 1, 1]
    with pytest.raises(DataError, match="weight"):
        read_rows([f"{first}@-1"])


@pytest.mark.parametrize(
    ("name", "what"), [("a.xlsx", "an Excel workbook"), ("images/cat.png", "a PNG picture")]
)
def test_other_file_types_are_named(folder: Path, name: str, what: str) -> None:
    with zipfile.ZipFile(folder / "a.xlsx", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("[Content_Types].xml", "<Types/>")
        zipped.writestr("xl/workbook.xml", "<workbook/>" * 50)
    problem = only_problem(folder / name)
    assert what in problem.message
    assert "UTF-8 text" not in problem.message
    assert problem.hint


def test_the_content_of_a_folder_without_a_data_set_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"contains no data set: it has 2 \.png files"):
        read_rows(folder / "images")
    (folder / "images" / "cat.txt").write_text("a cat")
    with pytest.raises(DataError, match=r"it has 2 \.png files and 1 \.txt file"):
        read_rows(folder / "images")
    write(folder, [llava()])
    with pytest.raises(DataError, match="is not a data set of the `datasets` library") as refused:
        read_rows(folder)
    assert str(folder / "data.json") in refused.value.hint


def test_a_missing_file_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"There is no file .*gone\.json"):
        read_rows(folder / "gone.json")
