"""Ratings of answers and taught rows, as the page requests them."""

from __future__ import annotations

from tests.fake_engine import FakeEngine
from tests.ui.harness import ChatHarness
from ui.teaching.row_actions import teach
from ui.teaching.taught_rows import TaughtRowStore


def test_an_answer_is_shown_as_corrected_while_its_row_differs_from_it(tmp_path):
    harness = ChatHarness(tmp_path, {"fake": FakeEngine("A cat.")})
    rows = TaughtRowStore(tmp_path / "taught", harness.picture_store)
    _, view = harness.ask("What is it?", pictures=[harness.picture()])
    chat, turn = view["conversation"], view["turns"][0]["id"]

    def correction() -> str:
        return harness.service.view("ann", chat)["turns"][0]["facts"]["correction"]

    judged = {"do": "judge", "conversation": chat, "turn": turn, "verdict": "wrong"}
    found = teach(harness.service, rows, "ann", {**judged, "correction": "A dog."})
    assert correction() == "A dog."
    edit = {"do": "edit", "row": found["taught"]["rows"][0]["id"], "question": "What is it?"}
    teach(harness.service, rows, "ann", {**edit, "answer": "A fox."})
    assert correction() == "A fox."
    teach(harness.service, rows, "ann", {**edit, "answer": "A cat."})
    assert correction() == ""
    harness.close()
