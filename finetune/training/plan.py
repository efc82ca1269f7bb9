"""The settings that a config leaves open, and the memory that a run needs.

The values are LLaVA-1.5's (Liu et al., 2023, *Improved Baselines with Visual Instruction Tuning*,
table 9, and scripts/v1_5/{pretrain,finetune_lora,finetune}.sh of haotian-liu/LLaVA):

    stage      learning rate   projector's   batch   LoRA
    projector  1e-3            1e-3          256
    lora       2e-4            2e-5          128     r 128, alpha 256, dropout 0.05
    full       2e-5            2e-5          128

one epoch, cosine after a warm-up of 3 %, no weight decay. They were found for an LLM 4,096 wide and
558,000 or 665,000 rows. Models and data sets are usually smaller here, so:

    learning rates  × sqrt(4096 / width)     Adam's stable rate falls as layers get wider
                                             (Yang et al., 2022)
    rank            ≤ width / 4              128 is not a low rank in a layer 192 wide
    dropout         0 below a width of 1024  small models underfit before they overfit
    batch           ≤ sequences / 200        so that an epoch has steps to learn in; at least 8
    epochs          up to 10                 as many as TARGET_STEPS steps take
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from finetune.config import FinetuneConfig, ModelOptions, OptimOptions, Stage
from finetune.progress import pluralize
from vqa_app.errors import UsageError
from vqa_app.files import format_bytes

if TYPE_CHECKING:
    import torch

    from finetune.training.device import DeviceMemory, Machine

LLAVA_WIDTH = 4096
LLAVA_LR: dict[Stage, float] = {"projector": 1e-3, "lora": 2e-4, "qlora": 2e-4, "full": 2e-5}
LLAVA_PROJECTOR_LR = 2e-5
LLAVA_BATCH: dict[Stage, int] = {"projector": 256, "lora": 128, "qlora": 128, "full": 128}
LLAVA_RANK = 128

TARGET_STEPS = 400
MAX_EPOCHS = 10
MIN_BATCH = 8
MEMORY_SHARE = 0.8
"""How much of the free memory the plan may use."""
CPU_KERNEL_BYTES = 1700 * 10**6
"""Further memory that bf16 takes on a CPU. Measured on easy-VQA: 1.2 GB after 100 steps and 1.7 GB
after 600. By `mallinfo2` after 100 steps: 0.6 GB in use (kernels that oneDNN prepares for each
shape of batch; a smaller cache of its primitives changed nothing), 0.3 GB that the allocator keeps
for the next step, and up to 0.5 GB more while held-out questions are answered."""
CPU_TOKENS_AT_ONCE = 2048
"""Beyond this a larger micro-batch is no faster on a CPU."""


@dataclass(frozen=True)
class Shape:
    """The dimensions of an LLM that the defaults depend on."""

    width: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int

    @classmethod
    def of(cls, text_config: Any) -> Shape:
        """Read the dimensions from the config of an LLM."""
        from vqa_app.models.architecture import mlp_width

        return cls(
            width=text_config.hidden_size,
            intermediate=mlp_width(text_config),
            layers=text_config.num_hidden_layers,
            heads=text_config.num_attention_heads,
            vocabulary=text_config.vocab_size,
        )


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that a stage trains with."""

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
    """Micro-batches per process and step."""
    steps: int
    eight_bit_optimizer: bool
    gradient_checkpointing: bool


@dataclass(frozen=True)
class MemoryPlan:
    """Estimated bytes on one device at the largest micro-batch."""

    held: int
    kernels: int
    copies: int
    """Trained weights in 16 bits, as autocast keeps them from the forward to the backward pass."""
    gradients: int
    optimizer: int
    activations: int
    free: int

    @property
    def needed(self) -> int:
        """Bytes needed beyond those already in use."""
        parts = (self.copies, self.gradients, self.optimizer, self.activations)
        return self.kernels + sum(parts)

    def __str__(self) -> str:
        total = format_bytes(self.held + self.needed)
        return f"Memory: about {total}; {format_bytes(self.free)} are free."

    @property
    def listing(self) -> str:
        """What needs how much, in words."""
        parts = {
            "program and weights": self.held,
            "kernels": self.kernels,
            "16-bit copies": self.copies,
            "gradients": self.gradients,
            "optimiser": self.optimizer,
            "activations": self.activations,
        }
        return ", ".join(f"{name} {format_bytes(value)}" for name, value in parts.items() if value)


def lora_settings(given: ModelOptions, width: int) -> tuple[int, int, float]:
    """Return LoRA's rank, alpha and dropout for an LLM of this width."""
    rank = given.rank or min(LLAVA_RANK, max(4, width // 4))
    dropout = given.dropout if given.dropout is not None else (0.05 if width >= 1024 else 0.0)
    return rank, given.alpha or 2 * rank, dropout


def steps_of(config: FinetuneConfig, sequences: float, processes: int) -> tuple[int, int]:
    """Return the rows of each step and the number of steps.

    Every process gets the same number of rows, so that none has an empty micro-batch.

    Args:
        config: All options of the stage.
        sequences: Number of sequences in an epoch, weights included.
        processes: Number of processes that share each step.
    """
    smallest = MIN_BATCH if sequences >= MIN_BATCH else max(1, int(sequences))
    batch = config.batch_size or max(smallest, min(LLAVA_BATCH[config.stage], int(sequences / 200)))
    batch = processes * math.ceil(batch / processes)
    steps_per_epoch = sequences / batch
    epochs = config.epochs or min(MAX_EPOCHS, max(1, math.ceil(TARGET_STEPS / steps_per_epoch)))
    return batch, config.max_steps or max(1, math.ceil(epochs * steps_per_epoch))


def learning_rates(config: FinetuneConfig, width: int) -> tuple[float, float]:
    """Return the learning rates of the LLM (or of all trained weights) and of the projector."""
    scale = max(1.0, math.sqrt(LLAVA_WIDTH / width))
    rate = config.lr or LLAVA_LR[config.stage] * scale
    projector = rate if config.stage == "projector" else LLAVA_PROJECTOR_LR * scale
    return rate, config.projector_lr or projector


def decide(
    config: FinetuneConfig,
    *,
    sequences: float,
    longest: int,
    labels: int,
    shape: Shape,
    trainable: int,
    machine: Machine,
    memory: DeviceMemory,
) -> tuple[TrainingSettings, MemoryPlan]:
    """Decide the settings that the config leaves open, and plan the memory.

    Args:
        config: All options of the stage.
        sequences: Number of sequences in an epoch, weights included.
        longest: Tokens of the longest sequence.
        labels: Largest number of trained tokens in a sequence.
        shape: Dimensions of the LLM.
        trainable: Number of trainable parameters.
        machine: Where it trains.
        memory: Memory of the device, with the model loaded.

    Raises:
        UsageError: The config asks for the 8-bit optimiser, which is not available.
    """
    lr, projector_lr = learning_rates(config, shape.width)
    rank, alpha, dropout = lora_settings(config, shape.width)
    batch, steps = steps_of(config, sequences, machine.processes)
    sharded = bool(config.fsdp or config.deepspeed)
    eight_bit = _eight_bit_optimizer(config.optimizer, machine.device.type, sharded)

    def plan(micro: int, checkpointing: bool) -> MemoryPlan:
        return MemoryPlan(
            held=memory.held,
            kernels=CPU_KERNEL_BYTES if machine.autocast and not machine.on_gpu else 0,
            copies=autocast_bytes(trainable, machine.autocast),
            gradients=4 * trainable,
            optimizer=(2 if eight_bit else 8) * trainable,
            activations=activation_bytes(
                shape,
                (micro, longest, labels),
                machine.dtype.itemsize,
                inputs_kept=config.stage != "projector",
                weights_kept=not machine.on_gpu,
                checkpointing=checkpointing,
            ),
            free=memory.free,
        )

    share = batch // machine.processes
    micro, checkpointing = _fitting(config, share, plan, None if machine.on_gpu else longest)
    settings = TrainingSettings(
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
        eight_bit_optimizer=eight_bit,
        gradient_checkpointing=checkpointing,
    )
    return settings, plan(micro, checkpointing)


def autocast_bytes(trainable: int, autocast: torch.dtype | None) -> int:
    """Return the bytes of the copies that autocast makes of the trained weights, which are fp32."""
    return autocast.itemsize * trainable if autocast else 0


def activation_bytes(
    shape: Shape,
    batch: tuple[int, int, int],
    itemsize: int,
    *,
    inputs_kept: bool,
    weights_kept: bool,
    checkpointing: bool,
) -> int:
    """Return the bytes that are kept for the backward pass.

    Counted in autograd's graph of Llama's and Qwen2's layers (gated MLP, residuals and norms in
    fp32). One layer more is added for what is in use at the same time.

    Args:
        shape: Dimensions of the LLM.
        batch: Number of rows, tokens of the longest row, largest number of labels in a row.
        itemsize: Bytes of a number in the forward pass.
        inputs_kept: Whether inputs of linear layers are kept, for their own or their LoRA's
            gradients.
        weights_kept: Whether attention weights are kept; fused attention keeps none.
        checkpointing: Whether activations are recomputed.
    """
    from finetune.kernels.cpu_attention import MAX_SAVED_WEIGHTS
    from finetune.training.objective import LOGITS_AT_ONCE

    rows, longest, labels = batch
    narrow = 5 * 4 + 4 * itemsize * inputs_kept
    wide = itemsize * (3 + inputs_kept)
    layer = rows * longest * (narrow * shape.width + wide * shape.intermediate)
    weights = rows * shape.heads * longest**2
    if weights_kept and weights <= MAX_SAVED_WEIGHTS:
        layer += itemsize * weights
    kept = (shape.layers + 1) * layer
    if checkpointing:
        kept = 2 * layer + shape.layers * rows * longest * shape.width * 4
    return kept + min(LOGITS_AT_ONCE, rows * labels * shape.vocabulary) * (itemsize + 8)


def describe(settings: TrainingSettings, chosen: FinetuneConfig, machine: Machine) -> str:
    """Return the settings in words."""
    lr, projector = _decimal(settings.lr), _decimal(settings.projector_lr)
    rates = f"Learning rate {lr}, {projector} for the projector."
    parts = [
        f"Stage {settings.stage}.",
        f"Learning rate {lr}." if settings.stage == "projector" else rates,
    ]
    if settings.stage in ("lora", "qlora"):
        parts.append(f"LoRA of rank {settings.rank}, alpha {settings.alpha}.")
    steps, rows = pluralize(settings.steps, "step"), pluralize(settings.batch_size, "row")
    parts.append(f"{steps} of {rows}; passes over the data: {settings.epochs:.3g}.")
    if chosen.batch_size not in (None, settings.batch_size):
        parts.append(f"{chosen.batch_size} rows cannot be shared evenly by the processes.")
    if settings.micro_batches > 1:
        parts.append(f"Micro-batches in each step: {settings.micro_batches}.")
    unscaled = "bf16" if machine.autocast else "fp32"
    precision = "fp16 with a scaled loss" if machine.scales_loss else unscaled
    parts.append(f"Precision: {precision}.")
    if settings.eight_bit_optimizer:
        parts.append("8-bit AdamW.")
    if settings.gradient_checkpointing:
        parts.append("Gradient checkpointing.")
    return " ".join(parts)


def _decimal(number: float) -> str:
    """Return two significant digits without an exponent: "0.000092"."""
    return f"{Decimal(f'{number:.2g}'):f}"


def _fitting(
    given: OptimOptions, share: int, plan: Callable[[int, bool], MemoryPlan], longest: int | None
) -> tuple[int, bool]:
    """Return the micro-batch size and whether to checkpoint gradients, so that the plan fits.

    Args:
        given: The options, which may fix either.
        share: Rows of the batch that one process trains on.
        plan: Function from micro-batch size and checkpointing to the memory plan.
        longest: Tokens of the longest row on a CPU, else None.
    """

    def fits(size: int, checkpointing: bool) -> bool:
        made = plan(size, checkpointing)
        return made.needed <= MEMORY_SHARE * made.free

    checkpointing = given.gradient_checkpointing
    if checkpointing is None:
        checkpointing = not fits(1, False)
    micro = given.micro_batch_size or _largest(
        share,
        lambda size: (
            fits(size, checkpointing) and (longest is None or size * longest <= CPU_TOKENS_AT_ONCE)
        ),
    )
    return min(micro, share), checkpointing


def _largest(share: int, fits: Callable[[int], bool]) -> int:
    """Return the largest size that fits and divides `share` into nearly equal parts; at least 1."""
    parts = next((n for n in range(1, share + 1) if fits(math.ceil(share / n))), share)
    return math.ceil(share / parts)


def filled_in(config: FinetuneConfig, settings: TrainingSettings) -> FinetuneConfig:
    """Return the config with the decided values, for the manifest."""
    decided = {name: value for name, value in asdict(settings).items() if hasattr(config, name)}
    return config.replace(**{k: v for k, v in decided.items() if getattr(config, k) is None})


def _eight_bit_optimizer(optimizer: str, device: str, sharded: bool) -> bool:
    if optimizer == "auto":  # slow on a CPU; its kernels do not support sharding
        return device == "cuda" and not sharded and _has_bitsandbytes()
    if optimizer == "adamw-8bit" and (device == "mps" or not _has_bitsandbytes()):
        on_mps = device == "mps"
        why = "does not compute on mps" if on_mps else "is not installed"
        raise UsageError(
            f"--optimizer adamw-8bit needs bitsandbytes, which {why}.",
            f"{'C' if on_mps else '`pip install bitsandbytes`, or c'}hoose --optimizer adamw.",
        )
    return optimizer == "adamw-8bit"


def _has_bitsandbytes() -> bool:
    from importlib.util import find_spec

    return find_spec("bitsandbytes") is not None
