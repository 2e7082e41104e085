"""Greedy farthest points by cosine distance: the Max-Min Diversity selection, no row taken twice."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from videoprune.ops.blocks import at_once
from videoprune.ops.similarity import unit

HOLD = 8192  # most rows whose matrix of similarities is held; above that one row of it is computed a step
BLOCK = 2**22  # similarities in flight at once


def _blocks(scaled: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The upper triangle of scaled·scaledᵀ by blocks of rows, -inf on the diagonal: first row, (b, N - first)."""
    step = max(1, at_once(BLOCK, scaled.device) // len(scaled))
    for start in range(0, len(scaled), step):
        part = scaled[start : start + step] @ scaled[start:].t()
        part.diagonal().fill_(-torch.inf)
        yield start, part


def nearest_similarity(scaled: Tensor) -> Tensor:
    """(N,) cosine of each row of scaled (N, D), of length 1, with the row most like it; -inf for a single one."""
    best = torch.full((len(scaled),), -torch.inf, device=scaled.device)
    for start, part in _blocks(scaled):  # the matrix is symmetric: a block serves its rows and its columns
        torch.maximum(best[start:], part.amax(dim=0), out=best[start:])
        end = start + len(part)
        torch.maximum(best[start:end], part.amax(dim=1), out=best[start:end])
    return best


def farthest_points(features: Tensor, count: int) -> Tensor:
    """Take the row farthest from its nearest other row, then again and again the one farthest from all that are taken.

    A running vector holds each row's similarity to the nearest taken one, so that a step reads one row of similarities
    instead of all of the taken ones; a taken row leaves the contest for good, however alike others are. Ties go to the
    lower index.

    Args:
        features: (N, D).
        count: rows to take, at most N.

    Returns:
        (count,) int64 in picking order.
    """
    scaled = unit(features)
    rows = len(scaled)
    if not 0 <= count <= rows:
        raise ValueError(f"count: {count} is given; {rows} rows allow 0..{rows}")
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=features.device)
    table = None
    if rows <= HOLD:
        table = scaled.new_empty(rows, rows)
        for start, part in _blocks(scaled):
            table[start : start + len(part), start:] = part
            table[start:, start : start + len(part)] = part.t()
        pick = table.amax(dim=1).argmin(dim=0, keepdim=True)
    else:
        pick = nearest_similarity(scaled).argmin(dim=0, keepdim=True)
    picked = [pick]
    closest = torch.full((rows,), -torch.inf, device=scaled.device)
    for _ in range(count - 1):
        row = (scaled @ scaled.index_select(0, pick)[0]) if table is None else table.index_select(0, pick)[0]
        torch.maximum(closest, row, out=closest)
        closest.index_fill_(0, pick, torch.inf)  # of no finite similarity: never the smallest again
        pick = closest.argmin(dim=0, keepdim=True)
        picked.append(pick)
    return torch.cat(picked)
