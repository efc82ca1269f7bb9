"""What a finished run leaves: weights, processor, manifest, golden prompts, report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import checkpoint, report
from finetune.config import FinetuneConfig
from finetune.evaluating import Evaluation, scores_of
from finetune.golden import GOLDEN_FOLDER, record_golden
from finetune.progress import OnProgress, Progress
from finetune.samples import Sample
from vqa_app.conversation import Conversation
from vqa_app.loading import LoadedModel, load_model
from vqa_app.manifest import Base, Manifest, read_manifest
from vqa_app.prompting import prompt_hash

if TYPE_CHECKING:
    from finetune.train import Data

GOLDEN_PROMPTS = 4


def leave_run(
    config: FinetuneConfig,
    data: Data,
    loaded: LoadedModel,
    model: Any,
    evaluation: Evaluation | None,
    state_dict: Mapping[str, Any] | None,
    step: int,
    kept_step: int,
    command: str,
    tell: OnProgress,
) -> dict[str, float]:
    """Writes the run directory, verifies that it opens and gives what it gave, and writes its
    report.

    Args:
        model: with the weights to keep.
        step: the last one.
        kept_step: the one whose weights these are.
        command: makes the same run.

    Returns:
        vqa_accuracy, loss and image_gain of these weights on the held-out questions.
    """
    from finetune.verify import require, verify

    run = Path(config.out)
    manifest = Manifest(
        kind=config.stage,
        base=base_of(loaded),
        prompt_hash=prompt_hash(loaded.processor),
        data_hash=data.train.data_hash(),
        seed=config.seed,
        config=config.to_dict(),
        command=command,
    )
    golden = golden_conversations(data.held_out.samples or data.train.samples)
    if state_dict is None:
        checkpoint.save_run(run, model, loaded.processor, manifest, golden)
        require(verify(run))
    else:  # sharded over processes: this one alone cannot compute with it
        checkpoint.save_run(run, model, loaded.processor, manifest, state_dict=state_dict)
        whole = load_model(str(run))
        with checkpoint.whole_directory(run / GOLDEN_FOLDER) as folder:
            record_golden(whole.model, whole.processor, golden, folder)
        require(verify(run, whole))
    final: dict[str, float] = {}
    worst: Sequence[Any] = ()
    if evaluation:
        result = evaluation.results.get(kept_step) or evaluation.result()
        final = scores_of(result)
        worst = report.worst_answers(result.predictions, evaluation.questions)
        line = {"step": step, "final": True, **{f"eval_{key}": v for key, v in final.items()}}
        with (run / report.METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    report.write_report(run, worst)
    shutil.rmtree(run / checkpoint.CHECKPOINTS, ignore_errors=True)
    tell(Progress("saving", message=f"Saved {run}; report: {run / 'report.html'}"))
    return final


def base_of(loaded: LoadedModel) -> Base:
    """The model under what was trained: of an earlier adapter run, that run's own base."""
    before = read_manifest(loaded.source)
    if before is not None and not before.whole_model:
        return before.base
    return Base(loaded.name, loaded.fingerprint, loaded.revision)


def golden_conversations(samples: Sequence[Sample]) -> list[Conversation]:
    """A few rows, each with its first question only."""
    chosen = [samples[i * len(samples) // GOLDEN_PROMPTS] for i in range(GOLDEN_PROMPTS)]
    found = []
    for row in {id(sample.row): sample.row for sample in chosen}.values():
        conversation = row.conversation()
        opening = 1 if conversation.system is not None else 0
        found.append(Conversation(conversation.messages[: opening + 2]))
    return found
