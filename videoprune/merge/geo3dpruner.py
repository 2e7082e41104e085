"""Geo3DPruner: the most attended views of each voxel, then the voxels that cover the scene (arXiv 2604.18260)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count, check_range
from videoprune.errors import UsageError
from videoprune.method import MergeMethod
from videoprune.ops.attention import best_per_group
from videoprune.ops.blocks import at_once
from videoprune.ops.clustering import equal_groups
from videoprune.ops.similarity import unit
from videoprune.run import Run
from videoprune.tokens import VisualTokens

TEMPERATURE = 0.1  # of the attention between features that stands in for the geometry model's (ours)
BLOCK = 2**22  # attention entries in flight at once
VOXELS = 8192  # most voxels whose matrix of attention is held


def voxels(points: Tensor, size: float) -> Tensor:
    """(T,) int64, dense voxel numbers of points (T, 3) on a lattice of cubes of `size`, in their points' unit."""
    return (points.double() / size).floor().long().unique(dim=0, return_inverse=True)[1]


def normalisers(scaled: Tensor) -> Tensor:
    """(T,) Σ_j exp(cosine / TEMPERATURE) of each of scaled (T, D), of length 1: one half of the symmetric matrix, streamed."""
    total = torch.zeros(len(scaled), device=scaled.device)
    step = max(1, at_once(BLOCK, scaled.device) // max(1, len(scaled)))
    for start in range(0, len(scaled), step):
        part = (scaled[start : start + step] @ scaled[start:].t()).mul_(1 / TEMPERATURE).exp_()
        end = start + len(part)
        total[start:end] += part.sum(1)
        total[end:] += part[:, len(part) :].sum(0)
    return total


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
    size, scaled = torch.bincount(voxel), unit(features)
    total = normalisers(scaled)
    inside = torch.zeros(len(voxel), device=voxel.device)
    for members, _ in equal_groups(voxel):
        own = scaled[members]
        share = (own @ own.transpose(1, 2)).mul_(1 / TEMPERATURE).exp_() / total[members][..., None]
        inside[members] = share.mean(1)
    best = best_per_group(inside, voxel, (size * ratio).floor().long().clamp(min=1))
    survives = torch.zeros_like(voxel, dtype=torch.bool).index_fill_(0, best, True)
    kept, scaled, own_voxel, total = torch.bincount(voxel[best]), scaled[best], voxel[best], total[best]
    between = torch.zeros(len(size), len(size), device=voxel.device)
    step = max(1, at_once(BLOCK, scaled.device) // max(1, len(best)))
    number = own_voxel.cpu()  # one read: blocks are runs of whole numbers
    for start in range(0, len(best), step):
        part = slice(start, start + step)
        towards = (scaled @ scaled[part].t()).mul_(1 / TEMPERATURE).exp_()  # symmetric: columns are the attending ones
        onto = torch.segment_reduce(towards, "sum", lengths=kept, axis=0, unsafe=True) / total[part]
        low, high = int(number[start]), int(number[min(start + step, len(number)) - 1]) + 1
        lengths = torch.bincount(own_voxel[part] - low, minlength=high - low)
        between[low:high] += torch.segment_reduce(onto.t().contiguous(), "sum", lengths=lengths, axis=0, unsafe=True)
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
        still_camera: where no points are given, take each cell of the frames' grid for one voxel: right where the camera
            stands still (ours); without it, points are a must.
        size: edge of a voxel.
        ratio: alpha, share of each voxel that goes before all others.
        at_once: K, voxels taken a round.
    """

    paper = "arXiv 2604.18260"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "none"
    search = (("keep", 0.02, 0.98), ("ratio", 0.1, 1))

    keep: float | int | None = 640
    positions: str = "compact"
    size: float = 0.1
    ratio: float = 0.5
    at_once: int = 8
    still_camera: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("size", self.size, 0, 1e9, open_low=True)
        check_range("ratio", self.ratio, 0, 1, open_low=True)
        check_count("at_once", self.at_once)

    def __call__(self, tokens: VisualTokens, run: Run) -> VisualTokens:
        rows = (tokens.weight > 0).nonzero()[:, 0]
        count = self.count(len(rows))
        points = tokens.scores.get("points")
        if points is None and self.still_camera:
            points = self.size * torch.nn.functional.pad(tokens.cell.double() + 0.5, (0, 1))
        if points is None or points.ndim != 2 or points.shape[1] != 3 or not bool(torch.isfinite(points).all()):
            given = "none are" if points is None else f"{tuple(points.shape)} (or values that are not finite) is"
            raise UsageError(
                f"points: {given} given; merge.geo3dpruner needs a finite 3-D point a token, shape ({len(tokens)}, 3): "
                "put them into tokens.with_scores(points=…) before it, or set still_camera: true if the camera never moves"
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
