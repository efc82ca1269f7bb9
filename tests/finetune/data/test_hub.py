"""Hub data sets, read by `datasets` from a local server."""

from __future__ import annotations

import _thread
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from finetune.data.read import FOR_TESTING, check_sources, read_rows
from finetune.evaluation.questions import load_questions
from tests import fake_xet
from tests.fake_hub import pauses, use
from tests.finetune.fake_data_hub import Handler, serve
from vqa_app.errors import DataError


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Handler]]:
    with serve(monkeypatch, tmp_path / "caches") as handler:
        handler.folders["someone/cats"] = data_set(tmp_path / "cats")
        yield handler


def data_set(folder: Path) -> Path:
    """Write a data set of two training questions and one test question, as Parquet files."""
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "answer": datasets.ClassLabel(names=["red", "blue"]),
        }
    )
    for split, colours in (("train", ["red", "blue"]), ("test", ["red"])):
        table = {
            "image": [Image.new("RGB", (8, 6), colour) for colour in colours],
            "question": ["Which colour?"] * len(colours),
            "answer": colours,
        }
        made = datasets.Dataset.from_dict(table, features=features)
        made.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    (folder / "README.md").write_text("Cats.\n")
    return folder


def test_rows_and_pictures_of_a_hub_data_set_are_read(hub: type[Handler]) -> None:
    data = read_rows("someone/cats")
    assert data.problems == ()
    assert [row.turns[1].text for row in data.rows] == ["red", "blue"]
    assert [row.turns[0].text for row in data.rows] == ["Which colour?"] * 2
    colours = [row.conversation().pictures[0].image.getpixel((0, 0)) for row in data.rows]
    assert colours == [(255, 0, 0), (0, 0, 255)]
    assert data.rows[1].place == "someone/cats, row 2"
    assert hub.downloads.count("train-00000-of-00001.parquet") == 1


def test_ctrl_c_ends_the_download_of_a_data_set(
    hub: type[Handler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` itself would wait until it is complete."""
    with fake_xet.use(monkeypatch) as xet:
        xet.on_first = _thread.interrupt_main
        with pytest.raises(KeyboardInterrupt):
            read_rows("someone/cats")
    assert xet.aborts
    assert set(xet.attempts) <= {
        f"someone/cats/data/{split}-00000-of-00001.parquet" for split in ("train", "test")
    }


def test_a_config_is_named_after_a_colon(hub: type[Handler]) -> None:
    folder = hub.folders["someone/cats"]
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: other\n  data_files:\n"
        "  - split: train\n    path: data/test-*\n---\n"
    )
    assert [row.turns[1].text for row in read_rows("someone/cats:other").rows] == ["red"]
    with pytest.raises(DataError, match="cannot be loaded from the hub: BuilderConfig 'none'"):
        read_rows("someone/cats:none")


def test_a_split_is_named_after_an_at_sign(hub: type[Handler]) -> None:
    for data in (read_rows("someone/cats@test"), read_rows("someone/cats", (), FOR_TESTING)):
        assert [row.turns[1].text for row in data.rows] == ["red"]
    check_sources("someone/cats@test@2")
    with pytest.raises(DataError, match="someone/cats has no split validation") as refused:
        read_rows("someone/cats@validation")
    assert refused.value.hint == "Its splits are train, test."
    questions = load_questions("someone/cats")
    assert len(questions.questions) == 1
    assert "Only the split test of train, test is read" in questions.notes[0].message
    folder = hub.folders["someone/tests"] = data_set(hub.folders["someone/cats"].parent / "tests")
    (folder / "data" / "train-00000-of-00001.parquet").unlink()
    assert len(read_rows("someone/tests").rows) == 1


def test_a_cached_data_set_needs_no_network(
    hub: type[Handler], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = read_rows("someone/cats")
    use(monkeypatch, "http://127.0.0.1:9", tmp_path / "caches" / "hub")
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", "http://127.0.0.1:9")
    paused = pauses(monkeypatch)
    assert read_rows("someone/cats").rows == before.rows
    with pytest.raises(DataError, match="The hub cannot be reached"):
        read_rows("someone/dogs")
    assert not paused


def test_an_unknown_data_set_is_refused_without_retries(
    hub: type[Handler], monkeypatch: pytest.MonkeyPatch
) -> None:
    paused = pauses(monkeypatch)
    with pytest.raises(DataError, match="There is no such data set"):
        read_rows("someone/dogs")
    assert not paused
    assert hub.downloads == []


def test_a_mistyped_folder_is_not_looked_up_on_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for read in (read_rows, check_sources):
        with pytest.raises(DataError, match="There is no mine in the folder photos"):
            read("photos/mine")


@pytest.mark.parametrize(
    "source", ["gone.json", "/no/where", "a/b/c", "photos/mine.json@2", "photos/mine.zip"]
)
def test_missing_sources_are_refused_without_reading(source: str) -> None:
    with pytest.raises(DataError, match="There is no file"):
        check_sources(source)


def test_missing_picture_folders_are_refused_without_reading(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("nothing that could be read")
    check_sources(tmp_path / "data.json")
    with pytest.raises(DataError, match="There is no folder"):
        check_sources(tmp_path / "data.json", [tmp_path / "gone"])
