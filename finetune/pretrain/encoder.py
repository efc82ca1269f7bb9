"""Stage 0a: train the picture encoder on patch targets and captions.

Two losses are added up: that of auxiliary linear heads, which predict `patch_targets` from every
patch, and the sigmoid contrastive loss of pictures and captions (Zhai et al., 2023).
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerFast, SiglipModel

from finetune.pretrain import patch_targets
from finetune.pretrain.model import CAPTION_TOKENS, siglip_config, vision_config
from finetune.pretrain.optim import Training, fast_autocast
from finetune.pretrain.scene_pool import ScenePool, normalised
from finetune.pretrain.world.mixture import World

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


def sigmoid_loss(model: SiglipModel, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """Return the loss of Zhai et al. (2023), eq. 1, of pooled embeddings [n, width]."""
    images, texts = F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)
    logits = images @ texts.T * model.logit_scale.exp() + model.logit_bias
    signs = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -F.logsigmoid(signs * logits).sum() / len(logits)


def encode_captions(
    model: SiglipModel, tokenizer: PreTrainedTokenizerFast, captions: list[str]
) -> torch.Tensor:
    """Return the text tower's embeddings [captions, width]."""
    texts = tokenizer(
        captions,
        padding="max_length",
        padding_side="right",
        truncation=True,
        max_length=CAPTION_TOKENS,
        return_tensors="pt",
    )
    return model.text_model(input_ids=texts.input_ids.to(model.device)).pooler_output


def train_encoder(
    out: Path,
    tokenizer: PreTrainedTokenizerFast,
    world: World,
    minutes: float,
    *,
    seed: int = 0,
    tiny: bool = False,
    batch: int = 64,
    capacity: int = 16000,
    device: str = "cpu",
) -> SiglipModel:
    """Train the two-tower model, or continue from the state in `out/encoder.pt`."""
    torch.manual_seed(seed)
    model = SiglipModel(siglip_config(len(tokenizer), tiny))
    model.to(device)  # type: ignore[arg-type]  # `to` is wrapped, its types are lost
    heads = DenseHeads(vision_config(tiny).hidden_size).to(device)
    nn.init.constant_(model.logit_scale, float(np.log(10)))
    nn.init.constant_(model.logit_bias, -10.0)
    training = Training(out / "encoder.pt", minutes, {"model": model, "heads": heads})
    if training.progress >= 1:
        return model.eval()
    pool = ScenePool(capacity, world, training.kept.get("next_seed", 0))
    rng = np.random.default_rng((seed, training.step))
    pool.refill(min(capacity, 20 * batch))
    while training.progress < 1:
        pool.refill(batch // 3)
        slots = pool.batch(batch, rng)
        images = normalised(torch.from_numpy(pool.images[slots]).to(device))
        rows = torch.from_numpy(pool.targets[slots]).long().to(device)
        contrast = training.step % CONTRAST_EVERY == 0
        with fast_autocast(device):
            encoded = model.vision_model(pixel_values=images)
            outputs = heads(encoded.last_hidden_state)
            if contrast:
                embedded = encode_captions(model, tokenizer, [pool.texts[s] for s in slots])
        loss, figures = dense_loss(outputs, rows)
        if contrast:
            figures["pairs"] = sigmoid_loss(model, encoded.pooler_output, embedded)
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
