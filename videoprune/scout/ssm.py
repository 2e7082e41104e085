"""A scout that sees every frame with a small tower of selective scans, and shows the costly tower what is new.

Ours; the tower is PlainMamba's (arXiv 2403.17695), pruned by `encode.ssm` (arXiv 2409.18962).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from videoprune.checks import check_count, check_range
from videoprune.errors import UsageError
from videoprune.method import EncodeMethod, ScoutMethod
from videoprune.models.plain_mamba import MambaShape, PlainMamba
from videoprune.models.plain_mamba_weights import load_official
from videoprune.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from videoprune.ops.similarity import unit
from videoprune.trained import HostFacts, Schedule, Trained

CONCEPTS = 64  # most words that a frame is told apart by in training
OFFICIAL = (".pth", ".pt")  # endings of the authors' checkpoints


def novel(features: Tensor, known: Tensor, allowed: int, least: float) -> Tensor:
    """Greedy choice of what is new: again and again the frame farthest from all that are known or chosen.

    Distance is 1 - cosine. Where nothing is known, the frame most like the others comes first.

    Args:
        features: (N, D). known: (M, D) of frames that were shown before.
        allowed: most to choose. least: the choice ends where no distance passes it.

    Returns:
        (K,) int64 ascending.
    """
    scaled, before = unit(features), unit(known)
    picked: list[int] = []
    allowed = min(allowed, len(scaled))
    if len(before):
        away = 1 - (scaled @ before.T).amax(dim=1)
    elif allowed:
        picked.append(int((scaled @ scaled.mean(dim=0)).argmax()))
        away = 1 - scaled @ scaled[picked[0]]
    for row in picked:
        away[row] = -torch.inf
    while len(picked) < allowed:
        row = int(away.argmax())
        if float(away[row]) <= least and (picked or len(before)) and least > 0:
            break
        picked.append(row)
        away = torch.minimum(away, 1 - scaled @ scaled[row])
        away[picked] = -torch.inf
    return torch.tensor(sorted(picked), dtype=torch.int64)


class Eye(nn.Module):
    """The scout's tower, and what it was taught with: words told from the mean of a frame's tokens.

    Attributes:
        centre: (D,) mean feature of the pictures of its training; what all frames share says nothing.
    """

    def __init__(self, shape: MambaShape) -> None:
        super().__init__()
        self.backbone = PlainMamba(shape)
        self.words = nn.Linear(shape.width, CONCEPTS)
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(shape.width))

    def forward(self, pixels: Tensor, prune: Sequence[EncodeMethod] = (), first: int = 0) -> tuple[Tensor, float]:
        """(F, 3, S, S) normalised -> mean tokens (F, D), and FLOPs."""
        out = self.backbone(pixels, prune, first)
        return out.tokens.mean(dim=1), out.cost.total


@dataclass(frozen=True, kw_only=True)
class SSM(Trained, ScoutMethod):
    """Shows the tower the frames of each window that are most unlike what it was shown of this window and the last one.

    What a still stretch leaves of its share, a busy one later may use. The features of all frames, shown or not, are what the
    segment stage cuts the film by.

    Args:
        novelty: least distance, 0 to 2, from what was shown; 0 spends the whole share. Above it, still films cost less.
        width, blocks, image, patch, state, kernel: sizes of the tower, see `MambaShape`. An official checkpoint has its own.
        weights: a file of `videoprune train ssm`, an official PlainMamba checkpoint (.pth), or None for the shipped one.
    """

    paper = "ours; the tower is arXiv 2403.17695, its pruning arXiv 2409.18962"
    scope = "video"
    needs_question = False
    fixed_count = False
    attention = "none"
    has_scan = True
    lesson = "videoprune.training.concepts:Concepts"
    schedule = Schedule(steps=3000, batch=32, learning_rate=3e-3, weight_decay=0.02, films=200)
    host_bound = False
    search = (("keep", 0.05, 0.98), ("novelty", 0.0, 1.0))

    novelty: float = 0.0
    width: int = 48
    blocks: int = 4
    image: int = 56
    patch: int = 14
    state: int = 4
    kernel: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("novelty", self.novelty, 0, 2)
        for name in ("width", "blocks", "image", "patch", "state", "kernel"):
            check_count(name, getattr(self, name))
        if self.image % self.patch:
            raise UsageError(f"image: {self.image} is given; allowed are multiples of patch, {self.patch}")
        if not self.kernel % 2:
            raise UsageError(f"kernel: {self.kernel} is given; allowed are odd numbers")

    @property
    def identity(self) -> bool:
        return self.keep == 1 and not self.novelty

    @property
    def shape(self) -> MambaShape:
        """Of the tower that a recipe's sizes make."""
        return MambaShape(self.width, self.blocks, self.image, self.patch, self.state, kernel=self.kernel)

    def structure(self) -> dict[str, Any]:
        names = ("width", "blocks", "image", "patch", "state", "kernel")
        return {name: getattr(self, name) for name in names}

    def build(self, host: HostFacts) -> nn.Module:
        return Eye(self.shape)

    def bind(
        self, host: HostFacts, part: nn.Module | None = None, device: torch.device | None = None
    ) -> dict[str, Any]:
        if part is None and self.weights is not None and os.path.splitext(self.weights)[1] in OFFICIAL:
            tower = load_official(Path(self.weights).expanduser())
            tower.head, part = None, Eye(self.shape)
            part.backbone, part.centre = tower, torch.zeros(tower.shape.width)
        return super().bind(host, part, device)

    @property
    def eye(self) -> Eye:
        """The tower that is bound."""
        part = self.part
        if not isinstance(part, Eye):
            raise TypeError(f"the scout's part is a {type(part).__name__}")
        return part

    def check(self, prune: Sequence[EncodeMethod]) -> None:
        """Refuse what cannot prune the tower that is bound.

        Raises:
            UsageError
        """
        for method in prune:
            method.layers(self.eye.backbone.shape.blocks)

    @staticmethod
    def pixels_of(part: nn.Module, images: Any) -> Tensor:
        """(F, H, W, 3) uint8 -> (F, 3, S, S) for a tower: whole frames squeezed to its square."""
        eye: Any = part
        size = eye.backbone.shape.image
        scaled = Preprocess(size, IMAGENET_MEAN, IMAGENET_STD, "squeeze", int(Image.Resampling.BOX))
        return scaled(images).to(eye.centre.device)

    @torch.no_grad()
    def see(self, images: Any, prune: Sequence[EncodeMethod], first: int) -> tuple[Tensor | None, float]:
        eye = self.eye
        features, flops = eye(self.pixels_of(eye, images), prune, first)
        return (features - eye.centre).cpu(), flops

    def cost(self, frames: int, prune: Sequence[EncodeMethod]) -> float:
        side = self.eye.backbone.shape.image
        return frames * self.see(np.zeros((1, side, side, 3), np.uint8), prune, 0)[1]

    def pick(self, features: Tensor | None, count: int, allowed: int, first: int, carried: Any) -> tuple[Tensor, Any]:
        if features is None:
            raise ValueError("this scout looks: it needs features")
        known = features[:0] if carried is None else carried
        picked = novel(features, known, allowed, self.novelty)
        # a window that shows nothing new leaves the memory as it is
        return picked, features[picked] if len(picked) else known
