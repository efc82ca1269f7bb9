"""Exact match on held-out scenes, by skill: while training, and of a finished checkpoint.

    python -m finetune.pretrain.exam --model DIR --room shapes --most 4 --scenes 1000

All questions of a scene share the picture's tokens and are scored in one forward pass: teacher
forcing and greedy decoding agree as long as every token is right, so a hit is an exact answer. For
figures through real generation use `finetune.pretrain.export` and `vqa-app eval`.
"""

import argparse
import json
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer, LlamaForCausalLM, LlavaForConditionalGeneration

from finetune.pretrain import patch_targets
from finetune.pretrain.curriculum import questions_without_picture, scene_questions
from finetune.pretrain.language import run_packed, told
from finetune.pretrain.optim import fast_autocast, fast_dtype
from finetune.pretrain.scene_pool import normalised, pixels
from finetune.pretrain.sequences import Packer, answer_hits, first_pieces, turns_of
from finetune.pretrain.world import ROOMS, Scene
from finetune.pretrain.world.mixture import World


@dataclass(frozen=True)
class Seer:
    """A vision tower, a projector and a language model: anybody's LLaVA of the built-in's shape."""

    tower: nn.Module
    projector: nn.Module
    language: LlamaForCausalLM

    @property
    def device(self) -> str:
        return self.language.device.type

    @torch.no_grad()
    def features(self, images: np.ndarray) -> torch.Tensor:
        """What the projector is given: uint8 [n, SIZE, SIZE, 3] -> [n, patches, width].

        That is the last layer's output before the final norm, as LLaVA takes it; the norm hardly
        matters (every token has about the same scale).
        """
        with fast_autocast(self.device):
            pixel_values = normalised(torch.tensor(images, device=self.device))
            seen = self.tower(pixel_values=pixel_values, output_hidden_states=True)
        return seen.hidden_states[-1].to(fast_dtype(self.device))

    @classmethod
    def of(cls, model: LlavaForConditionalGeneration) -> "Seer":
        language = LlamaForCausalLM(model.config.text_config)
        language.model = model.model.language_model
        language.lm_head.weight = language.model.embed_tokens.weight
        return cls(model.model.vision_tower, model.model.multi_modal_projector, language)


Shown = Literal["own", "blank", "other"]


@dataclass(frozen=True)
class Exam:
    """Which scenes are asked about."""

    world: World
    scenes: int
    least: int = 1
    most: int = 10**6
    shown: Shown = "own"
    """Instead of a scene's own picture a blank one, or another scene's: what the questions alone
    give away. A blank one is refused as of no known kind, so the other says more."""
    known: bool = False
    """Ask in phrasings that training used; the scenes are held out all the same."""
    first_seed: int = 0

    def drawn(self) -> list[Scene]:
        found: list[Scene] = []
        seed = self.first_seed
        while len(found) < self.scenes:
            scene = self.world.make_scene(seed, "test")
            if self.least <= len(scene.items) <= self.most:
                found.append(scene)
            seed += 1
        return found


Scores = dict[str, tuple[float, int]]
WRONGLY_REFUSED = "(wrongly refused)"
REFUSALS = {"none", "unknown", "I", "There"}
"""How answers begin that find nothing to answer, or do not know."""


@torch.no_grad()
def evaluate_world(seer: Seer, packer: Packer, exam: Exam) -> Scores:
    """Skill -> (exact match, questions); both answer styles, plain typing.

    `WRONGLY_REFUSED` stands for the share of refusals among all questions whose right answer does
    not itself begin as refusals do.
    """
    hits: dict[str, list[bool]] = defaultdict(list)
    refused: list[bool] = []
    scenes = exam.drawn()
    for start in range(0, len(scenes), 20):
        part = scenes[start : start + 20]
        images = np.stack([pixels(exam.world.draw(scene)) for scene in part])
        if exam.shown == "blank":
            images = np.full_like(images, 128)
        elif exam.shown == "other":
            images = np.roll(images, 1, axis=0)
        rows, skills = [], []
        for k, scene in enumerate(part):
            rng = random.Random(f"exam-{exam.first_seed}-{start + k}")
            qas = scene_questions(exam.world, scene, rng, "train" if exam.known else "test")
            rows.append(((patch_targets.PATCHES,), [turns_of(qa, rng, plain=True) for qa in qas]))
            skills.append([qa.skill for qa in qas])
        rng = random.Random(f"exam-talk-{start}")
        talk = questions_without_picture(rng, "test")
        rows.append(((), [turns_of(qa, rng, plain=True) for qa in talk]))
        skills.append([qa.skill for qa in talk])
        packed = packer.pack(rows, limit=10**6).to(seer.device)
        with fast_autocast(seer.device):
            visual = seer.projector(seer.features(images)).flatten(0, 1)
            hidden, _ = run_packed(seer.language, packed, visual)
            best = seer.language.lm_head(hidden).argmax(-1)
        for (row, number), hit in answer_hits(best, packed).items():
            hits[skills[row][number - 1]].append(hit)
        for said, wanted in first_pieces(best, packed):
            said, wanted = packer.tokenizer.decode([said]), packer.tokenizer.decode([wanted])
            if wanted not in REFUSALS:
                refused.append(said in REFUSALS)
    scores = {skill: (sum(h) / len(h), len(h)) for skill, h in sorted(hits.items())}
    return {**scores, WRONGLY_REFUSED: (sum(refused) / max(1, len(refused)), len(refused))}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m finetune.pretrain.exam", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of a LLaVA checkpoint")
    parser.add_argument("--room", action="append", choices=sorted(ROOMS), help="default: all")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--least", type=int, default=1, help="fewest objects in a scene")
    parser.add_argument("--most", type=int, default=10**6, help="most objects in a scene")
    parser.add_argument(
        "--shown",
        choices=get_args(Shown),
        default="own",
        help="instead of a scene's own picture: a blank one, or another scene's",
    )
    parser.add_argument("--known", action="store_true", help="only phrasings that training used")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    model = LlavaForConditionalGeneration.from_pretrained(given.model, dtype=torch.float32).eval()
    packer = Packer(AutoTokenizer.from_pretrained(given.model))
    exam = Exam(
        World(dict.fromkeys(given.room or ROOMS, 1.0)),
        given.scenes,
        given.least,
        given.most,
        given.shown,
        given.known,
    )
    scores = evaluate_world(Seer.of(model), packer, exam)
    print(json.dumps(scores) if given.json else told(scores))


if __name__ == "__main__":
    main()
