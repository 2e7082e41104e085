"""Evenly spaced units of every frame: a baseline for the methods that look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from videoprune.errors import UsageError
from videoprune.method import EncodeMethod, TowerPlan, TowerView
from videoprune.ops.matching import nearest_kept


def spaced(valid: Tensor, count: int) -> Tensor:
    """Mark `count` valid units of each frame, all where it has fewer, evenly spaced in raster order: (F, U) bool."""
    place = valid.cumsum(dim=1)
    total = valid.sum(dim=1, keepdim=True).clamp(min=1)
    share = total.clamp(max=count)
    # unit p is kept where round(p * count / total) steps up; the halves centre the pattern
    stairs = (place * share + total // 2) // total
    return valid & (stairs > ((place - 1) * share + total // 2) // total)


@dataclass(frozen=True, kw_only=True)
class Uniform(EncodeMethod):
    """Keeps evenly spaced units after the first layer; a count is a count of units a frame.

    Spacing is along the raster, not in two dimensions: a share that divides the width keeps whole columns.

    Args:
        keep: share or count of a frame's units.
        mode: "merge" (a dropped unit is absorbed by the nearest kept one of its frame, by key cosine) or "drop".
    """

    paper = "a baseline of ours: evenly spaced units"
    scope = "frame"
    needs_question = False
    fixed_count = True
    attention = "none"

    keep: float | int | None = 0.5
    mode: str = "merge"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("merge", "drop"):
            raise UsageError(f"mode: {self.mode!r} is given; allowed are 'merge' and 'drop'")

    def layers(self, depth: int) -> Sequence[int]:
        return (0,)

    def plan(self, view: TowerView) -> TowerPlan | None:
        count = self.count(view.total)
        if view.unit.shape[1] <= count:
            return None
        keep = spaced(view.valid, count)
        return TowerPlan(keep, nearest_kept(view.keys(), keep, count) if self.mode == "merge" else None)
