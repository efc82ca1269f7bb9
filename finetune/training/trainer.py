"""`transformers.Trainer` with this package's batches, loss, checkpoints and evaluation."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from finetune.data.samples import Sample
from finetune.progress import OnProgress, Progress, format_metric
from finetune.runs import checkpoint
from finetune.runs.layout import METRICS_FILE
from finetune.training.batches import Ahead, BatchPlan, loader
from finetune.training.collator import ROWS
from finetune.training.device import from_main, wait
from finetune.training.freezing import projector_parameters
from finetune.training.objective import Objective
from finetune.training.plan import Settings
from finetune.training.resume import cut_metrics
from vqa_app.devices import release_memory
from vqa_app.errors import DataError, ModelError
from vqa_app.files import atomic_directory, write_error_reason

_STATE_FILE = "finetune_state.json"
_SMOOTHING = 0.9


@dataclass
class Best:
    """The best evaluation so far, and how many have come since. Kept in every checkpoint."""

    value: tuple[float, float] | None = None
    """The metric, larger is better, and the negative loss, which decides between equal ones."""
    step: int = 0
    since: int = 0
    last: dict[str, float] = field(default_factory=dict)
    """The latest evaluation."""


@dataclass(frozen=True)
class Schedule:
    """When to look and when to save; steps."""

    evaluate_every: int
    """0: only at the end."""
    save_every: int
    keep: int
    metric: str
    patience: int | None


class FinetuneTrainer(Trainer):
    """Trains an `Objective`.

    Loss is normalised by the trained tokens of the whole step, over micro-batches and processes.
    The first loss or gradient that is not finite ends the run. Checkpoints are whole or not there.
    """

    def __init__(
        self,
        objective: Objective,
        arguments: TrainingArguments,
        *,
        plan: BatchPlan,
        collate: Callable[[Sequence[int]], dict[str, Any]],
        settings: Settings,
        schedule: Schedule,
        run: Path,
        evaluation: Callable[[int], dict[str, float]] | None,
        on_progress: OnProgress,
        should_stop: Callable[[], bool],
    ) -> None:
        """Args:
        collate: positions of samples → batch.
        evaluation: called with the step; gives vqa_accuracy, loss, image_gain.
        should_stop: asked after every step; a checkpoint is written before the run ends.
        """
        self.objective = objective
        self.plan = plan
        self.collate = collate
        self.settings = settings
        self.schedule = schedule
        self.run = run
        self.epoch_size = float(plan.weights.sum())  # sequences of an epoch
        self.evaluation = evaluation
        self.on_progress = on_progress
        self.should_stop = should_stop
        self.best = Best()
        self.stopped = False
        self._smoothed = (0.0, 0.0)  # losses and how many, recent ones weigh more
        self._ahead: Ahead | None = None
        self._batch_rows: list[Sample] = []
        self._began = (time.monotonic(), 0)
        arguments.eval_on_start = evaluation is not None and schedule.evaluate_every > 0
        super().__init__(objective, arguments, callbacks=[_Steps(self)])
        self.pop_callback(PrinterCallback)

    # Data

    def get_train_dataloader(self) -> Any:
        return loader(self.plan, self.collate)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Collates the next step's batches while this one computes."""
        if self._ahead is None or self._ahead.source is not epoch_iterator:
            self._ahead = Ahead(epoch_iterator)
        batches = self._ahead.take(num_batches)
        self._batch_rows = [sample for batch in batches for sample in batch[ROWS]]
        return batches, self._get_num_items_in_batch(batches, device)

    # Steps

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW; the projector has its own learning rate."""
        if self.optimizer is None:
            module = model or self.model
            names = projector_parameters(self.objective.model)
            groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    plain = name.removeprefix("module.").removeprefix("model.")
                    groups[plain in names].append(parameter)
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
        """Rises from the first step on; the Trainer's own schedules take it with a rate of 0."""
        if self.lr_scheduler is None:
            kind = self.args.lr_scheduler_type
            warm = int(self.args.warmup_steps * num_training_steps)
            self.lr_scheduler = LambdaLR(
                optimizer or self.optimizer,
                lambda step: share_of_peak(step, num_training_steps, warm, kind),
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
        rows = inputs.pop(ROWS)
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        if not torch.isfinite(loss):
            self._not_finite("loss", rows)
        return (loss, None) if return_outputs else loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        if norm is not None and not math.isfinite(float(norm)):
            self._not_finite("gradient", self._batch_rows)
        return norm

    def _not_finite(self, what: str, rows: Sequence[Sample]) -> None:
        places = list(dict.fromkeys(sample.row.place for sample in rows))
        shown = "; ".join(places[:16]) + (
            f" and {len(places) - 16} more" if len(places) > 16 else ""
        )
        last = checkpoint.latest_checkpoint(self.run)
        kept = f"The last good checkpoint is {last}." if last else "No checkpoint had been written."
        step = self.state.global_step + 1
        raise DataError(
            f"The {what} is not finite at step {step}. Rows in the batch: {shown}.",
            f"Look at these rows, or lower the learning rate. {kept}",
        )

    # What is told

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Writes a line of metrics.jsonl; integrations (`report_to`) get it too."""
        if "train_runtime" in logs:
            return
        step = self.state.global_step
        logs["epoch"] = step * self.settings.batch_size / self.epoch_size
        if "loss" in logs:
            total, count = self._smoothed
            self._smoothed = (_SMOOTHING * total + logs["loss"], _SMOOTHING * count + 1)
        if self.is_world_process_zero():
            with (self.run / METRICS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **logs}) + "\n")
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)
        self.tell(logs.get("learning_rate"))

    def tell(self, learning_rate: float | None) -> None:
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
                evaluation=self.best.last,
            )
        )

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Looks at held-out rows, keeps the best, and stops where nothing has become better for too
        long. What the untrained model answers is told and kept, but is no candidate.
        """
        assert self.evaluation is not None
        began, step = time.monotonic(), self.state.global_step
        found = self.evaluation(step)
        self._began = (self._began[0] + time.monotonic() - began, self._began[1])
        self.control.should_evaluate = False  # the Trainer asks once more at the end
        if not found:  # there is something to watch, and nothing to score
            return {}
        self.best.last = found
        if step == 0:
            scores = "  ".join(format_metric(name, value) for name, value in found.items())
            self.on_progress(Progress("evaluating", message=f"Before training: {scores}"))
        else:
            self._rank(found)
        metrics = {f"eval_{name}": number for name, number in found.items()}
        self.log(dict(metrics))
        return metrics

    def _rank(self, found: dict[str, float]) -> None:
        """Is it the best so far?"""
        by_loss = self.schedule.metric == "loss" or self.schedule.metric not in found
        value = (-found["loss"] if by_loss else found[self.schedule.metric], -found["loss"])
        if self.best.value is None or value > tuple(self.best.value):
            self.best.value, self.best.step, self.best.since = value, self.state.global_step, 0
        else:
            self.best.since += 1
            if self.schedule.patience and self.best.since >= self.schedule.patience:
                self.control.should_training_stop = True

    # Checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes everything that resuming needs, beside its place, and renames it when it is
        whole.
        """
        step = self.state.global_step
        if not all(p.isfinite().all() for p in model.parameters() if p.requires_grad):
            self._not_finite("model", self._batch_rows)  # with max_grad_norm 0 nobody else looks
        state_dict = self.gathered_state()
        target = checkpoint.step_directory(self.run, step)
        try:
            with _shared_folder(target, self.args.process_index, self.args.world_size) as folder:
                if self.is_world_process_zero():
                    checkpoint.save_weights(
                        self.objective.model, self.settings.stage, folder, state_dict=state_dict
                    )
                    self.state.save_to_json(str(folder / "trainer_state.json"))
                    (folder / _STATE_FILE).write_text(json.dumps(self.best.__dict__))
                self._save_optimizer_and_scheduler(str(folder))
                self._save_rng_state(str(folder))
        except Exception as error:
            if (why := write_error_reason(error)) is None:
                raise
            last = checkpoint.latest_checkpoint(self.run) or "the beginning"
            raise ModelError(
                f"Cannot write the checkpoint of step {step}: {why}.",
                f"Make room and run the same command again; it goes on from {last}.",
            ) from error
        self.control.should_save = False
        if self.is_world_process_zero():
            self._prune()

    def _prune(self) -> None:
        saved = checkpoint.checkpoint_steps(self.run)
        keep = {*list(saved)[-self.schedule.keep :], self.best.step}
        for step, folder in saved.items():
            if step not in keep:
                shutil.rmtree(folder, ignore_errors=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            folder = Path(resume_from_checkpoint)
            checkpoint.load_weights(self.objective.model, self.settings.stage, folder)

    def resume(self, folder: Path) -> None:
        """Trains on from a checkpoint to the end."""
        saved = json.loads((folder / _STATE_FILE).read_text())
        self.best = Best(**saved)
        step = int(json.loads((folder / "trainer_state.json").read_text())["global_step"])
        if self.is_world_process_zero():
            cut_metrics(self.run, step)
        self._began = (time.monotonic(), step)
        self.args.eval_on_start = False
        self.train(resume_from_checkpoint=str(folder))

    def release(self) -> None:
        """Lets go of gradients, optimiser and batches: what comes after training needs the room."""
        self.accelerator.free_memory()
        self.model_wrapped, self._ahead = self.model, None
        self.optimizer = self.lr_scheduler = None
        self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        self.objective.zero_grad(set_to_none=True)
        release_memory()

    def gathered_state(self) -> dict[str, torch.Tensor] | None:
        """All parameters by their names in the model, where they are sharded; else None."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return None
        state = self.accelerator.get_state_dict(self.model_wrapped) or {}
        return {name.removeprefix("model."): tensor for name, tensor in state.items()}


def share_of_peak(step: int, steps: int, warm: int, kind: str) -> float:
    """The learning rate of a step, counted from 0, as a share of the highest.

    Args:
        warm: steps over which it rises.
        kind: linear or cosine, both down to 0 behind the last step; else it stays.
    """
    if step < warm:
        return (step + 1) / (warm + 1)
    done = (step - warm) / max(1, steps - warm)
    if kind == "linear":
        return 1 - done
    return (1 + math.cos(math.pi * done)) / 2 if kind == "cosine" else 1.0


class _Steps(TrainerCallback):
    """Decides after each step whether to evaluate, save or stop."""

    def __init__(self, trainer: FinetuneTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer._began = (time.monotonic(), state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer, step = self.trainer, state.global_step
        schedule, last = trainer.schedule, step >= trainer.settings.steps
        every = schedule.evaluate_every
        if trainer.evaluation and (last or (every and step % every == 0)):
            control.should_evaluate = control.should_save = True
        if schedule.save_every and step % schedule.save_every == 0:
            control.should_save = True
        if self._stop_everywhere() and not last:
            trainer.stopped = True
            control.should_save = control.should_training_stop = True

    def _stop_everywhere(self) -> bool:
        """Whether any process was asked to stop: all of them have to, at the same step."""
        asked = self.trainer.should_stop()
        if self.trainer.args.world_size == 1:
            return asked
        flag = torch.tensor(float(asked), device=self.trainer.args.device)
        torch.distributed.all_reduce(flag)
        return bool(flag)


@contextlib.contextmanager
def _shared_folder(target: Path, process: int, processes: int) -> Iterator[Path]:
    """`atomic_directory` for one or several processes, which all write into it."""
    whole = atomic_directory(target) if process == 0 else contextlib.nullcontext()
    with whole as made:
        folder = from_main(made, processes)
        assert folder is not None
        yield folder
        wait(processes)  # until all have written
    wait(processes)  # until it is in its place
