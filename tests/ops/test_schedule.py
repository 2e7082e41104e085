"""Counts over several pruning points."""

import numpy as np
import pytest

from videoprune.ops.schedule import percentile_counts


@pytest.mark.parametrize("percent", [0, 1, 12.5, 30, 50, 70, 99, 99.9])
@pytest.mark.parametrize("total", [0, 1, 2, 3, 10, 11, 71, 101, 1000, 2049])
def test_counts_are_those_of_numpys_percentile(total: int, percent: float) -> None:
    rng, alive, want = np.random.default_rng(total), total, []
    for _ in range(3):
        score = rng.permutation(alive).astype(np.float64) if alive else np.zeros(0)
        if alive:
            exact = np.percentile(score, percent, method="linear")
            alive = int((score >= exact - 1e-9).sum())
        want.append(alive)
    assert percentile_counts(total, [percent] * 3) == want


def test_a_budget_stretches_the_shares() -> None:
    assert percentile_counts(1000, [30, 30, 30]) == [700, 490, 343]
    assert percentile_counts(1000, [30, 30, 30], final=343) == [700, 490, 343]
    stretched = percentile_counts(1000, [30, 30, 30], final=10)
    assert stretched == [1000 - 452, 1000 - 768, 10]  # 990 leave: 300, 510 and 657 parts of 657
    assert percentile_counts(1000, [30, 30, 30], at_most=50) == [700, 490, 50]
    assert percentile_counts(40, [30, 30], at_most=50) == [28, 19]
    assert percentile_counts(0, [30, 30], final=0) == [0, 0]
    assert percentile_counts(9, [0, 0]) == [9, 9]
