"""The encoder and its text tower: their shapes, throw-away heads and losses."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    PreTrainedTokenizerBase,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)
from transformers.models.siglip.modeling_siglip import SiglipVisionEmbeddings

from finetune.pretrain import patch_targets
from finetune.pretrain.picture_mix import ICONS_FROM, KIND_CLASSES, Grid
from finetune.pretrain.world.rooms.icons.store import icon_concepts
from finetune.pretrain.world.rooms.photos.store import TINY_IMAGENET_CLASSES

CAPTION_TOKENS = 32


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
    exam: int = 100
    """Held-out pictures of each room in a validation; of photographs fifteen times as many."""
    workers: int = 0
    """Processes that draw ahead."""
    photos: Path | None = None
    icons: Path | None = None
    """Packed data, for the workers."""
    seed: int = 0
    device: str = "cpu"

    @property
    def prefetches(self) -> bool:
        """Whether a thread gets the next batch meanwhile: a GPU leaves the CPU time for it."""
        return self.device != "cpu"

    @property
    def grid(self) -> Grid:
        """The encoder's grid of patches."""
        return Grid(self.side, self.side // self.patch)


def two_tower_config(vocabulary: int, settings: Settings) -> SiglipConfig:
    """Configure both towers; the text tower is small and reads captions."""
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


def embed_kept(
    embeddings: SiglipVisionEmbeddings, pixels: torch.Tensor, kept: torch.Tensor
) -> torch.Tensor:
    """Embed only the patches `kept` [n, k]: what the encoder's own layer gives for these."""
    layer = embeddings.patch_embedding
    count, channels, side, _ = pixels.shape
    edge = layer.kernel_size[0]
    rows = side // edge
    cut = pixels.reshape(count, channels, rows, edge, rows, edge).permute(0, 2, 4, 1, 3, 5)
    patches = cut.reshape(count, rows * rows, -1)
    chosen = patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[-1]))
    embedded = F.linear(chosen, layer.weight.flatten(1), layer.bias)
    return embedded + embeddings.position_embedding(kept)


def see(
    model: SiglipModel, pixels: torch.Tensor, kept: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the encoder on all patches or those `kept` [n, k].

    Returns features of patches [n, k, width] and of pictures [n, width].
    """
    tower = model.vision_model
    if kept is None:
        hidden = tower.embeddings(pixels)
    else:
        hidden = embed_kept(tower.embeddings, pixels, kept)
    hidden = tower.post_layernorm(tower.encoder(inputs_embeds=hidden).last_hidden_state)
    return hidden, tower.head(hidden)


def read(model: SiglipModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> torch.Tensor:
    """Return the text tower's normalised embeddings [texts, width]."""
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
    """Compute the loss of what patches should know, and accuracies.

    features [n, k, width], rows [n, k, COLUMNS].

    Kind and place are asked of every object, colour, size, fill and order of drawn ones.
    """
    owned, centre, *classes, places = heads.patch_head(features).float().split(heads.sizes, -1)
    judged = rows[..., patch_targets.OWNED] != 2
    mine = rows[..., patch_targets.OWNED] == 1
    drawn = mine & (rows[..., patch_targets.KIND] < ICONS_FROM)
    loss = F.cross_entropy(owned[judged], rows[..., patch_targets.OWNED][judged])
    truth = rows[..., patch_targets.CENTRE][judged].float()
    weight = torch.tensor(3.0, device=features.device)
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
    """Compute the cross-entropy over the names of the picture's own data; labels [n], -1: none."""
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
    """Compute the loss of Zhai et al. (2023), eq. 1, where several texts may be true of a picture.

    true [pictures, texts]: 1 true, -1 false, 0 not judged.
    """
    logits = F.normalize(pooled.float(), dim=-1) @ texts.T
    logits = logits * model.logit_scale.exp() + model.logit_bias
    return -(F.logsigmoid(true * logits) * true.abs()).sum() / len(pooled)
