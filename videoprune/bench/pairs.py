"""Two ways to do one thing, run in turn many times: the median of the ratios with its 95 % interval."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

CONFIDENCE = 0.95
Clock = Callable[[], float]


def clock_of(device: torch.device) -> Clock:
    """Process CPU time; on an accelerator wall time once it is done, since its work is not the process's."""
    if device.type == "cpu":
        return time.process_time

    def done() -> float:
        getattr(torch, device.type).synchronize()
        return time.perf_counter()

    return done


@dataclass(frozen=True)
class Ratio:
    """Ours over theirs, of so many pairs.

    Attributes:
        median: of the pairs' ratios.
        low, high: its interval of at least 95 % by order statistics, None below six pairs, which have none.
        ours, theirs: median seconds of each side.
        pairs: how many.
    """

    median: float
    low: float | None
    high: float | None
    ours: float
    theirs: float
    pairs: int

    def per(self, count: int) -> Ratio:
        """The same ratio with the times of one of ``count`` repetitions."""
        return replace(self, ours=self.ours / count, theirs=self.theirs / count)

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def rank_of(count: int) -> int | None:
    """How many of `count` ordered values stand outside the median's interval on each side; None where none is 95 % sure.

    The k-th smallest and the k-th largest of n hold the median with chance 1 - 2 P(B < k), B binomial (n, 1/2): for 21 the
    6th and the 16th, 97.3 %.
    """
    outside, chance = 0, 0.0
    while True:
        chance += math.comb(count, outside) / 2**count
        if 2 * chance > 1 - CONFIDENCE:
            return outside - 1 if outside else None
        outside += 1


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """The ratio of paired times."""
    ratios = sorted(one / other for one, other in zip(ours, theirs, strict=True))
    rank = rank_of(len(ratios))
    low, high = (None, None) if rank is None else (ratios[rank], ratios[-1 - rank])
    return Ratio(statistics.median(ratios), low, high, statistics.median(ours), statistics.median(theirs), len(ratios))


def interleaved(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    pairs: int,
    clock: Clock = time.process_time,
    done: Callable[[int], None] | None = None,
) -> Ratio:
    """Run both in turn, after once each to warm up; who begins changes from pair to pair.

    Args:
        done: called with the number of pairs that are through.
    """
    sides, spent = (ours, theirs), ([], [])  # type: tuple[Any, ...], tuple[list[float], list[float]]
    for side in sides:
        side()
    for number in range(pairs):
        for place in (0, 1) if number % 2 == 0 else (1, 0):
            begun = clock()
            sides[place]()
            spent[place].append(clock() - begun)
        if done is not None:
            done(number + 1)
    return ratio_of(*spent)
