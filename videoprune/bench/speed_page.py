"""The tables of `bench speed` as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from videoprune.report.report import human_bytes, human_flops

NAMES = {
    "decode_film": "decode", "encode": "encode", "store": "store", "segment": "segment, merge", "question": "question",
    "prefill": "prefill", "decode": "answer",
}  # fmt: skip


def as_markdown(result: Mapping[str, Any]) -> str:
    """Machine, model, stages, totals, prefill and cache, pairs."""
    machine, model = result["machine"], result["model"]
    lines = [
        f"{machine['cpu']} ({machine['capability']}), {machine['cores']} cores, {machine['threads']} thread(s) of torch, "
        f"{machine['device']}, {machine['dtype']}; Python {machine['python']}, torch {machine['torch']}, transformers "
        f"{machine['transformers']}. Times of pairs: {machine['clock']}.",
        "",
        f"Model: {model['shape']}, {model['layers']} layers of width {model['width']}, MLP {model['mlp']}, {model['heads']} "
        f"heads of {model['head_dim']}, {model['kv_heads']} of keys and values.",
    ]
    if result["runs"]:
        lines += ["", "## Stages", "", *_stages(result["runs"])]
        lines += ["", "## A film and a question", "", *_totals(result["runs"])]
        lines += ["", "## Prefill and cache", "", *_prefill(result["runs"])]
    if result["pairs"]:
        lines += ["", "## Pairs", "", *_pairs(result["pairs"])]
    return "\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """A Markdown table whose first `left` columns stand left."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return [f"| {' | '.join(head)} |", f"|{'|'.join(rule)}|", *(f"| {' | '.join(row)} |" for row in rows)]


def _stages(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """CPU seconds / wall seconds, peak memory."""
    rows = []
    for run in runs:
        cells = []
        for name in NAMES:
            spent = run["stages"][name]
            peak = "" if spent["peak_bytes"] is None else f", {human_bytes(spent['peak_bytes'])}"
            cells.append(f"{_seconds(spent['cpu_seconds'])} / {_seconds(spent['seconds'])}{peak}")
        rows.append([run["recipe"], str(run["frames"]), *cells])
    head = table(["recipe", "frames", *NAMES.values()], rows)
    return ["CPU seconds / wall seconds, and the most memory above what was held when the stage began.", "", *head]


def _totals(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    dense = {run["frames"]: run for run in runs if run["recipe"] == "dense"}
    rows = []
    for run in runs:
        base = dense[run["frames"]]
        first, before = run["first_token"], base["first_token"]
        rows.append([
            run["recipe"], str(run["frames"]), f"{run['tokens']['sampled']:,}", f"{run['tokens']['merged']:,}",
            f"{run['tokens']['last_layer']:,}", f"{_seconds(first['cpu_seconds'])} / {_seconds(first['seconds'])}",
            f"{before['cpu_seconds'] / first['cpu_seconds']:.2f} ×", f"{run['films_an_hour']:.0f}",
            human_flops(run["flops"]["total"]["total"]),
            _percent(run["flops"]["total"]["total"] / run["flops"]["dense"]["total"]),
        ])  # fmt: skip
    head = [
        "recipe",
        "frames",
        "tokens sampled",
        "enter the LM",
        "last layer",
        "first token, CPU / wall s",
        "dense / this",
    ]
    return table([*head, "films an hour", "FLOPs", "of dense"], rows)


def _prefill(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    dense = {run["frames"]: run for run in runs if run["recipe"] == "dense"}
    rows = []
    for run in runs:
        prefill, kv = run["prefill"], run["kv"]
        spent = run["stages"]["prefill"]["cpu_seconds"]
        full, given = prefill["share_at_full_width"], prefill["given_the_indices"]
        rows.append([
            run["recipe"], str(run["frames"]), f"{run['rows']:,}", human_flops(prefill["flops"]["total"]),
            _percent(prefill["share"]), "" if full is None else _percent(full), _seconds(spent),
            _percent(spent / dense[run["frames"]]["stages"]["prefill"]["cpu_seconds"]),
            "" if given is None else _seconds(given), human_bytes(kv["bytes"]), human_bytes(kv["measured_bytes"]),
            _percent(kv["share"]),
        ])  # fmt: skip
    head = [
        "recipe",
        "frames",
        "rows",
        "FLOPs",
        "of dense",
        "at the 7B width",
        "CPU s",
        "of dense",
        "given the indices, s",
    ]
    return table([*head, "KV counted", "KV held", "of dense"], rows)


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for row in pairs:
        span = "" if row["low"] is None else f"{row['low']:.3f} – {row['high']:.3f}"
        rows.append([
            row["recipe"], row["what"], str(row["frames"]), f"{row['rows']:,}", f"{row['median']:.3f}", span,
            _seconds(row["ours"]), _seconds(row["theirs"]), str(row["pairs"]), f"≤ {row['bar']:.2f}", row["verdict"],
        ])  # fmt: skip
    head = ["recipe", "ratio", "frames", "rows", "median", "95 %", "ours, s", "theirs, s", "pairs", "bar", ""]
    return table(head, rows, left=2)


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
