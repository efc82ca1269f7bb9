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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer, SiglipModel, SiglipProcessor

from finetune.pretrain.optim import MuonAdam, fast_autocast, load_state, rate_at, save_state
from finetune.pretrain.padding import make_image_processor
from finetune.pretrain.picture_mix import Pool, Sources
from finetune.pretrain.tokenizer import train_tokenizer
from finetune.pretrain.tower_batches import Batch, mixed_batch, texts_for
from finetune.pretrain.tower_exam import Examined, validate
from finetune.pretrain.towers import (
    Heads,
    Settings,
    dense_loss,
    name_loss,
    read,
    see,
    sigmoid_loss,
    two_tower_config,
)

DROPPED = ((0.75, 0.7), (0.95, 0.5), (1.0, 0.0))
"""Until which share of the pictures, which share of the patches is dropped."""
DECAY_FROM = 0.5
"""From which share of the pictures on the learning rate falls."""
PADDING_LATER = 0.7
"""How much later than those of the picture patches of padding are kept, of 1."""
SAVE_EVERY = 200
"""Seconds."""


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
        self.model = SiglipModel(config)
        self.model.to(settings.device)  # type: ignore[arg-type]
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
        torch.manual_seed(settings.seed + self.step)
        self.pool = Pool(
            sources,
            settings.grid,
            settings.capacity,
            next_seed,
            workers=settings.workers,
            photos=settings.photos,
            icons=settings.icons,
        )
        self.rng = np.random.default_rng((settings.seed, self.step))

    @property
    def examined(self) -> Examined:
        """What `validate` looks at."""
        return Examined(self.model, self.heads, self.tokenizer, self.settings, self.sources)

    @property
    def progress(self) -> float:
        """Share of the pictures that are seen."""
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

    def kept(self, shares: torch.Tensor) -> torch.Tensor | None:
        """Pick random patches to keep [n, k], or None for all; padding says little and goes first.

        shares [n, 2]: see `Batch`.
        """
        grid = self.settings.grid.patches
        dropped = next((share for until, share in DROPPED if self.progress < until), 0.0)
        if not dropped:
            return None
        some = round(grid**2 * (1 - dropped))
        steps = (torch.arange(grid, device=shares.device) + 0.5) / grid - 0.5
        within = steps.abs()[None, None, :] < shares[..., None] / 2 + 0.5 / grid  # [n, 2, grid]
        padding = ~(within[:, 1, :, None] & within[:, 0, None, :]).flatten(1)
        keys = torch.rand(len(shares), grid**2, device=shares.device) + PADDING_LATER * padding
        return keys.argsort(1)[:, :some]

    def next_batch(self) -> tuple[Batch, list[str], torch.Tensor]:
        """Draw new pictures and pick a batch, with texts and which of them are true."""
        self.pool.refill(round(self.drawn_pictures * self.settings.redrawn))
        batch = mixed_batch(self.settings, self.sources, self.pool, self.rng)
        return batch, *texts_for(batch.shown, self.rng)

    @property
    def drawn_pictures(self) -> int:
        """How many pictures of a batch are drawn."""
        share = self.settings.photo_share if self.sources.photos else 0
        return self.settings.batch - round(self.settings.batch * share)

    def learn(self, batch: Batch, texts: list[str], true: torch.Tensor) -> dict[str, torch.Tensor]:
        """Take one step; return its losses and accuracies."""
        kept = self.kept(batch.shares)
        rows = batch.rows
        if kept is not None:
            rows = rows.gather(1, kept[..., None].expand(-1, -1, rows.shape[-1]))
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
        return figures | {"loss": loss, "dense": dense, "named": named, "pairs": pairs}

    def train(self, minutes: float | None, validate_every: int) -> None:
        """Go on until all pictures are seen, or for so many minutes."""
        self.pool.refill(min(self.settings.capacity, 12 * self.drawn_pictures))
        ahead = ThreadPoolExecutor(1) if self.settings.prefetches else None
        coming = ahead.submit(self.next_batch) if ahead else None
        started = saved = time.monotonic()
        validated = self.seen // validate_every
        while self.progress < 1:
            before = time.monotonic()
            if minutes is not None and before - started > 60 * minutes:
                break
            batch = coming.result() if coming else self.next_batch()
            coming = ahead.submit(self.next_batch) if ahead else None
            figures = self.learn(*batch)
            self.seconds += time.monotonic() - before
            if self.step % 50 == 1:
                values = {name: round(value.item(), 4) for name, value in figures.items()}
                self.log(**values)
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
            if self.seen // validate_every > validated:
                validated = self.seen // validate_every
                self.log(validation=validate(self.examined))
        if ahead:
            ahead.shutdown()
        self.save()
        self.log(validation=validate(self.examined))

    def export(self) -> Path:
        """Write both towers in bf16 as a checkpoint that plain transformers loads."""
        folder = self.out / "siglip"
        copy.deepcopy(self.model).bfloat16().save_pretrained(folder)
        processor = make_image_processor(self.settings.side)
        SiglipProcessor(processor, self.tokenizer).save_pretrained(folder)
        return folder


def main() -> None:
    """Run the command line."""
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
    parser.add_argument("--rate", type=float, default=1.0, help="factor of the learning rates")
    parser.add_argument("--capacity", type=int, default=Settings.capacity, help="of the pool")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw ahead")
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
        rate=given.rate,
        capacity=given.capacity,
        workers=given.workers,
        photos=given.photos,
        icons=given.icons,
        seed=given.seed,
        device=given.device,
    )
    sources = Sources.open(given.photos, given.icons, given.side, given.device)
    for line in sources.missing:
        print(line, flush=True)
    run = Run(given.out, settings, sources)
    run.train(given.minutes, given.validate_every)
    run.pool.close()
    print(run.export())


if __name__ == "__main__":
    main()
