"""Checks of hyper-parameters: what was given, what is allowed, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from videoprune.errors import UsageError


def check_positions(positions: str) -> None:
    """Refuse a position policy that does not exist."""
    if positions not in ("original", "compact"):
        raise UsageError(f"positions: {positions!r} is given; allowed are 'original' and 'compact'")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuse a hyper-parameter that is no whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name}: {value!r} is given; allowed is a whole number of at least {least}")


def check_range(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    """Refuse a hyper-parameter outside low..high."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    if not good or (open_low and value == low):
        raise UsageError(
            f"{name}: {value!r} is given; allowed is a number {'above' if open_low else 'from'} {low} to {high}"
        )


def scale_layers(layers: Sequence[int], paper_depth: int, depth: int) -> tuple[int, ...]:
    """Carry layer indices of a model with `paper_depth` layers to one with `depth`; refuse a collision.

    Each index i becomes round(i * depth / paper_depth); where two fall on one so, all are rounded down instead.

    Raises:
        UsageError: where two layers fall on one either way, or one outside 0..depth-1.
    """
    scaled = tuple(int(layer * depth / paper_depth + 0.5) for layer in layers)
    down = tuple(int(layer * depth / paper_depth) for layer in layers)
    if len(set(scaled)) < len(scaled) == len(set(down)):
        scaled = down
    if len(set(scaled)) < len(scaled) or any(not 0 <= layer < depth for layer in scaled):
        raise UsageError(
            f"layers {list(layers)} of {paper_depth} become {list(scaled)} of this model's {depth}, "
            "which collide or do not exist; "
            "give `layers` further apart, or fewer"
        )
    return scaled


def check_points(layers: Any, paper_depth: Any) -> tuple[int, ...]:
    """Refuse pruning points that do not lie, ascending, between the first layer of `paper_depth` and the last."""
    check_count("paper_depth", paper_depth)
    listed = isinstance(layers, Sequence) and not isinstance(layers, str)
    whole = listed and all(isinstance(layer, int) and not isinstance(layer, bool) for layer in layers)
    ordered = [0, *layers, paper_depth] if whole else []
    if len(ordered) < 3 or ordered != sorted(set(ordered)):
        raise UsageError(
            f"layers: {list(layers) if listed else layers!r} is given; allowed are ascending indices in "
            f"1..{paper_depth - 1} (below `paper_depth`)"
        )
    return tuple(layers)


def scale_points(layers: Sequence[int], paper_depth: int, depth: int) -> tuple[int, ...]:
    """`scale_layers` for points before which tokens stop by what the layer before saw: the first must leave one.

    Raises:
        UsageError: as `scale_layers`, or the first point is layer 0.
    """
    scaled = scale_layers(layers, paper_depth, depth)
    if scaled[0] < 1:
        raise UsageError(
            f"layers: {list(layers)} of {paper_depth} become {list(scaled)} of this model's {depth}; "
            "the first must be at least 1: give later `layers`"
        )
    return scaled


def check_shares(shares: Sequence[float], points: int) -> tuple[float, ...]:
    """Refuse shares of tokens alive that are not one for each of so many points, falling between 1 and 0."""
    falling = [1, *shares, 0]
    if len(shares) != points or falling != sorted(set(falling), reverse=True):
        raise UsageError(f"shares: {list(shares)} is given; allowed is one a layer, falling between 1 and 0")
    return tuple(shares)


def check_percentiles(percentiles: Any, points: int) -> tuple[float, ...]:
    """Refuse percentiles that are not one for each of so many points, from 0 to below 100."""
    listed = isinstance(percentiles, Sequence) and not isinstance(percentiles, str)
    numbers = listed and all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in percentiles)
    if not numbers or len(percentiles) != points or not all(0 <= each < 100 for each in percentiles):
        raise UsageError(
            f"percentiles: {list(percentiles) if listed else percentiles!r} is given; allowed are {points} numbers, one a "
            "layer of `layers`, from 0 to below 100"
        )
    return tuple(percentiles)
