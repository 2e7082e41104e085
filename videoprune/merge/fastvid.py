"""FastVID's merging: salient tokens of each frame, and anchors that gather the rest of their event (arXiv 2503.11187)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count, check_range
from videoprune.method import MergeMethod
from videoprune.ops.attention import apportion, best_per_group, keep_best
from videoprune.ops.clustering import equal_groups, peak_scores, slot_means
from videoprune.ops.similarity import unit
from videoprune.run import Run
from videoprune.tokens import VisualTokens

TEMPERATURE = 0.1  # of the attention of a frame's mean feature that stands in for the pooling head's (ours)
BLOCK = 2**24  # similarities in flight at once


def anchor_frames(counts: Tensor, frame_event: Tensor, period: int) -> Tensor:
    """(F,) bool: every `period`-th frame that has tokens, counted back from the last such one of its event."""
    has = (counts > 0).long()
    through = has.cumsum(0)
    last = torch.zeros(int(frame_event.max()) + 1, dtype=torch.int64, device=counts.device)
    last = last.scatter_reduce_(0, frame_event, through, "amax")
    return (has > 0) & ((last[frame_event] - through) % period == 0)


def frame_quotas(counts: Tensor, frame_event: Tensor, total: int, context: float, period: int) -> tuple[Tensor, Tensor]:
    """Salient tokens and anchors of each frame, two (F,) int64; they add up to `total` or less.

    Each frame's part of `total` gives floor(context * part) to its event's anchors, which stand in its anchor frames.
    """
    part = apportion(counts, total)
    given = (part * context).floor().long()
    anchor = anchor_frames(counts, frame_event, period)
    anchors = torch.zeros_like(counts)
    for event in range(int(frame_event.max()) + 1):  # on the CPU: a few whole numbers a frame
        here = frame_event == event
        room = (counts - (part - given)) * (here & anchor)
        anchors += torch.minimum(apportion((here & anchor).long() * int(counts.max()), int(given[here].sum())), room)
    return part - given, anchors


def gather_context(
    features: Tensor, group: Tensor, anchor: Tensor, frame: Tensor, least: float
) -> tuple[Tensor, Tensor]:
    """Let every anchor frame's anchors share out all other tokens of their event among them.

    Args:
        features: (T, D). group: (T,) int64, event of the tokens that are gathered or gather, -1 for others.
        anchor: (T,) bool. frame: (T,) int64.
        least: least share of an anchor in what it becomes: w * anchor + (1 - w) * mean, w = max(least, 1 / (1 + others)).

    Returns:
        into (T,) int64, the most similar anchor of its event for each gathered token, -1 without one, its own for others;
        features (T, D) float32 with the anchors' new ones.
    """
    into = torch.arange(len(group), device=group.device)
    out = features.float().clone()
    for event in group[anchor].unique().tolist():
        member = ((group == event) & ~anchor).nonzero()[:, 0]
        best = torch.full((len(member),), -torch.inf, device=group.device)
        near = torch.full_like(member, -1)
        rows = ((group == event) & anchor).nonzero()[:, 0]
        for chosen in rows.split(torch.unique_consecutive(frame[rows], return_counts=True)[1].tolist()):
            scaled = unit(features[chosen]).t()
            found = [(unit(p) @ scaled).max(dim=1) for p in features[member].split(max(1, BLOCK // len(chosen)))]
            similar, slot = torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
            near, best = torch.where(similar > best, chosen[slot], near), torch.maximum(similar, best)
            count = torch.bincount(slot, minlength=len(chosen))
            share = (1 / (1 + count.float())).clamp(min=least).where(count > 0, 1.0)[:, None]
            out[chosen] = share * features[chosen].float() + (1 - share) * slot_means(
                features[member], slot, len(chosen)
            )
        into[member] = near
    into[(group >= 0) & ~torch.isin(group, group[anchor])] = -1
    return into, out


@dataclass(frozen=True, kw_only=True)
class FastVID(MergeMethod):
    """Keeps each frame's salient tokens; anchors in every `period`-th frame gather the others of their event.

    Events are those of the segment stage; the paper's are `segment: {method: fastvid}`. Salience is
    tokens.scores["cls_attention"] (a pipeline reads it from the tower), else the softmax of the cosines with the frame's mean
    (ours: this stage has no pooling head). Anchors have the best density-peak scores of their frame. What anchor frames
    have no room for goes to the most salient tokens left (ours: the count is exact). Added rows stay.

    Args:
        context: d, share of the budget for anchors.
        period: p, frames from one anchor frame to the next.
        mix: beta, least share of an anchor in what it becomes.
        neighbors: of the density of a point.
    """

    paper = "arXiv 2503.11187"
    scope = "event"
    needs_question = False
    fixed_count = True
    attention = "[CLS] row"
    search = (("keep", 0.02, 0.98), ("context", 0, 1), ("mix", 0, 1), ("period", 1, 8))

    keep: float | int | None = 0.1
    context: float = 0.4
    period: int = 4
    mix: float = 0.6
    neighbors: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("context", self.context, 0, 1)
        check_range("mix", self.mix, 0, 1)
        check_count("period", self.period)
        check_count("neighbors", self.neighbors)

    def __call__(self, tokens: VisualTokens, run: Run) -> VisualTokens:
        rows = (tokens.weight > 0).nonzero()[:, 0]
        count = self.count(len(rows))
        if count == len(rows):
            return tokens
        features, frame, device = tokens.features[rows], tokens.frame[rows], rows.device
        salience, peak = torch.zeros(len(rows), device=device), torch.zeros(len(rows), device=device)
        for member, _ in equal_groups(frame):
            own = features[member].float()
            probe = (unit(own) * unit(own.mean(dim=1, keepdim=True))).sum(dim=2)
            salience[member] = (probe / TEMPERATURE).softmax(1)
            peak[member] = peak_scores(own, self.neighbors)
        if "cls_attention" in tokens.scores:
            salience = tokens.scores["cls_attention"][rows].float()
        counts = torch.bincount(frame, minlength=tokens.frames).cpu()
        salient, anchors = frame_quotas(counts, run.events.frame_event.cpu(), count, self.context, self.period)
        stays = torch.zeros(len(rows), dtype=torch.bool, device=device)
        stays[best_per_group(salience, frame, salient.to(device))] = True
        rest = (~stays).nonzero()[:, 0]
        anchor = torch.zeros_like(stays)
        anchor[rest[best_per_group(peak[rest], frame[rest], anchors.to(device))]] = True
        rest = (~stays & ~anchor).nonzero()[:, 0]
        stays[rest[keep_best(salience[rest], count - int(salient.sum()) - int(anchors.sum()))]] = True
        event = run.events.frame_event.to(device)[frame]
        joined, changed = gather_context(features, torch.where(stays, -1, event), anchor, frame, self.mix)
        into = torch.arange(len(tokens), device=device)
        into[rows] = torch.where(joined >= 0, rows[joined.clamp(min=0)], -1)
        new = tokens.features.clone()
        new[rows[anchor]] = changed[anchor].to(new.dtype)
        tokens = tokens.merge(into, new[into == torch.arange(len(into), device=device)])
        return tokens.compacted() if self.positions == "compact" else tokens
