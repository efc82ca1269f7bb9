"""`transformers.Trainer` with this package's batches, loss, checkpoints and evaluation.

This module alone calls or overrides private parts of the Trainer: `_get_num_items_in_batch`,
`_clip_grad_norm`, `_save_checkpoint`, `_save_optimizer_and_scheduler`, `_save_scaler`,
`_save_rng_state`, `_load_from_checkpoint` and `_created_lr_scheduler`. Tried with transformers 5.23
and 5.24, accelerate 1.15 and torch 2.13.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.utils import save_fsdp_optimizer
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from finetune.config import FinetuneConfig
from finetune.data.samples import Sample
from finetune.progress import OnProgress, Progress, format_metric
from finetune.runs import checkpoint
from finetune.runs.layout import METRICS_FILE
from finetune.training.batches import MicroBatchSampler, Prefetcher, make_loader
from finetune.training.collator import ROWS
from finetune.training.device import Machine
from finetune.training.freezing import projector_parameters
from finetune.training.objective import Objective
from finetune.training.plan import TrainingSettings
from finetune.training.resume import cut_metrics
from finetune.training.sharding import (
    deepspeed_config,
    fsdp_config,
    load_trained,
    save_trained,
)
from vqa_app.devices import release_memory
from vqa_app.errors import DataError, ModelError
from vqa_app.files import atomic_directory, write_error_reason
from vqa_app.transformers_internals import train_on

_STATE_FILE = "finetune_state.json"
_SMOOTHING = 0.9
_SHOWN_ROWS = 16


@dataclass
class Best:
    """The best evaluation so far; kept in every checkpoint."""

    value: tuple[float, float] | None = None
    """The metric, where larger is better, and the negative loss, which breaks ties."""
    step: int = 0
    evaluations_since: int = 0
    latest_scores: dict[str, float] = field(default_factory=dict)
    """Scores of the latest evaluation."""

    def write(self, path: Path) -> None:
        """Write it into a checkpoint."""
        values = asdict(self)
        path.write_text(
            json.dumps({key: values[name] for name, key in _BEST_KEYS.items()}), encoding="utf-8"
        )

    @classmethod
    def read(cls, path: Path) -> Best:
        """Read what `write` wrote."""
        saved = json.loads(path.read_text(encoding="utf-8"))
        best = cls(**{name: saved[key] for name, key in _BEST_KEYS.items()})
        best.value = (best.value[0], best.value[1]) if best.value else None
        return best


_BEST_KEYS = {
    "value": "value",
    "step": "step",
    "evaluations_since": "since",
    "latest_scores": "last",
}
"""Keys in checkpoints, by attribute."""


@dataclass(frozen=True)
class Schedule:
    """When to evaluate and when to save, in steps."""

    evaluate_every: int
    """0 evaluates only at the end."""
    save_every: int
    keep: int
    """How many checkpoints to keep besides the best one."""
    metric: str
    """What the best checkpoint is chosen by."""
    patience: int | None
    """Stop after this many evaluations without a better one."""


def training_arguments(
    config: FinetuneConfig,
    settings: TrainingSettings,
    machine: Machine,
    *,
    every_parameter_used: bool,
    width: int,
) -> TrainingArguments:
    """Return the Trainer's arguments.

    Args:
        config: All options of the stage.
        settings: The decided settings of the stage.
        machine: Where it trains.
        every_parameter_used: Whether every batch has gradients for all trainable parameters.
        width: Width of the LLM.
    """
    on_cpu = machine.device.type == "cpu"
    arguments = TrainingArguments(
        output_dir=config.out,
        project="vqa-app",
        run_name=Path(config.out).name,
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.micro_batches,
        max_steps=settings.steps,
        learning_rate=settings.lr,
        lr_scheduler_type="constant_with_warmup"
        if config.schedule == "constant"
        else config.schedule,
        warmup_steps=config.warmup,  # below 1 it is a share, here as in transformers
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and machine.processes > 1 else None,
        ddp_find_unused_parameters=not every_parameter_used,
        fsdp=True if config.fsdp else None,  # type: ignore[arg-type]  # accepts a bool, too
        fsdp_config=fsdp_config(config.fsdp) if config.fsdp else None,
        deepspeed=deepspeed_config(config.deepspeed, width) if config.deepspeed else None,
        report_to=list(config.report_to) or "none",
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        fp16=machine.scales_loss and not on_cpu,
    )
    if machine.processes == 1:
        train_on(arguments, machine.device)
    return arguments


class FinetuneTrainer(Trainer):
    """A Trainer of an `Objective`.

    The loss is normalised by the trained tokens of the whole step, over micro-batches and
    processes. The first loss or gradient that is not finite ends the run. Checkpoints are complete
    or do not exist.

    Args:
        objective: Model and loss.
        arguments: See `training_arguments`.
        machine: Where it trains.
        plan: The samples of each step.
        collate: Function from the positions of samples to a batch.
        settings: The decided settings of the stage.
        schedule: When to evaluate and to save.
        run: The run directory.
        evaluate_at: Called with the step; returns vqa_accuracy, loss and image_gain. With None, the
            model is not evaluated.
        on_progress: Called at every step.
        should_stop: Called after every step; if it returns True, a checkpoint is written and the
            run ends.
    """

    def __init__(
        self,
        objective: Objective,
        arguments: TrainingArguments,
        *,
        machine: Machine,
        plan: MicroBatchSampler,
        collate: Callable[[Sequence[int]], dict[str, Any]],
        settings: TrainingSettings,
        schedule: Schedule,
        run: Path,
        evaluate_at: Callable[[int], dict[str, float]] | None,
        on_progress: OnProgress,
        should_stop: Callable[[], bool],
    ) -> None:
        self.objective: Objective = objective
        self.machine = machine
        self.plan = plan
        self.collate = collate
        self.settings = settings
        self.schedule = schedule
        self.run = run
        self.epoch_size = float(plan.weights.sum())  # sequences in an epoch
        self.evaluate_at = evaluate_at
        self.on_progress = on_progress
        self.should_stop = should_stop
        self.best = Best()
        self.stopped = False
        self._smoothed = (0.0, 0.0)  # weighted sum of losses, and sum of the weights
        self._prefetcher: Prefetcher | None = None
        self._batch_rows: list[Sample] = []
        self._began = (time.monotonic(), 0)
        arguments.eval_on_start = evaluate_at is not None and schedule.evaluate_every > 0
        super().__init__(objective, arguments, callbacks=[_StepCallback(self)])
        self.pop_callback(PrinterCallback)

    # Data

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of the plan."""
        return make_loader(self.plan, self.collate)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Return the batches of a step, and start to collate those of the next."""
        if self._prefetcher is None or self._prefetcher.source is not epoch_iterator:
            self._prefetcher = Prefetcher(epoch_iterator)
        batches = self._prefetcher.take(num_batches)
        self._batch_rows = [sample for batch in batches for sample in batch[ROWS]]
        return batches, self._get_num_items_in_batch(batches, device)

    # Steps

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return AdamW with a learning rate of its own for the projector."""
        if self.optimizer is None:
            projector = projector_parameters(self.objective.model)
            groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
            for name, parameter in (model or self.objective).named_parameters():
                if parameter.requires_grad:
                    own_name = name.removeprefix("module.").removeprefix("model.")
                    groups[own_name in projector].append(parameter)
            rates = {True: self.settings.projector_lr, False: self.settings.lr}
            chosen = [
                {"params": groups[key], "lr": rates[key]} for key in (False, True) if groups[key]
            ]
            decay = self.args.weight_decay
            if self.settings.eight_bit_optimizer:
                from bitsandbytes.optim import AdamW8bit

                self.optimizer = AdamW8bit(chosen, weight_decay=decay)
            else:
                self.optimizer = torch.optim.AdamW(chosen, weight_decay=decay, fused=True)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        """Return a schedule whose first step has a rate above 0, unlike the Trainer's own."""
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            assert optimizer is not None
            kind = self.args.lr_scheduler_type
            warmup = int(self.args.warmup_steps * num_training_steps)
            self.lr_scheduler = LambdaLR(
                optimizer, lambda step: share_of_peak(step, num_training_steps, warmup, kind)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of a micro-batch.

        Raises:
            DataError: The loss is not finite.
        """
        rows = inputs.pop(ROWS)
        loss: Any = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        if not torch.isfinite(loss):
            self._raise_not_finite("loss", rows)
        return (loss, None) if return_outputs else loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        if norm is not None and not math.isfinite(float(norm)) and not self._scale_too_large():
            self._raise_not_finite("gradient", self._batch_rows)
        return norm

    def _scale_too_large(self) -> bool:
        """Return whether gradients may overflow only because the loss is scaled up for fp16.

        The optimiser then skips the step, and the next one has half the scale.
        """
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() > 1

    def _raise_not_finite(self, what: str, rows: Sequence[Sample]) -> NoReturn:
        places = list(dict.fromkeys(sample.row.place for sample in rows))
        shown = "; ".join(places[:_SHOWN_ROWS])
        if len(places) > _SHOWN_ROWS:
            shown += f" and {len(places) - _SHOWN_ROWS} more"
        last = checkpoint.latest_checkpoint(self.run)
        kept = f"The last good checkpoint is {last}." if last else "No checkpoint had been written."
        step = self.state.global_step + 1
        remedy = "Check these rows, or lower the learning rate."
        if self.machine.scales_loss:
            remedy += " If they are right, --precision fp32 has no values that are too large."
        raise DataError(
            f"The {what} is not finite at step {step}. Rows in the batch: {shown}.",
            f"{remedy} {kept}",
        )

    # Reports

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write a line of metrics.jsonl; integrations (`report_to`) get it too."""
        if "train_runtime" in logs:
            return
        step = self.state.global_step
        if not math.isfinite(logs.get("grad_norm", 0.0)):  # of a step that was skipped
            del logs["grad_norm"]
        logs["epoch"] = step * self.settings.batch_size / self.epoch_size
        if "loss" in logs:
            total, count = self._smoothed
            self._smoothed = (_SMOOTHING * total + logs["loss"], _SMOOTHING * count + 1)
        if self.machine.is_main:
            with (self.run / METRICS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **logs}) + "\n")
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)
        self.report(logs.get("learning_rate"))

    def report(self, learning_rate: float | None) -> None:
        """Report step, loss, speed and time left."""
        step, began, first = self.state.global_step, *self._began
        speed = (step - first) / max(1e-9, time.monotonic() - began) if step > first else None
        total, count = self._smoothed
        self.on_progress(
            Progress(
                "training",
                step,
                self.settings.steps,
                epoch=step * self.settings.batch_size / self.epoch_size,
                loss=total / count if count else None,
                learning_rate=learning_rate,
                samples_per_second=speed and speed * self.settings.batch_size,
                seconds_left=speed and (self.settings.steps - step) / speed,
                evaluation=self.best.latest_scores,
            )
        )

    # Evaluation

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Evaluate on held-out rows, remember the best step, and stop when patience runs out.

        The evaluation before training is reported, but never counts as the best.
        """
        assert self.evaluate_at is not None
        began, step = time.monotonic(), self.state.global_step
        scores = self.evaluate_at(step)
        self._began = (self._began[0] + time.monotonic() - began, self._began[1])
        self.control.should_evaluate = False  # the Trainer would evaluate again at the end
        if not scores:  # only watch questions, no held-out rows
            return {}
        self.best.latest_scores = scores
        if step == 0:
            self.on_progress(Progress("evaluating", message=_before_training(scores)))
        else:
            self._update_best(scores)
        metrics = {f"eval_{name}": number for name, number in scores.items()}
        self.log(dict(metrics))
        return metrics

    def _update_best(self, scores: dict[str, float]) -> None:
        by_loss = self.schedule.metric == "loss" or self.schedule.metric not in scores
        value = (-scores["loss"] if by_loss else scores[self.schedule.metric], -scores["loss"])
        if self.best.value is None or value > self.best.value:
            self.best.value, self.best.step = value, self.state.global_step
            self.best.evaluations_since = 0
        else:
            self.best.evaluations_since += 1
            if self.schedule.patience and self.best.evaluations_since >= self.schedule.patience:
                self.control.should_training_stop = True

    # Checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write everything that resuming needs, completely or not at all."""
        step = self.state.global_step
        if not all(p.isfinite().all() for p in model.parameters() if p.requires_grad):
            # With max_grad_norm 0 nothing else checks the gradients.
            self._raise_not_finite("model", self._batch_rows)
        state_dict = self.gathered_state()
        target = checkpoint.step_directory(self.run, step)
        try:
            with self._shared_directory(target) as folder:
                if self.machine.is_main:
                    checkpoint.save_weights(
                        self.objective.model, self.settings.stage, folder, state_dict=state_dict
                    )
                    self.state.save_to_json(str(folder / "trainer_state.json"))
                    self.best.write(folder / _STATE_FILE)
                self._save_optimizer_and_scheduler(str(folder))
                self._save_scaler(str(folder))
                self._save_rng_state(str(folder))
        except Exception as error:
            if (why := write_error_reason(error)) is None:
                raise
            last = checkpoint.latest_checkpoint(self.run) or "the beginning"
            raise ModelError(
                f"Cannot write the checkpoint of step {step}: {why}.",
                f"Make room and run the same command again; it continues from {last}.",
            ) from error
        self.control.should_save = False
        if self.machine.is_main:
            self._remove_old_checkpoints()

    @contextlib.contextmanager
    def _shared_directory(self, target: Path) -> Iterator[Path]:
        """Open an `atomic_directory` that all processes write into."""
        opened = atomic_directory(target) if self.machine.is_main else contextlib.nullcontext()
        with opened as main_folder:
            folder = self.machine.from_main(main_folder)
            assert folder is not None
            yield folder
            self.machine.wait_for_all()  # until all have written
        self.machine.wait_for_all()  # until it has been renamed

    def _remove_old_checkpoints(self) -> None:
        saved = checkpoint.checkpoint_steps(self.run)
        keep = {*list(saved)[-self.schedule.keep :], self.best.step}
        for step, folder in saved.items():
            if step not in keep:
                shutil.rmtree(folder, ignore_errors=True)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Write them as the Trainer does, but without the frozen weights of a sharded model."""
        if self.is_deepspeed_enabled:
            engine: Any = self.model_wrapped
            # The Trainer passes this only if the model is PEFT's, and here it is in an `Objective`.
            engine.save_checkpoint = partial(engine.save_checkpoint, exclude_frozen_parameters=True)
            try:
                super()._save_optimizer_and_scheduler(output_dir)
            finally:
                del engine.save_checkpoint  # the engine's own method is visible again
        elif self._uses_fsdp2():
            save_trained(self.model_wrapped, Path(output_dir))
            plugin = self.accelerator.state.fsdp_plugin
            save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
            if self.args.should_save:
                assert self.lr_scheduler is not None
                torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def _uses_fsdp2(self) -> bool:
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        return bool(self.is_fsdp_enabled and plugin is not None and plugin.fsdp_version == 2)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._uses_fsdp2():
            load_trained(self.model_wrapped, Path(resume_from_checkpoint))
        elif self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            folder = Path(resume_from_checkpoint)
            checkpoint.load_weights(self.objective.model, self.settings.stage, folder)

    def resume(self, folder: Path) -> None:
        """Train from a checkpoint to the end."""
        self.best = Best.read(folder / _STATE_FILE)
        step = int(json.loads((folder / "trainer_state.json").read_text("utf-8"))["global_step"])
        if self.machine.is_main:
            cut_metrics(self.run, step)
        self._began = (time.monotonic(), step)
        self.args.eval_on_start = False
        self.train(resume_from_checkpoint=str(folder))

    def release(self) -> None:
        """Release gradients, optimiser and batches: saving and verifying need the memory."""
        self.accelerator.free_memory()
        self.model_wrapped, self._prefetcher = self.objective, None
        self.optimizer = self.lr_scheduler = None
        self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        self.objective.zero_grad(set_to_none=True)
        release_memory()

    def gathered_state(self) -> dict[str, torch.Tensor] | None:
        """Return all parameters by name, gathered from the shards; None for an unsharded model."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return None
        state = self.accelerator.get_state_dict(self.model_wrapped) or {}
        return {name.removeprefix("model."): tensor for name, tensor in state.items()}


def _before_training(scores: dict[str, float]) -> str:
    """Return the evaluation before training in words."""
    if scores.keys() == {"vqa_accuracy", "loss", "image_gain"}:
        accuracy, loss, gain = (scores[name] for name in ("vqa_accuracy", "loss", "image_gain"))
        shown = f"{100 * accuracy:.1f} %"
        return f"Before training: accuracy {shown}, loss {loss:.3f}, image gain {gain:.3f}."
    listed = ", ".join(format_metric(name, value) for name, value in scores.items())
    return f"Before training: {listed}."


def share_of_peak(step: int, steps: int, warmup: int, kind: str) -> float:
    """Return a step's learning rate as a share of the highest.

    Args:
        step: The step, from 0.
        steps: Number of steps in the whole run.
        warmup: Steps over which the rate rises.
        kind: linear or cosine, which fall to 0 after the last step; any other is constant.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    if kind == "linear":
        return 1 - done
    return (1 + math.cos(math.pi * done)) / 2 if kind == "cosine" else 1.0


class _StepCallback(TrainerCallback):
    """Decides after each step whether to evaluate, save or stop."""

    def __init__(self, trainer: FinetuneTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer._began = (time.monotonic(), state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer, step = self.trainer, state.global_step
        schedule, last = trainer.schedule, step >= trainer.settings.steps
        every = schedule.evaluate_every
        if trainer.evaluate_at and (last or (every and step % every == 0)):
            control.should_evaluate = control.should_save = True
        if schedule.save_every and step % schedule.save_every == 0:
            control.should_save = True
        if self._stops_anywhere() and not last:
            trainer.stopped = True
            control.should_save = control.should_training_stop = True

    def _stops_anywhere(self) -> bool:
        """Return whether any process was asked to stop: all must stop at the same step."""
        requested = self.trainer.should_stop()
        if self.trainer.machine.processes == 1:
            return requested
        flag = torch.tensor(float(requested), device=self.trainer.args.device)
        torch.distributed.all_reduce(flag)
        return bool(flag)
