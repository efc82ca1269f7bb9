"""`vqa-app doctor`: print what a bug report needs, without anything private."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import typer

from vqa_app.files import format_bytes
from vqa_app.version import __version__

app = typer.Typer(add_completion=False)

_PACKAGES = (
    "torch transformers peft accelerate safetensors tokenizers huggingface_hub datasets"
    " gradio fastapi typer pillow numpy"
)
_OPTIONAL = {
    "pillow-heif": "HEIC pictures",
    "bitsandbytes": "--quantize on a GPU, --stage qlora",
    "llguidance": "answers that follow a JSON schema",
    "gguf": "compose with a GGUF file",
    "sentencepiece": "tokenizers of some models",
    "tensorboard": "finetune --report-to tensorboard",
    "wandb": "finetune --report-to wandb",
    "trackio": "finetune --report-to trackio",
    "deepspeed": "finetune with DeepSpeed",
}
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES HF_HUB_OFFLINE OMP_NUM_THREADS PYTORCH_CUDA_ALLOC_CONF"
    " TRANSFORMERS_OFFLINE"
)
"""Environment variables that affect the program; none of them is a secret."""


@app.command()
def doctor() -> None:
    """Print what a bug report needs: versions, machine, devices, memory and local models."""
    for title, lines in (
        ("vqa-app", _program()),
        ("machine", _machine()),
        ("devices", _devices()),
        ("packages", _packages()),
        ("optional packages", _optional_packages()),
        ("models", _models()),
        ("environment", _environment()),
    ):
        print(title)
        try:
            for line in lines:
                print(f"  {line}")
        except Exception as error:  # report what failed and continue with the next section
            print(f"  {type(error).__name__}: {error}")


def _program() -> Iterator[str]:
    yield f"version {__version__}"
    yield f"Python {platform.python_version()} ({platform.python_implementation()})"
    yield f"installed in {_without_home(Path(__file__).parent.parent)}"


def _machine() -> Iterator[str]:
    import psutil

    memory = psutil.virtual_memory()
    yield platform.platform()
    yield f"{platform.machine()}, {_usable_cores()} of {os.cpu_count()} processors usable"
    yield f"{format_bytes(memory.total)} memory, {format_bytes(memory.available)} available"
    home = Path(os.path.expanduser("~"))
    disk = psutil.disk_usage(str(next(path for path in (home, *home.parents) if path.exists())))
    yield f"{format_bytes(disk.free)} free in the home folder's file system"


def _usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # missing on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _devices() -> Iterator[str]:
    try:
        import torch
    except Exception as error:  # a broken installation may be the reason to run this command
        yield f"torch cannot be imported: {type(error).__name__}: {error}"
        return
    yield f"cpu, {torch.get_num_threads()} threads ({torch.backends.cpu.get_cpu_capability()})"
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        yield f"cuda:{index} {found.name}, {format_bytes(found.total_memory)}"
    if torch.backends.mps.is_available():
        yield "mps"
    yield f"torch was built for {'CUDA ' + torch.version.cuda if torch.version.cuda else 'CPU'}"


def _packages() -> Iterator[str]:
    for name in _PACKAGES.split():
        yield f"{name} {_version(name) or 'is missing'}"


def _optional_packages() -> Iterator[str]:
    for name, purpose in _OPTIONAL.items():
        yield f"{name} {_version(name) or 'not installed'} ({purpose})"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _models() -> Iterator[str]:
    weights = list((Path(__file__).parent.parent / "builtin").rglob("*.safetensors"))
    size = sum(path.stat().st_size for path in weights)
    yield f"built-in: {format_bytes(size)}" if weights else "built-in: missing"
    try:
        from huggingface_hub import constants
    except Exception as error:
        yield f"huggingface_hub cannot be imported: {type(error).__name__}: {error}"
        return
    cache = Path(constants.HF_HUB_CACHE)
    count = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    yield f"downloaded: {count}, in {_without_home(cache)}"


def _environment() -> Iterator[str]:
    yield f"terminal: {'yes' if sys.stdout.isatty() else 'no'}, encoding {sys.stdout.encoding}"
    for name in _VARIABLES.split():
        if name in os.environ:
            yield f"{name}={os.environ[name]}"


def _without_home(path: Path) -> str:
    """Return a path with ~ for the home folder, which may contain the user's name."""
    try:
        return str(Path("~") / path.relative_to(Path.home()))
    except (ValueError, RuntimeError):  # it is elsewhere, or there is no home folder
        return str(path)
