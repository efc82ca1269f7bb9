"""The whole training of the built-in model, one call a stage; each goes on where it was killed.

tokenizer -> 0a encoder | 0b language model (side by side) -> the two meet on features
-> 1 projector -> 2 LoRA (both through `finetune.train`) -> merged checkpoint
"""

import multiprocessing
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast, SiglipModel

from finetune.builtin.align import align
from finetune.builtin.encoder import train_encoder
from finetune.builtin.export import Selection, export
from finetune.builtin.language import Symbols, train_language
from finetune.builtin.model import assemble, make_projector, save
from finetune.builtin.text import train_tokenizer
from finetune.builtin.world import ROOMS
from finetune.config import FinetuneConfig

# Share of the scenes. Shapes carry most skills; the others are mostly new things to see.
ROOM_WEIGHTS = {
    "shapes": 10.0,
    "things": 6.0,
    "writing": 4.0,
    "digits": 3.0,
    "charts": 3.0,
    "outside": 0.7,
}
SEPARATE, MEET, TOGETHER = 0.6, 0.25, 0.15
"""Shares of the time: 0a and 0b, then on features, then stages 1 and 2 of `finetune.train`."""
QUESTIONS_A_MINUTE = 2500
"""How many questions `finetune.train` is given for each of its minutes."""


@dataclass(frozen=True)
class Plan:
    """What to train. `tiny` shrinks everything, to see that it runs."""

    out: Path
    minutes: float
    seed: int = 0
    tiny: bool = False
    device: str = "cpu"

    @property
    def rooms(self) -> Mapping[str, float]:
        return {name: ROOM_WEIGHTS[name] for name in ROOMS}


def build(plan: Plan) -> Path:
    """Trains everything that is not done yet; returns the folder of the finished checkpoint."""
    plan.out.mkdir(parents=True, exist_ok=True)
    tokenizer = the_tokenizer(plan)
    encoder, language, symbols = the_parts(plan, tokenizer)
    if not (plan.out / "base" / "config.json").exists():
        projector = make_projector(encoder.config.vision_config, language.config, tokenizer)
        projector.to(plan.device)
        align(
            plan.out,
            "meet",
            encoder,
            projector,
            language,
            tokenizer,
            plan.rooms,
            MEET * plan.minutes,
            train_language=True,
            seed=plan.seed,
            rate=0.5,
            batch=4 if plan.tiny else 20,
            capacity=64 if plan.tiny else 8000,
            device=plan.device,
            symbols=symbols,
        )
        save(*assemble(encoder, projector, language, tokenizer), plan.out / "base")
        encoder.bfloat16().save_pretrained(plan.out / "siglip")
    return instruct(plan)


def the_tokenizer(plan: Plan) -> PreTrainedTokenizerFast:
    folder = plan.out / "tokenizer"
    if not folder.exists():
        train_tokenizer(seed=plan.seed).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def the_parts(
    plan: Plan,
    tokenizer: PreTrainedTokenizerFast,
) -> tuple[SiglipModel, LlamaForCausalLM, Symbols]:
    """Stages 0a and 0b. On a CPU they run side by side, each with half of the cores."""
    minutes = SEPARATE * plan.minutes
    if plan.device == "cpu":
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, threads // 2))
        other = multiprocessing.get_context("spawn").Process(
            target=_encoder_alone, args=(plan, minutes, max(1, threads // 2))
        )
        other.start()
        language, symbols = _language(plan, tokenizer, minutes)
        other.join()
        if other.exitcode:
            raise RuntimeError(f"The encoder's training ended with exit code {other.exitcode}.")
        torch.set_num_threads(threads)
        # It reached its time, so this only reads its state.
        return _encoder(plan, tokenizer, minutes), language, symbols
    encoder = _encoder(plan, tokenizer, minutes / 2)
    return encoder, *_language(plan, tokenizer, minutes / 2)


def _encoder(plan: Plan, tokenizer: PreTrainedTokenizerFast, minutes: float) -> SiglipModel:
    return train_encoder(
        plan.out,
        tokenizer,
        plan.rooms,
        minutes,
        seed=plan.seed,
        tiny=plan.tiny,
        batch=16 if plan.tiny else 64,
        capacity=400 if plan.tiny else 16000,
        device=plan.device,
    )


def _language(
    plan: Plan,
    tokenizer: PreTrainedTokenizerFast,
    minutes: float,
) -> tuple[LlamaForCausalLM, Symbols]:
    return train_language(
        plan.out,
        tokenizer,
        plan.rooms,
        minutes,
        seed=plan.seed,
        tiny=plan.tiny,
        scale=0.1 if plan.tiny else 1.0,
        device=plan.device,
    )


def _encoder_alone(plan: Plan, minutes: float, threads: int) -> None:
    torch.set_num_threads(threads)
    _encoder(plan, the_tokenizer(plan), minutes)


def instruct(plan: Plan) -> Path:
    """Stages 1 and 2 by the code that users fine-tune with, and the merged checkpoint."""
    from finetune.merge import merge
    from finetune.train import train

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
        if (plan.out / stage / "manifest.json").exists():
            continue
        train(
            FinetuneConfig(
                data=(str(data / "train.json"),),
                model=str(model),
                stage=stage,
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
    return finish(plan.out / "merged", final)


def finish(merged: Path, final: Path) -> Path:
    """The merged weights as they are shipped: bf16, small shards, standard files only."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(merged, dtype=torch.bfloat16)
    half = final.with_suffix(".part")
    shutil.rmtree(half, ignore_errors=True)
    save(model, AutoProcessor.from_pretrained(merged), half)
    os.replace(half, final)
    return final


def sizes(folder: Path) -> str:
    """ "13.1 MB in 1 file(s)": the weights of a checkpoint."""
    files = list(folder.glob("*.safetensors"))
    total = sum(f.stat().st_size for f in files)
    return f"{total / 1e6:.1f} MB in {len(files)} file(s)"
