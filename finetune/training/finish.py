"""What a finished run leaves: weights, processor, manifest, golden prompts, report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from finetune.data.read import Row
from finetune.evaluation import report
from finetune.evaluation.evaluate import EvalResult
from finetune.progress import Progress
from finetune.runs import checkpoint
from finetune.runs.golden import GOLDEN_FOLDER, record_golden
from finetune.runs.layout import METRICS_FILE, REPORT_FILE
from finetune.runs.verify import require, verify
from finetune.training.device import device_of, peak_memory, wait
from finetune.training.freezing import trainable
from finetune.training.held_out import Evaluation, scores_of
from finetune.training.load_data import Data
from finetune.training.plan import Settings, filled_in
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

GOLDEN_PROMPTS = 4


def finish(
    stage: StageRun, trainer: FinetuneTrainer, evaluation: Evaluation | None
) -> dict[str, float]:
    """Leaves the best weights as a run directory with its report. Every process has to call it.

    Returns:
        vqa_accuracy, loss and image_gain of these weights on the held-out questions; empty where
        nothing is held out, and in all processes but the first.
    """
    state_dict = trainer.gathered_state()
    kept = trainer.state.global_step
    saved, best = checkpoint.checkpoint_steps(stage.run), trainer.best
    if best.value is not None and best.step != kept and best.step in saved:
        message = f"The best evaluation was at step {best.step:,}; its weights are kept."
        stage.tell(Progress("saving", message=message))
        state_dict, kept = None, best.step
        if stage.process == 0:
            checkpoint.load_weights(trainer.objective.model, stage.config.stage, saved[kept])
    peak = format_bytes(peak_memory(stage.config))
    stage.tell(Progress("training", message=f"Memory: at most {peak} was in use."))
    if state_dict is None:
        trainer.release()
    unset_hf_deepspeed_config()  # else what is loaded from here on would be sharded by ZeRO-3
    scores = {}
    if stage.process == 0:
        stage.tell(Progress("saving"))
        model = trainer.objective.model
        save(stage, trainer.settings, model, state_dict)
        result = _answered(evaluation, kept)
        if state_dict is None:
            _empty(model)  # it is wanted no more, and a second one may have no room beside it
        check(stage, model, state_dict)
        scores = write_report(stage, evaluation, result, trainer.state.global_step)
        shutil.rmtree(stage.run / checkpoint.CHECKPOINTS, ignore_errors=True)
        message = f"Saved {stage.run}; report: {stage.run / REPORT_FILE}"
        stage.tell(Progress("saving", message=message))
    wait(stage.processes)
    return scores


def save(
    stage: StageRun, settings: Settings, model: Any, state_dict: Mapping[str, Any] | None
) -> None:
    """Writes the run directory.

    Args:
        model: with the weights to keep.
        state_dict: the weights, where the model is sharded over processes; then this process alone
            cannot compute with it, and `check` adds the golden prompts.
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
        command=command_of(stage.config, stage.processes),
    )
    golden = _golden(stage) if state_dict is None else ()
    checkpoint.save_run(stage.run, model, processor, manifest, golden, state_dict=state_dict)


def check(stage: StageRun, model: Any, state_dict: Mapping[str, Any] | None) -> None:
    """Looks whether the saved run opens and is what was trained; tells where there is no room to
    load it.

    Args:
        model: as for `save`; only which of its parameters trained is asked.
        state_dict: as for `save`.

    Raises:
        ModelError: it is not.
    """
    run, device = stage.run, device_of(stage.config)
    try:
        if state_dict is not None:
            _check_gathered(stage, {name for name, _ in trainable(model)}, state_dict)
        require(verify(run, device=device))
    except (InsufficientMemoryError, RuntimeError, MemoryError) as error:
        if not (isinstance(error, InsufficientMemoryError) or is_out_of_memory(error)):
            raise
        message = f"Not verified: there is no room on {device} to load {run} again."
        if (run / GOLDEN_FOLDER).exists():
            message += f" Do it later: vqa-app verify {run}"
        stage.tell(Progress("saving", message=message))


def _check_gathered(stage: StageRun, names: Collection[str], state_dict: Mapping[str, Any]) -> None:
    """Compares the saved weights with those that were gathered, and records golden prompts with
    them.
    """
    run, device = stage.run, device_of(stage.config)
    quantize = quantization_of(run)
    opened = load_model(str(run), device=device, quantize=quantize, merge=False)
    saved = opened.model.state_dict()
    for name in sorted(names):
        now, then = saved[name], state_dict[name]
        if not torch.equal(now.cpu(), then.to(now.dtype).cpu()):
            raise ModelError(f"{run} is not what was trained: {name} differs.", "This is a bug.")
    with atomic_directory(run / GOLDEN_FOLDER) as folder:
        record_golden(opened.model, opened.processor, _golden(stage), folder)


def _golden(stage: StageRun) -> list[Conversation]:
    return golden_conversations(stage.data.held_out.rows, stage.data.train.rows)


def _empty(model: nn.Module) -> None:
    """Gives its memory back, whoever still holds the model."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    release_memory()


def _answered(evaluation: Evaluation | None, kept_step: int) -> EvalResult | None:
    """The held-out questions answered with the weights that are kept; None where there are none.

    Args:
        kept_step: the step of these weights.
    """
    if evaluation is None or not evaluation.questions:
        return None
    return evaluation.results.get(kept_step) or evaluation.result()


def write_report(
    stage: StageRun, evaluation: Evaluation | None, result: EvalResult | None, step: int
) -> dict[str, float]:
    """Writes the report; gives the scores in it.

    Args:
        result: of the evaluation's questions, with the weights that are kept.
        step: the last one.
    """
    scores: dict[str, float] = {}
    worst: Sequence[Any] = ()
    if evaluation is not None and result is not None:
        scores = scores_of(result)
        worst = report.worst_answers(result.predictions, evaluation.questions)
        line: dict[str, Any] = {"step": step, "final": True}
        line |= {f"eval_{key}": value for key, value in scores.items()}
        line["eval_questions"] = len(evaluation.questions)
        with (stage.run / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    report.write_report(stage.run, worst)
    return scores


def base_of(loaded: LoadedModel) -> Base:
    """The model under what was trained: of an earlier adapter run, that run's own base."""
    before = read_manifest(loaded.source)
    if before is not None and not before.whole_model:
        return before.base
    return Base(loaded.name, loaded.fingerprint, loaded.revision)


def earlier_of(loaded: LoadedModel) -> list[dict[str, Any]]:
    """The runs that the model comes from, the first one first."""
    before = read_manifest(loaded.source)
    if before is None:
        return []
    trained_on = {"data": before.config.get("data", []), "data_hash": before.data_hash}
    return [*before.earlier, {"name": loaded.name, **trained_on}]


def doubt_held_out(loaded: LoadedModel, data: Data) -> str:
    """A note for the start where an earlier run may have trained on what is held out now."""
    before = [run for run in earlier_of(loaded) if run["data_hash"] != data.train.data_hash()]
    if not (before and data.held_out.rows):
        return ""
    return (
        f"Note: {before[-1]['name']} was trained on other rows; what is held out now may have been"
        " among them, and then the figures are too good."
    )


def golden_conversations(*parts: Sequence[Row]) -> list[Conversation]:
    """A few rows, each with its first question only; a later part's where the earlier ones have too
    few.
    """
    chosen: list[Row] = []
    for rows in parts:
        wanted = min(GOLDEN_PROMPTS - len(chosen), len(rows))
        chosen += [rows[i * len(rows) // wanted] for i in range(wanted)]
    found = []
    for row in chosen:
        conversation = row.conversation()
        opening = 1 if conversation.system is not None else 0
        found.append(Conversation(conversation.messages[: opening + 2]))
    return found
