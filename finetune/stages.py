"""One stage from base model to run directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from finetune import checkpoint, features
from finetune.architecture import plain, text_config
from finetune.batches import BatchPlan
from finetune.branching import allow_branching, supports_branching
from finetune.collator import Collator
from finetune.config import FinetuneConfig
from finetune.defaults import Hardware, Settings, Shape, decide, describe, shown_size, small_rank
from finetune.evaluating import Evaluation
from finetune.freezing import Frozen, as_adapter, freeze
from finetune.machine import (
    computes_bf16,
    device_of,
    free_memory,
    from_main,
    held_memory,
    join_processes,
    peak_memory,
    wait,
)
from finetune.objective import Objective
from finetune.preflight import in_parallel
from finetune.progress import OnProgress, Progress
from finetune.samples import Sample
from finetune.stopping import Stop
from finetune.train import (
    Data,
    RunResult,
    command_of,
    identity_of,
    read_data,
    start_or_resume,
)
from finetune.trainer import FinetuneTrainer, Schedule
from vqa_app.devices import is_out_of_memory
from vqa_app.errors import ModelError
from vqa_app.loading import LoadedModel, load_model

FALLBACK_CONTEXT = 4096


def run_stage(
    config: FinetuneConfig, tell: OnProgress, stop: Stop, projector: Path | None = None
) -> RunResult:
    """Trains one stage.

    Args:
        projector: run whose projector to begin with.
    """
    run = Path(config.out)
    process, processes = join_processes(config)
    tell(Progress("loading", message=f"Loading {config.model}."))
    loaded = load_base(config)
    config = as_adapter(config, loaded.model)
    if projector is not None:
        checkpoint.load_weights(_projector_only(loaded.model), "projector", projector)
    context = _context_length(loaded.model)
    shares = supports_branching(loaded.model)
    if shares:
        allow_branching(loaded.model)
    data = read_data(config, loaded.processor, max_length=context, share_prefix=shares, tell=tell)
    rank, alpha, dropout = small_rank(config, text_config(loaded.model).hidden_size)
    torch.manual_seed(config.seed)
    frozen = freeze(loaded.model, config.stage, rank=rank, alpha=alpha, dropout=dropout)
    tell(Progress("loading", message=str(frozen)))
    settings = settle(config, data, loaded, frozen, processes, tell)
    if settings.gradient_checkpointing:
        _checkpoint_gradients(frozen.model)
    store = keep_features(config, data, loaded, settings, (process, processes), tell)
    saved = (
        start_or_resume(run, config, identity_of(config, data, loaded.fingerprint))
        if process == 0
        else None
    )
    saved = from_main(saved, processes)
    evaluation = Evaluation.of(config, data, frozen.model, loaded.processor, run, tell)
    objective = Objective(frozen.model, bf16=settings.bf16)
    trainer = make_trainer(config, settings, data, objective, loaded, store, evaluation, tell, stop)
    stop.training = True
    tell(
        Progress("training", 0, settings.steps, message=f"Going on from {saved}." if saved else "")
    )
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
    if trainer.stopped:
        where = checkpoint.latest_checkpoint(run)
        stopped = f"Stopped; {where} is saved. Run the same command to continue."
        tell(Progress("training", message=stopped))
        return RunResult(run, False, trainer.state.global_step, settings.steps, trainer.best.last)
    return finish(config, settings, data, loaded, trainer, evaluation, tell)


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


def settle(
    config: FinetuneConfig,
    data: Data,
    loaded: LoadedModel,
    frozen: Frozen,
    processes: int,
    tell: OnProgress,
) -> Settings:
    """Decides what the config leaves open, and says so."""
    text = text_config(loaded.model)
    samples = data.train.samples
    settings, memory = decide(
        config,
        sequences=sum(sample.row.weight for sample in samples),
        longest=max(len(sample) for sample in samples),
        labels=max(sample.trained for sample in samples),
        shape=Shape(
            width=text.hidden_size,
            intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            vocabulary=text.vocab_size,
        ),
        trainable=frozen.trainable,
        hardware=Hardware(
            device_of(config).split(":")[0],
            held_memory(config),
            free_memory(config),
            computes_bf16(config),
            processes,
        ),
    )
    tell(Progress("loading", message=describe(settings, config)))
    tell(Progress("loading", message=str(memory)))
    if memory.needed > memory.free:
        advice = (
            "Less memory: --micro-batch-size 1, --gradient-checkpointing, a smaller --max-length."
        )
        tell(Progress("loading", message=f"This may not fit. {advice}"))
    return settings


def keep_features(
    config: FinetuneConfig,
    data: Data,
    loaded: LoadedModel,
    settings: Settings,
    part: tuple[int, int],
    tell: OnProgress,
) -> features.FeatureStore | None:
    """Encodes every picture once, where that pays; None where it does not."""
    digests = [digest for sample in data.train.samples for digest in sample.digests]
    if not digests or not features.supports_features(loaded.model):
        return None
    folder = Path(config.feature_dir) if config.feature_dir else features.default_folder()
    pictured = next(sample for sample in data.train.samples if sample.sources)
    store = features.open_store(loaded.model, loaded.processor, folder, settings.dtype, pictured)
    plan = features.make_plan(store, digests, config.feature_gb, settings.epochs)
    tell(Progress("encoding", message=plan.why))
    if not plan.use:
        return None
    if part[0] == 0:
        missing = plan.pictures - plan.present
        features.make_room(store, missing * plan.bytes_each, config.feature_gb)
    wait(part[1])
    store.reload()
    features.fill(
        store,
        loaded.model,
        loaded.processor,
        data.train.samples,
        workers=config.workers,
        part=part,
        on_progress=lambda done, of: tell(Progress("encoding", done, of)),
    )
    wait(part[1])
    store.reload()
    os.utime(store.folder)  # in use: what was not for longest makes room first
    return store


def make_trainer(
    config: FinetuneConfig,
    settings: Settings,
    data: Data,
    objective: Objective,
    loaded: LoadedModel,
    store: features.FeatureStore | None,
    evaluation: Evaluation | None,
    tell: OnProgress,
    stop: Callable[[], bool],
) -> FinetuneTrainer:
    """The Trainer with its arguments, batches and collate function."""
    from accelerate import PartialState

    state = PartialState()
    samples = data.train.samples
    plan = BatchPlan(
        [len(sample) for sample in samples],
        [sample.row.weight for sample in samples],
        batch_size=settings.batch_size,
        micro_batches=settings.micro_batches,
        steps=settings.steps,
        seed=config.seed,
        process=state.process_index,
        processes=state.num_processes,
    )
    steps = settings.steps
    schedule = Schedule(
        evaluate_every=_every(config.eval_every, steps),
        save_every=_every(config.save_every, steps),
        keep=config.keep,
        metric=config.metric,
        patience=config.patience,
    )
    return FinetuneTrainer(
        objective,
        training_arguments(config, settings, objective.is_llava),
        plan=plan,
        collate=make_collate(samples, loaded.processor, objective.is_llava, store, config.workers),
        settings=settings,
        schedule=schedule,
        run=Path(config.out),
        epoch_size=float(plan.weights.sum()),
        evaluation=evaluation.run_at if evaluation else None,
        on_progress=tell,
        should_stop=stop,
    )


def training_arguments(
    config: FinetuneConfig, settings: Settings, every_parameter_used: bool
) -> TrainingArguments:
    from finetune.distributed import deepspeed_config, fsdp_config

    on_cpu = device_of(config) == "cpu"
    return TrainingArguments(
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
        warmup_steps=config.warmup,
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


def make_collate(
    samples: Sequence[Sample],
    processor: Any,
    is_llava: bool,
    store: features.FeatureStore | None,
    workers: int | None,
) -> Callable[[Sequence[int]], dict[str, Any]]:
    """Positions of samples → batch."""
    from vqa_app.prompting import encode

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
        return collator.with_pixels(chosen, list(in_parallel(pixels, chosen, workers)))

    return collate


def finish(
    config: FinetuneConfig,
    settings: Settings,
    data: Data,
    loaded: LoadedModel,
    trainer: FinetuneTrainer,
    evaluation: Evaluation | None,
    tell: OnProgress,
) -> RunResult:
    """Saves the best weights as a run directory, checks that it opens, and writes the report."""
    from finetune.leaving import leave_run

    run = Path(config.out)
    steps = checkpoint.checkpoint_steps(run)
    best = trainer.best
    state_dict = trainer.gathered_state()
    kept = trainer.state.global_step
    if best.value is not None and best.step != trainer.state.global_step and best.step in steps:
        message = f"The best evaluation was at step {best.step:,}; its weights are kept."
        tell(Progress("saving", message=message))
        state_dict, kept = None, best.step
        if trainer.is_world_process_zero():
            checkpoint.load_weights(trainer.objective.model, settings.stage, steps[best.step])
    final = {}
    peak = shown_size(peak_memory(config))
    tell(Progress("training", message=f"Memory: at most {peak} was in use."))
    unset_hf_deepspeed_config()  # else what is loaded from here on would be sharded by ZeRO-3
    if trainer.is_world_process_zero():
        tell(Progress("saving"))
        final = leave_run(
            config.replace(**_decided(settings, config)),
            data,
            loaded,
            trainer.objective.model,
            evaluation,
            state_dict,
            trainer.state.global_step,
            kept,
            command_of(config, trainer.args.world_size),
            tell,
        )
    wait(trainer.args.world_size)
    tell(Progress("done", trainer.state.global_step, settings.steps, evaluation=final))
    return RunResult(run, True, trainer.state.global_step, settings.steps, final)


def _decided(settings: Settings, config: FinetuneConfig) -> dict[str, Any]:
    """What the defaults filled in, by the config's names: the manifest says what was really
    done."""
    names = set(config.to_dict())
    values = {key: value for key, value in asdict(settings).items() if key in names}
    return {key: value for key, value in values.items() if getattr(config, key) is None}


def _projector_only(model: Any) -> Any:
    """The model with nothing but the projector marked as trained, as the projector stage left
    it."""
    return freeze(model, "projector").model


def _checkpoint_gradients(model: Any) -> None:
    base = plain(model)
    base.enable_input_require_grads()
    base.gradient_checkpointing_enable({"use_reentrant": False})


def _context_length(model: Any) -> int:
    return getattr(text_config(model), "max_position_embeddings", None) or FALLBACK_CONTEXT


def _every(value: float, steps: int) -> int:
    """Steps, or a share of all of them."""
    return max(1, round(value * steps)) if 0 < value < 1 else int(value)
