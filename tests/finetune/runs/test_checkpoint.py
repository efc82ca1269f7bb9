"""A run directory is complete at every moment and loads with and without this package."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from tests.forked import in_child, needs_fork
from tests.tiny import picture
from vqa_app.errors import ModelError
from vqa_app.prompts.conversation import Conversation, Message

FOUR_BIT_SHAPE = {"hidden_size": 64, "head_dim": 32, "intermediate_size": 128}
"""An LLM whose rows fill at least one block of 4-bit weights."""


def golden() -> list[Conversation]:
    asked = Conversation.ask("What is in the picture?", [picture(1), picture(2)])
    return [
        Conversation.ask("How many stars?", [picture(0)]).then(Message.assistant("three stars")),
        asked.then(Message.assistant("A cat.")),
        Conversation.ask("Who are you?").then(Message.assistant("a model")),
    ]


def trained(directory: Path, stage: Any) -> tuple[Any, Any, Any]:
    """Return the tiny model as after training: the stage's weights have other random values."""
    import torch

    from finetune.training.freezing import freeze, trainable
    from vqa_app.checkpoints.loader import load_model
    from vqa_app.checkpoints.manifest import Base, Manifest
    from vqa_app.prompts.prompt import prompt_hash

    base = load_model(str(directory), quantize="4bit" if stage == "qlora" else None, trainable=True)
    torch.manual_seed(1)
    model = freeze(base.model, stage, rank=4, alpha=8, dropout=0.0).model
    with torch.no_grad():
        for _, parameter in trainable(model):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    manifest = Manifest(
        stage, Base(base.name, base.fingerprint), prompt_hash(base.processor), command="vqa-app"
    )
    return model, base.processor, manifest


def saved(base: Path, stage: str, folder: Path) -> Path:
    """Write a run of a trained model."""
    from finetune.runs.checkpoint import save_run

    model, processor, manifest = trained(base, stage)
    save_run(folder / stage, model, processor, manifest, golden())
    return folder / stage


@pytest.fixture(scope="module", params=["projector", "lora", "full"])
def run(
    request: pytest.FixtureRequest,
    tiny_llava_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    return saved(tiny_llava_dir, request.param, tmp_path_factory.mktemp("runs"))


def test_a_run_gives_the_logits_that_were_saved(run: Path) -> None:
    from finetune.runs.verify import require, verify

    found = verify(run)
    require(found)
    assert found.comparison.prompts == 3
    assert found.comparison.same_tokens == 1.0
    assert found.comparison.worst_difference < 1e-3


def test_a_run_on_a_4_bit_base_is_verified_on_a_4_bit_base(
    tmp_path: Path, one_thread: None
) -> None:
    from finetune.runs.checkpoint import save_run
    from finetune.runs.verify import require, verify
    from tests.tiny import tiny_llava
    from vqa_app.checkpoints.loader import load_model

    base = tiny_llava(tmp_path / "base", **FOUR_BIT_SHAPE)
    model, processor, manifest = trained(base, "qlora")
    save_run(tmp_path / "run", model, processor, manifest, golden())
    require(verify(tmp_path / "run"))
    unquantised = verify(tmp_path / "run", load_model(str(tmp_path / "run")))
    assert (
        unquantised.comparison.worst_difference > 0.05
    )  # so the precision of the base does matter


def test_different_weights_fail_verification(run: Path) -> None:
    import torch

    from finetune.runs.verify import require, verify
    from vqa_app.checkpoints.loader import load_model

    loaded = load_model(str(run))
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight[7] += 0.1
    found = verify(run, loaded)
    assert not found.ok
    with pytest.raises(ModelError, match="differs from what was saved"):
        require(found)


def test_an_adapter_names_its_base_by_hub_id(tiny_llava_dir: Path, tmp_path: Path) -> None:
    """Not by the local folder that it was loaded from."""
    import json
    from dataclasses import replace

    from finetune.runs.checkpoint import save_run
    from vqa_app.checkpoints.manifest import Base

    model, processor, manifest = trained(tiny_llava_dir, "lora")
    for name, revision, expected in (
        ("owner/name", "c0ffee", "owner/name"),
        ("builtin", None, None),
    ):
        named = replace(manifest, base=Base(name, "f", revision))
        save_run(tmp_path / name, model, processor, named)
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["revision"]) == (expected, revision)
        assert str(tiny_llava_dir) not in (tmp_path / name / "adapter_config.json").read_text()


def test_golden_prompts_are_read_back_with_their_pictures(run: Path) -> None:
    from finetune.runs.golden import read_golden

    assert [g.conversation for g in read_golden(run)] == golden()


def test_golden_pictures_may_exceed_the_limits_of_uploads(
    tiny_llava_dir: Path, tmp_path: Path
) -> None:
    from finetune.runs.golden import read_golden, record_golden
    from vqa_app.checkpoints.loader import load_model
    from vqa_app.pictures.picture import ImageLimits

    photo = picture(size=(2700, 2700))  # as a JPEG it would be small enough
    asked = Conversation.ask("What is it?", [photo]).then(Message.assistant("A cat."))
    loaded = load_model(str(tiny_llava_dir))
    (folder := tmp_path / "golden").mkdir()
    record_golden(loaded.model, loaded.processor, [asked], folder)
    assert (folder / f"{photo.digest}.png").stat().st_size > ImageLimits().max_bytes
    assert [prompt.conversation for prompt in read_golden(tmp_path)] == [asked]


def test_plain_peft_loads_a_lora_run(tiny_llava_dir: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    from finetune.runs.checkpoint import save_run
    from vqa_app.prompts.prompt import encode

    model, processor, manifest = trained(tiny_llava_dir, "lora")
    save_run(tmp_path / "run", model, processor, manifest)
    base = AutoModelForImageTextToText.from_pretrained(tiny_llava_dir)
    inputs = encode(processor, golden()[0], answer_next=False).inputs
    with torch.no_grad():
        untrained = base(**inputs).logits
        again = PeftModel.from_pretrained(base, tmp_path / "run").eval()(**inputs).logits
        expected = model.eval()(**inputs).logits
    assert torch.allclose(again, expected, atol=1e-5)
    assert not torch.allclose(untrained, expected, atol=1e-2)


@pytest.mark.parametrize("stage", ["projector", "lora", "full"])
def test_weights_are_loaded_back_into_a_training_model(
    stage: str, tiny_llava_dir: Path, tmp_path: Path
) -> None:
    import torch

    from finetune.runs.checkpoint import load_weights, save_weights
    from finetune.training.freezing import trainable

    model, *_ = trained(tiny_llava_dir, stage)
    save_weights(model, stage, tmp_path)
    expected = {name: parameter.clone() for name, parameter in trainable(model)}
    with torch.no_grad():
        for _, parameter in trainable(model):
            parameter.zero_()
    load_weights(model, stage, tmp_path)
    assert all(torch.equal(expected[name], parameter) for name, parameter in trainable(model))


def test_weights_with_missing_tensors_are_refused(tiny_llava_dir: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from finetune.runs.checkpoint import PROJECTOR_FILE, load_weights, save_weights

    model, *_ = trained(tiny_llava_dir, "projector")
    save_weights(model, "projector", tmp_path)
    tensors = load_file(tmp_path / PROJECTOR_FILE)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, tmp_path / PROJECTOR_FILE)
    with pytest.raises(ModelError, match="does not hold the weights that this stage trains"):
        load_weights(model, "projector", tmp_path)


def full_disk(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make a function fail as on a full disk."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(name, fail)


@pytest.mark.parametrize(
    "where", ["finetune.runs.checkpoint.write_manifest", "vqa_app.files.flush"]
)
def test_a_full_disk_keeps_the_last_run(
    where: str, tiny_llava_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from finetune.runs.checkpoint import save_run
    from finetune.runs.verify import verify
    from finetune.training.freezing import trainable

    model, processor, manifest = trained(tiny_llava_dir, "projector")
    run = tmp_path / "run"
    save_run(run, model, processor, manifest, golden())
    before = {path.name: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with torch.no_grad():
        for _, parameter in trainable(model):
            parameter.zero_()
    with monkeypatch.context() as patch:
        full_disk(patch, where)
        with pytest.raises(ModelError, match="No space left"):
            save_run(run, model, processor, manifest, golden())
    assert {path.name: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert verify(run).ok
    save_run(run, model, processor, manifest, golden())  # when there is room again
    assert verify(run).ok


def test_a_model_that_gives_nan_fails_verification(run: Path) -> None:
    import torch

    from finetune.runs.verify import verify
    from vqa_app.checkpoints.loader import load_model

    loaded = load_model(str(run), dtype="float32")
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight.fill_(float("nan"))
    assert "differ by up to nan" in verify(run, loaded).problem


@needs_fork
def test_a_file_that_is_too_large_is_recognised_from_every_library(tmp_path: Path) -> None:
    """Each library raises an error of its own."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from vqa_app.files import write_error_reason

    path, tensor = tmp_path / "file", torch.zeros(100_000)
    writers = (
        lambda: save_file({"a": tensor}, path),
        lambda: torch.save(tensor, path),
        lambda: path.write_bytes(bytes(400_000)),
    )

    def work() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        for write in writers:
            with pytest.raises((OSError, RuntimeError, SafetensorError)) as failed:
                write()
            assert write_error_reason(failed.value), repr(failed.value)

    assert in_child(work) == 0
    assert write_error_reason(RuntimeError("something else")) is None


def test_a_failed_write_keeps_the_old_directory_and_leaves_no_files(tmp_path: Path) -> None:
    from vqa_app.files import atomic_directory

    target = tmp_path / "step-5"
    with atomic_directory(target) as folder:
        (folder / "a").write_text("old")

    def fail() -> None:
        with atomic_directory(target) as folder:
            (folder / "a").write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fail()
    assert (target / "a").read_text() == "old"
    with atomic_directory(target) as folder:
        (folder / "a").write_text("new")
    assert (target / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["step-5"]


@needs_fork
def test_files_are_flushed_through_handles_that_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows answers `fsync` of a read-only handle with "Bad file descriptor"."""
    import fcntl
    import os
    import stat

    from vqa_app.files import add_to_directory, atomic_directory

    flushed = []

    def windows_fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):  # never opened on Windows
            return
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flushed.append(handle)

    monkeypatch.setattr(os, "fsync", windows_fsync)
    with atomic_directory(tmp_path / "step-1") as folder:
        (folder / "weights").write_text("1")
    with add_to_directory(tmp_path / "run", last="manifest") as folder:
        (folder / "manifest").write_text("1")
    assert len(flushed) == 2


def test_unfinished_folders_are_swept_and_never_loaded(tmp_path: Path) -> None:
    from finetune.runs.checkpoint import checkpoint_steps, latest_checkpoint, step_directory, sweep

    for step in (9, 10):
        step_directory(tmp_path, step).mkdir(parents=True)
    half = tmp_path / "checkpoints" / ".unfinished-x"
    half.mkdir()
    (half / "model.safetensors").write_text("half")
    # Killed between two renames: the old checkpoint is complete, under a hidden name.
    (tmp_path / "checkpoints" / ".unfinished-y" / "step-11").mkdir(parents=True)
    assert latest_checkpoint(tmp_path) == step_directory(tmp_path, 10)
    sweep(tmp_path)
    assert list(checkpoint_steps(tmp_path)) == [9, 10, 11]
    assert not list((tmp_path / "checkpoints").glob(".unfinished-*"))


def test_a_damaged_golden_file_is_reported(run: Path, tmp_path: Path) -> None:
    import shutil

    from finetune.runs.golden import read_golden

    copy = tmp_path / "copy"
    shutil.copytree(run / "golden", copy / "golden")
    next((copy / "golden").glob("*.png")).unlink()
    with pytest.raises(ModelError, match=r"golden prompts in .* cannot be read: There is no file"):
        read_golden(copy)
    (copy / "golden" / "golden.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="golden"):
        read_golden(copy)
