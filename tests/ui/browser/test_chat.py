"""Chatting in a real browser."""

from __future__ import annotations

import base64
import time
from contextlib import contextmanager

import pytest

from tests.fake_engine import FakeEngine
from tests.ui.browser.conftest import Visitor, expect, wait_for
from tests.ui.server import running
from tests.waiting import PATIENCE, until
from ui.chat import conversation_actions
from ui.web import page as page_module


def test_first_visit_to_first_answer(visit):
    visitor = visit()
    expect(visitor.page.locator("#model-name")).to_have_text("Fake")
    visitor.page.locator("#cards .card").first.click()
    visitor.answered()
    expect(visitor.answers).to_contain_text("about one picture")
    expect(visitor.page.locator("article .facts")).to_have_text("75% sure of its words · Fake")
    expect(visitor.page.locator("#list .title")).to_have_count(1)


def test_stop_keeps_the_partial_answer_and_the_chat_continues(visit, engine):
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
    """Hold requests to an address back until the end of the block."""
    held = []
    page.route(address, lambda route: route.continue_() if held is None else held.append(route))
    yield
    waiting, held = held, None
    for route in waiting:
        route.continue_()


def test_stop_works_before_the_server_has_the_question(visit, engine):
    engine.hold(2)
    visitor = visit()
    with held_back(visitor.page, "**/vqa/requests/*"):
        visitor.ask("Tell me a lot", wait=False)
        visitor.page.click(".stop-button")
    visitor.answered()
    assert visitor.page.locator("article .answer").get_attribute("data-state") == "stopped"


def test_question_that_did_not_reach_the_server_is_restored(visit, pictures):
    visitor = visit()
    visitor.attach(pictures[0])
    visitor.context.set_offline(True)
    visitor.ask("Is anybody there?", wait=False)
    expect(visitor.page.locator(".toast.error")).to_contain_text("cannot be reached")
    expect(visitor.page.locator("#question")).to_have_value("Is anybody there?")
    expect(visitor.page.locator("#tray .thumb")).to_have_count(1)
    with visitor.page.expect_event("load"):  # the page reloads itself
        visitor.context.set_offline(False)
    expect(visitor.page.locator("#tray .thumb")).to_have_count(1)
    expect(visitor.page.locator("#question")).to_have_value("Is anybody there?")
    visitor.page.press("#question", "Enter")
    visitor.answered()
    expect(visitor.answers).to_contain_text(["about one picture"])
    expect(visitor.page.locator("#question")).to_have_value("")


def test_question_sent_during_an_upload_waits_for_the_picture(visit, pictures):
    visitor = visit()
    page, note = visitor.page, visitor.page.locator("#tray .note")
    with held_back(page, "**/vqa/pictures?name=*"):
        page.set_input_files("#files", [str(file) for file in pictures])
        page.fill("#question", "Do they")
        page.press("#question", "Enter")
        expect(note).to_be_visible()
        page.locator("#question").press_sequentially(" differ?")
        expect(note).to_have_count(0)  # the user is still typing
        page.press("#question", "Enter")
        expect(note).to_be_visible()
    visitor.answered()
    expect(visitor.answers).to_have_text(["You asked 'Do they differ?' about 2 pictures."])


def test_draft_is_restored_after_an_edit(visit, pictures):
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


def test_pictures_are_numbered_across_turns_and_encoded_early(visit, engine, pictures):
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


def test_picture_pasted_in_compare_is_used_there(visit, pictures):
    visitor = visit()
    visitor.page.click("nav [data-view-of=compare]")
    visitor.page.evaluate(PASTE, base64.b64encode(pictures[0].read_bytes()).decode())
    expect(visitor.page.locator(".compare-picture .thumb")).to_be_visible()
    expect(visitor.page.locator("#tray li")).to_have_count(0)


def test_bad_picture_is_named_and_the_chat_continues(visit, tmp_path):
    bad = tmp_path / "holiday.png"
    bad.write_bytes(b"this is no picture")
    visitor = visit()
    visitor.page.set_input_files("#files", str(bad))
    expect(visitor.page.locator(".toast.error")).to_contain_text("holiday.png")
    expect(visitor.page.locator("#tray li")).to_have_count(0)
    visitor.ask("Still there?")
    expect(visitor.answers).to_contain_text("no picture")


def test_failure_is_shown_and_can_be_retried(visit, engine):
    engine.error = RuntimeError("/secret/path")
    visitor = visit()
    visitor.ask("Does it work?", wait=False)
    failed = visitor.page.locator(".failed")
    expect(failed).to_contain_text("went wrong")
    assert "secret" not in failed.inner_text()
    visitor.page.click(".failed .link")
    expect(visitor.answers).to_contain_text("Does it work?")


@pytest.mark.parametrize("words", [0, 2])
def test_another_model_answers_after_a_failure(visit, engine, words):
    engine.error, engine.error_after = RuntimeError("broken"), words
    visitor = visit()
    page = visitor.page
    visitor.ask("Does it work?", wait=False)
    expect(page.locator(".failed")).to_contain_text("went wrong")
    if words:
        expect(visitor.answers).to_contain_text("You asked")
    page.get_by_role("button", name="Answer with another model").click()
    page.locator(".model-row", has_text="Other").click()
    expect(visitor.answers).to_have_text("The other model says hello.")
    expect(page.locator(".failed")).to_have_count(0)


def test_another_model_answers_what_was_stopped_before_the_first_word(visit, engine):
    engine.hold(0)
    visitor = visit()
    visitor.ask("Does it work?", wait=False)
    assert engine.begun.wait(PATIENCE)
    visitor.page.click(".stop-button")
    visitor.page.get_by_label("Answer with another model").click()
    visitor.page.locator(".model-row", has_text="Other").click()
    expect(visitor.answers).to_have_text("The other model says hello.")


def test_answers_are_rendered_and_cannot_load_or_run_anything(visit, engine):
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


def test_content_security_policy_blocks_injected_scripts(visit):
    """The policy is the second line of defence after cleaning the answers."""
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


def test_settings_reach_the_model_and_persist(visit, engine):
    visitor = visit()
    visitor.page.click("[data-do=settings]")
    visitor.page.fill("#set-system", "Be brief.")
    visitor.page.fill("#set-seed", "7")
    visitor.page.press("#set-seed", "Tab")
    visitor.page.select_option("#set-style", "short")
    wait_for(
        visitor.page,
        "() => { const s = vqa.state.settings;"
        " return s.system === 'Be brief.' && s.seed === 7 && s.style === 'short'; }",
    )
    visitor.ask("What?")
    conversation, options = engine.asked[-1]
    assert conversation.system == "Be brief."
    assert options.seed == 7
    assert conversation.messages[-1].text.endswith("single word or phrase.")
    visitor.page.reload()
    visitor.page.wait_for_selector("article")
    visitor.page.click("[data-do=settings]")
    expect(visitor.page.locator("#set-system")).to_have_value("Be brief.")


def test_quick_changes_are_applied_in_order(visit):
    visitor = visit()
    visitor.page.evaluate(
        """() => {
          window.seeds = [];
          vqa.on("settings", ({ seed }) => seed && seeds.push(seed)); // not in the reply to hello
          for (let i = 1; i <= 20; i++) vqa.send("act", { do: "settings", seed: i });
        }"""
    )
    wait_for(visitor.page, "() => seeds.at(-1) === 20")
    assert visitor.page.evaluate("seeds") == list(range(1, 21))


def test_slow_change_is_not_overtaken(visit, gate, monkeypatch):
    asked, handle_action = [], conversation_actions.handle_action

    def slow(service, owner, request):
        if request["do"] == "settings":
            asked.append((request["seed"], gate.is_set()))
        if request.get("seed") == 1:
            gate.wait(PATIENCE)
        return handle_action(service, owner, request)

    monkeypatch.setattr(page_module, "handle_action", slow)
    visitor = visit()
    visitor.changed, page = True, visitor.page
    page.clock.install()
    page.evaluate(
        """() => {
          for (const seed of [1, 2]) vqa.send("act", { do: "settings", seed });
        }"""
    )
    until(lambda: asked)
    page.clock.run_for(4_000)
    gate.set()
    wait_for(page, "() => vqa.state.settings.seed === 2")
    assert asked == [(1, False), (2, True)]


def test_selected_model_answers(visit):
    visitor = visit()
    visitor.page.click("#model")
    visitor.page.click("[role=option]:has-text('Other')")
    expect(visitor.page.locator("#model-name")).to_have_text("Other")  # no longer "Loading Other"
    visitor.ask("Who are you?")
    expect(visitor.answers).to_have_text(["The other model says hello."])


def test_loading_shows_progress_and_can_be_cancelled(browser, contexts, tmp_path):
    def load(choice, progress):
        while choice.key == "big":
            progress("Downloading …", 0.42)
            time.sleep(0.05)
        return engines[choice.key]

    engines = {"fake": FakeEngine(), "big": FakeEngine()}
    with running(engines, tmp_path, load=load) as server:
        visitor = Visitor(browser, server.address, contexts)
        page = visitor.open()
        page.click("#model")
        page.click("[role=option]:has-text('Big')")
        expect(page.locator("#model-share")).to_have_text("42%")
        page.reload()
        expect(page.locator("#model-share")).to_have_text("42%")
        page.click("[data-do=cancel-load]")
        expect(page.locator("#model-name")).to_have_text("Fake")
        visitor.close()
    assert not visitor.errors


def test_full_chat_offers_a_new_one_with_the_same_pictures(visit, engine, pictures):
    visitor = visit()
    page = visitor.page
    visitor.attach(*pictures)
    visitor.ask("What are they?")
    expect(page.locator("#room")).to_be_hidden()
    engine.dropped, engine.dropped_turns = 2, (0,)
    visitor.ask("And which is larger?")
    expect(page.locator("#room")).to_contain_text("no longer reads 1 earlier question")
    page.fill("#question", "A draft")
    page.get_by_role("button", name="New chat with the same pictures").click()
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#room")).to_be_hidden()
    expect(page.locator("#tray .thumb img")).to_have_count(2)
    expect(page.locator("#question")).to_have_value("A draft")
    expect(page.locator("#question")).to_be_focused()
    engine.dropped, engine.dropped_turns = 0, ()
    page.press("#question", "Enter")
    visitor.answered()
    expect(visitor.answers).to_contain_text("about 2 pictures")


def test_only_what_makes_sense_is_offered_under_an_answer(visit, engine, pictures):
    visitor = visit()
    page = visitor.page
    look, right = page.locator("article .look"), page.get_by_label("This is right")
    visitor.ask("Hello?")
    expect(look).to_have_count(0)
    expect(right).to_have_count(1)
    visitor.attach(pictures[0])
    visitor.ask("What is it?")
    expect(look).to_have_count(1)
    engine.hold(2)
    visitor.ask("A long one?", wait=False)
    expect(page.locator(".answer.running")).to_be_visible()
    page.click(".stop-button")
    visitor.answered()
    expect(page.locator("article").last.locator(".facts")).to_contain_text("stopped")
    expect(right).to_have_count(2)


def test_another_answer_says_that_it_is_the_same(visit):
    visitor = visit()
    visitor.ask("What is it?")
    visitor.page.get_by_label("Answer again").click()
    visitor.page.wait_for_selector("text='2 / 2'")
    visitor.answered()
    expect(visitor.page.locator(".facts")).to_contain_text("the same answer again, though sampled")


def test_corrected_answer_is_shown_as_corrected(visit, pictures):
    visitor = visit()
    page = visitor.page
    visitor.attach(pictures[0])
    visitor.ask("What is it?")
    page.get_by_label("This is wrong").click()
    page.fill(".correction input", "A <b>red</b> area.")
    page.press(".correction input", "Enter")
    expect(page.locator(".right-answer")).to_have_text("Corrected A <b>red</b> area.")
    expect(page.locator(".answer > p").first).to_have_css("text-decoration-line", "line-through")
    page.reload()
    expect(page.locator(".right-answer")).to_contain_text("red")
    page.get_by_label("This is right").click()
    expect(page.locator(".right-answer")).to_have_count(0)


def test_questions_are_suggested_under_the_latest_answer(visit, engine, pictures):
    visitor = visit()
    page = visitor.page
    chips = page.locator("#followups button")
    visitor.ask("Hello?")
    expect(chips).to_have_count(0)
    visitor.attach(pictures[0])
    visitor.ask("What is it?")
    expect(chips).to_have_count(3)
    question = "What else is in the picture?"
    engine.hold(1)
    chips.filter(has_text=question).click()
    expect(page.locator(".answer.running")).to_be_visible()
    expect(chips).to_have_count(0)
    expect(page.locator("#question")).to_be_focused()
    engine.release()
    expect(visitor.questions.last).to_have_text(question)
    expect(chips).to_have_count(3)
    expect(chips.filter(has_text=question)).to_have_count(0)
    page.click(".new")
    expect(chips).to_have_count(0)


def test_chat_has_instructions_of_its_own_and_prompts_are_kept(visit, engine):
    visitor = visit()
    page = visitor.page
    button = page.locator("#instructions")
    button.click()
    box = page.locator("#sheet textarea")
    expect(box).to_be_focused()
    box.fill("Answer in verse.")
    page.get_by_role("button", name="Add to my prompts").click()
    page.locator("#sheet .primary").click()
    expect(button).to_have_text("Answer in verse.")
    visitor.ask("What is it?")
    assert "Answer in verse." in str(engine.asked[-1][0].to_json())
    page.click(".new")
    visitor.ask("And here?")
    assert "verse" not in str(engine.asked[-1][0].to_json())
    expect(button).to_be_hidden()
    page.reload()
    page.click("#list .title:has-text('What is it?')")
    expect(button).to_have_text("Answer in verse.")
    page.click(".new")
    button.click()
    page.locator("#sheet .library .chip", has_text="Answer in verse.").click()
    expect(box).to_have_value("Answer in verse.")
    page.get_by_label("Remove from my prompts: Answer in verse.").click()
    expect(page.locator("#sheet .library .chip", has_text="Answer in verse.")).to_have_count(0)


def test_instructions_are_not_offered_for_a_model_that_cannot_follow_them(visit, engine):
    engine.system_prompts = False
    page = visit().page
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#instructions")).to_be_hidden()
