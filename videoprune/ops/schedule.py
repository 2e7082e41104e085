"""Counts of tokens over several pruning points."""

from __future__ import annotations

from collections.abc import Sequence


def counts_towards(total: int, shares: Sequence[float], final: int | None) -> list[int]:
    """Tokens alive after each point: int(total·share), or with `final` that line stretched so that it ends there."""
    if final is None:
        return [max(min(1, total), int(total * share + 1e-9)) for share in shares]
    return [total - int((total - final) * (1 - share) / (1 - shares[-1]) + 0.5) for share in shares]
