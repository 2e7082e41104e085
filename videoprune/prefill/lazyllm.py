"""LazyLLM, first half: tokens that the last row passes over wait at the layer where they stopped, and may come back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from videoprune.checks import check_percentiles, check_points, scale_points
from videoprune.errors import UsageError
from videoprune.layer_method import Kept, PrefillMethod, PrefillState, PrefillView
from videoprune.ops.attention import keep_best
from videoprune.ops.schedule import percentile_counts
from videoprune.run import Run


def confidence(attention: Tensor) -> Tensor:
    """How sure a layer is of each token: the last row's attention (H, S), mean over heads, (S,) float32."""
    return attention.float().mean(dim=0)


@dataclass(frozen=True, kw_only=True)
class LazyLLM(PrefillMethod):
    """Progressive pruning by the last row's attention (arXiv 2407.14057).

    Before each layer of `layers` the visual tokens below a percentile of the ones alive stop. With `decode: lazyllm` they
    wait there and may come back while the answer is written; without, they are gone. Both choose before the same layers,
    which are published as "lazyllm.layers", and the percentiles as "lazyllm.percentiles".

    With `keep` the shares are stretched so that the last point leaves exactly that; `at_most` caps the last point.

    Args:
        layers: points; tokens stop before these layers of `paper_depth`, ascending.
        percentiles: of the scores of the tokens alive, one a point, from 0 to below 100; what lies below stops.
        paper_depth: depth that `layers` are given for.
    """

    paper = "arXiv 2407.14057"
    scope = "video"
    needs_question = True
    fixed_count = True
    attention = "last row"

    layers: Sequence[int] = (10, 19, 29)
    percentiles: Sequence[float] = (30, 30, 30)
    paper_depth: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "layers", check_points(self.layers, self.paper_depth))
        object.__setattr__(self, "percentiles", check_percentiles(self.percentiles, len(self.layers)))
        if self.positions != "original":
            raise UsageError(
                f"positions: {self.positions!r} is given; allowed is 'original': a token that comes back needs its place"
            )

    def start(self, run: Run, layers: int) -> PrefillState:
        """Fresh state; refuses layers that collide in this depth or leave none to look at."""
        scaled = scale_points(self.layers, self.paper_depth, layers)
        run.published["lazyllm.layers"], run.published["lazyllm.percentiles"] = scaled, self.percentiles
        return _State(self, [layer - 1 for layer in scaled])


class _State(PrefillState):
    parks = True

    def __init__(self, method: LazyLLM, points: list[int]) -> None:
        self.method, self.points, self.at = method, points, frozenset(points)
        self.counts: list[int] | None = None

    def after(self, view: PrefillView) -> Kept | None:
        method, alive = self.method, len(view.visual)
        if self.counts is None:
            final = None if method.keep is None else method.count(alive)
            self.counts = percentile_counts(alive, method.percentiles, final, method.at_most)
        count = self.counts[self.points.index(view.layer)]
        if count >= alive:
            return None
        score = confidence(view.attention(view.last_row)[:, 0])[view.visual]
        return Kept(keep_best(score, count), parked=True)
