"""`videoprune bench ops`: time primitives and selections, and say which bar each one reaches."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from videoprune.bench import page
from videoprune.bench.case import Case
from videoprune.bench.machine import Bounds, DenseLayer, describe, measure_bounds
from videoprune.bench.primitives import primitives
from videoprune.bench.selections import selections
from videoprune.bench.timing import counted_flops, side_by_side
from videoprune.bench.world import World
from videoprune.errors import EnvironmentProblem, UsageError

LIMIT = 4e9  # bytes that a transcription may hold
SHARE, FASTER, PREFILL = 0.70, 5.0, 0.05  # the bars
Tell = Callable[[str, int, int | None], None]

as_markdown, write_page = page.as_markdown, page.write_page


def read_sizes(text: str) -> list[int]:
    """The numbers of a list like "1568,6272"."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= 10**6 for part in parts):
        raise UsageError(f"--tokens: {text!r} is given; allowed are numbers up to 1000000, as in 1568,6272")
    return [int(part) for part in parts]


def references() -> tuple[ModuleType, ModuleType]:
    """The transcriptions of the source checkout: primitives and methods.

    Raises:
        EnvironmentProblem: in an installation without them.
    """
    folder = Path(__file__).parents[2] / "benchmarks" / "reference"
    if not (folder / "primitives.py").is_file():
        raise EnvironmentProblem(
            f"bench ops: {folder} is not there; the transcriptions are part of a source checkout only: run it in one, "
            "as `python cli.py bench ops`"
        )
    sys.path.insert(0, os.fspath(folder))
    try:
        return importlib.import_module("primitives"), importlib.import_module("methods")
    finally:
        sys.path.remove(os.fspath(folder))


@torch.no_grad()
def measure(
    sizes: Sequence[int],
    width: int,
    only: Sequence[str] = (),
    *,
    seconds: float,
    threads: int,
    progress: Tell,
    longest: float = float("inf"),
    so_far: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Time all cases, or those whose name contains one of `only`, at each size.

    Args:
        sizes: tokens of the film. width: of a token. seconds: CPU time that a row's pairs are repeated for.
        threads: of torch. progress: told after each row.
        longest: a case that, by its time at the size before and N², would run longer in CPU seconds is left out.
        so_far: called with the result after each size.

    Returns:
        `machine`, `bounds` by threads, and `rows`, each with name, tokens, ours, theirs and the bars.
    """
    shared, chosen = references()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        progress("bounds", 0, None)
        counts = sorted({1, 2, threads})
        bounds = {count: measure_bounds(count) for count in counts}
        result = {
            "machine": {**describe(), "threads": threads, "width": width},
            "bars": {"share": SHARE, "faster": FASTER, "prefill": PREFILL},
        }
        rows: list[dict[str, Any]] = []
        names: list[str] = []
        before_it: dict[str, tuple[int, float]] = {}
        for tokens in sizes:
            bounds = {count: bounds[count].best(measure_bounds(count)) for count in counts}
            world = World(tokens, width)
            dense = DenseLayer(width, tokens)
            makers = [*primitives(world, shared), *selections(world, chosen)]
            names = names or [name for name, _ in makers]
            wanted = [make for name, make in makers if not only or any(part in name for part in only)]
            if not wanted:
                raise UsageError(f"--only: {', '.join(only)} is given; allowed are parts of: {', '.join(names)}")
            for number, make in enumerate(wanted):
                case = make()
                known, spent = before_it.get(case.name, (tokens, 0.0))
                if spent * (tokens / known) ** 2 > longest:
                    rows.append(_left_out(case, tokens, spent * (tokens / known) ** 2))
                else:
                    rows.append(_row(case, tokens, bounds[threads], dense, seconds))
                    before_it[case.name] = tokens, rows[-1]["ours"]["seconds"]
                progress(f"{tokens} tokens", number + 1, len(wanted))
            result |= {"bounds": {str(count): vars(bound) for count, bound in bounds.items()}, "rows": rows}
            if so_far is not None:
                so_far(result)
    finally:
        torch.set_num_threads(before)
    return result


def _left_out(case: Case, tokens: int, estimate: float) -> dict[str, Any]:
    """The row of a case that was not run, with the CPU seconds that it was estimated to take."""
    return {"name": case.name, "primitive": _is_primitive(case), "tokens": tokens, "ours": None, "estimate": estimate}


def _is_primitive(case: Case) -> bool:
    return case.saves is None and not case.name.startswith("segment ")


def _row(case: Case, tokens: int, bound: Bounds, dense: DenseLayer, seconds: float) -> dict[str, Any]:
    too_large = case.theirs is not None and case.needs > LIMIT
    ours, theirs = side_by_side(case.ours, None if too_large else case.theirs, seconds)
    assert ours is not None
    flops = counted_flops(case.ours) if case.flops is None and ours.seconds < 5 else case.flops or 0.0
    share = max(flops / bound.matmul, case.moved / bound.copy) / ours.seconds
    ratio = None if theirs is None else theirs.seconds / ours.seconds
    part = None if case.saves is None else case.repeats * ours.seconds / max(case.saves(dense), 1e-12)
    return {
        "name": case.name,
        "primitive": _is_primitive(case),
        "tokens": tokens,
        "ours": ours.to_dict(),
        "theirs": None if theirs is None else theirs.to_dict(),
        "no_transcription": "needs more than 4 GB" if too_large else "baseline" if case.theirs is None else "",
        "ratio": ratio,
        "gflops": flops / ours.seconds / 1e9,
        "gbytes": case.moved / ours.seconds / 1e9,
        "share": share,
        "bar": _bar(share, ratio, too_large),
        "of_prefill": part,
        "prefill_bar": None if part is None else part < PREFILL,
        "excepted": case.excepted,
    }


def _bar(share: float, ratio: float | None, too_large: bool) -> str:
    """Which of the two bars a row reaches: "bound", "faster", "only one" where nothing else fits the memory, or "none"."""
    if share >= SHARE:
        return "bound"
    if ratio is not None and ratio >= FASTER:
        return "faster"
    return "only one" if too_large else "none"
