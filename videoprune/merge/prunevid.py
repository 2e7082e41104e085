"""PruneVid's merging: what stands still in an event is averaged over time, then all is clustered (arXiv 2412.16117)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count, check_range
from videoprune.method import MergeMethod
from videoprune.ops.attention import apportion
from videoprune.ops.clustering import cluster_groups, slot_means
from videoprune.ops.similarity import unit
from videoprune.run import Run
from videoprune.tokens import VisualTokens


def mean_pair_cosine(features: Tensor, slot: Tensor, slots: int) -> Tensor:
    """(slots,) float32: mean cosine over all pairs of different rows (R, D) that share a slot; -2 for fewer than two.

    No pair is formed: the pairs' cosines add up to |sum of unit rows|^2 less one for each row.
    """
    count = torch.bincount(slot, minlength=slots).float()
    scaled = unit(features)
    total = slot_means(scaled, slot, slots) * count[:, None]
    own = slot_means(scaled.square().sum(dim=1, keepdim=True), slot, slots)[:, 0] * count  # 0 for a black row
    return torch.where(count > 1, (total.square().sum(dim=1) - own) / (count * (count - 1)).clamp(min=1), -2.0)


def static_into(
    features: Tensor, frame: Tensor, event: Tensor, place: Tensor, per_frame: int, threshold: float
) -> Tensor:
    """Join what stands still: (T,) int64, the first row of its event and place for a static token, its own for others.

    A place is static in an event of at least two frames where every frame has it and the mean cosine of its tokens
    exceeds `threshold`.

    Args:
        features: (T, D). frame, event, place: (T,) int64, place the token's number on the frame's grid.
    """
    _, slot = (event * per_frame + place).unique(return_inverse=True)
    slots = int(slot.max()) + 1
    rows = torch.arange(len(frame), device=frame.device)
    first = torch.full((slots,), len(rows), device=rows.device).scatter_reduce_(0, slot, rows, "amin")
    heads = torch.full((int(frame.max()) + 1,), -1, dtype=torch.int64, device=rows.device).scatter_(0, frame, event)
    seen = torch.bincount(heads[heads >= 0])  # frames of each event
    whole = torch.bincount(slot, minlength=slots) == seen[event[first]]
    static = whole & (mean_pair_cosine(features, slot, slots) > threshold)
    return torch.where(static[slot], first[slot], rows)


@dataclass(frozen=True, kw_only=True)
class PruneVid(MergeMethod):
    """Averages static places over each event, then clusters its static tokens and each frame's others to a share.

    Events are those of the segment stage; the paper finds them by `segment: {method: dpc_knn}`. With a budget each
    cluster set takes its part, so that the count is exact; without, it depends on the film and `at_most` caps it so.
    Added rows (newline, summary) stay.

    Args:
        threshold: mean cosine above which a place is static.
        share: of each set that its clusters are, without `keep`.
        least: sets of at most so many tokens are not clustered, without `keep`.
        neighbors: of the density of a point.
    """

    paper = "arXiv 2412.16117"
    scope = "event"
    needs_question = False
    fixed_count = False
    attention = "none"
    search = (("keep", 0.02, 0.98), ("threshold", 0.4, 0.98), ("share", 0.1, 1))

    threshold: float = 0.8
    share: float = 0.5
    least: int = 14
    neighbors: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("threshold", self.threshold, -1, 1)
        check_range("share", self.share, 0, 1, open_low=True)
        check_count("least", self.least, least=0)
        check_count("neighbors", self.neighbors)

    def quotas(self, sizes: Tensor, total: int) -> Tensor:
        """Clusters of each set, (G,) int64, of a film that had `total` tokens."""
        if self.keep is not None:
            return apportion(sizes, self.count(total))
        shares = (sizes.double() * self.share).floor().long().clamp(min=1).minimum(sizes)
        quota = torch.where(sizes > self.least, shares, sizes)
        over = self.at_most is not None and int(quota.sum()) > self.at_most
        return apportion(quota, self.at_most) if over and self.at_most is not None else quota

    def __call__(self, tokens: VisualTokens, run: Run) -> VisualTokens:
        rows = (tokens.weight > 0).nonzero()[:, 0]
        if not len(rows) or (self.keep is not None and self.count(len(rows)) == len(rows)):
            return tokens
        total = len(rows)
        event = run.events.frame_event.to(rows.device)[tokens.frame[rows]]
        place = tokens.cell[rows, 0] * tokens.grid[1] + tokens.cell[rows, 1]
        joined = static_into(tokens.features[rows], tokens.frame[rows], event, place, tokens.per_frame, self.threshold)
        still = torch.zeros(len(tokens), dtype=torch.bool, device=rows.device)
        still[rows] = torch.bincount(joined, minlength=len(rows))[joined] > 1
        into = torch.arange(len(tokens), device=rows.device)
        into[rows] = rows[joined]
        still = still[into == torch.arange(len(into), device=into.device)]
        tokens = tokens.merge(into)
        event = run.events.frame_event.to(rows.device)[tokens.frame]
        group = torch.where(still, tokens.frames + event, tokens.frame)  # a set a frame, then one an event
        group = torch.where(tokens.weight > 0, group, -1)
        sizes = torch.bincount(group[group >= 0], minlength=tokens.frames + len(run.events))
        into = cluster_groups(tokens.features, group, self.quotas(sizes.cpu(), total), self.neighbors)
        tokens = tokens.merge(into)
        return tokens.compacted() if self.positions == "compact" else tokens
