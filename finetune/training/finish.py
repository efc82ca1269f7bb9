"""The end of a run: save the best weights, verify them, and write the report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from finetune.data.read import Row
from finetune.evaluation import report
from finetune.evaluation.baselines import to_json
from finetune.evaluation.evaluate import EvalResult
from finetune.progress import OnProgress, Progress
from finetune.runs import checkpoint
from finetune.runs.golden import GOLDEN_FOLDER, record_golden
from finetune.runs.layout import METRICS_FILE, REPORT_FILE
from finetune.runs.verify import require, verify
from finetune.training.freezing import trainable
from finetune.training.held_out import Evaluation, frequent_answers, scores_of
from finetune.training.load_data import Data
from finetune.training.plan import TrainingSettings, filled_in
from finetune.training.resume import command_of
from finetune.training.stage import StageRun
from finetune.training.trainer import FinetuneTrainer
from vqa_app.checkpoints.loader import LoadedModel, load_model
from vqa_app.checkpoints.manifest import Base, Manifest, quantization_of, read_manifest
from vqa_app.devices import is_out_of_memory, release_memory
from vqa_app.errors import InsufficientMemoryError, ModelError
from vqa_app.files import atomic_directory, format_bytes
from vqa_app.prompts.conversation import Conversation
from vqa_app.prompts.prompt import prompt_hash
from vqa_app.transformers_internals import stop_sharding_while_loading

GOLDEN_PROMPTS = 4


def finish(
    stage: StageRun, trainer: FinetuneTrainer, evaluation: Evaluation | None
) -> dict[str, float]:
    """Save the best weights as a run with its report; every process must call this.

    Returns:
        vqa_accuracy, loss and image_gain of these weights on the held-out questions; empty if
        nothing is held out, and in all processes but the main one.
    """
    machine = stage.machine
    state_dict = trainer.gathered_state()
    kept = trainer.state.global_step
    saved, best = checkpoint.checkpoint_steps(stage.run), trainer.best
    if best.value is not None and best.step != kept and best.step in saved:
        message = f"The best evaluation was at step {best.step:,}; its weights are kept."
        stage.announce("saving", message)
        state_dict, kept = None, best.step
        if machine.is_main:
            checkpoint.load_weights(trainer.objective.model, stage.config.stage, saved[kept])
    peak = format_bytes(machine.peak_memory())
    stage.announce("training", f"Memory: at most {peak} was in use.")
    if state_dict is None:
        trainer.release()
    stop_sharding_while_loading()
    scores = {}
    if machine.is_main:
        stage.on_progress(Progress("saving"))
        model = trainer.objective.model
        save(stage, trainer.settings, model, state_dict)
        result = _result_of(evaluation, kept)
        if evaluation is not None and result is not None:
            blind = evaluation.blind(result)
            result = replace(result, baselines=evaluation.baselines, blind=blind)
        if (frequent := frequent_answers(stage.data)) is not None:
            frequent.save(stage.run)
        if state_dict is None:
            _free_weights(model)  # there may be no memory for a second model beside it
        check(stage, model, state_dict)
        scores = write_report(stage, evaluation, result, trainer.state.global_step)
        shutil.rmtree(stage.run / checkpoint.CHECKPOINTS, ignore_errors=True)
        stage.announce("saving", f"Saved {stage.run}; report: {stage.run / REPORT_FILE}")
    machine.wait_for_all()
    return scores


def save(
    stage: StageRun, settings: TrainingSettings, model: Any, state_dict: Mapping[str, Any] | None
) -> None:
    """Write the run directory.

    Args:
        stage: The stage that was trained.
        settings: The settings of the stage.
        model: The model with the weights to save.
        state_dict: The gathered weights of a sharded model. One process cannot run such a model, so
            `check` records the golden prompts.
    """
    data, processor = stage.data, stage.loaded.processor
    manifest = Manifest(
        kind=stage.config.stage,
        base=base_of(stage.loaded),
        prompt_hash=prompt_hash(processor),
        data_hash=data.train.data_hash(),
        earlier=earlier_of(stage.loaded),
        seed=stage.config.seed,
        config=filled_in(stage.config, settings).to_dict(),
        command=command_of(stage.config, stage.machine.processes),
    )
    golden = _golden(stage) if state_dict is None else ()
    checkpoint.save_run(stage.run, model, processor, manifest, golden, state_dict=state_dict)


def check(stage: StageRun, model: Any, state_dict: Mapping[str, Any] | None) -> None:
    """Check that the saved run can be loaded and computes what the trained model does.

    If there is too little memory to load it, a message says so instead.

    Args:
        stage: The stage that was trained.
        model: See `save`; only the names of its trainable parameters are used.
        state_dict: See `save`.

    Raises:
        ModelError: The saved run differs from the trained model.
    """
    run, device = stage.run, stage.machine.device
    try:
        if state_dict is not None:
            _check_gathered(stage, {name for name, _ in trainable(model)}, state_dict)
        require(verify(run, device=str(device)))
    except (InsufficientMemoryError, RuntimeError, MemoryError) as error:
        if not (isinstance(error, InsufficientMemoryError) or is_out_of_memory(error)):
            raise
        message = f"Not verified: {device} has too little free memory to load {run} again."
        if (run / GOLDEN_FOLDER).exists():
            message += f" Verify it later with `vqa-app verify {run}`."
        stage.announce("saving", message)


def _check_gathered(stage: StageRun, names: Collection[str], state_dict: Mapping[str, Any]) -> None:
    """Compare the saved weights with the gathered ones, and record golden prompts with them."""
    run = stage.run
    opened = load_model(
        str(run), device=str(stage.machine.device), quantize=quantization_of(run), merge=False
    )
    saved = opened.model.state_dict()
    for name in sorted(names):
        now, then = saved[name], state_dict[name]
        if not torch.equal(now.cpu(), then.to(now.dtype).cpu()):
            raise ModelError(
                f"The saved weights in {run} differ from the trained ones: {name}.",
                "This is a bug.",
            )
    with atomic_directory(run / GOLDEN_FOLDER) as folder:
        record_golden(opened.model, opened.processor, _golden(stage), folder)


def _golden(stage: StageRun) -> list[Conversation]:
    return golden_conversations(stage.data.held_out.rows, stage.data.train.rows)


def _free_weights(model: nn.Module) -> None:
    """Free a model's memory even if something still refers to it."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    release_memory()


def _result_of(evaluation: Evaluation | None, kept_step: int) -> EvalResult | None:
    """Return the evaluation of the saved weights; None if nothing is held out."""
    if evaluation is None or not evaluation.questions:
        return None
    return evaluation.results.get(kept_step) or evaluation.result()


def write_report(
    stage: StageRun, evaluation: Evaluation | None, result: EvalResult | None, step: int
) -> dict[str, float]:
    """Write the report and return the scores in it.

    Args:
        stage: The stage that was trained.
        evaluation: Its questions.
        result: The answers to these questions by the saved weights.
        step: The last step.
    """
    scores: dict[str, float] = {}
    worst: Sequence[Any] = ()
    if evaluation is not None and result is not None:
        scores = scores_of(result)
        worst = report.worst_answers(result.predictions, evaluation.questions)
        line: dict[str, Any] = {"step": step, "final": True}
        line |= {f"eval_{key}": value for key, value in scores.items()}
        line["eval_questions"] = len(evaluation.questions)
        line |= to_json(result.baselines, result.blind)
        line["leaks"] = stage.data.leaks
        for found in filter(None, (result.baselines, result.blind)):
            stage.announce("saving", str(found))
        with (stage.run / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    report.write_report(stage.run, worst)
    if warning := report.memorization_warning(stage.run):
        stage.announce("saving", warning)
    return scores


def base_of(loaded: LoadedModel) -> Base:
    """Return the base of the trained model; for an earlier adapter run, the base of that run."""
    before = read_manifest(loaded.source)
    if before is not None and not before.whole_model:
        return before.base
    return Base(loaded.name, loaded.fingerprint, loaded.revision)


def earlier_of(loaded: LoadedModel) -> list[dict[str, Any]]:
    """Return the earlier runs in which the model was trained, oldest first."""
    before = read_manifest(loaded.source)
    if before is None:
        return []
    trained_on = {"data": before.config.get("data", []), "data_hash": before.data_hash}
    return [*before.earlier, {"name": loaded.name, **trained_on}]


def warn_of_earlier_training(loaded: LoadedModel, data: Data, on_progress: OnProgress) -> None:
    """Report if an earlier run may have trained on rows that are held out now."""
    before = [run for run in earlier_of(loaded) if run["data_hash"] != data.train.data_hash()]
    if before and data.held_out.rows:
        message = (
            f"Note: {before[-1]['name']} was trained on other rows, which may include those held "
            "out now; the scores may be too high."
        )
        on_progress(Progress("checking", message=message))


def golden_conversations(*parts: Sequence[Row]) -> list[Conversation]:
    """Choose a few rows, each with its first question only; later parts fill up earlier ones."""
    chosen: list[Row] = []
    for rows in parts:
        count = min(GOLDEN_PROMPTS - len(chosen), len(rows))
        chosen += [rows[i * len(rows) // count] for i in range(count)]
    conversations = []
    for row in chosen:
        conversation = row.conversation()
        opening = 1 if conversation.system is not None else 0
        conversations.append(Conversation(conversation.messages[: opening + 2]))
    return conversations
