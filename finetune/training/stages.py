"""The steps of a stage, in their order; `finetune.training.train` calls them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from finetune.config import FinetuneConfig
from finetune.data.samples import Sample
from finetune.kernels.shared_prefix import enable_branching
from finetune.parallel import parallel_map
from finetune.progress import OnProgress, Progress, pluralize
from finetune.runs import checkpoint
from finetune.training import feature_store, resume
from finetune.training.batches import MicroBatchSampler
from finetune.training.collator import Collator
from finetune.training.device import LESS_MEMORY, DeviceMemory, Machine, why_fp32
from finetune.training.freezing import TrainableModel, adopt_adapter, freeze
from finetune.training.held_out import Evaluation
from finetune.training.interrupt import Stop
from finetune.training.objective import Objective
from finetune.training.plan import Shape, TrainingSettings, decide, describe, lora_settings
from finetune.training.sharding import gathered
from finetune.training.stage import StageRun
from finetune.training.trainer import FinetuneTrainer, Schedule, training_arguments
from vqa_app.checkpoints.loader import LoadedModel, load_model
from vqa_app.devices import is_out_of_memory, reclaim_memory
from vqa_app.errors import ModelError
from vqa_app.files import write_error_reason
from vqa_app.models.architecture import overflows_in_float16, text_config, unwrap
from vqa_app.prompts.prompt import encode
from vqa_app.transformers_internals import enable_activation_checkpointing


def load(
    config: FinetuneConfig, machine: Machine, projector: Path | None, on_progress: OnProgress
) -> tuple[LoadedModel, FinetuneConfig]:
    """Load the base and adopt the options of the adapter that it carries, if any.

    Args:
        config: All options of the stage.
        machine: Where it trains.
        projector: Run directory whose projector to start from.
        on_progress: Called with what happens.
    """
    on_progress(Progress("loading", message=f"Loading {config.model}."))
    if reason := why_fp32(config, machine):
        on_progress(Progress("loading", message=reason))
    loaded = load_base(config, machine)
    config = adopt_adapter(config, loaded.model)
    if projector is not None:
        # Loading expects exactly the projector to be trainable, as it was when it was saved.
        checkpoint.load_weights(freeze(loaded.model, "projector").model, "projector", projector)
    if loaded.capabilities.trains_shared_prefixes:
        enable_branching(loaded.model)
    return loaded, config


def load_base(config: FinetuneConfig, machine: Machine) -> LoadedModel:
    """Load the base model in its training precision, or in 4 bits for qlora.

    For FSDP it is loaded to the CPU: FSDP moves it to the GPUs part by part, so that none of them
    has to hold all of it. See `divided_loading` for DeepSpeed.

    Raises:
        ModelError: The model cannot be loaded, or bitsandbytes is missing for qlora.
    """
    # "auto" is 16-bit where the model is served in it; weights that train must not be rounded to it
    # first.
    exact = config.stage == "full" or machine.autocast is None
    sixteen_bit = "bfloat16" if config.fsdp else "auto"  # "auto" on the CPU is not that on the GPU
    return load_model(
        config.model,
        device="cpu" if config.fsdp else str(machine.device),
        dtype="float32" if exact else sixteen_bit,
        quantize="4bit" if config.stage == "qlora" else None,
        revision=config.revision,
        merge=False,
        trainable=True,
    )


def without_overflow(machine: Machine, loaded: LoadedModel, on_progress: OnProgress) -> Machine:
    """Return the machine that trains a model in fp32 if its values are too large for fp16."""
    if not machine.scales_loss or not overflows_in_float16(unwrap(loaded.model).config):
        return machine
    message = f"{loaded.name} trains in fp32: its values are too large for fp16."
    on_progress(Progress("loading", message=message))
    return replace(machine, autocast=None)


def freeze_base(
    config: FinetuneConfig, loaded: LoadedModel, on_progress: OnProgress
) -> TrainableModel:
    """Freeze what the stage does not train; new LoRA weights come from the config's seed."""
    rank, alpha, dropout = lora_settings(config, text_config(loaded.model).hidden_size)
    torch.manual_seed(config.seed)
    trained = freeze(loaded.model, config.stage, rank=rank, alpha=alpha, dropout=dropout)
    on_progress(Progress("loading", message=str(trained)))
    return trained


def find_checkpoint(stage: StageRun) -> Path | None:
    """Return the checkpoint to continue from, the same in all processes; None for a new run."""
    found = None
    if stage.machine.is_main:
        identity = resume.identity_of(stage.config, stage.data, stage.loaded.fingerprint)
        processes = stage.machine.processes
        found = resume.start_or_resume(stage.run, stage.config, identity, processes)
    return stage.machine.from_main(found)


def decide_settings(stage: StageRun, saved: Path | None) -> TrainingSettings:
    """Decide what the config leaves open, and report it.

    Args:
        stage: The stage, its model frozen and its data read.
        saved: Checkpoint to continue from, if any. Steps are then divided into micro-batches as
            before it, whatever memory is free now, so that losses equal those of an uninterrupted
            run.
    """
    config, text = stage.config, text_config(stage.loaded.model)
    settings, memory = decide(
        config,
        sequences=sum(sample.row.weight for sample in stage.samples),
        longest=max(len(sample) for sample in stage.samples),
        labels=max(sample.trained_tokens for sample in stage.samples),
        shape=Shape.of(text),
        trainable=stage.trained.trainable,
        machine=stage.machine,
        memory=_memory(stage),
    )
    settings = _divided_as_before(stage, settings, saved)
    stage.announce("loading", describe(settings, config, stage.machine))
    stage.announce("loading", str(memory))
    if idle := stage.machine.idle_gpus():
        stage.announce("loading", idle)
    if memory.needed > memory.free:
        advice = (
            "Less memory: --micro-batch-size 1, --gradient-checkpointing, a smaller --max-length."
        )
        stage.announce("loading", f"This may not fit ({memory.listing}). {advice}")
    return settings


def _memory(stage: StageRun) -> DeviceMemory:
    """Return the memory of the device once it holds its part of the model."""
    reclaim_memory()  # chat models in use may have filled their caches while it was loaded
    memory = stage.machine.memory()
    if not stage.config.fsdp:
        return memory
    whole = sum(parameter.nbytes for parameter in stage.trained.model.parameters())
    part = whole // stage.machine.processes
    return DeviceMemory(memory.held + part, memory.free - part)


def _divided_as_before(
    stage: StageRun, settings: TrainingSettings, saved: Path | None
) -> TrainingSettings:
    """Return the settings with the micro-batches that the interrupted run used."""
    division = resume.Division(
        device=stage.machine.device.type,
        processes=stage.machine.processes,
        micro_batch_size=settings.micro_batch_size,
        micro_batches=settings.micro_batches,
        gradient_checkpointing=settings.gradient_checkpointing,
    )
    if saved is None:
        if stage.machine.is_main:
            resume.write_division(stage.run, division)
        return settings
    before = resume.read_division(stage.run)
    if before is None or (before.device, before.processes) != (division.device, division.processes):
        return settings  # on another machine losses differ anyway
    if stage.config.micro_batch_size is None:
        settings = replace(
            settings,
            micro_batch_size=before.micro_batch_size,
            micro_batches=before.micro_batches,
        )
    if stage.config.gradient_checkpointing is None:
        settings = replace(settings, gradient_checkpointing=before.gradient_checkpointing)
    return settings


def store_features(
    stage: StageRun, settings: TrainingSettings
) -> feature_store.FeatureStore | None:
    """Encode every picture once and store the features.

    Returns:
        The store; None if storing is not worthwhile or fails. Training then runs the encoder at
        every step.
    """
    has_pictures = any(sample.digests for sample in stage.samples)
    if not has_pictures or not stage.loaded.capabilities.stores_features:
        return None
    with _whole_encoder(stage):
        return _store_features(stage, settings)


@contextlib.contextmanager
def _whole_encoder(stage: StageRun) -> Iterator[None]:
    """Hold the encoder and the projector on this process's device, whole, inside the block."""
    base = unwrap(stage.loaded.model).model
    parts, before = (base.vision_tower, base.multi_modal_projector), base.device
    for part in parts:  # FSDP's are still on the CPU
        part.to(stage.machine.device)
    with gathered(*parts):
        yield
    for part in parts:
        part.to(before)


def _store_features(
    stage: StageRun, settings: TrainingSettings
) -> feature_store.FeatureStore | None:
    config, machine, loaded = stage.config, stage.machine, stage.loaded
    digests = [digest for sample in stage.samples for digest in sample.digests]
    folder = Path(config.feature_dir) if config.feature_dir else feature_store.default_folder()
    pictured = next(sample for sample in stage.samples if sample.sources)
    try:
        store = feature_store.open_store(
            loaded.model, loaded.processor, folder, machine.dtype, pictured
        )
        plan = feature_store.make_plan(store, digests, config.feature_gb, settings.epochs)
    except OSError as error:
        stage.announce("encoding", f"Encoder outputs are not kept: {write_error_reason(error)}.")
        return None
    stage.announce("encoding", plan.reason)
    if not plan.use:
        return None
    if machine.is_main:
        missing = plan.pictures - plan.present
        feature_store.make_room(store, missing * plan.bytes_each, config.feature_gb)
    machine.wait_for_all()
    store.reload()
    failure = "another process could not write all of them"
    try:
        feature_store.fill(
            store,
            loaded.model,
            loaded.processor,
            stage.samples,
            workers=config.workers,
            part=(machine.process, machine.processes),
            on_progress=lambda done, of: stage.on_progress(Progress("encoding", done, of)),
        )
    except OSError as error:
        failure = write_error_reason(error) or ""
    machine.wait_for_all()
    store.reload()
    if not all(digest in store for digest in digests):
        stage.announce("encoding", f"Encoder outputs are not kept: {failure}.")
        return None
    with contextlib.suppress(OSError):  # a store of another user, which is read-only
        store.touch()
    return store


def make_trainer(
    stage: StageRun,
    settings: TrainingSettings,
    store: feature_store.FeatureStore | None,
    evaluation: Evaluation | None,
    stop: Stop,
) -> FinetuneTrainer:
    """Build the Trainer with its arguments, batches and collate function."""
    config, machine, samples = stage.config, stage.machine, stage.samples
    model = stage.trained.model
    if settings.gradient_checkpointing:
        enable_activation_checkpointing(unwrap(model))
    objective = Objective(model, autocast=machine.autocast, device=machine.device)
    plan = MicroBatchSampler(
        [len(sample) for sample in samples],
        [sample.row.weight for sample in samples],
        batch_size=settings.batch_size,
        micro_batches=settings.micro_batches,
        steps=settings.steps,
        seed=config.seed,
        process=machine.process,
        processes=machine.processes,
    )
    schedule = Schedule(
        evaluate_every=_in_steps(config.eval_every, settings.steps),
        save_every=_in_steps(config.save_every, settings.steps),
        keep=config.keep,
        metric=config.metric,
        patience=config.patience,
    )
    processor, llava = stage.loaded.processor, objective.is_llava
    width = text_config(stage.loaded.model).hidden_size
    return FinetuneTrainer(
        objective,
        training_arguments(config, settings, machine, every_parameter_used=llava, width=width),
        machine=machine,
        plan=plan,
        collate=make_collate(samples, processor, llava, store, config.workers),
        settings=settings,
        schedule=schedule,
        run=stage.run,
        evaluate_at=_evaluate_at(evaluation) if evaluation else None,
        on_progress=stage.on_progress,
        should_stop=stop,
    )


def make_collate(
    samples: Sequence[Sample],
    processor: Any,
    is_llava: bool,
    store: feature_store.FeatureStore | None,
    workers: int | None,
) -> Callable[[Sequence[int]], dict[str, Any]]:
    """Return a function from the positions of samples to a batch."""
    # Lengths are rounded up for LLaVA only: other architectures have further inputs whose shapes
    # follow the tokens'.
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
            features = [store[digest] for sample in chosen for digest in sample.digests]
            return collator.with_features(chosen, features)
        return collator.with_pixels(chosen, list(parallel_map(pixels, chosen, workers)))

    return collate


def fit(trainer: FinetuneTrainer, saved: Path | None, stop: Stop) -> None:
    """Train, from a checkpoint if there is one, until all steps are done or the run is stopped.

    Raises:
        ModelError: Out of memory; the message says which options need less.
    """
    settings = trainer.settings
    message = f"Continuing from {saved}." if saved else ""
    trainer.on_progress(Progress("training", 0, settings.steps, message=message))
    stop.training = True
    try:
        trainer.resume(saved) if saved else trainer.train()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        rows = pluralize(settings.micro_batch_size, "row")
        step = trainer.state.global_step + 1
        raise ModelError(
            f"Out of memory at step {step}, with {rows} at once.",
            "Use a smaller --micro-batch-size or --max-length, or --gradient-checkpointing.",
        ) from error
    finally:
        stop.training = False


def _evaluate_at(evaluation: Evaluation) -> Callable[[int], dict[str, float]]:
    """Return `Evaluation.at_step` with its own out-of-memory error.

    The micro-batch size, which `fit` suggests lowering, has no effect on evaluation.
    """

    def at_step(step: int) -> dict[str, float]:
        try:
            return evaluation.at_step(step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ModelError("Out of memory while evaluating.", LESS_MEMORY) from error

    return at_step


def _in_steps(value: float, steps: int) -> int:
    """Return a number of steps; below 1, `value` is a share of all of them."""
    return max(1, round(value * steps)) if 0 < value < 1 else int(value)
