"""Cosine similarities, always in float32 whatever comes in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from videoprune.ops.blocks import at_once

CHUNK = 2**17  # numbers of a block of products, which stays in the nearest caches


def unit(rows: Tensor) -> Tensor:
    """Rows (..., D) scaled to length 1 in float32; a zero row (black, padding) stays zero and is like nothing."""
    return functional.normalize(rows.float(), dim=-1, eps=1e-12)


def inverse_norm(rows: Tensor) -> Tensor:
    """1 / length of rows (..., D), float32; 0 for a zero row, which is like nothing."""
    rows = rows.float() if rows.dtype == torch.float64 else rows
    length = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32)
    return torch.where(length > 1e-12, 1 / length, 0.0)


def cosine(left: Tensor, right: Tensor) -> Tensor:
    """Cosine of every pair: left (..., N, D), right (..., M, D) -> (..., N, M).

    The products are scaled, not the rows: there are fewer of them than numbers in the rows.
    """
    out = left.float() @ right.float().transpose(-1, -2)
    ours = inverse_norm(left)
    theirs = ours if right is left else inverse_norm(right)
    return out.mul_(ours[..., None]).mul_(theirs[..., None, :])


def pair_cosine(rows: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Cosine of row left[p] with row right[p]: (R, D), (P,), (P,) -> (P,) float32; streamed."""
    scale, step = inverse_norm(rows), max(1, at_once(CHUNK, rows.device) // max(1, rows.shape[-1]))
    parts = [
        (rows[a].float() * rows[b].float()).sum(-1) for a, b in zip(left.split(step), right.split(step), strict=True)
    ]
    return torch.cat(parts) * scale[left] * scale[right]


def adjacent_cosine(rows: Tensor) -> Tensor:
    """Cosine of each row with the next: (F, D) -> (F-1,), or (F, N, D) -> (F-1, N) for the same places."""
    before, after = rows[:-1].flatten(0, -2), rows[1:].flatten(0, -2)
    if not len(before):
        return rows.new_zeros(rows.shape[:-1])[1:].float()
    step = max(1, at_once(CHUNK, rows.device) // max(1, rows.shape[-1]))
    seen = [
        (inverse_norm(a), (a.float() * b.float()).sum(-1))
        for a, b in zip(before.split(step), after.split(step), strict=True)
    ]
    scale = torch.cat([norm for norm, _ in seen] + [inverse_norm(rows[-1:]).flatten()]).view(rows.shape[:-1])
    return torch.cat([product for _, product in seen]).view(scale[1:].shape) * scale[:-1] * scale[1:]


def distance(left: Tensor, right: Tensor) -> Tensor:
    """Euclidean distance of every pair: left (B, N, D), right (B, M, D) -> (B, N, M) float32, by one matrix product."""
    left, right = left.float(), right.float()
    ours = torch.linalg.vector_norm(left, dim=-1).square_()
    theirs = torch.linalg.vector_norm(right, dim=-1).square_()
    squared = torch.bmm(left, right.transpose(1, 2))
    torch.sub(theirs[:, None], squared, alpha=2, out=squared).add_(ours[..., None])
    return squared.clamp_(min=0).sqrt_()


def smallest(score: Tensor, count: Tensor | int) -> Tensor:
    """Which entries of each row are among the `count` smallest: (..., N) -> (..., N) bool; ties go to the lower index.

    `count` is a number, or one number a row with a last axis of 1, on the device: nothing is read back from there.
    """
    order = torch.argsort(score, dim=-1, stable=True)
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(score.shape[-1], device=score.device).expand_as(order)
    )
    return rank < count
