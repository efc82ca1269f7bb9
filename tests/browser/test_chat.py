"""Chatting, in a real browser."""

from __future__ import annotations

import base64
import json
import re
import socket
import time
from contextlib import ExitStack, contextmanager

import pytest

from tests.browser.conftest import Visitor, expect
from tests.fake_engine import FakeEngine
from tests.ui_server import running
from tests.waiting import PATIENCE, until
from ui import chats, layout


def test_from_the_first_visit_to_the_first_answer(visit):
    visitor = visit()
    expect(visitor.page.locator("#model-name")).to_have_text("Fake")
    visitor.page.locator("#cards .card").first.click()
    visitor.answered()
    expect(visitor.answers).to_contain_text("about one picture")
    expect(visitor.page.locator("article .facts")).to_have_text("75 % sure · Fake")
    expect(visitor.page.locator("#list .title")).to_have_count(1)


def test_stop_keeps_what_came_and_the_chat_goes_on(visit, engine):
    engine.hold(2)
    visitor = visit()
    visitor.ask("Tell me a lot", wait=False)
    expect(visitor.page.locator(".answer.running")).to_have_text("You asked")
    expect(visitor.page.locator("#log")).to_have_attribute("aria-busy", "true")
    visitor.page.click(".stop-button")
    visitor.answered()
    expect(visitor.answers).to_have_text(["You asked"])
    engine.release()
    visitor.ask("And now?")
    expect(visitor.answers.nth(1)).to_contain_text("And now?")


@contextmanager
def held_back(page, address):
    """Requests to an address reach the server only after the block."""
    held = []
    page.route(address, lambda route: route.continue_() if held is None else held.append(route))
    yield
    waiting, held = held, None
    for route in waiting:
        route.continue_()


def test_stop_counts_before_the_server_has_the_question(visit, engine):
    engine.hold(2)
    visitor = visit()
    with held_back(visitor.page, "**/gradio_api/queue/join*"):
        visitor.ask("Tell me a lot", wait=False)
        visitor.page.click(".stop-button")
    visitor.answered()
    assert visitor.page.locator("article .answer").get_attribute("data-state") == "stopped"


def test_a_question_that_the_server_did_not_get_comes_back(visit, pictures):
    visitor = visit()
    visitor.attach(pictures[0])
    visitor.context.set_offline(True)
    visitor.ask("Is anybody there?", wait=False)
    expect(visitor.page.locator(".toast.error")).to_contain_text("cannot be reached")
    expect(visitor.page.locator(".toast-wrap")).to_be_hidden()  # Gradio's
    expect(visitor.page.locator("#question")).to_have_value("Is anybody there?")
    expect(visitor.page.locator("#tray .thumb")).to_have_count(1)
    with visitor.page.expect_event("load"):  # Gradio reloads the page
        visitor.context.set_offline(False)
    expect(visitor.page.locator("#tray .thumb")).to_have_count(1)
    expect(visitor.page.locator("#question")).to_have_value("Is anybody there?")
    visitor.page.press("#question", "Enter")
    visitor.answered()
    expect(visitor.answers).to_contain_text(["about one picture"])
    expect(visitor.page.locator("#question")).to_have_value("")


def test_what_is_sent_while_a_picture_is_on_its_way_is_asked_with_it(visit, pictures):
    visitor = visit()
    page, note = visitor.page, visitor.page.locator("#tray .note")
    with held_back(page, "**/vqa/pictures?name=*"):
        page.set_input_files("#files", [str(file) for file in pictures])
        page.fill("#question", "Do they")
        page.press("#question", "Enter")
        expect(note).to_be_visible()
        page.locator("#question").press_sequentially(" differ?")
        expect(note).to_have_count(0)  # somebody who writes on has not finished
        page.press("#question", "Enter")
        expect(note).to_be_visible()
    visitor.answered()
    expect(visitor.answers).to_have_text(["You asked 'Do they differ?' about 2 pictures."])


def test_what_was_being_written_comes_back_after_an_edit(visit, pictures):
    visitor = visit()
    page, box = visitor.page, visitor.page.locator("#question")
    visitor.ask("One?")

    def edit():
        page.locator("article").last.hover()
        page.get_by_label("Edit and ask again from here").last.click()
        expect(page.locator("#tray .thumb")).to_have_count(0)

    visitor.attach(pictures[0])
    box.fill("And this?")
    edit()
    expect(box).to_have_value("One?")
    box.press("Escape")
    expect(box).to_have_value("And this?")
    expect(page.locator("#tray .thumb")).to_have_count(1)
    edit()
    visitor.ask("Two?", wait=False)
    page.wait_for_selector("text='2 / 2'")
    visitor.answered()
    expect(box).to_have_value("And this?")
    expect(page.locator("#tray .thumb")).to_have_count(1)
    expect(page.locator("#editing")).to_be_hidden()


def test_regenerate_edit_and_branch_with_a_picture(visit, engine, pictures):
    visitor = visit()
    visitor.attach(pictures[0])
    visitor.ask("What is it?")
    visitor.ask("And now?")
    turn = visitor.page.locator("article").first
    turn.get_by_label("Answer again").click()
    visitor.page.wait_for_selector("text='2 / 2'")
    visitor.answered()
    expect(visitor.questions).to_have_text(["What is it?"])
    turn.hover()
    turn.get_by_label("Edit and ask again from here").click()
    expect(visitor.page.locator("#tray .thumb")).to_have_count(1)
    visitor.page.fill("#question", "What colour is it?")
    visitor.page.press("#question", "Enter")
    visitor.page.wait_for_selector("text='3 / 3'")
    visitor.answered()
    expect(visitor.answers).to_have_text(["You asked 'What colour is it?' about one picture."])
    visitor.page.locator("article").first.get_by_label("Previous version").click()
    visitor.page.wait_for_selector("text='2 / 3'")
    visitor.page.locator("article").first.get_by_label("Previous version").click()
    visitor.page.wait_for_selector("text='And now?'")
    visitor.page.locator("article").last.hover()
    visitor.page.locator("article").last.get_by_label("Delete this question").click()
    visitor.page.click("#sheet .danger")
    visitor.page.locator("article").nth(1).wait_for(state="detached")


def test_two_pictures_are_numbered_across_turns_and_warmed(visit, engine, pictures):
    visitor = visit()
    seen = len(engine.warmed)
    visitor.attach(*pictures)
    until(lambda: any(len(one.pictures) == 2 for one in engine.warmed[seen:]))
    visitor.ask("Do they differ?")
    expect(visitor.answers).to_contain_text(["about 2 pictures"])
    visitor.attach(pictures[0])
    expect(visitor.page.locator("#tray .number")).to_have_text("3")
    visitor.ask("And picture 3?")
    expect(visitor.answers.nth(1)).to_contain_text("about 3 pictures")
    visitor.page.locator("article .thumb").first.click()
    visitor.page.wait_for_selector("#sheet img.large")
    visitor.page.click("text=What the model saw")
    visitor.page.wait_for_selector("text=as 16 tokens")
    visitor.page.keyboard.press("Escape")
    expect(visitor.page.locator("#sheet")).to_be_hidden()


PASTE = """data => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "pasted.png", { type: "image/png" }));
  const event = new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true });
  document.getElementById("question").dispatchEvent(event);
}"""


def test_paste(visit, pictures):
    visitor = visit()
    visitor.page.evaluate(PASTE, base64.b64encode(pictures[0].read_bytes()).decode())
    visitor.page.wait_for_selector("#tray .thumb img")
    visitor.ask("What did I paste?")
    expect(visitor.answers).to_contain_text("about one picture")


def test_a_picture_that_is_pasted_while_comparing_is_compared(visit, pictures):
    visitor = visit()
    visitor.page.click("nav [data-view-of=compare]")
    visitor.page.evaluate(PASTE, base64.b64encode(pictures[0].read_bytes()).decode())
    expect(visitor.page.locator(".compare-picture .thumb")).to_be_visible()
    expect(visitor.page.locator("#tray li")).to_have_count(0)


def test_a_bad_picture_is_named_and_the_chat_goes_on(visit, tmp_path):
    bad = tmp_path / "holiday.png"
    bad.write_bytes(b"this is no picture")
    visitor = visit()
    visitor.page.set_input_files("#files", str(bad))
    expect(visitor.page.locator(".toast.error")).to_contain_text("holiday.png")
    expect(visitor.page.locator("#tray li")).to_have_count(0)
    visitor.ask("Still there?")
    expect(visitor.answers).to_contain_text("no picture")


def test_a_failure_is_told_and_can_be_tried_again(visit, engine):
    engine.error = RuntimeError("/secret/path")
    visitor = visit()
    visitor.ask("Does it work?", wait=False)
    failed = visitor.page.locator(".failed")
    expect(failed).to_contain_text("went wrong")
    assert "secret" not in failed.inner_text()
    visitor.page.click(".failed .link")
    expect(visitor.answers).to_contain_text("Does it work?")


def test_a_chat_survives_a_reload_and_shows_in_a_second_tab(visit):
    visitor = visit()
    visitor.ask("Remember me?")
    visitor.page.reload()
    expect(visitor.answers).to_contain_text("You asked")
    expect(visitor.questions).to_have_text(["Remember me?"])
    tab = visitor.open(visitor.tab())
    tab.click("#list .title")
    tab.wait_for_selector(".bubble:has-text('Remember me?')")


def test_what_one_tab_asks_deletes_or_renames_shows_in_the_other(visit):
    visitor = visit()
    visitor.ask("Here?")
    page, tab = visitor.page, visitor.tab()
    visitor.open(tab, path="#" + page.url.partition("#")[2])
    expect(tab.locator(".bubble")).to_have_text(["Here?"])
    tab.fill("#question", "A draft that stays")
    visitor.ask("And there?")
    expect(tab.locator(".bubble")).to_have_text(["Here?", "And there?"])
    expect(tab.get_by_test_id("bot").last).to_contain_text("And there?")
    expect(tab.locator("#question")).to_have_value("A draft that stays")
    page.click(".new")
    page.wait_for_selector("#empty", state="visible")
    visitor.ask("Another chat?")
    expect(tab.locator("#list .title")).to_have_text(["Another chat?", "Here?"])
    expect(tab.locator(".bubble")).to_have_text(["Here?", "And there?"])  # its own stays
    page.get_by_label("More for Here?").click()
    page.click("#menu :text('Delete')")
    page.click("#sheet .danger")
    expect(tab.locator("#list .title")).to_have_text(["Another chat?"])
    expect(tab.locator("#empty")).to_be_visible()
    expect(tab.locator(".toast")).to_have_count(0)


def half_answered(visit, engine):
    """A visitor whose page is reloaded after the first two words; the others wait at a gate."""
    engine.hold(2)
    visitor = visit()
    visitor.ask("A long one?", wait=False)
    expect(visitor.page.locator(".answer.running")).to_have_text("You asked")
    visitor.page.reload()
    return visitor


def test_a_reload_while_answering_loses_nothing(visit, engine):
    visitor = half_answered(visit, engine)
    expect(visitor.page.locator(".answer.running")).to_have_text("You asked")
    second = visitor.open(visitor.tab(), path="#" + visitor.page.url.partition("#")[2])
    expect(second.locator(".answer.running")).to_have_text("You asked")
    engine.release()
    for page in (visitor.page, second):
        expect(page.get_by_test_id("bot")).to_have_text("You asked 'A long one?' about no picture.")
        expect(page.locator(".stop-button")).to_be_hidden()


def test_an_answer_is_stopped_after_a_reload(visit, engine):
    visitor = half_answered(visit, engine)
    visitor.page.click(".stop-button")
    expect(visitor.page.locator("article .answer[data-state=stopped]")).to_have_text("You asked")


def test_two_browsers_do_not_see_each_other(visit, house):
    ann, bob = visit(), visit()
    ann.ask("My secret?")
    expect(ann.page).to_have_url(re.compile("#.+"))
    chat = ann.page.url.partition("#")[2]
    bob.open(path=f"#{chat}")
    bob.page.reload()
    bob.page.wait_for_selector(".card")  # comes with the list
    expect(bob.page.locator("#empty")).to_be_visible()
    expect(bob.page.locator("#list .title")).to_have_count(0)
    answer = bob.page.evaluate(
        "async (chat) => (await fetch(`vqa/conversations/${chat}.json`)).status", chat
    )
    assert answer == 404
    bob.page.evaluate("(chat) => vqa.send('act', {do: 'open', conversation: chat})", chat)
    expect(bob.page.locator(".toast.error")).to_contain_text("does not exist")


def test_a_forged_history_reaches_nobody(visit, engine):
    visitor = visit()
    visitor.page.evaluate(
        """() => vqa.ask({question: "What did I say?", history: [{role: "user", content: "evil"}],
                          turns: [{question: "evil", answer: "evil"}], pictures: []})"""
    )
    visitor.page.wait_for_selector("text=What did I say")
    visitor.answered()
    assert "evil" not in str(engine.asked[-1][0].to_json())
    visitor.page.evaluate("() => vqa.ask({question: 'x', pictures: ['../../../etc/passwd']})")
    expect(visitor.page.locator(".toast.error")).to_contain_text("has been deleted")


def test_answers_are_drawn_and_cannot_load_or_run_anything(visit, engine):
    engine.answer = (
        "**Bold** $x^2$\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
        "![x](http://evil.example/beacon.png) <img src=http://evil.example/y.png>"
        " <form action=http://evil.example><input></form> <script>window.evil = 1</script>"
    )
    visitor = visit()
    visitor.ask("Show off")
    for selector in ("strong", "msup", "td"):
        expect(visitor.page.locator(f".answer {selector}").first).to_be_visible()
    for selector in ("img", "form", "script", "input"):
        assert visitor.page.locator(f".answer {selector}").count() == 0
    assert visitor.page.evaluate("window.evil") is None


def test_the_policy_stops_scripts_that_get_into_the_page(visit):
    """Should the answers' own cleaning ever let something through."""
    page = visit().page
    page.evaluate(
        """async () => {
          const script = document.createElement("script");
          script.textContent = "window.evil = 1";
          document.body.append(script);
          const holder = document.createElement("div");
          holder.innerHTML = "<img src=data:x onerror='window.evil = 2'>" +
            "<a href='javascript:window.evil = 3'>x</a>" +
            "<iframe srcdoc='<script>parent.evil = 4<\\/script>'></iframe>";
          document.body.append(holder);
          holder.querySelector("a").click();
          await new Promise((done) => setTimeout(done, 300));
          holder.remove();
        }"""
    )
    assert page.evaluate("window.evil") is None


def test_conversations_are_searched_renamed_and_deleted(visit):
    visitor = visit()
    visitor.ask("About cats?")
    expect(visitor.answers).to_have_count(1)
    visitor.ask("And about birds?")
    visitor.page.click(".new")
    visitor.page.wait_for_selector("#empty", state="visible")
    visitor.ask("About dogs?")
    titles = visitor.page.locator("#list .title")
    expect(titles).to_have_text(["About dogs?", "About cats?"])
    for words in ("cat", "Birds"):
        visitor.page.fill("#search", words)
        expect(titles).to_have_text(["About cats?"])
        visitor.page.fill("#search", "")
        expect(titles).to_have_count(2)
    visitor.page.fill("#search", "fish")
    expect(visitor.page.locator("#list")).to_have_text("Nothing found.")
    visitor.page.fill("#search", "")
    visitor.page.locator("#list li").first.hover()
    visitor.page.get_by_label("More for About dogs?").click()
    visitor.page.click("[role=menuitem]:has-text('Rename')")
    visitor.page.fill("#list li input", "Puppies")
    visitor.page.press("#list li input", "Enter")
    visitor.page.wait_for_selector("#list .title:has-text('Puppies')")
    visitor.page.get_by_label("More for Puppies").click()
    visitor.page.click("[role=menuitem]:has-text('Delete')")
    visitor.page.click("#sheet .danger")
    visitor.page.wait_for_selector("#empty", state="visible")
    expect(titles).to_have_text(["About cats?"])


def test_nothing_is_deleted_before_it_is_confirmed(visit):
    visitor = visit()
    page, press = visitor.page, visitor.page.keyboard.press
    visitor.ask("Keep me?")
    more = page.get_by_label("More for Keep me?")
    page.locator("article").hover()
    remove = page.get_by_role("button", name="Delete this question")
    for opener in (remove, more):
        opener.click()
        if opener is more:
            page.get_by_role("menuitem", name="Delete").focus()
            press("Enter")
        expect(page.locator("#sheet .keep")).to_be_focused()
        press("Escape")
        expect(opener).to_be_focused()
    expect(visitor.questions).to_have_text(["Keep me?"])
    more.click()
    page.get_by_role("menuitem", name="Delete").focus()
    for key in ("Enter", "Tab", "Enter"):
        press(key)
    expect(page.locator("#list .title")).to_have_count(0)
    expect(page.locator("#question")).to_be_focused()


def test_a_chat_that_is_deleted_in_another_tab_lets_go_of_the_page(visit, engine):
    engine.hold(2)
    visitor = visit()
    visitor.ask("A long one?", wait=False)
    expect(visitor.page.locator(".answer.running")).to_have_text("You asked")
    second = visitor.open(visitor.tab())
    second.evaluate("vqa.send('act', {do: 'delete', conversation: vqa.state.list[0].id})")
    visitor.page.wait_for_selector("#empty", state="visible")
    engine.release()
    visitor.ask("And now?")
    expect(visitor.questions).to_have_text(["And now?"])


def test_what_is_asked_in_a_chat_that_is_gone_comes_back(visit, house, monkeypatch):
    """Another server on the same folder may have deleted it."""
    owners, act = [], chats.act
    monkeypatch.setattr(layout, "act", lambda *given: owners.append(given[1]) or act(*given))
    visitor = visit()
    page = visitor.page
    visitor.ask("Here?")
    page.locator("article").hover()
    page.get_by_label("Edit and ask again from here").click()
    page.fill("#question", "And now?")
    house.application.desk.store.delete(owners[-1], page.url.partition("#")[2])
    page.press("#question", "Enter")
    expect(page.locator(".toast.error")).to_contain_text("does not exist")
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#list .title")).to_have_count(0)
    expect(page.locator("#editing")).to_be_hidden()
    expect(page.locator("#question")).to_have_value("And now?")
    page.press("#question", "Enter")
    visitor.answered()
    expect(visitor.questions).to_have_text(["And now?"])


def test_export_and_import(visit, tmp_path, pictures):
    """The copy has the pictures, the branches and the ratings of the first."""
    visitor = visit()
    visitor.attach(pictures[0])
    visitor.ask("Keep me?")
    visitor.page.get_by_label("Answer again").click()
    visitor.page.wait_for_selector("text='2 / 2'")
    visitor.answered()
    right = visitor.page.get_by_label("This is right")
    right.click()
    expect(right).to_have_attribute("aria-pressed", "true")
    first = visitor.page.url
    visitor.page.get_by_label("More for Keep me?").click()
    with visitor.page.expect_download() as download:
        visitor.page.click("[role=menuitem]:has-text('Save as JSON')")
    file = tmp_path / "chat.json"
    download.value.save_as(file)
    assert json.loads(file.read_text("utf-8"))["title"] == "Keep me?"
    visitor.page.click("nav [data-view-of=teach]")
    visitor.page.set_input_files("#import-file", str(file))
    expect(visitor.page.locator("#vqa")).to_have_attribute("data-view", "chat")
    expect(visitor.page.locator("#list .title")).to_have_text(["Keep me?", "Keep me?"])
    expect(visitor.page).not_to_have_url(first)
    visitor.page.wait_for_selector("text='2 / 2'")
    expect(right).to_have_attribute("aria-pressed", "true")
    expect(visitor.page.locator("article .thumb img")).to_have_js_property("naturalWidth", 120)
    expect(visitor.answers).to_have_text(["You asked 'Keep me?' about one picture."])
    expect(visitor.page.locator("article .facts")).to_contain_text("75 % sure")
    visitor.page.get_by_label("Previous version").click()
    visitor.page.wait_for_selector("text='1 / 2'")
    expect(right).to_have_attribute("aria-pressed", "false")


def test_settings_reach_the_model_and_stay(visit, engine):
    visitor = visit()
    visitor.page.click("[data-do=settings]")
    visitor.page.fill("#set-system", "Be brief.")
    visitor.page.fill("#set-seed", "7")
    visitor.page.press("#set-seed", "Tab")
    visitor.page.select_option("#set-style", "short")
    visitor.page.wait_for_function(
        "() => { const s = vqa.state.settings;"
        " return s.system === 'Be brief.' && s.seed === 7 && s.style === 'short'; }"
    )
    visitor.ask("What?")
    conversation, options = engine.asked[-1]
    assert conversation.system == "Be brief." and options.seed == 7
    assert conversation.messages[-1].text.endswith("single word or phrase.")
    visitor.page.reload()
    visitor.page.wait_for_selector("article")
    visitor.page.click("[data-do=settings]")
    expect(visitor.page.locator("#set-system")).to_have_value("Be brief.")


def test_changes_in_quick_succession_are_made_in_order(visit):
    visitor = visit()
    visitor.page.evaluate(
        """() => {
          window.told = [];
          vqa.on("settings", ({ seed }) => seed && told.push(seed)); // a late hello brings none
          for (let i = 1; i <= 20; i++) vqa.send("act", { do: "settings", seed: i });
        }"""
    )
    visitor.page.wait_for_function("() => told.at(-1) === 20")
    assert visitor.page.evaluate("told") == list(range(1, 21))


def test_a_slow_change_is_not_overtaken(visit, gate, monkeypatch):
    """Neither by the clock nor by a reply that is not its own (a late hello)."""
    asked, act = [], chats.act

    def slow(desk, owner, request):
        if request["do"] == "settings":
            asked.append((request["seed"], gate.is_set()))
        if request.get("seed") == 1:
            gate.wait(PATIENCE)
        return act(desk, owner, request)

    monkeypatch.setattr(layout, "act", slow)
    visitor = visit()
    page = visitor.page
    page.clock.install()
    page.evaluate(
        """() => {
          for (const seed of [1, 2]) vqa.send("act", { do: "settings", seed });
          const parse = JSON.parse;
          JSON.parse = (...given) => {
            const found = parse(...given);
            if (found?.hello) window.greeted = true;
            return found;
          };
          vqa.send("act", { do: "hello" });
        }"""
    )
    until(lambda: asked)
    page.wait_for_function("() => window.greeted")
    page.clock.run_for(4_000)
    gate.set()
    page.wait_for_function("() => vqa.state.settings.seed === 2")
    assert asked == [(1, False), (2, True)]


def test_another_model_is_picked_and_answers(visit):
    visitor = visit()
    visitor.page.click("#model")
    visitor.page.click("[role=option]:has-text('Other')")
    expect(visitor.page.locator("#model-name")).to_have_text("Other")  # no longer "Loading Other"
    visitor.ask("Who are you?")
    expect(visitor.answers).to_have_text(["The other model says hello."])


def test_a_load_shows_how_far_it_is_and_is_cancelled_where_it_shows(browser, tmp_path):
    def load(choice, progress):
        while choice.key == "big":
            progress("Downloading …", 0.42)
            time.sleep(0.05)
        return engines[choice.key]

    engines = {"fake": FakeEngine(), "big": FakeEngine()}
    with running(engines, tmp_path, load=load) as server:
        visitor = Visitor(browser, server.address)
        page = visitor.open()
        page.click("#model")
        page.click("[role=option]:has-text('Big')")
        expect(page.locator("#model-share")).to_have_text("42 %")
        page.reload()
        expect(page.locator("#model-share")).to_have_text("42 %")
        page.click("[data-do=cancel-load]")
        expect(page.locator("#model-name")).to_have_text("Fake")
        visitor.context.close()
    assert not visitor.errors


@pytest.mark.parametrize("people", [6])
def test_six_people_at_once_are_answered_in_order(browser, house, engine, people):
    engine.delay = 0.01
    visitors = [Visitor(browser, house.address) for _ in range(people)]
    try:
        for visitor in visitors:
            visitor.open()
        begun = len(engine.asked)
        engine.hold(0)
        for number, visitor in enumerate(visitors):
            visitor.ask(f"I am number {number}", wait=False)
            if number:
                visitor.page.wait_for_selector("text=Waiting in line")
            else:
                until(lambda: len(engine.asked) > begun)
        visitors[2].page.click(".stop-button")
        visitors[2].answered()
        engine.release()
        for number, visitor in enumerate(visitors):
            visitor.answered()
            if number != 2:
                said = f"You asked 'I am number {number}' about no picture."
                expect(visitor.answers).to_have_text([said])
        served = [asked.messages[-1].text for asked, _ in engine.asked[begun:]]
        assert served == [f"I am number {number}" for number in range(people) if number != 2]
    finally:
        for visitor in visitors:
            visitor.context.close()


@contextmanager
def kept_port():
    """A port that nobody else is given: it is bound, though nothing listens at it."""
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("127.0.0.1", 0))
        yield keeper.getsockname()[1]


ASK_AND_NOW = """() => {
  const { view, asking } = window.vqa?.state ?? {};
  if (!view || asking || view.busy) return false;
  if (view.turns.length > 1) return true;
  vqa.$("question").value = "And now?";
  vqa.$("composer").requestSubmit();
  return false;
}"""
"""Gradio may reload the page at any moment after a restart: then it is asked again."""


def test_a_chat_survives_a_restart_of_the_server(browser, tmp_path):
    with kept_port() as port, ExitStack() as stack:
        with running({"fake": FakeEngine()}, tmp_path, port=port) as first:
            visitor = Visitor(browser, first.address)
            stack.callback(visitor.context.close)
            visitor.open()
            visitor.ask("Remember me?")
        stack.enter_context(running({"fake": FakeEngine()}, tmp_path, port=port))
        visitor.page.wait_for_function(ASK_AND_NOW)  # the page that stayed open goes on
        visitor.page.reload()
        expect(visitor.questions).to_have_text(["Remember me?", "And now?"])
        expect(visitor.answers.nth(1)).to_contain_text("You asked")


def test_a_page_that_missed_the_end_of_an_answer_is_let_go_by_stop(visit):
    """As after a restart of the server in the middle of it."""
    visitor = visit()
    visitor.ask("Hello?")
    visitor.page.evaluate(  # made and pressed at once: a view from the server would undo it
        """() => {
          vqa.state.asking = { conversation: vqa.state.view.conversation, begun: true };
          vqa.busy();
          const button = document.querySelector(".stop-button");
          if (button.hidden) throw new Error("There is no button.");
          button.click();
        }"""
    )
    expect(visitor.page.locator(".stop-button")).to_be_hidden()
    visitor.ask("And now?")
    expect(visitor.questions).to_have_text(["Hello?", "And now?"])


def test_another_sites_page_cannot_post(visit, house, monkeypatch):
    brought = []
    monkeypatch.setattr(house.application.desk, "bring", lambda *given: brought.append(given))
    visitor = visit()
    elsewhere = visitor.context.new_page()
    elsewhere.goto("about:blank")  # its origin is "null"
    for mode in ("cors", "no-cors"):
        elsewhere.evaluate(
            """async ([address, mode]) => {
              try {
                await fetch(address + "vqa/pictures?name=x.png",
                            { method: "POST", mode, credentials: "include", body: "data" });
              } catch (refused) {}
            }""",
            [house.address, mode],
        )
    assert brought == []
    answer = visitor.page.evaluate(
        "async () => (await fetch('vqa/pictures', {method: 'POST', body: 'data'})).status"
    )
    assert answer == 200 and len(brought) == 1
