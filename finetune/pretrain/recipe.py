"""The training of the built-in model, one call per stage; an interrupted stage is continued.

tokenizer -> 0a encoder | 0b language model (in parallel) -> alignment on the encoder's features
-> 1 projector -> 2 LoRA (both through `finetune.training.train`) -> merged checkpoint
"""

import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, SiglipModel

from finetune.config import FinetuneConfig, Stage
from finetune.pretrain.alignment import align
from finetune.pretrain.encoder import train_encoder
from finetune.pretrain.exam import VisionLanguageModel
from finetune.pretrain.export import Selection, export
from finetune.pretrain.language import CountHead, ReferentHeads, SymbolEmbedding, train_language
from finetune.pretrain.model import assemble_checkpoint, make_projector, save, save_two_towers
from finetune.pretrain.optim import StageConfig, join_group, leave_group
from finetune.pretrain.tokenizer import train_tokenizer
from finetune.pretrain.unseen_tokens import spread_unseen
from finetune.pretrain.world.mixture import World
from vqa_app.checkpoints.manifest import is_finished
from vqa_app.files import atomic_directory

# How often scenes of each room are drawn. Shapes exercise most skills.
ROOM_WEIGHTS = {
    "shapes": 10.0,
    "things": 4.0,
    "writing": 2.0,
    "digits": 2.0,
    "charts": 2.0,
    "outside": 0.6,
}
SEPARATE_SHARE, ALIGNMENT_SHARE, FINETUNE_SHARE = 0.4, 0.5, 0.1
"""Shares of the time: stages 0a and 0b, alignment, then stages 1 and 2 of `finetune.train`."""
ALIGNED_LR, ALIGNED_PROJECTOR_LR = 3e-4, 1e-4
"""The learning rates of stages 1 and 2, which start from aligned parts. At the default rates, which
are for a fresh projector, the loss rose from 0.08 to 0.16 within 35 steps."""
QUESTIONS_PER_MINUTE = 2500
"""How many questions `finetune.training.train` is given per minute of its time."""


@dataclass(frozen=True)
class Plan:
    """What to train and for how long; `tiny` shrinks everything, for tests."""

    out: Path
    minutes: float
    seed: int = 0
    tiny: bool = False
    device: str = "cpu"
    parallel: bool = False
    """Whether to use two processes, for 0a beside 0b and then for data-parallel alignment, which
    suits CPUs with several cores."""

    @property
    def separate(self) -> float:
        """The minutes for each of stages 0a and 0b."""
        return SEPARATE_SHARE * self.minutes / (1 if self.parallel else 2)

    @property
    def world(self) -> World:
        """The rooms that are trained on."""
        return World(ROOM_WEIGHTS)


def build(plan: Plan) -> Path:
    """Train everything that is not finished, and return the folder of the final checkpoint."""
    plan.out.mkdir(parents=True, exist_ok=True)
    make_tokenizer(plan)
    with in_parallel(_encoder, plan) as parallel:
        if not parallel:
            _encoder(plan)
        _language(plan)
    if not (plan.out / "base" / "config.json").exists():
        sync = plan.out / "meet.sync"
        sync.unlink(missing_ok=True)
        with in_parallel(_align, plan, 1) as parallel:
            _align(plan, 0, 2 if parallel else 1)
    return finetune_stages(plan)


@contextmanager
def in_parallel(task: Callable[..., object], plan: Plan, *args: int) -> Iterator[bool]:
    """Run `task(plan, *args)` in another process, with half of the cores, during the block.

    Yields whether it does, which `Plan.parallel` decides.
    """
    threads = torch.get_num_threads()
    if not plan.parallel:
        yield False
        return
    half = max(1, threads // 2)
    torch.set_num_threads(half)
    context = multiprocessing.get_context("spawn")
    other = context.Process(target=_in_process, args=(task, half, plan, *args), daemon=True)
    other.start()
    yield True
    other.join()
    torch.set_num_threads(threads)
    if other.exitcode:
        raise RuntimeError(f"The parallel process ended with exit code {other.exitcode}.")


def _in_process(task: Callable[..., object], threads: int, plan: Plan, *args: int) -> None:
    torch.set_num_threads(threads)
    task(plan, *args)


def make_tokenizer(plan: Plan) -> PreTrainedTokenizerFast:
    """Train the tokenizer, or load it if it exists."""
    folder = plan.out / "tokenizer"
    if not folder.exists():
        train_tokenizer(seed=plan.seed).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _stage(plan: Plan, minutes: float) -> StageConfig:
    """Return the configuration of a stage that takes `minutes`."""
    return StageConfig(
        plan.out, make_tokenizer(plan), plan.world, minutes, plan.seed, plan.tiny, plan.device
    )


def _encoder(plan: Plan) -> SiglipModel:
    """Run stage 0a, or load its result if its time is used up."""
    batch, capacity = (16, 400) if plan.tiny else (64, 16000)
    return train_encoder(_stage(plan, plan.separate), batch=batch, capacity=capacity)


def _language(plan: Plan) -> tuple[LlamaForCausalLM, SymbolEmbedding, ReferentHeads, CountHead]:
    """Run stage 0b, or load its result if its time is used up."""
    return train_language(_stage(plan, plan.separate), scale=0.1 if plan.tiny else 1.0)


def _align(plan: Plan, number: int, processes: int = 2) -> None:
    """Align language model and encoder, as process `number` of `processes`."""
    if processes > 1:
        join_group(number, processes, plan.out / "meet.sync")
    tokenizer, encoder = make_tokenizer(plan), _encoder(plan)
    language, symbols, referent_heads, count_head = _language(plan)
    projector = make_projector(encoder.vision_model.config, language.config, tokenizer)
    projector.to(plan.device)
    align(
        _stage(plan, ALIGNMENT_SHARE * plan.minutes),
        "meet",
        VisionLanguageModel(encoder.vision_model, projector, language),
        symbols,
        referent_heads,
        count_head,
        rate=0.6,
        scale=0.2 if plan.tiny else 1.0,
        capacity=64 if plan.tiny else 8000,
    )
    leave_group()
    if number == 0:
        save_two_towers(encoder, tokenizer, plan.out / "siglip")
        save(*assemble_checkpoint(encoder, projector, language, tokenizer), plan.out / "base")


def finetune_stages(plan: Plan) -> Path:
    """Run stages 1 and 2 with the code that users fine-tune with, and merge the result."""
    from finetune.runs.merge import merge
    from finetune.training.train import train

    final = plan.out / "model"
    if final.exists():
        return final
    questions = (
        200 if plan.tiny else max(2000, round(FINETUNE_SHARE * plan.minutes * QUESTIONS_PER_MINUTE))
    )
    data = plan.out / "data"
    if not (data / "train.json").exists():
        selection = Selection("train", plan.world, short=None, plain=False)
        export(data, questions, selection, seed=90_000_000 + plan.seed)
    base = plan.out / "base"
    stages: tuple[tuple[Stage, Path], ...] = (
        ("projector", base),
        ("lora", plan.out / "projector"),
    )
    for stage, model in stages:
        if is_finished(plan.out / stage):
            continue
        train(
            FinetuneConfig(
                data=(str(data / "train.json"),),
                model=str(model),
                stage=stage,
                lr=ALIGNED_LR,
                projector_lr=ALIGNED_LR if stage == "projector" else ALIGNED_PROJECTOR_LR,
                epochs=1.0,
                out=str(plan.out / stage),
                eval_fraction=0.02,
                eval_every=0,
                eval_questions=100,
                turns="apart",
                seed=plan.seed,
                device=plan.device,
                feature_dir=str(plan.out / "features"),
            )
        )
    merge(plan.out / "lora", plan.out / "merged")
    return finish(plan.out / "merged", plan.out / "siglip", final)


def finish(merged: Path, two_towers: Path, final: Path) -> Path:
    """Write the merged weights as they are shipped, and return their folder.

    They are bf16 in small shards with standard files only. The embeddings of unseen tokens are
    spread, and `siglip/` holds the encoder with its text tower.
    """
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(merged, dtype=torch.bfloat16)
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    spread_unseen(embeddings.weight)
    with atomic_directory(final) as folder:
        save(model, AutoProcessor.from_pretrained(merged), folder)
        shutil.copytree(two_towers, folder / "siglip")
    return final


def sizes(folder: Path) -> str:
    """Return the size of a checkpoint's weights, such as "13.1 MB in 1 file(s)"."""
    files = list(folder.rglob("*.safetensors"))
    total = sum(f.stat().st_size for f in files)
    return f"{total / 1e6:.1f} MB in {len(files)} file(s)"
