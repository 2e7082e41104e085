"""Cosine similarities, always in float32 whatever comes in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def unit(rows: Tensor) -> Tensor:
    """Rows (..., D) scaled to length 1 in float32; a zero row (black, padding) stays zero and is like nothing."""
    return functional.normalize(rows.float(), dim=-1, eps=1e-12)


def cosine(left: Tensor, right: Tensor) -> Tensor:
    """Cosine of every pair: left (..., N, D), right (..., M, D) -> (..., N, M)."""
    return unit(left) @ unit(right).transpose(-1, -2)


def adjacent_cosine(rows: Tensor) -> Tensor:
    """Cosine of each row with the next: (F, D) -> (F-1,), or (F, N, D) -> (F-1, N) for the same places."""
    scaled = unit(rows)
    return (scaled[:-1] * scaled[1:]).sum(dim=-1)


def smallest(score: Tensor, count: Tensor | int) -> Tensor:
    """Which entries of each row are among the `count` smallest: (..., N) -> (..., N) bool; ties go to the lower index.

    `count` is a number, or one number a row with a last axis of 1, on the device: nothing is read back from there.
    """
    order = torch.argsort(score, dim=-1, stable=True)
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(score.shape[-1], device=score.device).expand_as(order)
    )
    return rank < count
