"""How sure a measured share is: intervals for shares and for paired differences. Plain numbers, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959963984540054  # of the standard normal distribution, two-sided 95 %
DRAWS = 2000


def wilson(right: float, count: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share (E. B. Wilson, 1927): it stays inside 0 and 1 and holds for small counts.

    Args:
        right: successes, 0 to `count`; may be a sum of scores between 0 and 1.
        count: trials; with none, the interval is everything.
    """
    if not count:
        return 0.0, 1.0
    share, square = right / count, z * z / count
    middle = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def macro_interval(
    groups: Sequence[Sequence[tuple[str, float]]], draws: int = DRAWS, seed: int = 0
) -> tuple[float, float, float]:
    """Mean over kinds of the mean score of each kind, with its 95 % bootstrap interval.

    Whole groups (films) are drawn with replacement, since the questions of one film stand or fall together.

    Args:
        groups: for each film its (kind, score) pairs; for a paired difference the scores are differences.

    Returns:
        (mean, low, high); not-a-numbers where there is nothing.
    """
    kinds = sorted({kind for group in groups for kind, _ in group})
    if not kinds:
        return math.nan, math.nan, math.nan
    column = {kind: number for number, kind in enumerate(kinds)}
    total, count = np.zeros((len(groups), len(kinds))), np.zeros((len(groups), len(kinds)))
    for row, group in enumerate(groups):
        for kind, score in group:
            total[row, column[kind]] += score
            count[row, column[kind]] += 1

    def mean(times: np.ndarray) -> float:
        counts = times @ count
        return float(np.mean((times @ total)[counts > 0] / counts[counts > 0]))

    generator = np.random.default_rng(seed)
    drawn = [
        mean(np.bincount(generator.integers(len(groups), size=len(groups)), minlength=len(groups)).astype(float))
        for _ in range(draws)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return mean(np.ones(len(groups))), float(low), float(high)
