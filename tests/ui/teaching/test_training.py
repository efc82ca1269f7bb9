"""The training service, tested without a page."""

from __future__ import annotations

import errno
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data.read import read_rows
from finetune.evaluation.report import save_watch_answers
from finetune.progress import Progress
from tests.fake_engine import FakeEngine
from tests.ui.harness import ChatHarness, in_english
from tests.waiting import PATIENCE, until
from ui.chat.attention_view import describe_picture, explain_answer
from ui.chat.export import from_json, to_json
from ui.chat.export import to_html as to_html_page
from ui.chat.requests import STORAGE_FAILED
from ui.teaching import before_after, few_rows, rehearsal, training
from ui.teaching.jobs import Job
from ui.teaching.row_actions import teach
from ui.teaching.taught_rows import TaughtRowStore
from ui.teaching.training import TrainingService
from ui.texts import catalogue
from vqa_app.checkpoints.manifest import Base, Manifest, write_manifest
from vqa_app.engine.cache_budget import shared_budget
from vqa_app.engine.kv_cache import KVCache, PrefixCache
from vqa_app.errors import DataError, ModelError, UsageError
from vqa_app.files import UNFINISHED
from vqa_app.pictures.picture import ImageLimits, open_picture
from vqa_app.prompts.conversation import SHORT_STYLE
from vqa_app.serving.engine_pool import EnginePool, ModelChoice


@pytest.fixture
def harness(tmp_path):
    harness = ChatHarness(tmp_path, {"fake": FakeEngine("a cat")})
    harness.taught_rows = TaughtRowStore(tmp_path / "taught", harness.picture_store)
    harness.finish_training = threading.Event()

    def train(config, on_progress, cancel):
        on_progress(Progress("loading", message=f"Reading {config.data[0]}."))
        on_progress(Progress("training", 1, 2, loss=1.5))
        while not harness.finish_training.wait(0.01):
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
        lambda choice, _: engines[choice.key].reopen(), choices, "builtin"
    )
    harness.training = TrainingService(tmp_path, harness.service, harness.taught_rows, train)
    yield harness
    harness.training.close()
    harness.finish_training.set()
    if harness.training.job:
        harness.training.job.thread.join(PATIENCE)
    harness.close()


def teach_row(harness, owner="ann"):
    red = harness.picture_store.add(Image.new("RGB", (20, 20), "red"), "red.png")
    harness.taught_rows.add(owner, "What is it?", "a hat", [red])


def test_run_is_reported_compared_and_offered(harness, tmp_path):
    teach_row(harness)
    harness.finish_training.set()
    harness.training.start("ann", {"sources": ["mine"], "name": "my hats!", "epochs": 48})
    harness.training.job.thread.join(PATIENCE)
    job = harness.training.status("ann")["training"]["job"]
    assert (job["state"], job["name"], job["error"]) == ("done", "my-hats", "")
    assert job["losses"] == [(1, 1.5)]
    assert job["key"] == "run"
    assert job["comparison"]["taught"]["before"] == 0.0
    assert job["comparison"]["taught"]["after"] == 1.0
    assert len(job["comparison"]["world"]["rows"]) == before_after.WORLD_QUESTIONS
    assert len(job["comparison"]["neighbours"]["rows"]) == 2
    assert str(tmp_path) not in str(job), "the page gets no path"
    assert harness.config.max_steps == 3
    assert len(harness.config.data) == 1


def test_both_models_are_asked_questions_next_to_the_taught_ones(harness):
    teach_row(harness)
    red = harness.picture_store.add(Image.new("RGB", (20, 20), "red"), "red.png").digest
    harness.store.add_picture("ann", red, "red.png", {})
    _, view = harness.ask("What is it?", pictures=[red])
    harness.ask("And how large is it?", conversation=view["conversation"])
    harness.ask("Which colour is this?", pictures=[red])
    job = trained(harness)
    other, followup = job["comparison"]["neighbours"]["rows"]
    assert other == {
        "question": "Which colour is this?",
        "pictures": [red],
        "before": "a cat",
        "after": "a hat",
    }, "nobody knows the right answer, so there is no score"
    assert followup["question"] == "And how large is it?"
    assert followup["follows"] == {"question": "What is it?", "answer": "a hat"}
    asked = {conversation.messages[-1].text: conversation.messages
             for conversation, _ in harness.engines_by_key["run"].asked}  # fmt: skip
    assert len(asked["Which colour is this?"]) == 1
    assert [one.text for one in asked["And how large is it?"]] == [
        "What is it?",
        "a hat",
        "And how large is it?",
    ]


def test_idle_chat_models_are_released_before_a_run_and_those_in_use_are_not(harness):
    """They would take the memory for which the run plans its steps, or refuses to start."""
    idle, used = FakeEngine("idle"), FakeEngine("a cat")
    engines = {"builtin": idle, "used": used}
    harness.pool = harness.service.pool = EnginePool(
        lambda choice, _: engines[choice.key].reopen(),
        lambda: [ModelChoice(key, key, "", "", key) for key in engines],
        "builtin",
    )
    closed_at_start = []
    train = harness.training._train
    caches = PrefixCache(shared_budget(torch.device("cpu")))  # of the model in use
    keys = torch.zeros(1, 1, 4, 4)

    def record(*given, **options):
        closed_at_start.append((idle.closed, used.closed, len(caches)))
        return train(*given, **options)

    harness.training._train = record
    teach_row(harness)
    harness.pool.start_loading("builtin")
    assert harness.pool.wait("builtin", PATIENCE) is idle
    with harness.pool.lease("used", PATIENCE):
        kv = KVCache.empty(1)
        kv.update(keys, keys, 0)
        caches.put(np.arange(4), kv)
        harness.training.start("ann", {"sources": ["mine"], "name": "hats", "model": "builtin"})
        until(lambda: closed_at_start)
    assert closed_at_start == [(True, False, 0)]
    harness.training.stop("ann")


def finished_run(harness, tmp_path, owner):
    """Add a finished run of an owner, whose model has the key `run`."""
    run = tmp_path / "runs" / "old"
    run.mkdir(parents=True)
    write_manifest(run, Manifest("lora", Base("builtin", "0"), prompt_hash=""))
    harness.service.runs = tmp_path / "runs"
    harness.service.store.add_possession("run", "old", owner, "Old")
    return run


def test_the_base_model_is_chosen_among_those_that_the_owner_may_use(harness, tmp_path):
    teach_row(harness)
    run = finished_run(harness, tmp_path, "ann")
    status = harness.training.status("ann")["training"]
    assert status["base"] == "builtin"
    assert [in_english(base["label"]) for base in status["bases"]] == ["Built-in", "Old"]
    assert [base["key"] for base in harness.training.status("bob")["training"]["bases"]] == [
        "builtin"
    ]
    harness.finish_training.set()
    harness.training.start("ann", {"sources": ["mine"], "model": "run", "name": "new"})
    harness.training.job.thread.join(PATIENCE)
    assert harness.config.model == str(run)


def test_another_owners_model_is_not_trained(harness, tmp_path):
    teach_row(harness)
    finished_run(harness, tmp_path, "bob")
    with pytest.raises(ModelError, match="not available"):
        harness.training.start("ann", {"sources": ["mine"], "model": "run"})
    assert harness.training.job is None


def test_report_of_a_run_is_its_owners_and_names_no_path(harness, tmp_path):
    run = finished_run(harness, tmp_path, "ann")
    assert harness.training.report("ann", "old") is None, "it has none"
    picture = f'<img src="data:image/png;base64,iVBO/w0KG{"/a/b" * 20}">'
    (run / "report.html").write_text(f"<p>{run}/llava.json, row 2</p>{picture}", "utf-8")
    assert harness.training.report("ann", "old") == f"<p>llava.json, row 2</p>{picture}"
    for owner, name in (("bob", "old"), ("ann", "other"), ("ann", ".."), ("ann", "")):
        assert harness.training.report(owner, name) is None
    old = harness.service.store.possession("run", "old")
    harness.service.store.change_possession("run", replace(old, shared=True))
    assert harness.training.report("bob", "old") is None, "its questions are ann's"


@pytest.mark.slow
def test_rehearsal_is_mixed_in_on_request(harness, tmp_path):
    teach_row(harness)
    harness.finish_training.set()
    harness.training.start("ann", {"sources": ["mine"], "rehearse": True})
    harness.training.job.thread.join(PATIENCE)
    mine, world = harness.rows
    assert len(mine.rows) == 1
    assert len(world.rows) == few_rows.REHEARSAL_ROWS
    assert not world.problems
    assert not list((tmp_path / "rehearsal").iterdir()), "deleted after the run"


def test_one_training_at_a_time_visible_to_its_owner_only(harness):
    teach_row(harness), teach_row(harness, "bob")
    harness.training.start("ann", {"sources": ["mine"]})
    with pytest.raises(UsageError, match="already"):
        harness.training.start("bob", {"sources": ["mine"]})
    status = harness.training.status("bob")["training"]
    assert status["busy"]
    assert status["job"] is None
    with pytest.raises(UsageError):
        harness.training.stop("bob")
    harness.training.stop("ann")
    harness.training.job.thread.join(PATIENCE)
    assert harness.training.status("ann")["training"]["job"]["state"] == "stopped"
    harness.finish_training.set()
    harness.training.start("bob", {"sources": ["mine"], "name": "next"})


def trained(harness, name="hats", owner="ann"):
    """Run a training of the owner to its end."""
    harness.finish_training.set()
    harness.training.start(owner, {"sources": ["mine"], "name": name})
    harness.training.job.thread.join(PATIENCE)
    return harness.training.status(owner)["training"]["job"]


def test_run_name_belongs_to_its_owner(harness, tmp_path):
    teach_row(harness), teach_row(harness, "bob")
    harness.training.start("ann", {"sources": ["mine"], "name": "hats"})
    harness.training.stop("ann")
    harness.training.job.thread.join(PATIENCE)
    (tmp_path / "runs" / "hats").mkdir(parents=True)
    (tmp_path / "runs" / "hats" / "watch.jsonl").write_text('{"question": "hers?"}')
    with pytest.raises(UsageError, match="The run 'hats' already exists"):
        harness.training.start("bob", {"sources": ["mine"], "name": "hats"})
    (tmp_path / "runs" / "foreign").mkdir()
    with pytest.raises(UsageError, match="The run 'foreign' already exists"):
        harness.training.start("bob", {"sources": ["mine"], "name": "foreign"})
    (tmp_path / "runs" / "hats" / "watch.jsonl").unlink()
    (tmp_path / "runs" / "hats").rmdir()  # the fake training creates it again
    assert trained(harness)["state"] == "done", "the owner may resume her own run"
    with pytest.raises(UsageError, match="already"):
        harness.training.start("ann", {"sources": ["mine"], "name": "hats"})


def test_stopped_run_resumes_with_the_same_settings(harness, tmp_path):
    teach_row(harness)
    asked = {"sources": ["mine"], "name": "my hats", "stage": "projector", "epochs": 3, "lr": 1e-4}
    with pytest.raises(UsageError, match="not started"):
        harness.training.resume("ann")
    harness.training.start("ann", asked)
    with pytest.raises(UsageError, match="no training to continue"):
        harness.training.resume("ann")
    harness.training.stop("ann")
    harness.training.job.thread.join(PATIENCE)
    again = TrainingService(tmp_path, harness.service, harness.taught_rows, harness.training._train)
    assert again.status("ann")["training"]["job"]["can_go_on"], "it can be resumed after a restart"
    with pytest.raises(UsageError, match="not started"):
        again.resume("bob")
    (tmp_path / "runs" / "other").mkdir(parents=True)
    (tmp_path / "runs" / "other" / "manifest.json").write_text("{}")
    harness.store.save_settings("ann", {"model": "run"})  # the run resumes with its own base model
    harness.finish_training.set()
    again.resume("ann")
    again.job.thread.join(PATIENCE)
    status = again.status("ann")["training"]["job"]
    assert status["state"] == "done"
    assert status["name"] == "my-hats"
    assert not status["can_go_on"]
    assert (harness.config.stage, harness.config.lr) == ("projector", 1e-4)
    assert harness.config.model == "builtin"
    with pytest.raises(UsageError, match="no training to continue"):
        again.resume("ann")


def test_watch_questions_are_shown_with_pictures_and_answers(harness, tmp_path):
    teach_row(harness)
    trained(harness)
    run = tmp_path / "runs" / "hats"
    seen = open_picture(Image.new("RGB", (30, 20), "blue"))
    for step, answer in ((1, "a cat"), (2, "a hat")):
        save_watch_answers(run, step, [("What is it?", "a hat", answer, [seen])])
    (watched,) = harness.training.status("ann")["training"]["job"]["watch"]
    assert watched["pictures"] == [seen.digest]
    assert [one["answer"] for one in watched["answers"]] == ["a cat", "a hat"]
    assert harness.service.store.picture("ann", seen.digest) is not None
    assert harness.service.store.picture("bob", seen.digest) is None


def test_watched_photo_is_shown_despite_the_size_of_its_copy(harness, tmp_path):
    teach_row(harness)
    trained(harness)
    seen = open_picture(Image.effect_noise((64, 64), 90))
    save_watch_answers(tmp_path / "runs" / "hats", 1, [("What is it?", "", "a hat", [seen])])
    harness.service.picture_store.limits = ImageLimits(max_bytes=100)
    harness.training.status("ann")
    assert harness.service.store.picture("ann", seen.digest) is not None


def test_run_named_like_a_model_is_not_mistaken_for_it(harness):
    teach_row(harness)
    assert trained(harness, "builtin")["key"] == "run"


def test_model_with_an_adapter_is_not_trained_without_it(harness):
    teach_row(harness)
    base = ModelChoice("builtin", "Mine", "", "", "builtin", adapter="/somewhere/adapter")
    harness.pool._choices = lambda: [base]
    with pytest.raises(UsageError, match=r"separate adapter.*\n.*merge"):
        harness.training.start("ann", {"sources": ["mine"]})


@pytest.mark.parametrize(
    ("quantize", "stage", "trained"),
    [(None, "lora", "lora"), ("4bit", "lora", "qlora"), ("8bit", "lora", "qlora")],
)
def test_training_follows_the_options_of_the_chat(harness, quantize, stage, trained):
    teach_row(harness)
    base = ModelChoice("builtin", "Mine", "", "", "builtin", quantize=quantize)
    harness.pool._choices = lambda: [base]
    harness.training.device = "cpu"
    harness.finish_training.set()
    harness.training.start("ann", {"sources": ["mine"], "stage": stage})
    harness.training.job.thread.join(PATIENCE)
    assert (harness.config.stage, harness.config.device) == (trained, "cpu")
    assert harness.training.job.stage == trained


@pytest.mark.parametrize(("quantize", "stage"), [("8bit", "full"), ("4bit", "projector")])
def test_quantized_model_is_not_trained_in_full_precision(harness, quantize, stage):
    teach_row(harness)
    base = ModelChoice("builtin", "Mine", "", "", "builtin", quantize=quantize)
    harness.pool._choices = lambda: [base]
    with pytest.raises(UsageError, match=f"loaded in {quantize[0]} bits") as refusal:
        harness.training.start("ann", {"sources": ["mine"], "stage": stage})
    hint = re.fullmatch(r"Choose (.*)\.", refusal.value.hint)
    assert hint[1] == catalogue("en")["train.lora"], "expected a choice that the page offers"
    assert harness.training.job is None


def test_failed_comparison_does_not_fail_the_run(harness, monkeypatch):
    def broken(*_):
        raise RuntimeError("/secret exploded")

    monkeypatch.setattr("ui.teaching.before_after.compare", broken)
    teach_row(harness)
    job = trained(harness)
    assert (job["state"], job["key"], job["comparison"]) == ("done", "run", None)
    assert in_english(job["messages"][-1]).startswith("Not compared: Something went wrong")


def test_stop_during_the_comparison_skips_it(harness):
    teach_row(harness)
    asked = threading.Event()

    def say(conversation):
        asked.set()
        assert harness.training.job.cancel.wait(PATIENCE)
        return "a cat"

    harness.engines_by_key["builtin"].answer = say
    harness.finish_training.set()
    harness.training.start("ann", {"sources": ["mine"], "name": "hats"})
    assert asked.wait(PATIENCE)
    job = harness.training.status("ann")["training"]["job"]
    assert (job["state"], job["of"], job["seconds_left"]) == ("comparing", 0, None)
    harness.training.stop("ann")
    harness.training.job.thread.join(PATIENCE)
    status = harness.training.status("ann")["training"]
    assert not status["busy"]
    assert (status["job"]["state"], status["job"]["comparison"]) == ("done", None)
    assert "stopped" in in_english(status["job"]["messages"][-1])


def test_late_stop_does_not_skip_the_comparison(harness):
    teach_row(harness)
    train = harness.training._train

    def finished(config, on_progress, cancel):
        result = train(config, on_progress, cancel)
        harness.training.stop("ann")
        return result

    harness.training._train = finished
    job = trained(harness)
    assert job["state"] == "done"
    assert len(job["comparison"]["taught"]["rows"]) == 1


def test_non_finite_losses_are_not_reported(harness):
    job = Job("ann", "x", Path("x"), ModelChoice("a", "A", "", "", "a"), "lora")
    for loss in (2.0, float("nan"), float("inf"), 1.0):
        progress = Progress(
            "training", 1, 4, loss=loss, evaluation={"loss": float("nan"), "vqa_accuracy": 0.5}
        )
        job.record_progress(progress)
    assert [loss for _, loss in job.losses] == [2.0, 1.0]
    assert job.evaluations == [{"step": 1, "vqa_accuracy": 0.5}]


def restarted(harness, tmp_path):
    """Return the training service of a server restarted on the same data."""
    return TrainingService(tmp_path, harness.service, harness.taught_rows)


def test_finished_run_stays_visible_when_others_train(harness, tmp_path):
    teach_row(harness), teach_row(harness, "bob")
    before = trained(harness)
    harness.finish_training.clear()
    harness.training.start("bob", {"sources": ["mine"], "name": "bobs"})
    status = harness.training.status("ann")["training"]
    assert status["job"] == before
    assert status["busy"]
    assert status["others"]
    with pytest.raises(UsageError, match="no training to continue"):
        harness.training.resume("ann")
    assert not harness.training.status("bob")["training"]["others"]
    harness.training.stop("bob")
    harness.training.job.thread.join(PATIENCE)
    later = restarted(harness, tmp_path)
    assert later.status("ann")["training"]["job"] == json.loads(json.dumps(before))
    assert later.status("bob")["training"]["job"]["can_go_on"]


def test_comparison_uses_the_training_data(harness):
    teach_row(harness)
    blue = harness.picture_store.add(Image.new("RGB", (20, 20), "blue"), "blue.png")
    harness.taught_rows.add("carl", "Which one?", "a hat", [blue], short=True)
    harness.training.upload("ann", harness.taught_rows.export("carl"), "theirs.zip")
    harness.finish_training.set()
    harness.training.start("ann", {"sources": ["upload:theirs"], "name": "hats"})
    harness.training.job.thread.join(PATIENCE)
    taught = harness.training.status("ann")["training"]["job"]["comparison"]["taught"]
    assert [(row["question"], row["right"]) for row in taught["rows"]] == [("Which one?", "a hat")]
    assert taught["rows"][0]["pictures"] == [blue.digest]
    assert taught["of"] == 1
    assert harness.store.picture("ann", blue.digest) is not None, "visible to the owner of the run"
    asked = [asked for asked, _ in harness.engines_by_key["run"].asked]
    texts = [one.messages[-1].text for one in asked if one.pictures == (blue,)]
    assert texts[0] == "Which one?" + SHORT_STYLE
    assert all(text.endswith(SHORT_STYLE) for text in texts), "its neighbours in the same style"


def test_dialogue_is_asked_as_it_is_trained(tmp_path):
    turns = ["Who is it?", "That is my old aunt.", "How old?", "Ninety years and a day."]
    said = [
        {"from": who, "value": text} for who, text in zip(["human", "gpt"] * 2, turns, strict=True)
    ]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"id": "a", "conversations": said}] * 30))
    taught = before_after.sample_taught_questions([str(file)])
    assert (len(taught.questions), taught.of) == (before_after.MAX_TAUGHT, 60)
    asked = next(one for one in taught.questions if one.text == "How old?").conversation({})
    assert [message.text for message in asked.messages] == turns[:3]


def test_pictures_of_a_comparison_survive_deletions(harness, tmp_path):
    teach_row(harness)
    harness.picture_store._cached.clear()
    pictures = set()
    for part in trained(harness)["comparison"].values():
        pictures |= {digest for row in part["rows"] for digest in row["pictures"]}
    for row in harness.taught_rows.rows("ann"):
        harness.taught_rows.delete("ann", row.id)
    harness.store.forget_unused_pictures(time.time() + 1)
    assert not any(harness.picture_store.file(digest).exists() for digest in pictures)
    assert len(pictures) > before_after.WORLD_QUESTIONS // 2
    restarted(harness, tmp_path).status("ann")
    for digest in pictures:
        assert harness.store.picture("ann", digest) is not None
        assert harness.picture_store.file(digest).exists()


def test_run_interrupted_by_a_server_stop_is_shown_as_stopped(harness, tmp_path):
    teach_row(harness)
    harness.training.start("ann", {"sources": ["mine"], "name": "hats"})
    later = restarted(harness, tmp_path)
    job = later.status("ann")["training"]["job"]
    assert (job["state"], job["name"], in_english(job["base"])) == ("stopped", "hats", "Built-in")
    assert not later.status("ann")["training"]["busy"]
    assert later.status("bob")["training"]["job"] is None
    harness.training.close(patience=PATIENCE)
    assert harness.training.job.state == "stopped", "closing waits for the current step"


def test_finished_run_is_shown_after_a_restart(harness, tmp_path):
    teach_row(harness)
    before = trained(harness)
    after = restarted(harness, tmp_path).status("ann")["training"]["job"]
    assert json.loads(json.dumps(before)) == after
    (tmp_path / "runs" / "hats" / "manifest.json").unlink()
    assert restarted(harness, tmp_path).status("ann")["training"]["job"] is None


def test_pictures_of_deleted_rows_are_kept_during_training(harness, monkeypatch):
    teach_row(harness)
    (image,) = (harness.taught_rows.folder_of("ann") / "images").iterdir()
    deleted, run = threading.Event(), harness.training._run
    monkeypatch.setattr(harness.training, "_run", lambda *a: (deleted.wait(PATIENCE), run(*a)))
    harness.training.start("ann", {"sources": ["mine"]})
    (row,) = harness.taught_rows.rows("ann")
    harness.taught_rows.delete("ann", row.id)
    assert image.exists(), "kept even before the thread has started"
    deleted.set()
    harness.training.close(patience=PATIENCE)
    assert not image.exists()


@pytest.mark.parametrize(
    "request_",
    [
        {"sources": []},
        {"sources": 5},
        {"sources": [{"key": "mine"}]},
        {"sources": ["shared:../../etc"]},
        {"sources": ["upload:someone-elses"]},
        {"sources": ["mine"], "stage": "evil"},
        {"sources": ["mine"], "epochs": 1e9},
        {"sources": ["mine"], "epochs": True},
        {"sources": ["mine"], "epochs": "3"},
        {"sources": ["mine"], "lr": float("nan")},
        {"sources": ["mine"], "lr": "x"},
    ],
)
def test_forged_requests_are_refused(harness, request_):
    teach_row(harness)
    with pytest.raises(UsageError):
        harness.training.start("ann", request_)
    assert harness.training.job is None


def test_training_without_data_is_refused(harness):
    with pytest.raises(DataError, match="Nothing has been taught"):
        harness.training.start("ann", {"sources": ["mine"]})


def test_check_reports_rows_and_problems(harness):
    teach_row(harness)
    harness.taught_rows.folder_of("ann").joinpath("images").rename(
        harness.taught_rows.folder_of("ann") / "gone"
    )
    found = harness.training.check("ann", {"sources": ["mine"]})["preflight"]
    assert found["problems"]
    assert "png" in in_english(found["problems"][0])
    assert str(harness.taught_rows.folder) not in str(found), "the page gets no path"


def test_check_reports_how_many_pictures_it_opened(harness, monkeypatch):
    monkeypatch.setattr("ui.teaching.training.MAX_OPENED", 1)
    teach_row(harness)
    blue = harness.picture_store.add(Image.new("RGB", (20, 20), "blue"), "blue.png")
    harness.taught_rows.add("ann", "What is it?", "a cap", [blue])
    found = harness.training.check("ann", {"sources": ["mine"]})["preflight"]
    assert (found["pictures"], found["opened"], found["problems"]) == (2, 1, [])


def test_bad_rows_are_skipped_only_on_request(harness):
    teach_row(harness)
    harness.finish_training.set()
    for name, skip in (("whole", False), ("rest", True)):
        harness.training.start("ann", {"sources": ["mine"], "name": name, "skip": skip})
        harness.training.job.thread.join(PATIENCE)
        assert bool(harness.config.max_bad) == skip


def test_zip_file_becomes_a_data_set_of_its_owner(harness):
    teach_row(harness)
    harness.training.upload("ann", harness.taught_rows.export("ann"), "hats & co.zip")
    keys = [source["key"] for source in harness.training.sources("ann")]
    assert keys == ["mine", "upload:hats co"]
    found = harness.training.check("ann", {"sources": ["upload:hats co"]})["preflight"]
    assert found["rows"] >= 1
    assert not found["problems"]
    assert len(harness.training.sources("bob")) == 1


def test_upload_replaces_the_data_set_of_the_same_name(harness):
    upload = harness.training.upload
    assert not upload("ann", b"question,answer\nWhat?,one\n", "mine.csv").replaced
    assert upload("ann", b"question,answer\nWhat?,one\nWhy?,two\n", "mine.csv").replaced
    chosen = {"sources": ["upload:mine"], "name": "hats"}
    assert harness.training.check("ann", chosen)["preflight"]["rows"] == 2
    harness.training.start("ann", chosen)
    with pytest.raises(UsageError, match="current training reads"):
        upload("ann", b"question,answer\nWhat?,one\n", "mine.csv")
    assert not upload("bob", b"question,answer\nWhat?,one\n", "mine.csv").replaced, "bob's own"
    assert not list((harness.training.data_dir / "uploads").rglob(f"{UNFINISHED}*"))
    assert harness.training.check("ann", chosen)["preflight"]["rows"] == 2


def test_the_same_data_set_uploaded_twice_at_once_is_stored(harness, monkeypatch):
    read, both = training.read_upload, threading.Barrier(2)

    def read_together(folder):
        both.wait(PATIENCE)
        return read(folder)

    monkeypatch.setattr(training, "read_upload", read_together)
    data = b"question,answer\nWhat?,one\n"
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(harness.training.upload, "ann", data, "mine.csv") for _ in range(2)]
        assert sorted(job.result(PATIENCE).replaced for job in jobs) == [False, True]
    assert [source["label"] for source in harness.training.sources("ann")[1:]] == ["mine"]
    assert harness.training.check("ann", {"sources": ["upload:mine"]})["preflight"]["rows"] == 1
    uploads = harness.training.data_dir / "uploads"
    assert len(list(uploads.rglob("*.csv"))) == 1, "nothing is left of the replaced one"


def test_data_set_without_usable_rows_is_refused(harness):
    with pytest.raises(DataError, match=r"There is no picture none\.png") as refusal:
        harness.training.upload("ann", b"image,question,answer\nnone.png,What?,x\n", "bad.csv")
    assert "--images" not in str(refusal.value)
    assert [source["key"] for source in harness.training.sources("ann")] == ["mine"]
    assert not list((harness.training.data_dir / "uploads").rglob("*.csv"))


@pytest.mark.slow
def test_drawing_rehearsal_pictures_is_a_phase(harness, monkeypatch):
    monkeypatch.setattr(few_rows, "REHEARSAL_ROWS", 6)
    teach_row(harness)
    phases, settings = [], few_rows.config_overrides

    def watched(*given):
        phases.append(harness.training.status("ann")["training"]["job"]["phase"])
        return settings(*given)

    monkeypatch.setattr("ui.teaching.training.config_overrides", watched)
    harness.finish_training.set()
    for rehearse in (True, False):
        name = f"run-{rehearse}"
        harness.training.start("ann", {"sources": ["mine"], "rehearse": rehearse, "name": name})
        harness.training.job.thread.join(PATIENCE)
    assert phases == ["drawing", "loading"]


def test_failed_training_mentions_no_command_line_option(harness):
    teach_row(harness)

    def fail(*_, **__):
        raise UsageError("Out of memory.", "Use a smaller --micro-batch-size.")

    harness.training._train = fail
    harness.training.start("ann", {"sources": ["mine"]})
    harness.training.job.thread.join(PATIENCE)
    assert harness.training.status("ann")["training"]["job"]["error"] == "Out of memory."


def test_full_disk_at_the_end_of_a_run_is_logged_in_one_line(harness, monkeypatch, caplog):
    teach_row(harness)
    harness.training.start("ann", {"sources": ["mine"]})

    def refuse(_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(harness.training.job_store, "write", refuse)
    harness.training.stop("ann")
    harness.training.job.thread.join(PATIENCE)
    assert harness.training.status("ann")["training"]["job"]["state"] == "stopped"
    (record,) = caplog.records
    assert record.message.startswith(STORAGE_FAILED)
    assert record.exc_info is None


def test_shared_data_set_is_offered_to_all_owners(harness, tmp_path):
    rehearsal.write_rehearsal(tmp_path / "datasets" / "world", 5, 1)
    assert harness.training.check("bob", {"sources": ["shared:world"]})["preflight"]["rows"] == 5


def test_easy_vqa_folder_is_recognised(harness, tmp_path):
    train = tmp_path / "datasets" / "easy" / "data" / "train"
    (train / "images").mkdir(parents=True)
    Image.new("RGB", (64, 64), "teal").save(train / "images" / "0.png")
    rows = [["what color is the image?", "teal", 0], ["is there a hat?", "no", 0]]
    (train / "questions.json").write_text(json.dumps(rows))
    test = train.with_name("test") / "questions.json"
    test.parent.mkdir()
    test.write_text(
        json.dumps([["is there a ring?", "no", 7]])
    )  # test data, which is not trained on
    found = harness.training.check("ann", {"sources": ["shared:easy"]})["preflight"]
    assert (found["rows"], found["pictures"], found["problems"]) == (2, 1, [])


def test_rating_an_answer_adds_a_row_and_can_be_undone(harness):
    red = harness.picture()
    _, view = harness.ask("What?", pictures=[red])
    request = {"conversation": view["conversation"], "turn": view["turns"][0]["id"]}

    def judge(verdict, correction="", owner="ann"):
        wanted = {**request, "do": "judge", "verdict": verdict, "correction": correction}
        return teach(harness.service, harness.taught_rows, owner, wanted)

    update = judge("wrong", "a dog")
    assert [row["answer"] for row in update["taught"]["rows"]] == ["a dog"]
    assert update["taught"]["rows"][0]["said"] == "a cat"
    assert update["view"]["turns"][0]["verdict"] == "wrong"
    assert [row["answer"] for row in judge("right")["taught"]["rows"]] == ["a cat"]
    assert judge("wrong")["taught"]["count"] == 0
    assert judge(None)["view"]["turns"][0]["verdict"] is None
    with pytest.raises(UsageError):
        judge("right", owner="bob")


def test_a_corrected_answer_is_shown_as_corrected(harness):
    _, view = harness.ask("What?", pictures=[harness.picture()])
    chat, turn = view["conversation"], view["turns"][0]["id"]

    def do(action, **more):
        request = {"do": action, "conversation": chat, "turn": turn, **more}
        return teach(harness.service, harness.taught_rows, "ann", request)["taught"]["rows"]

    def correction(owner="ann"):
        return harness.store.path(owner, chat)[0].facts["correction"]

    (row,) = do("judge", verdict="wrong", correction="a <dog>")
    assert correction() == "a <dog>"
    page = to_html_page(harness.store, harness.picture_store, "ann", chat, "en")
    assert "Corrected: a &lt;dog&gt;" in page
    document = to_json(harness.store, harness.picture_store, "ann", chat).encode()
    copy = from_json(harness.store, harness.picture_store, "bob", document)
    assert harness.store.path("bob", copy)[0].facts["correction"] == "a <dog>"
    do("edit", row=row["id"], question="What?", answer="a wolf")
    assert correction() == "a wolf"
    do("delete", row=row["id"])
    assert correction() == ""
    do("judge", verdict="wrong", correction="a fox")
    do("judge", verdict="right")
    assert correction() == ""
    do("judge", verdict="wrong", correction="a fox")
    do("delete-all")
    assert correction() == ""
    harness.store.set_correction("bob", turn, "mine")
    assert correction() == "", "only the owner's"


def test_older_rows_are_returned_on_request(harness, monkeypatch):
    monkeypatch.setattr("ui.teaching.row_actions.SHOWN_ROWS", 2)
    for number in range(5):
        harness.taught_rows.add("ann", "What?", str(number), [])

    def do(action, **more):
        return teach(harness.service, harness.taught_rows, "ann", {"do": action, **more})["taught"]

    assert [row["answer"] for row in do("list")["rows"]] == ["4", "3"]
    assert [row["answer"] for row in do("list", most=4)["rows"]] == ["4", "3", "2", "1"]
    assert len(do("list", most="x")["rows"]) == len(do("list", most=-9)["rows"]) == 2
    oldest = do("list", most=9)["rows"][-1]["id"]
    assert len(do("delete", row=oldest, most=4)["rows"]) == 4, "the list keeps its length"
    harness.taught_rows.import_rows("ann", b"question,answer\nWhat?,x\n", "rows.csv")
    assert do("list")["imported"] == 1
    assert do("undo-import")["count"] == 4
    assert do("delete-all")["count"] == 0


def test_correction_in_a_dialogue_warns_about_missing_context(harness):
    _, view = harness.ask("What is it?", pictures=[harness.picture()])
    chat = view["conversation"]
    _, view = harness.ask("And its colour?", conversation=chat)
    toasts = []
    for turn in view["turns"]:
        judged = {"do": "judge", "conversation": chat, "turn": turn["id"], "verdict": "right"}
        update = teach(harness.service, harness.taught_rows, "ann", judged)
        toasts.append(in_english(update["toast"]))
    assert "without the earlier turns" not in toasts[0]
    assert "without the earlier turns" in toasts[1]


def test_attention_view_has_words_maps_and_image_gain(harness):
    red = harness.picture()
    _, view = harness.ask("What?", pictures=[red])
    chat, turn = view["conversation"], view["turns"][0]["id"]
    update = explain_answer(harness.service, "ann", {"conversation": chat, "turn": turn})
    found = update["looked"]
    assert found["words"] == ["a", "cat"]
    assert found["level"] == "much"
    assert found["pictures"][0]["rows"] == 8
    assert found["pictures"][0]["digest"] == red
    assert found["other_model"] is None
    facts = update["view"]["turns"][0]["facts"]
    assert in_english(facts["model"]) == "Built-in", "the label, not a path"
    assert describe_picture(harness.service, "ann", {"digest": red})["saw"]["model"] == "Built-in"
    assert update["view"]["turns"][0]["facts"]["looked"] == "much"
    _, view = harness.ask("No picture?")
    alone = {"conversation": view["conversation"], "turn": view["turns"][0]["id"]}
    looked = explain_answer(harness.service, "ann", alone)["looked"]
    assert "no picture" in in_english(looked["missing"])
    with pytest.raises(UsageError):
        explain_answer(harness.service, "bob", {"conversation": chat, "turn": turn})
    harness.store.finish_turn(turn, "a", "answering")
    with pytest.raises(UsageError, match="still being written"):
        explain_answer(harness.service, "ann", {"conversation": chat, "turn": turn})


def test_held_out_questions_are_fixed_and_never_trained():
    first, again = rehearsal.held_out_questions(6), rehearsal.held_out_questions(6)
    assert [k.question for k in first] == [k.question for k in again]
    assert all(k.answer for k in first)
