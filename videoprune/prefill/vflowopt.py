"""VFlowOpt, stages 2 and 3: visual tokens leave inside the language model by the importance that stage 1 gave them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from videoprune.checks import check_points, scale_points
from videoprune.errors import UsageError
from videoprune.layer_method import Kept, PrefillMethod, PrefillState, PrefillView
from videoprune.ops.attention import keep_best
from videoprune.run import Run


def counts_by_ratio(total: int, ratios: Sequence[float], final: int | None) -> list[int]:
    """Tokens alive after each point, of `total` that come in.

    Each point drops round(n·(1 - ratio)) of the n alive. With `final` the line of these counts is stretched to end there.
    """
    counts, alive = [], total
    for ratio in ratios:
        alive = max(min(1, total), alive - int(alive * (1 - ratio) + 0.5))
        counts.append(alive)
    if final is None:
        return counts
    done, share = [], 1.0
    for ratio in ratios:
        share *= ratio
        done.append(1 - share)
    return [total - int((total - final) * part / done[-1] + 0.5) for part in done]


@dataclass(frozen=True, kw_only=True)
class VFlowOpt(PrefillMethod):
    """Progressive pruning by one importance (arXiv 2508.05211), after a third and two thirds of the layers.

    The importance is made before the language model (encode or merge) and read from the ledger. With `keep` the last
    point leaves exactly that, and the points before lie on the line of `ratios`; `at_most` caps the last point.

    Args:
        layers: points; tokens leave before these layers of `paper_depth`, ascending.
        ratios: share of the tokens alive that stays at each point; the default is the authors' 25 % setting.
        score: name of the importance in the ledger, higher stays.
        paper_depth: depth that `layers` are given for.
    """

    paper = "arXiv 2508.05211"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "none"
    search = (("keep", 0.02, 0.98), ("ratios", 0.1, 1))
    reads_text = False

    layers: Sequence[int] = (9, 18)
    ratios: Sequence[float] = (0.9833, 0.8773)
    score: str = "importance"
    paper_depth: int = 28

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "layers", check_points(self.layers, self.paper_depth))
        object.__setattr__(self, "ratios", tuple(self.ratios))
        if len(self.ratios) != len(self.layers) or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise UsageError(f"ratios: {list(self.ratios)} is given; allowed is one a layer, above 0 and up to 1")
        if self.keep is not None and not min(self.ratios) < 1:
            raise UsageError(f"ratios: {list(self.ratios)} is given with `keep`; at least one must be below 1")

    def start(self, run: Run, layers: int) -> PrefillState:
        """Fresh state; refuses layers that collide in this depth."""
        scaled = scale_points(self.layers, self.paper_depth, layers)
        return _State(self, [layer - 1 for layer in scaled])


class _State(PrefillState):
    def __init__(self, method: VFlowOpt, points: list[int]) -> None:
        self.method, self.points, self.at = method, points, frozenset(points)
        self.counts: list[int] | None = None

    def after(self, view: PrefillView) -> Kept | None:
        method, alive = self.method, len(view.visual)
        if method.score not in view.tokens.scores:
            have = ", ".join(sorted(view.tokens.scores)) or "none"
            raise UsageError(
                f"score: {method.score!r} is given, and the tokens carry {have}; run a stage that leaves that score "
                "before the language model (merge: vflowopt), or name another one"
            )
        if self.counts is None:
            self.counts = counts_by_ratio(alive, method.ratios, None if method.keep is None else method.count(alive))
            if method.keep is None and method.at_most is not None:
                self.counts[-1] = min(self.counts[-1], method.at_most)
        count = self.counts[self.points.index(view.layer)]
        if count >= alive:
            return None
        return Kept(keep_best(view.tokens.scores[method.score][view.token].float(), count))
