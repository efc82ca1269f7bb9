"""Alignment: train projector and language model on the frozen encoder's features.

The features of a picture are computed once and used with several sets of questions. The projector
is first fitted to the symbol embeddings that the language model has been trained on (rows of
`patch_targets` embedded by `SymbolEmbedding`); then both are trained on the answers' loss.
"""

import random
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from finetune.pretrain import patch_targets
from finetune.pretrain.curriculum import (
    DIALOGUE_EVERY,
    CountTargets,
    QuestionBatch,
    ReferentTargets,
    SkillSampler,
    batch_plan_at,
    is_counted,
    make_dialogue_batch,
    make_question_batch,
    pack_dialogue,
    questions_without_picture,
    referent_targets,
    scene_questions,
)
from finetune.pretrain.exam import Exam, VisionLanguageModel, evaluate_world
from finetune.pretrain.language import (
    CountHead,
    ReferentHeads,
    SymbolEmbedding,
    format_scores,
    step_loss,
)
from finetune.pretrain.optim import (
    MuonAdam,
    StageConfig,
    Training,
    broadcast_weights,
    fast_autocast,
    rank,
    rate_at,
)
from finetune.pretrain.photo_confidence import PhotoConfidence
from finetune.pretrain.picture_pool import LEAST_READABLE
from finetune.pretrain.sequences import (
    PackedBatch,
    Packer,
    PictureConversations,
    branches,
    turns_of,
)
from finetune.pretrain.world import QA, Scene
from finetune.pretrain.world.dialogues import make_dialogue
from finetune.pretrain.world.drawing.degradation import degraded
from finetune.pretrain.world.mixture import World
from finetune.pretrain.world.pairs import comparable, compare


@dataclass
class FeaturePool:
    """Up to `capacity` scenes with features and patch targets; the oldest is replaced first.

    With `confidence`, photographs are judged by it, so that answers about them may hedge.
    """

    model: VisionLanguageModel
    capacity: int
    world: World
    next_seed: int = 0
    confidence: PhotoConfidence | None = None
    scenes: list[Scene] = field(default_factory=list)
    drawn: int = 0

    def refill(self, count: int) -> None:
        """Draw `count` new scenes into the pool, degraded as users' pictures are."""
        scenes, pictures = [], []
        for seed in range(self.next_seed, self.next_seed + count):
            scene = self.world.make_scene(seed)
            least = LEAST_READABLE.get(scene.room, 128)
            picture = degraded(self.world.draw(scene), random.Random(f"degrade-{seed}"), least)
            scenes.append(scene)
            pictures.append(self.model.grid.pixels(picture))
        features, pooled = self.model.encode(np.stack(pictures))
        if self.confidence is not None:
            scenes = self.confidence.judge(pooled, scenes)
        rows = torch.from_numpy(np.stack([self.model.grid.targets(scene) for scene in scenes]))
        if not self.scenes:
            self.features = features.new_zeros(self.capacity, *features.shape[1:])
            self.rows = rows.new_zeros(self.capacity, *rows.shape[1:])
        for k, scene in enumerate(scenes):
            slot = (self.drawn + k) % self.capacity
            self.features[slot], self.rows[slot] = features[k], rows[k]
            if slot == len(self.scenes):
                self.scenes.append(scene)
            else:
                self.scenes[slot] = scene
        self.next_seed += count
        self.drawn += count

    def pair(self, rng: np.random.Generator) -> tuple[int, int] | None:
        """Return the slots of two scenes of one room that can be compared, if 30 tries find any."""
        found: dict[str, int] = {}
        for slot in rng.integers(0, len(self.scenes), 30).tolist():
            scene = self.scenes[slot]
            if comparable(scene):
                other = found.setdefault(scene.room, slot)
                if other != slot:
                    return other, slot
        return None


@dataclass(frozen=True)
class AlignmentBatch:
    """A packed batch of questions, with the targets of the auxiliary heads.

    `visual` [visual tokens, width] holds the projected pictures or embedded symbols in order.
    """

    packed: PackedBatch
    visual: torch.Tensor
    referents: ReferentTargets
    counts: CountTargets
    skills: list[list[str]]


def make_conversations(
    world: World,
    shown: list[tuple[Scene, ...]],
    seed: int,
    tokens: int,
    most: int,
    sampler: SkillSampler,
) -> tuple[list[PictureConversations], list[list[QA]]]:
    """Make up to `most` questions about each scene or pair, and a row without a picture.

    A picture has `tokens` tokens.
    """
    rows: list[PictureConversations] = []
    questions: list[list[QA]] = []
    for k, scenes in enumerate(shown):
        rng = random.Random(f"ask-{seed}-{k}")
        if len(scenes) == 2:
            qas = compare(scenes[0], scenes[1], rng)
        else:
            qas = scene_questions(world, scenes[0], rng, "train", 2)
        made = branches(sampler.sample(qas, rng, most), rng)
        conversations = [turns for turns, _ in made]
        rows.append(PictureConversations([tokens] * len(scenes), conversations))
        questions.append([qa for _, qa in made])
    rng = random.Random(f"talk-{seed}")
    talk = [turns_of(qa, rng) for qa in questions_without_picture(rng, "train", 4)]
    rows.append(PictureConversations((), talk))
    return rows, questions


def warm_start_projector(
    model: VisionLanguageModel,
    symbols: SymbolEmbedding,
    pool: FeaturePool,
    steps: int,
    rng: np.random.Generator,
) -> float:
    """Fit the projector to the symbol embeddings, and return the last relative error."""
    optimiser = MuonAdam([model.projector])
    share = 1.0
    for step in range(steps):
        slots = torch.from_numpy(rng.integers(0, len(pool.scenes), 64))
        rows = pool.rows[slots].long().to(model.device)
        with torch.no_grad():
            targets = symbols(rows, grid=True).float()
        with fast_autocast(model.device):
            outputs = model.projector(pool.features[slots]).float()
        judged = rows[..., patch_targets.OWNED] != 2
        loss = F.mse_loss(outputs[judged], targets[judged])
        share = loss.item() / targets[judged].var().item()
        (loss / targets[judged].var()).backward()
        optimiser.step(rate_at(step / steps, step, warmup=20))
    return share


def calibrate(
    model: VisionLanguageModel, world: World, confidence: PhotoConfidence, count: int, seed: int
) -> PhotoConfidence:
    """Choose the threshold of `confidence` on `count` training photographs, cut anew."""
    photos = World({"photos": 1.0}, world.rooms)
    scenes: list[Scene] = []
    pooled = []
    for start in range(seed, seed + count, 50):
        part = [photos.make_scene(k) for k in range(start, min(start + 50, seed + count))]
        pixels = np.stack([model.grid.pixels(photos.draw(scene)) for scene in part])
        pooled.append(model.encode(pixels)[1])
        scenes += part
    return confidence.calibrated(torch.cat(pooled), scenes)


def align(
    stage: StageConfig,
    name: str,
    model: VisionLanguageModel,
    symbols: SymbolEmbedding,
    referent_heads: ReferentHeads,
    count_head: CountHead,
    name_head: nn.Linear,
    *,
    rate: float = 1.0,
    scale: float = 1.0,
    capacity: int = 8000,
    score_every: float = 900,
) -> None:
    """Train projector and language model on answers, in place.

    Every third step uses symbolic pictures: they are free of noise, and skills learned on them
    (relations, counting) transfer. One step in `DIALOGUE_EVERY` consists of dialogues. The state
    is saved in `<name>.pt`; a new run begins with `warm_start_projector`. Processes joined by
    `optim.join_group` train in parallel.

    Args:
        stage: Folder, rooms, steps, seed and device.
        name: The stage's name in the log and of its state.
        model: The encoder, a projector and the language model.
        symbols: The embedding of symbolic pictures.
        referent_heads: Auxiliary heads of the language model.
        count_head: The same.
        name_head: The towers' head that names photographs, which decides where answers hedge.
        rate: Factor of all learning rates.
        scale: Multiplies the batch size and how much is drawn for it and for scores.
        capacity: The most pictures in the pool.
        score_every: Seconds between scores on held-out scenes.
    """
    packer = Packer(stage.tokenizer)
    parts = {
        "projector": model.projector,
        "language": model.language,
        "symbols": symbols,
        "referents": referent_heads,
        "census": count_head,
    }
    training = Training(stage.out / f"{name}.pt", stage.steps, parts, rate)
    if training.progress >= 1:
        return
    confidence = None
    if "photos" in stage.world.rooms:
        confidence = PhotoConfidence(name_head)
        count = max(20, round(1500 * scale))
        confidence = calibrate(model, stage.world, confidence, count, 40_000_000)
        if not rank():
            print(f"{name}: sure of a photograph from {confidence.threshold:.2f}", flush=True)
    first = training.kept.get("next_seed", 50_000_000 * (stage.seed + 1)) + 10_000_000 * rank()
    pool = FeaturePool(model, capacity, stage.world, first, confidence)
    for _ in range(8):
        pool.refill(min(capacity // 8, round(100 * scale)))
    number = training.kept.get("number", 2_000_000_000 * (stage.seed + 1)) + 200_000_000 * rank()
    sampler = SkillSampler(training.kept.get("right", {}))
    rng = np.random.default_rng((stage.seed, training.step, rank()))
    broadcast_weights(parts.values())
    if training.fresh:
        share = warm_start_projector(model, symbols, pool, round(250 * scale), rng)
        broadcast_weights(parts.values())
        print(f"{name} projector: {share:.3f} of the symbols' variance unexplained at the start")
    batch = max(2, round(12 * scale))
    losses: dict[bool, list[float]] = {False: [], True: []}
    while training.progress < 1:
        with_features = training.step % 3 != 0
        dialogues = training.step % DIALOGUE_EVERY == 1
        if with_features:
            pool.refill(max(1, batch // 3))
            make_batch = dialogue_batch if dialogues else picture_batch
            questions = make_batch(pool, packer, batch, rng, sampler)
        else:
            questions, number = symbol_batch(
                stage, symbols, packer, number, training.step, scale, sampler
            )
        with fast_autocast(model.device):
            whole, loss, hits = step_loss(
                model.language, referent_heads, count_head,
                questions.packed, questions.visual, questions.referents, questions.counts,
            )  # fmt: skip
        training.learn(whole, warmup=60)
        sampler.update(hits, questions.skills)
        losses[with_features].append(loss)
        if rank():
            continue
        if training.step % 200 == 0:
            means = {k: np.mean(v[-100:]) for k, v in losses.items()}
            print(
                f"{name} {training.seconds / 60:.1f} min step {training.step} "
                f"loss {means[True]:.3f}, on symbols {means[False]:.3f}",
                flush=True,
            )
        if training.due("score", score_every):
            scores = evaluate_world(model, packer, Exam(stage.world, max(10, round(80 * scale))))
            print(f"{name} score {format_scores(scores)}", flush=True)
        if training.due("save", 120):
            training.save(number=number, next_seed=pool.next_seed, right=sampler.accuracy)


def picture_batch(
    pool: FeaturePool,
    packer: Packer,
    batch: int,
    rng: np.random.Generator,
    sampler: SkillSampler,
) -> AlignmentBatch:
    """Make a batch of new questions about pictures of the pool, with projected features."""
    slots = rng.integers(0, len(pool.scenes), batch).tolist()
    shown: list[tuple[int, ...]] = [(slot,) for slot in slots]
    if rng.random() < 0.25:  # several pairs: a single one would pad every row to its length
        pairs: list[tuple[int, ...]] = [pair for _ in range(batch // 4) if (pair := pool.pair(rng))]
        shown = shown[len(pairs) :] + pairs
    scenes = [tuple(pool.scenes[slot] for slot in slots) for slots in shown]
    seed, tokens = int(rng.integers(1 << 40)), pool.model.grid.tokens
    rows, questions = make_conversations(pool.world, scenes, seed, tokens, 9, sampler)
    counts = {
        row: patch_targets.object_counts(shown[0])
        for row, shown in enumerate(scenes)
        if is_counted(shown)
    }
    return AlignmentBatch(
        packer.pack(rows, limit=180).to(pool.model.device),
        projected(pool, [slot for slots in shown for slot in slots]),
        referent_targets(questions, [shown[0].room for shown in scenes]),
        counts,
        [[qa.skill for qa in qas] for qas in questions],
    )


def dialogue_batch(
    pool: FeaturePool,
    packer: Packer,
    batch: int,
    rng: np.random.Generator,
    sampler: SkillSampler,
) -> AlignmentBatch:
    """Make a batch of dialogues about pictures of the pool; a third of a batch, as they are long.

    `sampler` is not used: which questions are asked is up to `make_dialogue`.
    """
    rows, shown = [], []
    for _ in range(max(1, batch // 3)):
        count = int(rng.integers(1, 4))
        slots = rng.integers(0, len(pool.scenes), count).tolist()
        if count == 2 and (pair := pool.pair(rng)):
            slots = list(pair)
        chooser = random.Random(int(rng.integers(1 << 40)))
        dialogue = make_dialogue(pool.world, [pool.scenes[slot] for slot in slots], chooser)
        row = pack_dialogue(packer, dialogue, [pool.model.grid.tokens] * len(slots), chooser)
        rows.append(row)
        shown += slots[: len(row.pictures) + len(row.later)]
    packed = packer.pack(rows).to(pool.model.device)
    return AlignmentBatch(packed, projected(pool, shown), {}, {}, [["dialogue"]] * len(rows))


def projected(pool: FeaturePool, slots: list[int]) -> torch.Tensor:
    """Return the projected features of pictures, one after another: [visual tokens, width]."""
    with fast_autocast(pool.model.device):
        visual: torch.Tensor = pool.model.projector(pool.features[slots])
    return visual.flatten(0, 1)


def symbol_batch(
    stage: StageConfig,
    symbols: SymbolEmbedding,
    packer: Packer,
    number: int,
    step: int,
    scale: float,
    sampler: SkillSampler,
) -> tuple[AlignmentBatch, int]:
    """Make a batch as at the end of the language stage: objects, or a grid every 15th step."""
    as_grid = step % 15 == 0
    plan = batch_plan_at(1.0, 0 if as_grid else 1, 1.0, scale)
    batch: QuestionBatch
    if step % DIALOGUE_EVERY == 1:
        count = max(1, plan.scenes // 5)
        batch, number = make_dialogue_batch(packer, number, stage.world, stage.grid, plan, count)
    else:
        batch, number = make_question_batch(
            packer, number, stage.world, stage.grid, plan, sampler=sampler
        )
    device = symbols.owned.weight.device
    with fast_autocast(device.type):
        visual = symbols(batch.rows.to(device), as_grid)
    packed = batch.packed.to(str(device))
    made = AlignmentBatch(
        packed, visual.flatten(0, -2), batch.referents, batch.counts, batch.skills
    )
    return made, number
