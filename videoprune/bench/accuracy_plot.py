"""Pictures of an accuracy table: accuracy against cost, or where there are many single methods, each stage's in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from videoprune.bench.settings import ACTING
from videoprune.errors import EnvironmentProblem

Record = Mapping[str, Any]
MANY = 24  # settings; beyond that their names would cover one another in a plane


def plot(records: Sequence[Record], path: Path) -> None:
    """The picture that fits a table.

    Raises:
        EnvironmentProblem: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise EnvironmentProblem(
            "the plot needs matplotlib, which is not installed; pip install 'videoprune[plots]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [record for record in records if record["form"] == "open"]
    figure = (ranked if len({record["setting"] for record in shown}) > MANY else against_cost)(shown, pyplot)
    figure.suptitle("Generated scenes, held-out films; bars are 95 % intervals over films")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def against_cost(records: Sequence[Record], pyplot: Any) -> Any:
    """Accuracy against the share of tokens, of FLOPs, and against measured seconds; one row of panels a length."""
    lengths = sorted({record["frames"] for record in records})
    axes_of = (
        ("tokens at the last layer, % of sampled", lambda record: 100 * record["tokens"]["last_layer"]),
        ("FLOPs, % of dense", lambda record: 100 * record["flops"]),
        ("seconds a question, film included", lambda record: record["seconds"]),
    )
    figure, grid = pyplot.subplots(len(lengths), 3, figsize=(15, 4.6 * len(lengths)), squeeze=False, sharey=True)
    for line, frames in zip(grid, lengths, strict=True):
        shown = [record for record in records if record["frames"] == frames]
        for axis, (label, value) in zip(line, axes_of, strict=True):
            for record in shown:
                macro = record["macro"]
                at, height = value(record), 100 * macro["mean"]
                known = record["setting"].split("@")[0]
                style = {"dense": ("*", 220), "blind": ("x", 60), "random": ("s", 40), "uniform": ("D", 36)}
                marker, size = style.get(known, ("o", 40))
                axis.scatter([at], [height], marker=marker, s=size, zorder=3)
                axis.vlines(at, 100 * macro["low"], 100 * macro["high"], alpha=0.4)
                axis.annotate(record["setting"], (at, height), fontsize=7, xytext=(4, 3), textcoords="offset points")
            axis.set_xlabel(label)
            axis.grid(alpha=0.25)
        line[0].set_ylabel(f"macro exact match, %, {frames} frames")
    return figure


def ranked(records: Sequence[Record], pyplot: Any) -> Any:
    """A panel a stage: its methods in order of their accuracy, a mark for each budget, lines for dense and for random."""
    frames = min(record["frames"] for record in records)
    records = [record for record in records if record["frames"] == frames]
    by_name = {record["setting"]: record["macro"] for record in records}
    stages: dict[str, dict[str, dict[str, Mapping[str, float]]]] = {stage: {} for stage in ACTING}
    for name, macro in by_name.items():
        method, _, budget = name.partition("@")
        if budget:
            stage, _, method = method.rpartition(".")
            stages[stage or "merge"].setdefault(method, {})[budget] = macro
    stages = {stage: methods for stage, methods in stages.items() if methods}
    budgets = sorted({budget for methods in stages.values() for own in methods.values() for budget in own}, key=float)
    middle = max(
        budgets, key=lambda budget: sum(budget in own for methods in stages.values() for own in methods.values())
    )
    figure, grid = pyplot.subplots(1, len(stages), figsize=(4.6 * len(stages), 7.5), squeeze=False, sharex=True)
    for axis, (stage, methods) in zip(grid[0], stages.items(), strict=True):
        order = sorted(methods, key=lambda name: methods[name].get(middle, {"mean": 0.0})["mean"])
        for row, name in enumerate(order):
            for budget, macro in methods[name].items():
                colour, shift = f"C{budgets.index(budget)}", 0.18 * (budgets.index(budget) - budgets.index(middle))
                axis.hlines(row + shift, 100 * macro["low"], 100 * macro["high"], color=colour, alpha=0.5)
                axis.plot([100 * macro["mean"]], [row + shift], "o", color=colour, markersize=5)
        if "dense" in by_name:
            axis.axvline(100 * by_name["dense"]["mean"], color="0.4", linewidth=1)
        if middle in methods.get("random", {}):
            axis.axvline(100 * methods["random"][middle]["mean"], color="0.4", linewidth=1, linestyle=":")
        axis.set_yticks(range(len(order)), order)
        axis.set_title(stage)
        axis.set_xlabel(f"macro exact match, %, {frames} frames")
        axis.grid(axis="x", alpha=0.25)
    marks = [pyplot.Line2D([], [], color=f"C{at}", marker="o", linestyle="", label=f"{100 * float(budget):g} %")
             for at, budget in enumerate(budgets)]  # fmt: skip
    lines = [pyplot.Line2D([], [], color="0.4", label="dense"),
             pyplot.Line2D([], [], color="0.4", linestyle=":", label=f"random, {100 * float(middle):g} %")]  # fmt: skip
    figure.legend(handles=[*marks, *lines], loc="upper right", ncols=len(marks) + len(lines), fontsize=8)
    return figure
