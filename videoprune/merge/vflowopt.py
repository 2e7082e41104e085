"""VFlowOpt, first stage: drop the least important tokens and recycle them cell by cell (arXiv 2508.05211)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_range
from videoprune.errors import UsageError
from videoprune.method import MergeMethod
from videoprune.ops.clustering import equal_groups, slot_means
from videoprune.ops.similarity import cosine
from videoprune.run import Run
from videoprune.tokens import VisualTokens

TEMPERATURE = 0.1  # of the attention between features that stands in for the vision tower's (ours)


def context_attention(attention: Tensor, threshold: float) -> Tensor:
    """How much the context tokens of each frame look at each of its tokens.

    Context tokens receive more than `threshold` times the mean attention; where none does, it is the one that receives
    most (ours: the released code takes the mean of nothing).

    Args:
        attention: (F, N, N), rows are queries and add up to 1.
        threshold: t; at the published 29 to 39 only a few tokens pass.

    Returns (F, N) float32, the mean of the context tokens' rows.
    """
    received = attention.float().mean(dim=1)
    context = received > threshold * received.mean(dim=1, keepdim=True)
    most = torch.zeros_like(context).scatter_(1, received.argmax(dim=1, keepdim=True), True)
    context = torch.where(context.any(dim=1, keepdim=True), context, most).float()
    return (context[:, None] @ attention.float())[:, 0] / context.sum(dim=1, keepdim=True)


def recycling(importance: Tensor, cell: Tensor, count: int) -> Tensor:
    """Where each token goes, such that exactly `count` are left.

    The fewest of the least important tokens are candidates such that the others, and the most important candidate of
    each cell, are `count`; the other candidates join it. With fewer than the cells, all are candidates and the most
    important groups stay.

    importance is (T,), cell (T,) int64, the recycling cell of each token. Returns (T,) int64: the row that absorbs each,
    its own for a survivor, -1 for a dropped one. Of equally important tokens the later ones go first.
    """
    tokens = len(importance)
    worst = torch.arange(tokens - 1, -1, -1, device=cell.device)
    worst = worst[torch.argsort(importance.flip(0), stable=True)]  # the least important first
    by_cell = worst[torch.argsort(cell[worst], stable=True)]
    fresh = torch.ones_like(by_cell, dtype=torch.bool)  # first candidate of its cell: it removes nothing
    fresh[1:] = cell[by_cell[1:]] != cell[by_cell[:-1]]
    first = torch.zeros_like(fresh)
    first[by_cell] = fresh
    removed = (~first[worst]).cumsum(0)
    candidates = int(torch.searchsorted(removed, tokens - count)) + 1 if count < tokens else 0
    candidate = worst[:candidates]  # all of them where the cells outnumber the budget
    into = torch.arange(tokens, device=cell.device)
    head = torch.full((int(cell.max()) + 1,), -1, dtype=torch.int64, device=cell.device)
    rank = torch.empty_like(worst).scatter_(0, worst, into)
    head.scatter_reduce_(0, cell[candidate], rank[candidate], "amax")
    into[candidate] = worst[head[cell[candidate]]]
    heads = worst[head[head >= 0].sort().values]
    over = len(heads) - count if candidates >= tokens else 0
    return torch.where(torch.isin(into, heads[:over]), -1, into) if over > 0 else into


@dataclass(frozen=True, kw_only=True)
class VFlowOpt(MergeMethod):
    """Ranks the film's tokens by importance, keeps the best and merges the others in coarse cells of each frame.

    Importance is I = c + alpha * e: c from tokens.scores["cls_attention"] where the tower left it (in a pipeline it does), else
    `context_attention` of the softmax of the features' own cosines in each frame (ours: this stage has no tower); e the
    softmax over a frame of the patches' grey-value entropies, from tokens.scores["entropy"]. It is left in
    tokens.scores["importance"] for the prefill stage, and read from there where it is.

    Args:
        threshold: t, context tokens receive more than so many times the mean attention.
        cell: a, side of a recycling cell in tokens of the host's grid; any number from 1.
        alpha: weight of the entropy; 0 in all published settings.
        recycle: merge what leaves; without it tokens are dropped, as the released code does on video.
    """

    paper = "arXiv 2508.05211"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "[CLS] row"
    search = (("keep", 0.02, 0.98), ("threshold", 0, 50), ("cell", 3, 24))

    keep: float | int | None = 0.2651
    positions: str = "compact"
    threshold: float = 34.76
    cell: float = 15.581
    alpha: float = 0.0
    recycle: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("threshold", self.threshold, 0, 1e9)
        check_range("cell", self.cell, 1, 1e9)
        check_range("alpha", self.alpha, -1e9, 1e9)

    def importance(self, tokens: VisualTokens, rows: Tensor) -> Tensor:
        """(R,) float32 importance of some rows."""
        if "importance" in tokens.scores:
            return tokens.scores["importance"][rows].float()
        given, entropy = tokens.scores.get("cls_attention"), tokens.scores.get("entropy")
        if self.alpha and entropy is None:
            raise UsageError(
                f"alpha: {self.alpha} is given, but no stage left the patches' entropy: put it into "
                "tokens.with_scores(entropy=…), (T,), or leave out alpha (0 in all published settings)"
            )
        score = torch.zeros(len(rows), device=rows.device)
        for member, _ in equal_groups(tokens.frame[rows]):
            features = tokens.features[rows[member]]
            if given is None:
                score[member] = context_attention((cosine(features, features) / TEMPERATURE).softmax(2), self.threshold)
            else:
                score[member] = given[rows[member]].float()
            if self.alpha and entropy is not None:
                score[member] += self.alpha * entropy[rows[member]].float().softmax(1)
        return score

    def __call__(self, tokens: VisualTokens, run: Run) -> VisualTokens:
        rows = (tokens.weight > 0).nonzero()[:, 0]
        if not len(rows):
            return tokens
        score = self.importance(tokens, rows)
        side = (tokens.cell[rows].double() / self.cell).floor().long()
        cell = (tokens.frame[rows] * tokens.grid[0] + side[:, 0]) * tokens.grid[1] + side[:, 1]
        kept = recycling(score, cell, self.count(len(rows)))
        into = torch.arange(len(tokens), device=rows.device)
        into[rows] = torch.where(kept >= 0, rows[kept.clamp(min=0)], -1)
        importance = torch.zeros(len(tokens), device=rows.device).index_copy_(0, rows, score)
        tokens = tokens.with_scores(importance=importance)
        survivors = (into == torch.arange(len(into), device=into.device)).nonzero()[:, 0]
        features = tokens.features[survivors]
        if self.recycle:
            alive = (into >= 0).nonzero()[:, 0]
            slot = torch.searchsorted(survivors, into[alive])
            share = importance[alive].clamp(min=1e-12)  # a negative alpha can make importance negative
            grown = torch.bincount(slot, minlength=len(survivors)) > 1
            merged = slot_means(tokens.features[alive], slot, len(survivors), share).to(features.dtype)
            tokens = tokens.merge(into, torch.where(grown[:, None], merged, features))
        else:
            tokens = tokens.keep(survivors)
        return tokens.compacted() if self.positions == "compact" else tokens
