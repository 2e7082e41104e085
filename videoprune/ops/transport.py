"""Entropic optimal transport, streamed: the cost comes in blocks of columns, and no matrix of tokens × tokens is kept.

Everything is in the log domain and float32. P_ij = exp(f_i + g_j - C_ij/ε); an entry of zero mass takes no part.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from videoprune.errors import UsageError

SPREAD = 60.0  # of the logits: within it no entry of a kernel vanishes in float32 beside the largest
FLOOR = -1e30  # log of nothing, finite, so that an empty sum minus an empty sum is no NaN

Cost = Callable[[int, int], Tensor]  # cost(start, stop) -> (..., N, stop - start)


def check_finish(finish: str) -> None:
    """Refuse an end of the Sinkhorn updates that does not exist."""
    if finish not in ("cols", "rows"):
        raise UsageError(
            f"finish: {finish!r} is given; allowed are 'cols' and 'rows' (which ends on the row marginals)"
        )


def padded_groups(group: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lay entries out by group, each padded to the longest; the longest is the one number read from the device.

    Args:
        group: (V,) int64 ascending, in 0..groups-1.
        groups: their number.

    Returns:
        entry (groups, N) int64 in 0..V-1, 0 on padding; valid (groups, N) bool; place (V,) int64, column of each entry.
    """
    length = torch.bincount(group, minlength=groups)
    index = torch.arange(len(group), device=group.device)
    place = index - (length.cumsum(0) - length)[group]
    entry = torch.zeros(groups, int(length.max()), dtype=torch.int64, device=group.device)
    entry[group, place] = index
    return entry, torch.arange(entry.shape[1], device=group.device) < length[:, None], place


def cost_range(cost: Cost, valid: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest cost between valid tokens, valid (..., N): two (..., 1, 1); 0 and 0 where there are none."""
    low, high = torch.tensor(torch.inf, device=valid.device), torch.tensor(-torch.inf, device=valid.device)
    for start in range(0, valid.shape[-1], block):
        stop = min(start + block, valid.shape[-1])
        missing, part = ~(valid[..., :, None] & valid[..., None, start:stop]), cost(start, stop)
        low = torch.minimum(low, part.masked_fill(missing, torch.inf).amin((-2, -1), keepdim=True))
        high = torch.maximum(high, part.masked_fill(missing, -torch.inf).amax((-2, -1), keepdim=True))
    there = low <= high
    return torch.where(there, low, 0.0), torch.where(there, high, 0.0)


def transport_row_sums(
    cost: Cost,
    source: Tensor,
    target: Tensor,
    epsilon: float,
    iterations: int = 1,
    finish: str = "cols",
    block: int = 1024,
) -> Tensor:
    """Mass that leaves each source token, Σ_j P_ij, after some Sinkhorn updates from f = 0.

    With finish="cols" the updates are: columns, (rows, columns), …, with `iterations` updates of the columns. The first
    alone is the one-sided plan P_ij = q_j · softmax_i(-C_ij/ε): only the target's mass is prescribed, and the row sums say
    how much of it each source token draws. With finish="rows" each iteration is (columns, rows); the last update then
    makes Σ_j P_ij the source mass exactly, whatever the cost.

    Args:
        cost: gives the columns start..stop-1 of C as (..., N, stop - start), the same at every call.
        source: (..., N) mass p of each source token.
        target: (..., M) mass q of each target token.
        epsilon: of the entropic term, above 0.
        iterations: how often the columns are updated.
        finish: "cols" or "rows".
        block: columns at a time.

    Returns:
        (..., N) float32.
    """
    check_finish(finish)
    rows, columns = source.float().log(), target.float().log()
    parts = [slice(start, min(start + block, target.shape[-1])) for start in range(0, target.shape[-1], block)]
    held = -cost(0, target.shape[-1]).float() / epsilon if len(parts) == 1 else None

    def gain(part: slice) -> Tensor:
        return held if held is not None else -cost(part.start, part.stop).float() / epsilon

    def sweep(potential: Tensor) -> tuple[Tensor, Tensor]:
        """Update the columns, and sum the plan's rows without f: g, and LSE_j(g_j - C_ij/ε)."""
        out, total = torch.empty_like(columns), torch.full_like(rows, FLOOR)
        for part in parts:
            logits = gain(part)
            drawn = (logits + potential[..., None]).logsumexp(-2).clamp(min=FLOOR)
            out[..., part] = columns[..., part] - drawn
            total = torch.logaddexp(total, (logits + out[..., None, part]).logsumexp(-1).clamp(min=FLOOR))
        return out, total

    potential = torch.where(source > 0, 0.0, -torch.inf)
    if held is not None and (iterations == 1 or bool(held.amax() - held.amin() < SPREAD)):
        return _scaled(held, source.float(), target.float(), iterations, finish)
    for step in range(iterations):
        _, total = sweep(potential)
        if finish == "rows" or step < iterations - 1:
            potential = rows - total
    return (potential + total).exp()


def _scaled(gain: Tensor, source: Tensor, target: Tensor, iterations: int, finish: str) -> Tensor:
    """The same sums by scaling the kernel exp(-C/ε), each column divided by its largest entry: products, no logarithms.

    Right where the kernel spans few enough orders of magnitude, and for a single update of the columns always: a column
    that is updated first sums to its mass whatever it was divided by.
    """
    gain = gain.masked_fill(~(source > 0)[..., None], -torch.inf)
    largest = gain.amax(-2, keepdim=True)
    kernel = gain.sub_(torch.where(largest == -torch.inf, 0.0, largest)).exp_()
    rows = (source > 0).float()
    total = rows
    for step in range(iterations):
        drawn = torch.matmul(rows[..., None, :], kernel)[..., 0, :]
        columns = torch.where(drawn > 0, target / drawn, 0.0)
        total = torch.matmul(kernel, columns[..., None])[..., 0]
        if finish == "rows" or step < iterations - 1:
            rows = torch.where(total > 0, source / total, 0.0)
    return rows * total
