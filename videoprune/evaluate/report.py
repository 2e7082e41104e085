"""What `videoprune batch` prints when it is done: the protocol, accuracy by task with intervals, and what went wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from videoprune import console
from videoprune.evaluate.batch import Outcome
from videoprune.evaluate.score import score_rows

MOST_ERRORS = 20  # lines; all of them are in the rows


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """A run as data: the score of each recipe, and the error rows."""
    return {
        "benchmark": outcome.benchmark.name,
        "questions": outcome.total,
        "films": outcome.tally.films,
        "recipes": {
            name: {
                "folder": str(outcome.folders[name]),
                **score_rows(rows, outcome.protocol, benchmark=outcome.benchmark.name),
            }
            for name, rows in outcome.rows.items()
            if rows
        },
        "errors": [{"video": row["video"], "id": row["id"], **row["error"]} for row in outcome.errors],
    }


def print_outcome(outcome: Outcome) -> None:
    """A table for each recipe on stdout, error rows on stderr."""
    scored = {
        name: score_rows(rows, outcome.protocol, benchmark=outcome.benchmark.name)
        for name, rows in outcome.rows.items()
        if rows
    }
    if not scored:
        print("nothing to do: no film has a question")
        return
    described = outcome.protocol.describe()
    print(f"{outcome.benchmark.name}, {described['name']}: {described['average']}, {described['mode']}")
    for note in described["notes"]:
        print(f"  {note}")
    print()
    print(
        console.columns(
            ("TASK", "QUESTIONS", *(name.upper() for name in scored)), _lines(scored, outcome.benchmark.tasks())
        )
    )
    for name, score in scored.items():
        left = ", ".join(f"{task} ({count})" for task, count in score["unscored"].items())
        if left:
            print(f"\n{name}: not scored here, as only a judge can or the answer is not public: {left}")
    for row in outcome.errors[:MOST_ERRORS]:
        where = row["id"] or f"{len(row['questions'])} questions"
        console.say(f"error: {row['video']} ({where}): {row['error']['stage']}: {row['error']['message']}")
    if len(outcome.errors) > MOST_ERRORS:
        console.say(f"error: … and {len(outcome.errors) - MOST_ERRORS} more")


def _lines(scored: dict[str, dict[str, Any]], order: Iterable[str]) -> list[tuple[str, ...]]:
    first = next(iter(scored.values()))
    counts = {line["name"]: line["questions"] for line in first["by"]["task"]}
    lines: list[tuple[str, ...]] = []
    for task in [task for task in order if task in counts]:
        cells = []
        for score in scored.values():
            line = next((line for line in score["by"]["task"] if line["name"] == task), None)
            cells.append("-" if line is None else _share(line["accuracy"], line["interval"]))
        lines.append((task, str(counts[task]), *cells))
    own = first["headline"]["value"]
    for place in ("macro", "micro", "headline"):
        label = first[place]["name"]
        if place == "headline" and own in (first["macro"]["value"], first["micro"]["value"]):
            continue
        cells = [_share(score[place]["value"], score[place]["interval"]) for score in scored.values()]
        lines.append((label, str(first["scored"]), *cells))
    return lines


def _share(value: float | None, interval: list[float | None]) -> str:
    if value is None:
        return "-"
    low, high = interval
    return f"{100 * value:.1f} %" + (
        f"  ({100 * low:.1f}–{100 * high:.1f})" if low is not None and high is not None else ""
    )
