"""Two ways to do one thing, timed in turn: process CPU time, and the peak of what torch allocated."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from videoprune.bench.machine import cpu_seconds
from videoprune.ops.counting import CountedFlops

PAIRS = 15  # most pairs of runs
LONG = 5.0  # seconds of one run above which a single pair is timed


@dataclass(frozen=True)
class Timed:
    """Median CPU seconds of one side, quartiles where there were runs enough, peak bytes."""

    seconds: float
    low: float
    high: float
    runs: int
    peak_bytes: int

    def to_dict(self) -> dict[str, float]:
        return dict(vars(self))


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes that torch's CPU allocator had handed out at once during one call, above what it had before.

    Counted from the profiler's record of every allocation and release, so that it is exact for tensors and blind to
    what other libraries and Python itself take.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _quiet_stderr(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = work()
    del result
    results = profile.profiler.kineto_results if profile.profiler is not None else None
    records = [event for event in results.events() if event.name() == "[memory]"] if results is not None else []
    now = peak = 0
    for record in sorted(records, key=lambda event: event.start_ns()):
        now += record.nbytes()
        peak = max(peak, now)
    return peak


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Keep what the profiler's C++ side writes to file descriptor 2 off the terminal."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def counted_flops(work: Callable[[], object]) -> float:
    """FLOPs of the matrix products of one call."""
    with CountedFlops() as counted:
        work()
    return counted.total


def side_by_side(ours: Callable[[], object], theirs: Callable[[], object] | None, budget: float) -> list[Timed | None]:
    """Run both in turn until `budget` CPU seconds are spent, three pairs at least after one to warm up; a single one where a run
    takes longer than LONG."""
    sides = [ours] if theirs is None else [ours, theirs]
    first: list[float] = []
    peaks = [peak_bytes(lambda side=side: first.append(cpu_seconds(side))) for side in sides]  # type: ignore[misc]
    if max(first) > LONG:  # the profiler's share of so long a run is nothing
        out = [_timed([seconds], peak) for seconds, peak in zip(first, peaks, strict=True)]
        return [*out, None] if theirs is None else [*out]
    spent: list[list[float]] = [[] for _ in sides]
    total = 0.0
    while len(spent[0]) < PAIRS:
        for side, times in zip(sides, spent, strict=True):
            times.append(cpu_seconds(side))
            total += times[-1]
        if len(spent[0]) >= 3 and total > budget:
            break
    out = [_timed(times, peak) for times, peak in zip(spent, peaks, strict=True)]
    return [*out, None] if theirs is None else [*out]


def _timed(times: list[float], peak: int) -> Timed:
    spread = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return Timed(statistics.median(times), spread[0], spread[2], len(times), peak)
