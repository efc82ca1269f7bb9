"""Every option of a fine-tuning run, with its help text and its limits.

The docstring under each attribute is its help text on the command line; each class is a panel
there. An attribute that is None is decided from the data and the model by `finetune.training.plan`,
which prints what it chose. This module must not import torch: `--help` reads it.
"""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Mapping
from functools import cache
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from vqa_app.errors import UsageError
from vqa_app.numeric import LARGEST, shown
from vqa_app.suggestions import suggest

Stage: TypeAlias = Literal["projector", "lora", "qlora", "full"]
Metric: TypeAlias = Literal["vqa_accuracy", "loss", "image_gain"]


class _Options(BaseModel):
    """A group of options: a panel of the command line's help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )
    panel: ClassVar[str]


class DataOptions(_Options):
    """What is trained on, and how it is read."""

    panel: ClassVar[str] = "Data"

    data: tuple[str, ...] = ()
    """File, archive (zip, tar, tar.gz), folder or hub data set to train on; repeat it to mix
    several. `path@2` shows its rows twice as often, `path@0.5` half as often; `path@validation`
    reads that split, not train. The two files of VQA v2 (questions, annotations) are recognised as
    one data set."""
    images: tuple[str, ...] = ()
    """Folder that picture paths in the data are relative to. Default: the data file's folder."""
    eval_data: tuple[str, ...] = ()
    """Held-out data, in any format of --data. Of several splits, test is used, or else
    validation."""
    eval_fraction: float | None = Field(None, ge=0, lt=1)
    """Share of the pictures held out when there is no --eval-data; 0 holds none out. Default: 0.05,
    at most 500 pictures."""
    turns: Literal["auto", "together", "apart"] = "auto"
    """How a conversation with several questions is trained. together: each question after the
    earlier turns; apart: each alone with the pictures, as in a VQA test; auto: apart for rows that
    show pictures and have answers of at most three words."""
    max_length: int | None = Field(None, gt=0)
    """Longest row in tokens, image tokens included; a longer one counts as bad. Default: the
    model's context."""
    max_bad: int = Field(0, ge=0)
    """How many bad rows may be skipped; they are listed in the run's skipped.jsonl."""


class ModelOptions(_Options):
    """Which model is trained, and which of its weights."""

    panel: ClassVar[str] = "Model"

    model: str = "builtin"
    """Base model: builtin, a hub id, a path, or an earlier run to continue from."""
    revision: str | None = None
    """Revision of the base model on the hub."""
    stage: Stage = "lora"
    """Which weights are trained. projector; lora (projector and LoRA on the LLM); qlora (the same
    on a 4-bit base); full (projector and the whole LLM). The image encoder is always frozen."""
    recipe: Literal["llava"] | None = None
    """llava: train the projector first, then --stage, each for --epochs."""
    rank: int | None = Field(None, gt=0, le=1 << 16)
    """LoRA rank. Default: 128 as LLaVA-1.5, at most a quarter of the LLM's width."""
    alpha: int | None = Field(None, gt=0, le=1 << 20)
    """LoRA alpha. Default: twice the rank, as LLaVA-1.5."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """LoRA dropout. Default: 0.05 as LLaVA-1.5, 0 for LLMs narrower than 1,024."""


class OptimOptions(_Options):
    """How the weights are optimised."""

    panel: ClassVar[str] = "Optimisation"

    epochs: float | None = Field(None, gt=0, le=1e6)
    """Passes over the data. Default: 1 as LLaVA-1.5 for 100,000 rows or more, up to 10 for
    fewer."""
    max_steps: int | None = Field(None, gt=0)
    """Stop after this many optimiser steps, whatever the epochs."""
    batch_size: int | None = Field(None, gt=0, le=1 << 20)
    """Rows for each optimiser step, over all devices, rounded up to a multiple of them. Default:
    128 as LLaVA-1.5 (projector: 256), less for few rows."""
    micro_batch_size: int | None = Field(None, gt=0, le=1 << 20)
    """Rows at once on one device; gradients are accumulated over the batch. Default: as many as fit
    in memory."""
    lr: float | None = Field(None, gt=0, le=100)
    """Peak learning rate. Default: LLaVA-1.5's (projector 1e-3, lora 2e-4, full 2e-5), raised for
    small models."""
    projector_lr: float | None = Field(None, gt=0, le=100)
    """The projector's learning rate when the LLM trains too. Default: LLaVA-1.5's 2e-5, raised for
    small models."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients with a larger norm are scaled down to it; 0 leaves them as they are."""
    optimizer: Literal["auto", "adamw", "adamw-8bit"] = "auto"
    """auto: 8-bit AdamW with a CUDA GPU and bitsandbytes, else PyTorch's fused AdamW."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic of the forward pass. auto: bf16 where the hardware computes in it, fp16 on older
    GPUs such as a T4, else fp32. Trained weights stay fp32."""
    gradient_checkpointing: bool | None = Field(None, strict=True)
    """Recompute activations to save memory. Default: where the memory plan needs it."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the split, the order of the rows and the new weights."""


class EvalOptions(_Options):
    """How the model is evaluated during training."""

    panel: ClassVar[str] = "Evaluation while training"

    eval_every: float = Field(0.2, ge=0)
    """Evaluate before training and after every so many steps; below 1, a share of the run; 0: only
    at the end."""
    eval_questions: int = Field(500, gt=0)
    """How many held-out questions are answered at each evaluation, the final one included."""
    watch: tuple[str, ...] = ()
    """Question to answer at every evaluation and keep, as `picture.png: question?`. Default: four
    of the held-out rows."""
    metric: Metric = "vqa_accuracy"
    """What the best checkpoint is chosen by."""
    patience: int | None = Field(None, gt=0)
    """Stop after this many evaluations without a better one."""


class RunOptions(_Options):
    """Where the run is written, and what it runs on."""

    panel: ClassVar[str] = "Run"

    out: str = ""
    """Folder that the run is written to."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: continue where the same command was interrupted. never: start again, refused if the
    folder holds a finished run; the recipe's finished projector is trained again. must: refuse to
    start from the beginning."""
    save_every: float = Field(0.1, ge=0)
    """Write a checkpoint after this many steps; below 1, this share of the run. Also at every
    evaluation."""
    keep: int = Field(2, gt=0)
    """How many checkpoints to keep besides the best one."""
    feature_gb: float = Field(20.0, ge=0, le=1e6)
    """Disk space for the frozen encoder's outputs, which later epochs and runs reuse; 0 turns this
    off."""
    feature_dir: str | None = None
    """Folder of the encoder's outputs. Default: ~/.cache/vqa-app/features."""
    workers: int | None = Field(None, gt=0, le=1024)
    """Threads that read and prepare pictures. Default: the number of cores, at most 8."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    report_to: tuple[str, ...] = ()
    """Also log to tensorboard, wandb or trackio."""
    fsdp: str | None = None
    """Shard over GPUs with an accelerate FSDP config: default or offload, which come with the
    package, or a file."""
    deepspeed: str | None = None
    """Shard over GPUs with a DeepSpeed config: zero2, zero3 or zero3_offload, which come with the
    package, or a file."""


class FinetuneConfig(RunOptions, EvalOptions, OptimOptions, ModelOptions, DataOptions):
    """A fine-tuning run.

    Paths may be strings or `Path`s; an option that takes several values takes a list or a single
    one. None means the default, as does an empty entry in YAML.

    Raises:
        UsageError: A value is not allowed or an option is unknown; the message names the option and
            what to write instead.
    """

    @model_validator(mode="wrap")
    @classmethod
    def _raise_usage_errors(
        cls, values: Any, handler: ModelWrapValidatorHandler[FinetuneConfig], info: ValidationInfo
    ) -> FinetuneConfig:
        if not isinstance(values, Mapping):
            return handler(values)
        given = {name: value for name, value in values.items() if value is not None}
        source = (info.context or {}).get("source", "The config")
        _refuse_unknown(given, set(cls.model_fields), source)
        try:
            return handler(given)
        except ValidationError as error:
            raise _usage_error(error.errors()[0], given) from error

    @field_validator("*", mode="before")
    @classmethod
    def _accept_near_types(cls, value: Any, info: ValidationInfo) -> Any:
        """Accept one value for several and a `Path` for a string; refuse a boolean as a number."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if _is_boolean(value) and bool not in typing.get_args(kind):
            raise PydanticCustomError("boolean", "Input should not be true or false")
        if isinstance(value, Integral) and abs(int(value)) > LARGEST:
            raise PydanticCustomError("large", f"Input should be at most {LARGEST}")
        if typing.get_origin(kind) is tuple:
            several = value if isinstance(value, (list, tuple)) else (value,)
            return tuple(os.fspath(v) if isinstance(v, os.PathLike) else v for v in several)
        if isinstance(value, os.PathLike) and str in (kind, *typing.get_args(kind)):
            return os.fspath(value)
        return value

    @field_validator("out", "feature_dir", "fsdp", "deepspeed")
    @classmethod
    def _expand_home(cls, value: str | None) -> str | None:
        """Expand `~`, which a shell leaves as it is after `--out=`."""
        return value and os.path.expanduser(value)

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> FinetuneConfig:
        if self.recipe and self.stage == "projector":
            raise UsageError(
                "The recipe llava trains the projector first; stage projector adds nothing.",
                "Choose stage lora, qlora or full, or leave the recipe out.",
            )
        if self.fsdp and self.deepspeed:
            raise UsageError("Both fsdp and deepspeed are given.", "Choose one of them.")
        for option, value in (("stage", "qlora"), ("optimizer", "adamw-8bit")):
            if (self.fsdp or self.deepspeed) and getattr(self, option) == value:
                raise UsageError(
                    f"{option} {value} cannot be sharded by fsdp or deepspeed.",
                    f"Choose another {option}, or leave fsdp and deepspeed out.",
                )
        return self

    def replace(self, **changes: Any) -> FinetuneConfig:
        """Return a copy with other values, checked like those of a new config."""
        return FinetuneConfig(**{**dict(self), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON and YAML, every option in the order of declaration."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "The config") -> FinetuneConfig:
        """Build a config from plain values.

        Args:
            values: Options by name.
            source: Where they come from, for messages.

        Raises:
            UsageError: An unknown key (with the one that was probably meant), or a wrong value.
        """
        return cls.model_validate(values, context={"source": source})

    @classmethod
    def from_yaml(cls, path: str | Path, **overrides: Any) -> FinetuneConfig:
        """Read a YAML file.

        Args:
            path: The file.
            **overrides: Options, from the command line, that override those in the file.

        Raises:
            UsageError: The file cannot be read, or as in `from_dict`.
        """
        import yaml

        try:
            text = Path(os.path.expanduser(path)).read_text(encoding="utf-8-sig")
            values = yaml.safe_load(text)
        except OSError as error:
            hint = suggest(path, path=Path.is_file, otherwise="Check the path.")
            raise UsageError(f"Cannot read {path}: {error.strerror}.", hint) from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8 text.", "Save it as UTF-8.") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UsageError(
                f"{path} is not YAML{_yaml_problem(error)}.", "Write one `key: value` a line."
            ) from error
        if values is not None and not isinstance(values, dict):
            raise UsageError(f"{path} has no keys.", "Write one `key: value` a line.")
        return cls.from_dict({**(values or {}), **overrides}, source=str(path))


def _yaml_problem(error: Exception) -> str:
    """Return where and why a file is not YAML, as the end of a sentence."""
    import yaml

    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        place = error.problem_mark
        return f": line {place.line + 1:,}, column {place.column + 1:,}: {error.problem}"
    if isinstance(error, ValueError):  # the 31st of June; a number of 5,000 digits
        return ": a number or date in it cannot be read"
    return ""


_PANELS = (DataOptions, ModelOptions, OptimOptions, EvalOptions, RunOptions)


@cache
def option_help() -> dict[str, tuple[str, str]]:
    """Return the panel and the help text (the attribute's docstring) of every option, by name."""
    return {
        name: (options.panel, " ".join((field.description or "").split()))
        for options in _PANELS
        for name, field in options.model_fields.items()
    }


def _is_boolean(value: Any) -> bool:
    """Return whether a value is a boolean of Python or NumPy."""
    return isinstance(value, bool) or getattr(getattr(value, "dtype", None), "kind", None) == "b"


def _refuse_unknown(names: Mapping[Any, Any], known: set[str], source: str) -> None:
    for name in names:
        if name not in known:
            raise UsageError(
                f"{source} has an unknown key {name!r}.",
                suggest(str(name), known, otherwise=f"Keys are: {', '.join(sorted(known))}."),
            )


_PLAIN_WORDS = {
    "Unable to parse input string as an integer, exceeded maximum size": "It is too large",
    "Input should": "It should",
    "a valid integer": "a whole number",
    "a valid boolean": "true or false",
    "a valid ": "a ",
}


def _usage_error(details: ErrorDetails, given: Mapping[str, Any]) -> UsageError:
    """Convert an error of pydantic to one that names the option and its whole value."""
    name = str(details["loc"][0])
    reason = re.sub(", (unable|got) .*", "", details["msg"])
    for theirs, plain in _PLAIN_WORDS.items():
        reason = reason.replace(theirs, plain)
    return UsageError(f"{name} is {shown(given[name])}.", f"{reason}.")
