"""The selective scan of state-space models, and the paths along which vision models run it over a grid."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

CACHED = 1 << 16  # decays that are held at a time
START, RIGHT, LEFT, UP, DOWN = range(5)  # the move into a place of a path


def selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, chunk: int | None = None
) -> Tensor:
    """h_t = exp(delta_t A) h_(t-1) + delta_t B_t x_t, y_t = C_t h_t + D x_t, from h = 0, in float32 (Mamba, arXiv 2312.00752).

    Chunk by chunk: the decays of a chunk are computed at once, its states one after another, the last one is carried on.
    Memory follows the chunk and not the sequence; every factor is at most 1, so that nothing overflows. A token with delta 0
    leaves the state as it is.

    Args:
        x: (L, F, E) inputs of F sequences, time first. delta: (L, F, E) step sizes, 0 or more.
        A: (E, n) negative. B, C: (L, F, n). D: (E,) or None.
        chunk: tokens at a time; changes rounding alone. None takes as many as stay in a processor's cache.

    Returns:
        (L, F, E) in the dtype of x.
    """
    kind, x, delta, B, C = x.dtype, x.float(), delta.float(), B.float(), C.float()
    rate = A.float().t().contiguous()  # (n, E): channels lie together
    given, state = delta * x, x.new_zeros(x.shape[1], *rate.shape)
    chunk = chunk or max(1, CACHED // max(1, state.numel()))
    learning = torch.is_grad_enabled() and any(each.requires_grad for each in (x, delta, A, B, C))
    parts = list[Tensor]()
    for steps in zip(
        *(each.split(chunk) for each in (delta, given, B, C)), strict=True
    ):  # a split has one cheap gradient
        decays = torch.exp(steps[0][:, :, None] * rate).unbind()
        for decay, entering, into, out_of in zip(decays, *(each.unbind() for each in steps[1:]), strict=True):
            # in place where no gradient asks for the state before: half the time on a CPU
            state = state * decay if learning else state.mul_(decay)
            add = state.addcmul if learning else state.addcmul_
            state = add(entering[:, None], into[..., None])
            parts.append((state * out_of[..., None]).sum(dim=1))
    out = torch.stack(parts) if parts else torch.zeros_like(x)
    return (out if D is None else out + D.float() * x).to(kind)


@cache
def paths(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """The four continuous paths of PlainMamba (arXiv 2403.17695) over a grid: along rows, back, along columns, back.

    Each turns round at the end of a row (column), so that neighbours on the path are neighbours on the grid.

    Returns:
        order (4, L) int64, the place in raster order that is the p-th of each path, and move (4, L) int64, the direction
        from the place before into it: 0 at the start, 1 right, 2 left, 3 up, 4 down.
    """
    place = torch.arange(rows * columns).view(rows, columns)
    forth = torch.stack([row if number % 2 == 0 else row.flip(0) for number, row in enumerate(place)]).flatten()
    down = torch.stack([col if number % 2 == 0 else col.flip(0) for number, col in enumerate(place.t())]).flatten()
    order = torch.stack((forth, forth.flip(0), down, down.flip(0)))
    row, column = order // columns, order % columns
    move = torch.full_like(order, START)
    right, below = column.diff(dim=1), row.diff(dim=1)
    for way, hit in ((RIGHT, right == 1), (LEFT, right == -1), (UP, below == -1), (DOWN, below == 1)):
        move[:, 1:][hit] = way
    return order, move


def aligned(order: Tensor, move: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Each path over the survivors alone, in the order in which it meets them on the whole grid.

    Token pruning for vision state-space models (arXiv 2409.18962) calls this pruning-aware hidden-state alignment: the state
    that leaves a survivor is the one that enters the next, as if the places between had step size 0. Formula reconstructed.

    Args:
        order, move: (P, L) of `paths`.
        unit: (F, K) places that are left, ascending in each frame.

    Returns:
        order (P, F, K) int64 of ranks 0..K-1, and move (P, F, K) int64 as on the whole grid.
    """
    when = torch.argsort(order, dim=1)  # (P, L): how late each place comes
    met, rank = when[:, unit].sort(dim=-1)
    return rank, move[:, None].expand(-1, len(unit), -1).gather(2, met)


def packed(count: int) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Survivors packed into a smaller grid of their own, strangers side by side: what the paper prunes against.

    Returns:
        order (4, K) and move (4, K) over ranks 0..K-1, and that grid (rows, columns); its last row may be short.
    """
    columns = math.isqrt(max(count - 1, 0)) + 1
    rows = -(-count // columns)
    order, move = paths(rows, columns)
    there = order < count
    return order[there].view(4, count), move[there].view(4, count), (rows, columns)


def scan_flops(tokens: int, channels: int, states: int) -> float:
    """FLOPs of one scan: 9 for each token, channel and state, as counts of Mamba have it."""
    return 9.0 * tokens * channels * states
