"""Stage 0a: train the picture encoder on patch targets and captions.

Two losses are added up: that of auxiliary linear heads, which predict `patch_targets` from every
patch, and the sigmoid contrastive loss of pictures and captions (Zhai et al., 2023).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import SiglipModel

from finetune.pretrain import patch_targets
from finetune.pretrain.model import siglip_config, vision_config
from finetune.pretrain.optim import StageConfig, Training, fast_autocast
from finetune.pretrain.scene_pool import ScenePool, normalised
from finetune.pretrain.towers import encode_texts, sigmoid_loss

CONTRAST_EVERY = 4
"""Every how many batches the caption loss is used; the text tower is slow and helps less."""


class DenseHeads(nn.Module):
    """Auxiliary linear heads of a patch: ownership, centre, classes and geometry."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.columns = tuple(patch_targets.CLASSES)
        self.sizes = [3 - 1, 1, *patch_targets.CLASSES.values(), patch_targets.GEOMETRY]
        self.head = nn.Linear(width, sum(self.sizes))

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map [n, patches, width] to (owned [..., 2], centre [..., 1], *classes, geometry)."""
        return self.head(features).float().split(self.sizes, dim=-1)


def dense_loss(
    outputs: tuple[torch.Tensor, ...], rows: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the heads' loss and accuracies on objects' patches; rows [n, patches, COLUMNS]."""
    owned, centre, *classes, places = outputs
    judged = rows[..., patch_targets.OWNED] != 2
    on_object = rows[..., patch_targets.OWNED] == 1
    loss = F.cross_entropy(owned[judged], rows[..., patch_targets.OWNED][judged])
    truth = rows[..., patch_targets.CENTRE][judged].float()
    loss = loss + F.binary_cross_entropy_with_logits(
        centre[..., 0][judged], truth, pos_weight=torch.tensor(3.0)
    )
    figures = {"centre": ((centre[..., 0][judged] > 0) == (truth > 0)).float().mean()}
    if on_object.any():
        for column, logits in zip(patch_targets.CLASSES, classes, strict=True):
            target = rows[..., column][on_object]
            loss = loss + F.cross_entropy(logits[on_object], target)
            figures[str(column)] = (logits[on_object].argmax(-1) == target).float().mean()
        error = places[on_object] - patch_targets.geometry(rows[on_object])
        loss = loss + 4 * error.square().mean()
        figures["place"] = error[:, :2].abs().mean() / 2
    return loss, figures


def train_encoder(stage: StageConfig, *, batch: int = 64, capacity: int = 16000) -> SiglipModel:
    """Train the two-tower model, or continue from the state in `encoder.pt`.

    Args:
        stage: Folder, rooms, time, seed and device.
        batch: The number of pictures in a batch.
        capacity: The number of pictures in the pool.
    """
    torch.manual_seed(stage.seed)
    model = SiglipModel(siglip_config(len(stage.tokenizer), stage.tiny))
    model.to(stage.device)  # type: ignore[arg-type]  # `to` is wrapped, its types are lost
    heads = DenseHeads(vision_config(stage.tiny).hidden_size).to(stage.device)
    nn.init.constant_(model.logit_scale, float(np.log(10)))
    nn.init.constant_(model.logit_bias, -10.0)
    training = Training(stage.out / "encoder.pt", stage.minutes, {"model": model, "heads": heads})
    if training.progress >= 1:
        return model.eval()
    pool = ScenePool(capacity, stage.world, training.kept.get("next_seed", 0))
    rng = np.random.default_rng((stage.seed, training.step))
    pool.refill(min(capacity, 20 * batch))
    while training.progress < 1:
        pool.refill(batch // 3)
        slots = pool.batch(batch, rng)
        images = normalised(torch.from_numpy(pool.images[slots]).to(stage.device))
        rows = torch.from_numpy(pool.targets[slots]).long().to(stage.device)
        contrast = training.step % CONTRAST_EVERY == 0
        with fast_autocast(stage.device):
            encoded = model.vision_model(pixel_values=images)
            outputs = heads(encoded.last_hidden_state)
            if contrast:
                captions = [pool.texts[slot] for slot in slots]
                embedded = encode_texts(model, stage.tokenizer, captions)
        loss, figures = dense_loss(outputs, rows)
        if contrast:
            # Each caption is taken to be true of its own picture only.
            targets = 2 * torch.eye(batch, device=stage.device) - 1
            figures["pairs"] = sigmoid_loss(model, encoded.pooler_output, embedded, targets)
            loss = loss + 0.2 * figures["pairs"]
        training.learn(loss)
        if training.step % 100 == 1:
            values = " ".join(f"{k} {v.item():.3f}" for k, v in figures.items())
            minute = training.clock.elapsed / 60
            print(
                f"encoder {minute:.1f} min step {training.step} loss {loss.item():.3f} {values}",
                flush=True,
            )
        if training.due("save", 120):
            training.save(next_seed=pool.next_seed)
    return model.eval()
