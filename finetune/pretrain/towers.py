"""The picture encoder and its text tower: configuration, auxiliary heads and losses."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    PreTrainedTokenizerBase,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
)
from transformers.models.siglip.modeling_siglip import SiglipVisionEmbeddings

from finetune.pretrain import patch_targets
from finetune.pretrain.model import two_tower_config
from finetune.pretrain.patch_grid import PatchGrid
from finetune.pretrain.world.rooms.icons.store import icon_concepts
from finetune.pretrain.world.rooms.photos.store import TINY_IMAGENET_CLASSES

CAPTION_TOKENS = 32


@dataclass(frozen=True)
class TowerTrainingConfig:
    """The size of the towers, and how they are trained."""

    pictures: int
    """Training pictures in all; the schedule ends there."""
    side: int = 192
    """Edge of the input, in pixels."""
    patch: int = 16
    """Edge of a patch, in pixels."""
    width: int = 192
    layers: int = 6
    batch: int = 128
    photo_share: float = 0.45
    """Share of photographs in a batch, if there are any."""
    capacity: int = 8000
    """The most drawn pictures in the pool."""
    redraw_share: float = 0.25
    """New drawings per step, as a share of the drawn pictures of a batch."""
    rate: float = 1.0
    """Factor of the learning rates."""
    validation_scenes: int = 100
    """Held-out pictures of each room in a validation; photographs are fifteen times as many."""
    workers: int = 0
    """Processes that draw in the background."""
    photos: Path | None = None
    """Folder of packed photographs, for the workers."""
    icons: Path | None = None
    """Folder of packed icons, for the workers."""
    seed: int = 0
    device: str = "cpu"

    @property
    def prefetches(self) -> bool:
        """Whether a thread prepares the next batch during a step; on a CPU it would slow that."""
        return self.device != "cpu"

    @property
    def grid(self) -> PatchGrid:
        """The encoder's input and its patches."""
        return PatchGrid(self.side, self.side // self.patch)

    @property
    def photos_per_batch(self) -> int:
        """The number of photographs in a batch, if there are any."""
        return round(self.batch * self.photo_share)


def tower_config(vocabulary: int, config: TowerTrainingConfig) -> SiglipConfig:
    """Return the configuration of both towers."""
    vision = SiglipVisionConfig(
        hidden_size=config.width,
        intermediate_size=4 * config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=max(1, config.width // 32),
        image_size=config.side,
        patch_size=config.patch,
        hidden_act="gelu",  # three times as fast on CPUs as its tanh approximation
    )
    return two_tower_config(vision, vocabulary, CAPTION_TOKENS)


class TowerHeads(nn.Module):
    """Auxiliary linear heads of patches and of the pooled picture, discarded after training.

    `name_head` classifies icons and photographs by the pooled picture.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        classes = {k: n for k, n in patch_targets.CLASSES.items() if k != patch_targets.KIND}
        self.columns = tuple(classes)
        self.sizes = [2, 1, *classes.values(), patch_targets.GEOMETRY]
        self.patch_head = nn.Linear(width, sum(self.sizes))
        self.kind_head = nn.Linear(width, patch_targets.KIND_CLASSES)
        self.name_head = nn.Linear(
            width, patch_targets.KIND_CLASSES - patch_targets.FIRST_ICON_CLASS
        )


def embed_patches(
    embeddings: SiglipVisionEmbeddings, pixels: torch.Tensor, kept: torch.Tensor
) -> torch.Tensor:
    """Embed the patches `kept` [n, k] only, as the encoder's own layer embeds them."""
    layer = embeddings.patch_embedding
    count, channels, side, _ = pixels.shape
    edge = layer.kernel_size[0]
    rows = side // edge
    # [n, channels, side, side] -> [n, patches, channels * edge * edge]
    cut = pixels.reshape(count, channels, rows, edge, rows, edge).permute(0, 2, 4, 1, 3, 5)
    patches = cut.reshape(count, rows * rows, -1)
    chosen = patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[-1]))
    embedded = F.linear(chosen, layer.weight.flatten(1), layer.bias)
    return embedded + embeddings.position_embedding(kept)


def encode_pictures(
    model: SiglipModel, pixels: torch.Tensor, kept: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the encoder on all patches, or on those `kept` [n, k] only.

    Returns:
        Features of the patches [n, k, width], and of the pooled pictures [n, width].
    """
    tower = model.vision_model
    if kept is None:
        hidden = tower.embeddings(pixels)
    else:
        hidden = embed_patches(tower.embeddings, pixels, kept)
    hidden = tower.post_layernorm(tower.encoder(inputs_embeds=hidden).last_hidden_state)
    return hidden, tower.head(hidden)


def encode_texts(
    model: SiglipModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> torch.Tensor:
    """Return the text tower's normalised embeddings [texts, width]."""
    tokens = tokenizer(
        texts,
        padding="max_length",
        padding_side="right",
        truncation=True,
        max_length=model.text_model.config.max_position_embeddings,
        return_tensors="pt",
    )
    pooled = model.text_model(input_ids=tokens.input_ids.to(model.device)).pooler_output
    return F.normalize(pooled.float(), dim=-1)


def dense_loss(
    heads: TowerHeads, features: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss of the patch targets, and accuracies.

    Kind and position are trained on every object; colour, size, fill and order only on drawn
    objects, because icons and photographs have no targets for them.

    Args:
        heads: The auxiliary heads.
        features: Features of the patches, [n, k, width].
        rows: The targets of these patches, [n, k, COLUMNS].
    """
    owned, centre, *classes, places = heads.patch_head(features).float().split(heads.sizes, -1)
    judged = rows[..., patch_targets.OWNED] != 2
    on_object = rows[..., patch_targets.OWNED] == 1
    drawn = on_object & (rows[..., patch_targets.KIND] < patch_targets.FIRST_ICON_CLASS)
    loss = F.cross_entropy(owned[judged], rows[..., patch_targets.OWNED][judged])
    truth = rows[..., patch_targets.CENTRE][judged].float()
    weight = torch.tensor(3.0, device=features.device)
    loss = loss + F.binary_cross_entropy_with_logits(
        centre[..., 0][judged], truth, pos_weight=weight
    )
    kinds = heads.kind_head(features[on_object]).float()
    target = rows[..., patch_targets.KIND][on_object]
    loss = loss + F.cross_entropy(kinds, target)
    error = places[on_object] - patch_targets.geometry(rows[on_object])
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


def name_loss(heads: TowerHeads, pooled: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each picture's class among those of its own data set.

    Icons, Tiny ImageNet and CIFAR-10 share things under different labels, so their classes must
    not compete with each other.

    Args:
        heads: The auxiliary heads.
        pooled: Features of the pooled pictures, [n, width].
        labels: Their classes, [n]; -1 for pictures without one.
    """
    labelled = labels >= 0
    if not labelled.any():
        return pooled.sum() * 0
    logits, labels = heads.name_head(pooled[labelled]).float(), labels[labelled]
    icons = len(icon_concepts())
    first_of_cifar = icons + TINY_IMAGENET_CLASSES
    edges = torch.tensor([0, icons, first_of_cifar, logits.shape[1]], device=labels.device)
    data_set = torch.bucketize(labels, edges[1:-1], right=True)
    columns = torch.arange(logits.shape[1], device=labels.device)
    other = (columns < edges[data_set][:, None]) | (columns >= edges[data_set + 1][:, None])
    logits = logits.masked_fill(other, float("-inf"))
    # `F.cross_entropy` would spread its label smoothing over the masked classes, too.
    log_probabilities = logits.log_softmax(-1)
    size = (~other).sum(-1)
    smooth = log_probabilities.masked_fill(other, 0).sum(-1) / size
    exact = log_probabilities.gather(1, labels[:, None])[:, 0]
    return -(0.9 * exact + 0.1 * smooth).mean()


def sigmoid_loss(
    model: SiglipModel, pooled: torch.Tensor, texts: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Return the loss of Zhai et al. (2023), eq. 1; several texts may be true of one picture.

    Args:
        model: The two towers.
        pooled: Features of the pooled pictures, [pictures, width].
        texts: Normalised embeddings of the texts, [texts, width].
        targets: 1 for true, -1 for false and 0 for unknown, [pictures, texts].
    """
    logits = F.normalize(pooled.float(), dim=-1) @ texts.T
    logits = logits * model.logit_scale.exp() + model.logit_bias
    return -(F.logsigmoid(targets * logits) * targets.abs()).sum() / len(pooled)
