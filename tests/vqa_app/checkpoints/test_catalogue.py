"""The list of models."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from vqa_app.checkpoints import catalogue as module
from vqa_app.checkpoints.adapters import PROJECTOR_FILE
from vqa_app.checkpoints.catalogue import catalogue, local_runs
from vqa_app.checkpoints.hub_models import CATALOGUE, RECOMMENDED
from vqa_app.checkpoints.manifest import Base, Manifest, write_manifest

SMOLVLM = "HuggingFaceTB/SmolVLM-256M-Instruct"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put_into(cache: Path, name: str, *files: str) -> None:
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1" * 40)
    for file in files:
        (snapshot / file).write_text("{}")


def test_hub_models_are_sorted_by_size_and_described(cache: Path) -> None:
    entries = [entry for entry in catalogue() if entry.kind == "hub"]
    assert [entry.parameters for entry in entries] == sorted(entry.parameters for entry in entries)
    assert len({entry.name for entry in entries}) == len(entries) >= 8
    for entry in entries:
        assert entry.licence
        assert entry.note
        assert entry.memory_4bit < entry.download < 2 * entry.memory
        assert not entry.cached
        assert bool(entry.figures) == bool(entry.figures_source)


ARCHITECTURE = {
    "HuggingFaceTB/SmolVLM-256M-Instruct": "idefics3",
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": "smolvlm",
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": "smolvlm",
    "Qwen/Qwen3.5-0.8B": "qwen3.5",
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": "llava-onevision",
    "OpenGVLab/InternVL3_5-1B-HF": "internvl3.5",
    "openbmb/MiniCPM-V-4.6": "minicpm-v-4.6",
    "openbmb/MiniCPM-V-4.7-1B": "minicpm-v-4.7",
    "Qwen/Qwen3-VL-2B-Instruct": "qwen3-vl",
    "google/paligemma2-3b-mix-448": "paligemma",
    "google/gemma-3-4b-it": "gemma3",
    "google/gemma-4-E2B-it": "gemma4",
    "llava-hf/llava-1.5-7b-hf": "llava-clip",
    "Qwen/Qwen2.5-VL-7B-Instruct": "qwen2.5-vl",
}
"""The tiny checkpoint that stands for each model in the tests of engine and training."""


def test_every_model_has_a_tested_architecture_or_needs_a_package_that_is_missing_here() -> None:
    from tests.architectures import ARCHITECTURES

    assert set(ARCHITECTURE.values()) <= set(ARCHITECTURES)
    untested = {entry.name for entry in CATALOGUE} - set(ARCHITECTURE)
    assert untested == {entry.name for entry in CATALOGUE if entry.package}


def test_recommended_models_are_listed_and_need_no_further_step() -> None:
    listed = {entry.name: entry for entry in CATALOGUE}
    chosen = [listed[name] for name in RECOMMENDED]
    assert not any(entry.gated or entry.package for entry in chosen)
    assert chosen == sorted(chosen, key=lambda entry: -entry.memory), "the last fits anywhere"


def test_a_model_in_the_cache_is_marked_as_cached(cache: Path) -> None:
    put_into(cache, SMOLVLM, "config.json", "model.safetensors")
    marked = {entry.name for entry in catalogue() if entry.kind == "hub" and entry.cached}
    assert marked == {SMOLVLM}


def test_a_model_without_weights_in_the_cache_is_not_cached(cache: Path) -> None:
    put_into(cache, SMOLVLM, "config.json")
    assert not module.is_cached(SMOLVLM)


def test_a_model_with_a_damaged_index_is_listed_as_not_cached(cache: Path) -> None:
    put_into(cache, SMOLVLM, "config.json", "model.safetensors.index.json")
    assert [entry.cached for entry in catalogue() if entry.name == SMOLVLM] == [False]


def test_the_builtin_model_comes_first(
    cache: Path, tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqa_app.checkpoints.source import Source

    monkeypatch.setattr(module.source, "find", lambda name: Source(name, tiny_llava_dir))
    first = catalogue()[0]
    assert first.licence == "Apache 2.0"
    assert (first.name, first.kind, first.cached) == ("builtin", "builtin", True)
    assert first.download == (tiny_llava_dir / "model.safetensors").stat().st_size
    assert 10_000 < first.parameters < 1_000_000


def test_only_finished_runs_are_listed(tiny_llava_dir: Path, tmp_path: Path) -> None:
    manifest = Manifest("full", Base("builtin", "f"), "p")
    whole = Path(shutil.copytree(tiny_llava_dir, tmp_path / "whole"))
    write_manifest(whole, manifest)
    (tmp_path / "empty").mkdir()
    write_manifest(tmp_path / "empty", manifest)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")
    (tmp_path / "other").mkdir()
    (run,) = local_runs(tmp_path)
    assert (run.name, run.kind) == (str(whole), "run")
    assert "full on builtin" in run.note
    assert local_runs(tmp_path / "nowhere") == []


def test_the_memory_of_an_adapter_includes_its_base(
    cache: Path, tiny_llava_dir: Path, tmp_path: Path
) -> None:
    for name, base in (("here", str(tiny_llava_dir)), ("lost", "nobody/unknown")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        write_manifest(tmp_path / "runs" / name, Manifest("projector", Base(base, "f"), "p"))
        save_file({"w": np.ones(10)}, tmp_path / "runs" / name / PROJECTOR_FILE)
    lost, here = sorted(local_runs(tmp_path / "runs"), key=lambda entry: entry.parameters)
    assert here.parameters > 10_000
    assert here.cached
    assert here.download < 1000, "only its own files"
    assert lost.memory == 0
    assert not lost.cached


def test_the_list_needs_no_torch() -> None:
    code = (
        "import sys, vqa_app.checkpoints.catalogue as c\n"
        "c.catalogue(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_hub_id_has_an_owner() -> None:
    assert all(entry.name.count("/") == 1 for entry in CATALOGUE)
