"""BAViT: a small vision transformer labels patches foreground or background; background is dropped before the tower
(arXiv 2410.09324).

We have read its abstract and secondary sources, not its text: the labels' rule, the threshold, widths and the loss's
weights are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from videoprune.checks import check_range
from videoprune.encode._classifier import ClassifierShape, TokenClassifier
from videoprune.errors import UsageError
from videoprune.method import BEFORE, EncodeMethod, TowerPlan, TowerView
from videoprune.ops.similarity import smallest
from videoprune.trained import HostFacts, Schedule, Trained

THRESHOLD = 0.5
ANY_GRID = (16, 16)  # of the position table where pictures have no size of their own


def unit_background(background: Tensor, unit_of_patch: Tensor | None, units: int) -> Tensor:
    """Background of a unit: the least of its patches', so that a unit with any foreground is foreground.

    Args:
        background: (F, P) probability of each patch, raster order.
        unit_of_patch: (P,) int64 its unit; None where every patch is one.
        units: of a frame.

    Returns:
        (F, units).
    """
    if unit_of_patch is None:
        unit_of_patch = torch.arange(units, device=background.device)
    if len(unit_of_patch) != background.shape[1]:
        raise UsageError(
            f"the classifier sees {background.shape[1]} patches a frame where the tower has {len(unit_of_patch)}: "
            "its weights were trained for patches of another size"
        )
    least = background.new_ones(len(background), units)
    return least.scatter_reduce_(1, unit_of_patch.expand(len(background), -1), background, "amin")


def foreground(
    background: Tensor, valid: Tensor, count: int, threshold: float | None = None, multiple: int = 1
) -> Tensor:
    """The units that stay: the `count` with the least background, or of these the ones that are not above `threshold`.

    Every frame with units keeps the one with the least background, whatever the threshold says of it. Ties go to the lower
    index.

    Args:
        background: (F, U) probability. valid: (F, U) bool, False for padding.
        count: most units of a frame. threshold: None keeps `count` of every frame, or all where it has fewer.
        multiple: what the threshold leaves is rounded up to this, so that more frames have equally many.

    Returns:
        (F, U) bool.
    """
    score = background.masked_fill(~valid, torch.inf)
    room = valid.sum(dim=1, keepdim=True).clamp(max=count)
    if threshold is not None:
        stays = (score <= threshold).sum(dim=1, keepdim=True).clamp(min=1)
        room = torch.minimum(room, (stays + multiple - 1) // multiple * multiple)
    return smallest(score, room) & valid


@dataclass(frozen=True, kw_only=True)
class BAViT(Trained, EncodeMethod):
    """Units that a token classifier calls background leave before the first layer of the tower.

    Without `keep` the paper's rule: what is background with more than `threshold` goes, so that counts differ by frame;
    `at_most` caps them. With `keep` every frame keeps equally many, those with the least background. What leaves is dropped,
    not merged; survivors keep their places.

    Args:
        keep: share or count of a frame's units; None leaves the threshold to decide.
        threshold: highest background probability of a unit that stays; None takes 0.5 where `keep` is absent.
        depth: layers of the classifier; the paper's are 2 and 10, and for both weights ship for the demo model.
        width, heads: of its layers.
    """

    paper = "arXiv 2410.09324"
    scope = "frame"
    needs_question = False
    fixed_count = False
    attention = "none"
    lesson = "videoprune.training.foreground:Foreground"
    schedule = Schedule(steps=1200, batch=32, learning_rate=3e-3, weight_decay=0.01, films=150)
    host_bound = False
    facts = ("patch", "side", "mean", "std")

    threshold: float | None = None
    depth: int = 2
    width: int = 32
    heads: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None:
            check_range("threshold", self.threshold, 0, 1)
            if self.keep is not None:
                raise UsageError(
                    f"threshold and keep: {self.threshold} and {self.keep} are given; allowed is one of them: "
                    "remove the other"
                )
        ClassifierShape(**self.structure(), patch=1, grid=(1, 1))  # refuses bad sizes

    @property
    def weights_name(self) -> str:
        return f"bavit-{self.depth}"

    def structure(self) -> dict[str, Any]:
        return {"depth": self.depth, "width": self.width, "heads": self.heads}

    def build(self, host: HostFacts) -> nn.Module:
        side = host.side // host.patch
        grid = (side, side) if side else ANY_GRID
        return TokenClassifier(ClassifierShape(**self.structure(), patch=host.patch, grid=grid, channels=host.channels))

    def layers(self, depth: int) -> Sequence[int]:
        return (BEFORE,)

    def background(self, pixels: Tensor) -> Tensor:
        """Probability that a patch shows background: normalised pixels (F, 3, H, W) -> (F, rows, columns)."""
        probability: Tensor = self.part(pixels.float()).softmax(dim=-1)[..., 0]
        return probability

    @property
    def _limit(self) -> float | None:
        return None if self.keep is not None else THRESHOLD if self.threshold is None else self.threshold

    def plan(self, view: TowerView) -> TowerPlan | None:
        count = self.count(view.total)
        if self.keep is not None and view.unit.shape[1] <= count:
            return None
        background = self.background(view.pixels()).flatten(1)
        score = unit_background(background, view.unit_of_patch, view.total).gather(1, view.unit)
        return TowerPlan(foreground(score, view.valid, count, self._limit))

    @torch.no_grad()
    def cells(self, pixels: Tensor, grid: tuple[int, int], multiple: int = 1) -> Tensor:
        """The same choice for a model that is no host: which cells of a `grid` over the pictures go on.

        Args:
            pixels: (F, 3, H, W) normalised as the weights were trained.
            grid: (rows, columns) of the model's tokens; one is as much background as the least of the patches under it.
            multiple: see `foreground`.

        Returns:
            (F, rows * columns) bool, raster order.
        """
        score = -nn.functional.adaptive_max_pool2d(-self.background(pixels)[:, None], grid).flatten(1)
        valid = torch.ones_like(score, dtype=torch.bool)
        return foreground(score, valid, self.count(score.shape[1]), self._limit, multiple)
