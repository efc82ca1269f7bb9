"""The manifest of a run directory, which records its base model, data, config and versions."""

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
from vqa_app.files import JSON_ERRORS

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1
RunKind: TypeAlias = Literal["projector", "lora", "qlora", "full", "merged"]

_PACKAGES = ("vqa-app", "torch", "transformers", "peft", "tokenizers", "safetensors")


@dataclass(frozen=True)
class Base:
    """The model that a run started from."""

    name: str
    """`builtin`, a hub id, or an absolute path."""
    fingerprint: str
    """Identifies its weights; see `vqa_app.checkpoints.weights.fingerprint`."""
    revision: str | None = None
    """Commit on the hub."""

    @property
    def on_hub(self) -> bool:
        """Whether the name is a hub id."""
        return self.name != "builtin" and not Path(self.name).is_absolute()


@dataclass(frozen=True)
class Manifest:
    """The description of a run directory."""

    kind: RunKind
    """Its content: adapter weights (`projector`, `lora`, `qlora`) or a whole model."""
    base: Base
    prompt_hash: str
    """See `vqa_app.prompts.prompt.prompt_hash`."""
    data_hash: str = ""
    earlier: list[dict[str, Any]] = field(default_factory=list)
    """The runs that it continued, oldest first, with `name`, `data` and `data_hash` of each."""
    seed: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    """The command line of the run."""
    versions: dict[str, str] = field(default_factory=lambda: current_versions())
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    format_version: int = FORMAT_VERSION

    @property
    def whole_model(self) -> bool:
        """Whether the directory can be loaded without its base model."""
        return self.kind in ("full", "merged")


def current_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that weights and prompts depend on."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `manifest.json` to an existing directory."""
    text = json.dumps(dataclasses.asdict(manifest), indent=2, default=str)
    (directory / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> Manifest | None:
    """Read the manifest of a run directory; return None if there is none.

    Raises:
        ModelError: The manifest is damaged or of another version.
    """
    path = Path(directory) / MANIFEST_FILE
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data["format_version"]
        if version != FORMAT_VERSION:
            raise ModelError(
                f"{path} has format version {version}; this version of vqa-app supports"
                f" {FORMAT_VERSION}.",
                "Update vqa-app." if version > FORMAT_VERSION else "Train again.",
            )
        names = {item.name for item in dataclasses.fields(Manifest)}
        values = {name: value for name, value in data.items() if name in names}
        manifest = Manifest(**(values | {"base": Base(**data["base"])}))
    except (*JSON_ERRORS, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} is damaged, or was not written by vqa-app.",
            "Restore the file, or train again.",
        ) from error
    if manifest.kind not in get_args(RunKind):
        raise ModelError(
            f"{path} has an unknown kind of run: {manifest.kind!r}",
            f"Known kinds: {', '.join(get_args(RunKind))}.",
        )
    return manifest


def origin(model: str, most: int = 100) -> str:
    """Return the model from which a run was trained, through up to `most` runs in between.

    Args:
        model: Name or folder of a model. One that is no run is its own origin.
        most: Limit for manifests that name each other.

    Raises:
        ModelError: A manifest is damaged or of another version.
    """
    for _ in range(most):
        manifest = read_manifest(Path(model))
        if manifest is None:
            break
        model = manifest.base.name
    return model


def is_finished(run: Path) -> bool:
    """Return whether a run is finished; its manifest is written last."""
    return (run / MANIFEST_FILE).is_file()


def quantization_of(directory: Path) -> str | None:
    """Return `4bit` for a run on a 4-bit base, whose logits are reproduced only on such a base."""
    manifest = read_manifest(directory)
    return "4bit" if manifest is not None and manifest.kind == "qlora" else None
