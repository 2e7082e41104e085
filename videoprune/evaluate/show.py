"""Scores and comparisons as text, and as a table in a file."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from videoprune.console import columns
from videoprune.errors import EnvironmentProblem, UsageError

LISTED = 20  # error rows that are shown


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def interval(pair: Sequence[float | None], scale: float = 100.0, digits: int = 1) -> str:
    low, high = pair
    return "-" if low is None or high is None else f"{scale * low:.{digits}f} to {scale * high:.{digits}f}"


def score_text(result: Mapping[str, Any]) -> str:
    """What `videoprune score` prints."""
    harness = result["protocol"]
    parts = [f"protocol {harness['name']} ({harness['source']})"]
    parts += [f"  {note}" for note in harness["notes"]]
    for by, lines in result["by"].items():
        rows = [
            (
                str(line["name"]),
                str(line["questions"]),
                str(line["correct"]),
                percent(line["accuracy"]),
                interval(line["interval"]),
                str(line["errors"] or ""),
                str(line["blank"] or ""),
            )
            for line in lines
        ]
        parts += ["", columns((by.upper(), "QUESTIONS", "RIGHT", "%", "95 % INTERVAL", "ERRORS", "UNREAD"), rows)]
    averages = [result["headline"], result["macro"], result["micro"]]
    rows2 = [(str(each["name"]), percent(each["value"]), interval(each["interval"])) for each in averages]
    parts += ["", columns(("AVERAGE", "%", "95 % INTERVAL"), rows2)]
    if result["left_out"]:
        parts.append(f"{result['headline']['name']} leaves out: {', '.join(result['left_out'])}")
    if result["unscored"]:
        listed = ", ".join(f"{task} {count}" for task, count in result["unscored"].items())
        parts.append(f"without a verdict (no public answer, or for a judge): {listed}")
    if result.get("damaged"):
        parts.append(
            f"{result['damaged']} damaged lines of the results are left aside; the batch asks their questions again"
        )
    if "judged" in result:
        parts += ["", _judged_text(result["judged"])]
    errors = result["errors"]
    if errors:
        parts += ["", f"{len(errors)} questions failed and count as wrong:"]
        parts += [f"  {each['id']}  {each['video']}  {each['error']}" for each in errors[:LISTED]]
        if len(errors) > LISTED:
            parts.append(f"  … and {len(errors) - LISTED} more (--json lists all)")
    return "\n".join(parts)


def _judged_text(judged: Mapping[str, Any]) -> str:
    rows = [
        (
            str(line["task"]),
            str(line["answers"]),
            f"{line['score']:.2f}",
            interval(line["interval"], 1.0, 2),
            ", ".join(f"{name} {value:.2f}" for name, value in line["parts"].items()),
            str(line["unread"] or ""),
        )
        for line in judged["tasks"]
    ]
    head = ("TASK", "ANSWERS", f"OF {judged['scale']:g}", "95 % INTERVAL", "PARTS", "UNREAD")
    average = "-" if judged["average"] is None else f"{judged['average']:.2f}"
    return f"judge {judged['judge']}\n{columns(head, rows)}\nmean over tasks (G-Avg): {average}"


def compare_text(result: Mapping[str, Any]) -> str:
    """What `videoprune compare` prints."""
    budget, harness = result["budget"], result["protocol"]
    left = sum(result["left_out"].values())
    parts = [
        f"protocol {harness['name']}, {result['questions']} common questions on {result['films']} films"
        + (f"; {left} left out that not all runs have" if left else "")
    ]
    rows = [
        (
            each["run"],
            percent(each["headline"]),
            percent(each["macro"]),
            percent(each["micro"]),
            str(each["errors"] or ""),
            "-" if each["budgets"][budget["name"]] is None else f"{each['budgets'][budget['name']]:.3f}",
            {True: "yes", False: "", None: "-"}[each["pareto"]],
        )
        for each in sorted(
            result["runs"],
            key=lambda each: (each["budgets"][budget["name"]] is None, each["budgets"][budget["name"]] or 0),
        )
    ]
    head = (
        "RUN",
        harness["average"].upper(),
        "OVER TASKS",
        "OVER QUESTIONS",
        "ERRORS",
        budget["name"].upper(),
        "PARETO",
    )
    parts += ["", columns(head, rows), f"{budget['name']}: {budget['meaning']}"]
    pairs = [
        (
            f"{each['second']} - {each['first']}",
            f"{100 * each['headline']['value']:+.1f}",
            interval(each["headline"]["interval"]),
            f"{100 * each['micro']['value']:+.1f}",
            interval(each["micro"]["interval"]),
            f"{each['only_first']} / {each['only_second']}",
            f"{each['p']:.3g}",
        )
        for each in result["pairs"]
    ]
    head = (
        "DIFFERENCE",
        "AVERAGE",
        "95 % INTERVAL",
        "OVER QUESTIONS",
        "95 % INTERVAL",
        "ONLY FIRST / SECOND RIGHT",
        "MCNEMAR P",
    )
    return "\n".join([*parts, "", columns(head, pairs)])


def check_table(path: Path | None) -> None:
    """Refuse a table that can't be written before any work is done."""
    if path is not None and path.suffix.lower() not in (".csv", ".parquet"):
        raise UsageError(f"{path}: the name must end in .csv (--csv) or .parquet (--parquet)")


def write_table(result: Mapping[str, Any], path: Path) -> None:
    """The lines of a score as CSV or Parquet: `by, name, questions, correct, accuracy, low, high, errors, blank, protocol`.

    Raises:
        EnvironmentProblem: pyarrow is missing, or the file can't be written.
    """
    flat = [
        {
            "by": by,
            "name": str(line["name"]),
            **{key: line[key] for key in ("questions", "correct", "accuracy")},
            "low": line["interval"][0],
            "high": line["interval"][1],
            **{key: line[key] for key in ("errors", "blank")},
            "protocol": result["protocol"]["name"],
        }
        for by, lines in result["by"].items()
        for line in lines
    ]
    for name in ("headline", "macro", "micro"):
        each = result[name]
        low, high = each["interval"]
        flat.append(
            {"by": name, "name": each["name"], "questions": result["scored"], "correct": None, "accuracy": each["value"],
             "low": low, "high": high, "errors": len(result["errors"]), "blank": None, "protocol": result["protocol"]["name"]}
        )  # fmt: skip
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".csv":
            with open(part, "w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(flat[0]))
                writer.writeheader()
                writer.writerows(flat)
        else:
            try:
                import pyarrow
                import pyarrow.parquet
            except ImportError:
                raise EnvironmentProblem("--parquet needs pyarrow: pip install 'videoprune[evaluate]'") from None
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(flat), part)
        os.replace(part, path)
    except OSError as error:
        raise EnvironmentProblem(f"{path}: can't be written ({error.strerror or error}); give another place") from None
