"""The recipe from data to a finished run, and everything that can go wrong."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune.config import FinetuneConfig
from finetune.progress import Progress
from finetune.training import finish as finish_module
from finetune.training.device import Machine
from finetune.training.held_out import Evaluation
from finetune.training.objective import Objective
from finetune.training.train import RunResult, train
from tests.finetune.runs.test_checkpoint import FOUR_BIT_SHAPE
from tests.finetune.training_data import write_data
from tests.forked import in_child, needs_fork
from tests.tiny import tiny_llava
from vqa_app.checkpoints.manifest import read_manifest
from vqa_app.errors import DataError, ModelError, UsageError
from vqa_app.prompts.conversation import Conversation, Message

ANSWER = Message.assistant("red")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), pictures=8)


@pytest.fixture(scope="module")
def options(tiny_llava_dir: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return {
        "model": str(tiny_llava_dir),
        "data": (str(data),),
        "feature_dir": str(tmp_path_factory.mktemp("features")),
        "eval_fraction": 0.3,
        "eval_every": 4.0,
        "save_every": 4.0,
        "eval_questions": 4,
        "max_steps": 8,
        "batch_size": 4,
        "rank": 4,
        "lr": 2e-2,
        "projector_lr": 2e-2,
        "workers": 1,
        "device": "cpu",
        "precision": "fp32",
    }


def lines(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines(run) if "loss" in line}


@pytest.fixture(scope="module")
def events() -> list[Progress]:
    return []


@pytest.fixture(scope="module")
def result(
    options: dict, events: list[Progress], tmp_path_factory: pytest.TempPathFactory
) -> RunResult:
    run = tmp_path_factory.mktemp("runs") / "mine"
    return train(FinetuneConfig(**options, out=str(run)), events.append)


def test_a_run_loads_as_a_model(result: RunResult) -> None:
    from vqa_app.checkpoints.loader import load_model

    assert result.finished
    assert result.step == 8
    loaded = load_model(str(result.run), device="cpu")
    assert loaded.name == str(result.run)


def test_plain_peft_loads_a_lora_run_with_its_projector(
    result: RunResult, tiny_llava_dir: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    base = AutoModelForImageTextToText.from_pretrained(tiny_llava_dir)
    before = base.model.multi_modal_projector.linear_1.weight.detach().clone()
    merged = PeftModel.from_pretrained(base, result.run).merge_and_unload()
    saved = load_file(result.run / "adapter_model.safetensors")
    by_own_name = {name.rpartition("multi_modal_projector.")[2]: name for name in saved}
    now = merged.model.multi_modal_projector.state_dict()
    assert now
    assert all(torch.equal(tensor, saved[by_own_name[name]]) for name, tensor in now.items())
    assert not torch.equal(now["linear_1.weight"], before)


def test_a_run_describes_itself(result: RunResult, options: dict) -> None:
    manifest = read_manifest(result.run)
    assert manifest is not None
    assert (manifest.kind, manifest.base.name) == ("lora", options["model"])
    assert manifest.config["batch_size"] == 4
    assert manifest.config["alpha"] == 8
    assert manifest.data_hash
    assert manifest.prompt_hash
    command = manifest.command.split()
    assert command[:2] == ["vqa-app", "finetune"]
    assert "--batch-size" in command
    assert "--alpha" not in command
    for name in ("adapter_model.safetensors", "report.html", "README.md", "metrics.jsonl",
                 "golden", "tokenizer.json", "plots"):  # fmt: skip
        assert (result.run / name).exists(), name
    assert not (result.run / "checkpoints").exists()


def test_every_step_and_evaluation_is_in_the_metrics(result: RunResult) -> None:
    assert list(losses(result.run)) == list(range(1, 9))
    evaluated = [line["step"] for line in lines(result.run) if "eval_loss" in line]
    assert evaluated == [0, 4, 8, 8]  # before training; the last line is about the saved weights
    last = lines(result.run)[-1]
    assert last["final"]
    assert last["eval_loss"] == result.evaluation["loss"]
    assert last["eval_questions"] == result.questions == 4
    assert str(result).startswith(f"{result.run}: 8 steps; on 4 held-out questions: accuracy ")
    assert set(result.evaluation) == {"vqa_accuracy", "loss", "image_gain"}
    watched = lines(result.run, "watch.jsonl")
    assert {line["step"] for line in watched} == {0, 4, 8}
    assert watched[0]["question"]


def test_scores_before_training_are_reported(result: RunResult, events: list[Progress]) -> None:
    (message,) = [p.message for p in events if p.message.startswith("Before training")]
    before = next(line for line in lines(result.run) if "eval_loss" in line)
    assert f"loss {before['eval_loss']:.3f}, image gain" in message
    report = (result.run / "report.html").read_text()
    assert "before training" in report


def test_the_first_step_changes_the_weights(options: dict, tmp_path: Path) -> None:
    changed = options | {"max_steps": 1, "eval_every": 0.0}
    run = train(FinetuneConfig(**changed, out=str(tmp_path / "run"))).run
    weights = load_file(run / "adapter_model.safetensors")
    assert all(tensor.any() for name, tensor in weights.items() if "lora_B" in name)


def test_the_learning_rate_rises_from_the_first_step_and_then_falls() -> None:
    from finetune.training.trainer import share_of_peak

    def shares(kind: str, warmup: int) -> list[float]:
        return [share_of_peak(step, 10, warmup, kind) for step in range(10)]

    assert shares("linear", 0) == pytest.approx([1 - n / 10 for n in range(10)])
    assert shares("constant_with_warmup", 2) == pytest.approx([1 / 3, 2 / 3, *[1] * 8])
    cosine = shares("cosine", 3)
    assert cosine[:4] == [0.25, 0.5, 0.75, 1.0]
    assert cosine[3:] == sorted(cosine[3:], reverse=True)
    assert 0 < cosine[-1] < 0.06


def test_the_reported_loss_is_a_weighted_mean_of_all_steps_so_far(
    result: RunResult, events: list[Progress]
) -> None:
    shown = {p.done: p.loss for p in events if p.phase == "training" and p.loss is not None}
    found = losses(result.run)
    assert shown[1] == pytest.approx(found[1])
    assert shown[2] == pytest.approx((0.9 * found[1] + found[2]) / 1.9)


@pytest.mark.slow
def test_watch_questions_are_answered_without_held_out_rows(
    options: dict, data: Path, tmp_path: Path
) -> None:
    watch = f"{data.parent / '0.png'}: Which colour has the picture?"
    changed = options | {"max_steps": 2, "eval_every": 1.0, "eval_fraction": 0.0}
    result = train(FinetuneConfig(**changed, watch=(watch,), out=str(tmp_path / "run")))
    watched = lines(result.run, "watch.jsonl")
    assert [line["step"] for line in watched] == [0, 1, 2]
    assert result.evaluation == {}
    assert "Which colour has the picture?" in (result.run / "report.html").read_text()


def test_a_wrong_watch_question_is_an_error_before_anything_is_read(
    options: dict, tmp_path: Path
) -> None:
    events: list[Progress] = []
    config = FinetuneConfig(**options, watch=("gone.png: What?",), out=str(tmp_path / "run"))
    with pytest.raises(UsageError, match=r"gone\.png"):
        train(config, events.append)
    assert not events


def test_a_watch_question_finds_its_picture_in_the_image_folder(
    data: Path,
) -> None:
    from finetune.training.held_out import watch_questions

    images = (str(data.parent),)
    (found,) = watch_questions(["0.png: Which: this?"], images)
    assert found.conversation.messages[0].text == "Which: this?"
    assert found.conversation.pictures[0].image.size == (20, 16)
    with pytest.raises(UsageError, match=r"gone\.png.*names no existing picture"):
        watch_questions([f"gone.png: {'long ' * 100}: x"], images)
    with pytest.raises(UsageError, match="has no question"):
        watch_questions(["0.png: "], images)


@pytest.mark.parametrize("missing", ["data", "eval_data", "images"])
def test_missing_files_are_an_error_before_the_model_loads(
    options: dict, tmp_path: Path, missing: str
) -> None:
    events: list[Progress] = []
    chosen = FinetuneConfig(**options | {missing: (str(tmp_path / "gone"),)})
    run = tmp_path / "run"
    with pytest.raises(DataError, match=r"There is no (file|folder)"):
        train(chosen.replace(out=str(run)), on_progress=events.append)
    assert events == []
    assert not run.exists()


def test_training_rows_fill_up_the_golden_prompts_if_few_are_held_out() -> None:
    from finetune.data.read import Row, Turn
    from finetune.training.finish import golden_conversations

    def rows(*questions: str) -> list[Row]:
        answer = Turn("assistant", ("it",))
        return [Row(q, "f", 1, (Turn("user", (q,)), answer), (("it",),)) for q in questions]

    def chosen(*parts: list[Row]) -> list[str]:
        return [found.messages[0].text for found in golden_conversations(*parts)]

    assert chosen(rows("a"), rows(*"bcdefg")) == ["a", "b", "d", "f"]
    assert chosen(rows(*"abcdefgh"), rows(*"xyz")) == ["a", "c", "e", "g"]
    assert chosen([], rows("a")) == ["a"]


def test_the_loss_falls(result: RunResult) -> None:
    found = losses(result.run)
    assert found[8] < 0.9 * found[1]


def test_progress_reports_phases_and_numbers(result: RunResult, events: list[Progress]) -> None:
    phases = list(dict.fromkeys(progress.phase for progress in events))
    assert phases == ["loading", "checking", "encoding", "training", "evaluating", "saving", "done"]
    training = [p for p in events if p.phase == "training" and p.loss is not None]
    assert training[-1].done == training[-1].of == 8
    assert training[-1].samples_per_second
    assert training[-1].evaluation
    messages = " ".join(progress.message for progress in events)
    assert "image encoder 0" in messages
    assert "Memory: about" in messages
    assert re.search(r"Memory: at most [\d.]+ [MG]B was in use", messages)
    assert "Encoder outputs are kept" in messages


def test_a_finished_run_is_not_overwritten(result: RunResult, options: dict) -> None:
    with pytest.raises(UsageError, match="finished run"):
        train(FinetuneConfig(**options, out=str(result.run), resume="never"))


def test_a_folder_with_other_files_is_refused_unchanged(options: dict, tmp_path: Path) -> None:
    mine = tmp_path / "thesis" / "plots" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UsageError, match="holds other files, such as plots"):
        train(FinetuneConfig(**options, out=str(tmp_path / "thesis")))
    assert mine.read_text() == "mine"
    with pytest.raises(UsageError, match="Cannot write"):
        train(FinetuneConfig(**options, out=str(mine)))


@pytest.mark.slow
def test_the_recipe_trains_the_projector_first_and_starts_from_it(
    options: dict, tmp_path: Path
) -> None:
    changed = options | {"max_steps": 2, "eval_every": 0.0, "recipe": "llava", "eval_fraction": 0.0}
    result = train(FinetuneConfig(**changed, out=str(tmp_path / "run")))
    first, second = (read_manifest(p) for p in (tmp_path / "run" / "projector", result.run))
    assert first is not None
    assert second is not None
    assert (first.kind, second.kind) == ("projector", "lora")
    # Stage 2 starts from the weights of stage 1, not from the base's.
    fresh = train(FinetuneConfig(**{**changed, "recipe": None}, out=str(tmp_path / "fresh")))
    assert losses(result.run)[1] < losses(fresh.run)[1]


@pytest.mark.slow
def test_a_finished_projector_is_reused_only_for_the_data_it_was_trained_on(
    options: dict, data: Path, tmp_path: Path
) -> None:
    def created() -> str:
        manifest = read_manifest(run / "projector")
        assert manifest is not None
        return manifest.created + manifest.data_hash

    class _Stopped(Exception):
        pass

    def stopping(progress: Progress) -> None:
        if progress.message.startswith("Stage 2"):
            raise _Stopped

    own = tmp_path / "own.json"
    own.write_text(data.read_text(encoding="utf-8"))
    run = tmp_path / "run"
    changed = options | {"max_steps": 2, "eval_every": 0.0, "recipe": "llava", "eval_fraction": 0.0,
                         "data": (str(own),), "images": (str(data.parent),)}  # fmt: skip
    config = FinetuneConfig(**changed, out=str(run))
    with pytest.raises(_Stopped):
        train(config, stopping)
    first = created()

    def again(**other: Any) -> None:
        with pytest.raises(_Stopped):
            train(config.replace(**other), stopping)

    unused = {"rank": 8, "dropout": 0.1, "max_length": 60, "patience": 3, "metric": "loss"}
    again(**unused, projector_lr=1e-3)
    assert created() == first
    with pytest.raises(
        UsageError, match="projector holds a finished run with another lr"
    ) as refused:
        again(lr=1e-4)
    assert "--resume never" in refused.value.hint
    own.write_text(data.read_text(encoding="utf-8").replace("Which colour", "What colour"))
    with pytest.raises(UsageError, match="finished run with another data"):
        train(config)
    assert created() == first
    good = own.read_text()
    own.write_text("[{}]")
    with pytest.raises(DataError):  # data that cannot be read does not cost the finished projector
        train(config.replace(resume="never"))
    assert created() == first
    own.write_text(good)
    again(resume="never")
    assert created() != first


def test_a_projector_folder_with_other_files_is_refused_unchanged(
    options: dict, tmp_path: Path
) -> None:
    mine = tmp_path / "run" / "projector" / "plots" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UsageError, match="holds other files, such as plots"):
        train(FinetuneConfig(**options, recipe="llava", out=str(tmp_path / "run")))
    assert mine.read_text() == "mine"


@pytest.mark.slow
def test_an_adapter_keeps_its_lora_options_in_further_training(
    result: RunResult, options: dict, tmp_path: Path
) -> None:
    further = {k: v for k, v in options.items() if k != "rank"}
    further |= {"model": str(result.run), "max_steps": 2, "eval_every": 0.0, "eval_fraction": 0.0}
    with pytest.raises(UsageError, match="whose rank is 4, not 8"):
        train(FinetuneConfig(**further, rank=8, out=str(tmp_path / "other")))
    events: list[Progress] = []
    with pytest.raises(ModelError, match="so stage projector cannot train it"):
        train(FinetuneConfig(**further, stage="projector", out=str(tmp_path / "p")), events.append)
    assert "checking" not in {progress.phase for progress in events}
    manifest = read_manifest(train(FinetuneConfig(**further, out=str(tmp_path / "on"))).run)
    assert manifest is not None
    assert manifest.config["rank"] == 4


@pytest.mark.slow
def test_a_run_based_on_a_run_warns_that_held_out_rows_may_be_known(
    result: RunResult, options: dict, tmp_path: Path
) -> None:
    first = read_manifest(result.run)
    assert first is not None
    assert first.earlier == []
    further = options | {"model": str(result.run), "max_steps": 1, "eval_every": 0.0, "rank": None}
    for seed, warned in ((0, False), (1, True)):  # with the same seed the same rows are held out
        events: list[Progress] = []
        config = FinetuneConfig(**further, seed=seed, out=str(tmp_path / str(seed)))
        run = train(config, events.append).run
        assert any("may include those held out now" in p.message for p in events) == warned
        manifest = read_manifest(run)
        assert manifest is not None
        assert manifest.earlier == [
            {"name": str(result.run), "data": list(options["data"]), "data_hash": first.data_hash}
        ]
        card = (run / "README.md").read_text()
        assert ("whose pictures it was not trained on" in card) == (not warned)
        assert ("may include rows held out here" in card) == warned


@pytest.mark.parametrize("stage", ["projector", "full"])
def test_runs_of_the_other_stages_load(options: dict, tmp_path: Path, stage: str) -> None:
    from vqa_app.checkpoints.loader import load_model

    changed = options | {"stage": stage, "max_steps": 2, "eval_every": 0.0}
    result = train(FinetuneConfig(**changed, out=str(tmp_path / stage)))
    manifest = read_manifest(result.run)
    assert manifest is not None
    assert manifest.kind == stage
    assert load_model(str(result.run), device="cpu").model is not None


@pytest.mark.slow
def test_gradient_checkpointing_does_not_change_the_loss(options: dict, tmp_path: Path) -> None:
    changed = options | {"max_steps": 2, "eval_fraction": 0.0}
    runs = [
        train(
            FinetuneConfig(**changed, gradient_checkpointing=value, out=str(tmp_path / str(value)))
        ).run
        for value in (True, False)
    ]
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-6)


@pytest.mark.slow
def test_qlora_trains_on_a_4_bit_base(options: dict, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = tiny_llava(tmp_path / "base", **FOUR_BIT_SHAPE)
    changed = options | {"stage": "qlora", "max_steps": 4, "eval_fraction": 0.0, "model": str(base)}
    run = train(FinetuneConfig(**changed, out=str(tmp_path / "run"))).run
    manifest = read_manifest(run)
    assert manifest is not None
    assert manifest.kind == "qlora"
    assert losses(run)[4] < losses(run)[1]
    assert (run / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_bad_rows_stop_the_run_unless_allowed(options: dict, data: Path, tmp_path: Path) -> None:
    rows = json.loads(data.read_text(encoding="utf-8"))
    rows[3]["conversations"][1]["value"] = " "
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(rows))
    changed = options | {"data": (str(bad),), "images": (str(data.parent),), "max_steps": 1,
                         "eval_fraction": 0.0}  # fmt: skip
    with pytest.raises(DataError, match=r"1 problem in the data.*row 4: Answer 1 is empty"):
        train(FinetuneConfig(**changed, out=str(tmp_path / "run")))
    train(FinetuneConfig(**changed, max_bad=1, out=str(tmp_path / "run")))
    assert [line["row"] for line in lines(tmp_path / "run", "skipped.jsonl")] == [4]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_rows(
    options: dict, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = Objective.forward, itertools.count(1)

    def overflow(self: Objective, **inputs: Any) -> dict[str, torch.Tensor]:
        loss = forward(self, **inputs)["loss"]
        return {"loss": loss * float("inf") if next(calls) > 3 else loss}

    monkeypatch.setattr(Objective, "forward", overflow)
    changed = options | {"eval_fraction": 0.0}
    run = tmp_path / "run"
    with pytest.raises(DataError, match=r"not finite at step \d") as stopped:
        train(FinetuneConfig(**{**changed, "save_every": 1.0}, out=str(run)))
    assert f"{data}, row " in stopped.value.problem
    assert "last good checkpoint" in stopped.value.hint
    assert all(torch.isfinite(torch.tensor(loss)) for loss in losses(run).values())


def test_out_of_memory_says_what_to_change(
    options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest batch comes first, so it happens at step 1."""

    def forward(self: Objective, **_: Any) -> Any:
        return torch.empty(1 << 60)

    monkeypatch.setattr(Objective, "forward", forward)
    with pytest.raises(ModelError, match="Out of memory at step 1, with 4 rows") as stopped:
        train(FinetuneConfig(**options, out=str(tmp_path / "run")))
    assert "--micro-batch-size" in stopped.value.hint


@pytest.mark.slow
def test_early_stopping_and_the_best_checkpoint(
    options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two evaluations without a better one end the run; the weights of the best one are saved."""
    evaluate, weights = Evaluation.at_step, {}

    def scripted(self: Evaluation, step: int) -> dict[str, float]:
        trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        weights[step] = {name: value.detach().clone() for name, value in trained.items()}
        # The untrained model is the best, but no candidate.
        return evaluate(self, step) | {"loss": {0: 3.0, 1: 5.0, 2: 4.0, 3: 4.5, 4: 4.0}[step]}

    monkeypatch.setattr(Evaluation, "at_step", scripted)
    changed = options | {"metric": "loss", "patience": 2, "eval_every": 1.0, "max_steps": 20}
    result = train(FinetuneConfig(**changed, out=str(tmp_path / "run")))
    assert result.finished
    assert result.step == 4
    kept = load_file(result.run / "adapter_model.safetensors")
    for name, value in weights[2].items():
        saved = kept[name.replace(".modules_to_save.default", "").replace(".default", "")]
        assert torch.equal(saved, value)
        assert "lora_B" not in name or not torch.equal(saved, weights[4][name])


@pytest.mark.slow
def test_cancelling_saves_and_the_same_call_resumes(options: dict, tmp_path: Path) -> None:
    config = FinetuneConfig(**{**options, "eval_every": 0.0}, out=str(tmp_path / "run"))
    cancel = threading.Event()

    def on_progress(progress: Progress) -> None:
        if progress.phase == "training" and progress.done == 3:
            cancel.set()

    stopped = train(config, on_progress, cancel)
    assert not stopped.finished
    assert stopped.step in (3, 4)
    done = train(config)
    assert done.finished
    assert list(losses(done.run)) == list(range(1, 9))


def test_cancelling_during_the_data_check_ends_at_once(options: dict, tmp_path: Path) -> None:
    cancel = threading.Event()
    phases = []

    def on_progress(progress: Progress) -> None:
        phases.append(progress.phase)
        if progress.phase == "checking":
            cancel.set()

    result = train(FinetuneConfig(**options, out=str(tmp_path / "run")), on_progress, cancel)
    assert not result.finished
    assert "training" not in phases


@pytest.mark.slow
def test_another_config_does_not_resume_an_interrupted_run(options: dict, tmp_path: Path) -> None:
    config = FinetuneConfig(**{**options, "eval_every": 0.0}, out=str(tmp_path / "run"))
    cancel = threading.Event()
    train(config, lambda progress: progress.phase == "training" and cancel.set(), cancel)
    events: list[Progress] = []
    with pytest.raises(UsageError, match="another lr"):
        train(config.replace(lr=1e-4, feature_dir=str(tmp_path / "features")), events.append)
    assert "encoding" not in {progress.phase for progress in events}
    with pytest.raises(UsageError, match="no checkpoint"):
        train(config.replace(out=str(tmp_path / "other"), resume="must"))
    with pytest.raises(UsageError, match="another eval_questions, metric"):
        train(
            config.replace(metric="loss", eval_questions=2)
        )  # the best evaluation so far depends on them
    picture = Path(options["data"][0]).parent / "0.png"
    unlearned = {"watch": (f"{picture}: Is it red?",), "patience": 9, "eval_every": 4.0}
    done = train(config.replace(**unlearned, max_bad=3, max_length=60))
    assert done.finished
    assert list(losses(done.run)) == list(range(1, 9))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["a file", "a full disk"])
def test_a_run_trains_without_a_feature_store_that_cannot_be_written(
    options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    from finetune.training.feature_store import FeatureStore

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "features"
    if where == "a file":
        folder.touch()
    else:
        monkeypatch.setattr(FeatureStore, "append", full)
    changed = options | {"max_steps": 1, "eval_fraction": 0.0, "feature_dir": str(folder)}
    events: list[Progress] = []
    assert train(FinetuneConfig(**changed, out=str(tmp_path / "run")), events.append).finished
    assert any("Encoder outputs are not kept" in progress.message for progress in events)


@pytest.mark.slow
def test_training_memory_is_released_before_the_run_is_loaded_again(
    options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, verify, held = finish_module.finish, finish_module.verify, {}

    def finishing(stage: Any, trainer: Any, evaluation: Any) -> Any:
        held["optimizer"] = weakref.ref(trainer.optimizer.optimizer)
        held["parameters"] = list(trainer.objective.parameters())
        return finish(stage, trainer, evaluation)

    def verifying(run: Path, **where: str) -> Any:
        held["where"] = where
        assert held["optimizer"]() is None
        assert all(p.grad is None and p.numel() == 0 for p in held["parameters"])
        return verify(run, **where)

    monkeypatch.setattr(finish_module, "finish", finishing)
    monkeypatch.setattr(finish_module, "verify", verifying)
    train(FinetuneConfig(**options | {"max_steps": 2}, out=str(tmp_path / "run")))
    assert held["where"] == {"device": "cpu"}


@pytest.mark.slow
def test_a_run_that_does_not_fit_again_is_finished_and_not_verified(
    options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []

    def on_progress(progress: Progress) -> None:
        messages.append(progress.message)
        if progress.phase == "saving":
            monkeypatch.setattr("vqa_app.checkpoints.memory.free_memory", lambda _: 5)

    changed = options | {"max_steps": 2}
    run = train(FinetuneConfig(**changed, out=str(tmp_path / "run")), on_progress).run
    (message,) = [message for message in messages if message.startswith("Not verified")]
    assert message.endswith(
        f"cpu has too little free memory to load {run} again. "
        f"Verify it later with `vqa-app verify {run}`."
    )
    assert (run / "report.html").exists()
    assert not (run / "checkpoints").exists()
    monkeypatch.undo()
    assert finish_module.verify(run).ok


def test_gathered_weights_are_compared_with_the_saved_ones(
    result: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqa_app.checkpoints.loader import load_model

    run = shutil.copytree(result.run, tmp_path / "run")
    shutil.rmtree(run / "golden")
    gathered = load_model(str(run), device="cpu", merge=False).model.state_dict()
    names = {name for name in gathered if "lora_" in name or "modules_to_save" in name}
    stage = SimpleNamespace(run=run, machine=Machine(torch.device("cpu"), autocast=None))
    monkeypatch.setattr(
        finish_module, "_golden", lambda _: [Conversation.ask("Which?").then(ANSWER)]
    )
    finish_module._check_gathered(stage, names, gathered)
    assert finish_module.verify(run).ok
    changed = sorted(names)[-1]
    with pytest.raises(ModelError, match=f"differ from the trained ones: {re.escape(changed)}"):
        finish_module._check_gathered(stage, names, gathered | {changed: gathered[changed] + 1})


@pytest.mark.slow
def test_a_run_killed_during_its_report_is_finished_by_the_same_command(
    options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.evaluation import report

    def killed(*_: Any) -> None:
        raise SystemError("killed")

    config = FinetuneConfig(**options, out=str(tmp_path / "run"))
    with monkeypatch.context() as patch:
        patch.setattr(report, "write_report", killed)
        with pytest.raises(SystemError):
            train(config)
    assert (tmp_path / "run" / "manifest.json").exists()
    done = train(config)
    assert done.finished
    assert (done.run / "report.html").exists()
    assert not (done.run / "checkpoints").exists()
    with pytest.raises(UsageError, match="finished run"):
        train(config)


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("most", [200, 2_000])
def test_a_full_disk_is_reported_and_the_run_resumes_afterwards(
    options: dict, tmp_path: Path, most: int
) -> None:
    """At the start, and in the metrics of a step."""
    changed = options | {"save_every": 0.0, "eval_fraction": 0.0, "max_steps": 20}
    config = FinetuneConfig(**changed, out=str(tmp_path / "run"))

    def limited() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        with pytest.raises(ModelError, match=f"Cannot write (to )?{config.out}") as stopped:
            train(config)
        assert "File too large" in stopped.value.problem
        assert "run the same command again" in stopped.value.hint

    assert in_child(limited) == 0
    done = train(config)
    assert done.finished
    assert list(losses(done.run)) == list(range(1, 21))


@pytest.mark.slow
def test_a_disk_that_is_full_at_the_end_loses_nothing(
    options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.evaluation import report

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    config = FinetuneConfig(**options, out=str(tmp_path / "run"))
    with monkeypatch.context() as patch:
        patch.setattr(report, "write_report", full)
        with pytest.raises(ModelError, match="No space") as stopped:
            train(config)
    last = tmp_path / "run" / "checkpoints" / "step-8"
    assert stopped.value.hint.endswith(f"it continues from {last}.")
    events: list[Progress] = []
    assert train(config, events.append).finished
    assert not any(progress.loss for progress in events if progress.phase == "training")


def test_errors_that_are_not_about_the_runs_disk_pass_unchanged(tmp_path: Path) -> None:
    from finetune.training.resume import disk_errors

    with pytest.raises(ConnectionError), disk_errors(tmp_path / "run"):
        raise ConnectionError("gone")
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path / "run"):
        (tmp_path / "other").read_text()
    with pytest.raises(ModelError, match=r"Cannot write .*run/metrics: No such"):  # noqa: SIM117
        with disk_errors(tmp_path / "run"):
            (tmp_path / "run" / "metrics").open("a")


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint(
    options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.runs import checkpoint

    run = tmp_path / "run"
    save = checkpoint.save_weights
    calls = []

    def full(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        save(*args, **kwargs)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_weights", full)
    config = FinetuneConfig(**{**options, "save_every": 2.0, "eval_fraction": 0.0}, out=str(run))
    with pytest.raises(ModelError, match="step 4: No space left") as stopped:
        train(config)
    assert "step-2" in stopped.value.hint
    assert list(checkpoint.checkpoint_steps(run)) == [2]
    assert os.listdir(run / "checkpoints") == ["step-2"]
    assert train(config).finished
