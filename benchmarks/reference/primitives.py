"""The shared mathematics as papers write it: whole matrices, no streaming. Shapes as in `videoprune.ops`."""

from __future__ import annotations

import torch
from torch import Tensor


def eager_attention(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """(H, S, S) causal probabilities as an eager layer returns them; keys repeated for grouped queries."""
    key = key.repeat_interleave(query.shape[0] // key.shape[0], dim=0)
    logits = query @ key.transpose(1, 2) * scale
    mask = torch.full(logits.shape[1:], -torch.inf).triu(1)
    return (logits + mask).softmax(-1)


def attention_rows(query: Tensor, key: Tensor, scale: float, rows: Tensor) -> Tensor:
    """The wanted rows of the eager matrix: (H, R, S)."""
    return eager_attention(query, key, scale)[:, rows]


def column_mean(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """(H, S): mean of every column."""
    return eager_attention(query, key, scale).mean(1)


def pagerank(query: Tensor, key: Tensor, scale: float, iterations: int) -> Tensor:
    """(H, S): u from 1/S, `iterations` times u P."""
    matrix = eager_attention(query, key, scale)
    flow = torch.full((query.shape[0], 1, key.shape[1]), 1 / key.shape[1])
    for _ in range(iterations):
        flow = flow @ matrix
    return flow[:, 0]


def cosine(left: Tensor, right: Tensor) -> Tensor:
    """All pairs."""
    left = left / left.norm(dim=-1, keepdim=True)
    right = right / right.norm(dim=-1, keepdim=True)
    return left @ right.transpose(-1, -2)


def adjacent_cosine(frames: Tensor) -> Tensor:
    """(F-1, N) from (F, N, D)."""
    return torch.nn.functional.cosine_similarity(frames[:-1], frames[1:], dim=-1)


def bipartite(metric: Tensor, remove: int) -> tuple[Tensor, Tensor, Tensor]:
    """ToMe's matching: unmerged (B, N/2 - r, 1), merged (B, r, 1) places in the even set, their places in the odd set."""
    metric = metric / metric.norm(dim=-1, keepdim=True)
    scores = metric[..., ::2, :] @ metric[..., 1::2, :].transpose(-1, -2)
    best, place = scores.max(dim=-1)
    order = best.argsort(dim=-1, descending=True)[..., None]
    merged = order[..., :remove, :]
    return order[..., remove:, :], merged, place[..., None].gather(-2, merged)


def merge_mean(features: Tensor, plan: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The mean of what was matched: (B, N - r, D), unmerged even ones first."""
    unmerged, merged, goal = plan
    even, odd = features[..., ::2, :], features[..., 1::2, :]
    width = features.shape[-1]
    left = even.gather(-2, unmerged.expand(*unmerged.shape[:-1], width))
    source = even.gather(-2, merged.expand(*merged.shape[:-1], width))
    return torch.cat(
        (left, odd.scatter_reduce(-2, goal.expand(*goal.shape[:-1], width), source, reduce="mean")), dim=-2
    )


def farthest(features: Tensor, count: int) -> Tensor:
    """DivPrune's loop: the whole matrix of distances, and at each step the least distance to all that are taken."""
    distance = 1 - cosine(features, features)
    distance.diagonal().fill_(torch.inf)
    taken = torch.empty(count, dtype=torch.int64)
    taken[0] = distance.min(dim=1).values.argmax()
    for step in range(1, count):
        nearest = distance[taken[:step]].min(dim=0).values
        nearest[taken[:step]] = -torch.inf
        taken[step] = nearest.argmax()
    return taken


def dpc_knn(features: Tensor, clusters: int, neighbors: int) -> tuple[Tensor, Tensor]:
    """(B, N) labels and (B, clusters) centres, density with noise against ties, as in the published clusterings."""
    batch, count, width = features.shape
    distance = torch.cdist(features, features) / width**0.5
    near = distance.topk(neighbors, dim=-1, largest=False).values
    density = (-near.square().mean(dim=-1)).exp()
    density = density + torch.rand_like(density) * 1e-6
    denser = (density[:, None, :] > density[:, :, None]).float()
    largest = distance.flatten(1).max(dim=-1).values[:, None, None]
    apart = (distance * denser + largest * (1 - denser)).min(dim=-1).values
    centres = (apart * density).topk(clusters, dim=-1).indices
    labels = distance.gather(1, centres[:, :, None].expand(-1, -1, count)).argmin(dim=1)
    return labels.scatter(1, centres, torch.arange(clusters).expand(batch, -1)), centres


def sinkhorn(cost: Tensor, source: Tensor, target: Tensor, epsilon: float, iterations: int) -> Tensor:
    """(B, N) row sums of diag(u) K diag(v), K = exp(-C/ε), after `iterations` (columns, then rows but at the end)."""
    kernel = (-cost / epsilon).exp()
    left = torch.ones_like(source)
    right = torch.ones_like(target)
    for step in range(iterations):
        right = target / (left[:, None] @ kernel)[:, 0]
        if step < iterations - 1:
            left = source / (kernel @ right[..., None])[..., 0]
    return (left[..., None] * kernel * right[:, None]).sum(-1)


def top_per_group(score: Tensor, group: Tensor, quota: Tensor) -> Tensor:
    """Group by group."""
    chosen = []
    for number in range(len(quota)):
        rows = (group == number).nonzero()[:, 0]
        chosen.append(rows[score[rows].topk(int(quota[number])).indices])
    return torch.cat(chosen).sort().values


def top(score: Tensor, count: int) -> Tensor:
    """The best, ascending."""
    return score.topk(count).indices.sort().values


def principal_directions(rows: Tensor, rank: int) -> Tensor:
    """(D, rank) by a singular value decomposition."""
    return torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:rank].T


def static_windows(static: Tensor) -> list[tuple[int, int]]:
    """HoliTom's dynamic programme: every window's static places by a running and, then the best last window of each end."""
    frames = len(static) + 1
    best = [0.0] * (frames + 1)
    start = [0] * (frames + 1)
    value = torch.zeros(frames, frames)
    for first in range(frames - 1):
        through = static[first:].float().cumprod(dim=0).sum(dim=1)
        value[first, first + 1 :] = through * torch.arange(1, frames - first)
    for end in range(frames):
        totals = torch.tensor(best[: end + 1]) + value[: end + 1, end]
        start[end + 1] = int(totals.argmax())
        best[end + 1] = float(totals.max())
    windows, end = [], frames
    while end > 0:
        windows.append((start[end], end - 1))
        end = start[end]
    return windows[::-1]


def nearest(rows: Tensor, targets: Tensor) -> Tensor:
    """(R,) the most similar target by cosine."""
    return cosine(rows, targets).argmax(dim=1)


def group_means(rows: Tensor, slot: Tensor, slots: int) -> Tensor:
    """(slots, D) by scattered additions."""
    total = torch.zeros(slots, rows.shape[1]).index_add_(0, slot, rows)
    return total / torch.zeros(slots).index_add_(0, slot, torch.ones(len(slot))).clamp(min=1)[:, None]


def attention_rows_alone(query: Tensor, key: Tensor, start: int) -> Tensor:
    """Rows start.. of the causal matrix without the others, for papers that compute no more: (H, S - start, S)."""
    key = key.repeat_interleave(query.shape[0] // key.shape[0], dim=0)
    logits = query[:, start:] @ key.transpose(1, 2) * query.shape[2] ** -0.5
    future = torch.arange(key.shape[1]) > torch.arange(start, key.shape[1])[:, None]
    return logits.masked_fill(future, -torch.inf).softmax(-1)


def thin_evenly(free: Tensor, count: int) -> Tensor:
    """Evenly spaced ones of what is free, as a mask."""
    index = free.nonzero()[:, 0]
    return torch.zeros_like(free).index_fill_(0, index[torch.linspace(0, len(index) - 1, count).round().long()], True)
