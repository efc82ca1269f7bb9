"""A selection of models on the hub, with what they are good at and what they need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from vqa_app.checkpoints.memory import WEIGHTS_SHARE
from vqa_app.files import format_bytes

EntryKind: TypeAlias = Literal["builtin", "hub", "run"]

WORKING_SHARE = 1.2
"""Memory in use relative to that of the weights, for activations, image features and KV cache too.
A rule of thumb, conservative for short conversations."""


def memory_in_use(parameters: int, bytes_each: int = 2) -> int:
    """Estimate the memory that a model takes up at work, in bytes.

    Args:
        parameters: Number of its parameters.
        bytes_each: Size of each in memory.
    """
    return int(bytes_each * parameters * WORKING_SHARE)


@dataclass(frozen=True)
class CatalogueEntry:
    """A model in the list."""

    name: str
    """The name for `load_model` and `--model`."""
    kind: EntryKind
    parameters: int
    """Number of parameters, including those of an adapter's base. Two significant digits for hub
    models; 0 if the base is unknown."""
    licence: str
    note: str
    """What the model is good at, in a sentence."""
    download: int
    """Size of the files in bytes."""
    cached: bool = False
    """Whether the model can be loaded without a download."""
    gated: bool = False
    """Whether its licence must be accepted on the hub."""
    figures: str = ""
    """Published results of some tests, such as `MMBench 68.0`."""
    figures_source: str = ""
    """Who published them."""
    package: str = ""
    """A Python package that the model needs and that is not installed with this one."""

    @property
    def size(self) -> str:
        """Size of the files, such as `1.8 GB`."""
        return format_bytes(self.download)

    @property
    def memory(self) -> int:
        """Estimated memory in use with 16-bit weights, in bytes."""
        return memory_in_use(self.parameters)

    @property
    def memory_4bit(self) -> int:
        """Estimated memory in use with `--quantize 4bit`, in bytes."""
        return int(self.memory * WEIGHTS_SHARE["4bit"])


def _hub(
    name: str,
    billions: float,
    licence: str,
    note: str,
    *,
    figures: str = "",
    source: str = "its model card",
    bytes_each: int = 2,
    gated: bool = False,
    package: str = "",
) -> CatalogueEntry:
    """Return the entry of a hub model whose weights are stored in `bytes_each` bytes."""
    parameters = int(billions * 1e9)
    return CatalogueEntry(
        name,
        "hub",
        parameters,
        licence,
        note,
        bytes_each * parameters,
        gated=gated,
        figures=figures,
        figures_source=source if figures else "",
        package=package,
    )


CATALOGUE = (
    _hub(
        "HuggingFaceTB/SmolVLM-256M-Instruct",
        0.26,
        "Apache 2.0",
        "The smallest download; simple questions about photographs, fast on a CPU.",
        figures="TextVQA 49.9, DocVQA 58.3, MMMU 28.3",
    ),
    _hub(
        "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        0.26,
        "Apache 2.0",
        "As small, trained further; simple questions and captions.",
        bytes_each=4,
    ),
    _hub(
        "LiquidAI/LFM2.5-VL-450M",
        0.45,
        "LFM 1.0 (free below 10 million dollars of revenue a year)",
        "Everyday photographs in nine languages; not for small print.",
        figures="RealWorldQA 58.4, MMBench 60.9, OCRBench 68.4",
        package="torchvision",
    ),
    _hub(
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        0.51,
        "Apache 2.0",
        "Photographs and short texts on a CPU with little memory.",
        figures="RealWorldQA 49.9, MMBench 52.3, OCRBench 60.9",
        source="the model card of LFM2.5-VL-450M",
        bytes_each=4,
    ),
    _hub(
        "Qwen/Qwen3.5-0.8B",
        0.87,
        "Apache 2.0",
        "Photographs, documents and charts in many languages; best of the small ones in tests.",
        figures="MMBench 68.0, MathVista 58.6, MMMU 47.4 (without thinking)",
    ),
    _hub(
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        0.89,
        "Apache 2.0",
        "A small LLaVA-OneVision for high resolution and several pictures.",
        figures="MMBench 52.1, DocVQA 70.0, MMMU 31.4",
        source="the LLaVA-OneVision paper",
    ),
    _hub(
        "OpenGVLab/InternVL3_5-1B-HF",
        1.1,
        "Apache 2.0",
        "Photographs, documents and several pictures, with some reasoning.",
    ),
    _hub(
        "openbmb/MiniCPM-V-4.6",
        1.3,
        "Apache 2.0",
        "Documents, small print and several pictures, with few image tokens.",
        figures="MMBench 80.9, DocVQA 86.4, MMMU 53.6",
        source="the MiniCPM-V repository",
    ),
    _hub(
        "openbmb/MiniCPM-V-4.7-1B",
        1.6,
        "Apache 2.0",
        "Documents, small print and several pictures; the successor of MiniCPM-V 4.6.",
    ),
    _hub(
        "Qwen/Qwen3-VL-2B-Instruct",
        2.1,
        "Apache 2.0",
        "Any resolution, long documents, text in many languages.",
        figures="RealWorldQA 63.9, MMBench 78.4, MMMU 53.4",
        source="the Qwen3-VL technical report",
    ),
    _hub(
        "google/paligemma2-3b-mix-448",
        3.0,
        "Gemma",
        "Short answers, one question at a time.",
        gated=True,
    ),
    _hub(
        "google/gemma-3-4b-it",
        4.3,
        "Gemma",
        "Conversations in many languages.",
        figures="TextVQA 57.8, DocVQA 75.8, MMMU 48.8",
        gated=True,
    ),
    _hub(
        "google/gemma-4-E2B-it",
        5.1,
        "Apache 2.0",
        "Conversations and documents in many languages; as fast as a model of 2.3 billion.",
        figures="MMMU Pro 44.2, OmniDocBench 0.290 (edit distance)",
    ),
    _hub(
        "llava-hf/llava-1.5-7b-hf",
        7.1,
        "Llama 2",
        "LLaVA-1.5, the classic.",
        figures="VQAv2 78.5, TextVQA 58.2, MMBench 64.3",
        source="LLaVA's model zoo",
    ),
    _hub(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        8.3,
        "Apache 2.0",
        "Photographs, documents and charts in detail.",
        figures="TextVQA 84.9, DocVQA 95.7, MMBench 82.6",
        source="the Qwen2.5-Omni repository",
    ),
)
"""Models on the hub by size, with parameters, licences and figures as published. Figures are per
cent, as their sources give them; a model without any has none that we could check."""

RECOMMENDED = (
    "Qwen/Qwen3.5-0.8B",
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
    "HuggingFaceTB/SmolVLM-256M-Instruct",
)
"""Models for photographs to suggest to someone without one: the first that fits in memory."""
