"""A merged run is a standard checkpoint with the run's logits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.finetune.runs.test_checkpoint import FOUR_BIT_SHAPE, golden, saved, trained
from vqa_app.errors import ModelError, UsageError


@pytest.fixture(scope="module", params=["projector", "lora"])
def run(
    request: pytest.FixtureRequest,
    tiny_llava_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    return saved(tiny_llava_dir, request.param, tmp_path_factory.mktemp("runs"))


def test_plain_transformers_loads_a_merged_run(run: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from finetune.runs.merge import merge
    from finetune.runs.verify import verify
    from vqa_app.checkpoints.loader import load_model
    from vqa_app.prompts.prompt import encode

    found = merge(run, tmp_path / "merged")
    assert found.ok
    assert found.comparison.worst_difference < 1e-3
    model, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "merged", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(tmp_path / "merged")
    inputs = encode(processor, golden()[0], answer_next=False).inputs
    with torch.no_grad():
        expected = load_model(str(run), merge=False).model(**inputs).logits
        assert torch.allclose(model(**inputs).logits, expected, atol=1e-4)
    assert verify(tmp_path / "merged").ok


def test_a_run_on_a_4_bit_base_merges_into_the_unquantised_one(
    tmp_path: Path, one_thread: None
) -> None:
    from finetune.runs.checkpoint import save_run
    from finetune.runs.merge import merge
    from tests.tiny import tiny_llava

    base = tiny_llava(tmp_path / "base", **FOUR_BIT_SHAPE)
    model, processor, manifest = trained(base, "qlora")
    save_run(tmp_path / "run", model, processor, manifest, golden())
    assert merge(tmp_path / "run", tmp_path / "merged").ok


def test_merging_into_16_bits_stays_within_tolerance(run: Path, tmp_path: Path) -> None:
    from finetune.runs.merge import merge

    assert merge(run, tmp_path / "merged", dtype="bfloat16").ok


def test_a_merge_that_changes_the_logits_leaves_no_files(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import LlavaForConditionalGeneration

    from finetune.runs.merge import merge

    plain_save = LlavaForConditionalGeneration.save_pretrained

    def broken(model: torch.nn.Module, folder: Path, **options: object) -> None:
        with torch.no_grad():
            model.lm_head.weight[5] += 1.0  # type: ignore[union-attr,index]
        plain_save(model, folder, **options)

    monkeypatch.setattr(LlavaForConditionalGeneration, "save_pretrained", broken)
    with pytest.raises(ModelError, match="differs from the run"):
        merge(run, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_merged_are_refused(
    run: Path, tiny_llava_dir: Path, tmp_path: Path
) -> None:
    from finetune.runs.checkpoint import save_run
    from finetune.runs.merge import merge

    with pytest.raises(UsageError, match="exists already"):
        merge(run, tmp_path)
    with pytest.raises(ModelError, match="is not a run"):
        merge(tiny_llava_dir, tmp_path / "out")
    model, processor, manifest = trained(tiny_llava_dir, "full")
    save_run(tmp_path / "full", model, processor, manifest)
    with pytest.raises(UsageError, match="whole model already"):
        merge(tmp_path / "full", tmp_path / "out")


def test_an_unwritable_folder_is_an_error_before_the_model_loads(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.runs import merge as module

    def refuse(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(module, "_load", refuse)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"Cannot write to .*file"):
        module.merge(run, tmp_path / "file" / "merged")


def test_a_full_disk_is_reported_and_leaves_no_files(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from finetune.runs import merge as module

    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_manifest", fill)
    with pytest.raises(ModelError, match="No space left"):
        module.merge(run, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def test_merged_files_are_readable_by_other_users(run: Path, tmp_path: Path) -> None:
    from finetune.runs.merge import merge

    merge(run, tmp_path / "merged")
    (tmp_path / "plain").touch()
    plain = (tmp_path / "plain").stat().st_mode
    files = [*run.rglob("*"), *(tmp_path / "merged").rglob("*")]
    assert any(path.suffix == ".safetensors" for path in files)
    assert [p for p in files if p.is_file() and p.stat().st_mode != plain] == []
