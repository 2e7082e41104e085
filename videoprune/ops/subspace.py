"""Leading principal directions, by subspace iteration where a full decomposition would cost, and what they leave unexplained."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from videoprune.ops.blocks import at_once

ITERATIONS, SPARE = 8, 16  # products with the covariance, and directions that are carried along
SMALL = 256  # rows or columns up to which the decomposition is done in full: exact, and no slower
CHUNK = 2**20  # numbers of a block of rows


def _blocks(rows: Tensor) -> Iterator[Tensor]:
    """Rows in float32, block by block: no copy of all of them is made."""
    step = max(1, at_once(CHUNK, rows.device) // max(1, rows[..., :1, :].numel()))
    for part in rows.split(step, dim=-2):
        yield part.float()


def _mean(rows: Tensor) -> Tensor:
    return rows.mean(-2, keepdim=True, dtype=torch.float32)


def principal_directions(
    rows: Tensor, rank: int, iterations: int = ITERATIONS, oversample: int = SPARE, seed: int = 0
) -> Tensor:
    """The `rank` directions of largest variance: exact for small problems, else by block power iteration with a
    Rayleigh-Ritz step at the end.

    Each iteration multiplies the error of direction k by λ_{rank+oversample+1}/λ_k. The start is drawn on the CPU from
    `seed` alone, so that runs repeat. Cost: (2·iterations + 1)·2·N·D·(rank + oversample) FLOPs, and `iterations` + 1
    readings of the rows.

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
    mean, carried = _mean(rows), min(rank + oversample, width)
    if min(count, width) <= SMALL:
        return _signed(torch.linalg.svd(rows.float() - mean, full_matrices=False).Vh[..., :rank, :].transpose(-1, -2))
    start = torch.randn(width, carried, generator=torch.Generator().manual_seed(seed))
    basis = torch.linalg.qr(start.to(rows.device))[0].expand(*rows.shape[:-2], width, carried)
    for _ in range(iterations):
        product = torch.zeros_like(basis).transpose(-1, -2).contiguous()
        at_mean = mean @ basis
        for part in _blocks(rows):  # only what is projected is centred: it is far smaller than the rows
            shadow = (part @ basis - at_mean).transpose(-1, -2)
            product += shadow @ part - shadow.sum(-1, keepdim=True) @ mean
        basis = torch.linalg.qr(product.transpose(-1, -2))[0]
    seen = torch.zeros(*rows.shape[:-2], carried, carried, device=rows.device)
    for part in _blocks(rows):
        shadow = part @ basis - mean @ basis
        seen += shadow.transpose(-1, -2) @ shadow
    return _signed(basis @ torch.linalg.eigh(seen)[1].flip(-1)[..., :rank])  # eigh sorts upwards


def _signed(directions: Tensor) -> Tensor:
    """The same directions, the component of each that is largest in size positive."""
    largest = directions.gather(-2, directions.abs().argmax(-2, keepdim=True))
    return directions * torch.where(largest < 0, -1.0, 1.0)


def unexplained(rows: Tensor, directions: Tensor) -> Tensor:
    """Squared distance of each centred row from the span: (..., N, D), (..., D, r) orthonormal -> (..., N) float32."""
    mean = _mean(rows)
    parts = (part - mean for part in _blocks(rows))
    left = [part.square().sum(-1) - (part @ directions).square().sum(-1) for part in parts]
    return torch.cat(left, dim=-1).clamp(min=0)
