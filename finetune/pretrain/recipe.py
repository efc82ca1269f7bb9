"""The training of the built-in model, one call per stage; an interrupted stage is continued.

towers: the picture encoder and its text tower -> language model on symbolic pictures
-> alignment of both -> checkpoint
"""

import multiprocessing
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, SiglipModel

from finetune.pretrain.alignment import align
from finetune.pretrain.exam import (
    Exam,
    Scores,
    VisionLanguageModel,
    evaluate_dialogues,
    evaluate_photos,
    evaluate_world,
    load_model,
)
from finetune.pretrain.language import CountHead, ReferentHeads, SymbolEmbedding, train_language
from finetune.pretrain.model import assemble_checkpoint, make_projector, save
from finetune.pretrain.optim import StageConfig, join_group, leave_group, load_state, rank
from finetune.pretrain.picture_pool import PictureSources
from finetune.pretrain.tokenizer import train_tokenizer
from finetune.pretrain.towers import TowerHeads, TowerTrainingConfig, tower_config
from finetune.pretrain.two_towers import TowerTraining
from finetune.pretrain.unseen_tokens import spread_unseen
from finetune.pretrain.world.mixture import World, open_rooms
from vqa_app.files import atomic_directory

LANGUAGE_ROOM_WEIGHTS = {
    "wide shapes": 10.0,
    "things": 4.0,
    "writing": 3.0,
    "digits": 2.0,
    "charts": 3.0,
    "plots": 1.5,
    "outside": 0.6,
    "icons": 6.0,
    "photos": 6.0,
}
"""How often scenes of each room are drawn in the language stages. Shapes exercise most skills."""
TINY_TOWERS = TowerTrainingConfig(
    pictures=64, side=64, patch=16, width=32, layers=2, batch=8, capacity=16, validation_scenes=4
)


@dataclass(frozen=True)
class Plan:
    """What to train and for how long; `tiny` shrinks everything, for tests."""

    out: Path
    photos: Path | None = None
    """The folder of packed photographs."""
    icons: Path | None = None
    """The folder of packed icons."""
    pictures: int = 800_000
    """Training pictures of the towers."""
    language_steps: int = 8_000
    alignment_steps: int = 8_000
    seed: int = 0
    tiny: bool = False
    device: str = "cpu"
    processes: int = 1
    """How many processes train together in the language stages, each with its share of the CPU's
    cores: making questions is work of a single thread."""

    @property
    def towers(self) -> Path:
        """The folder of the towers; a finished one of `two_towers` may be put there."""
        return self.out / "towers"

    @property
    def tower_config(self) -> TowerTrainingConfig:
        """The configuration of the towers."""
        return TowerTrainingConfig(
            **{
                **vars(TINY_TOWERS if self.tiny else TowerTrainingConfig(self.pictures)),
                "pictures": self.pictures,
                "photos": self.photos,
                "icons": self.icons,
                "seed": self.seed,
                "device": self.device,
            }
        )


def build(plan: Plan) -> Path:
    """Train everything that is not finished, and return the folder of the final checkpoint."""
    final = plan.out / "model"
    if final.exists():
        return final
    _, missing = open_rooms(plan.photos, plan.icons)
    for line in missing:
        print(line, flush=True)
    plan.out.mkdir(parents=True, exist_ok=True)
    train_towers(plan)
    _in_processes(_language_stages, plan)
    return finish(plan.out / "aligned", plan.towers / "siglip", final)


def make_tokenizer(plan: Plan) -> PreTrainedTokenizerFast:
    """Train the tokenizer, or load it if it exists; the towers' captions need it first."""
    folder = plan.towers / "tokenizer"
    if not folder.exists():
        scenes = 40 if plan.tiny else 1500
        train_tokenizer(scenes, plan.seed).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def train_towers(plan: Plan) -> None:
    """Train the towers until all their pictures have been used, and write their checkpoint."""
    if (plan.towers / "siglip" / "config.json").exists():
        return
    make_tokenizer(plan)
    config = plan.tower_config
    sources = PictureSources.open(plan.photos, plan.icons, config.side, plan.device)
    training = TowerTraining(plan.towers, config, sources)
    training.train(None, validate_every=25_000)
    training.pool.close()
    training.export()


def load_towers(plan: Plan) -> tuple[SiglipModel, nn.Linear]:
    """Return the trained towers, and their head that names icons and photographs."""
    state = load_state(plan.towers / "state.pt")
    if state is None:
        raise FileNotFoundError(f"Expected the towers' state in {plan.towers / 'state.pt'}.")
    config = plan.tower_config
    model = SiglipModel(tower_config(len(make_tokenizer(plan)), config))
    model.load_state_dict(state["model"])
    heads = TowerHeads(config.width)
    heads.load_state_dict(state["heads"])
    model.to(plan.device)  # type: ignore[arg-type]  # `to` is wrapped, its types are lost
    return model.eval(), heads.to(plan.device).name_head


def _stage(plan: Plan, steps: int) -> StageConfig:
    """Return the configuration of a language stage of `steps` optimiser steps."""
    rooms, _ = open_rooms(plan.photos, plan.icons)
    weights = {name: weight for name, weight in LANGUAGE_ROOM_WEIGHTS.items() if name in rooms}
    return StageConfig(
        plan.out,
        make_tokenizer(plan),
        World(weights, rooms, varied=True),
        plan.tower_config.grid,
        steps,
        plan.seed,
        plan.tiny,
        plan.device,
    )


def language_stage(
    plan: Plan,
) -> tuple[LlamaForCausalLM, SymbolEmbedding, ReferentHeads, CountHead]:
    """Train the language model on symbolic pictures, or load it if its steps are taken."""
    stage = _stage(plan, plan.language_steps)
    return train_language(stage, scale=0.1 if plan.tiny else 1.0)


def _language_stages(plan: Plan) -> None:
    """Train the language model, align it with the encoder, and write the aligned checkpoint."""
    if (plan.out / "aligned").exists():
        return
    tokenizer = make_tokenizer(plan)
    towers, name_head = load_towers(plan)
    stage = _stage(plan, plan.alignment_steps)
    language, symbols, referent_heads, count_head = language_stage(plan)
    projector = make_projector(towers.vision_model.config, language.config, tokenizer)
    projector.to(plan.device)
    align(
        stage,
        "meet",
        VisionLanguageModel(towers.vision_model, projector, language, stage.grid),
        symbols,
        referent_heads,
        count_head,
        name_head,
        rate=0.6,
        scale=0.1 if plan.tiny else 1.0,
        capacity=64 if plan.tiny else 8000,
    )
    if rank() == 0:
        checkpoint = assemble_checkpoint(towers, projector, language, tokenizer)
        with atomic_directory(plan.out / "aligned") as folder:
            save(*checkpoint, folder)


def _in_processes(task: Callable[[Plan], object], plan: Plan) -> None:
    """Run a task in `plan.processes` processes, which share the cores and train together."""
    threads = torch.get_num_threads()
    if plan.processes == 1:
        task(plan)
        return
    share = max(1, threads // plan.processes)
    (plan.out / "meet.sync").unlink(missing_ok=True)
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=_in_group, args=(task, plan, number, share), daemon=True)
        for number in range(1, plan.processes)
    ]
    for other in others:
        other.start()
    try:
        _in_group(task, plan, 0, share)
        for other in others:
            other.join()
    finally:
        for other in others:
            other.kill()
        torch.set_num_threads(threads)
    if failed := [other.exitcode for other in others if other.exitcode]:
        raise RuntimeError(f"A parallel process ended with exit code {failed[0]}.")


def _in_group(task: Callable[[Plan], object], plan: Plan, number: int, threads: int) -> None:
    """Run a task as process `number` of the group."""
    torch.set_num_threads(threads)
    join_group(number, plan.processes, plan.out / "meet.sync")
    try:
        task(plan)
    finally:
        leave_group()


def finish(aligned: Path, two_towers: Path, final: Path) -> Path:
    """Write the weights as they are shipped, and return their folder.

    They are bf16 in small shards with standard files only. The embeddings of unseen tokens are
    spread, and `siglip/` holds the encoder with its text tower.
    """
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(aligned, dtype=torch.bfloat16)
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    spread_unseen(embeddings.weight)
    with atomic_directory(final) as folder:
        save(model, AutoProcessor.from_pretrained(aligned), folder)
        shutil.copytree(two_towers, folder / "siglip")
    return final


def examine(plan: Plan, final: Path) -> Scores:
    """Return the final checkpoint's scores on held-out scenes, dialogues and photographs."""
    model, packer = load_model(final)
    world = _stage(plan, 1).world
    scenes = 10 if plan.tiny else 300
    scores = evaluate_world(model, packer, Exam(world, scenes))
    scores |= evaluate_dialogues(model, packer, world, scenes // 10)
    if "photos" in world.rooms:
        scores |= evaluate_photos(model, packer, world, scenes)
    return scores


def sizes(folder: Path) -> str:
    """Return the size of a checkpoint's weights, such as "13.1 MB in 1 file(s)"."""
    files = list(folder.rglob("*.safetensors"))
    total = sum(f.stat().st_size for f in files)
    return f"{total / 1e6:.1f} MB in {len(files)} file(s)"
