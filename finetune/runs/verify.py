"""Verification that a run still computes the logits recorded when it was saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.progress import pluralize
from finetune.runs.golden import Comparison, compare, read_golden
from finetune.runs.layout import require_folder
from vqa_app.checkpoints.manifest import quantization_of
from vqa_app.errors import ModelError

if TYPE_CHECKING:
    from vqa_app.checkpoints.loader import LoadedModel

TOLERANCE = {"float32": 0.01}
"""Allowed difference of a log-probability, in nats; machines differ in their order of summation."""
HALF_TOLERANCE = 0.5
"""The same in 16 bits, where neighbouring logits of about 20 differ by 0.06 to 0.12, and on
quantised bases."""


@dataclass(frozen=True)
class Verification:
    """The result of a verification."""

    directory: Path
    comparison: Comparison
    tolerance: float

    @property
    def problem(self) -> str:
        """What differs; "" if the run computes what it did when it was saved."""
        found = self.comparison
        if found.rendered_differently:
            return (
                f"{found.rendered_differently} of {found.prompts} golden prompts are rendered to"
                " other tokens than when the run was saved"
            )
        if not found.worst_difference <= self.tolerance:  # NaN too
            return (
                f"log-probabilities differ by up to {found.worst_difference:.3g} nats"
                f" (allowed: {self.tolerance:g}); the likeliest token is the same at"
                f" {found.same_tokens:.0%} of the positions"
            )
        return ""

    @property
    def ok(self) -> bool:
        """Whether the run computes what it did when it was saved."""
        return not self.problem

    @property
    def summary(self) -> str:
        """One line about a successful verification."""
        found = self.comparison
        return (
            f"{pluralize(found.prompts, 'golden prompt')}: log-probabilities within"
            f" {found.worst_difference:.2g} nats of those saved (allowed: {self.tolerance:g})"
        )


def tolerance_of(dtype: str, quantized: bool = False) -> float:
    """Return how much log-probabilities may differ in this precision, in nats."""
    return HALF_TOLERANCE if quantized else TOLERANCE.get(dtype, HALF_TOLERANCE)


def verify(
    directory: str | Path, loaded: LoadedModel | None = None, *, device: str = "auto"
) -> Verification:
    """Compare the logits of a run (or merged checkpoint) with those saved in it.

    Args:
        directory: The run.
        loaded: Its model, if it is loaded already.
        device: Where to load it; see `load_model`.

    Raises:
        ModelError: There is nothing to verify, or the model cannot be loaded. Different logits are
            not an error: the result says so.
    """
    from vqa_app.checkpoints.loader import load_model

    directory = Path(directory)
    require_folder(directory)
    golden = read_golden(directory)
    if not golden:
        raise ModelError(
            f"{directory} holds no golden prompts.",
            "Give the folder of a run of `vqa-app finetune`, or of a merged one.",
        )
    dtype = golden[0].dtype
    if loaded is None:
        loaded = load_model(str(directory), None, device, dtype, quantization_of(directory))
    found = compare(loaded.model, loaded.processor, golden)
    now = str(loaded.model.dtype).removeprefix("torch.")
    allowed = max(tolerance_of(dtype), tolerance_of(now, loaded.quantization is not None))
    return Verification(directory, found, allowed)


def require(verification: Verification) -> None:
    """Check that a verification succeeded.

    Raises:
        ModelError: It failed; the message says what differs.
    """
    if not verification.ok:
        raise ModelError(
            f"{verification.directory} differs from what was saved: {verification.problem}.",
            "Its files or its base model have changed, or another version computes differently;"
            " manifest.json names both.",
        )
