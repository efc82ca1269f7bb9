"""Training from the page without a page: what may be chosen, one at a time, what is told."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from finetune.data.read import read_rows
from finetune.evaluation.report import save_watch_answers
from finetune.progress import Progress
from tests.fake_engine import FakeEngine
from tests.ui.harness import ChatHarness
from tests.waiting import PATIENCE
from ui.chat.attention_view import describe_picture, explain_answer
from ui.teaching import before_after, few_rows, rehearsal
from ui.teaching.jobs import Job
from ui.teaching.row_actions import teach
from ui.teaching.taught_rows import Teaching
from ui.teaching.training import TrainingService
from vqa_app.errors import DataError, UsageError
from vqa_app.pictures.picture import ImageLimits, open_picture
from vqa_app.prompts.conversation import SHORT_STYLE
from vqa_app.serving.engine_pool import EnginePool, ModelChoice


@pytest.fixture
def school(tmp_path):
    harness = ChatHarness(tmp_path, {"fake": FakeEngine("a cat")})
    harness.teaching = Teaching(tmp_path / "taught", harness.picture_store)
    harness.go_on = threading.Event()

    def train(config, on_progress, cancel):
        on_progress(Progress("loading", message=f"Reading {config.data[0]}."))
        on_progress(Progress("training", 1, 2, loss=1.5))
        while not harness.go_on.wait(0.01):
            if cancel.is_set():
                return SimpleNamespace(finished=False)
        Path(config.out).mkdir(parents=True)
        (Path(config.out) / "manifest.json").write_text("{}")
        harness.config = config
        harness.rows = [read_rows(path) for path in config.data]
        return SimpleNamespace(finished=True)

    def choices():
        yield ModelChoice("builtin", "Built-in", "", "", "builtin")
        for run in (tmp_path / "runs").glob("*/manifest.json"):
            yield ModelChoice("run", run.parent.name, "", "", str(run.parent))

    engines = {"builtin": FakeEngine("a cat"), "run": FakeEngine("a hat")}
    harness.engines_by_key = engines
    harness.pool = harness.service.pool = EnginePool(
        lambda choice, _: engines[choice.key], choices, "builtin"
    )
    harness.training = TrainingService(tmp_path, harness.service, harness.teaching, train)
    yield harness
    harness.training.close()
    harness.go_on.set()
    if harness.training.job:
        harness.training.job.thread.join(PATIENCE)
    harness.close()


def lesson(school, owner="ann"):
    red = school.picture_store.add(Image.new("RGB", (20, 20), "red"), "red.png")
    school.teaching.add(owner, "What is it?", "a hat", [red])


def test_a_run_is_watched_compared_and_offered(school, tmp_path):
    lesson(school)
    school.go_on.set()
    school.training.start("ann", {"sources": ["mine"], "name": "my hats!", "epochs": 48})
    school.training.job.thread.join(PATIENCE)
    job = school.training.status("ann")["training"]["job"]
    assert (job["state"], job["name"], job["error"]) == ("done", "my-hats", "")
    assert job["losses"] == [(1, 1.5)]
    assert job["key"] == "run"
    assert job["comparison"]["taught"]["before"] == 0.0
    assert job["comparison"]["taught"]["after"] == 1.0
    assert len(job["comparison"]["world"]["rows"]) == before_after.WORLD
    assert str(tmp_path) not in str(job), "the page is told no path"
    assert school.config.max_steps == 3
    assert len(school.config.data) == 1


def test_old_knowledge_is_mixed_in_when_wanted(school, tmp_path):
    lesson(school)
    school.go_on.set()
    school.training.start("ann", {"sources": ["mine"], "rehearse": True})
    school.training.job.thread.join(PATIENCE)
    mine, world = school.rows
    assert len(mine.rows) == 1
    assert len(world.rows) == few_rows.REHEARSED
    assert not world.problems
    assert not list((tmp_path / "rehearsal").iterdir()), "what was drawn for a run goes with it"


def test_one_training_at_a_time_and_only_its_owner_sees_and_stops_it(school):
    lesson(school), lesson(school, "bob")
    school.training.start("ann", {"sources": ["mine"]})
    with pytest.raises(UsageError, match="already"):
        school.training.start("bob", {"sources": ["mine"]})
    status = school.training.status("bob")["training"]
    assert status["busy"]
    assert status["job"] is None
    with pytest.raises(UsageError):
        school.training.stop("bob")
    school.training.stop("ann")
    school.training.job.thread.join(PATIENCE)
    assert school.training.status("ann")["training"]["job"]["state"] == "stopped"
    school.go_on.set()
    school.training.start("bob", {"sources": ["mine"], "name": "next"})


def trained(school, name="hats", owner="ann"):
    """A run of the owner's, watched to its end."""
    school.go_on.set()
    school.training.start(owner, {"sources": ["mine"], "name": name})
    school.training.job.thread.join(PATIENCE)
    return school.training.status(owner)["training"]["job"]


def test_a_runs_name_stays_its_owners(school, tmp_path):
    lesson(school), lesson(school, "bob")
    school.training.start("ann", {"sources": ["mine"], "name": "hats"})
    school.training.stop("ann")
    school.training.job.thread.join(PATIENCE)
    (tmp_path / "runs" / "hats").mkdir(parents=True)
    (tmp_path / "runs" / "hats" / "watch.jsonl").write_text('{"question": "hers?"}')
    with pytest.raises(UsageError, match="There is a run 'hats' already"):
        school.training.start("bob", {"sources": ["mine"], "name": "hats"})
    (tmp_path / "runs" / "somebodys").mkdir()
    with pytest.raises(UsageError, match="There is a run 'somebodys' already"):
        school.training.start("bob", {"sources": ["mine"], "name": "somebodys"})
    (tmp_path / "runs" / "hats" / "watch.jsonl").unlink()
    (tmp_path / "runs" / "hats").rmdir()  # the stand-in for `finetune` makes it anew
    assert trained(school)["state"] == "done", "she goes on with her own"
    with pytest.raises(UsageError, match="already"):
        school.training.start("ann", {"sources": ["mine"], "name": "hats"})


def test_a_stopped_run_goes_on_with_the_same_choices(school, tmp_path):
    lesson(school)
    asked = {"sources": ["mine"], "name": "my hats", "stage": "projector", "epochs": 3, "lr": 1e-4}
    with pytest.raises(UsageError, match="not started"):
        school.training.go_on("ann")
    school.training.start("ann", asked)
    with pytest.raises(UsageError, match="nothing to go on"):
        school.training.go_on("ann")
    school.training.stop("ann")
    school.training.job.thread.join(PATIENCE)
    again = TrainingService(tmp_path, school.service, school.teaching, school.training._train)
    assert again.status("ann")["training"]["job"]["can_go_on"], "after a restart, too"
    with pytest.raises(UsageError, match="not started"):
        again.go_on("bob")
    (tmp_path / "runs" / "other").mkdir(parents=True)
    (tmp_path / "runs" / "other" / "manifest.json").write_text("{}")
    school.store.save_settings("ann", {"model": "run"})  # it goes on with the one it began with
    school.go_on.set()
    again.go_on("ann")
    again.job.thread.join(PATIENCE)
    status = again.status("ann")["training"]["job"]
    assert status["state"] == "done"
    assert status["name"] == "my-hats"
    assert not status["can_go_on"]
    assert (school.config.stage, school.config.lr) == ("projector", 1e-4)
    assert school.config.model == "builtin"
    with pytest.raises(UsageError, match="nothing to go on"):
        again.go_on("ann")


def test_what_is_watched_is_shown_with_its_picture_and_all_answers(school, tmp_path):
    lesson(school)
    trained(school)
    run = tmp_path / "runs" / "hats"
    seen = open_picture(Image.new("RGB", (30, 20), "blue"))
    for step, answer in ((1, "a cat"), (2, "a hat")):
        save_watch_answers(run, step, [("What is it?", "a hat", answer, [seen])])
    (watched,) = school.training.status("ann")["training"]["job"]["watch"]
    assert watched["pictures"] == [seen.digest]
    assert [one["answer"] for one in watched["answers"]] == ["a cat", "a hat"]
    assert school.service.store.picture("ann", seen.digest) is not None
    assert school.service.store.picture("bob", seen.digest) is None


def test_a_watched_photo_is_shown_however_large_its_copy_is(school, tmp_path):
    lesson(school)
    trained(school)
    seen = open_picture(Image.effect_noise((64, 64), 90))
    save_watch_answers(tmp_path / "runs" / "hats", 1, [("What is it?", "", "a hat", [seen])])
    school.service.picture_store.limits = ImageLimits(max_bytes=100)
    school.training.status("ann")
    assert school.service.store.picture("ann", seen.digest) is not None


def test_a_run_named_like_a_model_is_not_taken_for_it(school):
    lesson(school)
    assert trained(school, "builtin")["key"] == "run"


def test_a_model_with_an_adapter_is_not_trained_without_it(school):
    lesson(school)
    base = ModelChoice("builtin", "Mine", "", "", "builtin", adapter="/somewhere/adapter")
    school.pool._choices = lambda: [base]
    with pytest.raises(UsageError, match=r"separate adapter.*\n.*merge"):
        school.training.start("ann", {"sources": ["mine"]})


@pytest.mark.parametrize(
    ("quantize", "stage", "trained"),
    [(None, "lora", "lora"), ("4bit", "lora", "qlora"), ("8bit", "qlora", "qlora")],
)
def test_a_training_honours_how_the_chat_was_started(school, quantize, stage, trained):
    lesson(school)
    base = ModelChoice("builtin", "Mine", "", "", "builtin", quantize=quantize)
    school.pool._choices = lambda: [base]
    school.training.device = "cpu"
    school.go_on.set()
    school.training.start("ann", {"sources": ["mine"], "stage": stage})
    school.training.job.thread.join(PATIENCE)
    assert (school.config.stage, school.config.device) == (trained, "cpu")
    assert school.training.job.stage == trained


@pytest.mark.parametrize(
    ("quantize", "stage"), [("8bit", "lora"), ("8bit", "full"), ("4bit", "projector")]
)
def test_a_quantised_model_is_not_trained_in_its_full_size(school, quantize, stage):
    lesson(school)
    base = ModelChoice("builtin", "Mine", "", "", "builtin", quantize=quantize)
    school.pool._choices = lambda: [base]
    with pytest.raises(UsageError, match=rf"loaded in {quantize[0]} bits, and {stage}"):
        school.training.start("ann", {"sources": ["mine"], "stage": stage})
    assert school.training.job is None


def test_a_run_is_good_without_its_comparison(school, monkeypatch):
    def broken(*_):
        raise RuntimeError("/secret exploded")

    monkeypatch.setattr("ui.teaching.before_after.compare", broken)
    lesson(school)
    job = trained(school)
    assert (job["state"], job["key"], job["comparison"]) == ("done", "run", None)
    assert job["messages"][-1].startswith("Not compared: Something went wrong")


def test_stop_while_comparing_skips_the_comparison(school):
    lesson(school)
    asked = threading.Event()

    def say(conversation):
        asked.set()
        assert school.training.job.cancel.wait(PATIENCE)
        return "a cat"

    school.engines_by_key["builtin"].answer = say
    school.go_on.set()
    school.training.start("ann", {"sources": ["mine"], "name": "hats"})
    assert asked.wait(PATIENCE)
    job = school.training.status("ann")["training"]["job"]
    assert (job["state"], job["of"], job["seconds_left"]) == ("comparing", 0, None)
    school.training.stop("ann")
    school.training.job.thread.join(PATIENCE)
    status = school.training.status("ann")["training"]
    assert not status["busy"]
    assert (status["job"]["state"], status["job"]["comparison"]) == ("done", None)
    assert "stopped" in status["job"]["messages"][-1]


def test_stop_at_the_very_end_of_a_training_is_no_stop_of_its_comparison(school):
    lesson(school)
    train = school.training._train

    def finished(config, on_progress, cancel):
        result = train(config, on_progress, cancel)
        school.training.stop("ann")
        return result

    school.training._train = finished
    job = trained(school)
    assert job["state"] == "done"
    assert len(job["comparison"]["taught"]["rows"]) == 1


def test_losses_that_are_no_numbers_are_not_told(school):
    job = Job("ann", "x", Path("x"), ModelChoice("a", "A", "", "", "a"), "lora")
    for loss in (2.0, float("nan"), float("inf"), 1.0):
        progress = Progress(
            "training", 1, 4, loss=loss, evaluation={"loss": float("nan"), "vqa_accuracy": 0.5}
        )
        job.note(progress)
    assert [loss for _, loss in job.losses] == [2.0, 1.0]
    assert job.evaluations == [{"step": 1, "vqa_accuracy": 0.5}]


def again(school, tmp_path):
    """What a server that starts on the same data knows."""
    return TrainingService(tmp_path, school.service, school.teaching)


def test_a_finished_training_stays_with_its_owner_when_others_train(school, tmp_path):
    lesson(school), lesson(school, "bob")
    before = trained(school)
    school.go_on.clear()
    school.training.start("bob", {"sources": ["mine"], "name": "bobs"})
    status = school.training.status("ann")["training"]
    assert status["job"] == before
    assert status["busy"]
    assert status["others"]
    with pytest.raises(UsageError, match="nothing to go on"):
        school.training.go_on("ann")
    assert not school.training.status("bob")["training"]["others"]
    school.training.stop("bob")
    school.training.job.thread.join(PATIENCE)
    later = again(school, tmp_path)
    assert later.status("ann")["training"]["job"] == json.loads(json.dumps(before))
    assert later.status("bob")["training"]["job"]["can_go_on"]


def test_before_and_after_are_about_what_was_trained_on(school):
    lesson(school)
    blue = school.picture_store.add(Image.new("RGB", (20, 20), "blue"), "blue.png")
    school.teaching.add("carl", "Which one?", "a hat", [blue], short=True)
    school.training.upload("ann", school.teaching.export("carl"), "theirs.zip")
    school.go_on.set()
    school.training.start("ann", {"sources": ["upload:theirs"], "name": "hats"})
    school.training.job.thread.join(PATIENCE)
    taught = school.training.status("ann")["training"]["job"]["comparison"]["taught"]
    assert [(row["question"], row["right"]) for row in taught["rows"]] == [("Which one?", "a hat")]
    assert taught["rows"][0]["pictures"] == [blue.digest]
    assert taught["of"] == 1
    assert school.store.picture("ann", blue.digest) is not None, "shown to who trained on it"
    asked = [asked for asked, _ in school.engines_by_key["run"].asked]
    assert [one.messages[-1].text for one in asked if one.pictures == (blue,)] == [
        "Which one?" + SHORT_STYLE
    ]


def test_a_dialogue_is_asked_as_it_is_trained(tmp_path):
    turns = ["Who is it?", "That is my old aunt.", "How old?", "Ninety years and a day."]
    said = [
        {"from": who, "value": text} for who, text in zip(["human", "gpt"] * 2, turns, strict=True)
    ]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"id": "a", "conversations": said}] * 30))
    taught = before_after.taught_in([str(file)])
    assert (len(taught.questions), taught.of) == (before_after.TAUGHT, 60)
    asked = next(one for one in taught.questions if one.text == "How old?").conversation({})
    assert [message.text for message in asked.messages] == turns[:3]


def test_pictures_of_a_comparison_stay_whatever_else_is_deleted(school, tmp_path):
    lesson(school)
    school.picture_store._recent.clear()
    pictures = set()
    for part in trained(school)["comparison"].values():
        pictures |= {digest for row in part["rows"] for digest in row["pictures"]}
    for row in school.teaching.rows("ann"):
        school.teaching.delete("ann", row.id)
    gone = school.store.sweep(time.time() + 1)
    for digest in gone:
        school.picture_store.remove(digest)
    assert set(gone) >= pictures
    assert len(pictures) > before_after.WORLD // 2
    again(school, tmp_path).status("ann")
    for digest in pictures:
        assert school.store.picture("ann", digest) is not None
        assert school.picture_store.file(digest).exists()


def test_a_training_that_the_servers_end_cut_is_shown_as_stopped(school, tmp_path):
    lesson(school)
    school.training.start("ann", {"sources": ["mine"], "name": "hats"})
    later = again(school, tmp_path)
    job = later.status("ann")["training"]["job"]
    assert (job["state"], job["name"], job["base"]) == ("stopped", "hats", "Built-in")
    assert not later.status("ann")["training"]["busy"]
    assert later.status("bob")["training"]["job"] is None
    school.training.close(patience=PATIENCE)
    assert school.training.job.state == "stopped", "the end of the server waits for the step"


def test_a_finished_training_is_still_shown_after_a_restart(school, tmp_path):
    lesson(school)
    before = trained(school)
    after = again(school, tmp_path).status("ann")["training"]["job"]
    assert json.loads(json.dumps(before)) == after
    (tmp_path / "runs" / "hats" / "manifest.json").unlink()
    assert again(school, tmp_path).status("ann")["training"]["job"] is None


def test_pictures_of_deleted_rows_stay_while_a_training_reads_them(school, monkeypatch):
    lesson(school)
    (image,) = (school.teaching.home("ann") / "images").iterdir()
    deleted, run = threading.Event(), school.training._run
    monkeypatch.setattr(school.training, "_run", lambda *a: (deleted.wait(PATIENCE), run(*a)))
    school.training.start("ann", {"sources": ["mine"]})
    (row,) = school.teaching.rows("ann")
    school.teaching.delete("ann", row.id)
    assert image.exists(), "before its thread has begun, too"
    deleted.set()
    school.training.close(patience=PATIENCE)
    assert not image.exists()


@pytest.mark.parametrize(
    "request_",
    [
        {"sources": []},
        {"sources": ["shared:../../etc"]},
        {"sources": ["upload:someone-elses"]},
        {"sources": ["mine"], "stage": "evil"},
        {"sources": ["mine"], "epochs": 1e9},
        {"sources": ["mine"], "lr": "x"},
    ],
)
def test_forged_requests_are_refused(school, request_):
    lesson(school)
    with pytest.raises(UsageError):
        school.training.start("ann", request_)
    assert school.training.job is None


def test_nothing_to_train_on(school):
    with pytest.raises(DataError, match="Nothing has been taught"):
        school.training.start("ann", {"sources": ["mine"]})


def test_the_preflight_names_rows_and_problems(school):
    lesson(school)
    school.teaching.home("ann").joinpath("images").rename(school.teaching.home("ann") / "gone")
    found = school.training.check("ann", {"sources": ["mine"]})["preflight"]
    assert found["problems"]
    assert "png" in found["problems"][0]
    assert str(school.teaching.folder) not in str(found), "the page is told no path"


def test_the_preflight_says_how_many_pictures_it_opened(school, monkeypatch):
    monkeypatch.setattr("ui.teaching.training.OPENED", 1)
    lesson(school)
    blue = school.picture_store.add(Image.new("RGB", (20, 20), "blue"), "blue.png")
    school.teaching.add("ann", "What is it?", "a cap", [blue])
    found = school.training.check("ann", {"sources": ["mine"]})["preflight"]
    assert (found["pictures"], found["opened"], found["problems"]) == (2, 1, [])


def test_bad_rows_are_left_out_only_when_wanted(school):
    lesson(school)
    school.go_on.set()
    for name, skip in (("whole", False), ("rest", True)):
        school.training.start("ann", {"sources": ["mine"], "name": name, "skip": skip})
        school.training.job.thread.join(PATIENCE)
        assert bool(school.config.max_bad) == skip


def test_a_zip_becomes_a_data_set_of_its_owner(school):
    lesson(school)
    school.training.upload("ann", school.teaching.export("ann"), "hats & co.zip")
    keys = [source["key"] for source in school.training.sources("ann")]
    assert keys == ["mine", "upload:hats co"]
    found = school.training.check("ann", {"sources": ["upload:hats co"]})["preflight"]
    assert found["rows"] >= 1
    assert not found["problems"]
    assert len(school.training.sources("bob")) == 1


def test_a_data_set_takes_the_place_of_one_of_the_same_name(school):
    upload = school.training.upload
    assert not upload("ann", b"question,answer\nWhat?,one\n", "mine.csv")
    assert upload("ann", b"question,answer\nWhat?,one\nWhy?,two\n", "mine.csv")
    chosen = {"sources": ["upload:mine"], "name": "hats"}
    assert school.training.check("ann", chosen)["preflight"]["rows"] == 2
    school.training.start("ann", chosen)
    with pytest.raises(UsageError, match="training that runs reads"):
        upload("ann", b"question,answer\nWhat?,one\n", "mine.csv")
    assert not upload("bob", b"question,answer\nWhat?,one\n", "mine.csv"), "his own"
    assert school.training.check("ann", chosen)["preflight"]["rows"] == 2


def test_a_data_set_without_a_row_that_can_be_used_is_refused(school):
    with pytest.raises(DataError, match="There is no picture none.png") as refusal:
        school.training.upload("ann", b"image,question,answer\nnone.png,What?,x\n", "bad.csv")
    assert "--images" not in str(refusal.value)
    assert [source["key"] for source in school.training.sources("ann")] == ["mine"]
    assert not list((school.training.data_dir / "uploads").rglob("*.csv"))


def test_drawing_its_world_is_a_phase_of_its_own(school, monkeypatch):
    lesson(school)
    phases, settings = [], few_rows.settings_for

    def watched(*given):
        phases.append(school.training.status("ann")["training"]["job"]["phase"])
        return settings(*given)

    monkeypatch.setattr("ui.teaching.training.settings_for", watched)
    school.go_on.set()
    for rehearse in (True, False):
        name = f"run-{rehearse}"
        school.training.start("ann", {"sources": ["mine"], "rehearse": rehearse, "name": name})
        school.training.job.thread.join(PATIENCE)
    assert phases == ["drawing", "loading"]


def test_a_failed_training_names_no_option_of_the_shell(school):
    lesson(school)

    def fail(*_, **__):
        raise UsageError("Out of memory.", "Use a smaller --micro-batch-size.")

    school.training._train = fail
    school.training.start("ann", {"sources": ["mine"]})
    school.training.job.thread.join(PATIENCE)
    assert school.training.status("ann")["training"]["job"]["error"] == "Out of memory."


def test_a_data_set_in_the_data_dir_is_offered_to_all(school, tmp_path):
    rehearsal.write_rehearsal(tmp_path / "datasets" / "world", 5, 1)
    assert school.training.check("bob", {"sources": ["shared:world"]})["preflight"]["rows"] == 5


def test_an_easy_vqa_folder_is_understood(school, tmp_path):
    train = tmp_path / "datasets" / "easy" / "data" / "train"
    (train / "images").mkdir(parents=True)
    Image.new("RGB", (64, 64), "teal").save(train / "images" / "0.png")
    rows = [["what color is the image?", "teal", 0], ["is there a hat?", "no", 0]]
    (train / "questions.json").write_text(json.dumps(rows))
    test = train.with_name("test") / "questions.json"
    test.parent.mkdir()
    test.write_text(json.dumps([["is there a ring?", "no", 7]]))  # not to be trained on
    found = school.training.check("ann", {"sources": ["shared:easy"]})["preflight"]
    assert (found["rows"], found["pictures"], found["problems"]) == (2, 1, [])


def test_judging_an_answer_keeps_a_row_and_can_be_taken_back(school):
    red = school.picture()
    _, view = school.ask("What?", pictures=[red])
    request = {"conversation": view["conversation"], "turn": view["turns"][0]["id"]}

    def judge(verdict, correction="", owner="ann"):
        wanted = {**request, "do": "judge", "verdict": verdict, "correction": correction}
        return teach(school.service, school.teaching, owner, wanted)

    update = judge("wrong", "a dog")
    assert [row["answer"] for row in update["taught"]["rows"]] == ["a dog"]
    assert update["taught"]["rows"][0]["said"] == "a cat"
    assert update["view"]["turns"][0]["verdict"] == "wrong"
    assert [row["answer"] for row in judge("right")["taught"]["rows"]] == ["a cat"]
    assert judge("wrong")["taught"]["count"] == 0
    assert judge(None)["view"]["turns"][0]["verdict"] is None
    with pytest.raises(UsageError):
        judge("right", owner="bob")


def test_older_rows_are_shown_when_they_are_asked_for(school, monkeypatch):
    monkeypatch.setattr("ui.teaching.row_actions.SHOWN_ROWS", 2)
    for number in range(5):
        school.teaching.add("ann", "What?", str(number), [])

    def do(deed, **more):
        return teach(school.service, school.teaching, "ann", {"do": deed, **more})["taught"]

    assert [row["answer"] for row in do("list")["rows"]] == ["4", "3"]
    assert [row["answer"] for row in do("list", most=4)["rows"]] == ["4", "3", "2", "1"]
    assert len(do("list", most="x")["rows"]) == len(do("list", most=-9)["rows"]) == 2
    oldest = do("list", most=9)["rows"][-1]["id"]
    assert len(do("delete", row=oldest, most=4)["rows"]) == 4, "as many as before"
    school.teaching.take_in("ann", b"question,answer\nWhat?,x\n", "rows.csv")
    assert do("list")["imported"] == 1
    assert do("undo-import")["count"] == 4
    assert do("delete-all")["count"] == 0


def test_a_correction_in_a_dialogue_says_that_it_stands_alone(school):
    _, view = school.ask("What is it?", pictures=[school.picture()])
    chat = view["conversation"]
    _, view = school.ask("And its colour?", conversation=chat)
    toasts = []
    for turn in view["turns"]:
        judged = {"do": "judge", "conversation": chat, "turn": turn["id"], "verdict": "right"}
        toasts.append(teach(school.service, school.teaching, "ann", judged)["toast"])
    assert "without what was said before" not in toasts[0]
    assert "without what was said before" in toasts[1]


def test_looking_tells_words_maps_and_what_the_picture_did(school):
    red = school.picture()
    _, view = school.ask("What?", pictures=[red])
    chat, turn = view["conversation"], view["turns"][0]["id"]
    update = explain_answer(school.service, "ann", {"conversation": chat, "turn": turn})
    found = update["looked"]
    assert found["words"] == ["a", "cat"]
    assert found["level"] == "well"
    assert found["pictures"][0]["rows"] == 8
    assert found["pictures"][0]["digest"] == red
    assert found["model"] == found["answered_by"] == "Built-in", "the name in the list, no path"
    assert describe_picture(school.service, "ann", {"digest": red})["saw"]["model"] == "Built-in"
    assert update["view"]["turns"][0]["facts"]["looked"] == "well"
    _, view = school.ask("No picture?")
    alone = {"conversation": view["conversation"], "turn": view["turns"][0]["id"]}
    assert "no picture" in explain_answer(school.service, "ann", alone)["looked"]["missing"]
    with pytest.raises(UsageError):
        explain_answer(school.service, "bob", {"conversation": chat, "turn": turn})
    school.store.finish_turn(turn, "a", "answering")
    with pytest.raises(UsageError, match="still being written"):
        explain_answer(school.service, "ann", {"conversation": chat, "turn": turn})


def test_held_out_questions_are_always_the_same_and_no_training_rows():
    first, again = rehearsal.held_out(6), rehearsal.held_out(6)
    assert [k.question for k in first] == [k.question for k in again]
    assert all(k.answer for k in first)
