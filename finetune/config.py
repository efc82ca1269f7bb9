"""Everything one can choose about a fine-tuning run. No torch here: `--help` reads this file.

The docstring under each attribute is its help text on the command line; every class is a panel
there. An attribute that is None is decided from the data and the model by `finetune.training.plan`,
which prints what it took.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import inspect
import math
import os
import textwrap
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from vqa_app.errors import UsageError

Stage: TypeAlias = Literal["projector", "lora", "qlora", "full"]
Metric: TypeAlias = Literal["vqa_accuracy", "loss", "image_gain"]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Data"""

    data: tuple[str, ...] = ()
    """File, folder or hub data set to train on; repeat it to mix several. `path@2` shows its rows
    twice as often, `path@0.5` half as often; `path@validation` reads that split, not train. The
    two files of VQA v2 (questions, annotations) are found to belong together."""
    images: tuple[str, ...] = ()
    """Folder that picture paths in the data are relative to; default: where the data file lies."""
    eval_data: tuple[str, ...] = ()
    """Held-out data, in any of the formats of --data; of several splits test, else validation."""
    eval_fraction: float | None = None
    """Share of the pictures held out when there is no --eval-data; 0 holds none out. Default: 0.05,
    at most 500 pictures."""
    turns: Literal["auto", "together", "apart"] = "auto"
    """How a conversation of several questions is trained. together: each behind the earlier turns;
    apart: each alone with the pictures, as for a VQA test; auto: apart where a row shows pictures
    and all its answers are of three words at most."""
    max_length: int | None = None
    """Longest row in tokens, image tokens included; a longer one is a problem. Default: the model's
    context."""
    max_bad: int = 0
    """How many bad rows to leave out before giving up; they are listed in the run's
    skipped.jsonl."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Model"""

    model: str = "builtin"
    """Base model: builtin, a hub id, a path, or an earlier run to go on from."""
    revision: str | None = None
    """Revision of the base model on the hub."""
    stage: Stage = "lora"
    """What trains: projector; lora (projector and LoRA on the LLM); qlora (the same on a 4-bit
    base); full (projector and the whole LLM). The picture encoder is frozen in all of them."""
    recipe: Literal["llava"] | None = None
    """llava: train the projector first, then --stage, each for --epochs."""
    rank: int | None = None
    """LoRA rank. Default: 128 as LLaVA-1.5, at most a quarter of the LLM's width."""
    alpha: int | None = None
    """LoRA alpha. Default: twice the rank, as LLaVA-1.5."""
    dropout: float | None = None
    """LoRA dropout. Default: 0.05 as LLaVA-1.5, 0 for LLMs narrower than 1,024."""


@dataclass(frozen=True, kw_only=True)
class OptimOptions:
    """Optimisation"""

    epochs: float | None = None
    """Passes over the data. Default: 1 as LLaVA-1.5 for 100,000 rows or more, up to 10 for
    fewer."""
    max_steps: int | None = None
    """Stop after this many optimiser steps, whatever the epochs."""
    batch_size: int | None = None
    """Rows for each optimiser step, over all devices, rounded up to a multiple of them. Default:
    128 as LLaVA-1.5 (projector: 256), less for few rows."""
    micro_batch_size: int | None = None
    """Rows at once on one device; the rest is accumulated. Default: what fits in memory by the
    plan."""
    lr: float | None = None
    """Peak learning rate. Default: LLaVA-1.5's (projector 1e-3, lora 2e-4, full 2e-5), raised for
    small models."""
    projector_lr: float | None = None
    """The projector's learning rate when more than it trains. Default: LLaVA-1.5's 2e-5, raised for
    small models."""
    warmup: float = 0.03
    """Share of the steps over which the learning rate rises."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Longest gradient; a longer one is scaled down."""
    optimizer: Literal["auto", "adamw", "adamw-8bit"] = "auto"
    """auto: 8-bit AdamW where there is a GPU and bitsandbytes, else PyTorch's fused AdamW."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the forward pass. auto: bf16 where the processor computes in it. Trained
    weights stay fp32. GPUs without bf16, such as a T4, train in fp32: there is no fp16."""
    gradient_checkpointing: bool | None = None
    """Recompute activations to save memory. Default: where the memory plan asks for it."""
    seed: int = 0
    """Seed of the split, the order of the rows and the fresh weights."""


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Evaluation while training"""

    eval_every: float = 0.2
    """Evaluate before training and after every so many steps; below 1, this share of the run. 0:
    only at the end."""
    eval_questions: int = 500
    """Held-out questions answered at each evaluation; the final one answers them too."""
    watch: tuple[str, ...] = ()
    """Question to answer at every evaluation and keep, as `picture.png: question?`. Default: four
    of the held-out rows."""
    metric: Metric = "vqa_accuracy"
    """What the best checkpoint is chosen by."""
    patience: int | None = None
    """Stop after this many evaluations without a better one."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Run"""

    out: str = ""
    """Folder that the run is written to."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: go on where the same command was interrupted. never: start afresh, refused if the
    folder holds a finished run; the recipe's finished projector is trained again. must: refuse to
    start afresh."""
    save_every: float = 0.1
    """Write a checkpoint after this many steps; below 1, this share of the run. Also at every
    evaluation."""
    keep: int = 2
    """How many checkpoints to keep besides the best one."""
    feature_gb: float = 20.0
    """Disk space for the frozen encoder's outputs, which later epochs and runs reuse; 0 turns this
    off."""
    feature_dir: str | None = None
    """Where they are kept. Default: ~/.cache/vqa-app/features."""
    workers: int | None = None
    """Threads that read and prepare pictures. Default: the number of cores, at most 8."""
    device: str = "auto"
    """auto, cpu, cuda or mps. Of several GPUs CUDA_VISIBLE_DEVICES=1 chooses one."""
    report_to: tuple[str, ...] = ()
    """Also log to tensorboard, wandb or trackio."""
    fsdp: str | None = None
    """Shard over GPUs with an accelerate FSDP config: default or offload, which come with the
    package, or a file."""
    deepspeed: str | None = None
    """Shard over GPUs with a DeepSpeed config: zero2, zero3 or zero3_offload, which come with the
    package, or a file."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunOptions, EvalOptions, OptimOptions, ModelOptions, DataOptions):
    """A fine-tuning run.

    Paths may be texts or `Path`s; where there may be several, a list or a single one does. None
    stands for the default, as an empty entry in YAML does.

    Raises:
        UsageError: a value that cannot be right, named with what to write instead.
    """

    def __post_init__(self) -> None:
        _settle_types(self)
        for name in ("out", "feature_dir", "fsdp", "deepspeed"):  # a shell expands none behind "="
            if value := getattr(self, name):
                object.__setattr__(self, name, os.path.expanduser(value))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{field.name} is {value}.", "Give a finite number.")
        above_zero = ("epochs", "max_steps", "batch_size", "micro_batch_size", "lr", "projector_lr")
        above_zero += ("rank", "alpha", "max_length", "patience", "workers", "keep")
        for name in (*above_zero, "eval_questions"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UsageError(f"{name} is {value}.", "Give a number above 0.")
        not_below = ("weight_decay", "max_grad_norm", "eval_every", "save_every", "feature_gb")
        for name in (*not_below, "max_bad", "seed"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}.", "Give 0 or more.")
        if self.seed >= 2**32:
            raise UsageError(f"seed is {self.seed}.", "Give one below 4294967296.")
        for name in ("eval_fraction", "dropout", "warmup"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UsageError(f"{name} is {value}.", "Give a share from 0 to below 1.")
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

    def replace(self, **changes: Any) -> FinetuneConfig:
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and YAML, every key in declaration order."""
        values = dataclasses.asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "The config") -> FinetuneConfig:
        """Builds a config from plain values.

        Raises:
            UsageError: an unknown key (with the one that was probably meant), or a wrong value.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1)
                raise UsageError(
                    f"{source} has an unknown key {key!r}.",
                    f"Did you mean {near[0]!r}?"
                    if near
                    else f"Keys are: {', '.join(sorted(known))}.",
                )
        return cls(**values)

    @classmethod
    def from_yaml(cls, path: str | Path, **overrides: Any) -> FinetuneConfig:
        """Reads a YAML file; `overrides` (from the command line) win."""
        import yaml

        try:
            text = Path(os.path.expanduser(path)).read_text(encoding="utf-8-sig")
            values = yaml.safe_load(text)
        except OSError as error:
            raise UsageError(f"Cannot read {path}: {error.strerror}.", "Check the path.") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8 text.", "Save it as UTF-8.") from error
        except yaml.YAMLError as error:
            raise UsageError(
                f"{path} is not YAML: {error}", "Write one `key: value` a line."
            ) from error
        if values is not None and not isinstance(values, dict):
            raise UsageError(f"{path} holds no keys.", "Write one `key: value` a line.")
        return cls.from_dict({**(values or {}), **overrides}, source=str(path))


@cache
def option_help() -> dict[str, tuple[str, str]]:
    """For every option, the panel it belongs to and its help text (the attribute's docstring)."""
    found: dict[str, tuple[str, str]] = {}
    for section in (DataOptions, ModelOptions, OptimOptions, EvalOptions, RunOptions):
        body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            match statement, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                    value=ast.Constant(value=str(text))
                ):
                    found[name] = (inspect.getdoc(section) or "", " ".join(text.split()))
    return found


def _settle_types(config: FinetuneConfig) -> None:
    """Brings every value into its attribute's type, or refuses it."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        hint, given = hints[field.name], getattr(config, field.name)
        value = field.default if given is None else _in_type(hint, given)
        if not _accepts(hint, value):
            raise UsageError(f"{field.name} is {given!r}.", f"Give {_describe(hint)}.")
        object.__setattr__(config, field.name, value)


def _in_type(hint: Any, value: Any) -> Any:
    """What can be meant by a value of a near type: one for several, a list for a tuple, a path, a
    whole number, a text that YAML takes for no number, such as 1e-4.
    """
    if typing.get_origin(hint) is tuple:
        several = value if isinstance(value, (list, tuple)) else (value,)
        return tuple(os.fspath(v) if isinstance(v, os.PathLike) else v for v in several)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if _accepts(hint, 1) and isinstance(value, float) and value.is_integer():
        return int(value)
    if _accepts(hint, 0.5) and not _accepts(hint, value) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, TypeError):
            return float(value)
    return value


def _accepts(hint: Any, value: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_accepts(option, value) for option in typing.get_args(hint))
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(hint))
    if origin is Literal:
        return ", ".join(map(str, typing.get_args(hint)))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return "nothing" if hint is type(None) else names.get(hint, "a list of texts")
