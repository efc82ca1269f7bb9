"""What a finished run leaves: weights, processor, manifest, golden prompts, report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from finetune import checkpoint, report
from finetune.datasets import Row
from finetune.defaults import Settings, filled_in
from finetune.golden import GOLDEN_FOLDER, record_golden
from finetune.held_out import Evaluation, scores_of
from finetune.machine import peak_memory, wait
from finetune.progress import Progress
from finetune.run_files import METRICS_FILE, REPORT_FILE
from finetune.run_folder import command_of
from finetune.stage_run import StageRun
from finetune.trainer import FinetuneTrainer
from finetune.verify import require, verify
from vqa_app.conversation import Conversation
from vqa_app.loading import LoadedModel, load_model
from vqa_app.manifest import Base, Manifest, read_manifest
from vqa_app.prompting import prompt_hash
from vqa_app.sizes import in_words

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
    peak = in_words(peak_memory(stage.config))
    stage.tell(Progress("training", message=f"Memory: at most {peak} was in use."))
    unset_hf_deepspeed_config()  # else what is loaded from here on would be sharded by ZeRO-3
    scores = {}
    if stage.process == 0:
        stage.tell(Progress("saving"))
        save(stage, trainer.settings, trainer.objective.model, state_dict)
        scores = write_report(stage, evaluation, trainer.state.global_step, kept)
        shutil.rmtree(stage.run / checkpoint.CHECKPOINTS, ignore_errors=True)
        message = f"Saved {stage.run}; report: {stage.run / REPORT_FILE}"
        stage.tell(Progress("saving", message=message))
    wait(stage.processes)
    return scores


def save(
    stage: StageRun, settings: Settings, model: Any, state_dict: Mapping[str, Any] | None
) -> None:
    """Writes the run directory, and verifies that it opens and gives what it gave.

    Args:
        model: with the weights to keep.
        state_dict: the weights, where the model is sharded over processes.
    """
    run, data, processor = stage.run, stage.data, stage.loaded.processor
    manifest = Manifest(
        kind=stage.config.stage,
        base=base_of(stage.loaded),
        prompt_hash=prompt_hash(processor),
        data_hash=data.train.data_hash(),
        seed=stage.config.seed,
        config=filled_in(stage.config, settings).to_dict(),
        command=command_of(stage.config, stage.processes),
    )
    golden = golden_conversations(data.held_out.rows, data.train.rows)
    if state_dict is None:
        checkpoint.save_run(run, model, processor, manifest, golden)
        require(verify(run))
    else:  # this process alone cannot compute with it
        checkpoint.save_run(run, model, processor, manifest, state_dict=state_dict)
        whole = load_model(str(run))
        with checkpoint.whole_directory(run / GOLDEN_FOLDER) as folder:
            record_golden(whole.model, whole.processor, golden, folder)
        require(verify(run, whole))


def write_report(
    stage: StageRun, evaluation: Evaluation | None, step: int, kept_step: int
) -> dict[str, float]:
    """Writes the report; gives the scores in it.

    Args:
        step: the last one.
        kept_step: the one whose weights are kept.
    """
    scores: dict[str, float] = {}
    worst: Sequence[Any] = ()
    if evaluation and evaluation.questions:
        result = evaluation.results.get(kept_step) or evaluation.result()
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


def golden_conversations(*parts: Sequence[Row]) -> list[Conversation]:
    """A few rows, each with its first question only; a later part's where the earlier ones have too
    few."""
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
