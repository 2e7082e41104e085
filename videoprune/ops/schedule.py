"""Counts of tokens over several pruning points."""

from __future__ import annotations

import math
from collections.abc import Sequence


def counts_towards(total: int, shares: Sequence[float], final: int | None, at_most: int | None = None) -> list[int]:
    """Tokens alive after each point: int(total·share), or with `final` that line stretched so that it ends there.

    `at_most` caps the last point where there is no `final`, which has its cap already.
    """
    if final is None:
        counts = [max(min(1, total), int(total * share + 1e-9)) for share in shares]
        return counts if at_most is None else [*counts[:-1], min(counts[-1], at_most)]
    return [total - int((total - final) * (1 - share) / (1 - shares[-1]) + 0.5) for share in shares]


def percentile_counts(
    total: int, percentiles: Sequence[float], final: int | None = None, at_most: int | None = None
) -> list[int]:
    """Tokens alive after each point, where those below a percentile of the scores of the ones alive leave.

    Of n distinct scores ceil(p/100 · (n-1)) lie below their p-th percentile (interpolated as numpy does).

    Args:
        total: tokens that come in.
        percentiles: one a point, 0 to below 100.
        final: where given, the shares are stretched so that the last point leaves exactly that.
        at_most: cap of the last point, without `final`.
    """
    counts, alive, shares = list[int](), total, list[float]()
    for percentile in percentiles:
        alive -= max(0, math.ceil(percentile * (alive - 1) / 100 - 1e-9))
        counts.append(alive)
        shares.append((shares[-1] if shares else 1.0) * (1 - percentile / 100))
    if final is not None:
        return counts_towards(total, shares, final)
    if at_most is not None:
        counts[-1] = min(counts[-1], at_most)
    return counts
