"""The steps of a stage, in their order; `finetune.training.train` calls them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from finetune.config import FinetuneConfig
from finetune.data.samples import Sample
from finetune.kernels.shared_prefix import enable_branching
from finetune.parallel import parallel_map
from finetune.progress import OnProgress, Progress
from finetune.runs import checkpoint
from finetune.training import feature_store
from finetune.training.batches import BatchPlan
from finetune.training.collator import Collator
from finetune.training.device import (
    LESS_MEMORY,
    computes_bf16,
    device_of,
    free_memory,
    from_main,
    held_memory,
    idle_gpus,
    wait,
)
from finetune.training.freezing import Frozen, as_adapter, freeze
from finetune.training.held_out import Evaluation
from finetune.training.interrupt import Stop
from finetune.training.objective import Objective
from finetune.training.plan import Hardware, Settings, Shape, decide, describe, lora_settings
from finetune.training.resume import DIVISION, divided, identity_of, keep_divided, start_or_resume
from finetune.training.sharding import deepspeed_config, fsdp_config
from finetune.training.stage import StageRun
from finetune.training.trainer import FinetuneTrainer, Schedule
from vqa_app.checkpoints.loader import LoadedModel, load_model
from vqa_app.devices import is_out_of_memory
from vqa_app.errors import ModelError
from vqa_app.models.architecture import text_config, unwrap
from vqa_app.prompts.prompt import encode
from vqa_app.transformers_internals import use_one_gpu


def load(
    config: FinetuneConfig, projector: Path | None, tell: OnProgress
) -> tuple[LoadedModel, FinetuneConfig]:
    """The base, and the config with what an adapter that it carries decides.

    Args:
        projector: run whose projector to begin with.
    """
    tell(Progress("loading", message=f"Loading {config.model}."))
    loaded = load_base(config)
    config = as_adapter(config, loaded.model)
    if projector is not None:
        # Marked as trained, and nothing else, as the run left it.
        checkpoint.load_weights(freeze(loaded.model, "projector").model, "projector", projector)
    if loaded.capabilities.trains_shared_prefixes:
        enable_branching(loaded.model)
    return loaded, config


def load_base(config: FinetuneConfig) -> LoadedModel:
    """The base in the precision that it trains in; 4-bit for qlora.

    Raises:
        ModelError: there is nothing to load, or no bitsandbytes for qlora.
    """
    # "auto" is bf16 where the model is served in it; weights that train must not be rounded to it
    # first.
    exact = config.stage == "full" or not computes_bf16(config)
    return load_model(
        config.model,
        device=device_of(config),
        dtype="float32" if exact else "auto",
        quantize="4bit" if config.stage == "qlora" else None,
        revision=config.revision,
        merge=False,
    )


def freeze_base(config: FinetuneConfig, loaded: LoadedModel, tell: OnProgress) -> Frozen:
    """Leaves what the stage trains, with fresh LoRA weights of the config's seed."""
    rank, alpha, dropout = lora_settings(config, text_config(loaded.model).hidden_size)
    torch.manual_seed(config.seed)
    frozen = freeze(loaded.model, config.stage, rank=rank, alpha=alpha, dropout=dropout)
    tell(Progress("loading", message=str(frozen)))
    return frozen


def settle(stage: StageRun, saved: Path | None) -> Settings:
    """Decides what the config leaves open, and says so.

    Args:
        saved: checkpoint to go on from; steps are divided as they were before it, so that their
            losses are those of an uninterrupted run whatever memory is free now.
    """
    config, text = stage.config, text_config(stage.loaded.model)
    hardware = Hardware(
        device_of(config).split(":")[0],
        held_memory(config),
        free_memory(config),
        computes_bf16(config),
        stage.processes,
    )
    settings, memory = decide(
        config,
        sequences=sum(sample.row.weight for sample in stage.samples),
        longest=max(len(sample) for sample in stage.samples),
        labels=max(sample.trained_tokens for sample in stage.samples),
        shape=Shape(
            width=text.hidden_size,
            intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            vocabulary=text.vocab_size,
        ),
        trainable=stage.frozen.trainable,
        hardware=hardware,
    )
    settings = _divided_as_before(stage, settings, hardware, saved)
    stage.tell(Progress("loading", message=describe(settings, config)))
    stage.tell(Progress("loading", message=str(memory)))
    if idle := idle_gpus(config, stage.processes):
        stage.tell(Progress("loading", message=idle))
    if memory.needed > memory.free:
        advice = (
            "Less memory: --micro-batch-size 1, --gradient-checkpointing, a smaller --max-length."
        )
        stage.tell(Progress("loading", message=f"This may not fit. {advice}"))
    return settings


def _divided_as_before(
    stage: StageRun, settings: Settings, hardware: Hardware, saved: Path | None
) -> Settings:
    known = {**vars(hardware), **vars(settings)}
    division = {name: known[name] for name in DIVISION}
    if saved is None:
        if stage.process == 0:
            keep_divided(stage.run, division)
        return settings
    before = divided(stage.run)
    if any(before.get(name) != division[name] for name in ("device", "processes")):
        return settings  # nothing to compare with
    if stage.config.micro_batch_size is None:
        settings = replace(
            settings,
            micro_batch_size=before["micro_batch_size"],
            micro_batches=before["micro_batches"],
        )
    if stage.config.gradient_checkpointing is None:
        settings = replace(settings, gradient_checkpointing=before["gradient_checkpointing"])
    return settings


def keep_features(stage: StageRun, settings: Settings) -> feature_store.FeatureStore | None:
    """Encodes every picture once, where that pays; None where it does not, or where there is no
    place to keep them: a run goes on without.
    """
    config, loaded = stage.config, stage.loaded
    digests = [digest for sample in stage.samples for digest in sample.digests]
    if not digests or not loaded.capabilities.stores_features:
        return None
    folder = Path(config.feature_dir) if config.feature_dir else feature_store.default_folder()
    pictured = next(sample for sample in stage.samples if sample.sources)
    try:
        store = feature_store.open_store(
            loaded.model, loaded.processor, folder, settings.dtype, pictured
        )
        plan = feature_store.make_plan(store, digests, config.feature_gb, settings.epochs)
    except OSError as error:
        stage.tell(Progress("encoding", message=f"Encoder outputs are not kept: {error}."))
        return None
    stage.tell(Progress("encoding", message=plan.why))
    if not plan.use:
        return None
    if stage.process == 0:
        missing = plan.pictures - plan.present
        feature_store.make_room(store, missing * plan.bytes_each, config.feature_gb)
    wait(stage.processes)
    store.reload()
    why = "another process could not write all of them"
    try:
        feature_store.fill(
            store,
            loaded.model,
            loaded.processor,
            stage.samples,
            workers=config.workers,
            part=(stage.process, stage.processes),
            on_progress=lambda done, of: stage.tell(Progress("encoding", done, of)),
        )
    except OSError as error:
        why = str(error)
    wait(stage.processes)
    store.reload()
    if not all(digest in store for digest in digests):
        stage.tell(Progress("encoding", message=f"Encoder outputs are not kept after all: {why}."))
        return None
    with contextlib.suppress(OSError):  # somebody else's, to read only
        store.touch()
    return store


def resume_point(stage: StageRun) -> Path | None:
    """The checkpoint to go on from, the same in all processes; None at a fresh start."""
    found = None
    if stage.process == 0:
        identity = identity_of(stage.config, stage.data, stage.loaded.fingerprint)
        found = start_or_resume(stage.run, stage.config, identity)
    return from_main(found, stage.processes)


def make_trainer(
    stage: StageRun,
    settings: Settings,
    store: feature_store.FeatureStore | None,
    evaluation: Evaluation | None,
    stop: Stop,
) -> FinetuneTrainer:
    """The Trainer with its arguments, batches and collate function."""
    config, samples, model = stage.config, stage.samples, stage.frozen.model
    if settings.gradient_checkpointing:
        _checkpoint_gradients(model)
    objective = Objective(model, bf16=settings.bf16)
    plan = BatchPlan(
        [len(sample) for sample in samples],
        [sample.row.weight for sample in samples],
        batch_size=settings.batch_size,
        micro_batches=settings.micro_batches,
        steps=settings.steps,
        seed=config.seed,
        process=stage.process,
        processes=stage.processes,
    )
    schedule = Schedule(
        evaluate_every=_every(config.eval_every, settings.steps),
        save_every=_every(config.save_every, settings.steps),
        keep=config.keep,
        metric=config.metric,
        patience=config.patience,
    )
    processor, llava = stage.loaded.processor, objective.is_llava
    return FinetuneTrainer(
        objective,
        training_arguments(config, settings, llava),
        plan=plan,
        collate=make_collate(samples, processor, llava, store, config.workers),
        settings=settings,
        schedule=schedule,
        run=stage.run,
        evaluation=_evaluating(evaluation) if evaluation else None,
        on_progress=stage.tell,
        should_stop=stop,
    )


def training_arguments(
    config: FinetuneConfig, settings: Settings, every_parameter_used: bool
) -> TrainingArguments:
    on_cpu = device_of(config) == "cpu"
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
        ddp_backend="gloo" if on_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
        ddp_find_unused_parameters=not every_parameter_used,
        fsdp=True if config.fsdp else None,
        fsdp_config=fsdp_config(config.fsdp) if config.fsdp else None,
        deepspeed=deepspeed_config(config.deepspeed) if config.deepspeed else None,
        report_to=list(config.report_to) or "none",
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    use_one_gpu(arguments)
    return arguments


def make_collate(
    samples: Sequence[Sample],
    processor: Any,
    is_llava: bool,
    store: feature_store.FeatureStore | None,
    workers: int | None,
) -> Callable[[Sequence[int]], dict[str, Any]]:
    """Positions of samples → batch."""
    # Other architectures have inputs of a shape that follows the tokens'.
    collator = Collator.of(processor, samples if is_llava else ())

    def pixels(sample: Sample) -> dict[str, torch.Tensor]:
        if not sample.sources:
            return {}
        if is_llava:
            images = [source.open().image for source in sample.sources]
            return dict(processor.image_processor(images, return_tensors="pt"))
        return encode(processor, sample.row.conversation(), answer_next=False).inputs

    def collate(positions: Sequence[int]) -> dict[str, Any]:
        chosen = [samples[position] for position in positions]
        if store is not None:
            found = [store[digest] for sample in chosen for digest in sample.digests]
            return collator.with_features(chosen, found)
        return collator.with_pixels(chosen, list(parallel_map(pixels, chosen, workers)))

    return collate


def fit(trainer: FinetuneTrainer, saved: Path | None, stop: Stop) -> None:
    """Trains, from a checkpoint where there is one, until all steps are done or somebody stops it.

    Raises:
        ModelError: out of memory; named with what takes less.
    """
    settings = trainer.settings
    going_on = f"Going on from {saved}." if saved else ""
    trainer.on_progress(Progress("training", 0, settings.steps, message=going_on))
    stop.training = True
    try:
        trainer.resume(saved) if saved else trainer.train()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        rows, step = settings.micro_batch_size, trainer.state.global_step + 1
        raise ModelError(
            f"Out of memory at step {step}, with {rows} rows at once.",
            "Use a smaller --micro-batch-size or --max-length, or --gradient-checkpointing.",
        ) from error
    finally:
        stop.training = False


def _evaluating(evaluation: Evaluation) -> Callable[[int], dict[str, float]]:
    """`at_step`; a memory that is full there is none that a smaller micro-batch helps."""

    def at_step(step: int) -> dict[str, float]:
        try:
            return evaluation.at_step(step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ModelError("Out of memory while evaluating.", LESS_MEMORY) from error

    return at_step


def _checkpoint_gradients(model: Any) -> None:
    base = unwrap(model)
    base.enable_input_require_grads()
    base.gradient_checkpointing_enable({"use_reentrant": False})


def _every(value: float, steps: int) -> int:
    """Steps, or a share of all of them."""
    return max(1, round(value * steps)) if 0 < value < 1 else int(value)
