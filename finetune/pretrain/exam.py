"""Measure exact match on held-out scenes by skill, during training or of a finished checkpoint.

    python -m finetune.pretrain.exam --model DIR --room shapes --most 4 --scenes 1000

All questions of a scene share the picture's tokens and are scored in one forward pass. Teacher
forcing and greedy decoding agree as long as every token is correct, so a hit is an exact match. To
evaluate with real generation use `finetune.pretrain.export` and `vqa-app eval`.
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
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from finetune.pretrain import patch_targets
from finetune.pretrain.curriculum import questions_without_picture, scene_questions
from finetune.pretrain.language import format_scores, run_packed
from finetune.pretrain.optim import fast_autocast, fast_dtype
from finetune.pretrain.scene_pool import normalised, pixels
from finetune.pretrain.sequences import (
    Packer,
    PictureConversations,
    answer_hits,
    first_pieces,
    turns_of,
)
from finetune.pretrain.world import ROOMS, Scene
from finetune.pretrain.world.mixture import World


@dataclass(frozen=True)
class VisionLanguageModel:
    """The parts of a LLaVA model of the built-in model's architecture."""

    tower: nn.Module
    projector: nn.Module
    language: LlamaForCausalLM

    @property
    def device(self) -> str:
        """The type of the device that holds the language model."""
        return self.language.device.type

    @torch.no_grad()
    def features(self, images: np.ndarray) -> torch.Tensor:
        """Return the projector's input: uint8 [n, SIZE, SIZE, 3] -> [n, patches, width].

        As in LLaVA, it is the last layer's output before the final norm. The norm hardly matters,
        because every token has about the same scale.
        """
        with fast_autocast(self.device):
            pixel_values = normalised(torch.tensor(images, device=self.device))
            outputs = self.tower(pixel_values=pixel_values, output_hidden_states=True)
        return outputs.hidden_states[-1].to(fast_dtype(self.device))

    @classmethod
    def from_llava(cls, model: LlavaForConditionalGeneration) -> "VisionLanguageModel":
        """Take the parts of a LLaVA model, which share its weights."""
        config = model.config.text_config
        assert isinstance(config, LlamaConfig)
        language = LlamaForCausalLM(config)
        language.model = model.model.language_model
        language.lm_head.weight = language.model.embed_tokens.weight
        return cls(model.model.vision_tower, model.model.multi_modal_projector, language)


PictureChoice = Literal["own", "blank", "other"]


@dataclass(frozen=True)
class Exam:
    """The held-out scenes of a measurement and how they are shown."""

    world: World
    scenes: int
    min_objects: int = 1
    max_objects: int = 10**6
    picture: PictureChoice = "own"
    """The picture to show: the scene's own, a blank one or another scene's.

    The last two measure what can be guessed from the question alone. Another scene's picture is
    the better test, because the model refuses blank pictures as unknown."""
    training_phrasings: bool = False
    """Whether to use the phrasings of training; the scenes are held out in either case."""
    first_seed: int = 0

    def make_scenes(self) -> list[Scene]:
        """Make the scenes, skipping those with too few or too many objects."""
        found: list[Scene] = []
        seed = self.first_seed
        while len(found) < self.scenes:
            scene = self.world.make_scene(seed, "test")
            if self.min_objects <= len(scene.items) <= self.max_objects:
                found.append(scene)
            seed += 1
        return found


Scores = dict[str, tuple[float, int]]
"""Skill -> (exact match, number of questions)."""
WRONGLY_REFUSED = "(wrongly refused)"
REFUSALS = {"none", "unknown", "I", "There"}
"""First tokens of answers that say nothing was found or the answer is unknown."""


@torch.no_grad()
def evaluate_world(model: VisionLanguageModel, packer: Packer, exam: Exam) -> Scores:
    """Return the scores of a model, with both answer styles and questions without typing errors.

    `WRONGLY_REFUSED` is the share of refusals among questions whose correct answer is not one.
    """
    hits: dict[str, list[bool]] = defaultdict(list)
    refused: list[bool] = []
    scenes = exam.make_scenes()
    for start in range(0, len(scenes), 20):
        part = scenes[start : start + 20]
        images = np.stack([pixels(exam.world.draw(scene)) for scene in part])
        if exam.picture == "blank":
            images = np.full_like(images, 128)
        elif exam.picture == "other":
            images = np.roll(images, 1, axis=0)
        rows: list[PictureConversations] = []
        skills: list[list[str]] = []
        for k, scene in enumerate(part):
            rng = random.Random(f"exam-{exam.first_seed}-{start + k}")
            qas = scene_questions(
                exam.world, scene, rng, "train" if exam.training_phrasings else "test"
            )
            rows.append(((patch_targets.PATCHES,), [turns_of(qa, rng, plain=True) for qa in qas]))
            skills.append([qa.skill for qa in qas])
        rng = random.Random(f"exam-talk-{start}")
        talk = questions_without_picture(rng, "test")
        rows.append(((), [turns_of(qa, rng, plain=True) for qa in talk]))
        skills.append([qa.skill for qa in talk])
        packed = packer.pack(rows, limit=10**6).to(model.device)
        with fast_autocast(model.device):
            visual = model.projector(model.features(images)).flatten(0, 1)
            hidden, _ = run_packed(model.language, packed, visual)
            best = model.language.lm_head(hidden).argmax(-1)
        for (row, number), hit in answer_hits(best, packed).items():
            hits[skills[row][number - 1]].append(hit)
        for predicted_id, correct_id in first_pieces(best, packed):
            predicted = packer.tokenizer.decode([predicted_id])
            correct = packer.tokenizer.decode([correct_id])
            if correct not in REFUSALS:
                refused.append(predicted in REFUSALS)
    scores = {skill: (sum(h) / len(h), len(h)) for skill, h in sorted(hits.items())}
    return {**scores, WRONGLY_REFUSED: (sum(refused) / max(1, len(refused)), len(refused))}


def main() -> None:
    """Run the command line."""
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
        choices=get_args(PictureChoice),
        default="own",
        help="the picture to show: the scene's own, a blank one or another scene's",
    )
    parser.add_argument("--known", action="store_true", help="use the phrasings of training")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    llava = LlavaForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    packer = Packer(tokenizer)
    exam = Exam(
        World(dict.fromkeys(args.room or ROOMS, 1.0)),
        args.scenes,
        args.least,
        args.most,
        args.shown,
        args.known,
    )
    scores = evaluate_world(VisionLanguageModel.from_llava(llava), packer, exam)
    print(json.dumps(scores) if args.json else format_scores(scores))


if __name__ == "__main__":
    main()
