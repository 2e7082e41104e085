"""Scores of a results folder by any protocol, with 95 % intervals.

Error rows count as wrong and are listed. Accuracies have Wilson intervals; means over tasks are bootstrapped by film, because
questions about one film stand and fall together.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from videoprune.errors import UsageError
from videoprune.evaluate.base import PROTOCOLS, Mark, Protocol, Question, default_protocol, protocol, question_of
from videoprune.evaluate.intervals import bounds, by_film, macro_of, wilson
from videoprune.evaluate.rows import PATTERN, Row, effective, is_film_row, parse
from videoprune.registry import unknown

BANDS = (3, 10, 30, 60)  # minutes


@dataclass(frozen=True)
class Verdict:
    """A question of a run and how it was answered.

    Attributes:
        question: as asked.
        film: what its film is known by.
        correct: None where the answer is not public, or only a judge can tell.
        blank: something was written, but no option can be read from it.
        error: what went wrong, None where nothing did.
        text: what the model wrote.
        row: the result row.
    """

    question: Question
    film: str
    correct: bool | None
    blank: bool
    error: str | None
    text: str
    row: Row


@dataclass(frozen=True)
class RunFolder:
    """A results folder: its rows, what its run.json says of all of them, and how many lines could not be read."""

    folder: Path
    rows: tuple[Row, ...]
    identity: Mapping[str, Any]
    damaged: int = 0

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def own_protocol(self) -> str | None:
        name = self.identity.get("protocol")
        return name if isinstance(name, str) and name in PROTOCOLS else None


def load_run(folder: Path) -> RunFolder:
    """Read a folder that `videoprune batch` wrote, or any folder with `results*.jsonl` in its form.

    Raises:
        UsageError: there are no results, or its run.json is damaged.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no folder; give the --out folder of a `videoprune batch` run")
    files = sorted(folder.glob(PATTERN))
    if not files:
        inside = sorted(path.parent.name for path in folder.glob(f"*/{PATTERN}"))
        hint = f"; it holds the runs {', '.join(dict.fromkeys(inside))}: give one of them" if inside else ""
        raise UsageError(f"{folder} holds no {PATTERN}{hint or '; give the --out folder of a `videoprune batch` run'}")
    read = [parse(path) for path in files]
    rows = sorted(effective(row for found, _ in read for row in found), key=lambda row: str(row["key"]))
    identity: Mapping[str, Any] = {}
    for path in sorted(folder.glob("run*.json")):
        try:
            identity = json.loads(path.read_text(encoding="utf-8"))["identity"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(f"{path}: damaged; take it away to score by --protocol") from None
        break
    if not rows:
        raise UsageError(f"{folder}: its results files hold no row; has the run begun?")
    return RunFolder(folder, tuple(rows), identity, sum(damaged for _, damaged in read))


def chosen_protocol(run: RunFolder, name: str | None) -> Protocol:
    """The protocol asked for, else the run's own, else that of its benchmark.

    Raises:
        UsageError: none is known.
    """
    if name is not None:
        return protocol(name)
    own = run.own_protocol()
    if own is not None:
        return protocol(own)
    benchmark = run.identity.get("benchmark")
    if isinstance(benchmark, str) and benchmark:
        return default_protocol(benchmark)
    raise UsageError(
        f"{run.folder}: no run.json says by which protocol; give --protocol, one of {', '.join(PROTOCOLS)}"
    )


def verdicts(rows: Iterable[Row], harness: Protocol) -> list[Verdict]:
    """Read every row by a protocol; a film's error row becomes one verdict for each of its questions.

    Raises:
        UsageError: the rows hold texts where the protocol needs likelihoods, or the other way round.
    """
    found: list[Verdict] = []
    for row in rows:
        if is_film_row(row):
            left = set(row["questions"])
            found += [_verdict({**row, **asked}, harness) for asked in row.get("asked", ()) if asked["id"] in left]
        else:
            found.append(_verdict(row, harness))
    return found


def _verdict(row: Row, harness: Protocol) -> Verdict:
    question = question_of(row)
    text, film = row.get("prediction") or "", str(row.get("film") or row["video"])
    error = row.get("error")
    if error is not None:
        said = f"{error.get('stage') or 'run'}: {error.get('message')}" if isinstance(error, Mapping) else str(error)
        open_ended = question.generation or question.answer is None
        return Verdict(question, film, None if open_ended else False, False, said, "", row)
    if question.generation:
        return Verdict(question, film, None, False, None, text, row)
    if harness.mode == "likelihood":
        if "logprobs" not in row and row.get("choice") is not None:
            raise UsageError(
                f"protocol {harness.name} needs likelihoods, and these rows hold texts; run the batch with it"
            )
        index = None
        if "logprobs" in row:
            sums = [-math.inf if total is None else float(total) for total in row["logprobs"]]
            index = harness.choose(list(zip(sums, row["lengths"], strict=True)))
    elif "logprobs" in row:
        raise UsageError(
            f"protocol {harness.name} reads texts, and these rows hold likelihoods; give --protocol likelihood"
        )
    else:
        index = harness.extract(text, question)
    return Verdict(question, film, harness.right(index, question), index is None, None, text, row)


def group_of(question: Question, by: str) -> str:
    """The group of a question: its task, its band of duration, or what its data set calls it by.

    Raises:
        UsageError: its data set knows no such group.
    """
    groups = question.extra.get("group") or {}
    if by == "task":
        return question.task
    if by == "duration":
        if "length" in groups:
            return str(groups["length"])
        if question.duration is None:
            return "unknown"
        edges = (0, *BANDS)
        minutes = question.duration / 60
        place = sum(minutes >= edge for edge in BANDS)
        return f"{edges[place]}-{edges[place + 1]} min" if place < len(BANDS) else f"over {BANDS[-1]} min"
    if by not in groups:
        raise UsageError(f"--by: {unknown(by, ['task', 'duration', *map(str, groups)])}")
    return str(groups[by])


def _line(name: str, marked: Sequence[Verdict], harness: Protocol) -> dict[str, Any]:
    counted = [verdict for verdict in marked if not (verdict.blank and harness.blanks == "dropped")]
    right = sum(bool(verdict.correct) for verdict in counted)
    low, high = wilson(right, len(counted))
    return {
        "name": name,
        "questions": len(counted),
        "correct": right,
        "accuracy": right / len(counted) if counted else None,
        "interval": [low, high],
        "errors": sum(verdict.error is not None for verdict in marked),
        "blank": sum(verdict.blank for verdict in marked),
    }


def tables(marked: Sequence[Verdict], tasks: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(n, tasks) twice: which task a question is of, and the same where it is answered right."""
    total = np.zeros((len(marked), len(tasks)))
    for place, verdict in enumerate(marked):
        total[place, tasks.index(verdict.question.task)] = 1
    right = np.array([bool(verdict.correct) for verdict in marked], dtype=float).reshape(-1, 1)
    return total * right, total


def counted_of(marked: Sequence[Verdict], harness: Protocol) -> list[Verdict]:
    """The verdicts that the harness's average is taken of."""
    return [verdict for verdict in marked if not (verdict.blank and harness.blanks == "dropped")]


def score_rows(
    rows: Sequence[Row], harness: Protocol, *, benchmark: str = "", by: Sequence[str] = ("task",), seed: int = 0
) -> dict[str, Any]:
    """Score rows by a protocol.

    Returns:
        `protocol` (described), `benchmark`, `questions`, `scored`, `unscored` (by task: no public answer, or a judge's),
        `headline`, `macro` and `micro` (each `{name, value, interval}`, shares), `by` (for each name its lines), `errors` (each
        `{id, video, task, error}`) and `left_out` (tasks that the headline skips).
    """
    found = verdicts(rows, harness)
    marked = [verdict for verdict in found if verdict.correct is not None]
    average = harness.average(
        [Mark(verdict.question.task, bool(verdict.correct), verdict.blank, benchmark) for verdict in marked]
    )
    counted = counted_of(marked, harness)
    tasks = list(dict.fromkeys(verdict.question.task for verdict in counted))
    films = [verdict.film for verdict in counted]
    right, total = tables(counted, tasks)
    taken = [place for place, task in enumerate(tasks) if task not in average["left_out"]]
    macro = bounds(by_film(films, (right, total), macro_of, seed=seed))
    micro = list(wilson(int(right.sum()), int(total.sum())))
    if harness.averaging == "macro":
        headline = bounds(by_film(films, (right[:, taken], total[:, taken]), macro_of, seed=seed))
    else:
        headline = list(wilson(int(right[:, taken].sum()), int(total[:, taken].sum())))
    lines = {name: _grouped(marked, name, harness) for name in by}
    return {
        "protocol": harness.describe(),
        "benchmark": benchmark,
        "questions": len(found),
        "scored": average["counted"],
        "unscored": dict(Counter(verdict.question.task for verdict in found if verdict.correct is None)),
        "headline": {"name": harness.headline, "value": average["headline"], "interval": headline},
        "macro": {"name": "mean over tasks", "value": average["macro"], "interval": macro},
        "micro": {"name": "all questions", "value": average["micro"], "interval": micro},
        "left_out": average["left_out"],
        "by": lines,
        "errors": [
            {"id": verdict.question.id, "video": verdict.question.video, "task": verdict.question.task, "error": verdict.error}
            for verdict in found
            if verdict.error is not None
        ],
    }  # fmt: skip


def _grouped(marked: Sequence[Verdict], by: str, harness: Protocol) -> list[dict[str, Any]]:
    groups: dict[str, list[Verdict]] = {}
    for verdict in marked:
        groups.setdefault(group_of(verdict.question, by), []).append(verdict)
    order = sorted(groups, key=_natural) if by == "duration" else list(groups)
    return [_line(name, groups[name], harness) for name in order]


def _natural(name: str) -> tuple[float, str]:
    known = {"short": 0, "medium": 1, "long": 2, "unknown": math.inf}
    digits = "".join(sign if sign.isdigit() else " " for sign in name).split()
    number = known.get(name, float(digits[0]) if digits else math.inf)
    return (number + 0.5 if name.startswith("over") else number), name


def score(
    folder: Path, *, protocol_name: str | None = None, by: Sequence[str] = ("task",), seed: int = 0
) -> dict[str, Any]:
    """Score a results folder; see `score_rows`. The result also has `run`, what its run.json says of it.

    Raises:
        UsageError: no results there, an unknown protocol or group, or a protocol that these rows can't be read by.
    """
    run = load_run(folder)
    harness = chosen_protocol(run, protocol_name)
    benchmark = str(run.identity.get("benchmark") or "")
    result = score_rows(run.rows, harness, benchmark=benchmark, by=by, seed=seed)
    own = run.own_protocol()
    result["run"] = {"folder": str(folder), **run.identity}
    result["asked_by"], result["damaged"] = own, run.damaged
    if own is not None and own != harness.name:
        result["protocol"]["notes"].append(
            f"the questions were asked as by {own}; only the reading is {harness.name}'s"
        )
    return result
