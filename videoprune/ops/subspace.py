"""Leading principal directions by subspace iteration, and what they leave unexplained; never a full decomposition."""

from __future__ import annotations

import torch
from torch import Tensor


def principal_directions(rows: Tensor, rank: int, iterations: int = 4, oversample: int = 8, seed: int = 0) -> Tensor:
    """The `rank` directions of largest variance, by block power iteration with a Rayleigh-Ritz step at the end.

    Each iteration multiplies the error of direction k by λ_{rank+oversample+1}/λ_k. The start is drawn on the CPU from
    `seed` alone, so that runs repeat. Cost: (2·iterations + 1)·2·N·D·(rank + oversample) FLOPs.

    Args:
        rows: (..., N, D), each batch entry on its own.
        rank: at most min(N, D).
        iterations: products with the covariance, at least 1.
        oversample: further directions that are carried along.
        seed: of the start.

    Returns:
        (..., D, rank) float32, orthonormal, by falling variance; the component largest in size is positive.
    """
    count, width = rows.shape[-2:]
    if not 1 <= rank <= min(count, width):
        raise ValueError(f"rank: {rank} is given; {count} rows of width {width} allow 1..{min(count, width)}")
    if iterations < 1:
        raise ValueError(f"iterations: {iterations} is given; at least 1 is needed")
    centred = rows.float()
    centred = centred - centred.mean(-2, keepdim=True)
    carried = min(rank + oversample, width)
    start = torch.randn(width, carried, generator=torch.Generator().manual_seed(seed))
    basis = torch.linalg.qr(start.to(rows.device))[0].expand(*rows.shape[:-2], width, carried)
    for _ in range(iterations):
        basis = torch.linalg.qr(centred.transpose(-1, -2) @ (centred @ basis))[0]
    seen = centred @ basis
    vectors = torch.linalg.eigh(seen.transpose(-1, -2) @ seen)[1].flip(-1)[..., :rank]  # eigh sorts upwards
    directions = basis @ vectors
    largest = directions.gather(-2, directions.abs().argmax(-2, keepdim=True))
    return directions * torch.where(largest < 0, -1.0, 1.0)


def unexplained(rows: Tensor, directions: Tensor) -> Tensor:
    """Squared distance of each centred row from the span: (..., N, D), (..., D, r) orthonormal -> (..., N) float32."""
    centred = rows.float()
    centred = centred - centred.mean(-2, keepdim=True)
    return (centred.square().sum(-1) - (centred @ directions).square().sum(-1)).clamp(min=0)
