"""LVTP: keep units whose attention is spread and units on edges (arXiv 2504.17996); a reconstruction from the abstract."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from videoprune.checks import check_range
from videoprune.errors import UsageError
from videoprune.method import EncodeMethod, TowerPlan, TowerView
from videoprune.ops.matching import nearest_kept
from videoprune.ops.similarity import smallest


def tsallis_entropy(keys: Tensor, order: float, valid: Tensor) -> Tensor:
    """S_q = (1 - sum_j p_j^q) / (q - 1) of each unit, p the softmax of k_i . k_j / sqrt(d) over the frame's units.

    Args:
        keys: (F, U, d). order: q, not 1. valid: (F, U) bool, False for padding, which no unit looks at.

    Returns:
        (F, U) float32; what stands at padding means nothing.
    """
    logits = keys.float() @ keys.float().transpose(1, 2) * keys.shape[2] ** -0.5
    share = logits.masked_fill(~valid[:, None], -torch.inf).softmax(dim=2).nan_to_num()  # a frame may have no unit
    return (1 - share.pow(order).sum(dim=2)) / (order - 1)


def edge_strength(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean Sobel gradient in each cell of a grid: (F, 3, H, W) -> (F, rows*columns) float32, raster order."""
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=pixels.device)
    grey = functional.pad(pixels.float().mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    slope = functional.conv2d(grey, torch.stack((across, across.t()))[:, None])
    return functional.adaptive_avg_pool2d(slope.square().sum(dim=1).sqrt(), grid).flatten(1)


def stretched(score: Tensor, valid: Tensor) -> Tensor:
    """(F, U) scaled to 0..1 among the valid units of each frame; 0 where all are equal."""
    low = score.masked_fill(~valid, torch.inf).amin(dim=1, keepdim=True)
    spread = score.masked_fill(~valid, -torch.inf).amax(dim=1, keepdim=True) - low
    return torch.where(spread > 0, (score - low) / spread, 0)


@dataclass(frozen=True, kw_only=True)
class LVTP(EncodeMethod):
    """Units with the highest edge * edges + (1 - edge) * entropy go on, after a third and after two thirds of the layers.

    The entropy is the mean over `orders` of Tsallis entropies, each scaled to 0..1 in its frame. Of the paper we know
    the ingredients, not the layers, orders, weights or cluster counts: all numbers are ours, its two clusterings are
    left out, and attention is read from the keys alone, since a method does not see a tower's full attention rows.
    Needs a grid of units.

    Args:
        keep: share or count of a frame's units; what must go is split evenly over the layers, the earlier first.
        orders: q of the entropies, each above 0 and not 1.
        edge: weight of the edges, 0 to 1.
        mode: "merge" (a dropped unit is absorbed by the nearest kept one of its frame, by key cosine) or "drop".
    """

    paper = "arXiv 2504.17996"
    scope = "frame"
    needs_question = False
    fixed_count = True
    attention = "none"
    search = (("keep", 0.2, 0.98), ("edge", 0, 1))

    keep: float | int | None = 0.5
    orders: Sequence[float] = (0.5, 2, 3)
    edge: float = 0.5
    mode: str = "merge"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.orders, Sequence) or isinstance(self.orders, str) or not len(self.orders):
            raise UsageError(f"orders: {self.orders!r} is given; allowed is a list of numbers, as in [0.5, 2, 3]")
        for order in self.orders:
            check_range("orders", order, 0, 100, open_low=True)
            if order == 1:
                raise UsageError("orders: 1 is given, where the entropy is not defined; allowed is 0.99 or 1.01, say")
        object.__setattr__(self, "orders", tuple(self.orders))
        check_range("edge", self.edge, 0, 1)
        if self.mode not in ("merge", "drop"):
            raise UsageError(f"mode: {self.mode!r} is given; allowed are 'merge' and 'drop'")

    def layers(self, depth: int) -> Sequence[int]:
        return sorted({max(0, depth // 3 - 1), max(0, 2 * depth // 3 - 1)})

    def alive_after(self, total: int, steps: int) -> list[int]:
        """Units of a frame of `total` that are left after each of the `steps` layers."""
        rest = total - self.count(total)
        drops = [rest // steps + (step < rest % steps) for step in range(steps)]
        return [total - sum(drops[: step + 1]) for step in range(steps)]

    def plan(self, view: TowerView) -> TowerPlan | None:
        left = self.alive_after(view.total, len(self.layers(view.depth)))[view.step]
        if view.unit.shape[1] <= left:
            return None
        side = math.isqrt(view.total)
        grid = view.grid or (side, side)
        if math.prod(grid) != view.total:
            raise UsageError(
                f"a frame of this model has {view.total} units, which is no square; "
                "edges need a grid: choose another encode method"
            )
        keys = view.keys()
        orders = [stretched(tsallis_entropy(keys, order, view.valid), view.valid) for order in self.orders]
        edges = edge_strength(view.pixels(), grid).gather(1, view.unit)
        score = (1 - self.edge) * torch.stack(orders).mean(dim=0) + self.edge * stretched(edges, view.valid)
        room = view.valid.sum(dim=1, keepdim=True).clamp(max=left)
        keep = smallest((-score).masked_fill(~view.valid, torch.inf), room)
        if self.mode == "drop":
            return TowerPlan(keep)
        return TowerPlan(keep, torch.where(view.valid, nearest_kept(keys, keep, left), -1))
