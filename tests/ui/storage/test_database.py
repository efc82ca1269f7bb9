"""The database of conversations, and the picture store."""

from __future__ import annotations

import io
import json
import sqlite3
import threading
import time
from contextlib import closing

import pytest
from PIL import Image, ImageChops, ImageStat

from finetune.data.rows import PictureSource
from tests.ui.harness import in_english
from ui.chat.export import from_json, to_json
from ui.chat.views import build_conversation, conversation_view
from ui.storage.database import Store, StoredTurn
from ui.storage.owned_pictures import add_owned_picture
from ui.storage.picture_files import PictureStore
from vqa_app.errors import ImageError, UsageError
from vqa_app.pictures.picture import ImageLimits, open_picture


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "chats.sqlite")
    yield store
    store.close()


def ask(store, conversation, question, parent=None, owner="ann"):
    turn = store.add_turn(owner, conversation, parent, question)
    store.finish_turn(turn.id, f"answer to {question}", "answered")
    return turn.id


def questions(store, conversation, owner="ann"):
    return [turn.question for turn in store.path(owner, conversation)]


def test_conversation_survives_a_restart(tmp_path):
    store = Store(tmp_path / "chats.sqlite")
    conversation = store.create("ann", "Cats")
    turn = store.add_turn("ann", conversation, None, "What is it?", ["a" * 64])
    store.finish_turn(turn.id, "A cat.", "answered", {"confidence": 0.9})
    store.close()
    again = Store(tmp_path / "chats.sqlite")
    (kept,) = again.path("ann", conversation)
    assert (kept.question, kept.pictures, kept.answer) == ("What is it?", ("a" * 64,), "A cat.")
    assert kept.facts == {"confidence": 0.9}
    assert [summary.title for summary in again.conversations("ann")] == ["Cats"]
    again.close()


def test_answer_interrupted_by_a_restart_is_marked_as_stopped(tmp_path):
    store = Store(tmp_path / "chats.sqlite")
    conversation = store.create("ann")
    store.add_turn("ann", conversation, None, "Still there?")
    store.close()
    again = Store(tmp_path / "chats.sqlite")
    assert again.path("ann", conversation)[0].state == "stopped"
    again.close()


@pytest.mark.parametrize(
    "action",
    [
        lambda store, chat, turn: store.path("bob", chat),
        lambda store, chat, turn: store.rename("bob", chat, "mine"),
        lambda store, chat, turn: store.delete("bob", chat),
        lambda store, chat, turn: store.add_turn("bob", chat, None, "hello"),
        lambda store, chat, turn: store.turn("bob", chat, turn),
        lambda store, chat, turn: store.set_verdict("bob", chat, turn, "wrong"),
        lambda store, chat, turn: store.delete_turn("bob", chat, turn),
        lambda store, chat, turn: store.show_branch("bob", chat, turn),
    ],
)
def test_conversation_of_another_owner_does_not_exist(store, action):
    conversation = store.create("ann", "Private")
    turn = ask(store, conversation, "one")
    with pytest.raises(UsageError, match="does not exist"):
        action(store, conversation, turn)
    assert store.conversations("bob") == []
    assert questions(store, conversation) == ["one"]


def test_search_finds_titles_questions_and_answers(store):
    titled, asked, other = (store.create("ann", title) for title in ("Ähren", "", "100%"))
    ask(store, asked, "Which FIELD?")
    assert store.search("ann", "ähRE") == [titled]
    assert store.search("ann", "field") == store.search("ann", "answer to") == [asked]
    assert store.search("ann", "%") == [other]
    assert store.search("bob", "field") == []


def test_turn_of_another_conversation_is_refused(store):
    mine, other = store.create("ann"), store.create("ann")
    foreign = ask(store, other, "elsewhere")
    with pytest.raises(UsageError):
        store.add_turn("ann", mine, foreign, "here?")


def test_question_in_a_conversation_deleted_meanwhile_is_refused(store, monkeypatch):
    chat = store.create("ann")
    begin = store._transaction

    def deleted_meanwhile():
        monkeypatch.setattr(store, "_transaction", begin)
        store.delete("ann", chat)
        return begin()

    monkeypatch.setattr(store, "_transaction", deleted_meanwhile)
    with pytest.raises(UsageError, match="does not exist"):
        store.add_turn("ann", chat, None, "Still there?")


def test_edited_question_starts_a_branch(store):
    chat = store.create("ann")
    first = ask(store, chat, "one")
    second = ask(store, chat, "two", first)
    third = ask(store, chat, "three", second)
    edited = ask(store, chat, "two, edited", first)
    assert questions(store, chat) == ["one", "two, edited"]
    assert store.siblings("ann", chat)[edited] == [second, edited]
    store.show_branch("ann", chat, second)
    assert [turn.id for turn in store.path("ann", chat)] == [first, second, third]


def test_deleting_a_turn_keeps_later_turns(store):
    chat = store.create("ann")
    first = ask(store, chat, "one")
    second = ask(store, chat, "two", first)
    ask(store, chat, "three", second)
    store.delete_turn("ann", chat, second)
    assert questions(store, chat) == ["one", "three"]


def test_deleting_the_last_turn_shows_the_previous_one(store):
    chat = store.create("ann")
    first = ask(store, chat, "one")
    last = ask(store, chat, "two", first)
    store.delete_turn("ann", chat, last)
    assert questions(store, chat) == ["one"]
    store.delete_turn("ann", chat, first)
    assert questions(store, chat) == []


def test_deleting_an_edited_first_question_shows_the_original(store):
    chat = store.create("ann")
    ask(store, chat, "one")
    edited = ask(store, chat, "one, edited")
    store.delete_turn("ann", chat, edited)
    assert questions(store, chat) == ["one"]


def test_answer_to_a_deleted_question_is_dropped(store):
    chat = store.create("ann")
    turn = store.add_turn("ann", chat, None, "gone soon")
    store.delete_turn("ann", chat, turn.id)
    store.finish_turn(turn.id, "too late", "answered")
    assert store.path("ann", chat) == []


def test_late_facts_do_not_change_the_answer(store, monkeypatch):
    """The attention map may be computed while another answer is being written."""
    chat = store.create("ann")
    turn = store.add_turn("ann", chat, None, "one", facts={"style": "short"}).id
    store.finish_turn(turn, "a", "answering")
    read = store._turn

    def end_meanwhile(conversation, wanted):
        found = read(conversation, wanted)
        store.finish_turn(turn, "a cat", "answered", {"confidence": 0.5})
        return found

    with monkeypatch.context() as patched:
        patched.setattr(store, "_turn", end_meanwhile)
        store.add_facts("ann", chat, turn, {"gain": 2})
    found = store.turn("ann", chat, turn)
    assert (found.answer, found.state) == ("a cat", "answered")
    assert found.facts == {"style": "short", "confidence": 0.5, "gain": 2}


def test_concurrent_writes(store):
    chats = [store.create(f"owner-{number}") for number in range(6)]

    def talk(number: int) -> None:
        parent = None
        for count in range(10):
            parent = ask(store, chats[number], f"{number}/{count}", parent, f"owner-{number}")

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, chat in enumerate(chats):
        expected = [f"{number}/{count}" for count in range(10)]
        assert questions(store, chat, f"owner-{number}") == expected


def test_settings_are_stored_by_owner(store):
    store.save_settings("ann", {"temperature": 0.5, "style": "short"})
    store.save_settings("ann", {"style": None})
    assert store.settings("ann") == {"temperature": 0.5}
    assert store.settings("bob") == {}


def test_picture_belongs_to_the_owner_who_added_it(store):
    store.add_picture("ann", "a" * 64, "cat.png", {"changes": []})
    assert store.picture("ann", "a" * 64) == ("cat.png", {"changes": []})
    assert store.picture("bob", "a" * 64) is None


def test_stored_picture_keeps_its_digest(tmp_path):
    picture = PictureStore(tmp_path).add(Image.new("RGB", (40, 30), "red"), "red.png")
    again = PictureStore(tmp_path).get(picture.digest)
    assert again == picture


def test_removed_picture_leaves_no_file(tmp_path):
    picture_store = PictureStore(tmp_path)
    digest = picture_store.add(Image.new("RGB", (600, 30), "red"), "red.png").digest
    assert Image.open(picture_store.resized(digest, 480)).size == (480, 24)
    assert picture_store.resized(digest, 2048) == picture_store.file(digest)
    picture_store.remove(digest)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_unused_pictures_are_forgotten(tmp_path):
    removed = []
    store = Store(tmp_path / "chats.sqlite", removed.append)
    shown, idle, fresh = ("a" * 64, "b" * 64, "c" * 64)
    for digest in (shown, idle):
        store.add_picture("ann", digest, "x.png", {})
    store.add_turn("ann", store.create("ann"), None, "What?", [shown])
    now = time.time()
    store.add_picture("ann", fresh, "x.png", {})
    store.add_picture("bob", shown, "x.png", {})
    store.forget_unused_pictures(now)
    assert removed == [idle]
    assert store.picture("ann", shown)
    assert store.picture("ann", fresh)
    store.forget_unused_pictures(time.time() + 1)
    assert removed == [idle, fresh], "ann has the other one"
    assert store.picture("bob", shown) is None
    store.close()


@pytest.fixture
def shared(tmp_path):
    """Return the two stores, as the application connects them."""
    picture_store = PictureStore(tmp_path / "pictures")
    store = Store(tmp_path / "chats.sqlite", picture_store.remove)
    yield store, picture_store
    store.close()


RED = Image.new("RGB", (600, 30), "red")


def chat_about(stores, owner, image=RED):
    """Add a picture and a question about it; return the chat and the picture's digest."""
    digest = add_owned_picture(*stores, owner, image, "red.png").digest
    chat = stores[0].create(owner)
    stores[0].add_turn(owner, chat, None, "What?", [digest])
    return chat, digest


def test_a_picture_that_another_owner_adds_survives_its_deletion(shared, monkeypatch):
    """Even if the other owner deletes it after the file was found and before the entry is there."""
    store, picture_store = shared
    chat, digest = chat_about(shared, "ann")
    add = store.add_picture

    def add_after_deletion(owner, *entry):
        store.delete("ann", chat)
        assert not picture_store.file(digest).exists()
        add(owner, *entry)

    monkeypatch.setattr(store, "add_picture", add_after_deletion)
    add_owned_picture(store, picture_store, "bob", RED, "red.png")
    assert picture_store.file(digest).exists()


def test_owners_who_add_and_delete_the_same_picture_at_once_keep_it_while_they_have_it(shared):
    store, picture_store = shared
    missing = []

    def work(owner):
        for _ in range(25):
            chat, digest = chat_about(shared, owner)
            try:
                picture_store.resized(digest, 480)
            except ImageError:
                missing.append("thumbnail")
            if not picture_store.file(digest).exists():
                missing.append("file")
            store.delete(owner, chat)

    threads = [threading.Thread(target=work, args=(f"owner {n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not missing
    assert not [file for file in picture_store.folder.rglob("*") if file.is_file()]


def test_a_picture_that_waits_in_another_tab_survives_the_deletion_of_its_chat(shared):
    store, picture_store = shared
    chat, digest = chat_about(shared, "ann")
    add_owned_picture(store, picture_store, "ann", RED, "again.png")
    store.delete("ann", chat)
    assert store.picture("ann", digest)
    other = store.create("ann")
    turn = store.add_turn("ann", other, None, "And now?", [digest])
    store.delete_turn("ann", other, turn.id)
    assert store.picture("ann", digest) is None
    assert not picture_store.file(digest).exists()


def test_a_thumbnail_of_a_picture_that_is_deleted_meanwhile_is_not_left(shared, monkeypatch):
    _, picture_store = shared
    digest = picture_store.add(RED, "red.png").digest
    get = picture_store.get

    def get_and_remove(digest):
        picture = get(digest)
        picture_store.remove(digest)
        return picture

    monkeypatch.setattr(picture_store, "get", get_and_remove)
    for longest in (480, 2048):
        with pytest.raises(ImageError, match="no longer stored"):
            picture_store.resized(digest, longest)
        picture_store.add(RED, "red.png")
    picture_store.remove(digest)
    assert not [file for file in picture_store.folder.rglob("*") if file.is_file()]


def test_a_picture_deleted_during_an_export_is_left_out(shared, monkeypatch):
    store, picture_store = shared
    chat, _ = chat_about(shared, "ann")
    entry = store.picture

    def remove_and_return(owner, digest):
        picture_store.remove(digest)
        return entry(owner, digest)

    monkeypatch.setattr(store, "picture", remove_and_return)
    assert json.loads(to_json(store, picture_store, "ann", chat))["pictures"] == {}


def test_a_link_is_a_copy_where_the_picture_has_been_deleted(shared, tmp_path):
    _, picture_store = shared
    picture = picture_store.add(RED, "red.png")
    picture_store.remove(picture.digest)
    picture_store.link(picture, tmp_path / "kept")
    assert open_picture(tmp_path / "kept" / f"{picture.digest}.png").digest == picture.digest


OLD_FILE = """
CREATE TABLE conversations (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, title TEXT NOT NULL, head TEXT,
    created REAL NOT NULL, updated REAL NOT NULL);
INSERT INTO conversations VALUES ('old', 'ann', 'Cats', NULL, 1, 2);
"""
"""Conversations as versions up to 0.2.0 stored them."""


def test_a_file_of_an_earlier_version_opens_with_its_chats(tmp_path):
    with closing(sqlite3.connect(tmp_path / "chats.sqlite")) as file:
        file.executescript(OLD_FILE)
    for _ in range(2):  # also when it was opened before
        store = Store(tmp_path / "chats.sqlite")
        (summary,) = store.conversations("ann")
        assert (summary.title, summary.pinned, summary.archived) == ("Cats", False, False)
        assert summary.picture is None
        store.pin("ann", "old", False)
        store.create("bob", "New")
        store.close()


def test_nan_is_not_stored(store):
    turn = store.add_turn("ann", store.create("ann"), None, "What?")
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.finish_turn(turn.id, "x", "answered", {"confidence": float("nan")})


def test_picture_cache_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr("ui.storage.picture_files._CACHE_BYTES", 3 * 100 * 100)
    picture_store = PictureStore(tmp_path)
    small = [
        picture_store.add(Image.new("RGB", (50, 50), colour), "x").digest
        for colour in ("red", "tan")
    ]
    assert list(picture_store._cached) == small
    large = picture_store.add(Image.new("RGB", (300, 200)), "x").digest
    assert list(picture_store._cached) == [large], "the latest picture is cached whatever its size"


def test_accepted_picture_is_readable_despite_the_size_of_its_copy(tmp_path, store):
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    stream = io.BytesIO()
    noise.save(stream, "JPEG", quality=30)
    limits = ImageLimits(max_bytes=len(stream.getvalue()))
    picture_store = PictureStore(tmp_path / "pictures", limits)
    picture = picture_store.add(stream.getvalue(), "noise.jpg")
    assert picture_store.file(picture.digest).stat().st_size > limits.max_bytes
    store.add_picture("ann", picture.digest, "noise.jpg", {})
    chat = store.create("ann")
    store.add_turn("ann", chat, None, "What?", [picture.digest])
    document = to_json(store, picture_store, "ann", chat).encode()
    copy = from_json(store, PictureStore(tmp_path / "other", limits), "bob", document)
    assert store.path("bob", copy)[0].pictures == (picture.digest,)


def test_import_respects_the_pixel_limit(tmp_path, store):
    picture_store = PictureStore(tmp_path / "pictures")
    picture = picture_store.add(Image.new("RGB", (20, 10)), "large.png")
    store.add_picture("ann", picture.digest, "large.png", {})
    chat = store.create("ann")
    store.add_turn("ann", chat, None, "What?", [picture.digest])
    document = to_json(store, picture_store, "ann", chat).encode()
    with pytest.raises(ImageError, match="the limit is"):
        from_json(store, PictureStore(tmp_path / "b", ImageLimits(max_pixels=100)), "bob", document)


def test_pictures_of_a_refused_import_are_deleted_later(shared):
    store, picture_store = shared
    good = picture_store.add(Image.new("RGB", (20, 10)), "good.png").digest
    bad = picture_store.add(Image.new("RGB", (20, 10), "red"), "bad.png").digest
    for digest in (good, bad):
        store.add_picture("ann", digest, "x.png", {})
    chat = store.create("ann")
    store.add_turn("ann", chat, None, "What?", [good, bad])
    document = json.loads(to_json(store, picture_store, "ann", chat))
    document["pictures"][bad]["data"] = "bm90aGluZw=="
    store.delete("ann", chat)
    with pytest.raises(ImageError):
        from_json(store, picture_store, "bob", json.dumps(document).encode())
    assert store.conversations("bob") == []
    assert picture_store.file(good).exists()
    store.forget_unused_pictures(time.time() + 1)
    assert not picture_store.file(good).exists()


def test_exported_photo_is_compressed(tmp_path, store):
    picture_store = PictureStore(tmp_path / "pictures")
    noise = Image.effect_noise((1900, 1900), 90).convert("RGB")
    picture = picture_store.add(
        Image.blend(noise, Image.new("RGB", noise.size, "red"), 0.8), "photo"
    )
    assert picture_store.file(picture.digest).stat().st_size > 4 << 20
    store.add_picture("ann", picture.digest, "photo", {})
    chat = store.create("ann")
    store.add_turn("ann", chat, None, "What?", [picture.digest])
    document = to_json(store, picture_store, "ann", chat).encode()
    assert len(document) < 0.8 * picture_store.file(picture.digest).stat().st_size  # in base64
    copy = from_json(store, picture_store, "bob", document)
    (digest,) = store.path("bob", copy)[0].pictures
    apart = ImageChops.difference(picture_store.get(digest).image, picture.image)
    assert max(ImageStat.Stat(apart).mean) < 3


def test_pictures_are_numbered_as_the_model_sees_them(tmp_path, store):
    picture_store = PictureStore(tmp_path)
    red, tan, blue = (
        picture_store.add(Image.new("RGB", (9, 9), colour), colour)
        for colour in ("red", "tan", "blue")
    )
    chat = store.create("ann")
    asked: StoredTurn | None = None
    for question, pictures, answer in (
        ("stopped at once", [red, tan], ""),
        ("again, with one more", [tan, blue], "Three."),
        ("the first once more", [red], ""),
    ):
        digests = [picture.digest for picture in pictures]
        asked = store.add_turn("ann", chat, asked and asked.id, question, digests)
        store.finish_turn(asked.id, answer, "answered" if answer else "stopped", {})
    turns = store.path("ann", chat)
    shown = conversation_view(store, "ann", chat)["turns"]
    assert [[p["number"] for p in turn["pictures"]] for turn in shown] == [[1, 2], [2, 3], [4]]
    read = build_conversation(turns, picture_store.get)
    order = [picture.digest for message in read.messages for picture in message.pictures]
    assert order == [picture.digest for picture in (red, tan, blue, red)]


def test_large_photo_can_be_trained_on(tmp_path):
    file = tmp_path / "photo.png"
    Image.new("RGB", (2700, 2700)).save(file, compress_level=0)
    assert file.stat().st_size > ImageLimits().max_bytes
    assert PictureSource.file(file).open().image.width == 2700


@pytest.mark.parametrize("digest", ["../../etc/passwd", "a" * 63, "A" * 64, "", "a" * 64 + "\n"])
def test_forged_digest_is_refused(tmp_path, digest):
    with pytest.raises(ImageError):
        PictureStore(tmp_path).get(digest)


def test_turns_about_a_picture_are_those_of_the_owners_chats_with_it(store):
    digest = "a" * 64
    chat = store.create("ann")
    first = store.add_turn("ann", chat, None, "Hello?", []).id
    second = store.add_turn("ann", chat, first, "What?", [digest])
    store.add_turn("ann", store.create("ann"), None, "Something else?", [])
    store.add_turn("bob", store.create("bob"), None, "Mine?", [digest])
    deleted = store.create("ann")
    store.add_turn("ann", deleted, None, "Gone?", [digest])
    store.mark_deleted("ann", [deleted])
    assert [turn.id for turn in store.turns_about("ann", digest)] == [first, second.id]


def test_picture_in_use_keeps_its_name(store):
    digest, facts = "a" * 64, {"changes": ["rotated"]}
    store.add_picture("ann", digest, "wrong.png", {})
    store.add_picture("ann", digest, "cat.png", facts)
    chat = store.create("ann")
    store.add_turn("ann", chat, None, "What?", [digest], {})
    store.add_picture("ann", digest, "copy.png", {})
    assert store.picture("ann", digest) == ("cat.png", facts)


def test_export_keeps_facts_of_answers_and_pictures(tmp_path, store):
    picture_store = PictureStore(tmp_path / "pictures")
    red = picture_store.add(Image.new("RGB", (32, 24), "red"), "red.png").digest
    turned = ["rotated by EXIF"]
    store.add_picture("ann", red, "red.png", {"changes": turned, "size": [32, 24]})
    chat = store.create("ann", "t")
    facts = {"context": 2048, "prompt_tokens": 70, "new_tokens": 4, "image_tokens": 64}
    first = store.add_turn("ann", chat, None, "What?", [red]).id
    store.finish_turn(first, "a cat", "answered", facts)
    store.set_verdict("ann", chat, first, "wrong")
    second = store.add_turn("ann", chat, first, "And now?").id
    store.finish_turn(second, "", "failed", {"error": "Out of memory."})
    copy = from_json(
        store, picture_store, "bob", to_json(store, picture_store, "ann", chat).encode()
    )
    one, two = conversation_view(store, "bob", copy)["turns"]
    assert one["verdict"] == "wrong"
    assert two["verdict"] is None
    assert (two["state"], two["facts"]["error"]) == ("failed", "Out of memory.")
    assert [in_english(change) for change in one["pictures"][0]["changes"]] == turned
    meters = [conversation_view(store, *of)["meter"] for of in (("ann", chat), ("bob", copy))]
    assert meters[0] == meters[1]
    assert meters[0].items() >= {"used": 74, "image": 64, "limit": 2048}.items()


@pytest.mark.parametrize("changes", [None, 5, {"a": 1}, [3, ["x"]], [None]])
def test_forged_file_cannot_set_invalid_changes_or_verdicts(tmp_path, store, changes):
    picture_store = PictureStore(tmp_path / "pictures")
    red = picture_store.add(Image.new("RGB", (32, 24), "red"), "red.png").digest
    store.add_picture("ann", red, "red.png", {"changes": []})
    chat = store.create("ann", "t")
    store.finish_turn(store.add_turn("ann", chat, None, "What?", [red]).id, "a", "answered")
    document = json.loads(to_json(store, picture_store, "ann", chat))
    document["pictures"][red]["changes"] = changes
    document["turns"][0]["verdict"] = changes
    copy = from_json(store, picture_store, "bob", json.dumps(document).encode())
    (turn,) = conversation_view(store, "bob", copy)["turns"]
    assert turn["pictures"][0]["changes"] == []
    assert turn["verdict"] is None
