"""HoliTom's merging: static places are averaged over their event, the rest is chosen and clustered (arXiv 2505.21334)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count, check_range
from videoprune.method import MergeMethod
from videoprune.ops.attention import apportion, best_per_group
from videoprune.ops.clustering import cluster_groups, equal_groups, slot_means
from videoprune.ops.similarity import cosine, pair_cosine
from videoprune.run import Run
from videoprune.tokens import VisualTokens

TEMPERATURE = 0.1  # of the attention between features that stands in for the vision tower's (ours)


def static_runs(features: Tensor, frame: Tensor, event: Tensor, place: Tensor, threshold: float) -> Tensor:
    """Join what stands still: (T,) int64, the first row of its event and place for a static token, its own for others.

    A place is static where every frame of its event has it and every cosine of neighbouring frames exceeds `threshold`.

    Args:
        features: (T, D). frame, event, place: (T,) int64; frames ascend and events with them.
    """
    rows = torch.arange(len(frame), device=frame.device)
    order = torch.argsort(frame, stable=True)
    order = order[torch.argsort(place[order], stable=True)]
    order = order[torch.argsort(event[order], stable=True)]  # by event, place, frame
    key = torch.stack((event[order], place[order]))
    new = torch.ones_like(order, dtype=torch.bool)
    new[1:] = (key[:, 1:] != key[:, :-1]).any(dim=0)
    slot = new.cumsum(0) - 1
    apart = torch.zeros(len(order), device=frame.device)
    apart[1:] = ((pair_cosine(features, order[1:], order[:-1]) <= threshold) & ~new[1:]).float()
    breaks = torch.zeros(int(slot[-1]) + 1, device=frame.device).scatter_reduce_(0, slot, apart, "amax")
    length = torch.bincount(slot)
    frames_each = torch.zeros(int(event.max()) + 1, dtype=torch.int64, device=frame.device)
    heads = torch.full((int(frame.max()) + 1,), -1, dtype=torch.int64, device=frame.device).scatter_(0, frame, event)
    frames_each.index_add_(0, heads[heads >= 0], torch.ones_like(heads[heads >= 0]))
    first = order[new]
    static = (breaks == 0) & (length > 1) & (length == frames_each[event[first]])
    return torch.empty_like(rows).scatter_(0, order, torch.where(static[slot], first[slot], order))


def mixed(features: Tensor, into: Tensor, mix: float) -> Tensor:
    """Features (T, D) float32 after each centre that others join became w * centre + (1 - w) * their mean.

    w = max(mix, 1 / (1 + number of others)). Rows that go nowhere (-1) or stay alone are unchanged.
    """
    rows = torch.arange(len(into), device=into.device)
    member = ((into >= 0) & (into != rows)).nonzero()[:, 0]
    out = features.float()
    if len(member):
        centre, slot, count = into[member].unique(return_inverse=True, return_counts=True)
        share = (1 / (1 + count.float())).clamp(min=mix)[:, None]
        out = out.index_copy(
            0, centre, share * out[centre] + (1 - share) * slot_means(features[member], slot, len(centre))
        )
    return out


@dataclass(frozen=True, kw_only=True)
class HoliTom(MergeMethod):
    """Averages static places, then keeps the share of what is left that meets the budget of the whole film.

    Moving tokens of a frame: those that its tokens attend to most; static ones of an event: centres of DPC-KNN, which
    the others join. Events are those of the segment stage; the paper's are `segment: {method: holitom}`. The attention
    is tokens.scores["cls_attention"] (a pipeline reads it from the tower), else the mean attention that each token
    receives from its frame in a softmax of the features' own cosines (ours: this stage has no tower). Where static
    places alone leave fewer tokens than the budget, all of those stay. Added rows (newline, summary) stay.

    Args:
        threshold: cosine of neighbouring frames that a static place exceeds; the paper has 0.8 from keep 0.15 up.
        mix: least share of a centre in what it becomes.
        neighbors: of the density of a point.
    """

    paper = "arXiv 2505.21334"
    scope = "event"
    needs_question = False
    fixed_count = False
    attention = "[CLS] row"
    search = (("keep", 0.02, 0.98), ("threshold", 0.4, 0.98), ("mix", 0, 1))

    keep: float | int | None = 0.1
    positions: str = "compact"
    threshold: float = 0.65
    mix: float = 0.6
    neighbors: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("threshold", self.threshold, -1, 1)
        check_range("mix", self.mix, 0, 1)
        check_count("neighbors", self.neighbors)

    def __call__(self, tokens: VisualTokens, run: Run) -> VisualTokens:
        rows = (tokens.weight > 0).nonzero()[:, 0]
        count = self.count(len(rows))
        if count == len(rows):
            return tokens
        device, frame = rows.device, tokens.frame[rows]
        frame_event = run.events.frame_event.to(device)
        attention = torch.zeros(len(tokens), device=device)
        for member, _ in equal_groups(frame) if "cls_attention" not in tokens.scores else ():
            own = tokens.features[rows[member]]
            attention[rows[member]] = (cosine(own, own) / TEMPERATURE).softmax(2).mean(1)
        attention = tokens.scores.get("cls_attention", attention).float()
        place = tokens.cell[rows, 0] * tokens.grid[1] + tokens.cell[rows, 1]
        joined = static_runs(tokens.features[rows], frame, frame_event[frame], place, self.threshold)
        still = torch.zeros(len(tokens), dtype=torch.bool, device=device)
        still[rows] = torch.bincount(joined, minlength=len(rows))[joined] > 1
        into = torch.arange(len(tokens), device=device)
        into[rows] = rows[joined]
        left = into == torch.arange(len(into), device=device)
        tokens, still, attention = tokens.merge(into), still[left], attention[left]
        group = torch.where(still, tokens.frames + frame_event[tokens.frame], tokens.frame)  # a frame's, an event's
        group = torch.where(tokens.weight > 0, group, -1)
        sizes = torch.bincount(group[group >= 0], minlength=tokens.frames + len(run.events))
        quota = apportion(sizes, count)
        into = cluster_groups(tokens.features, torch.where(still, group, -1), quota, self.neighbors)
        moving = ((group >= 0) & ~still).nonzero()[:, 0]
        into[moving] = -1
        stays = moving[best_per_group(attention[moving], group[moving], quota)]
        into[stays] = stays
        features = mixed(tokens.features, into, self.mix).to(tokens.features.dtype)
        survivors = (into == torch.arange(len(into), device=device)).nonzero()[:, 0]
        tokens = tokens.merge(into, features[survivors])
        return tokens.compacted() if self.positions == "compact" else tokens
