"""Geo3DPruner: the most attended views of each voxel, then the voxels that cover the scene (arXiv 2604.18260)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count, check_range
from videoprune.errors import UsageError
from videoprune.method import MergeMethod
from videoprune.ops.similarity import unit
from videoprune.run import Run
from videoprune.tokens import VisualTokens

TEMPERATURE = 0.1  # of the attention between features that stands in for the geometry model's (ours)
BLOCK = 2**24  # attention entries in flight at once
VOXELS = 8192  # most voxels whose matrix of attention is held


def voxels(points: Tensor, size: float) -> Tensor:
    """(T,) int64, dense voxel numbers of points (T, 3) on a lattice of cubes of `size`, in their points' unit."""
    return (points.double() / size).floor().long().unique(dim=0, return_inverse=True)[1]


def attention_blocks(features: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Rows of softmax(cosine / TEMPERATURE) of features (T, D), by blocks: first row, (B, T)."""
    scaled = unit(features)
    step = max(1, BLOCK // len(scaled))
    for start in range(0, len(scaled), step):
        yield start, (scaled[start : start + step] @ scaled.t() / TEMPERATURE).softmax(1)


def attention_sums(features: Tensor, voxel: Tensor, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Attention inside voxels, who survives there, and attention between the survivors of all voxels.

    Args:
        features: (T, D) whose attention is taken.
        voxel: (T,) int64 ascending, every voxel taken.
        ratio: share of each voxel that survives, at least one token.

    Returns:
        inside (T,), mean attention of its voxel's tokens on each; survives (T,) bool; between (V, V), the mean over
        voxel k's survivors of the attention that voxel l's survivors get from them together.
    """
    size = torch.bincount(voxel)
    start = size.cumsum(0) - size
    inside = torch.zeros(len(voxel), device=voxel.device)
    for first, rows in attention_blocks(features):
        inside += rows.masked_fill_(voxel[first : first + len(rows), None] != voxel, 0).sum(0)
    inside = inside / size[voxel]
    order = torch.argsort(inside, descending=True, stable=True)
    order = order[torch.argsort(voxel[order], stable=True)]
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    survives = place - start[voxel] < (size * ratio).floor().long().clamp(min=1)[voxel]
    kept = torch.bincount(voxel[survives], minlength=len(size))
    between = torch.zeros(len(size), len(size), device=voxel.device)
    number = voxel.cpu()  # one read: blocks are runs of whole numbers
    for first, rows in attention_blocks(features):
        here = survives[first : first + len(rows)].nonzero()[:, 0]
        low, high = int(number[first]), int(number[first + len(rows) - 1]) + 1
        onto = torch.segment_reduce(rows[here][:, survives].t().contiguous(), "sum", lengths=kept, axis=0).t()
        lengths = torch.bincount(voxel[first + here] - low, minlength=high - low)
        between[low:high] += torch.segment_reduce(onto.contiguous(), "sum", lengths=lengths, axis=0, unsafe=True)
    return inside, survives, between / kept[:, None]


def voxel_order(between: Tensor, at_once: int) -> Tensor:
    """(V,) int64, voxels in the order taken: again and again the `at_once` that get most from those not yet taken."""
    total, taken = between.sum(0), []
    for _ in range(-(-len(between) // at_once)):
        chosen = torch.argsort(total, descending=True, stable=True)[:at_once]
        taken.append(chosen)
        total = (total - between[chosen].sum(0)).index_fill(0, chosen, -torch.inf)
    return torch.cat(taken)[: len(between)]


@dataclass(frozen=True, kw_only=True)
class Geo3DPruner(MergeMethod):
    """Keeps tokens voxel by voxel; it needs a 3-D point for each: `tokens.with_scores(points=…)`.

    points is (T, 3) float, x, y, z of each row in one world frame for the whole film, in metres for the default size;
    rows of other merges keep the survivor's. Attention is that of the geometry model's features in
    tokens.scores["geometry"], (T, d), where they are given, else of the tokens' own (ours: the paper reads the attention
    of VGGT). A budget above what survives inside voxels goes on with the others in the same order of voxels (ours).
    Added rows (newline, summary) stay.

    Args:
        size: edge of a voxel.
        ratio: alpha, share of each voxel that goes before all others.
        at_once: K, voxels taken a round.
    """

    paper = "arXiv 2604.18260"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "none"

    keep: float | int | None = 640
    positions: str = "compact"
    size: float = 0.1
    ratio: float = 0.5
    at_once: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("size", self.size, 0, 1e9, open_low=True)
        check_range("ratio", self.ratio, 0, 1, open_low=True)
        check_count("at_once", self.at_once)

    def __call__(self, tokens: VisualTokens, run: Run) -> VisualTokens:
        rows = (tokens.weight > 0).nonzero()[:, 0]
        count = self.count(len(rows))
        points = tokens.scores.get("points")
        if points is None or points.ndim != 2 or points.shape[1] != 3 or not bool(torch.isfinite(points).all()):
            given = "none are" if points is None else f"{tuple(points.shape)} (or values that are not finite) is"
            raise UsageError(
                f"points: {given} given; merge.geo3dpruner needs a finite 3-D point a token, shape ({len(tokens)}, 3): "
                "put them into tokens.with_scores(points=…) before it"
            )
        if count < len(rows):
            voxel = voxels(points[rows], self.size)
            if int(voxel.max()) >= VOXELS:
                raise UsageError(
                    f"size: {self.size} is given, which makes {int(voxel.max()) + 1} voxels; allowed are {VOXELS}: "
                    "give a larger size, or merge or drop tokens before"
                )
            sorted_rows = torch.argsort(voxel, stable=True)
            features = tokens.scores.get("geometry", tokens.features)[rows[sorted_rows]]
            inside, survives, between = attention_sums(features, voxel[sorted_rows], self.ratio)
            taken = voxel_order(between, self.at_once)
            rank = torch.empty_like(taken).scatter_(0, taken, torch.arange(len(taken), device=taken.device))
            order = torch.argsort(inside, descending=True, stable=True)
            order = order[torch.argsort(rank[voxel[sorted_rows]][order], stable=True)]
            order = order[torch.argsort((~survives)[order].long(), stable=True)]
            stays = tokens.weight == 0
            stays[rows[sorted_rows[order[:count]]]] = True
            tokens = tokens.keep(stays.nonzero()[:, 0])
        return tokens.compacted() if self.positions == "compact" else tokens
