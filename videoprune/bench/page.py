"""The table of `bench ops` as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from videoprune.errors import UsageError

BARS = {"bound": "≥ 70 % of the bound", "faster": "≥ 5 ×", "only one": "alone fits", "none": "**misses**"}


def write_page(path: Path, page: str) -> None:
    """Write the page.

    Raises:
        UsageError: where the folder is missing or the file can't be written.
    """
    try:
        path.write_text(page + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"--markdown: {path} can't be written: {error.strerror}; give a file in a folder that is there"
        ) from None


def as_markdown(result: dict[str, Any]) -> str:
    """Machine, bounds, and one table for primitives and one for selections."""
    machine, lines = result["machine"], []
    lines.append(
        f"{machine['cpu']} ({machine['capability']}), {machine['threads']} thread(s), Python {machine['python']}, "
        f"torch {machine['torch']}; tokens of width {machine['width']}, float32."
    )
    for threads, bound in result["bounds"].items():
        lines.append(
            f"- {threads} thread(s): matmul {bound['matmul'] / 1e9:.0f} GFLOP/s, copy {bound['copy'] / 1e9:.1f} GB/s"
        )
    groups = {"Primitives": [], "Selections": []}  # type: dict[str, list[dict[str, Any]]]
    for row in result["rows"]:
        groups["Primitives" if row["primitive"] else "Selections"].append(row)
    for title, rows in groups.items():
        if rows:
            lines += ["", f"## {title}", "", *_table(rows, title == "Selections")]
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]], selections: bool) -> list[str]:
    head = ["what", "tokens", "ours", "transcription", "faster", "peak ours", "peak theirs", "of the bound"]
    head.append("of the prefill saved" if selections else "bar")
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(["---", *["---:"] * (len(head) - 2), "---"]) + "|"]
    names = list(dict.fromkeys(row["name"] for row in rows))
    ordered = sorted(rows, key=lambda row: (names.index(row["name"]), row["tokens"]))
    return lines + ["| " + " | ".join(_cells(row, selections)) + " |" for row in ordered]


def _cells(row: dict[str, Any], selections: bool) -> list[str]:
    tokens = f"{row['tokens']:,}".replace(",", " ")
    if row["ours"] is None:
        return [row["name"], tokens, f"left out: about {row['estimate']:.0f} s", *[""] * 6]
    ours, theirs = row["ours"], row["theirs"]
    none = "—" if row["no_transcription"] != "baseline" else "no paper"
    part = row["of_prefill"]
    last = BARS[row["bar"]]
    if selections:
        last = (
            ""
            if part is None
            else f"{100 * part:.2g} %" + ("" if part < 0.05 else " (excepted)" if row["excepted"] else " **misses**")
        )
    return [
        row["name"],
        tokens,
        _time(ours),
        _time(theirs) if theirs else none,
        f"{row['ratio']:.1f} ×" if row["ratio"] else none,
        _bytes(ours["peak_bytes"]),
        _bytes(theirs["peak_bytes"]) if theirs else none,
        f"{100 * row['share']:.0f} %" if row["share"] >= 0.005 else "",
        last,
    ]


def _time(timed: dict[str, float]) -> str:
    """Median, and half of the distance between the quartiles."""
    middle, half = 1000 * timed["seconds"], 500 * (timed["high"] - timed["low"])
    digits = 3 if middle < 1 else 2 if middle < 10 else 1 if middle < 1000 else 0
    spread = f" ± {half:.{digits}f}" if timed["runs"] > 1 else ""
    return f"{middle:.{digits}f}{spread} ms"


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.{1 if count < 100 * size else 0}f} {unit}"
    return f"{count:.0f} B"
