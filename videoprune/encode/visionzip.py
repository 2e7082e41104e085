"""VisionZip: the units that [CLS] attends to most, and a few evenly spread ones that absorb the rest (arXiv 2412.04467)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_range
from videoprune.method import EncodeMethod, TowerPlan, TowerView
from videoprune.ops.matching import nearest_kept
from videoprune.ops.similarity import smallest


def dominant_and_contextual(
    attention: Tensor, keys: Tensor, dominant: int, contextual: int, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Which units stay, and which contextual one absorbs each of the others.

    The `dominant` units of a frame with the highest attention stay as they are. Of the R others, in raster order, those
    at the places 0, s, 2s, … with s = floor(R / contextual) are the contextual ones; what is left goes to the one with
    the most similar keys, by cosine.

    Args:
        attention: (F, U) attention of [CLS]. keys: (F, U, d). dominant, contextual: units a frame; not both 0.
        valid: (F, U) bool, False for padding. A frame with at most dominant + contextual units keeps them all.

    Returns:
        keep (F, U) bool, and absorbed_by (F, U) int64, -1 where a unit is dropped (no contextual ones, padding).
    """
    valid = torch.ones_like(attention, dtype=torch.bool) if valid is None else valid
    score = (-attention.float()).masked_fill(~valid, torch.inf)
    best = smallest(score, dominant) & valid
    rest = valid & ~best
    if contextual == 0:
        return best, torch.full(best.shape, -1, device=best.device)
    stride = (rest.sum(dim=1, keepdim=True) // contextual).clamp(min=1)
    place = rest.cumsum(dim=1) - 1
    target = rest & (place % stride == 0) & (place // stride < contextual)
    return best | target, torch.where(valid, nearest_kept(keys, target, contextual), -1)


@dataclass(frozen=True, kw_only=True)
class VisionZip(EncodeMethod):
    """Dominant and contextual units after the last layer that the host runs. A tower without [CLS] (SigLIP) is
    read by the attention that a unit receives from all others on average, as the authors do there.

    The paper gives the language model a contextual unit plus the mean of what it absorbed, a sum that grows; the tower
    here merges to the mean by size. [CLS] itself, which the released code passes on too, is no unit and stays behind.

    Args:
        keep: share or count of a frame's units; None takes the paper's 64 of 576.
        contextual: share of what is kept that is contextual; the paper's 10 of 64 (20 of 128, 30 of 192).
    """

    paper = "arXiv 2412.04467"
    scope = "frame"
    needs_question = False
    fixed_count = True
    attention = "[CLS] row"
    search = (("keep", 0.1, 0.98), ("contextual", 0, 0.5))

    contextual: float = 0.15625

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("contextual", self.contextual, 0, 1)

    def layers(self, depth: int) -> Sequence[int]:
        return (depth - 1,)

    def plan(self, view: TowerView) -> TowerPlan | None:
        count = self.count(view.total)
        if self.keep is None:
            count = min(count, max(1, int(view.total * 64 / 576 + 0.5)))
        if view.unit.shape[1] <= count:
            return None
        contextual = int(count * self.contextual + 0.5)
        keep, absorbed_by = dominant_and_contextual(
            view.cls_attention(), view.keys(), count - contextual, contextual, view.valid
        )
        return TowerPlan(keep, absorbed_by)
