"""BAViT's network: a small vision transformer that says of each patch whether it shows an object."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from videoprune.checks import check_count
from videoprune.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ClassifierShape:
    """Sizes of a token classifier.

    Args:
        depth: layers; the paper's are 2 ("small") and 10 ("large").
        width, heads: of a layer; its MLP is four times as wide.
        patch: side of a patch in pixels.
        grid: (rows, columns) of patches that the position table is for; other grids resample it.
        channels: of the pixels.
    """

    depth: int
    width: int
    heads: int
    patch: int
    grid: tuple[int, int]
    channels: int = 3

    def __post_init__(self) -> None:
        for name in ("depth", "width", "heads", "patch", "channels"):
            check_count(name, getattr(self, name))
        for side in self.grid:
            check_count("grid", side)
        if self.width % self.heads:
            raise UsageError(f"width: {self.width} is given; allowed are multiples of heads, {self.heads}")


class Layer(nn.Module):
    """Pre-norm self-attention among the patches of a frame, and an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor) -> Tensor:
        """(F, N, C) -> (F, N, C)."""
        q, k, v = self.qkv(self.norm1(hidden)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        hidden = hidden + self.out(seen.transpose(1, 2).flatten(2))
        return hidden + self.mlp(self.norm2(hidden))


class TokenClassifier(nn.Module):
    """Patch embedding, positions, layers, and two numbers a patch: background and foreground. There is no [CLS]."""

    def __init__(self, shape: ClassifierShape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Conv2d(shape.channels, shape.width, shape.patch, shape.patch)
        self.position = nn.Parameter(torch.zeros(1, shape.width, *shape.grid))
        self.layers = nn.ModuleList(Layer(shape.width, shape.heads) for _ in range(shape.depth))
        self.norm, self.head = nn.LayerNorm(shape.width), nn.Linear(shape.width, 2)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (F, 3, H, W) -> logits (F, rows, columns, 2); what is no whole patch at an edge is not read."""
        cells = self.embed(pixels)
        rows, columns = cells.shape[2:]
        position: Tensor = self.position
        if (rows, columns) != tuple(position.shape[2:]):
            position = nn.functional.interpolate(position, (rows, columns), mode="bilinear", align_corners=False)
        hidden = (cells + position).flatten(2).transpose(1, 2)
        for layer in self.layers:
            hidden = layer(hidden)
        logits: Tensor = self.head(self.norm(hidden))
        return logits.unflatten(1, (rows, columns))


def token_labels(masks: Tensor, patch: int, share: float = 0.0) -> Tensor:
    """Which patches show an object: those of which a mask covers more than `share`.

    Args:
        masks: (F, H, W) bool; the foreground of each frame, all objects together.
        patch: side of a patch in pixels.

    Returns:
        (F, H // patch, W // patch) bool.
    """
    covered = nn.functional.avg_pool2d(masks.float()[:, None], patch)[:, 0]
    return covered > share


def boxes_to_masks(boxes: list[Tensor], height: int, width: int) -> Tensor:
    """Each frame's boxes (B, 4) left, top, right, bottom in pixels, filled in: (F, H, W) bool."""
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, frame in zip(masks, boxes, strict=True):
        for left, top, right, bottom in frame.round().long().tolist():
            mask[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = True
    return masks


def token_loss(logits: Tensor, labels: Tensor, most: float = 5.0) -> Tensor:
    """Cross-entropy of every token of every frame, foreground weighted by background / foreground in the batch, `most` at most.

    Args:
        logits: (F, rows, columns, 2). labels: (F, rows, columns) bool.
    """
    shown = labels.sum()
    weight = ((labels.numel() - shown) / shown.clamp(min=1)).clamp(max=most)
    weights = torch.stack((torch.ones_like(weight), weight)).to(logits.dtype)
    return nn.functional.cross_entropy(logits.flatten(0, 2), labels.flatten().long(), weights)
