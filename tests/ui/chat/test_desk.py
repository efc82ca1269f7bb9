"""What the page can ask for, driven without gradio on an engine without a model."""

from __future__ import annotations

import errno
import logging
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from tests.fake_engine import FakeEngine
from tests.ui.desk import House, choice
from tests.waiting import PATIENCE, until
from ui.chat.comparison import side_by_side
from ui.chat.conversation_actions import act
from ui.chat.markdown import to_html
from ui.chat.model_picker import pick
from ui.chat.requests import NO_ROOM, message_of
from ui.chat.warmup import Warming
from ui.cli import _tell_failure
from vqa_app.errors import DataError, ModelError, UsageError
from vqa_app.serving.engine_pool import Hub
from vqa_app.serving.redact import hide, without_paths


@pytest.fixture
def house(tmp_path):
    houses = []

    def build(engine=None, **more):
        engines = {"first": engine or FakeEngine(), **more}
        houses.append(House(tmp_path, engines))
        return houses[-1]

    yield build
    for built in houses:
        built.close()


def test_an_answer_streams_and_is_kept_with_what_is_known_of_it(house):
    updates, view = house().ask("What is it?")
    texts = [u["live"]["html"] for u in updates if u and "html" in u.get("live", {})]
    assert texts
    assert texts[-1] == view["turns"][0]["html"]
    (turn,) = view["turns"]
    assert (turn["state"], turn["question"]) == ("answered", "What is it?")
    assert turn["facts"]["confidence"] == 0.75
    assert turn["facts"]["model"] == "First"
    assert view["title"] == "What is it?"
    assert view["meter"]["limit"] == 4096


def test_the_model_reads_the_history_of_the_server_with_its_pictures(house):
    engine = FakeEngine()
    home = house(engine)
    red, blue = home.picture(), home.picture(colour="blue", name="blue.png")
    _, view = home.ask("One?", pictures=[red])
    _, view = home.ask("Two?", conversation=view["conversation"], pictures=[blue])
    asked, _ = engine.asked[-1]
    assert [picture.digest for picture in asked.pictures] == [red, blue]
    assert [message.role for message in asked.messages] == ["user", "assistant", "user"]
    assert [p["number"] for turn in view["turns"] for p in turn["pictures"]] == [1, 2]


def test_stop_keeps_what_came_and_frees_the_line(house):
    engine = FakeEngine("one two three four", hold_after=2)
    home = house(engine)
    running = home.desk.ask("ann", {"question": "Count."})
    conversation = next(running)["view"]["conversation"]
    for update in running:
        if update and "two" in update.get("live", {}).get("html", ""):
            home.desk.stop("ann", conversation)
    (turn,) = home.desk.view("ann", conversation)["turns"]
    assert (turn["state"], turn["answer"].strip()) == ("stopped", "one two")


def test_a_running_answer_takes_no_finished_ones_place_in_what_is_kept(house):
    engine = FakeEngine("one two three four", hold_after=2)
    home = house(engine)
    to_html.cache_clear()
    for update in home.desk.ask("ann", {"question": "Count."}):
        if update and "two" in update.get("live", {}).get("html", ""):
            engine.release()
    asked = {"question": "Count.", "models": ["first", "first"]}
    assert any(
        update and update["compared"][1]["html"] for update in side_by_side(home.desk, "ann", asked)
    )
    assert to_html.cache_info().currsize == 1


def test_stop_shows_how_the_chat_stands(house):
    home = house()
    _, view = home.ask("What?")
    request = {"do": "stop", "conversation": view["conversation"]}
    update = act(home.desk, "ann", request)
    assert update["view"]["turns"] == view["turns"]
    assert not update["view"]["busy"]
    assert act(home.desk, "ann", {"do": "stop", "conversation": None}) == {}


def test_a_stranger_cannot_stop_an_answer(house):
    engine = FakeEngine("one two three", hold_after=1)
    home = house(engine)
    running = home.desk.ask("ann", {"question": "Count."})
    conversation = next(running)["view"]["conversation"]
    home.desk.stop("bob", conversation)
    engine.release()
    assert list(running)[-1]["view"]["turns"][0]["state"] == "answered"


def test_an_answer_goes_on_without_the_page_that_asked(house):
    engine = FakeEngine("one two three", hold_after=1)
    home = house(engine)
    running = home.desk.ask("ann", {"question": "Count."})
    conversation = next(running)["view"]["conversation"]
    next(update for update in running if update and "html" in update.get("live", {}))
    running.close()
    assert home.desk.view("ann", conversation)["busy"]
    back = home.desk.ask("ann", {"follow": True, "conversation": conversation})
    assert next(back)["view"]["busy"]
    shown = next(update for update in back if update)
    assert "one" in shown["live"]["html"]
    engine.release()
    view = list(back)[-1]["view"]
    assert not view["busy"]
    assert (view["turns"][0]["state"], view["turns"][0]["answer"]) == ("answered", "one two three")
    assert len(engine.asked) == 1


def test_nobody_else_can_follow_an_answer(house):
    engine = FakeEngine("one two three", hold_after=1)
    home = house(engine)
    conversation = next(home.desk.ask("ann", {"question": "Count."}))["view"]["conversation"]
    with pytest.raises(UsageError, match="does not exist"):
        list(home.desk.ask("bob", {"follow": True, "conversation": conversation}))
    engine.release()


def test_following_what_has_ended_shows_how_it_ended(house):
    home = house()
    _, view = home.ask("What?")
    request = {"follow": True, "conversation": view["conversation"]}
    (update,) = home.desk.ask("ann", request)
    assert update["view"]["turns"] == view["turns"]


def test_a_chat_deleted_while_it_is_answered_is_gone_without_an_error(house):
    engine = FakeEngine("one two three", hold_after=1)
    home = house(engine)
    running = home.desk.ask("ann", {"question": "Count."})
    conversation = next(running)["view"]["conversation"]
    act(home.desk, "ann", {"do": "delete", "conversation": conversation, "shown": conversation})
    last = [update for update in running if update][-1]
    assert last == {"gone": conversation, "list": []}, "other tabs leave it"
    stopped = act(home.desk, "ann", {"do": "stop", "conversation": conversation})
    assert stopped == {"gone": conversation, "list": []}
    assert act(home.desk, "ann", {"do": "open"})["list"] == []


def test_a_slow_disk_does_not_hide_that_a_chat_is_gone(house, monkeypatch):
    home = house(FakeEngine("one two three", hold_after=1))
    running = home.desk.ask("ann", {"question": "Count."})
    conversation = next(running)["view"]["conversation"]
    delete = home.store.delete
    monkeypatch.setattr(home.store, "delete", lambda *of: (time.sleep(0.5), delete(*of))[1])
    request = {"do": "delete", "conversation": conversation}
    other_tab = threading.Thread(target=act, args=(home.desk, "ann", request))
    other_tab.start()
    last = [update for update in running if update][-1]
    other_tab.join()
    assert last == {"gone": conversation, "list": []}


def test_what_came_is_stored_while_the_answer_grows(house, monkeypatch):
    monkeypatch.setattr("ui.chat.answer.KEPT_EVERY", 0.0)
    engine = FakeEngine("one two three", hold_after=2)
    home = house(engine)
    running = home.desk.ask("ann", {"question": "Count."})
    conversation = next(running)["view"]["conversation"]
    next(u for u in running if u and "two" in u.get("live", {}).get("html", ""))
    (turn,) = home.store.path("ann", conversation)
    assert turn.state == "answering"
    assert turn.answer.startswith("one")


def test_regenerate_and_edit_branch_with_their_pictures(house):
    engine = FakeEngine()
    home = house(engine)
    red = home.picture()
    _, view = home.ask("One?", pictures=[red])
    chat, first = view["conversation"], view["turns"][0]["id"]
    home.ask("Two?", conversation=chat)
    _, view = home.ask("", conversation=chat, again=first)
    assert [turn["question"] for turn in view["turns"]] == ["One?"]
    assert view["turns"][0]["branches"]["of"] == 2
    _, view = home.ask("Changed?", conversation=chat, replaces=first, pictures=[red])
    assert view["turns"][0]["branches"] == {
        "at": 3, "of": 3, "before": view["turns"][0]["branches"]["before"], "after": None,
    }  # fmt: skip
    assert [picture.digest for picture in engine.asked[-1][0].pictures] == [red]
    back = act(home.desk, "ann", {"do": "branch", "conversation": chat, "turn": first})["view"]
    assert [turn["question"] for turn in back["turns"]] == ["One?", "Two?"]


def test_a_question_without_an_answer_hands_its_pictures_on(house):
    engine = FakeEngine()
    home = house(engine)
    red = home.picture()
    engine.error = ModelError("Out of memory.", "Use a smaller picture.")
    _, view = home.ask("What?", pictures=[red])
    assert view["turns"][0]["state"] == "failed"
    assert "smaller picture" in view["turns"][0]["facts"]["error"]
    home.ask("And now?", conversation=view["conversation"])
    assert [m.role for m in engine.asked[-1][0].messages] == ["user"]
    assert [p.digest for p in engine.asked[-1][0].pictures] == [red]


def test_our_own_mistakes_show_no_details(house):
    engine = FakeEngine()
    engine.error = RuntimeError("/secret/path exploded")
    _, view = house(engine).ask("What?")
    assert "secret" not in str(view)
    assert "our side" in view["turns"][0]["facts"]["error"]


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        ({"question": " "}, "nothing to answer"),
        ({"question": "x" * 20_001}, "characters"),
        ({"question": "x", "pictures": ["a" * 64]}, "has been deleted"),
        ({"question": "x", "pictures": ["../../etc/passwd"]}, "has been deleted"),
        ({"question": "x", "conversation": "made-up"}, "does not exist"),
        ({"again": "made-up", "conversation": "made-up"}, "does not exist"),
        ({"question": "x", "pictures": [f"{n:064}" for n in range(9)]}, "9 pictures"),
    ],
)
def test_a_forged_request_is_refused(house, request_, problem):
    with pytest.raises(UsageError, match=problem):
        list(house().desk.ask("ann", request_))


def test_a_picture_of_somebody_else_is_refused(house):
    home = house()
    with pytest.raises(UsageError, match="has been deleted"):
        home.ask("What?", owner="bob", pictures=[home.picture("ann")])


def test_a_dropped_picture_is_warmed_behind_the_history(house):
    engine = FakeEngine()
    home = house(engine)
    red, blue = home.picture(), home.picture(colour="blue")
    home.hub.start()
    home.hub.wait(timeout=PATIENCE)
    _, view = home.ask("One?", pictures=[red])
    Warming(home.desk).begin("ann", {"conversation": view["conversation"], "pictures": [blue]})
    until(lambda: engine.warmed)
    (warmed,) = engine.warmed
    assert [m.role for m in warmed.messages] == ["user", "assistant", "user"]
    assert warmed.messages[-1].text == ""
    assert warmed.messages[-1].pictures[0].digest == blue


def test_settings_reach_the_model(house):
    engine = FakeEngine()
    home = house(engine)
    home.desk.save_settings(
        "ann", {"temperature": 0.5, "seed": 3, "max_new_tokens": 2, "system": "Be kind.",
                "style": "short"}
    )  # fmt: skip
    home.ask("What?")
    asked, options = engine.asked[-1]
    assert (options.temperature, options.seed, options.max_new_tokens) == (0.5, 3, 2)
    assert asked.system == "Be kind."
    assert asked.messages[-1].text.endswith("single word or phrase.")
    home.ask("And for bob?", owner="bob")
    assert engine.asked[-1][0].system is None


@pytest.mark.parametrize(
    "bad",
    [{"temperature": 99}, {"top_p": "x"}, {"max_new_tokens": 10**9}, {"style": "rude"},
     {"system": "x" * 5000}, {"owner": "bob"}, {"seed": "abc"}, {"seed": 10**30},
     {"max_new_tokens": 2.5}, {"max_new_tokens": "5"}, {"temperature": True},
     {"temperature": float("nan")}],
)  # fmt: skip
def test_impossible_settings_are_refused(house, bad):
    home = house()
    with pytest.raises(UsageError):
        home.desk.save_settings("ann", bad)
    assert home.store.settings("ann") == {}


def test_a_model_that_fails_to_load_leaves_the_old_one_answering(house):
    home = house(broken=ModelError("It is damaged.", "Fetch it again."))
    home.ask("Hello?")
    with pytest.raises(ModelError, match="damaged"):
        list(pick(home.desk, "ann", {"model": "broken"}))
    _, view = home.ask("Still there?")
    assert view["turns"][0]["state"] == "answered"


def test_each_person_picks_their_own_model(house):
    other = FakeEngine("the other one")
    home = house(other=other)
    list(pick(home.desk, "ann", {"model": "other"}))
    assert home.ask("Who?")[1]["turns"][0]["answer"].strip() == "the other one"
    assert "You asked" in home.ask("Who?", owner="bob")[1]["turns"][0]["answer"]
    with pytest.raises(ModelError):
        list(pick(home.desk, "ann", {"model": "/etc/passwd"}))


def test_a_picked_model_is_loaded_again_after_a_restart(house):
    home = house(other=FakeEngine("the other one"))
    home.store.save_settings("ann", {"model": "other"})
    red = home.picture()
    warming = Warming(home.desk)
    assert warming.begin("ann", {"pictures": [red]}) == {}
    assert home.hub.wait("other", PATIENCE) is home.engines["other"]
    warming.begin("ann", {"pictures": [red]})
    until(lambda: home.engines["other"].warmed)
    assert home.hub.standing("first").phase == "absent"
    update = act(home.desk, "bob", {"do": "hello"})
    assert update["models"]["picked"] == "first"
    assert update["models"]["phase"] in ("loading", "ready")


def test_a_model_that_failed_is_not_loaded_at_every_move(house):
    home = house(ModelError("It is damaged.", "Fetch it again."))
    home.hub.start()
    with pytest.raises(ModelError):
        home.hub.wait(timeout=PATIENCE)
    act(home.desk, "ann", {"do": "hello"})
    assert home.hub.standing().phase == "failed"


def test_picking_a_model_twice_keeps_the_way_back(house):
    home = house(other=FakeEngine())
    for _ in range(2):
        update = list(pick(home.desk, "ann", {"model": "other"}))[-1]
    assert (update["models"]["picked"], update["models"]["before"]) == ("other", "first")
    update = list(pick(home.desk, "ann", {"model": "first"}))[-1]
    assert (update["models"]["picked"], update["models"]["before"]) == ("first", "other")


def test_a_comparison_is_stopped_by_who_asked_alone(house):
    engine = FakeEngine(hold_after=1)
    home = house(engine, other=FakeEngine())
    asked = {"models": ["first", "other"], "question": "What is it?"}
    comparing = side_by_side(home.desk, "ann", asked)
    assert next(update for update in comparing if update and update["compared"][0]["html"])
    act(home.desk, "bob", {"do": "stop-comparing"})
    assert next(comparing) is None  # it still waits for the next word
    act(home.desk, "ann", {"do": "stop-comparing"})
    last = [update for update in comparing if update][-1]
    assert last["compared_done"]
    assert [side["state"] for side in last["compared"]] == ["stopped", "stopped"]


def test_a_pick_holds_although_its_page_goes(house):
    home = house()
    go_on = threading.Event()
    engines = {"first": FakeEngine(), "slow": FakeEngine(), "other": FakeEngine()}

    def load(chosen, progress):
        assert chosen.key != "slow" or go_on.wait(PATIENCE)
        return engines[chosen.key]

    home.desk.hub = Hub(load, lambda: [choice(key) for key in engines], "first")
    picking = pick(home.desk, "ann", {"model": "slow"})
    assert next(picking)["models"]["loading"]["key"] == "slow"
    picking.close()
    models = act(home.desk, "ann", {"do": "hello"})["models"]
    assert (models["picked"], models["loading"]["key"]) == ("first", "slow")
    go_on.set()
    home.desk.hub.wait("slow", PATIENCE)
    models = act(home.desk, "ann", {"do": "models"})["models"]
    assert (models["picked"], models["before"]) == ("slow", "first")
    assert "loading" not in models


def test_the_last_of_several_picks_counts(house):
    home = house()
    go_on = threading.Event()
    engines = {"first": FakeEngine(), "slow": FakeEngine(), "other": FakeEngine()}

    def load(chosen, progress):
        assert chosen.key != "slow" or go_on.wait(PATIENCE)
        return engines[chosen.key]

    home.desk.hub = Hub(load, lambda: [choice(key) for key in engines], "first")
    earlier = pick(home.desk, "ann", {"model": "slow"})
    next(earlier)
    list(pick(home.desk, "ann", {"model": "other"}))
    go_on.set()
    assert list(earlier)[-1]["models"]["picked"] == "other"


def downloading(key):
    """A hub whose model never comes, with the event that says that its loading has begun."""
    begun = threading.Event()

    def load(chosen, progress):
        begun.set()
        while True:
            time.sleep(0.01)
            progress("Downloading", 0.5)

    return Hub(load, lambda: [choice(key)], key), begun


def test_a_load_is_cancelled_only_by_who_started_it(house):
    home = house()
    home.desk.hub, begun = downloading("slow")
    home.desk.hub.start("slow", "ann")
    assert begun.wait(PATIENCE)
    with pytest.raises(UsageError, match="Someone else"):
        act(home.desk, "bob", {"do": "cancel-load", "model": "slow"})
    act(home.desk, "ann", {"do": "cancel-load", "model": "slow"})
    with pytest.raises(ModelError, match="cancelled"):
        home.desk.hub.wait("slow", PATIENCE)


def test_waiting_for_a_model_that_made_room_loads_it_again():
    engine = FakeEngine()
    hub = Hub(lambda *_: engine, lambda: [choice("a")], "a")
    assert hub.wait("a", PATIENCE) is engine
    hub.close()
    stopping = Hub(lambda *_: engine, lambda: [choice("a")], "a")
    stopping.close()
    with pytest.raises(ModelError, match="stopping"):
        stopping.wait("a", PATIENCE)


def test_why_a_load_failed_is_told_without_paths(house):
    home = house(ModelError("There is no /srv/secret/model.", "Look into /srv/secret."))
    home.hub.start()
    with pytest.raises(ModelError) as told:
        home.hub.wait(timeout=PATIENCE)
    assert "secret/" not in str(told.value)
    assert "/srv" not in str(told.value)
    assert "/srv" not in str(act(home.desk, "ann", {"do": "models"}))


def test_a_load_can_be_cancelled():
    hub, begun = downloading("slow")
    hub.start()
    assert begun.wait(PATIENCE)
    assert hub.standing().phase == "loading"
    hub.cancel("slow")
    with pytest.raises(ModelError, match="cancelled"):
        hub.wait(timeout=PATIENCE)
    assert hub.standing().phase == "absent"


def test_the_least_used_models_are_let_go():
    engines = {key: FakeEngine() for key in ("default", "a", "b", "c")}
    hub = Hub(lambda c, _: engines[c.key], lambda: [choice(key) for key in engines], "default", 2)
    for key in engines:
        hub.start(key)
        hub.wait(key, PATIENCE)
    until(lambda: engines["a"].closed)  # after the last one is there
    assert [engine.closed for engine in engines.values()] == [False, True, False, False]
    hub.close()
    assert all(engine.closed for engine in engines.values())


def test_another_answer_has_the_style_that_is_wanted_now(house):
    engine = FakeEngine()
    home = house(engine)
    _, view = home.ask("What?")
    home.desk.save_settings("ann", {"style": "short"})
    again = {"conversation": view["conversation"], "again": view["turns"][0]["id"]}
    list(home.desk.ask("ann", again))
    assert engine.asked[-1][0].messages[-1].text.endswith("single word or phrase.")


def test_a_forged_request_leaves_no_empty_chat(house):
    home = house()
    with pytest.raises(UsageError):
        home.ask("What?", replaces="nothing")
    assert home.store.conversations("ann") == []


def test_what_was_left_out_is_told(house):
    home = house()
    _, view = home.ask("One?")
    chat = view["conversation"]
    _, view = home.ask("Two?", conversation=chat)
    home.store.add_facts("ann", chat, view["turns"][1]["id"], {"dropped": 2})
    assert [t["left_out"] for t in home.desk.view("ann", chat)["turns"]] == [True, False]


def test_six_people_are_all_answered_without_mixing(house):
    home = house(FakeEngine(delay=0.002))
    views = {}

    def talk(owner):
        _, view = home.ask(f"I am {owner}, 0", owner=owner)
        for count in range(1, 4):
            _, view = home.ask(
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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("The folder /tmp/data/cats holds no data.", "The folder cats holds no data."),
        (
            "Reading /srv/a b.json, row 3: ~/x/y/z.png is bad.",
            "Reading a b.json, row 3: z.png is bad.",
        ),
        ("owner/name is on https://example.org/a/b", "owner/name is on https://example.org/a/b"),
        ("1/2 of it, and/or more", "1/2 of it, and/or more"),
        (r"No C:\Users\ann\runs\x here.", "No x here."),
        ("No /home/ann/my data/runs/x here.", "No x here."),
        ("No ~/x.png here: / is empty.", "No x.png here: / is empty."),
    ],
)
def test_messages_name_files_without_their_folders(text, shown):
    hide(Path("/home/ann/my data"))
    assert without_paths(text) == shown


def test_a_deleted_chat_takes_its_pictures_along_unless_somebody_has_them(house):
    home = house()
    red, blue = home.picture(), home.picture(colour="blue")
    assert home.picture("bob", colour="blue") == blue
    _, view = home.ask("One?", pictures=[red, blue])
    _, other = home.ask("Two?", pictures=[red])
    act(home.desk, "ann", {"do": "delete", "conversation": view["conversation"]})
    assert home.shelf.file(red).exists()
    assert home.shelf.file(blue).exists()
    assert home.store.picture("ann", blue) is None
    act(home.desk, "ann", {"do": "delete", "conversation": other["conversation"]})
    assert not home.shelf.file(red).exists()
    assert home.shelf.file(blue).exists()


def test_a_deleted_question_takes_its_pictures_along(house):
    home = house()
    red, blue = home.picture(), home.picture(colour="blue")
    _, view = home.ask("One?", pictures=[red])
    _, view = home.ask("Two?", conversation=view["conversation"], pictures=[red, blue])
    request = {"do": "delete-turn", "conversation": view["conversation"]}
    act(home.desk, "ann", {**request, "turn": view["turns"][1]["id"]})
    assert home.shelf.file(red).exists()
    assert not home.shelf.file(blue).exists()


def full_disk(house):
    """Makes the database refuse to grow, as on a full disk."""
    (pages,) = house.store._all("PRAGMA page_count")
    house.store._db.execute(f"PRAGMA max_page_count = {pages[0]}")


def test_a_full_disk_is_named_and_the_page_opens_all_the_same(house, monkeypatch, caplog):
    home = house()
    home.ask("What?")
    full_disk(home)
    with caplog.at_level(logging.ERROR):
        found = act(home.desk, "a visitor" * 500, {"do": "hello"})
    assert found["hello"]
    assert found["examples"]["cards"] == []
    with pytest.raises(sqlite3.OperationalError) as refusal:
        home.ask("Why? " * 2000)
    assert message_of(refusal.value) == NO_ROOM
    assert all(record.exc_info is None for record in caplog.records), "one line, no traceback"
    home.store._db.execute("PRAGMA max_page_count = 1000000")
    assert home.ask("And now?")[1]["turns"][0]["state"] == "answered", "there is room again"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_picture_that_the_disk_has_no_room_for_leaves_nothing(house, monkeypatch, code):
    home = house()

    def refuse(*_):
        raise OSError(code, "no room")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="no room") as refusal:
        home.picture()
    assert message_of(refusal.value) == NO_ROOM
    assert not list(home.shelf.folder.rglob("*.part"))


def test_other_errors_of_the_system_stay_ours(caplog):
    for error in (FileNotFoundError(2, "gone"), sqlite3.OperationalError("no such table")):
        assert "on our side" in message_of(error)


@pytest.mark.parametrize(
    ("hint", "told"),
    [
        ("Check the name, or give --images.", "Check the name."),
        ("Move it in, or name its folder with --images.", "Move it in."),
        ("Name the folder with --images. Look again.", "Look again."),
        ("Use a smaller --size or --length, or --slowly.", ""),
        ("Rename the file.", "Rename the file."),
    ],
)
def test_who_brings_data_to_the_page_is_told_no_option_of_the_shell(hint, told):
    assert message_of(DataError("Bad.", hint)) == f"Bad. {told}".strip()


def test_halves_of_characters_are_no_ones_fault(house):
    home = house()
    _, view = home.ask("What \ud800?")
    assert view["turns"][0]["question"] == "What ??"
    for request in ({"do": "open", "conversation": {"a": 1}}, {"do": "open", "conversation": [1]}):
        with pytest.raises(UsageError, match="does not exist"):
            act(home.desk, "ann", request)
    assert act(home.desk, "ann", {"do": "hello", "conversation": {"a": 1}})["hello"]


def test_a_default_model_that_does_not_load_is_told_on_the_terminal(house, capsys):
    home = house(ModelError("There is no model 'nothing'.", "Check its name."))
    home.hub.start()
    _tell_failure(home.hub)
    assert capsys.readouterr().err == "Error: There is no model 'nothing'. Check its name.\n"


def test_a_new_scene_asks_what_the_model_answers_well():
    from finetune.pretrain.world import make_scene, sample_scene
    from ui.chat import examples

    for seed in range(5):
        with pytest.MonkeyPatch.context() as patched:
            drawn = iter(range(1000 * seed, 1000 * seed + 1000))
            patched.setattr(examples.secrets, "randbelow", lambda _, drawn=drawn: next(drawn))
            _, question = examples.new_scene()
            last = next(drawn) - 1
        assert len(make_scene(last, "shapes", "test").items) <= examples.MOST_SHAPES
        asked = {qa.question: qa.skill for qa in sample_scene(last, "shapes")[1]}
        assert asked[question] in examples.WELL_ANSWERED
