"""Files that version 0.1.0 wrote open as before: runs, a data folder, exported conversations.

`tests/fixtures/version-0.1.0` was written by that version; `@FOLDER@` in its text files stands for
its folder.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.finetune.training_data import small_config

FIXTURE = Path(__file__).parent / "fixtures" / "version-0.1.0"


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """Copy the fixture and make its paths right."""
    folder = tmp_path / "earlier"
    shutil.copytree(FIXTURE, folder)
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".md"):
            text = path.read_text("utf-8")
            path.write_text(text.replace("@FOLDER@", folder.as_posix()), "utf-8")
    return folder


@pytest.mark.parametrize("name", ["lora", "full"])
def test_an_earlier_run_gives_the_outputs_that_it_recorded(earlier: Path, name: str) -> None:
    from finetune.runs.verify import verify

    assert verify(earlier / name).ok


@pytest.mark.parametrize("name", ["lora", "full"])
def test_an_earlier_run_answers(earlier: Path, name: str) -> None:
    from vqa_app import Conversation, LocalEngine, load_model, open_picture

    engine = LocalEngine(load_model(earlier / name))
    picture = open_picture(earlier / "data" / "0.png")
    answer = engine.score(Conversation.ask("Which colour has the picture?", picture), ["red", "no"])
    engine.close()
    assert len(answer) == 2


@pytest.mark.slow
def test_an_earlier_interrupted_run_goes_on_from_its_checkpoint(earlier: Path) -> None:
    from finetune import train

    data = str(earlier / "data" / "data.json")
    config = small_config(
        earlier / "base",
        earlier / "data" / "data.json",
        earlier / "interrupted",
        stage="lora",
        max_steps=4,
        eval_data=(data,),
        save_every=0.5,
        keep=1,
    )
    before = (earlier / "interrupted" / "metrics.jsonl").read_text("utf-8")
    result = train(config)
    after = (earlier / "interrupted" / "metrics.jsonl").read_text("utf-8").splitlines()
    assert after[: len(before.splitlines()) - 1] == before.splitlines()[:-1]
    assert result.steps == 4
    assert (earlier / "interrupted" / "manifest.json").exists()


def test_an_earlier_data_folder_shows_its_chat_and_its_taught_row(earlier: Path) -> None:
    from ui.chat.views import conversation_view
    from ui.storage.database import Store
    from ui.storage.picture_files import PictureStore
    from ui.teaching.taught_rows import TaughtRowStore

    folder = earlier / "data-dir"
    store = Store(folder / "chats.sqlite")
    (chat,) = store.conversations("ann")
    turns = conversation_view(store, "ann", chat.id)["turns"]
    store.close()
    assert [turn["question"] for turn in turns] == ["What colour is it?", "And is it blue?"]
    assert turns[0]["answer"] == "It is red."
    picture_store = PictureStore(folder / "pictures")
    assert picture_store.get(turns[0]["pictures"][0]["digest"]).image.size == (32, 24)
    (row,) = TaughtRowStore(folder / "taught", picture_store).rows("ann")
    assert (row.question, row.answer, row.turn) == ("And is it blue?", "no", turns[1]["id"])
    assert json.loads((folder / "taught" / "49915e0d7d4b402e" / "llava.json").read_text("utf-8"))


def test_a_conversation_that_an_earlier_page_exported_is_imported_as_it_was(
    earlier: Path, tmp_path: Path
) -> None:
    from tests.ui.harness import in_english
    from ui.chat.export import from_json
    from ui.chat.views import conversation_view
    from ui.storage.database import Store
    from ui.storage.picture_files import PictureStore

    store, picture_store = Store(tmp_path / "chats.sqlite"), PictureStore(tmp_path / "pictures")
    data = (earlier / "exports" / "page.json").read_bytes()
    chat = from_json(store, picture_store, "ann", data)
    view = conversation_view(store, "ann", chat)
    stopped = next(turn for turn in store.turns("ann", chat) if turn.state == "stopped")
    store.close()
    first, second = view["turns"]
    assert view["title"] == first["question"] == "What colour is it?"
    assert (first["answer"], first["verdict"], first["state"]) == (
        "It is red.",
        "right",
        "answered",
    )
    assert (second["question"], second["answer"]) == ("And is this one blue?", "Yes, it is blue.")
    assert second["facts"]["gain"] == 2.5
    assert second["facts"]["model"] == "Built in"
    assert second["branches"]["of"] == 2
    assert (stopped.question, stopped.answer) == ("And is it blue?", "It is")
    (blue,) = second["pictures"]
    assert (blue["name"], blue["size"]) == ("blue.png", [20, 10])
    assert in_english(blue["changes"]) == "turned upright"
    assert picture_store.get(blue["digest"]).image.getpixel((0, 0)) == (0, 0, 255)


def test_a_dialogue_that_an_earlier_shell_saved_is_read(earlier: Path) -> None:
    from vqa_app.prompts.conversation_file import ConversationFile

    file = ConversationFile.from_json(
        (earlier / "exports" / "shell.json").read_bytes(),
        max_question=100,
        max_answer=100,
        max_pictures=2,
    )
    assert [(turn.question, turn.answer) for turn in file.turns] == [
        ("What colour is it?", "It is red."),
        ("And is it blue?", "No."),
    ]
    (picture,) = file.pictures.values()
    assert (picture.name, picture.changes) == ("red.png", [])
