"""Train the picture encoder and its text tower: dense targets, captions, names of things.

    python -m finetune.pretrain.two_towers --out DIR --photos DIR --icons DIR --pictures 2000000

Four losses at once: linear heads on every patch say what is under it (`patch_targets`); a linear
head on the pooled picture names photographs and icons; the sigmoid loss (Zhai et al., 2023) tells
for every picture of the batch which captions and names are true of it. The heads are thrown away.
Part of the patches are dropped in most of training (Li et al., 2023: FLIP), which pays for itself.

The state is saved every few minutes and gone on with; the log is `log.jsonl` beside it. Where the
schedule ends is a number of pictures, so that a slow machine trains as far as a fast one.
"""

import argparse
import copy
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)

from finetune.pretrain import patch_targets
from finetune.pretrain.optim import MuonAdam, fast_autocast, load_state, rate_at, save_state
from finetune.pretrain.picture_mix import (
    ICONS_FROM,
    KIND_CLASSES,
    Drawn,
    Grid,
    Pool,
    Sources,
    photo_targets,
)
from finetune.pretrain.tokenizer import train_tokenizer
from finetune.pretrain.world.rooms.icons.store import icon_concepts
from finetune.pretrain.world.rooms.photos.store import TINY_IMAGENET_CLASSES, photo_classes

CAPTION_TOKENS = 32
DROPPED = ((0.6, 0.7), (0.92, 0.5), (1.0, 0.0))
"""Until which share of the pictures, which share of the patches is dropped."""
DECAY_FROM = 0.5
"""From which share of the pictures on the learning rate falls."""
SAVE_EVERY = 200
"""Seconds."""


@dataclass(frozen=True)
class Settings:
    """What is trained. `photos` and `icons` are shares of a batch, where they are at hand."""

    pictures: int
    """To see in all; the schedule ends there."""
    side: int = 192
    patch: int = 16
    width: int = 192
    layers: int = 6
    batch: int = 128
    photo_share: float = 0.45
    capacity: int = 8000
    redrawn: float = 0.25
    """New drawings a step, as a share of the drawn pictures of a batch."""
    rate: float = 1.0
    seed: int = 0
    device: str = "cpu"

    @property
    def grid(self) -> Grid:
        return Grid(self.side, self.side // self.patch)


def two_tower_config(vocabulary: int, settings: Settings) -> SiglipConfig:
    """A small text tower reads captions beside the encoder."""
    width = settings.width
    vision = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=settings.layers,
        num_attention_heads=max(1, width // 32),
        image_size=settings.side,
        patch_size=settings.patch,
        hidden_act="gelu",  # on CPUs a third of the time of the tanh approximation
    )
    text = SiglipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=max(1, width // 32),
        max_position_embeddings=CAPTION_TOKENS,
        projection_size=width,
        hidden_act="gelu",
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())


class Heads(nn.Module):
    """Throw-away heads: on patches, and on the pooled picture names of photographs and icons."""

    def __init__(self, width: int) -> None:
        super().__init__()
        classes = {k: n for k, n in patch_targets.CLASSES.items() if k != patch_targets.KIND}
        self.columns = tuple(classes)
        self.sizes = [2, 1, *classes.values(), patch_targets.GEOMETRY]
        self.patch_head = nn.Linear(width, sum(self.sizes))
        self.kind_head = nn.Linear(width, KIND_CLASSES)
        self.name_head = nn.Linear(width, KIND_CLASSES - ICONS_FROM)


def see(
    model: SiglipModel, pixels: torch.Tensor, kept: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the encoder on all patches or those `kept` [n, k].

    Returns features of patches [n, k, width] and of pictures [n, width].
    """
    tower = model.vision_model
    hidden = tower.embeddings(pixels)
    if kept is not None:
        hidden = hidden.gather(1, kept[..., None].expand(-1, -1, hidden.shape[-1]))
    hidden = tower.post_layernorm(tower.encoder(inputs_embeds=hidden).last_hidden_state)
    return hidden, tower.head(hidden)


def read(model: SiglipModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """The text tower's normalised embeddings [texts, width]."""
    tokens = tokenizer(
        texts,
        padding="max_length",
        padding_side="right",
        truncation=True,
        max_length=CAPTION_TOKENS,
        return_tensors="pt",
    )
    pooled = model.text_model(input_ids=tokens.input_ids.to(model.device)).pooler_output
    return F.normalize(pooled.float(), dim=-1)


def dense_loss(
    heads: Heads, features: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What patches should know: features [n, k, width], rows [n, k, COLUMNS].

    Kind and place are asked of every object, colour, size, fill and order of drawn ones.
    """
    owned, centre, *classes, places = heads.patch_head(features).float().split(heads.sizes, -1)
    judged = rows[..., patch_targets.OWNED] != 2
    mine = rows[..., patch_targets.OWNED] == 1
    drawn = mine & (rows[..., patch_targets.KIND] < ICONS_FROM)
    loss = F.cross_entropy(owned[judged], rows[..., patch_targets.OWNED][judged])
    truth = rows[..., patch_targets.CENTRE][judged].float()
    weight = torch.tensor(3.0, device=rows.device)
    loss = loss + F.binary_cross_entropy_with_logits(
        centre[..., 0][judged], truth, pos_weight=weight
    )
    kinds, target = heads.kind_head(features[mine]).float(), rows[..., patch_targets.KIND][mine]
    loss = loss + F.cross_entropy(kinds, target)
    error = places[mine] - patch_targets.geometry(rows[mine])
    loss = loss + 4 * error.square().mean()
    figures = {
        "kind": (kinds.argmax(-1) == target).float().mean(),
        "place": error[:, :2].abs().mean() / 2,
    }
    for column, logits in zip(heads.columns, classes, strict=True):
        target = rows[..., column][drawn]
        loss = loss + F.cross_entropy(logits[drawn], target)
        if column == patch_targets.COLOUR:
            figures["colour"] = (logits[drawn].argmax(-1) == target).float().mean()
    return loss, figures


def name_loss(heads: Heads, pooled: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over what the picture's own data set names; labels [n], -1 for no name."""
    named = labels >= 0
    if not named.any():
        return pooled.sum() * 0
    logits, labels = heads.name_head(pooled[named]).float(), labels[named]
    icons = len(icon_concepts())
    cifar = icons + TINY_IMAGENET_CLASSES
    edges = torch.tensor([0, icons, cifar, logits.shape[1]], device=labels.device)
    group = torch.bucketize(labels, edges[1:-1], right=True)
    columns = torch.arange(logits.shape[1], device=labels.device)
    other = (columns < edges[group][:, None]) | (columns >= edges[group + 1][:, None])
    logits = logits.masked_fill(other, float("-inf"))
    # Label smoothing by hand: the masked classes must stay out of it.
    log_shares = logits.log_softmax(-1)
    size = (~other).sum(-1)
    smooth = log_shares.masked_fill(other, 0).sum(-1) / size
    exact = log_shares.gather(1, labels[:, None])[:, 0]
    return -(0.9 * exact + 0.1 * smooth).mean()


def sigmoid_loss(
    model: SiglipModel, pooled: torch.Tensor, texts: torch.Tensor, true: torch.Tensor
) -> torch.Tensor:
    """Zhai et al. (2023), eq. 1, where several texts may be true of a picture.

    true [pictures, texts]: 1 true, -1 false, 0 not judged.
    """
    logits = F.normalize(pooled.float(), dim=-1) @ texts.T
    logits = logits * model.logit_scale.exp() + model.logit_bias
    return -(F.logsigmoid(true * logits) * true.abs()).sum() / len(pooled)


PLAIN = ("{}", "a {}", "A {}.", "the {}", "There is a {}.", "a picture of a {}", "{} picture")
OF_PHOTOS = ("a photo of a {}", "a photograph of a {}", "A photo of a {}.")
OF_ICONS = ("an icon of a {}", "a {} emoji", "a drawing of a {}")


@dataclass(frozen=True)
class Shown:
    """What is known of a picture of a batch."""

    style: str
    words: frozenset[str] | tuple[str, ...]
    caption: str = ""


def texts_for(shown: list[Shown], rng: np.random.Generator) -> tuple[list[str], torch.Tensor]:
    """Texts about some of the pictures, and of which they are true [pictures, texts]."""
    asked: dict[str, tuple[str, str, int]] = {}
    for k, picture in enumerate(shown):
        if picture.words and (picture.style in ("photo", "icon") or rng.random() < 0.3):
            words = sorted(picture.words) if picture.style != "photo" else picture.words
            word = words[min(len(words) - 1, int(rng.exponential(0.7)))]
            if picture.style != "photo":
                word = words[rng.integers(len(words))]
            style = picture.style if rng.random() < 0.4 else ""
            templates = {"photo": OF_PHOTOS, "icon": OF_ICONS}.get(style, PLAIN)
            text = templates[rng.integers(len(templates))].format(word)
            asked[text] = (style if templates is not PLAIN else "", word, -1)
        elif picture.caption and rng.random() < 0.5:
            asked[picture.caption] = ("", "", k)
    true = torch.full((len(shown), len(asked)), -1.0)
    for t, (text, (style, word, owner)) in enumerate(asked.items()):
        for k, picture in enumerate(shown):
            if owner >= 0:
                if picture.caption == text:
                    true[k, t] = 1
            elif word in picture.words and style in ("", picture.style):
                true[k, t] = 1
            elif picture.style == "unknown":
                true[k, t] = 0
    return list(asked), true


@dataclass
class Batch:
    """Pixels [n, 3, side, side], rows [n, patches, COLUMNS], names [n], and what is shown."""

    pixels: torch.Tensor
    rows: torch.Tensor
    labels: torch.Tensor
    shown: list[Shown]


def drawn_batch(drawn: list[Drawn], device: str) -> Batch:
    """Drawn pictures and icons as a batch."""
    pixels = torch.from_numpy(np.stack([d.pixels for d in drawn])).to(device)
    rows = torch.from_numpy(np.stack([d.targets for d in drawn])).long().to(device)
    labels = torch.full((len(drawn),), -1)
    shown = []
    for k, d in enumerate(drawn):
        if d.room == "icons":
            kinds = np.unique(d.targets[d.targets[:, patch_targets.OWNED] == 1, patch_targets.KIND])
            if len(kinds) == 1:
                labels[k] = int(kinds[0]) - ICONS_FROM
        style = {"icons": "icon", "outside": "unknown"}.get(d.room, "drawing")
        shown.append(Shown(style, d.words, d.caption))
    normal = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    return Batch(normal, rows, labels.to(device), shown)


def mixed_batch(
    settings: Settings, sources: Sources, pool: Pool, rng: np.random.Generator
) -> Batch:
    """Drawn pictures, and photographs where they are at hand."""
    photos = round(settings.batch * settings.photo_share) if sources.photos else 0
    batch = drawn_batch(pool.batch(settings.batch - photos, rng), settings.device)
    if not sources.photos:
        return batch
    taken = sources.photos.batch(photos, rng, settings.device)
    shown = [Shown("photo", photo_classes()[label].words) for label in taken.labels.tolist()]
    return Batch(
        torch.cat((batch.pixels, taken.pixels)),
        torch.cat((batch.rows, photo_targets(taken, settings.grid))),
        torch.cat((batch.labels, taken.labels + len(icon_concepts()))),
        batch.shown + shown,
    )


class Run:
    """A training under way, across restarts."""

    def __init__(self, out: Path, settings: Settings, sources: Sources) -> None:
        torch.manual_seed(settings.seed)
        self.out, self.settings, self.sources = out, settings, sources
        out.mkdir(parents=True, exist_ok=True)
        if not (out / "tokenizer").exists():
            train_tokenizer(seed=settings.seed).save_pretrained(out / "tokenizer")
        self.tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
        config = two_tower_config(len(self.tokenizer), settings)
        self.model = SiglipModel(config).to(settings.device)
        nn.init.constant_(self.model.logit_scale, float(np.log(10)))
        nn.init.constant_(self.model.logit_bias, -10.0)
        self.heads = Heads(settings.width).to(settings.device)
        self.optimiser = MuonAdam([self.model, self.heads], settings.rate)
        self.step = self.seen = 0
        self.seconds = 0.0
        next_seed = 0
        if state := load_state(out / "state.pt"):
            self.model.load_state_dict(state["model"])
            self.heads.load_state_dict(state["heads"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.seen, self.seconds = state["step"], state["seen"], state["seconds"]
            next_seed = state["next_seed"]
        self.pool = Pool(sources, settings.grid, settings.capacity, next_seed)
        self.rng = np.random.default_rng((settings.seed, self.step))

    @property
    def progress(self) -> float:
        return self.seen / self.settings.pictures

    def save(self, path: Path | None = None) -> None:
        """Write the state, whole or not at all."""
        save_state(
            path or self.out / "state.pt",
            {
                "model": self.model.state_dict(),
                "heads": self.heads.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "step": self.step,
                "seen": self.seen,
                "seconds": self.seconds,
                "next_seed": self.pool.next_seed,
            },
        )

    def log(self, **figures: Any) -> None:
        """Append a line to log.jsonl."""
        line = {"seen": self.seen, "step": self.step, "minutes": round(self.seconds / 60, 1)}
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(line | figures) + "\n")

    def kept(self, count: int) -> torch.Tensor | None:
        """Random patches to keep [count, k], or None for all."""
        patches = self.settings.grid.patches**2
        dropped = next((share for until, share in DROPPED if self.progress < until), 0.0)
        if not dropped:
            return None
        some = round(patches * (1 - dropped))
        order = torch.rand(count, patches, device=self.settings.device).argsort(1)
        return order[:, :some]

    def learn(self) -> dict[str, float]:
        """One step; returns its losses and accuracies."""
        batch = mixed_batch(self.settings, self.sources, self.pool, self.rng)
        kept = self.kept(len(batch.pixels))
        rows = batch.rows
        if kept is not None:
            rows = rows.gather(1, kept[..., None].expand(-1, -1, rows.shape[-1]))
        texts, true = texts_for(batch.shown, self.rng)
        with fast_autocast(self.settings.device):
            features, pooled = see(self.model, batch.pixels, kept)
            dense, figures = dense_loss(self.heads, features, rows)
            named = name_loss(self.heads, pooled, batch.labels)
            embedded = read(self.model, self.tokenizer, texts)
        pairs = sigmoid_loss(self.model, pooled, embedded, true.to(pooled.device))
        loss = dense + named + 0.5 * pairs
        loss.backward()
        self.optimiser.step(rate_at(self.progress, self.step, decay_from=DECAY_FROM))
        self.step += 1
        self.seen += len(batch.pixels)
        figures |= {"loss": loss, "dense": dense, "named": named, "pairs": pairs}
        return {name: round(float(value.detach()), 4) for name, value in figures.items()}

    def train(self, minutes: float | None, validate_every: int) -> None:
        """Go on until all pictures are seen, or for so many minutes."""
        drawn = round(
            self.settings.batch * (1 - self.settings.photo_share * bool(self.sources.photos))
        )
        self.pool.refill(max(1, min(self.settings.capacity, 12 * drawn)))
        started = saved = time.monotonic()
        validated = self.seen // validate_every
        while self.progress < 1:
            before = time.monotonic()
            if minutes is not None and before - started > 60 * minutes:
                break
            self.pool.refill(round(drawn * self.settings.redrawn))
            figures = self.learn()
            self.seconds += time.monotonic() - before
            if self.step % 50 == 1:
                self.log(**figures)
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
            if self.seen // validate_every > validated:
                validated = self.seen // validate_every
                self.log(validation=validate(self))
        self.save()
        self.log(validation=validate(self))

    def export(self) -> Path:
        """Write both towers in bf16 as a checkpoint that plain transformers loads."""
        folder = self.out / "siglip"
        copy.deepcopy(self.model).bfloat16().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return folder


EXAM_PICTURES = 100
"""Pictures of a room in `validate`."""


@torch.no_grad()
def validate(run: Run, photos: int = 1500) -> dict[str, float]:
    """Figures on what training never sees, with no patch dropped.

    Photographs and held-out icons are named by the text tower (`*_read`) and by the heads; drawn
    rooms' held-out scenes are asked at their objects' centres.
    """
    run.model.eval()
    figures: dict[str, float] = {}
    shapes = _named_shapes(run)
    figures["shape_pairs_read"] = shapes
    for room in run.sources.rooms:
        figures |= _room_figures(run, room)
    if run.sources.photos:
        figures |= _photo_figures(run, photos)
    if "icons" in run.sources.rooms:
        figures |= _icon_figures(run)
    run.model.train()
    return {name: round(value, 4) for name, value in figures.items()}


def _seen(run: Run, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with fast_autocast(run.settings.device):
        return see(run.model, pixels, None)


def _texts(run: Run, texts: Iterable[str]) -> torch.Tensor:
    texts = list(texts)
    with fast_autocast(run.settings.device):
        parts = [
            read(run.model, run.tokenizer, texts[k : k + 256]) for k in range(0, len(texts), 256)
        ]
    return torch.cat(parts)


def _named_shapes(run: Run, count: int = 120) -> float:
    """Share of single shapes of held-out pairs that the text tower names, of all pairs."""
    from finetune.pretrain.world.drawing.paint import COLOURS
    from finetune.pretrain.world.rooms.shapes import wide

    pairs = sorted(wide.HELD_OUT_PAIRS | wide.MORE_HELD_OUT_PAIRS)
    scenes = [wide.single(*pairs[k % len(pairs)], seed=k) for k in range(count)]
    drawn = [wide.WIDE_SHAPES.draw(scene) for scene in scenes]
    from finetune.pretrain.padding import padded_pixels

    pixels = torch.from_numpy(np.stack([padded_pixels(p, run.settings.side) for p in drawn]))
    pixels = pixels.to(run.settings.device).permute(0, 3, 1, 2).float() / 127.5 - 1
    names = [(c, k) for c in COLOURS for k in wide.WIDE_KINDS]
    texts = _texts(run, (wide.phrase("solid", c, k) for c, k in names))
    pooled = F.normalize(_seen(run, pixels)[1].float(), dim=-1)
    best = (pooled @ texts.T).argmax(-1).tolist()
    return sum(names[b] == pairs[k % len(pairs)] for k, b in enumerate(best)) / count


def _room_figures(run: Run, room: str) -> dict[str, float]:
    """Kind, colour and place at objects' centres of a room's held-out scenes."""
    drawn = [run.sources.draw(k, run.settings.grid, "test", room) for k in range(EXAM_PICTURES)]
    right: dict[str, list[torch.Tensor]] = {"kind": [], "colour": [], "place": []}
    for start in range(0, len(drawn), 50):
        batch = drawn_batch(drawn[start : start + 50], run.settings.device)
        features, _ = _seen(run, batch.pixels)
        centres = (batch.rows[..., patch_targets.CENTRE] == 1) & (
            batch.rows[..., patch_targets.OWNED] == 1
        )
        rows, features = batch.rows[centres], features[centres].float()
        _, _, *classes, places = run.heads.patch_head(features).float().split(run.heads.sizes, -1)
        kinds = run.heads.kind_head(features).argmax(-1)
        colours = classes[run.heads.columns.index(patch_targets.COLOUR)].argmax(-1)
        right["kind"].append((kinds == rows[:, patch_targets.KIND]).float())
        right["colour"].append((colours == rows[:, patch_targets.COLOUR]).float())
        error = places[:, :2] - patch_targets.geometry(rows)[:, :2]
        right["place"].append(error.abs().mean(-1) / 2)
    return {f"{room}/{name}": torch.cat(values).mean().item() for name, values in right.items()}


def _photo_figures(run: Run, count: int) -> dict[str, float]:
    """Top-1 over Tiny ImageNet's 200 classes, and over their kinds."""
    assert run.sources.photos is not None
    rows = run.sources.photos.held_out(TINY_IMAGENET_CLASSES)
    rows = np.sort(np.random.default_rng(0).choice(rows, min(count, len(rows)), replace=False))
    classes = photo_classes()[:TINY_IMAGENET_CLASSES]
    texts = _texts(run, (f"a photo of a {c.name}" for c in classes))
    hits: dict[str, list[bool]] = {"photos/read": [], "photos/head": [], "photos/kind": []}
    first = len(icon_concepts())
    for start in range(0, len(rows), 100):
        batch = run.sources.photos.whole(rows[start : start + 100], run.settings.device)
        _, pooled = _seen(run, batch.pixels)
        best = (F.normalize(pooled.float(), dim=-1) @ texts.T).argmax(-1)
        logits = run.heads.name_head(pooled.float())[:, first : first + TINY_IMAGENET_CLASSES]
        for label, by_text, by_head in zip(
            batch.labels.tolist(), best.tolist(), logits.argmax(-1).tolist(), strict=True
        ):
            hits["photos/read"].append(by_text == label)
            hits["photos/head"].append(by_head == label)
            hits["photos/kind"].append(classes[by_head].kind == classes[label].kind)
    return {name: sum(h) / len(h) for name, h in hits.items()}


def _icon_figures(run: Run) -> dict[str, float]:
    """Top-1 over all concepts, of single icons of the held-out set."""
    import random

    from finetune.pretrain.padding import padded_pixels
    from finetune.pretrain.world.rooms.icons.room import Icons

    room = run.sources.rooms["icons"]
    assert isinstance(room, Icons)
    rng = random.Random(0)
    scenes = [room.alone(number, rng, "test") for number in room.store.concepts("test")]
    texts = _texts(run, (f"an icon of a {c.name}" for c in icon_concepts()))
    hits: dict[str, list[bool]] = {"icons/read": [], "icons/head": []}
    for start in range(0, len(scenes), 100):
        part = scenes[start : start + 100]
        pixels = np.stack([padded_pixels(room.draw(scene), run.settings.side) for scene in part])
        tensor = torch.from_numpy(pixels).to(run.settings.device)
        _, pooled = _seen(run, tensor.permute(0, 3, 1, 2).float() / 127.5 - 1)
        best = (F.normalize(pooled.float(), dim=-1) @ texts.T).argmax(-1)
        heads = run.heads.name_head(pooled.float())[:, : len(texts)].argmax(-1)
        for scene, by_text, by_head in zip(part, best.tolist(), heads.tolist(), strict=True):
            hits["icons/read"].append(by_text == int(scene.items[0].kind))
            hits["icons/head"].append(by_head == int(scene.items[0].kind))
    return {name: sum(h) / len(h) for name, h in hits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m finetune.pretrain.two_towers", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="state, log and checkpoint")
    parser.add_argument("--photos", type=Path, help="photographs packed by `pack_data`")
    parser.add_argument("--icons", type=Path, help="icons packed by `pack_data`")
    parser.add_argument("--pictures", type=int, default=2_000_000, help="to see in all")
    parser.add_argument("--minutes", type=float, help="stop earlier; a later start goes on")
    parser.add_argument("--side", type=int, default=Settings.side, help="pixels of an edge")
    parser.add_argument("--patch", type=int, default=Settings.patch)
    parser.add_argument("--width", type=int, default=Settings.width)
    parser.add_argument("--layers", type=int, default=Settings.layers)
    parser.add_argument("--batch", type=int, default=Settings.batch)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--validate-every", type=int, default=25_000, help="pictures")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    settings = Settings(
        pictures=given.pictures,
        side=given.side,
        patch=given.patch,
        width=given.width,
        layers=given.layers,
        batch=given.batch,
        seed=given.seed,
        device=given.device,
    )
    sources = Sources.open(given.photos, given.icons, given.side)
    for line in sources.missing:
        print(line, flush=True)
    run = Run(given.out, settings, sources)
    run.train(given.minutes, given.validate_every)
    print(run.export())


if __name__ == "__main__":
    main()
