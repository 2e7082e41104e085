"""95 % intervals and tests: Wilson, bootstrap by film, McNemar. Imports numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
RESAMPLES = 2000
CELLS = 1 << 22  # weights held at a time


def wilson(correct: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share (J. Am. Stat. Assoc. 22, 1927); (0, 1) of nothing."""
    if total == 0:
        return 0.0, 1.0
    share, square = correct / total, z * z
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = z / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def by_film(
    films: Sequence[str],
    tables: Sequence[np.ndarray],
    statistic: Callable[..., np.ndarray],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """2.5 and 97.5 percentiles of a statistic when whole films are drawn with replacement: a film's questions stand together.

    Args:
        films: (n,) film of each question.
        tables: arrays (n, k) of a question's contributions; each is summed over the drawn questions.
        statistic: of the summed tables, each (resamples, k), to (resamples,); NaN where it is not defined.
        seed: of the draws.

    Returns:
        (NaN, NaN) for fewer than two films: one tells nothing of how others would come out.
    """
    names, film_of = np.unique(np.asarray(films, dtype=object).astype(str), return_inverse=True)
    if len(names) < 2:
        return math.nan, math.nan
    summed = []
    for table in tables:
        per_film = np.zeros((len(names), table.shape[1]))
        np.add.at(per_film, film_of, table)
        summed.append(per_film)
    rng = np.random.default_rng(seed)
    found = []
    step = max(1, CELLS // len(names))
    for start in range(0, resamples, step):
        weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=min(step, resamples - start))
        found.append(statistic(*(weights @ table for table in summed)))
    values = np.concatenate(found)
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def bounds(pair: tuple[float, float]) -> list[float | None]:
    """An interval as JSON has it: None for NaN."""
    return [None if math.isnan(value) else value for value in pair]


def macro_of(correct: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Mean of the tasks' shares: (…, tasks) twice -> (…); tasks without a question do not count."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.where(total > 0, correct / total, np.nan)
    there = (total > 0).sum(-1)
    return np.where(there > 0, np.nansum(shares, -1) / np.maximum(there, 1), np.nan)


def micro_of(correct: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Share of all questions: (…, tasks) twice -> (…)."""
    count = total.sum(-1)
    return np.where(count > 0, correct.sum(-1) / np.maximum(count, 1), np.nan)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of the exact binomial test that the two discordant counts come from a fair coin."""
    total = only_first + only_second
    tail = sum(math.comb(total, k) for k in range(min(only_first, only_second) + 1))
    return float(min(1.0, 2 * tail / 2**total))
