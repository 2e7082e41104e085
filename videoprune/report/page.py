"""The HTML report: one self-contained page of what was watched, kept, spent and answered.

No script runs in it and nothing is loaded: pictures are data, charts are inline SVG, links go to places of the page, and a
content security policy says so to the browser. Everything that comes from outside (questions, answers, names) is escaped. The
numbers that it shows carry their exact value in `data-value`, and all of `--json` is inside as inert JSON.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from videoprune.report.pictures import KEPT, MERGED, lit_tile
from videoprune.report.report import STAGES, clock, human_bytes, human_flops, human_seconds

TILE = 112  # width of a frame's picture in pixels
QUALITY = 78  # of its JPEG
EVENT_HUES = (210, 150, 40, 280, 350, 100)


@dataclass
class Shown:
    """One sampled frame on the page: its number, time, event, picture (H, W, 3) uint8 or None, and cells (rows, columns)."""

    frame: int
    seconds: float
    event: int
    picture: np.ndarray | None
    cells: np.ndarray


@dataclass
class PageData:
    """What a page shows.

    Attributes:
        result: the object that `--json` prints.
        frames: shown frames, in order.
        bounds: (E, 2) first and last frame of each event.
        frame_seconds: (F,) times of all sampled frames.
        similarity: (F-1,) of adjacent frames, None where the segmenter computed none.
        relevance: (F,) to each question, None where nothing asked for it.
        key: (E,) which events are key to each question, None where none is.
        tokens_by_layer: visual tokens that entered each layer, for each answer.
    """

    result: Mapping[str, Any]
    frames: Sequence[Shown]
    bounds: np.ndarray
    frame_seconds: np.ndarray
    similarity: np.ndarray | None = None
    relevance: Sequence[np.ndarray | None] = field(default_factory=list)
    key: Sequence[np.ndarray | None] = field(default_factory=list)
    tokens_by_layer: Sequence[Sequence[int]] = field(default_factory=list)


def page(data: PageData) -> str:
    """The whole page."""
    result = data.result
    title = f"{_file(result['film'])} · videoprune"
    body = [_head(result)]
    for number, answer in enumerate(result["answers"]):
        other = result["compare"][number] if "compare" in result else None
        body.append(_answer(data, number, answer, other))
    body.append(_curves(data))
    body.append(_strip(data))
    inert = (
        json.dumps(result, ensure_ascii=False).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{CSS}</style></head><body><main>\n'
        + "\n".join(body)
        + f'\n</main><script type="application/json" id="result">{inert}</script></body></html>\n'
    )


def _file(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]


def number(value: float, shown: str) -> str:
    """A number with its exact value beside what is shown."""
    return f'<span data-value="{value!r}">{escape(shown)}</span>'


def _head(result: Mapping[str, Any]) -> str:
    warnings = "".join(f'<p class="warning">{escape(text)}</p>' for text in result.get("warnings", ()))
    changed = " ".join(result.get("overrides", ()))
    facts = (("film", result["film"]), ("model", result["model"]), ("recipe", f"{result['recipe']} {changed}".strip()))
    shown = "".join(f"<div><dt>{name}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts)
    return f"<header><h1>{escape(_file(result['film']))}</h1><dl>{shown}</dl>{warnings}</header>"


# ------------------------------------------------------------------------------------------------------------ an answer


def _answer(data: PageData, index: int, answer: Mapping[str, Any], other: Mapping[str, Any] | None) -> str:
    notice = f'<p class="warning">{escape(answer["notice"])}</p>' if answer.get("notice") else ""
    dense = f'<p class="dense"><b>dense</b> {escape(other["text"])}</p>' if other else ""
    times = "".join(
        f'<a href="#frame-{_nearest(data, each["seconds"])}">{clock(each["seconds"])}'
        f"<small>{100 * each['weight']:.0f} %</small></a>"
        for each in answer["evidence"]
    )
    evidence = f'<p class="evidence"><b>evidence</b> {times}</p>' if times else ""
    layers = data.tokens_by_layer[index] if index < len(data.tokens_by_layer) else ()
    return (
        f'<section class="answer"><h2>{escape(answer["question"])}</h2><p class="text">{escape(answer["text"])}</p>{dense}'
        f"{evidence}{notice}<div class=columns>{_tokens(answer['report'], other)}{_stages(answer['report'], other)}"
        f"{_layers(layers, answer['report'])}</div>{_choices(answer['report'])}</section>"
    )


def _nearest(data: PageData, seconds: float) -> int:
    """The shown frame that is nearest in time."""
    return min(data.frames, key=lambda shown: abs(shown.seconds - seconds)).frame if data.frames else 0


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _bar(part: float, whole: float) -> str:
    return f'<td class="bar"><i style="width:{100 * part / whole if whole else 0:.2f}%"></i></td>'


def _tokens(report: Mapping[str, Any], other: Mapping[str, Any] | None) -> str:
    tokens, kv, flops = report["tokens"], report["kv"], report["flops"]
    rows = [(name.replace("_", " "), count, tokens["sampled"], f"{count:,}") for name, count in tokens.items()]
    rows.append(("key/value cache", kv["bytes"], kv["dense_bytes"], human_bytes(kv["bytes"])))
    rows.append(("FLOPs", flops["total"]["total"], flops["dense"]["total"], human_flops(flops["total"]["total"])))
    lines = [
        f"<tr><th>{name}</th><td>{number(value, text)}</td><td>{_share(value, whole)}</td>{_bar(value, whole)}</tr>"
        for name, value, whole, text in rows
    ]
    spent = sum(report["seconds"].values())
    whole = max(spent, sum(other["report"]["seconds"].values()) if other else spent)
    share = _share(spent, sum(other["report"]["seconds"].values())) if other else ""
    lines.append(
        f"<tr><th>seconds</th><td>{number(spent, human_seconds(spent))}</td><td>{share}</td>{_bar(spent, whole)}</tr>"
    )
    return f"<table><caption>What is left, of a dense run</caption><tbody>{''.join(lines)}</tbody></table>"


def _stages(report: Mapping[str, Any], other: Mapping[str, Any] | None) -> str:
    names = [
        name
        for name in dict.fromkeys((*STAGES, *report["seconds"]))
        if name in report["seconds"] or name in report["flops"]
    ]
    head = "<th></th><th>seconds</th><th>FLOPs</th>" + ("<th>dense seconds</th><th>dense FLOPs</th>" if other else "")
    lines = []
    for name in names:
        cells = "".join(_cells(each, name) for each in (report, other["report"] if other else None) if each is not None)
        lines.append(f"<tr><th>{escape(name.replace('_', ' '))}</th>{cells}</tr>")
    wide = ' class="wide"' if other else ""
    return (
        f"<table{wide}><caption>Stages</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def _cells(report: Mapping[str, Any], name: str) -> str:
    spent, cost = report["seconds"].get(name), report["flops"].get(name, {}).get("total", 0.0)
    seconds = number(spent, human_seconds(spent)) if spent is not None else ""
    return f"<td>{seconds}</td><td>{number(cost, human_flops(cost)) if cost else ''}</td>"


def _layers(by_layer: Sequence[int], report: Mapping[str, Any]) -> str:
    entries, sampled = report["kv"]["entries"], report["tokens"]["sampled"]
    if not by_layer:
        return ""
    most = max(sampled, *by_layer, *entries, 1)
    lines = [
        f"<tr><th>{layer}</th><td>{number(count, f'{count:,}')}</td>{_bar(count, most)}"
        f"<td>{number(kept, f'{kept:,}')}</td>{_bar(kept, most)}</tr>"
        for layer, (count, kept) in enumerate(zip(by_layer, entries, strict=False))
    ]
    head = "<th>layer</th><th>visual tokens</th><th></th><th>KV entries</th><th></th>"
    return (
        f"<table class=layers><caption>By decoder layer, of {most:,}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def _choices(report: Mapping[str, Any]) -> str:
    lines = "".join(
        f"<tr><th>{escape(str(c['name']))}</th><td>{escape(str(c['value']))}</td><td>{escape(str(c['reason']))}</td></tr>"
        for c in report["choices"]
    )
    return f"<details><summary>Automatic choices</summary><table class=words><tbody>{lines}</tbody></table></details>"


# ------------------------------------------------------------------------------------------------------------ the film


def _curves(data: PageData) -> str:
    """Similarity of adjacent frames with the event bounds, and relevance to each question, over time."""
    lines = []
    if data.similarity is not None and len(data.similarity):
        lines.append(_curve(data, data.similarity, data.frame_seconds[1:], "similarity of adjacent frames", cuts=True))
    for answer, scores in zip(data.result["answers"], data.relevance, strict=False):
        if scores is not None and len(scores) > 1:
            lines.append(_curve(data, scores, data.frame_seconds, f"relevance to “{answer['question']}”", cuts=True))
    return f"<section><h2>Over time</h2>{''.join(lines)}</section>" if lines else ""


def _curve(data: PageData, values: np.ndarray, seconds: np.ndarray, label: str, cuts: bool) -> str:
    width, height = 1000.0, 120.0
    start, end = float(data.frame_seconds[0]), max(float(data.frame_seconds[-1]), float(data.frame_seconds[0]) + 1e-6)
    low, high = float(np.min(values)), float(np.max(values))
    thin = np.unique(np.linspace(0, len(values) - 1, min(len(values), 2000)).astype(int))
    x = (seconds[thin] - start) / (end - start) * width
    y = height - 6 - (values[thin] - low) / max(high - low, 1e-9) * (height - 12)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    marks = ""
    if cuts:
        at = (data.frame_seconds[data.bounds[1:, 0]] - start) / (end - start) * width
        marks = "".join(f'<line x1="{a:.1f}" x2="{a:.1f}" y1="0" y2="{height:g}"/>' for a in at[:400])
    scale = f"{low:.2f} to {high:.2f}, {clock(start)} to {clock(end)}; lines are event bounds"
    return (
        f"<figure><figcaption>{escape(label)} <small>{escape(scale)}</small></figcaption>"
        f'<svg viewBox="0 0 {width:g} {height:g}" preserveAspectRatio="none" role="img" aria-label="{escape(label, quote=True)}">'
        f'{marks}<polyline points="{points}"/></svg></figure>'
    )


def _strip(data: PageData) -> str:
    """The film: lit cells go on to the language model, half-lit ones live on in another, dark ones are dropped."""
    if not data.frames:
        return ""
    groups: dict[int, list[Shown]] = {}
    for shown in data.frames:
        groups.setdefault(shown.event, []).append(shown)
    key = next((each for each in data.key if each is not None), None)
    parts = []
    for event, frames in groups.items():
        first, last = (float(data.frame_seconds[number]) for number in data.bounds[event])
        mark = " · key" if key is not None and bool(key[event]) else ""
        hue = EVENT_HUES[event % len(EVENT_HUES)]
        tiles = "".join(_tile(shown) for shown in frames)
        parts.append(
            f'<div class="event" style="--hue:{hue}"><h3>event {event + 1} '
            f'<small>{clock(first)} – {clock(last)}{mark}</small></h3><div class="tiles">{tiles}</div></div>'
        )
    total = len(data.frame_seconds)
    kept = (
        f"{len(data.frames)} of {total} sampled frames are shown"
        if len(data.frames) < total
        else f"all {total} sampled frames"
    )
    return (
        f'<section><h2>The film</h2><p class="legend">Lit cells go on to the language model, half-lit ones live on in another, '
        f'dark ones are dropped; {kept}.</p><div class="strip">{"".join(parts)}</div></section>'
    )


def _tile(shown: Shown) -> str:
    kept, all_cells = int((shown.cells == KEPT).sum()), shown.cells.size
    merged = int((shown.cells == MERGED).sum())
    label = f"{clock(shown.seconds)}: {kept} of {all_cells} tokens kept, {merged} merged"
    rows, columns = shown.cells.shape
    cell = max(4, TILE // columns)
    ground = np.full((rows * cell, columns * cell, 3), 140, np.uint8)
    image = lit_tile(shown.picture if shown.picture is not None else ground, shown.cells, cell, cell)
    return (
        f'<figure id="frame-{shown.frame}"><img src="{_jpeg(image)}" width="{image.width}" height="{image.height}" '
        f'loading="lazy" alt="{escape(label, quote=True)}"><figcaption>{clock(shown.seconds)} '
        f"<small>{kept}/{all_cells}</small></figcaption></figure>"
    )


def _jpeg(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


CSS = """
:root{--ground:#fbfbf9;--card:#fff;--ink:#1c1e22;--faint:#666c77;--line:#e3e3dd;--accent:#b25e00;--bar:#e09a3e}
@media (prefers-color-scheme:dark){:root{--ground:#0f1115;--card:#171a20;--ink:#e6e8ec;--faint:#98a0ad;--line:#2a2f38;
--accent:#ffbe55;--bar:#b9832f}}
*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:0 auto;padding:24px 16px 64px}h1{font-size:1.5rem;margin:0 0 8px;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 8px;overflow-wrap:anywhere}h3{font-size:.85rem;margin:0 0 6px;font-weight:600}
small{color:var(--faint);font-weight:400}dl{display:flex;flex-wrap:wrap;gap:4px 24px;margin:0;color:var(--faint);font-size:.9rem}
dl div{display:flex;gap:8px}dd{margin:0;color:var(--ink);overflow-wrap:anywhere}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:16px;margin-top:16px}
.text{font-size:1.35rem;margin:0 0 8px;color:var(--accent);overflow-wrap:anywhere}.dense,.evidence{margin:0 0 8px}
.evidence a{display:inline-block;margin:0 8px 4px 0;padding:1px 10px;border:1px solid var(--line);border-radius:99px;
color:inherit;text-decoration:none}.evidence a small{margin-left:6px}
.warning{border-left:3px solid var(--bar);padding-left:10px;margin:8px 0}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr));gap:16px;align-items:start}
table{border-collapse:collapse;width:100%;font-size:.85rem;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}
caption{text-align:left;color:var(--faint);padding-bottom:4px}th{font-weight:500;text-align:left;padding:2px 10px 2px 0}
td{text-align:right;padding:2px 10px 2px 0;white-space:nowrap}.words td{text-align:left;white-space:normal}
thead th{text-align:right;vertical-align:bottom}@media (min-width:760px){.wide{grid-column:span 2}}
.bar{width:30%;min-width:60px}.bar i{display:block;height:8px;border-radius:4px;background:var(--bar);min-width:1px}
details{margin-top:8px}summary{cursor:pointer;color:var(--faint)}figure{margin:0}
section>figure{margin-top:12px}svg{width:100%;height:96px;display:block;background:var(--ground);border-radius:8px}
polyline{fill:none;stroke:var(--accent);stroke-width:1.6;vector-effect:non-scaling-stroke}
svg line{stroke:var(--faint);stroke-opacity:.45;vector-effect:non-scaling-stroke}
.strip{display:flex;flex-wrap:wrap;gap:12px}.event{border-left:3px solid hsl(var(--hue) 60% 50%);padding-left:8px}
.tiles{display:flex;flex-wrap:wrap;gap:6px}.tiles img{display:block;border-radius:6px;max-width:100%;height:auto}
.tiles figcaption{font-size:.75rem;text-align:center}
.tiles figure:target{outline:3px solid var(--accent);outline-offset:2px;border-radius:8px}
.legend{color:var(--faint);margin:0 0 12px}
"""
