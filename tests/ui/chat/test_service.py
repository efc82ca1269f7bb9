"""The chat service with a fake engine and without a server."""

from __future__ import annotations

import errno
import logging
import sqlite3
import threading
import time
from dataclasses import replace

import pytest
from PIL import Image

from tests.fake_engine import FakeEngine
from tests.ui.harness import ChatHarness, choice, in_english, make_downloading_pool
from tests.waiting import PATIENCE, until
from ui.chat.attention_view import explain_answer
from ui.chat.comparison import compare_models
from ui.chat.conversation_actions import handle_action
from ui.chat.estimate import estimate_question
from ui.chat.examples import knowledge
from ui.chat.export import from_json, to_json, to_markdown
from ui.chat.export import to_html as to_html_page
from ui.chat.markdown import to_html
from ui.chat.model_picker import pick_model
from ui.chat.picture_edits import edit_picture
from ui.chat.requests import STORAGE_FAILED, user_message
from ui.chat.views import image_gain_level
from ui.chat.warmup import Warmup
from ui.cli import _report_load_failure
from ui.texts import catalogue, language_names
from vqa_app.checkpoints.manifest import Base, Manifest, write_manifest
from vqa_app.errors import DataError, ModelError, UsageError
from vqa_app.serving.engine_pool import EnginePool


@pytest.fixture
def make_harness(tmp_path):
    harnesses = []

    def build(engine=None, **more):
        engines = {"first": engine or FakeEngine(), **more}
        harnesses.append(ChatHarness(tmp_path, engines))
        return harnesses[-1]

    yield build
    for built in harnesses:
        built.close()


def test_an_answer_streams_and_is_stored_with_its_facts(make_harness):
    updates, view = make_harness().ask("What is it?")
    texts = [u["live"]["html"] for u in updates if u and "html" in u.get("live", {})]
    assert texts
    assert texts[-1] == view["turns"][0]["html"]
    (turn,) = view["turns"]
    assert (turn["state"], turn["question"]) == ("answered", "What is it?")
    assert turn["facts"]["confidence"] == 0.75
    assert turn["facts"]["calibrated"] is False
    assert turn["facts"]["model"] == "First"
    assert view["title"] == "What is it?"
    assert view["meter"]["limit"] == 4096


def test_the_model_reads_the_stored_history_with_its_pictures(make_harness):
    engine = FakeEngine()
    harness = make_harness(engine)
    red, blue = harness.picture(), harness.picture(colour="blue", name="blue.png")
    _, view = harness.ask("One?", pictures=[red])
    _, view = harness.ask("Two?", conversation=view["conversation"], pictures=[blue])
    asked, _ = engine.asked[-1]
    assert [picture.digest for picture in asked.pictures] == [red, blue]
    assert [message.role for message in asked.messages] == ["user", "assistant", "user"]
    assert [p["number"] for turn in view["turns"] for p in turn["pictures"]] == [1, 2]


def test_stop_keeps_the_partial_answer(make_harness):
    engine = FakeEngine("one two three four", hold_after=2)
    harness = make_harness(engine)
    running = harness.service.ask("ann", {"question": "Count."})
    conversation = next(running)["view"]["conversation"]
    for update in running:
        if update and "two" in update.get("live", {}).get("html", ""):
            harness.service.stop("ann", conversation)
    (turn,) = harness.service.view("ann", conversation)["turns"]
    assert (turn["state"], turn["answer"].strip()) == ("stopped", "one two")


def test_partial_answers_do_not_displace_rendered_ones_from_the_cache(make_harness):
    engine = FakeEngine("one two three four", hold_after=2)
    harness = make_harness(engine)
    to_html.cache_clear()
    for update in harness.service.ask("ann", {"question": "Count."}):
        if update and "two" in update.get("live", {}).get("html", ""):
            engine.release()
    asked = {"question": "Count.", "models": ["first", "first"]}
    assert any(
        update and update["compared"][1]["html"]
        for update in compare_models(harness.service, "ann", asked)
    )
    assert to_html.cache_info().currsize == 1


def test_stop_returns_the_current_view(make_harness):
    harness = make_harness()
    _, view = harness.ask("What?")
    request = {"do": "stop", "conversation": view["conversation"]}
    update = handle_action(harness.service, "ann", request)
    assert update["view"]["turns"] == view["turns"]
    assert not update["view"]["busy"]
    assert handle_action(harness.service, "ann", {"do": "stop", "conversation": None}) == {}


def test_only_the_owner_can_stop_an_answer(make_harness):
    engine = FakeEngine("one two three", hold_after=1)
    harness = make_harness(engine)
    running = harness.service.ask("ann", {"question": "Count."})
    conversation = next(running)["view"]["conversation"]
    harness.service.stop("bob", conversation)
    engine.release()
    assert list(running)[-1]["view"]["turns"][0]["state"] == "answered"


def test_an_answer_continues_after_its_page_has_gone(make_harness):
    engine = FakeEngine("one two three", hold_after=1)
    harness = make_harness(engine)
    running = harness.service.ask("ann", {"question": "Count."})
    conversation = next(running)["view"]["conversation"]
    next(update for update in running if update and "html" in update.get("live", {}))
    running.close()
    assert harness.service.view("ann", conversation)["busy"]
    back = harness.service.ask("ann", {"follow": True, "conversation": conversation})
    assert next(back)["view"]["busy"]
    shown = next(update for update in back if update)
    assert "one" in shown["live"]["html"]
    engine.release()
    view = list(back)[-1]["view"]
    assert not view["busy"]
    assert (view["turns"][0]["state"], view["turns"][0]["answer"]) == ("answered", "one two three")
    assert len(engine.asked) == 1


def test_only_the_owner_can_follow_an_answer(make_harness):
    engine = FakeEngine("one two three", hold_after=1)
    harness = make_harness(engine)
    conversation = next(harness.service.ask("ann", {"question": "Count."}))["view"]["conversation"]
    with pytest.raises(UsageError, match="does not exist"):
        list(harness.service.ask("bob", {"follow": True, "conversation": conversation}))
    engine.release()


def test_following_a_finished_answer_shows_its_end(make_harness):
    harness = make_harness()
    _, view = harness.ask("What?")
    request = {"follow": True, "conversation": view["conversation"]}
    (update,) = harness.service.ask("ann", request)
    assert update["view"]["turns"] == view["turns"]


def test_deleting_a_chat_ends_its_running_answer_without_an_error(make_harness):
    engine = FakeEngine("one two three", hold_after=1)
    harness = make_harness(engine)
    running = harness.service.ask("ann", {"question": "Count."})
    conversation = next(running)["view"]["conversation"]
    handle_action(
        harness.service,
        "ann",
        {"do": "delete", "conversations": [conversation], "shown": conversation},
    )
    last = [update for update in running if update][-1]
    assert last == {"gone": conversation, "list": []}, "other tabs must leave the chat"
    stopped = handle_action(harness.service, "ann", {"do": "stop", "conversation": conversation})
    assert stopped == {"gone": conversation, "list": []}
    assert handle_action(harness.service, "ann", {"do": "open"})["list"] == []


def test_followers_see_a_deletion_on_a_slow_disk(make_harness, monkeypatch):
    harness = make_harness(FakeEngine("one two three", hold_after=1))
    running = harness.service.ask("ann", {"question": "Count."})
    conversation = next(running)["view"]["conversation"]
    delete = harness.store.mark_deleted
    slow = lambda *of: (time.sleep(0.5), delete(*of))[1]  # noqa: E731
    monkeypatch.setattr(harness.store, "mark_deleted", slow)
    request = {"do": "delete", "conversations": [conversation]}
    other_tab = threading.Thread(target=handle_action, args=(harness.service, "ann", request))
    other_tab.start()
    last = [update for update in running if update][-1]
    other_tab.join()
    assert last == {"gone": conversation, "list": []}


def test_a_partial_answer_is_stored_while_it_grows(make_harness, monkeypatch):
    monkeypatch.setattr("ui.chat.answer.SAVE_SECONDS", 0.0)
    engine = FakeEngine("one two three", hold_after=2)
    harness = make_harness(engine)
    running = harness.service.ask("ann", {"question": "Count."})
    conversation = next(running)["view"]["conversation"]
    next(u for u in running if u and "two" in u.get("live", {}).get("html", ""))
    (turn,) = harness.store.path("ann", conversation)
    assert turn.state == "answering"
    assert turn.answer.startswith("one")


def test_regenerating_and_editing_create_branches_with_their_pictures(make_harness):
    engine = FakeEngine()
    harness = make_harness(engine)
    red = harness.picture()
    _, view = harness.ask("One?", pictures=[red])
    chat, first = view["conversation"], view["turns"][0]["id"]
    harness.ask("Two?", conversation=chat)
    _, view = harness.ask("", conversation=chat, again=first)
    assert [turn["question"] for turn in view["turns"]] == ["One?"]
    assert view["turns"][0]["branches"]["of"] == 2
    _, view = harness.ask("Changed?", conversation=chat, replaces=first, pictures=[red])
    assert view["turns"][0]["branches"] == {
        "at": 3, "of": 3, "before": view["turns"][0]["branches"]["before"], "after": None,
    }  # fmt: skip
    assert [picture.digest for picture in engine.asked[-1][0].pictures] == [red]
    back = handle_action(
        harness.service, "ann", {"do": "branch", "conversation": chat, "turn": first}
    )["view"]
    assert [turn["question"] for turn in back["turns"]] == ["One?", "Two?"]


def test_pictures_of_an_unanswered_question_move_to_the_next_one(make_harness):
    engine = FakeEngine()
    harness = make_harness(engine)
    red = harness.picture()
    engine.error = ModelError("Out of memory.", "Use a smaller picture.")
    _, view = harness.ask("What?", pictures=[red])
    assert view["turns"][0]["state"] == "failed"
    assert "smaller picture" in view["turns"][0]["facts"]["error"]
    harness.ask("And now?", conversation=view["conversation"])
    assert [m.role for m in engine.asked[-1][0].messages] == ["user"]
    assert [p.digest for p in engine.asked[-1][0].pictures] == [red]


def test_unexpected_errors_show_no_details(make_harness):
    engine = FakeEngine()
    engine.error = RuntimeError("/secret/path exploded")
    _, view = make_harness(engine).ask("What?")
    assert "secret" not in str(view)
    assert "our side" in view["turns"][0]["facts"]["error"]


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        ({"question": " "}, "nothing to answer"),
        ({"question": "x" * 20_001}, "characters"),
        ({"question": "x", "pictures": ["a" * 64]}, "has been deleted"),
        ({"question": "x", "pictures": ["../../etc/passwd"]}, "has been deleted"),
        ({"question": "x", "pictures": 5}, "list of texts"),
        ({"question": "x", "pictures": [{"digest": "a"}]}, "list of texts"),
        ({"question": "x", "conversation": "made-up"}, "does not exist"),
        ({"again": "made-up", "conversation": "made-up"}, "does not exist"),
        ({"question": "x", "pictures": [f"{n:064}" for n in range(9)]}, "9 pictures"),
    ],
)
def test_a_forged_request_is_refused(make_harness, request_, problem):
    with pytest.raises(UsageError, match=problem):
        list(make_harness().service.ask("ann", request_))


def test_another_owners_picture_is_refused(make_harness):
    harness = make_harness()
    with pytest.raises(UsageError, match="has been deleted"):
        harness.ask("What?", owner="bob", pictures=[harness.picture("ann")])


def test_warming_up_a_picture_includes_the_history(make_harness):
    engine = FakeEngine()
    harness = make_harness(engine)
    red, blue = harness.picture(), harness.picture(colour="blue")
    harness.pool.start_loading()
    harness.pool.wait(timeout=PATIENCE)
    _, view = harness.ask("One?", pictures=[red])
    Warmup(harness.service).start("ann", {"conversation": view["conversation"], "pictures": [blue]})
    until(lambda: engine.warmed)
    (warmed,) = engine.warmed
    assert [m.role for m in warmed.messages] == ["user", "assistant", "user"]
    assert warmed.messages[-1].text == ""
    assert warmed.messages[-1].pictures[0].digest == blue


def test_a_failed_warm_up_is_logged_only_if_it_is_a_bug(make_harness, caplog, monkeypatch):
    """The person sees the error when the question itself fails."""
    engine = FakeEngine()
    harness = make_harness(engine)
    harness.pool.start_loading()
    harness.pool.wait(timeout=PATIENCE)
    errors = [ModelError("The server cannot be reached.", "Start it."), RuntimeError("bug")]
    failed = threading.Semaphore(0)

    def fail(*_):
        failed.release()
        raise errors.pop(0)

    monkeypatch.setattr(engine, "warm", fail)
    for _ in range(2):
        Warmup(harness.service).start("ann", {"pictures": [harness.picture()]})
        assert failed.acquire(timeout=PATIENCE)
    until(lambda: caplog.records)
    assert [record.exc_info[0] for record in caplog.records] == [RuntimeError]


def test_settings_reach_the_model(make_harness):
    engine = FakeEngine()
    harness = make_harness(engine)
    harness.service.save_settings(
        "ann", {"temperature": 0.5, "seed": 3, "max_new_tokens": 2, "system": "Be kind.",
                "style": "short"}
    )  # fmt: skip
    harness.ask("What?")
    asked, options = engine.asked[-1]
    assert (options.temperature, options.seed, options.max_new_tokens) == (0.5, 3, 2)
    assert asked.system == "Be kind."
    assert asked.messages[-1].text.endswith("single word or phrase.")
    harness.ask("And for bob?", owner="bob")
    assert engine.asked[-1][0].system is None


def test_a_model_that_cannot_follow_system_prompts_gets_none(make_harness):
    engine = FakeEngine()
    harness = make_harness(engine)
    engine.system_prompts = False
    harness.service.save_settings("ann", {"system": "Be kind."})
    picture = harness.picture()
    Warmup(harness.service).start("ann", {"pictures": [picture]})
    until(lambda: engine.warmed)
    assert engine.warmed[0].system is None
    _, view = harness.ask("What?", pictures=[picture])
    list(compare_models(harness.service, "ann", {"models": ["first", "first"], "question": "A?"}))
    assert all(asked.system is None for asked, _ in engine.asked)
    settings = handle_action(harness.service, "ann", {"do": "settings"})["settings"]
    assert (settings["system_prompts"], settings["system"]) == (False, "Be kind.")
    engine.system_prompts = True
    harness.ask("And now?", conversation=view["conversation"])
    assert engine.asked[-1][0].system == "Be kind."


def test_a_chat_has_a_system_prompt_of_its_own(make_harness):
    engine = FakeEngine()
    harness = make_harness(engine)
    act = lambda **of: handle_action(harness.service, "ann", of)  # noqa: E731
    act(do="settings", system="In general.", prompts=["Kept."])
    assert act(do="settings")["settings"]["prompts"] == ["Kept."]

    def prompt(**request):
        _, view = harness.ask("What?", **request)
        system = [m.text for m in engine.asked[-1][0].messages if m.role == "system"]
        return view["conversation"], system

    own, read = prompt(system="Only here.")
    assert read == ["Only here."]
    assert prompt()[1] == ["In general."]
    assert prompt(conversation=own)[1] == ["Only here."]
    assert act(do="open", conversation=own)["view"]["system"] == "Only here."
    act(do="system", conversation=own, system="")
    assert prompt(conversation=own)[1] == [], "none at all, whatever the settings say"
    act(do="system", conversation=own, system=None)
    assert prompt(conversation=own)[1] == ["In general."]
    engine.system_prompts = False
    act(do="system", conversation=own, system="Only here.")
    assert prompt(conversation=own)[1] == [], "the model cannot follow one"


def test_a_chats_own_system_prompt_is_exported(make_harness):
    harness = make_harness()
    _, view = harness.ask("What?", system="In <b>verse</b>.")
    chat, stores = view["conversation"], (harness.store, harness.picture_store)
    document = to_json(*stores, "ann", chat).encode()
    assert harness.store.system_prompt("bob", from_json(*stores, "bob", document)) == (
        "In <b>verse</b>."
    )
    assert "System prompt: In &lt;b&gt;verse" in to_html_page(*stores, "ann", chat, "en")
    assert "*System prompt: In <b>verse</b>.*" in to_markdown(harness.store, "ann", chat, "en")
    forged = document.replace(b'"In <b>verse</b>."', b"[7]")
    assert harness.store.system_prompt("bob", from_json(*stores, "bob", forged)) is None


def test_an_exported_region_says_so_and_where_it_is(make_harness):
    harness = make_harness()
    stores = (harness.store, harness.picture_store)
    whole = harness.picture(name="a_room.png")
    region = edit_picture(harness.service, "ann", whole, {"region": [8, 4, 32, 20]})
    _, view = harness.ask("What is there?", pictures=[whole, region["digest"]])
    chat = view["conversation"]
    document = to_json(*stores, "ann", chat).encode()
    back = harness.service.view("bob", from_json(*stores, "bob", document))
    assert back["turns"][0]["pictures"][1] == view["turns"][0]["pictures"][1]
    assert back["turns"][0]["pictures"][1]["region"]["of"] == whole
    words = "A region of a_room.png, 24 × 16 pixels, 8 from the left, 4 from the top"
    assert f"<figcaption>Picture 2 · {words}</figcaption>" in to_html_page(
        *stores, "ann", chat, "en"
    )
    assert f"Picture 2: {words}" in to_markdown(harness.store, "ann", chat, "en")


def test_an_imported_answer_has_all_facts_of_the_exported_one(make_harness):
    engine = FakeEngine()
    harness = make_harness(engine)
    chat = harness.ask("One?", pictures=[harness.picture()])[1]["conversation"]
    engine.dropped, engine.dropped_turns, engine.calibrated = 2, (0,), True
    _, view = harness.ask("Two?", conversation=chat)
    given = {"correction": "Right.", "gain": 1.5, "unknown_picture": True}
    harness.store.add_facts("ann", chat, view["turns"][1]["id"], given)
    stores = (harness.store, harness.picture_store)
    back = from_json(*stores, "ann", to_json(*stores, "ann", chat).encode())
    before, after = (harness.store.path("ann", one) for one in (chat, back))
    assert set(before[1].facts) >= {"dropped_turns", "cached_tokens", "seconds", *given}
    for old, new in zip(before, after, strict=True):
        assert new.facts | {"dropped_turns": []} == old.facts | {"dropped_turns": []}
    assert after[1].facts["dropped_turns"] == [after[0].id]


@pytest.mark.parametrize("system", [7, ["x"], "x" * 4001])
def test_an_invalid_system_prompt_of_a_chat_is_refused(make_harness, system):
    harness = make_harness()
    chat = harness.ask("What?")[1]["conversation"]
    for name, request in (
        ("ask", lambda: harness.ask("What?", system=system)),
        (
            "act",
            lambda: handle_action(
                harness.service, "ann", {"do": "system", "conversation": chat, "system": system}
            ),
        ),
        ("keep", lambda: harness.service.save_settings("ann", {"prompts": [system]})),
        ("many", lambda: harness.service.save_settings("ann", {"prompts": ["x"] * 51})),
    ):
        with pytest.raises(UsageError, match="prompt"):
            request()
        assert len(harness.store.conversations("ann")) == 1, name
    with pytest.raises(UsageError, match="does not exist"):
        handle_action(harness.service, "bob", {"do": "system", "conversation": chat, "system": "x"})


def test_the_page_knows_whether_a_confidence_is_calibrated(make_harness):
    engine = FakeEngine()
    harness = make_harness(engine)
    engine.calibrated = True
    _, view = harness.ask("What?")
    assert view["turns"][0]["facts"]["calibrated"] is True
    request = {"models": ["first", "first"], "question": "A?"}
    *_, last = compare_models(harness.service, "ann", request)
    assert [side["calibrated"] for side in last["compared"]] == [True, True]


@pytest.mark.parametrize("gain", [-3.0, 0.0, 0.5, 2.0, 50.0, 1e9])
def test_the_effect_of_the_picture_is_never_shown_as_a_verdict(gain):
    assert image_gain_level(gain) in ("much", "some", "not")  # "well" is green on the page


@pytest.mark.parametrize(
    ("finish", "words"), [("repetition", "repeating itself"), ("length", "cut off"), ("stop", "")]
)
def test_an_incomplete_answer_says_why_it_ended(make_harness, finish, words):
    engine = FakeEngine()
    harness = make_harness(engine)
    engine.finish_reason = finish
    _, view = harness.ask("What?")
    (turn,) = view["turns"]
    ended = in_english(turn["facts"]["ended"])
    assert words in ended
    assert bool(ended) is bool(words)
    exported = to_html_page(harness.store, harness.picture_store, "ann", view["conversation"], "en")
    assert words in exported


def test_a_stopped_answer_is_marked_in_the_export(make_harness):
    engine = FakeEngine(hold_after=1)
    harness = make_harness(engine)
    answer = harness.service.ask("ann", {"question": "What?"})
    view = next(answer)["view"]
    engine.begun.wait(PATIENCE)
    until(lambda: "html" in (next(answer) or {}).get("live", {}))
    harness.service.stop("ann", view["conversation"])
    list(answer)
    exported = to_html_page(harness.store, harness.picture_store, "ann", view["conversation"], "en")
    assert "<footer>stopped · First</footer>" in exported


def test_an_answer_that_is_missing_is_explained_in_the_export(make_harness):
    engine = FakeEngine(hold_after=0)
    harness = make_harness(engine)
    answer = harness.service.ask("ann", {"question": "What?"})
    chat = next(answer)["view"]["conversation"]
    engine.begun.wait(PATIENCE)
    harness.service.stop("ann", chat)
    list(answer)
    engine.release()
    engine.error = ModelError("Out of memory.", "Ask less.")
    harness.ask("And now?", conversation=chat)
    exported = to_html_page(harness.store, harness.picture_store, "ann", chat, "en")
    assert "<footer>Stopped before the first word. · First</footer>" in exported
    assert "<footer>Out of memory." in exported


@pytest.mark.parametrize("language", sorted(language_names()))
def test_an_exported_chat_is_in_the_language_of_the_page(make_harness, language):
    engine = FakeEngine()
    harness = make_harness(engine)
    _, view = harness.ask("What is there?", pictures=[harness.picture(name="cat.png")])
    chat = view["conversation"]
    harness.store.set_system_prompt("ann", chat, "In verse.")
    engine.error = ModelError("There is no model.", "Choose one.")
    harness.ask("And now?", conversation=chat)
    texts = catalogue(language)
    page = to_html_page(harness.store, harness.picture_store, "ann", chat, language)
    assert f'<html lang="{language}">' in page
    markdown = to_markdown(harness.store, "ann", chat, language)
    for exported in (page, markdown):
        assert f"{texts['settings.system']}: In verse." in exported
        assert "There is no model. Choose one." in exported
    assert texts["picture.title"].format(number=1, name="cat.png") in page
    assert texts["picture.named"].format(number=1, name="cat.png") in markdown


def test_where_the_model_looked_is_offered_only_once_there_is_a_picture(make_harness):
    harness = make_harness()
    _, view = harness.ask("Hello?")
    chat = view["conversation"]
    harness.ask("What is it?", conversation=chat, pictures=[harness.picture()])
    _, view = harness.ask("And its colour?", conversation=chat)
    assert [turn["with_picture"] for turn in view["turns"]] == [False, True, True]


@pytest.mark.parametrize(
    ("name", "given", "number"),
    [("temperature", 2, 2.0), ("temperature", 0, 0.0), ("temperature", 5, 5.0), ("top_p", 1, 1.0),
     ("max_new_tokens", 2.0, 2), ("max_new_tokens", 2048, 2048), ("seed", 2.0**53 - 1, 2**53 - 1),
     ("seed", 0, 0), ("seed", -1, -1)],
)  # fmt: skip
def test_settings_reach_the_model_as_the_number_type_that_it_takes(
    make_harness, name, given, number
):
    engine = FakeEngine()
    harness = make_harness(engine)
    assert getattr(harness.service.save_settings("ann", {name: given}), name) == number
    harness.ask("What?")
    value = getattr(engine.asked[-1][1], name)
    assert (value, type(value)) == (number, type(number))


@pytest.mark.parametrize(
    "bad",
    [{"temperature": 99}, {"top_p": "x"}, {"max_new_tokens": 10**9}, {"style": "rude"},
     {"system": "x" * 5000}, {"owner": "bob"}, {"seed": "abc"}, {"seed": 10**30},
     {"max_new_tokens": 2.5}, {"max_new_tokens": "5"}, {"temperature": True},
     {"temperature": float("nan")}, {"temperature": float("inf")}, {"temperature": 10**400},
     {"top_p": 0}, {"top_p": -1}, {"seed": 2**53}, {"seed": 0.5}, {"max_new_tokens": 0},
     {"max_new_tokens": False}, {"max_new_tokens": 2049}, {"temperature": [1]}, {"system": 5}],
)  # fmt: skip
def test_invalid_settings_are_refused(make_harness, bad):
    harness = make_harness()
    with pytest.raises(UsageError):
        harness.service.save_settings("ann", bad)
    assert harness.store.settings("ann") == {}


def test_the_old_model_answers_if_the_new_one_fails_to_load(make_harness):
    harness = make_harness(broken=ModelError("It is damaged.", "Fetch it again."))
    harness.ask("Hello?")
    with pytest.raises(ModelError, match="damaged"):
        list(pick_model(harness.service, "ann", {"model": "broken"}))
    _, view = harness.ask("Still there?")
    assert view["turns"][0]["state"] == "answered"


def test_each_owner_has_their_own_model(make_harness):
    other = FakeEngine("the other one")
    harness = make_harness(other=other)
    list(pick_model(harness.service, "ann", {"model": "other"}))
    assert harness.ask("Who?")[1]["turns"][0]["answer"].strip() == "the other one"
    assert "You asked" in harness.ask("Who?", owner="bob")[1]["turns"][0]["answer"]
    with pytest.raises(ModelError):
        list(pick_model(harness.service, "ann", {"model": "/etc/passwd"}))


def test_the_chosen_model_is_loaded_again_after_a_restart(make_harness):
    harness = make_harness(other=FakeEngine("the other one"))
    harness.store.save_settings("ann", {"model": "other"})
    red = harness.picture()
    warmup = Warmup(harness.service)
    assert warmup.start("ann", {"pictures": [red]}) == {}
    assert harness.pool.wait("other", PATIENCE) is harness.engines["other"]
    warmup.start("ann", {"pictures": [red]})
    until(lambda: harness.engines["other"].warmed)
    assert harness.pool.status("first").phase == "absent"
    update = handle_action(harness.service, "bob", {"do": "hello"})
    assert update["models"]["picked"] == "first"
    assert update["models"]["phase"] in ("loading", "ready")


def test_a_failed_model_is_not_loaded_again_by_other_requests(make_harness):
    harness = make_harness(ModelError("It is damaged.", "Fetch it again."))
    harness.pool.start_loading()
    with pytest.raises(ModelError):
        harness.pool.wait(timeout=PATIENCE)
    handle_action(harness.service, "ann", {"do": "hello"})
    assert harness.pool.status().phase == "failed"


def test_choosing_a_model_twice_keeps_the_previous_one(make_harness):
    harness = make_harness(other=FakeEngine())
    for _ in range(2):
        update = list(pick_model(harness.service, "ann", {"model": "other"}))[-1]
    assert (update["models"]["picked"], update["models"]["before"]) == ("other", "first")
    update = list(pick_model(harness.service, "ann", {"model": "first"}))[-1]
    assert (update["models"]["picked"], update["models"]["before"]) == ("first", "other")


def test_only_the_owner_can_stop_a_comparison(make_harness):
    engine = FakeEngine(hold_after=1)
    harness = make_harness(engine, other=FakeEngine())
    asked = {"models": ["first", "other"], "question": "What is it?"}
    comparing = compare_models(harness.service, "ann", asked)
    assert next(update for update in comparing if update and update["compared"][0]["html"])
    handle_action(harness.service, "bob", {"do": "stop-comparing"})
    assert next(comparing) is None  # still waiting for the next token
    handle_action(harness.service, "ann", {"do": "stop-comparing"})
    last = [update for update in comparing if update][-1]
    assert last["compared_done"]
    assert [side["state"] for side in last["compared"]] == ["stopped", "stopped"]


def test_a_choice_of_model_outlives_its_page(make_harness):
    harness = make_harness()
    release = threading.Event()
    engines = {"first": FakeEngine(), "slow": FakeEngine(), "other": FakeEngine()}

    def load(chosen, progress):
        assert chosen.key != "slow" or release.wait(PATIENCE)
        return engines[chosen.key]

    harness.service.pool = EnginePool(load, lambda: [choice(key) for key in engines], "first")
    picking = pick_model(harness.service, "ann", {"model": "slow"})
    assert next(picking)["models"]["loading"]["key"] == "slow"
    picking.close()
    models = handle_action(harness.service, "ann", {"do": "hello"})["models"]
    assert (models["picked"], models["loading"]["key"]) == ("first", "slow")
    release.set()
    harness.service.pool.wait("slow", PATIENCE)
    models = handle_action(harness.service, "ann", {"do": "models"})["models"]
    assert (models["picked"], models["before"]) == ("slow", "first")
    assert "loading" not in models


def test_the_last_of_several_choices_counts(make_harness):
    harness = make_harness()
    release = threading.Event()
    engines = {"first": FakeEngine(), "slow": FakeEngine(), "other": FakeEngine()}

    def load(chosen, progress):
        assert chosen.key != "slow" or release.wait(PATIENCE)
        return engines[chosen.key]

    harness.service.pool = EnginePool(load, lambda: [choice(key) for key in engines], "first")
    earlier = pick_model(harness.service, "ann", {"model": "slow"})
    next(earlier)
    list(pick_model(harness.service, "ann", {"model": "other"}))
    release.set()
    assert list(earlier)[-1]["models"]["picked"] == "other"


def test_a_model_that_disappears_while_it_loads_is_no_longer_waited_for(make_harness):
    harness = make_harness()
    harness.service.pool, started = make_downloading_pool("slow")
    picking = pick_model(harness.service, "ann", {"model": "slow"})
    next(picking)
    assert started.wait(PATIENCE)
    pool = harness.service.pool
    pool.default, pool._choices = "first", lambda: [choice("first")]
    update = handle_action(harness.service, "ann", {"do": "models"})
    assert update["models"]["picked"] == "first"
    assert "loading" not in update["models"]
    pool.close()


def test_only_the_requester_can_cancel_a_load(make_harness):
    harness = make_harness()
    harness.service.pool, started = make_downloading_pool("slow")
    harness.service.pool.start_loading("slow", "ann")
    assert started.wait(PATIENCE)
    with pytest.raises(UsageError, match="Someone else"):
        handle_action(harness.service, "bob", {"do": "cancel-load", "model": "slow"})
    handle_action(harness.service, "ann", {"do": "cancel-load", "model": "slow"})
    with pytest.raises(ModelError, match="cancelled"):
        harness.service.pool.wait("slow", PATIENCE)


def test_the_reason_of_a_failed_load_contains_no_paths(make_harness):
    harness = make_harness(ModelError("There is no /srv/secret/model.", "Look into /srv/secret."))
    harness.pool.start_loading()
    with pytest.raises(ModelError) as failure:
        harness.pool.wait(timeout=PATIENCE)
    assert "secret/" not in str(failure.value)
    assert "/srv" not in str(failure.value)
    assert "/srv" not in str(handle_action(harness.service, "ann", {"do": "models"}))


def test_another_answer_has_the_current_style(make_harness):
    engine = FakeEngine()
    harness = make_harness(engine)
    _, view = harness.ask("What?")
    harness.service.save_settings("ann", {"style": "short"})
    again = {"conversation": view["conversation"], "again": view["turns"][0]["id"]}
    list(harness.service.ask("ann", again))
    assert engine.asked[-1][0].messages[-1].text.endswith("single word or phrase.")


def ask_again(harness, view):
    turn = view["turns"][-1]["id"]
    return harness.ask("", conversation=view["conversation"], again=turn)[1]


def test_another_answer_of_the_same_model_is_sampled(make_harness):
    engine = FakeEngine()
    harness = make_harness(engine)
    _, view = harness.ask("What?")
    engine.answer = "Something else."
    view = ask_again(harness, view)
    assert [options.temperature for _, options in engine.asked] == [0.0, 0.7]
    facts = view["turns"][0]["facts"]
    assert facts["temperature"] == 0.7
    assert in_english(facts["again"]) == "sampled at temperature 0.7"
    view = ask_again(harness, view)
    again = "the same answer again, though sampled at temperature 0.7"
    assert in_english(view["turns"][0]["facts"]["again"]) == again


def test_another_answer_at_a_chosen_temperature_of_0_says_why_it_is_the_same(make_harness):
    engine = FakeEngine()
    harness = make_harness(engine)
    harness.service.save_settings("ann", {"temperature": 0.0})
    _, view = harness.ask("What?")
    assert "again" not in view["turns"][0]["facts"]
    view = ask_again(harness, view)
    assert [options.temperature for _, options in engine.asked] == [0.0, 0.0]
    assert "always at temperature 0" in in_english(view["turns"][0]["facts"]["again"])


def test_another_answer_with_a_chosen_seed_has_the_next_one(make_harness):
    engine = FakeEngine()
    harness = make_harness(engine)
    harness.service.save_settings("ann", {"temperature": 0.5, "seed": 7})
    _, view = harness.ask("What?")
    ask_again(harness, ask_again(harness, view))
    assert [(o.temperature, o.seed) for _, o in engine.asked] == [(0.5, 7), (0.5, 8), (0.5, 9)]


def test_the_first_answer_of_another_model_or_after_a_failure_is_not_sampled(make_harness):
    first, second = FakeEngine(), FakeEngine()
    harness = make_harness(first, second=second)
    first.error = ModelError("It broke.")
    _, view = harness.ask("What?")
    view = ask_again(harness, view)
    assert [options.temperature for _, options in first.asked] == [0.0, 0.0]
    list(pick_model(harness.service, "ann", {"model": "second"}))
    view = ask_again(harness, view)
    assert second.asked[0][1].temperature == 0.0
    assert "again" not in view["turns"][0]["facts"]


def test_the_first_screen_follows_the_model_in_use(make_harness):
    harness = make_harness(FakeEngine(), second=FakeEngine())
    harness.sources["first"] = "builtin"
    hello = handle_action(harness.service, "ann", {"do": "hello"})["examples"]
    assert "does not know photographs" in in_english(hello["about"])
    *_, last = pick_model(harness.service, "ann", {"model": "second"})
    assert in_english(last["examples"]["about"]).startswith("Second answers now.")
    questions = [card["question"] for card in last["examples"]["cards"]]
    assert "Describe this picture in one sentence." in questions
    assert "Describe this picture in one sentence." not in str(hello["cards"])
    scene = handle_action(harness.service, "ann", {"do": "scene"})["scene"]
    assert scene["question"] == "Describe this picture in one sentence."
    again = handle_action(harness.service, "ann", {"do": "hello"})["examples"]
    assert again["about"] == last["examples"]["about"]
    assert "examples" not in handle_action(harness.service, "ann", {"do": "models"})


def test_what_a_run_knows_depends_on_its_base(tmp_path):
    for name, base, expected in (
        ("first", "builtin", "trained"),
        ("second", str(tmp_path / "first"), "trained"),
        ("other", "owner/name", "general"),
    ):
        run = tmp_path / name
        run.mkdir()
        write_manifest(run, Manifest("lora", Base(base, "0"), "0"))
        assert knowledge(replace(choice("run"), source=str(run))) == expected
    (run / "manifest.json").write_text("{")
    assert knowledge(replace(choice("run"), source=str(run))) == "general"
    assert knowledge(replace(choice("a"), source="builtin", adapter="mine")) == "trained"


@pytest.mark.parametrize(
    ("base", "only_english"), [(None, True), ("builtin", True), ("owner/name", False)]
)
def test_models_trained_from_the_built_in_one_are_known_to_answer_in_english(
    make_harness, tmp_path, base, only_english
):
    harness = make_harness()
    harness.sources["first"] = "builtin"
    if base is not None:
        harness.sources["first"] = str(tmp_path)
        write_manifest(tmp_path, Manifest("lora", Base(base, "0"), "0"))
    models = handle_action(harness.service, "ann", {"do": "models"})["models"]
    assert models["only_english"] is only_english


def test_a_question_is_estimated_before_it_is_asked(make_harness):
    engine = FakeEngine(context_length=100)
    harness = make_harness(engine)
    red = harness.picture()
    request = {"question": "What is it?", "pictures": [red]}
    handle_action(harness.service, "ann", {"do": "hello"})  # loads the model
    until(lambda: harness.pool.get_loaded(None))
    found = estimate_question(harness.service, "ann", request)["estimate"]
    assert (found["tokens"], found["image"], found["limit"]) == (19, 16, 100)
    assert (found["fits"], found["seconds"]) == (True, None)
    assert in_english(found["text"]) == "19 tokens, 16 for pictures."
    (picture,) = found["pictures"]
    assert picture == {
        "digest": red, "tokens": 16, "images": 1, "size": [32, 32], "note": None,
    }  # fmt: skip
    engine.delay = 0.05
    _, view = harness.ask("What is it?", pictures=[red])
    request = {"question": "Is it " + "very " * 80 + "red?"}
    again = estimate_question(
        harness.service, "ann", {**request, "conversation": view["conversation"]}
    )["estimate"]
    assert again["seconds"] > 0
    assert again["fits"] is False
    assert "first word" in in_english(again["text"])
    assert again["pictures"] == []


def test_nothing_is_estimated_while_the_model_loads(make_harness, monkeypatch):
    harness = make_harness()
    monkeypatch.setattr(harness.service, "engine_for", lambda owner: None)
    request = {"question": "What is it?"}
    assert estimate_question(harness.service, "ann", request) == {"estimate": None}


def test_a_picture_that_the_model_gets_shrunk_is_named(make_harness):
    harness = make_harness()
    big = harness.picture_store.add(Image.new("RGB", (640, 480)), "big.png")
    harness.store.add_picture("ann", big.digest, "big.png", {"changes": []})
    harness.ask("Anything?")
    request = {"question": "?", "pictures": [big.digest]}
    (shown,) = estimate_question(harness.service, "ann", request)["estimate"]["pictures"]
    note = in_english(shown["note"])
    assert note.startswith("The model gets big.png in 32 × 32 pixels; it has 640 × 480.")


def test_low_detail_is_for_models_that_have_the_choice(make_harness):
    engine = FakeEngine()
    harness = make_harness(engine)
    red = harness.picture()
    harness.service.save_settings("ann", {"detail": "low"})
    _, view = harness.ask("One?", pictures=[red])
    settings = handle_action(harness.service, "ann", {"do": "settings"})["settings"]
    assert (settings["detail"], settings["low_detail"]) == ("low", False)
    engine.low_detail = True
    harness.ask("Two?", conversation=view["conversation"])
    request = {"models": ["first", "first"], "question": "A?", "pictures": [red]}
    list(compare_models(harness.service, "ann", request))
    flags = [asked.pictures[0].low_detail for asked, _ in engine.asked]
    assert flags == [False, True, True, True]
    look = {"conversation": view["conversation"], "turn": view["turns"][0]["id"]}
    looked = explain_answer(harness.service, "ann", look)["looked"]
    assert [picture["digest"] for picture in looked["pictures"]] == [red]
    with pytest.raises(UsageError, match="detail"):
        harness.service.save_settings("ann", {"detail": "high"})


def test_a_refused_request_leaves_no_empty_chat(make_harness):
    harness = make_harness()
    with pytest.raises(UsageError):
        harness.ask("What?", replaces="nothing")
    assert harness.store.conversations("ann") == []


@pytest.mark.parametrize("facts", [{"dropped": 2}, {"dropped": 2, "dropped_turns": [0]}])
def test_turns_left_out_of_answers_of_earlier_versions_are_marked(make_harness, facts):
    harness = make_harness()
    _, view = harness.ask("One?")
    chat = view["conversation"]
    _, view = harness.ask("Two?", conversation=chat)
    harness.store.add_facts("ann", chat, view["turns"][1]["id"], {"dropped_turns": [], **facts})
    assert [t["left_out"] for t in harness.service.view("ann", chat)["turns"]] == [True, False]


def test_the_turns_that_were_left_out_are_marked(make_harness):
    engine = FakeEngine()
    harness = make_harness(engine)
    _, view = harness.ask("One?")
    chat = view["conversation"]
    harness.ask("Two?", conversation=chat)
    engine.dropped, engine.dropped_turns = 2, (1,)
    _, view = harness.ask("Three?", conversation=chat)
    assert [turn["left_out"] for turn in view["turns"]] == [False, True, False]
    back = from_json(
        harness.store,
        harness.picture_store,
        "ann",
        to_json(harness.store, harness.picture_store, "ann", chat).encode(),
    )
    turns = harness.service.view("ann", back)["turns"]
    assert [turn["left_out"] for turn in turns] == [False, True, False]


@pytest.mark.parametrize("deleted", range(4))
def test_the_same_questions_stay_marked_as_left_out_when_another_is_deleted(make_harness, deleted):
    engine = FakeEngine()
    harness = make_harness(engine)
    chat = None
    for question in ("One?", "Two?", "Three?"):
        chat = harness.ask(question, conversation=chat)[1]["conversation"]
    engine.dropped, engine.dropped_turns = 4, (0, 2)
    _, view = harness.ask("Four?", conversation=chat)
    request = {"do": "delete-turn", "conversation": chat, "turn": view["turns"][deleted]["id"]}
    view = handle_action(harness.service, "ann", request)["view"]
    left_out = [turn["question"] for turn in view["turns"] if turn["left_out"]]
    # Without "Four?", the latest answer is that to "Three?", which left nothing out.
    expected = [["Three?"], ["One?", "Three?"], ["One?"], []][deleted]
    assert left_out == expected
    text = view["meter"]["text"]
    assert (view["meter"]["level"] == "full") == bool(expected)
    assert not expected or f"no longer reads {len(expected)} earlier" in in_english(text)


def test_the_page_warns_before_the_model_leaves_questions_out(make_harness):
    engine = FakeEngine(lambda _: "word " * 20, context_length=300)
    harness = make_harness(engine)
    red = harness.picture()
    _, view = harness.ask("What is it?", pictures=[red])
    assert (view["meter"]["level"], view["meter"]["text"]) == ("ok", None)
    assert view["meter"]["pictures"] == []
    levels = []
    for _ in range(8):
        _, view = harness.ask("And now what?", conversation=view["conversation"])
        text = view["meter"]["text"]
        levels.append((view["meter"]["level"], text and in_english(text)))
        assert view["meter"]["pictures"] == ([red] if levels[-1][1] else [])
    assert ("soon", "There is room for about 4 more questions like these.") in levels
    assert ("soon", "There is room for about 1 more question like these.") in levels
    engine.dropped, engine.dropped_turns = 2, (1,)
    _, view = harness.ask("Still?", conversation=view["conversation"])
    assert view["meter"]["level"] == "full"
    text = in_english(view["meter"]["text"])
    assert text == "The model no longer reads 1 earlier question."


def test_a_full_chat_stays_readable_when_questions_that_were_left_out_are_deleted(make_harness):
    engine = FakeEngine()
    harness = make_harness(engine)
    _, view = harness.ask("One?")
    chat, first = view["conversation"], view["turns"][0]["id"]
    harness.ask("Two?", conversation=chat)
    engine.dropped, engine.dropped_turns = 4, (0, 1)
    harness.ask("Three?", conversation=chat)
    request = {"do": "delete-turn", "conversation": chat, "turn": first}
    view = handle_action(harness.service, "ann", request)["view"]
    assert view["meter"]["level"] == "full"


def test_six_concurrent_owners_get_their_own_answers(make_harness):
    harness = make_harness(FakeEngine(delay=0.002))
    views = {}

    def talk(owner):
        _, view = harness.ask(f"I am {owner}, 0", owner=owner)
        for count in range(1, 4):
            _, view = harness.ask(
                f"I am {owner}, {count}", owner=owner, conversation=view["conversation"]
            )
        views[owner] = view

    threads = [threading.Thread(target=talk, args=(f"p{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for owner, view in views.items():
        expected = [f"You asked 'I am {owner}, {count}' about no picture." for count in range(4)]
        assert [turn["answer"].strip() for turn in view["turns"]] == expected
    assert len(views) == 6


def delete_for_good(harness, *conversations):
    request = {"do": "delete", "conversations": list(conversations)}
    handle_action(harness.service, "ann", request)
    harness.store.remove_deleted(time.time())


def test_deleting_a_chat_deletes_its_pictures_unless_others_use_them(make_harness):
    harness = make_harness()
    red, blue = harness.picture(), harness.picture(colour="blue")
    assert harness.picture("bob", colour="blue") == blue
    _, view = harness.ask("One?", pictures=[red, blue])
    _, other = harness.ask("Two?", pictures=[red])
    delete_for_good(harness, view["conversation"])
    assert harness.picture_store.file(red).exists()
    assert harness.picture_store.file(blue).exists()
    assert harness.store.picture("ann", blue) is None
    delete_for_good(harness, other["conversation"])
    assert not harness.picture_store.file(red).exists()
    assert harness.picture_store.file(blue).exists()


def test_deleted_chats_can_be_restored_with_their_pictures_until_they_are_removed(make_harness):
    harness = make_harness()
    red = harness.picture()
    chats = [harness.ask(q, pictures=[red])[1]["conversation"] for q in ("One?", "Two?")]
    act = lambda **of: handle_action(harness.service, "ann", of)  # noqa: E731
    assert act(do="delete", conversations=chats, shown=chats[0])["list"] == []
    assert act(do="refresh", conversation=chats[0])["gone"] == chats[0]
    with pytest.raises(UsageError, match="does not exist"):
        harness.ask("Still there?", conversation=chats[0])
    restored = act(do="undo-delete", conversations=chats)["list"]
    assert [row["id"] for row in restored] == chats[::-1]
    assert act(do="open", conversation=chats[0])["view"]["turns"][0]["pictures"]
    delete_for_good(harness, chats[0])
    with pytest.raises(UsageError, match="too late"):
        act(do="undo-delete", conversations=chats[:1])
    assert [row["id"] for row in act(do="open")["list"]] == chats[1:]


def test_a_deletion_becomes_final_by_itself(make_harness, monkeypatch):
    monkeypatch.setattr("ui.chat.deletion.UNDO_SECONDS", 0.05)
    monkeypatch.setattr("ui.chat.deletion._GRACE_SECONDS", 0.0)
    harness = make_harness()
    red = harness.picture()
    chat = harness.ask("One?", pictures=[red])[1]["conversation"]
    handle_action(harness.service, "ann", {"do": "delete", "conversations": [chat]})
    until(lambda: not harness.picture_store.file(red).exists())


def test_only_the_owner_deletes_restores_pins_and_archives(make_harness):
    harness = make_harness()
    mine = harness.ask("One?")[1]["conversation"]
    theirs = harness.ask("Two?", owner="bob")[1]["conversation"]
    for request in (
        {"do": "delete", "conversations": [mine, theirs]},
        {"do": "archive", "conversations": [mine, theirs], "archived": True},
        {"do": "pin", "conversation": theirs, "pinned": True},
    ):
        with pytest.raises(UsageError, match="does not exist"):
            handle_action(harness.service, "ann", request)
    (row,) = handle_action(harness.service, "ann", {"do": "open"})["list"]
    assert (row["id"], row["pinned"], row["archived"]) == (mine, False, False), "all or none"
    handle_action(harness.service, "bob", {"do": "delete", "conversations": [theirs]})
    with pytest.raises(UsageError, match="too late"):
        handle_action(harness.service, "ann", {"do": "undo-delete", "conversations": [theirs]})


def test_a_chat_without_words_is_named_after_its_pictures_in_the_language_of_the_page(
    make_harness,
):
    harness = make_harness()
    pictures = [harness.picture(), harness.picture(colour="blue", name="blue.png")]
    _, view = harness.ask("", pictures=pictures)
    (row,) = handle_action(harness.service, "ann", {"do": "open"})["list"]
    assert in_english(row["title"]) == in_english(view["title"]) == "2 pictures"
    stores = (harness.store, harness.picture_store)
    assert "<title>2 Bilder" in to_html_page(*stores, "ann", view["conversation"], "de")


def test_the_list_tells_chats_with_the_same_question_apart(make_harness):
    harness = make_harness(FakeEngine("A **red** square.\n\n- It is small."))
    red = harness.picture()
    chat = harness.ask("Ready?")[1]["conversation"]
    harness.ask("What is it?", conversation=chat, pictures=[red])
    (row,) = handle_action(harness.service, "ann", {"do": "open"})["list"]
    assert row["title"] == "Ready?"
    assert row["answer"] == "A red square. It is small."
    assert row["picture"] == red, "the first picture, even of a later question"


def test_pinned_chats_come_first_and_a_question_takes_a_chat_out_of_the_archive(make_harness):
    harness = make_harness()
    one, two = (harness.ask(question)[1]["conversation"] for question in ("One?", "Two?"))
    act = lambda **of: handle_action(harness.service, "ann", of)["list"]  # noqa: E731
    assert [row["id"] for row in act(do="pin", conversation=one, pinned=True)] == [one, two]
    assert [row["id"] for row in act(do="pin", conversation=one, pinned=False)] == [two, one]
    archived = act(do="archive", conversations=[one], archived=True)
    assert [row["archived"] for row in archived] == [False, True]
    harness.ask("More?", conversation=one)
    assert not any(row["archived"] for row in act(do="open"))


def test_deleting_a_question_deletes_its_pictures(make_harness):
    harness = make_harness()
    red, blue = harness.picture(), harness.picture(colour="blue")
    _, view = harness.ask("One?", pictures=[red])
    _, view = harness.ask("Two?", conversation=view["conversation"], pictures=[red, blue])
    request = {"do": "delete-turn", "conversation": view["conversation"]}
    handle_action(harness.service, "ann", {**request, "turn": view["turns"][1]["id"]})
    assert harness.picture_store.file(red).exists()
    assert not harness.picture_store.file(blue).exists()


def fill_disk(harness):
    """Make the database refuse to grow, as on a full disk."""
    (pages,) = harness.store._fetch("PRAGMA page_count")
    harness.store._db.execute(f"PRAGMA max_page_count = {pages[0]}")


def test_a_full_disk_is_reported_and_the_page_still_opens(make_harness, monkeypatch, caplog):
    harness = make_harness()
    harness.ask("What?")
    fill_disk(harness)
    with caplog.at_level(logging.ERROR):
        found = handle_action(harness.service, "a visitor" * 500, {"do": "hello"})
    assert found["hello"]
    assert found["examples"]["cards"] == []
    with pytest.raises(sqlite3.OperationalError) as refusal:
        harness.ask("Why? " * 2000)
    assert user_message(refusal.value) == STORAGE_FAILED
    assert all(record.exc_info is None for record in caplog.records), (
        "expected one line without a traceback"
    )
    harness.store._db.execute("PRAGMA max_page_count = 1000000")
    assert harness.ask("And now?")[1]["turns"][0]["state"] == "answered", (
        "expected an answer after the disk has space again"
    )


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_picture_that_cannot_be_written_leaves_no_file(make_harness, monkeypatch, code):
    harness = make_harness()

    def refuse(*_):
        raise OSError(code, "no room")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="no room") as refusal:
        harness.picture()
    assert user_message(refusal.value) == STORAGE_FAILED
    assert not list(harness.picture_store.folder.rglob(".unfinished-*"))


def test_a_picture_is_shown_in_full_size_if_the_disk_is_full(make_harness, monkeypatch):
    harness = make_harness()
    picture = harness.picture_store.add(Image.new("RGB", (600, 30)), "wide.png")

    def refuse(*_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("os.replace", refuse)
    shown = harness.picture_store.resized(picture.digest, 480)
    assert shown == harness.picture_store.file(picture.digest)


def test_other_system_errors_are_unexpected_errors(caplog):
    for error in (FileNotFoundError(2, "gone"), sqlite3.OperationalError("no such table")):
        assert "on our side" in user_message(error)


@pytest.mark.parametrize(
    ("hint", "shown"),
    [
        ("Check the name, or give --images.", "Check the name."),
        ("Move it in, or name its folder with --images.", "Move it in."),
        ("Name the folder with --images. Look again.", "Look again."),
        ("Use a smaller --size or --length, or --slowly.", ""),
        ("Rename the file.", "Rename the file."),
    ],
)
def test_messages_about_data_name_no_shell_options(hint, shown):
    assert user_message(DataError("Bad.", hint)) == f"Bad. {shown}".strip()


def test_lone_surrogates_are_replaced(make_harness):
    harness = make_harness()
    _, view = harness.ask("What \ud800?")
    assert view["turns"][0]["question"] == "What ??"
    for request in ({"do": "open", "conversation": {"a": 1}}, {"do": "open", "conversation": [1]}):
        with pytest.raises(UsageError, match="does not exist"):
            handle_action(harness.service, "ann", request)
    assert handle_action(harness.service, "ann", {"do": "hello", "conversation": {"a": 1}})["hello"]


def test_a_failed_default_model_is_reported_on_the_terminal(make_harness, capsys):
    harness = make_harness(ModelError("There is no model 'nothing'.", "Check its name."))
    harness.pool.start_loading()
    _report_load_failure(harness.pool)
    assert capsys.readouterr().err == "Error: There is no model 'nothing'. Check its name.\n"


def test_a_new_scene_has_a_question_that_the_model_answers_well():
    from finetune.pretrain.world import make_scene, sample_scene
    from ui.chat import examples

    for seed in range(5):
        with pytest.MonkeyPatch.context() as patched:
            drawn = iter(range(1000 * seed, 1000 * seed + 1000))
            patched.setattr(examples.secrets, "randbelow", lambda _, drawn=drawn: next(drawn))
            _, question = examples.new_scene()
            last = next(drawn) - 1
        assert len(make_scene(last, "shapes", "test").items) <= examples.MAX_SHAPES
        asked = {qa.question: qa.skill for qa in sample_scene(last, "shapes")[1]}
        assert asked[question] in examples.WELL_ANSWERED
