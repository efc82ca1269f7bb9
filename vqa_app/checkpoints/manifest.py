"""The manifest of a run directory: what was trained, from what, on what, with what."""

from __future__ import annotations

import dataclasses
import json
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from vqa_app.errors import ModelError

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1
Kind: TypeAlias = Literal["projector", "lora", "qlora", "full", "merged"]

_PACKAGES = ("vqa-app", "torch", "transformers", "peft", "tokenizers", "safetensors")


@dataclass(frozen=True)
class Base:
    """The model that a run began with."""

    name: str
    """`builtin`, a hub id, or an absolute path."""
    fingerprint: str
    """Of its weights; see `vqa_app.checkpoints.weights.fingerprint`."""
    revision: str | None = None
    """Commit on the hub."""

    @property
    def on_hub(self) -> bool:
        """Whether others can have it by its name."""
        return self.name != "builtin" and not Path(self.name).is_absolute()


@dataclass(frozen=True)
class Manifest:
    """What a run directory says of itself."""

    kind: Kind
    """What lies in it: adapter weights (`projector`, `lora`, `qlora`) or a whole model."""
    base: Base
    prompt_hash: str
    """See `vqa_app.prompts.prompt.prompt_hash`."""
    data_hash: str = ""
    earlier: list[dict[str, Any]] = field(default_factory=list)
    """The runs that it went on from, the first one first: `name`, `data`, `data_hash` of each."""
    seed: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    """The command line that made it."""
    versions: dict[str, str] = field(default_factory=lambda: current_versions())
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    format_version: int = FORMAT_VERSION

    @property
    def whole_model(self) -> bool:
        """Whether the directory can be loaded without its base."""
        return self.kind in ("full", "merged")


def current_versions() -> dict[str, str]:
    """Python and the packages that weights and prompts depend on."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` into an existing directory."""
    text = json.dumps(dataclasses.asdict(manifest), indent=2, default=str)
    (directory / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of a run directory; None where there is none.

    Raises:
        ModelError: there is one that cannot be understood.
    """
    path = Path(directory) / MANIFEST_FILE
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data["format_version"]
        if version != FORMAT_VERSION:
            raise ModelError(
                f"{path} has format version {version}; this is vqa-app for version"
                f" {FORMAT_VERSION}.",
                "Update vqa-app." if version > FORMAT_VERSION else "Train again.",
            )
        known = {item.name for item in dataclasses.fields(Manifest)}
        values = {name: value for name, value in data.items() if name in known}
        manifest = Manifest(**(values | {"base": Base(**data["base"])}))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} is not a manifest that vqa-app wrote: {error!r}.",
            "Restore the file, or train again.",
        ) from error
    if manifest.kind not in get_args(Kind):
        raise ModelError(
            f"{path} says kind {manifest.kind!r}.", f"Kinds are {', '.join(get_args(Kind))}."
        )
    return manifest


def is_finished(run: Path) -> bool:
    """Whether a folder holds a whole run: the manifest is written last."""
    return (run / MANIFEST_FILE).is_file()


def quantization_of(directory: Path) -> str | None:
    """The logits of a run on a 4-bit base are those on a 4-bit base."""
    manifest = read_manifest(directory)
    return "4bit" if manifest is not None and manifest.kind == "qlora" else None
