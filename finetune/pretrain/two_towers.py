"""Train the picture encoder and its text tower on drawings, icons and photographs.

    python -m finetune.pretrain.two_towers --out DIR --photos DIR --icons DIR --pictures 2000000

Three losses are added up: auxiliary linear heads predict `patch_targets` from every patch, another
one classifies icons and photographs by the pooled picture, and the sigmoid loss (Zhai et al., 2023)
matches pictures with texts: captions, and phrases that name what is shown. The heads are discarded
in the end. For most of the training a part of the patches is dropped (Li et al., 2023: FLIP), which
makes a step much cheaper.

The state is saved every few minutes; an interrupted run continues from it. Figures are appended to
`log.jsonl` beside it. The schedule depends on the number of pictures and not on time, so that a
slow machine trains as far as a fast one.
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
from finetune.pretrain.picture_pool import PicturePool, PictureSources
from finetune.pretrain.tokenizer import train_tokenizer
from finetune.pretrain.tower_batches import TowerBatch, mixed_batch, sample_texts
from finetune.pretrain.tower_validation import TowerValidator
from finetune.pretrain.towers import (
    TowerHeads,
    TowerTrainingConfig,
    dense_loss,
    encode_pictures,
    encode_texts,
    name_loss,
    sigmoid_loss,
    tower_config,
)

DROP_SCHEDULE = ((0.75, 0.7), (0.95, 0.5), (1.0, 0.0))
"""Pairs (progress, share): until that progress (0 to 1), this share of the patches is dropped."""
DECAY_FROM = 0.5
"""The progress after which the learning rate falls."""
PADDING_HANDICAP = 0.7
"""Added to the random sort keys (0 to 1) of patches of padding, so that these are dropped first."""
SAVE_SECONDS = 200


class TowerTraining:
    """A training run with its state, which is kept across restarts."""

    def __init__(self, out: Path, config: TowerTrainingConfig, sources: PictureSources) -> None:
        """Start a run in the folder `out`, or continue the one that is there."""
        torch.manual_seed(config.seed)
        self.out, self.config, self.sources = out, config, sources
        out.mkdir(parents=True, exist_ok=True)
        if not (out / "tokenizer").exists():
            train_tokenizer(seed=config.seed).save_pretrained(out / "tokenizer")
        self.tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
        self.model = SiglipModel(tower_config(len(self.tokenizer), config))
        self.model.to(config.device)  # type: ignore[arg-type]  # `to` is wrapped, its types are lost
        nn.init.constant_(self.model.logit_scale, float(np.log(10)))
        nn.init.constant_(self.model.logit_bias, -10.0)
        self.heads = TowerHeads(config.width).to(config.device)
        self.optimiser = MuonAdam([self.model, self.heads], config.rate)
        self.step = self.pictures_seen = 0
        self.seconds = 0.0
        next_seed = 0
        if state := load_state(out / "state.pt"):
            self.model.load_state_dict(state["model"])
            self.heads.load_state_dict(state["heads"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.pictures_seen = state["step"], state["seen"]
            self.seconds, next_seed = state["seconds"], state["next_seed"]
        torch.manual_seed(config.seed + self.step)
        self.pool = PicturePool(
            sources,
            config.grid,
            config.capacity,
            next_seed,
            workers=config.workers,
            photos=config.photos,
            icons=config.icons,
        )
        self.rng = np.random.default_rng((config.seed, self.step))

    @property
    def progress(self) -> float:
        """The share of the training pictures that have been used, 0 to 1."""
        return self.pictures_seen / self.config.pictures

    @property
    def drawings_per_batch(self) -> int:
        """The number of pictures in a batch that are not photographs."""
        return self.config.batch - (self.config.photos_per_batch if self.sources.photos else 0)

    def save(self, path: Path | None = None) -> None:
        """Write the state completely or not at all."""
        save_state(
            path or self.out / "state.pt",
            {
                "model": self.model.state_dict(),
                "heads": self.heads.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "step": self.step,
                "seen": self.pictures_seen,
                "seconds": self.seconds,
                "next_seed": self.pool.next_seed,
            },
        )

    def log(self, **figures: Any) -> None:
        """Append a line to log.jsonl."""
        line = {
            "seen": self.pictures_seen,
            "step": self.step,
            "minutes": round(self.seconds / 60, 1),
        }
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | figures) + "\n")

    def validate(self) -> dict[str, float]:
        """Return figures on held-out pictures; see `TowerValidator`."""
        validator = TowerValidator(
            self.model, self.heads, self.tokenizer, self.config, self.sources
        )
        return validator.validate()

    def sample_patches(self, shares: torch.Tensor) -> torch.Tensor | None:
        """Return random patches to keep [n, k], those of padding last, or None to keep all.

        Args:
            shares: The shares of the square's width and height that each picture fills, [n, 2].
        """
        grid = self.config.grid.patches
        dropped = next((share for until, share in DROP_SCHEDULE if self.progress < until), 0.0)
        if not dropped:
            return None
        count = round(grid**2 * (1 - dropped))
        offsets = (torch.arange(grid, device=shares.device) + 0.5) / grid - 0.5
        within = offsets.abs()[None, None, :] < shares[..., None] / 2 + 0.5 / grid  # [n, 2, grid]
        padding = ~(within[:, 1, :, None] & within[:, 0, None, :]).flatten(1)
        keys = torch.rand(len(shares), grid**2, device=shares.device) + PADDING_HANDICAP * padding
        return keys.argsort(1)[:, :count]

    def next_batch(self) -> tuple[TowerBatch, list[str], torch.Tensor]:
        """Draw new pictures, and return a batch with texts and their targets."""
        self.pool.refill(round(self.drawings_per_batch * self.config.redraw_share))
        batch = mixed_batch(self.config, self.sources, self.pool, self.rng)
        return batch, *sample_texts(batch.descriptions, self.rng)

    def train_step(
        self, batch: TowerBatch, texts: list[str], text_targets: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Take one optimiser step, and return its losses and accuracies."""
        kept = self.sample_patches(batch.shares)
        rows = batch.rows
        if kept is not None:
            rows = rows.gather(1, kept[..., None].expand(-1, -1, rows.shape[-1]))
        with fast_autocast(self.config.device):
            features, pooled = encode_pictures(self.model, batch.pixels, kept)
            dense, figures = dense_loss(self.heads, features, rows)
            named = name_loss(self.heads, pooled, batch.labels)
            embedded = encode_texts(self.model, self.tokenizer, texts)
        pairs = sigmoid_loss(self.model, pooled, embedded, text_targets.to(pooled.device))
        loss = dense + named + 0.5 * pairs
        loss.backward()
        self.optimiser.step(rate_at(self.progress, self.step, decay_from=DECAY_FROM))
        self.step += 1
        self.pictures_seen += len(batch.pixels)
        return figures | {"loss": loss, "dense": dense, "named": named, "pairs": pairs}

    def train(self, minutes: float | None, validate_every: int) -> None:
        """Train until all pictures have been used, or for `minutes` of this run."""
        self.pool.refill(min(self.config.capacity, 12 * self.drawings_per_batch))
        executor = ThreadPoolExecutor(1) if self.config.prefetches else None
        prefetched = executor.submit(self.next_batch) if executor else None
        started = saved = time.monotonic()
        validations = self.pictures_seen // validate_every
        while self.progress < 1:
            before = time.monotonic()
            if minutes is not None and before - started > 60 * minutes:
                break
            batch = prefetched.result() if prefetched else self.next_batch()
            prefetched = executor.submit(self.next_batch) if executor else None
            figures = self.train_step(*batch)
            self.seconds += time.monotonic() - before
            if self.step % 50 == 1:
                values = {name: round(value.item(), 4) for name, value in figures.items()}
                self.log(**values)
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
            if self.pictures_seen // validate_every > validations:
                validations = self.pictures_seen // validate_every
                self.log(validation=self.validate())
        if executor:
            executor.shutdown()
        self.save()
        self.log(validation=self.validate())

    def export(self) -> Path:
        """Write both towers in bf16 as a checkpoint that plain transformers loads."""
        folder = self.out / "siglip"
        copy.deepcopy(self.model).bfloat16().save_pretrained(folder)
        tokenizer = copy.deepcopy(self.tokenizer)  # that of the language model, which reads more
        tokenizer.model_max_length = self.model.text_model.config.max_position_embeddings
        tokenizer.padding_side = "right"
        processor = make_image_processor(self.config.side)
        SiglipProcessor(processor, tokenizer).save_pretrained(folder)
        return folder


def main() -> None:
    """Run the command line."""
    default = TowerTrainingConfig
    parser = argparse.ArgumentParser(
        prog="python -m finetune.pretrain.two_towers", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for state, log and checkpoint; an interrupted run continues there",
    )
    parser.add_argument("--photos", type=Path, help="photographs packed by `pack_data`")
    parser.add_argument("--icons", type=Path, help="icons packed by `pack_data`")
    parser.add_argument("--pictures", type=int, default=2_000_000, help="training pictures in all")
    parser.add_argument("--minutes", type=float, help="stop after this time, to continue later")
    parser.add_argument("--side", type=int, default=default.side, help="edge of the input, pixels")
    parser.add_argument("--patch", type=int, default=default.patch, help="edge of a patch, pixels")
    parser.add_argument("--width", type=int, default=default.width)
    parser.add_argument("--layers", type=int, default=default.layers)
    parser.add_argument("--batch", type=int, default=default.batch)
    parser.add_argument("--rate", type=float, default=1.0, help="factor of the learning rates")
    parser.add_argument(
        "--capacity", type=int, default=default.capacity, help="drawn pictures in the pool"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that draw pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument(
        "--validate-every", type=int, default=25_000, help="training pictures between validations"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    config = TowerTrainingConfig(
        pictures=args.pictures,
        side=args.side,
        patch=args.patch,
        width=args.width,
        layers=args.layers,
        batch=args.batch,
        rate=args.rate,
        capacity=args.capacity,
        workers=args.workers,
        photos=args.photos,
        icons=args.icons,
        seed=args.seed,
        device=args.device,
    )
    sources = PictureSources.open(args.photos, args.icons, args.side, args.device)
    for line in sources.missing:
        print(line, flush=True)
    training = TowerTraining(args.out, config, sources)
    training.train(args.minutes, args.validate_every)
    training.pool.close()
    print(training.export())


if __name__ == "__main__":
    main()
