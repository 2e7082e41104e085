"""PyramidDrop: half of the visual tokens leave at each of three layers, those that the last row attends to least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from videoprune.checks import check_points, check_shares, scale_points
from videoprune.layer_method import Kept, PrefillMethod, PrefillState, PrefillView
from videoprune.ops.attention import keep_best
from videoprune.ops.schedule import counts_towards
from videoprune.run import Run


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(PrefillMethod):
    """Staged cuts by the last row's attention (arXiv 2410.17247).

    With `keep` the shares are stretched so that the last point leaves exactly that; `at_most` caps the last point.
    Survivors keep their positions (the authors renumber them).

    Args:
        layers: points; tokens leave before these layers of `paper_depth`, ascending.
        shares: of the visual tokens that came in, alive after each point, falling.
        paper_depth: depth that `layers` are given for.
    """

    paper = "arXiv 2410.17247"
    scope = "video"
    needs_question = True
    fixed_count = True
    attention = "last row"

    layers: Sequence[int] = (8, 16, 24)
    shares: Sequence[float] = (0.5, 0.25, 0.125)
    paper_depth: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "layers", check_points(self.layers, self.paper_depth))
        object.__setattr__(self, "shares", check_shares(self.shares, len(self.layers)))

    def start(self, run: Run, layers: int) -> PrefillState:
        """Fresh state; refuses layers that collide in this depth or leave none to look at."""
        scaled = scale_points(self.layers, self.paper_depth, layers)
        return _State(self, [layer - 1 for layer in scaled])


class _State(PrefillState):
    def __init__(self, method: PyramidDrop, points: list[int]) -> None:
        self.method, self.points, self.at = method, points, frozenset(points)
        self.counts: list[int] | None = None

    def after(self, view: PrefillView) -> Kept | None:
        method, alive = self.method, len(view.visual)
        if self.counts is None:
            self.counts = counts_towards(
                alive, method.shares, None if method.keep is None else method.count(alive), method.at_most
            )
        count = self.counts[self.points.index(view.layer)]
        if count >= alive:
            return None
        return Kept(keep_best(view.last_row_attention(), count))
