"""The whole training of the built-in model, one call a stage; each goes on where it was killed.

tokenizer -> 0a encoder | 0b language model (side by side) -> the two meet on features
-> 1 projector -> 2 LoRA (both through `finetune.training.train`) -> merged checkpoint
"""

import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast, SiglipModel

from finetune.config import FinetuneConfig
from finetune.pretrain.alignment import align
from finetune.pretrain.encoder import train_encoder
from finetune.pretrain.exam import Seer
from finetune.pretrain.export import Selection, export
from finetune.pretrain.language import Census, Referents, Symbols, train_language
from finetune.pretrain.model import assemble_checkpoint, make_projector, save, save_two_towers
from finetune.pretrain.optim import apart, together
from finetune.pretrain.tokenizer import train_tokenizer
from finetune.pretrain.unseen_tokens import spread_unseen
from finetune.pretrain.world import ROOMS
from vqa_app.checkpoints.manifest import is_finished
from vqa_app.files import atomic_directory

# Share of the scenes. Shapes carry most skills; the others are mostly new things to see.
ROOM_WEIGHTS = {
    "shapes": 10.0,
    "things": 4.0,
    "writing": 2.0,
    "digits": 2.0,
    "charts": 2.0,
    "outside": 0.6,
}
SEPARATE, MEET, TOGETHER = 0.4, 0.5, 0.1
"""Shares of the time: 0a and 0b, then on features, then stages 1 and 2 of `finetune.train`."""
KNOWN_LR, KNOWN_PROJECTOR_LR = 3e-4, 1e-4
"""Of these stages: the parts know each other by then. At the default rates, which are for a
projector from nothing, the loss went from 0.08 to 0.16 within 35 steps."""
QUESTIONS_A_MINUTE = 2500
"""How many questions `finetune.training.train` is given for each of its minutes."""


@dataclass(frozen=True)
class Plan:
    """What to train. `tiny` shrinks everything, to see that it runs."""

    out: Path
    minutes: float
    seed: int = 0
    tiny: bool = False
    device: str = "cpu"
    parallel: bool = False
    """Two processes: 0a beside 0b, then both as one. For CPUs with several cores."""

    @property
    def separate(self) -> float:
        """Minutes for each of 0a and 0b."""
        return SEPARATE * self.minutes / (1 if self.parallel else 2)

    @property
    def rooms(self) -> Mapping[str, float]:
        return {name: ROOM_WEIGHTS[name] for name in ROOMS}


def build(plan: Plan) -> Path:
    """Trains everything that is not done yet; returns the folder of the finished checkpoint."""
    plan.out.mkdir(parents=True, exist_ok=True)
    the_tokenizer(plan)
    with side_by_side(_encoder, plan) as two:
        if not two:
            _encoder(plan)
        _language(plan)
    if not (plan.out / "base" / "config.json").exists():
        sync = plan.out / "meet.sync"
        sync.unlink(missing_ok=True)
        with side_by_side(_meet, plan, 1) as two:
            _meet(plan, 0, 2 if two else 1)
    return instruct(plan)


@contextmanager
def side_by_side(task: Callable[..., None], plan: Plan, *args: int) -> Iterator[bool]:
    """Runs `task(plan, *args)` in a process of its own, with half of the cores, beside the block.

    Yields whether it does: see `Plan.parallel`.
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
        raise RuntimeError(f"The process beside this one ended with exit code {other.exitcode}.")


def _in_process(task: Callable[..., None], threads: int, plan: Plan, *args: int) -> None:
    torch.set_num_threads(threads)
    task(plan, *args)


def the_tokenizer(plan: Plan) -> PreTrainedTokenizerFast:
    folder = plan.out / "tokenizer"
    if not folder.exists():
        train_tokenizer(seed=plan.seed).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def _encoder(plan: Plan) -> SiglipModel:
    """Stage 0a; only reads its state once its time is used up."""
    return train_encoder(
        plan.out,
        the_tokenizer(plan),
        plan.rooms,
        plan.separate,
        seed=plan.seed,
        tiny=plan.tiny,
        batch=16 if plan.tiny else 64,
        capacity=400 if plan.tiny else 16000,
        device=plan.device,
    )


def _language(plan: Plan) -> tuple[LlamaForCausalLM, Symbols, Referents, Census]:
    """Stage 0b, likewise."""
    return train_language(
        plan.out,
        the_tokenizer(plan),
        plan.rooms,
        plan.separate,
        seed=plan.seed,
        tiny=plan.tiny,
        scale=0.1 if plan.tiny else 1.0,
        device=plan.device,
    )


def _meet(plan: Plan, number: int, processes: int = 2) -> None:
    """The language model meets the encoder; process `number` of those that train as one."""
    if processes > 1:
        together(number, processes, plan.out / "meet.sync")
    tokenizer, encoder = the_tokenizer(plan), _encoder(plan)
    language, symbols, referents, census = _language(plan)
    projector = make_projector(encoder.config.vision_config, language.config, tokenizer)
    projector.to(plan.device)
    align(
        plan.out,
        "meet",
        Seer(encoder.vision_model, projector, language),
        symbols,
        referents,
        census,
        tokenizer,
        plan.rooms,
        MEET * plan.minutes,
        seed=plan.seed,
        rate=0.6,
        scale=0.2 if plan.tiny else 1.0,
        capacity=64 if plan.tiny else 8000,
    )
    apart()
    if number == 0:
        save_two_towers(encoder, tokenizer, plan.out / "siglip")
        save(*assemble_checkpoint(encoder, projector, language, tokenizer), plan.out / "base")


def instruct(plan: Plan) -> Path:
    """Stages 1 and 2 by the code that users fine-tune with, and the merged checkpoint."""
    from finetune.runs.merge import merge
    from finetune.training.train import train

    final = plan.out / "model"
    if final.exists():
        return final
    questions = 200 if plan.tiny else max(2000, round(TOGETHER * plan.minutes * QUESTIONS_A_MINUTE))
    data = plan.out / "data"
    if not (data / "train.json").exists():
        chosen = Selection("train", plan.rooms, short=None, plain=False)
        export(data, questions, chosen, seed=90_000_000 + plan.seed)
    base = plan.out / "base"
    for stage, model in (("projector", base), ("lora", plan.out / "projector")):
        if is_finished(plan.out / stage):
            continue
        train(
            FinetuneConfig(
                data=(str(data / "train.json"),),
                model=str(model),
                stage=stage,
                lr=KNOWN_LR,
                projector_lr=KNOWN_LR if stage == "projector" else KNOWN_PROJECTOR_LR,
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
    """The merged weights as they are shipped: bf16, small shards, standard files only, pieces that
    were never seen ready to be learned; and in `siglip/` the encoder with its text tower.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(merged, dtype=torch.bfloat16)
    spread_unseen(model.get_input_embeddings().weight)
    with atomic_directory(final) as folder:
        save(model, AutoProcessor.from_pretrained(merged), folder)
        shutil.copytree(two_towers, folder / "siglip")
    return final


def sizes(folder: Path) -> str:
    """ "13.1 MB in 1 file(s)": the weights of a checkpoint."""
    files = list(folder.rglob("*.safetensors"))
    total = sum(f.stat().st_size for f in files)
    return f"{total / 1e6:.1f} MB in {len(files)} file(s)"
