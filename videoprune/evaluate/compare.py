"""Runs against each other on the same questions: paired differences, McNemar's test, and accuracy against budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from videoprune.errors import EnvironmentProblem, UsageError
from videoprune.evaluate.base import Mark, Protocol, protocol
from videoprune.evaluate.intervals import bounds, by_film, macro_of, mcnemar, micro_of
from videoprune.evaluate.score import RunFolder, Verdict, chosen_protocol, load_run, tables, verdicts

BUDGETS = {
    "flops": "share of a dense run's FLOPs",
    "tokens": "share of the sampled visual tokens that enter the language model",
    "last_layer": "share of the sampled visual tokens alive at the last layer",
    "seconds": "seconds a question",
}
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Read:
    """A run with its verdicts on the questions that all runs have, in one order."""

    run: RunFolder
    label: str
    verdicts: tuple[Verdict, ...]


def compare(
    folders: Sequence[Path],
    *,
    protocol_name: str | None = None,
    common: bool = False,
    budget: str = "flops",
    seed: int = 0,
) -> dict[str, Any]:
    """Compare runs with the first of them.

    Args:
        folders: results folders, two at least.
        protocol_name: reads all runs by this protocol; needed where they were asked by different ones.
        common: compare on the questions that all runs have, where they differ.
        budget: one of BUDGETS, for the Pareto table.
        seed: of the bootstrap.

    Returns:
        `protocol`, `questions` (compared), `left_out` (questions of a run that others lack), `runs` (each `{run, recipe,
        headline, macro, micro, correct, errors, budgets, pareto}`) and `pairs` (each run against the first: differences
        `{value, interval}` of headline, macro and micro, `only_first`, `only_second` and `p` of McNemar's exact test).

    Raises:
        UsageError: fewer than two runs, runs that can't be compared, or nothing in common.
    """
    if len(folders) < 2:
        raise UsageError(f"{len(folders)} run is given; give two at least")
    if budget not in BUDGETS:
        raise UsageError(f"--budget {budget}: allowed are {', '.join(BUDGETS)}")
    runs = [load_run(folder) for folder in folders]
    harness = _protocol(runs, protocol_name)
    benchmark = _benchmark(runs)
    read, left_out = _aligned(runs, harness, common)
    first = read[0]
    tasks = list(dict.fromkeys(verdict.question.task for verdict in first.verdicts))
    result = [_account(each, harness, benchmark) for each in read]
    _mark_pareto(result, budget)
    return {
        "protocol": harness.describe(),
        "benchmark": benchmark,
        "questions": len(first.verdicts),
        "films": len({verdict.question.video for verdict in first.verdicts}),
        "left_out": left_out,
        "budget": {"name": budget, "meaning": BUDGETS[budget]},
        "runs": result,
        "pairs": [_pair(first, other, tasks, harness, benchmark, seed) for other in read[1:]],
    }


def _protocol(runs: Sequence[RunFolder], name: str | None) -> Protocol:
    if name is not None:
        return protocol(name)
    own = {run.identity.get("protocol") for run in runs}
    if len(own) > 1:
        listed = ", ".join(f"{run.name}: {run.identity.get('protocol')}" for run in runs)
        raise UsageError(
            f"the runs were asked by different protocols ({listed}); give --protocol to read all answers by one, knowing that "
            "the prompts differed"
        )
    return chosen_protocol(runs[0], None)


def _benchmark(runs: Sequence[RunFolder]) -> str:
    names = {str(run.identity.get("benchmark") or "") for run in runs}
    if len(names) > 1:
        raise UsageError(f"the runs are of different benchmarks ({', '.join(sorted(names))}); compare runs of one")
    return names.pop()


def _aligned(runs: Sequence[RunFolder], harness: Protocol, common: bool) -> tuple[list[Read], dict[str, int]]:
    """The verdicts of all runs on the questions that each has."""
    keyed: list[dict[tuple[Any, ...], Verdict]] = []
    for run in runs:
        mine: dict[tuple[Any, ...], Verdict] = {}
        for verdict in verdicts(run.rows, harness):
            if verdict.correct is not None:
                question = verdict.question
                key = (question.video, question.task, question.id, question.question, question.options, question.answer)
                if key in mine:
                    raise UsageError(
                        f"{run.folder}: question {question.id} of {question.video} is there twice; does it hold several recipes? "
                        "Compare their folders"
                    )
                mine[key] = verdict
        keyed.append(mine)
    shared = set(keyed[0]).intersection(*keyed[1:])
    left_out = {run.name: len(mine) - len(shared) for run, mine in zip(runs, keyed, strict=True)}
    if any(left_out.values()) and not common:
        listed = ", ".join(f"{run.name}: {len(mine)}" for run, mine in zip(runs, keyed, strict=True))
        raise UsageError(
            f"the runs have different questions ({listed}; {len(shared)} in common); finish them, or give --common to compare "
            "on the common ones"
        )
    if not shared:
        raise UsageError("the runs have no scored question in common; compare runs of one benchmark")
    order = sorted(shared, key=repr)
    labels = _labels(runs)
    return [
        Read(run, label, tuple(mine[key] for key in order))
        for run, label, mine in zip(runs, labels, keyed, strict=True)
    ], left_out


def _labels(runs: Sequence[RunFolder]) -> list[str]:
    """Names that differ: the folders' own, with their parents where they are alike."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{run.folder.resolve().parent.name}/{run.name}" for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _account(read: Read, harness: Protocol, benchmark: str) -> dict[str, Any]:
    average = harness.average(_marks(read, benchmark))
    return {
        "run": read.label,
        "recipe": read.run.identity.get("recipe"),
        "headline": average["headline"],
        "macro": average["macro"],
        "micro": average["micro"],
        "correct": sum(bool(verdict.correct) for verdict in read.verdicts),
        "errors": sum(verdict.error is not None for verdict in read.verdicts),
        "budgets": budgets_of([verdict.row for verdict in read.verdicts]),
    }


def _marks(read: Read, benchmark: str) -> list[Mark]:
    return [
        Mark(verdict.question.task, bool(verdict.correct), verdict.blank, benchmark)
        for verdict in read.verdicts
    ]  # fmt: skip


def budgets_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Mean cost of the answered rows, by the names of BUDGETS; None where the rows do not say."""

    def mean(of: Callable[[Mapping[str, Any]], float]) -> float | None:
        values = []
        for row in rows:
            try:
                value = of(row)
            except (KeyError, TypeError, ZeroDivisionError):
                continue
            if row.get("error") is None and math.isfinite(value):
                values.append(value)
        return sum(values) / len(values) if values else None

    return {
        "flops": mean(lambda row: row["flops"]["total"] / row["flops"]["dense"]),
        "tokens": mean(lambda row: row["tokens"]["merged"] / row["tokens"]["sampled"]),
        "last_layer": mean(lambda row: row["tokens"]["last_layer"] / row["tokens"]["sampled"]),
        "seconds": mean(lambda row: float(row["seconds"])),
    }


def _mark_pareto(runs: list[dict[str, Any]], budget: str) -> None:
    """`pareto`: no other run is at least as accurate at no more budget, and better in one; None where the budget is unknown."""
    points = [(each["budgets"][budget], each["headline"]) for each in runs]
    for each, (cost, value) in zip(runs, points, strict=True):
        if cost is None or value is None:
            each["pareto"] = None
            continue
        each["pareto"] = not any(
            other is not None
            and best is not None
            and other <= cost
            and best >= value
            and (other < cost or best > value)
            for other, best in points
        )


def _pair(
    first: Read, second: Read, tasks: Sequence[str], harness: Protocol, benchmark: str, seed: int
) -> dict[str, Any]:
    """The second run less the first, on the same questions; films are drawn for both together."""
    films = [verdict.question.video for verdict in first.verdicts]
    halves = []
    for read in (first, second):
        right, total = tables(read.verdicts, tasks)
        if harness.blanks == "dropped":
            total = total * np.array([not verdict.blank for verdict in read.verdicts], dtype=float)[:, None]
            right = right * (total > 0)
        halves += [right, total]
    skipped = {task for task in tasks if (benchmark, task) in harness.left_out}
    taken = [place for place, task in enumerate(tasks) if task not in skipped]

    def difference(of: Callable[[np.ndarray, np.ndarray], np.ndarray], columns: Sequence[int]) -> dict[str, Any]:
        parts = [half[:, list(columns)] for half in halves]

        def statistic(a: np.ndarray, n: np.ndarray, b: np.ndarray, m: np.ndarray) -> np.ndarray:
            return of(b, m) - of(a, n)

        value = float(statistic(*(part.sum(0) for part in parts)))
        return {"value": value, "interval": bounds(by_film(films, parts, statistic, seed=seed))}

    only_first = sum(bool(a.correct) and not b.correct for a, b in zip(first.verdicts, second.verdicts, strict=True))
    only_second = sum(bool(b.correct) and not a.correct for a, b in zip(first.verdicts, second.verdicts, strict=True))
    everything = range(len(tasks))
    return {
        "first": first.label,
        "second": second.label,
        "headline": difference(macro_of if harness.averaging == "macro" else micro_of, taken),
        "macro": difference(macro_of, everything),
        "micro": difference(micro_of, everything),
        "only_first": only_first,
        "only_second": only_second,
        "p": mcnemar(only_first, only_second),
    }


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw accuracy against budget; the kind of picture follows from the file's ending.

    Raises:
        UsageError: an ending that can't be drawn, or no run tells its budget.
        EnvironmentProblem: matplotlib is missing, or the file can't be written.
    """
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise UsageError(f"--plot {path}: the name must end in .png, .pdf or .svg")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise EnvironmentProblem("--plot needs matplotlib: pip install 'videoprune[plots]'") from None
    budget = result["budget"]["name"]
    runs = [each for each in result["runs"] if each["budgets"][budget] is not None and each["headline"] is not None]
    if not runs:
        raise UsageError(f"--plot: no run tells its {budget}; give another --budget")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    best = sorted((each["budgets"][budget], 100 * each["headline"]) for each in runs if each["pareto"])
    axes.plot(*zip(*best, strict=True), color="0.6", linewidth=1, zorder=1)
    for each in runs:
        x, y = each["budgets"][budget], 100 * each["headline"]
        axes.plot(x, y, "o", color="black" if each["pareto"] else "0.6", zorder=2)
        axes.annotate(each["run"], (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8, parse_math=False)
    axes.set_xlabel(result["budget"]["meaning"])
    axes.set_ylabel(f"{result['protocol']['average'].split(' ')[0]} (%), {result['protocol']['name']}")
    axes.set_title(f"{result['benchmark']} · {result['questions']} questions", fontsize=10)
    axes.grid(alpha=0.3)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise EnvironmentProblem(f"--plot {path}: can't be written ({error.strerror or error})") from None
