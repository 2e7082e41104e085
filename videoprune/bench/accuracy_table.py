"""What the rows of `bench accuracy` say: shares with intervals, paired differences to dense, and the page that shows them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from videoprune.bench.films import KINDS, MACRO
from videoprune.evaluate.intervals import by_film, macro_of, wilson

Row = Mapping[str, Any]
SHORT = {"direction": "direct.", "sub_scene": "scene F1", "list": "list F1", "colour": "colour"}


def summarise(rows: Sequence[Row], order: Sequence[str]) -> list[dict[str, Any]]:
    """One record a length, form and setting.

    Args:
        rows: of `accuracy.run`.
        order: names of the settings, as they are shown.

    Returns:
        Records with `frames`, `form`, `setting`, `n`, `kinds` {kind: {n, score, low, high}}, `macro` and `difference` to dense
        ({mean, low, high} over the kinds of MACRO, in points), and for open answers the means of `tokens` (shares of
        sampled), `kv`, `flops` (shares of dense), `seconds` a question and film, `evidence` and `recall`.
    """
    groups: dict[tuple[int, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["frames"], row["form"], row["setting"]].append(row)
    records = []
    for frames, form, setting in sorted(groups, key=lambda g: (g[0], g[1] != "open", g[1], order.index(g[2]))):
        own, dense = groups[frames, form, setting], groups.get((frames, form, "dense"), [])
        kinds = {}
        for kind in KINDS:
            scores = [row["score"] for row in own if row["kind"] == kind]
            if scores:
                low, high = wilson(round(sum(scores)), len(scores))
                kinds[kind] = {"n": len(scores), "score": float(np.mean(scores)), "low": low, "high": high}
        record = {"frames": frames, "form": form, "setting": setting, "n": len(own), "kinds": kinds}
        record["macro"] = _interval(_scored(own))
        record["difference"] = _interval(_paired(own, dense)) if setting != "dense" and dense else None
        if form == "open":
            record |= _costs(own)
        records.append(record)
    return records


Scored = list[tuple[str, str, float]]  # film, kind, score


def _interval(scored: Scored) -> dict[str, float]:
    """Mean over kinds of the mean score of each, with its interval: whole films are drawn."""
    kinds = sorted({kind for _, kind, _ in scored})
    scores, counts = np.zeros((len(scored), len(kinds))), np.zeros((len(scored), len(kinds)))
    for row, (_, kind, score) in enumerate(scored):
        scores[row, kinds.index(kind)], counts[row, kinds.index(kind)] = score, 1
    if not scored:
        return {"mean": math.nan, "low": math.nan, "high": math.nan}
    low, high = by_film([film for film, _, _ in scored], [scores, counts], macro_of)
    return {"mean": float(macro_of(scores.sum(0), counts.sum(0))), "low": low, "high": high}


def _scored(rows: Sequence[Row]) -> Scored:
    return [(str(row["seed"]), row["kind"], row["score"]) for row in rows if row["kind"] in MACRO]


def _paired(rows: Sequence[Row], dense: Sequence[Row]) -> Scored:
    """Differences to dense of the same question on the same film."""
    reference = {(row["seed"], row["kind"], row["question"], row["answer"]): row["score"] for row in dense}
    found: Scored = []
    for row in rows:
        same = (row["seed"], row["kind"], row["question"], row["answer"])
        if row["kind"] in MACRO and same in reference:
            found.append((str(row["seed"]), row["kind"], row["score"] - reference[same]))
    return found


def _costs(rows: Sequence[Row]) -> dict[str, Any]:
    def mean(values: Sequence[float]) -> float | None:
        return float(np.mean(values)) if values else None

    sampled = [row["tokens"]["sampled"] for row in rows]
    shares = {
        name: mean([row["tokens"][name] / total for row, total in zip(rows, sampled, strict=True)])
        for name in ("encoded", "merged", "last_layer")
    }
    return {
        "tokens": shares,
        "most_merged": max(row["tokens"]["merged"] for row in rows),
        "kv": mean([row["kv_bytes"] / row["kv_dense_bytes"] for row in rows]),
        "flops": mean([row["flops"] / row["flops_dense"] for row in rows]),
        "seconds": mean([sum(row["seconds"].values()) for row in rows]),
        "evidence": mean([row["evidence"] for row in rows if row["evidence"] is not None and row["kind"] in MACRO]),
        "recall": mean([row["recall"] for row in rows if "recall" in row]),
    }


# ------------------------------------------------------------------------------------------------------------ the page


def percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def _span(interval: Mapping[str, float] | None, signed: bool = False) -> str:
    if interval is None or math.isnan(interval["mean"]):
        return "–"
    sign = "+" if signed else ""
    low, mean, high = (f"{100 * interval[part]:{sign}.1f}" for part in ("low", "mean", "high"))
    return f"{mean} [{low}, {high}]"


def as_markdown(records: Sequence[Mapping[str, Any]], head: str) -> str:
    """The page: for each length a table of open answers, then one of options and letters, then the counts."""
    parts = [head.rstrip(), ""]
    for frames in sorted({record["frames"] for record in records}):
        own = [record for record in records if record["frames"] == frames]
        for form in ("open", "options", "letters"):
            shown = [record for record in own if record["form"] == form]
            if shown:
                parts += [f"## {frames} frames, {TITLES[form]}", "", _table(shown, form), ""]
        recall = next((record.get("recall") for record in own if record["setting"] == "dense"), None)
        if recall is not None:
            parts += [
                f"Relevance scorer: {percent(recall)} % of the evidence frames are among the best 20 % (chance: 20 %).",
                "",
            ]
    return "\n".join(parts).rstrip() + "\n"


TITLES = {
    "open": "free answers (exact match; lists by F1 of their events)",
    "options": "four options by likelihood of their texts",
    "letters": "four options by generated letter",
}


def _table(records: Sequence[Mapping[str, Any]], form: str) -> str:
    kinds = [kind for kind in KINDS if any(kind in record["kinds"] for record in records)]
    head = ["setting", "macro [95 %]", "− dense [95 %]", *(SHORT.get(kind, kind) for kind in kinds)]
    costs = ("into LM %", "last layer %", "KV %", "FLOPs %", "s", "evidence %")
    head += costs if form == "open" else ()
    lines = []
    for record in records:
        cells = [record["setting"], _span(record["macro"]), _span(record["difference"], signed=True)]
        cells += [percent(record["kinds"][kind]["score"]) if kind in record["kinds"] else "–" for kind in kinds]
        if form == "open":
            tokens = record["tokens"]
            cells += [percent(tokens["merged"]), percent(tokens["last_layer"]), percent(record["kv"])]
            cells += [percent(record["flops"]), f"{record['seconds']:.2f}", percent(record["evidence"])]
        lines.append(cells)
    counts = ["n", "", "", *(_counts(records, kind) for kind in kinds), *([""] * len(costs) if form == "open" else [])]
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines, counts]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _counts(records: Sequence[Mapping[str, Any]], kind: str) -> str:
    found = sorted({record["kinds"][kind]["n"] for record in records if kind in record["kinds"]})
    return "–".join(str(n) for n in dict.fromkeys((found[0], found[-1])))
