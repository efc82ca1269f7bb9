"""What a run takes where the config says nothing, and the memory that it will need.

The values are LLaVA-1.5's (Liu et al., 2023, *Improved Baselines with Visual Instruction Tuning*,
table 9, and scripts/v1_5/{pretrain,finetune_lora,finetune}.sh of haotian-liu/LLaVA):

    stage      learning rate   projector's   batch   LoRA
    projector  1e-3            1e-3          256
    lora       2e-4            2e-5          128     r 128, alpha 256, dropout 0.05
    full       2e-5            2e-5          128

one epoch, cosine after a warm-up of 3 %, no weight decay. They were found for an LLM 4,096 wide and
558,000 or 665,000 rows. Here smaller ones are the rule, so:

    learning rates  × sqrt(4096 / width)     Adam's stable rate falls as layers get wider
                                             (Yang et al., 2022)
    rank            ≤ width / 4              128 in a layer 192 wide is no low rank
    dropout         0 below a width of 1024  small models underfit before they overfit
    batch           ≤ sequences / 200        so that an epoch has steps to learn in; at least 8
    epochs          up to 10                 as many as it takes for STEPS_WANTED steps
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from finetune.config import FinetuneConfig, Stage
from finetune.progress import pluralize
from vqa_app.errors import UsageError
from vqa_app.files import format_bytes

if TYPE_CHECKING:
    import torch

LLAVA_WIDTH = 4096
LLAVA_LR: dict[Stage, float] = {"projector": 1e-3, "lora": 2e-4, "qlora": 2e-4, "full": 2e-5}
LLAVA_PROJECTOR_LR = 2e-5
LLAVA_BATCH: dict[Stage, int] = {"projector": 256, "lora": 128, "qlora": 128, "full": 128}
LLAVA_RANK = 128

STEPS_WANTED = 400
MOST_EPOCHS = 10
LEAST_BATCH = 8
MEMORY_SHARE = 0.8
"""How much of the free memory the plan may use."""
CPU_KERNEL_BYTES = 1700 * 10**6
"""What comes on top in bf16 on a CPU. Measured on easy-VQA, 1.2 GB after 100 steps and 1.7 GB after
600: by `mallinfo2` after 100 steps, 0.6 GB that stays in use (kernels that oneDNN prepares for each
shape of batch; a smaller cache of its primitives changed nothing), 0.3 GB that the allocator keeps
for the next step, and up to 0.5 GB more while held-out rows are asked about."""
CPU_TOKENS_AT_ONCE = 2048
"""Beyond this a larger micro-batch is no faster on a CPU."""


@dataclass(frozen=True)
class Hardware:
    """One process's device."""

    device: str
    held_bytes: int
    """Taken already: the weights; on a CPU all of this process."""
    free_bytes: int
    """Still to be had."""
    computes_bf16: bool
    processes: int = 1

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"


@dataclass(frozen=True)
class Shape:
    """What the defaults look at of a model."""

    width: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int


@dataclass(frozen=True)
class Settings:
    """Everything that a stage trains with, decided."""

    stage: Stage
    lr: float
    projector_lr: float
    rank: int
    alpha: int
    dropout: float
    epochs: float
    batch_size: int
    micro_batch_size: int
    micro_batches: int
    """For each process and step."""
    steps: int
    bf16: bool
    eight_bit_optimizer: bool
    gradient_checkpointing: bool

    @property
    def dtype(self) -> torch.dtype:
        import torch

        return torch.bfloat16 if self.bf16 else torch.float32


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one device at the largest micro-batch; an estimate to choose by, not a promise."""

    held: int
    kernels: int
    gradients: int
    optimizer: int
    activations: int
    free: int

    @property
    def needed(self) -> int:
        """What comes on top of what is held."""
        return self.kernels + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        parts = {
            "program and weights": self.held,
            "kernels": self.kernels,
            "gradients": self.gradients,
            "optimiser": self.optimizer,
            "activations": self.activations,
        }
        listed = ", ".join(
            f"{name} {format_bytes(value)}" for name, value in parts.items() if value
        )
        total = format_bytes(self.held + self.needed)
        return f"Memory: about {total} ({listed}); {format_bytes(self.free)} are free."


def lora_settings(config: FinetuneConfig, width: int) -> tuple[int, int, float]:
    """LoRA's rank, alpha and dropout."""
    rank = config.rank or min(LLAVA_RANK, max(4, width // 4))
    dropout = config.dropout if config.dropout is not None else (0.05 if width >= 1024 else 0.0)
    return rank, config.alpha or 2 * rank, dropout


def steps_of(config: FinetuneConfig, sequences: float, processes: int) -> tuple[int, int]:
    """Rows a step, and steps. Each process has as many rows, so that none of its micro-batches is
    empty.
    """
    least = LEAST_BATCH if sequences >= LEAST_BATCH else max(1, int(sequences))
    batch = config.batch_size or max(least, min(LLAVA_BATCH[config.stage], int(sequences / 200)))
    batch = processes * math.ceil(batch / processes)
    each = sequences / batch  # steps of an epoch
    epochs = config.epochs or min(MOST_EPOCHS, max(1, math.ceil(STEPS_WANTED / each)))
    return batch, config.max_steps or max(1, math.ceil(epochs * each))


def learning_rates(config: FinetuneConfig, width: int) -> tuple[float, float]:
    """Of what trains, and of the projector."""
    scale = max(1.0, math.sqrt(LLAVA_WIDTH / width))
    rate = config.lr or LLAVA_LR[config.stage] * scale
    own = rate if config.stage == "projector" else LLAVA_PROJECTOR_LR * scale
    return rate, config.projector_lr or own


def decide(
    config: FinetuneConfig,
    *,
    sequences: float,
    longest: int,
    labels: int,
    shape: Shape,
    trainable: int,
    hardware: Hardware,
) -> tuple[Settings, MemoryPlan]:
    """Fills in what the config leaves open.

    Args:
        sequences: an epoch's, by weight.
        longest: tokens of the longest.
        labels: trained tokens of the one with most.
        trainable: parameters.

    Raises:
        UsageError: the 8-bit optimiser is asked for and not to be had.
    """
    lr, projector_lr = learning_rates(config, shape.width)
    rank, alpha, dropout = lora_settings(config, shape.width)
    batch, steps = steps_of(config, sequences, hardware.processes)
    bf16 = config.precision == "bf16" or (config.precision == "auto" and hardware.computes_bf16)
    eight_bit = _eight_bit_optimizer(config, hardware)

    def plan(micro: int, checkpointing: bool) -> MemoryPlan:
        return MemoryPlan(
            held=hardware.held_bytes,
            kernels=CPU_KERNEL_BYTES if bf16 and not hardware.on_gpu else 0,
            gradients=4 * trainable,
            optimizer=(2 if eight_bit else 8) * trainable,
            activations=activation_bytes(
                shape,
                (micro, longest, labels),
                2 if bf16 else 4,
                inputs_kept=config.stage != "projector",
                weights_kept=not hardware.on_gpu,
                checkpointing=checkpointing,
            ),
            free=hardware.free_bytes,
        )

    share = batch // hardware.processes
    micro, checkpointing = _fitting(config, share, plan, None if hardware.on_gpu else longest)
    settings = Settings(
        stage=config.stage,
        lr=lr,
        projector_lr=projector_lr,
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        epochs=steps * batch / sequences,
        batch_size=batch,
        micro_batch_size=micro,
        micro_batches=math.ceil(share / micro),
        steps=steps,
        bf16=bf16,
        eight_bit_optimizer=eight_bit,
        gradient_checkpointing=checkpointing,
    )
    return settings, plan(micro, checkpointing)


def activation_bytes(
    shape: Shape,
    batch: tuple[int, int, int],
    itemsize: int,
    *,
    inputs_kept: bool,
    weights_kept: bool,
    checkpointing: bool,
) -> int:
    """Kept for the backward pass, counted in autograd's graph of Llama's and Qwen2's layers (gated
    MLP, residuals and norms in fp32); for one layer more, as much again is in use at once.

    Args:
        batch: rows, tokens of the longest, labels of a row.
        inputs_kept: of linear layers, which their own or their LoRA's gradients need.
        weights_kept: attention weights; fused attention keeps none.
    """
    from finetune.kernels.cpu_attention import KEPT_WEIGHTS
    from finetune.training.objective import LOGITS_AT_ONCE

    rows, longest, labels = batch
    narrow = 5 * 4 + 4 * itemsize * inputs_kept
    wide = itemsize * (3 + inputs_kept)
    layer = rows * longest * (narrow * shape.width + wide * shape.intermediate)
    weights = rows * shape.heads * longest**2
    if weights_kept and weights <= KEPT_WEIGHTS:
        layer += itemsize * weights
    kept = (shape.layers + 1) * layer
    if checkpointing:
        kept = 2 * layer + shape.layers * rows * longest * shape.width * 4
    return kept + min(LOGITS_AT_ONCE, rows * labels * shape.vocabulary) * (itemsize + 8)


def describe(settings: Settings, chosen: FinetuneConfig) -> str:
    """The settings in one line; what was decided here and not by the person stands in brackets."""

    def shown(name: str, value: Any) -> str:
        given = getattr(chosen, name, None)
        return f"{name.replace('_', ' ')} {value if given else f'[{value}]'}"

    parts = [f"Stage {settings.stage}", shown("lr", f"{settings.lr:.2g}")]
    if settings.stage != "projector":
        parts.append(shown("projector_lr", f"{settings.projector_lr:.2g}"))
    if settings.stage in ("lora", "qlora"):
        parts += [shown("rank", settings.rank), shown("alpha", settings.alpha)]
    parts += [shown("epochs", f"{settings.epochs:.3g}"), shown("batch_size", settings.batch_size)]
    if chosen.batch_size not in (None, settings.batch_size):
        parts[-1] += f" [{chosen.batch_size} cannot be shared evenly by the processes]"
    split = settings.micro_batches
    parts.append(
        pluralize(settings.steps, "step") + (f" of {split} micro-batches" if split > 1 else "")
    )
    parts.append("bf16" if settings.bf16 else "fp32")
    if settings.eight_bit_optimizer:
        parts.append("8-bit AdamW")
    if settings.gradient_checkpointing:
        parts.append("gradient checkpointing")
    return ", ".join(parts) + "."


def _fitting(
    config: FinetuneConfig, share: int, plan: Callable[[int, bool], MemoryPlan], longest: int | None
) -> tuple[int, bool]:
    """Micro-batch size and whether to checkpoint gradients, so that the plan fits in memory.

    Args:
        share: of the batch, for one process.
        longest: tokens of the longest row, where a CPU computes; else None.
    """

    def fits(size: int, checkpointing: bool) -> bool:
        made = plan(size, checkpointing)
        return made.needed <= MEMORY_SHARE * made.free

    checkpointing = config.gradient_checkpointing
    if checkpointing is None:
        checkpointing = not fits(1, False)
    micro = config.micro_batch_size or _largest(
        share,
        lambda size: (
            fits(size, checkpointing) and (longest is None or size * longest <= CPU_TOKENS_AT_ONCE)
        ),
    )
    return min(micro, share), checkpointing


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest size up to `most` that fits and divides the batch into equal parts; at least
    1.
    """
    parts = next((n for n in range(1, most + 1) if fits(math.ceil(most / n))), most)
    return math.ceil(most / parts)


def filled_in(config: FinetuneConfig, settings: Settings) -> FinetuneConfig:
    """The config with what was decided in its place: the manifest says what was really done."""
    decided = {name: value for name, value in asdict(settings).items() if hasattr(config, name)}
    return config.replace(**{k: v for k, v in decided.items() if getattr(config, k) is None})


def _eight_bit_optimizer(config: FinetuneConfig, hardware: Hardware) -> bool:
    if config.optimizer == "auto":  # on a CPU it is slow, and its kernels know no shards
        sharded = config.fsdp or config.deepspeed
        return hardware.device == "cuda" and not sharded and _has_bitsandbytes()
    if config.optimizer == "adamw-8bit" and (hardware.device == "mps" or not _has_bitsandbytes()):
        why = "does not compute on mps" if hardware.device == "mps" else "is not installed"
        raise UsageError(
            f"optimizer adamw-8bit is bitsandbytes', which {why}.", "Choose optimizer adamw."
        )
    return config.optimizer == "adamw-8bit"


def _has_bitsandbytes() -> bool:
    from importlib.util import find_spec

    return find_spec("bitsandbytes") is not None
