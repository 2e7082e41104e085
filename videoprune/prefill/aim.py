"""AIM, second half: visual tokens leave linearly with depth, the least important first.

Importance is a PageRank on the attention graph of the layer (arXiv 2412.03248, section on token pruning).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count, check_range, scale_layers
from videoprune.errors import UsageError
from videoprune.layer_method import Kept, PrefillMethod, PrefillState, PrefillView
from videoprune.ops.attention import StreamedAttention, keep_best
from videoprune.run import Run


def pagerank_importance(
    query: Tensor,
    key: Tensor,
    temperature: float = 0.1,
    iterations: int = 5,
    scale: float | None = None,
) -> Tensor:
    """Importance of every token: how much attention flows to it through repeated steps on the attention graph.

    P = causal softmax(scale * Q Kᵀ / temperature) a head; u = 1/S everywhere, then u ← u·P `iterations` times without
    teleport; importance_j = sqrt(mean over heads of u_j²).

    Args:
        query: (H, S, d) rotated.
        key: (Hkv, S, d) rotated.
        temperature: sharpens the graph; the authors divide the scaled logits by 0.1.
        iterations: steps of the power iteration.
        scale: factor of the logits; None is 1/sqrt(d).

    Returns:
        (S,) float32.
    """
    heads, length, width = query.shape
    graph = StreamedAttention(query, key, width**-0.5 if scale is None else scale, temperature)
    flow = torch.full((heads, length), 1.0 / max(length, 1), device=query.device)
    for _ in range(iterations):
        flow = graph.times(flow)
    return flow.square().mean(0).sqrt()


def tokens_after(total: int, final: int, step: int, steps: int) -> int:
    """Tokens alive after pruning point `step` of 1..steps: from `total` down to `final` on a line, rounded down.

    With final = 0 this is floor(total * (1 - step/steps)), the paper's schedule.
    """
    return total - -(-(total - final) * step // steps)


@dataclass(frozen=True, kw_only=True)
class AIM(PrefillMethod):
    """Linear pruning by PageRank importance (arXiv 2412.03248).

    After layer l in first..last-1 the best 1 - (l-first+1)/(last-first) of the V visual tokens that came in stay;
    after layer last-1 none do. `first` and `last` are scaled to the model's depth and the line is drawn anew between them, so
    a shallow model has fewer, larger steps; at least one. With `keep` the line ends at that share or count, which stays.

    The authors mask pruned tokens and rank the whole sequence; here pruned tokens are gone from the later layers. That
    is the same for the survivors, except that the power iteration starts from 1/S over the tokens that are left: masked
    rows no longer inject their mass, here as little as in a model that never had them. Visual tokens are ranked among
    themselves (the authors give text the score 1, which never loses).

    Args:
        first: layer after which pruning starts, for `paper_depth` layers.
        last: from this layer on nothing more is pruned.
        paper_depth: depth that `first` and `last` are given for.
        temperature: of the attention graph.
        iterations: steps of the power iteration.
    """

    paper = "arXiv 2412.03248"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "all rows"
    search = (("keep", 0.02, 0.98), ("temperature", 0.05, 1))

    first: int = 14
    last: int = 22
    paper_depth: int = 28
    temperature: float = 0.1
    iterations: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("paper_depth", self.paper_depth)
        check_count("first", self.first, least=0)
        check_count("last", self.last)
        check_count("iterations", self.iterations)
        check_range("temperature", self.temperature, 0, 100, open_low=True)
        if not self.first < self.last <= self.paper_depth:
            raise UsageError(
                f"first: {self.first} and last: {self.last} are given; allowed is first < last <= paper_depth "
                f"({self.paper_depth}); pruning happens after the layers first..last-1"
            )

    def start(self, run: Run, layers: int) -> PrefillState:
        """Fresh state; pruning after the scaled layers first..last-1, one layer at least."""
        (first,) = scale_layers((self.first,), self.paper_depth, layers)
        last = int(self.last * layers / self.paper_depth + 0.5)
        return _State(self, first, max(last, first + 1))


class _State(PrefillState):
    def __init__(self, method: AIM, first: int, last: int) -> None:
        self.method, self.first, self.steps = method, first, last - first
        self.at = frozenset(range(first, last))
        self.total: int | None = None  # V, known at the first pruning point

    def target(self, layer: int) -> int:
        method, total, step = self.method, self.total or 0, layer - self.first + 1
        if method.keep is not None:
            return tokens_after(total, method.count(total), step, self.steps)
        count = tokens_after(total, 0, step, self.steps)
        if step == self.steps - 1 and method.at_most is not None:  # the last point that keeps any
            count = min(count, method.at_most)
        return count

    def after(self, view: PrefillView) -> Kept | None:
        alive = len(view.visual)
        if self.total is None:
            self.total = alive
        count = self.target(view.layer)
        if count >= alive:
            return None
        if count == 0:
            return Kept(view.visual.new_empty(0))
        method = self.method
        importance = pagerank_importance(view.query(), view.key(), method.temperature, method.iterations, view.scale)
        return Kept(keep_best(importance[view.visual], count))
