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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from finetune.pretrain.curriculum import (
    pack_dialogue,
    questions_without_picture,
    scene_questions,
)
from finetune.pretrain.language import format_scores, run_packed
from finetune.pretrain.optim import fast_autocast, fast_dtype
from finetune.pretrain.patch_grid import PatchGrid, normalised
from finetune.pretrain.photo_confidence import photo_label
from finetune.pretrain.sequences import (
    Packer,
    PictureConversations,
    answer_hits,
    answer_starts,
    first_pieces,
    turn_hits,
    turns_of,
)
from finetune.pretrain.world import ROOMS, Room, Scene
from finetune.pretrain.world.dialogues import make_dialogue
from finetune.pretrain.world.mixture import World, open_rooms
from finetune.pretrain.world.rooms.concepts import it_is, it_may_be
from finetune.pretrain.world.rooms.photos.store import TINY_IMAGENET_CLASSES
from finetune.pretrain.world.wording.phrasing import capitalized


@dataclass(frozen=True)
class VisionLanguageModel:
    """The parts of a LLaVA model of the built-in model's architecture."""

    tower: nn.Module
    projector: nn.Module
    language: LlamaForCausalLM
    grid: PatchGrid

    @property
    def device(self) -> str:
        """The type of the device that holds the language model."""
        return self.language.device.type

    @torch.no_grad()
    def encode(self, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode pictures, uint8 [n, side, side, 3].

        Returns:
            The projector's input [n, patches, width], and the pooled pictures [n, width]. As in
            LLaVA, the former is the last layer's output before the final norm. The norm hardly
            matters, because every token has about the same scale.
        """
        with fast_autocast(self.device):
            pixel_values = normalised(torch.tensor(images, device=self.device))
            outputs = self.tower(pixel_values=pixel_values, output_hidden_states=True)
        return outputs.hidden_states[-1].to(fast_dtype(self.device)), outputs.pooler_output

    @classmethod
    def from_llava(
        cls, model: LlavaForConditionalGeneration, image_processor: Any
    ) -> "VisionLanguageModel":
        """Take the parts of a LLaVA model, which share its weights."""
        config = model.config.text_config
        assert isinstance(config, LlamaConfig)
        language = LlamaForCausalLM(config)
        language.model = model.model.language_model
        language.lm_head.weight = language.model.embed_tokens.weight
        grid = PatchGrid.of(model.config.vision_config, image_processor)
        return cls(model.model.vision_tower, model.model.multi_modal_projector, language, grid)


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
        images = np.stack([model.grid.pixels(exam.world.draw(scene)) for scene in part])
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
            turns = [turns_of(qa, rng, plain=True) for qa in qas]
            rows.append(PictureConversations((model.grid.tokens,), turns))
            skills.append([qa.skill for qa in qas])
        rng = random.Random(f"exam-talk-{start}")
        talk = questions_without_picture(rng, "test")
        rows.append(PictureConversations((), [turns_of(qa, rng, plain=True) for qa in talk]))
        skills.append([qa.skill for qa in talk])
        packed = packer.pack(rows, limit=10**6).to(model.device)
        with fast_autocast(model.device):
            visual = model.projector(model.encode(images)[0]).flatten(0, 1)
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


@torch.no_grad()
def evaluate_dialogues(
    model: VisionLanguageModel, packer: Packer, world: World, count: int
) -> Scores:
    """Return the scores of turns of held-out dialogues, each after the right earlier answers."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for number in range(count):
        rng = random.Random(f"exam-dialogue-{number}")
        scenes = [world.make_scene(3 * number + k, "test") for k in range(rng.randint(1, 3))]
        dialogue = make_dialogue(world, scenes, rng, "test")
        row = pack_dialogue(packer, dialogue, [model.grid.tokens] * len(scenes), rng, plain=True)
        shown = scenes[: len(row.pictures) + len(row.later)]
        images = np.stack([model.grid.pixels(world.draw(scene)) for scene in shown])
        packed = packer.pack([row]).to(model.device)
        with fast_autocast(model.device):
            visual = model.projector(model.encode(images)[0]).flatten(0, 1)
            hidden, _ = run_packed(model.language, packed, visual)
            best = model.language.lm_head(hidden).argmax(-1)
        ((_, right),) = turn_hits(best, packed).items()
        pictures = 0
        for position, (turn, hit) in enumerate(zip(dialogue.turns, right, strict=False), 1):
            pictures += turn.new_picture
            hits["turns 1-9" if position < 10 else "turns 10 and later"].append(hit)
            if pictures > 1:
                hits["after a second picture"].append(hit)
    return {f"({name})": (sum(h) / len(h), len(h)) for name, h in sorted(hits.items())}


@torch.no_grad()
def evaluate_photos(model: VisionLanguageModel, packer: Packer, world: World, count: int) -> Scores:
    """Return how often "What is this?" about held-out photographs is answered rightly.

    For each data set: the share of right names, with or without "may"; the share of answers
    without it; and the share of right ones among these.
    """
    photos = World({"photos": 1.0}, world.rooms)
    named: dict[str, list[bool]] = defaultdict(list)
    right_if_sure: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, count, 25):
        scenes = [photos.make_scene(k, "test") for k in range(start, min(start + 25, count))]
        rows = []
        for scene in scenes:
            clauses = (clause(scene.items[0].kind) for clause in (it_is, it_may_be))
            answers = [[("What is this?", f"{capitalized(clause)}.")] for clause in clauses]
            rows.append(PictureConversations((model.grid.tokens,), answers))
        packed = packer.pack(rows).to(model.device)
        images = np.stack([model.grid.pixels(photos.draw(scene)) for scene in scenes])
        with fast_autocast(model.device):
            visual = model.projector(model.encode(images)[0]).flatten(0, 1)
            hidden, _ = run_packed(model.language, packed, visual)
            best = model.language.lm_head(hidden).argmax(-1)
        hits = answer_hits(best, packed)
        starts = answer_starts(packed)
        for row, scene in enumerate(scenes):
            data_set = (
                "CIFAR-10" if photo_label(scene) >= TINY_IMAGENET_CLASSES else "Tiny ImageNet"
            )
            # Both answers begin with the pronoun; then comes "is" ("are") or "may".
            verb = starts[row, 2] + 1
            may = int(best[row, verb]) == int(packed.labels[row, verb + 1])
            named[data_set].append(hits[row, 2 if may else 1])
            if not may:
                right_if_sure[data_set].append(hits[row, 1])
    scores: Scores = {}
    for data_set, hits_of_set in sorted(named.items()):
        total, sure = len(hits_of_set), right_if_sure[data_set]
        scores[f"({data_set}: named)"] = (sum(hits_of_set) / total, total)
        scores[f"({data_set}: without may)"] = (len(sure) / total, total)
        scores[f"({data_set}: right without may)"] = (sum(sure) / max(1, len(sure)), len(sure))
    return scores


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m finetune.pretrain.exam", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of a LLaVA checkpoint")
    parser.add_argument("--room", action="append", help="default: all that the checkpoint knows")
    parser.add_argument("--photos", type=Path, help="photographs packed by `pack_data`")
    parser.add_argument("--icons", type=Path, help="icons packed by `pack_data`")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--dialogues", type=int, default=0, help="dialogues of up to 30 turns")
    parser.add_argument("--least", type=int, default=1, help="fewest objects in a scene")
    parser.add_argument("--most", type=int, default=10**6, help="most objects in a scene")
    parser.add_argument(
        "--shown",
        choices=get_args(PictureChoice),
        default="own",
        help="the picture to show: the scene's own, a blank one or another scene's",
    )
    parser.add_argument("--known", action="store_true", help="use the phrasings of training")
    parser.add_argument("--varied", action="store_true", help="use synonyms and further wordings")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    model, packer = load_model(args.model)
    rooms: Mapping[str, Room] = ROOMS
    if model.grid.padded or args.photos or args.icons:
        rooms, _ = open_rooms(args.photos, args.icons)
    names = args.room or list(rooms)
    if unknown := [name for name in names if name not in rooms]:
        parser.error(f"No such room: {', '.join(unknown)}. There are {', '.join(rooms)}.")
    world = World(dict.fromkeys(names, 1.0), rooms, varied=args.varied)
    exam = Exam(world, args.scenes, args.least, args.most, args.shown, args.known)
    scores = evaluate_world(model, packer, exam)
    if args.dialogues:
        scores |= evaluate_dialogues(model, packer, world, args.dialogues)
    if "photos" in names:
        scores |= evaluate_photos(model, packer, world, args.scenes)
    print(json.dumps(scores) if args.json else format_scores(scores))


def load_model(folder: Path) -> tuple[VisionLanguageModel, Packer]:
    """Load a LLaVA checkpoint of the built-in model's architecture, in float32."""
    llava = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(processor.tokenizer, PreTrainedTokenizerFast)
    model = VisionLanguageModel.from_llava(llava, processor.image_processor)
    return model, Packer(processor.tokenizer)


if __name__ == "__main__":
    main()
