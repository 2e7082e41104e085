"""Density peaks clustering over nearest neighbours (DPC-KNN), with ties broken by index instead of random noise.

Around it what every method that clusters needs: groups of equal size as batches, nearest targets, means of groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from videoprune.ops.blocks import at_once
from videoprune.ops.similarity import unit

BLOCK = 2**20  # distances of one block (see `at_once`)
STREAM = 2**22  # distances of one block where none are held: products want more rows
MIRROR = 512  # rows of a block of which one half is computed and mirrored
HOLD = 8192  # most points whose distances are held; those of more are computed twice
ROUNDING = 2e-6  # a squared distance below this share of the two squared lengths is rounding: the points are one


def _points(features: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, D) float32 around their mean, which costs no distance and saves digits, and their squared lengths (B, N)."""
    points = features.float()
    points = points - points.mean(dim=1, keepdim=True)
    return points, torch.linalg.vector_norm(points, dim=2).square_()


def _squared(left: Tensor, left_length: Tensor, right: Tensor, right_length: Tensor) -> Tensor:
    """(B, N, M) squared Euclidean distances divided by D; equal points are at exactly 0."""
    squared = torch.bmm(left, right.transpose(1, 2))
    torch.sub(right_length[:, None], squared, alpha=2, out=squared).add_(left_length[:, :, None])
    # where a distance is rounding the two lengths are one
    squared.masked_fill_(squared <= (2 * ROUNDING * left_length)[:, :, None], 0)
    return squared.mul_(1 / left.shape[2])


def _all_squared(points: Tensor, length: Tensor) -> Tensor:
    """(B, N, N) `_squared` of all pairs, 0 on the diagonal; of a single large entry one half is computed and mirrored."""
    batch, count, _ = points.shape
    if batch > 1 or count <= MIRROR:
        squared = _squared(points, length, points, length)
    else:
        squared = points.new_empty(batch, count, count)
        for start in range(0, count, MIRROR):
            part = slice(start, start + MIRROR)
            block = _squared(points[:, part], length[:, part], points[:, start:], length[:, start:])
            squared[:, part, start:] = block
            squared[:, start:, part] = block.transpose(1, 2)
    squared.diagonal(dim1=1, dim2=2).zero_()
    return squared


def _mean_smallest(squared: Tensor, count: int) -> Tensor:
    """(B, R) mean of the `count` smallest of each row (B, R, N), summed in ascending order.

    Of rows cut into groups the `count` with the smallest minima hold them all: only those are searched.
    """
    columns = squared.shape[2]
    size = max(1, math.isqrt(columns // max(1, 2 * count)))
    groups = columns // size
    if size > 1 and groups > count:
        spread = squared[..., : size * groups].unflatten(2, (size, groups))
        best = spread.amin(2).topk(count, dim=2, largest=False, sorted=False).indices
        chosen = spread.gather(3, best[:, :, None].expand(-1, -1, size, -1)).flatten(2)
        squared = torch.cat((chosen, squared[..., size * groups :]), dim=2)
    return squared.topk(count, dim=2, largest=False).values.mean(dim=2)


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
    return torch.cat([_peaks(*_points(part), neighbors)[0] for part in features.split(_together(features))])


def _together(features: Tensor) -> int:
    """Batch entries whose distances make one block."""
    return max(1, at_once(BLOCK, features.device) // max(1, features.shape[1] ** 2))


def _peaks(points: Tensor, length: Tensor, neighbors: int) -> tuple[Tensor, Tensor | None]:
    """`peak_scores` of (B, N, D) points and their squared lengths; and their distances (B, N, N) where they are held."""
    batch, count, _ = points.shape
    held = _all_squared(points, length) if count <= HOLD else None
    step = max(1, at_once(BLOCK if held is not None else STREAM, points.device) // max(1, batch * count))
    parts = [slice(start, start + step) for start in range(0, count, step)]

    def distances(part: slice) -> Tensor:
        if held is not None:
            return held[:, part]
        squared = _squared(points[:, part], length[:, part], points, length)
        squared.diagonal(part.start, dim1=1, dim2=2).zero_()
        return squared

    spread, largest = torch.empty_like(length), length.new_zeros(batch, 1)
    for part in parts:
        squared = distances(part)
        spread[:, part] = _mean_smallest(squared, min(neighbors, count))
        largest = torch.maximum(largest, squared.amax(dim=(1, 2))[:, None])
    order = spread.argsort(dim=1, stable=True)  # the densest first, of equally dense ones the first
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(count, device=order.device).expand_as(order)).int()
    apart = torch.empty_like(length)
    for part in parts:
        denser = rank[:, None] < rank[:, part, None]
        apart[:, part] = torch.where(denser, distances(part), torch.inf).amin(dim=2)
    return torch.minimum(apart, largest).log() / 2 - spread, held


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
    if not 1 <= clusters <= features.shape[1]:
        raise ValueError(f"clusters: {clusters} is given; {features.shape[1]} points allow 1..{features.shape[1]}")
    found = [_clustered(part, clusters, neighbors) for part in features.split(_together(features))]
    return torch.cat([labels for labels, _ in found]), torch.cat([centres for _, centres in found])


def _clustered(features: Tensor, clusters: int, neighbors: int) -> tuple[Tensor, Tensor]:
    """`dpc_knn` of batch entries that make one block."""
    batch, count, width = features.shape
    points, length = _points(features)
    score, held = _peaks(points, length, neighbors)
    centres = score.argsort(dim=1, descending=True, stable=True)[:, :clusters].sort(dim=1).values
    if held is not None:
        labels = held.gather(1, centres[:, :, None].expand(-1, -1, count)).argmin(dim=1)
    else:
        chosen, chosen_length = points.gather(1, centres[:, :, None].expand(-1, -1, width)), length.gather(1, centres)
        parts = torch.arange(count).split(max(1, at_once(BLOCK, points.device) // (batch * clusters)))
        rows = [slice(int(part[0]), int(part[-1]) + 1) for part in parts]
        near = [_squared(points[:, row], length[:, row], chosen, chosen_length).argmin(dim=2) for row in rows]
        labels = torch.cat(near, dim=1)
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
        for part in alike.split(max(1, min(at_once(BLOCK, group.device) // rows**2, 2**15 // rows))):
            yield order[part[:, None] + torch.arange(rows, device=group.device)], name


def nearest(rows: Tensor, targets: Tensor) -> Tensor:
    """(R,) int64: for each of rows (R, D) the most similar of targets (K, D) by cosine, ties to the first; streamed."""
    scaled = unit(targets).t()
    parts = rows.split(max(1, at_once(STREAM, rows.device) // max(1, len(targets))))
    return torch.cat([(part.float() @ scaled).max(dim=1).indices for part in parts])  # a row's length changes no choice


def slot_means(rows: Tensor, slot: Tensor, slots: int, weight: Tensor | None = None) -> Tensor:
    """(slots, D) float32: weighted mean of rows (R, D) that share a slot, 0 where none does; the same on every run.

    Args:
        slot: (R,) int64 in 0..slots-1.
        weight: (R,) not negative; None is 1.
    """
    order, lengths = slot.argsort(stable=True), torch.bincount(slot, minlength=slots)
    share = None if weight is None else weight.float()
    mass = lengths.float()
    if share is not None:
        mass = torch.segment_reduce(share[order], "sum", lengths=lengths, axis=0, unsafe=True)
    # sums over sorted runs: in the same order on every run, which scattered additions on a GPU are not
    total = functional.embedding_bag(
        order, rows.float(), lengths.cumsum(0) - lengths, mode="sum",
        per_sample_weights=None if share is None else share[order],
    )  # fmt: skip
    return total / torch.where(mass > 0, mass, 1.0)[:, None]
