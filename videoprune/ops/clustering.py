"""Density peaks clustering over nearest neighbours (DPC-KNN), with ties broken by index instead of random noise.

Around it what every method that clusters needs: groups of equal size as batches, nearest targets, means of groups.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from videoprune.ops.similarity import unit

BLOCK = 2**24  # distances that are held at once: above that rows are streamed
ROUNDING = 2e-6  # a squared distance below this share of the two squared lengths is rounding: the points are one


def _points(features: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, D) float32 around their mean, which costs no distance and saves digits, and their squared lengths (B, N)."""
    points = features.float()
    points = (points - points.mean(dim=1, keepdim=True)) * points.shape[2] ** -0.5
    return points, points.square().sum(dim=2)


def _squared(left: Tensor, left_length: Tensor, right: Tensor, right_length: Tensor) -> Tensor:
    """(B, N, M) squared Euclidean distances divided by D; equal points are at exactly 0."""
    lengths = left_length[:, :, None] + right_length[:, None]
    squared = torch.baddbmm(lengths, left, right.transpose(1, 2), alpha=-2)
    return squared.masked_fill_(squared <= ROUNDING * lengths, 0)


def peak_scores(features: Tensor, neighbors: int) -> Tensor:
    """How much each point is the centre of a cluster: log(density * distance to the nearest denser point).

    The density is exp(-mean of the `neighbors` smallest squared distances, the point's own 0 included); of equally dense
    points the first counts as denser. The densest point takes the largest distance of all. The logarithm ranks as the
    product does and does not underflow.

    Args:
        features: (B, N, D), each batch entry on its own.
        neighbors: at most N are taken.

    Returns:
        (B, N) float32, -inf for the copy of an earlier point.
    """
    points, length = _points(features)
    batch, count, _ = points.shape
    step = max(1, min(count, BLOCK // max(1, batch * count)))
    spread, largest, held = torch.empty_like(length), length.new_zeros(batch, 1), None
    for start in range(0, count, step):
        part = slice(start, start + step)
        squared = _squared(points[:, part], length[:, part], points, length)
        squared.diagonal(start, dim1=1, dim2=2).zero_()
        spread[:, part] = squared.topk(min(neighbors, count), dim=2, largest=False).values.mean(dim=2)
        largest = torch.maximum(largest, squared.amax(dim=(1, 2))[:, None])
        held = squared if step == count else None
    index = torch.arange(count, device=points.device)
    apart = torch.empty_like(length)
    for start in range(0, count, step):
        part = slice(start, start + step)
        squared = _squared(points[:, part], length[:, part], points, length) if held is None else held
        own, other = spread[:, part, None], spread[:, None]
        denser = (other < own) | ((other == own) & (index < index[part, None]))
        apart[:, part] = squared.masked_fill_(~denser, torch.inf).amin(dim=2)
    return torch.minimum(apart, largest).log() / 2 - spread


def dpc_knn(features: Tensor, clusters: int, neighbors: int) -> tuple[Tensor, Tensor]:
    """Cluster points around density peaks.

    Args:
        features: (N, D), or (B, N, D) for a batch whose entries are clustered each on its own.
        clusters: how many, at most N.
        neighbors: points that a density is taken over, the point itself included.

    Returns:
        labels (N,) or (B, N) int64 in 0..clusters-1, the nearest centre, of equally near ones the first; a centre is in its
        own cluster. centres (clusters,) or (B, clusters) int64 ascending: the best `peak_scores`, ties to the first.
    """
    if features.ndim == 2:
        labels, centres = dpc_knn(features[None], clusters, neighbors)
        return labels[0], centres[0]
    batch, count, width = features.shape
    if not 1 <= clusters <= count:
        raise ValueError(f"clusters: {clusters} is given; {count} points allow 1..{count}")
    score = peak_scores(features, neighbors)
    centres = score.argsort(dim=1, descending=True, stable=True)[:, :clusters].sort(dim=1).values
    points, length = _points(features)
    chosen, chosen_length = points.gather(1, centres[:, :, None].expand(-1, -1, width)), length.gather(1, centres)
    step = max(1, BLOCK // (batch * clusters))
    labels = torch.cat(
        [
            _squared(points[:, part : part + step], length[:, part : part + step], chosen, chosen_length).argmin(dim=2)
            for part in range(0, count, step)
        ],
        dim=1,
    )
    return labels.scatter(1, centres, torch.arange(clusters, device=labels.device).expand(batch, -1)), centres


def cluster_groups(features: Tensor, group: Tensor, quota: Tensor, neighbors: int) -> Tensor:
    """Cluster each group of rows to its own number of centres, those of equal size and quota together.

    Args:
        features: (T, D).
        group: (T,) int64 in 0..G-1, or -1 for a row that is left alone.
        quota: (G,) int64, centres of each group, at most its size; 0 drops the group.
        neighbors: as in `dpc_knn`.

    Returns:
        (T,) int64, the row of the centre that each row belongs to, its own for a centre, -1 in a dropped group.
    """
    into = torch.arange(len(features), device=features.device)
    quota = quota.to(features.device)
    for members, clusters in equal_groups(group, quota):
        if clusters == 0:
            into[members] = -1
        elif clusters < members.shape[1]:
            labels, centres = dpc_knn(features[members], clusters, neighbors)
            into[members] = members.gather(1, centres.gather(1, labels))
    return into


def equal_groups(group: Tensor, label: Tensor | None = None) -> Iterator[tuple[Tensor, int]]:
    """Rows of the groups of equal size and equal label, stacked.

    Args:
        group: (T,) int64; rows below 0 are in no group.
        label: (G,) int64 of each group; None counts them alike.

    Yields:
        (B, n) int64 rows, ascending in each group, B * n * n within `BLOCK` unless B is 1; and the label, 0 without.
    """
    order = torch.argsort(group, stable=True)
    order = order[int((group < 0).sum()) :]
    size = torch.bincount(group[order], minlength=0 if label is None else len(label))
    label = torch.zeros_like(size) if label is None else label[: len(size)]
    start = size.cumsum(0) - size
    table = torch.stack((size, label, start), dim=1).cpu()  # one read: shapes depend on it
    for rows, name in table[table[:, 0] > 0, :2].unique(dim=0).tolist():
        alike = table[(table[:, 0] == rows) & (table[:, 1] == name), 2].to(group.device)
        for part in alike.split(max(1, min(BLOCK // rows**2, 2**15 // rows))):
            yield order[part[:, None] + torch.arange(rows, device=group.device)], name


def nearest(rows: Tensor, targets: Tensor) -> Tensor:
    """(R,) int64: for each of rows (R, D) the most similar of targets (K, D) by cosine, ties to the first; streamed."""
    scaled = unit(targets).t()
    parts = rows.split(max(1, BLOCK // max(1, len(targets))))
    return torch.cat([(unit(part) @ scaled).argmax(dim=1) for part in parts])


def slot_means(rows: Tensor, slot: Tensor, slots: int, weight: Tensor | None = None) -> Tensor:
    """(slots, D) float32: weighted mean of rows (R, D) that share a slot, 0 where none does; the same on every run.

    Args:
        slot: (R,) int64 in 0..slots-1.
        weight: (R,) not negative; None is 1.
    """
    order = slot.argsort(stable=True)  # sums over sorted runs are ordered, scattered additions on a GPU are not
    share = torch.ones_like(slot, dtype=torch.float32) if weight is None else weight.float()
    lengths = torch.bincount(slot, minlength=slots)
    total = torch.segment_reduce(rows[order].float() * share[order, None], "sum", lengths=lengths, axis=0, unsafe=True)
    mass = torch.segment_reduce(share[order], "sum", lengths=lengths, axis=0, unsafe=True)
    return total / torch.where(mass > 0, mass, 1.0)[:, None]
