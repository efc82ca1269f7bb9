"""Write and read manifest.json."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import edit_json
from vqa_app.checkpoints.manifest import (
    MANIFEST_FILE,
    Base,
    Manifest,
    read_manifest,
    write_manifest,
)
from vqa_app.errors import ModelError

MANIFEST = Manifest(
    kind="lora",
    base=Base("llava-hf/llava-1.5-7b-hf", "0123", "abc"),
    prompt_hash="p",
    data_hash="d",
    seed=3,
    config={"rank": 8, "lr": 1e-4, "paths": ["a.json"]},
    command="vqa-app finetune --data a.json",
)


def test_a_manifest_is_read_as_written(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path) == MANIFEST
    assert {"python", "torch", "transformers"} <= MANIFEST.versions.keys()


def test_a_directory_may_have_no_manifest(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None


def test_unknown_fields_are_ignored(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    edit_json(tmp_path / MANIFEST_FILE, weather="sunny")
    assert read_manifest(tmp_path) == MANIFEST


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format version 2"),
        ({"kind": "dora"}, "'dora'"),
        ({"base": None}, "damaged"),
        ({"base": {"name": "x"}}, "damaged"),
    ],
)
def test_an_invalid_manifest_is_rejected(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    write_manifest(tmp_path, MANIFEST)
    edit_json(tmp_path / MANIFEST_FILE, **changes)
    with pytest.raises(ModelError, match=message):
        read_manifest(tmp_path)


def test_a_damaged_manifest_is_rejected_by_name(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text("{")
    with pytest.raises(ModelError, match=str(tmp_path)):
        read_manifest(tmp_path)
