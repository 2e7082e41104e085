"""SparseVLM: text tokens that the film speaks to rate the visual tokens at three layers; what is dropped is recycled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count, check_range, check_shares, scale_layers
from videoprune.errors import UsageError
from videoprune.layer_method import Kept, PrefillMethod, PrefillState, PrefillView
from videoprune.ops.attention import keep_best
from videoprune.ops.clustering import dpc_knn
from videoprune.ops.matching import group_mean
from videoprune.ops.schedule import counts_towards
from videoprune.run import Run


def text_raters(visual: Tensor, text: Tensor) -> Tensor:
    """Weight of each text token as a rater: 1 where the film's mean softmax over the text is above average, else 0.

    (V, D), (M, D) embeddings -> (M,) float32; all rate where none is above.
    """
    share = torch.zeros(len(text), device=text.device)
    for part in visual.split(8192):
        share += (part.float() @ text.float().T).softmax(dim=1).sum(0)
    rates = share > share.mean()
    return torch.where(rates.any(), rates, True).float()


def recycle(hidden: Tensor, score: Tensor, kept: Tensor, pool: int, clusters: int, neighbors: int) -> Kept:
    """Keep `kept`, and the `pool` best of the others as `clusters` means, each in the row of its cluster's centre.

    Args:
        hidden: (V, D) states. score: (V,). kept: (K,) int64 ascending.
        pool: how many of the others are recycled. clusters: how many rows they become. neighbors: see `dpc_knn`.
    """
    total = len(score)
    others = keep_best(score.index_fill(0, kept, -torch.inf), pool)
    labels, centres = dpc_knn(hidden[others], clusters, neighbors)
    means = group_mean(hidden[others][None], torch.ones(1, pool, device=score.device), labels[None], clusters)[0]
    index, order = torch.cat((kept, others[centres])).sort()
    slot = torch.empty_like(order)
    slot[order] = torch.arange(len(order), device=order.device)
    absorbed = torch.full((total,), -1, device=order.device)
    absorbed[kept] = slot[: len(kept)]
    absorbed[others] = slot[len(kept) + labels]
    return Kept(index, torch.cat((hidden[kept], means.to(hidden.dtype)))[order], absorbed)


@dataclass(frozen=True, kw_only=True)
class SparseVLM(PrefillMethod):
    """Text-rated pruning with recycling (arXiv 2410.04417), the authors' fixed counts for 192 tokens of 576.

    Recycled rows count: after each point exactly its share is alive. With `keep` the shares are stretched so that the
    last point leaves exactly that; `at_most` caps the last point.

    Args:
        layers: points; tokens leave after these layers of `paper_depth`, ascending.
        shares: of the visual tokens that came in, alive after each point, falling.
        recycled: share of the dropped tokens that is clustered; 0 recycles nothing.
        per_cluster: clustered tokens for one row.
        neighbors: of the density.
        paper_depth: depth that `layers` are given for.
    """

    paper = "arXiv 2410.04417"
    scope = "video"
    needs_question = True
    fixed_count = True
    attention = "text rows"
    search = (("keep", 0.02, 0.98), ("recycled", 0, 1))

    layers: Sequence[int] = (2, 6, 15)
    shares: Sequence[float] = (300 / 576, 200 / 576, 110 / 576)
    recycled: float = 0.3
    per_cluster: int = 10
    neighbors: int = 5
    paper_depth: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("paper_depth", "per_cluster", "neighbors"):
            check_count(name, getattr(self, name))
        check_range("recycled", self.recycled, 0, 1)
        object.__setattr__(self, "layers", tuple(self.layers))
        ordered = [-1, *self.layers, self.paper_depth]
        if not self.layers or ordered != sorted(set(ordered)):
            raise UsageError(
                f"layers: {list(self.layers)} is given; allowed are ascending indices in 0..{self.paper_depth - 1}"
            )
        object.__setattr__(self, "shares", check_shares(self.shares, len(self.layers)))

    def start(self, run: Run, layers: int) -> PrefillState:
        """Fresh state; refuses layers that collide in this depth."""
        return _State(self, scale_layers(self.layers, self.paper_depth, layers))


class _State(PrefillState):
    def __init__(self, method: SparseVLM, points: tuple[int, ...]) -> None:
        self.method, self.points = method, points
        self.at = frozenset((0, *points))  # layer 0 is looked at for the embeddings that enter it
        self.counts: list[int] = []
        self.raters = torch.empty(0)

    def after(self, view: PrefillView) -> Kept | None:
        method, alive = self.method, len(view.visual)
        parts = view.question_rows
        if not self.counts:
            self.raters = text_raters(view.before[view.visual], view.before[torch.cat(parts)])
            self.counts = counts_towards(
                alive, method.shares, None if method.keep is None else method.count(alive), method.at_most
            )
        if view.layer not in self.points or (count := self.counts[self.points.index(view.layer)]) >= alive:
            return None
        weights = (self.raters / self.raters.sum()).split([len(part) for part in parts])
        rated = (weight @ view.attention(rows).mean(0) for rows, weight in zip(parts, weights, strict=True))
        score = sum(rated, torch.zeros((), device=self.raters.device))[view.visual]
        pool = min(int(method.recycled * (alive - count)) + 1, alive - count)
        clusters = min(pool // method.per_cluster + 1, pool, count - 1) if method.recycled else 0
        kept = keep_best(score, count - clusters)
        if not clusters:
            return Kept(kept)
        return recycle(view.after[view.visual], score, kept, pool, clusters, method.neighbors)
