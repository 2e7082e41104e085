"""The loss curve of a training as a small SVG, drawn from its log."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT, EDGE = 640, 320, 48
COLOURS = ("#222222", "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b")
HIDDEN = ("step", "epoch", "learning_rate", "grad_norm")


def draw_curve(log: Path, out: Path, title: str) -> None:
    """Every loss and share of a JSONL log over the steps."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    names = [name for name in (rows[0] if rows else {}) if name not in HIDDEN]
    series = {
        name: [(row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))] for name in names
    }
    points = [point for line in series.values() for point in line]
    right = max((step for step, _ in points), default=1)
    top = max((value for _, value in points), default=1.0) or 1.0

    def place(step: float, value: float) -> str:
        across = EDGE + (WIDTH - 2 * EDGE) * step / right
        return f"{across:.1f},{HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * max(value, 0) / top:.1f}"

    body = [
        _text(EDGE, 20, title),
        _text(EDGE - 6, EDGE, f"{top:.2g}", "end"),
        _text(EDGE - 6, HEIGHT - EDGE, "0", "end"),
    ]
    body.append(_text(WIDTH - EDGE, HEIGHT - EDGE + 18, f"step {right}", "end"))
    body.append(f'<path d="M{EDGE},{EDGE} V{HEIGHT - EDGE} H{WIDTH - EDGE}" fill="none" stroke="#999"/>')
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        body.append(_line([place(*point) for point in line], colour))
        body.append(_text(WIDTH - EDGE - 90, EDGE + 16 * number, name, colour=colour))
    out.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(body)}</svg>\n',
        encoding="utf-8",
    )


def _line(places: Sequence[str], colour: str) -> str:
    return f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="1.3"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "#222") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
