"""Conversations on the server: kept, branched, and shown to their owner only."""

from __future__ import annotations

import io
import json
import threading
import time

import pytest
from PIL import Image, ImageChops, ImageStat

from finetune.data.rows import PictureSource
from ui.chat.export import from_json, to_json
from ui.chat.views import build_conversation, conversation_view
from ui.storage.database import Store, Turn
from ui.storage.picture_files import PictureStore
from vqa_app.errors import ImageError, UsageError
from vqa_app.pictures.picture import ImageLimits


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


def test_what_was_said_survives_a_restart(tmp_path):
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


def test_an_answer_that_a_restart_cut_is_marked_as_stopped(tmp_path):
    store = Store(tmp_path / "chats.sqlite")
    conversation = store.create("ann")
    store.add_turn("ann", conversation, None, "Still there?")
    store.close()
    again = Store(tmp_path / "chats.sqlite")
    assert again.path("ann", conversation)[0].state == "stopped"
    again.close()


@pytest.mark.parametrize(
    "deed",
    [
        lambda store, chat, turn: store.path("bob", chat),
        lambda store, chat, turn: store.rename("bob", chat, "mine"),
        lambda store, chat, turn: store.delete("bob", chat),
        lambda store, chat, turn: store.add_turn("bob", chat, None, "hello"),
        lambda store, chat, turn: store.turn("bob", chat, turn),
        lambda store, chat, turn: store.judge("bob", chat, turn, "wrong"),
        lambda store, chat, turn: store.delete_turn("bob", chat, turn),
        lambda store, chat, turn: store.show("bob", chat, turn),
    ],
)
def test_somebody_elses_conversation_does_not_exist(store, deed):
    conversation = store.create("ann", "Private")
    turn = ask(store, conversation, "one")
    with pytest.raises(UsageError, match="does not exist"):
        deed(store, conversation, turn)
    assert store.conversations("bob") == []
    assert questions(store, conversation) == ["one"]


def test_conversations_are_found_by_title_question_and_answer(store):
    titled, asked, other = (store.create("ann", title) for title in ("Ähren", "", "100%"))
    ask(store, asked, "Which FIELD?")
    assert store.search("ann", "ähRE") == [titled]
    assert store.search("ann", "field") == store.search("ann", "answer to") == [asked]
    assert store.search("ann", "%") == [other]
    assert store.search("bob", "field") == []


def test_a_turn_of_another_conversation_is_refused(store):
    mine, other = store.create("ann"), store.create("ann")
    foreign = ask(store, other, "elsewhere")
    with pytest.raises(UsageError):
        store.add_turn("ann", mine, foreign, "here?")


def test_an_edited_question_branches_and_both_branches_stay(store):
    chat = store.create("ann")
    first = ask(store, chat, "one")
    second = ask(store, chat, "two", first)
    third = ask(store, chat, "three", second)
    edited = ask(store, chat, "two, edited", first)
    assert questions(store, chat) == ["one", "two, edited"]
    assert store.siblings("ann", chat)[edited] == [second, edited]
    store.show("ann", chat, second)
    assert [turn.id for turn in store.path("ann", chat)] == [first, second, third]


def test_deleting_a_turn_keeps_what_came_after(store):
    chat = store.create("ann")
    first = ask(store, chat, "one")
    second = ask(store, chat, "two", first)
    ask(store, chat, "three", second)
    store.delete_turn("ann", chat, second)
    assert questions(store, chat) == ["one", "three"]


def test_deleting_the_last_turn_shows_the_one_before(store):
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


def test_an_answer_to_a_deleted_question_is_dropped(store):
    chat = store.create("ann")
    turn = store.add_turn("ann", chat, None, "gone soon")
    store.delete_turn("ann", chat, turn.id)
    store.finish_turn(turn.id, "too late", "answered")
    assert store.path("ann", chat) == []


def test_facts_that_come_late_leave_the_answer_as_it_is(store, monkeypatch):
    """Where the model looked is worked out while another answer may be written."""
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


def test_many_threads_write_at_once(store):
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


def test_settings_are_kept_for_each_owner(store):
    store.save_settings("ann", {"temperature": 0.5, "style": "short"})
    store.save_settings("ann", {"style": None})
    assert store.settings("ann") == {"temperature": 0.5}
    assert store.settings("bob") == {}


def test_a_picture_belongs_to_who_brought_it(store):
    store.remember_picture("ann", "a" * 64, "cat.png", {"changes": []})
    assert store.picture("ann", "a" * 64) == ("cat.png", {"changes": []})
    assert store.picture("bob", "a" * 64) is None


def test_a_kept_picture_comes_back_with_its_digest(tmp_path):
    picture = PictureStore(tmp_path).add(Image.new("RGB", (40, 30), "red"), "red.png")
    again = PictureStore(tmp_path).get(picture.digest)
    assert again == picture


def test_a_removed_picture_leaves_no_file(tmp_path):
    picture_store = PictureStore(tmp_path)
    digest = picture_store.add(Image.new("RGB", (600, 30), "red"), "red.png").digest
    assert Image.open(picture_store.smaller(digest, 480)).size == (480, 24)
    assert picture_store.smaller(digest, 2048) == picture_store.file(digest)
    picture_store.remove(digest)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_pictures_that_nobody_asked_about_are_forgotten(store):
    shown, idle, fresh = ("a" * 64, "b" * 64, "c" * 64)
    for digest in (shown, idle):
        store.remember_picture("ann", digest, "x.png", {})
    store.add_turn("ann", store.create("ann"), None, "What?", [shown])
    now = time.time()
    store.remember_picture("ann", fresh, "x.png", {})
    store.remember_picture("bob", shown, "x.png", {})
    assert store.sweep(now) == [idle]
    assert store.picture("ann", shown)
    assert store.picture("ann", fresh)
    assert store.sweep(time.time() + 1) == [fresh], "ann still has what bob let go"
    assert store.picture("bob", shown) is None


def test_figures_that_are_none_are_not_stored(store):
    turn = store.add_turn("ann", store.create("ann"), None, "What?")
    with pytest.raises(ValueError):
        store.finish_turn(turn.id, "x", "answered", {"confidence": float("nan")})


def test_only_so_many_pixels_are_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("ui.storage.picture_files._IN_MEMORY", 3 * 100 * 100)
    picture_store = PictureStore(tmp_path)
    small = [
        picture_store.add(Image.new("RGB", (50, 50), colour), "x").digest
        for colour in ("red", "tan")
    ]
    assert list(picture_store._recent) == small
    large = picture_store.add(Image.new("RGB", (300, 200)), "x").digest
    assert list(picture_store._recent) == [large], "the latest stays, whatever its size"


def test_a_picture_that_was_let_in_comes_back_however_large_its_copy_is(tmp_path, store):
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    stream = io.BytesIO()
    noise.save(stream, "JPEG", quality=30)
    limits = ImageLimits(max_bytes=len(stream.getvalue()))
    picture_store = PictureStore(tmp_path / "pictures", limits)
    picture = picture_store.add(stream.getvalue(), "noise.jpg")
    assert picture_store.file(picture.digest).stat().st_size > limits.max_bytes
    store.remember_picture("ann", picture.digest, "noise.jpg", {})
    chat = store.create("ann")
    store.add_turn("ann", chat, None, "What?", [picture.digest])
    document = to_json(store, picture_store, "ann", chat).encode()
    copy = from_json(store, PictureStore(tmp_path / "other", limits), "bob", document)
    assert store.path("bob", copy)[0].pictures == (picture.digest,)


def test_an_import_keeps_to_the_pixels_that_are_let_in(tmp_path, store):
    picture_store = PictureStore(tmp_path / "pictures")
    picture = picture_store.add(Image.new("RGB", (20, 10)), "large.png")
    store.remember_picture("ann", picture.digest, "large.png", {})
    chat = store.create("ann")
    store.add_turn("ann", chat, None, "What?", [picture.digest])
    document = to_json(store, picture_store, "ann", chat).encode()
    with pytest.raises(ImageError, match="the limit is"):
        from_json(store, PictureStore(tmp_path / "b", ImageLimits(max_pixels=100)), "bob", document)


def test_an_exported_photo_is_no_larger_than_a_photo(tmp_path, store):
    picture_store = PictureStore(tmp_path / "pictures")
    noise = Image.effect_noise((1900, 1900), 90).convert("RGB")
    picture = picture_store.add(
        Image.blend(noise, Image.new("RGB", noise.size, "red"), 0.8), "photo"
    )
    assert picture_store.file(picture.digest).stat().st_size > 4 << 20
    store.remember_picture("ann", picture.digest, "photo", {})
    chat = store.create("ann")
    store.add_turn("ann", chat, None, "What?", [picture.digest])
    document = to_json(store, picture_store, "ann", chat).encode()
    assert len(document) < 0.8 * picture_store.file(picture.digest).stat().st_size  # in base64
    copy = from_json(store, picture_store, "bob", document)
    (digest,) = store.path("bob", copy)[0].pictures
    apart = ImageChops.difference(picture_store.get(digest).image, picture.image)
    assert max(ImageStat.Stat(apart).mean) < 3


def test_pictures_are_numbered_as_the_model_counts_them(tmp_path, store):
    picture_store = PictureStore(tmp_path)
    red, tan, blue = (
        picture_store.add(Image.new("RGB", (9, 9), colour), colour)
        for colour in ("red", "tan", "blue")
    )
    chat = store.create("ann")
    asked: Turn | None = None
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


def test_a_large_photo_can_be_trained_on(tmp_path):
    file = tmp_path / "photo.png"
    Image.new("RGB", (2700, 2700)).save(file, compress_level=0)
    assert file.stat().st_size > ImageLimits().max_bytes
    assert PictureSource.file(file).open().image.width == 2700


@pytest.mark.parametrize("digest", ["../../etc/passwd", "a" * 63, "A" * 64, "", "a" * 64 + "\n"])
def test_a_forged_digest_never_becomes_a_path(tmp_path, digest):
    with pytest.raises(ImageError):
        PictureStore(tmp_path).get(digest)


def test_a_picture_keeps_its_name_where_it_is_shown(store):
    digest, facts = "a" * 64, {"changes": ["rotated"]}
    store.remember_picture("ann", digest, "wrong.png", {})
    store.remember_picture("ann", digest, "cat.png", facts)
    chat = store.create("ann")
    store.add_turn("ann", chat, None, "What?", [digest], {})
    store.remember_picture("ann", digest, "copy.png", {})
    assert store.picture("ann", digest) == ("cat.png", facts)


def test_an_export_keeps_what_was_said_of_answers_and_pictures(tmp_path, store):
    picture_store = PictureStore(tmp_path / "pictures")
    red = picture_store.add(Image.new("RGB", (32, 24), "red"), "red.png").digest
    turned = ["rotated by EXIF"]
    store.remember_picture("ann", red, "red.png", {"changes": turned, "size": [32, 24]})
    chat = store.create("ann", "t")
    facts = {"context": 2048, "prompt_tokens": 70, "new_tokens": 4, "image_tokens": 64}
    first = store.add_turn("ann", chat, None, "What?", [red]).id
    store.finish_turn(first, "a cat", "answered", facts)
    store.judge("ann", chat, first, "wrong")
    second = store.add_turn("ann", chat, first, "And now?").id
    store.finish_turn(second, "", "failed", {"error": "Out of memory."})
    copy = from_json(
        store, picture_store, "bob", to_json(store, picture_store, "ann", chat).encode()
    )
    one, two = conversation_view(store, "bob", copy)["turns"]
    assert one["verdict"] == "wrong"
    assert two["verdict"] is None
    assert (two["state"], two["facts"]["error"]) == ("failed", "Out of memory.")
    assert one["pictures"][0]["changes"] == turned
    meters = [conversation_view(store, *of)["meter"] for of in (("ann", chat), ("bob", copy))]
    assert meters[0] == meters[1] == {"used": 74, "image": 64, "limit": 2048}


@pytest.mark.parametrize("changes", [None, 5, {"a": 1}, [3, ["x"]], [None]])
def test_a_forged_file_brings_no_odd_changes_or_verdicts(tmp_path, store, changes):
    picture_store = PictureStore(tmp_path / "pictures")
    red = picture_store.add(Image.new("RGB", (32, 24), "red"), "red.png").digest
    store.remember_picture("ann", red, "red.png", {"changes": []})
    chat = store.create("ann", "t")
    store.finish_turn(store.add_turn("ann", chat, None, "What?", [red]).id, "a", "answered")
    document = json.loads(to_json(store, picture_store, "ann", chat))
    document["pictures"][red]["changes"] = changes
    document["turns"][0]["verdict"] = changes
    copy = from_json(store, picture_store, "bob", json.dumps(document).encode())
    (turn,) = conversation_view(store, "bob", copy)["turns"]
    assert turn["pictures"][0]["changes"] == []
    assert turn["verdict"] is None
