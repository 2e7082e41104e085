"""The HTML report: nothing runs in it, everything is escaped, and its numbers are those of --json."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from videoprune.demo.film import make_film
from videoprune.report.page import PageData, Shown, page

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class Reader(HTMLParser):
    """Tags with their attributes, the exact numbers, and the texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def numbers(self) -> list[float]:
        return [float(attrs["data-value"]) for _, attrs in self.tags if attrs.get("data-value")]  # type: ignore[arg-type]


def report(text: str = "answer") -> dict[str, Any]:
    cost = {"linear": 1.5e9, "attention": 0.0, "total": 1.5e9}
    return {
        "question": f"why {ATTACK}", "text": text, "notice": ATTACK, "evidence": [{"seconds": 1.2, "weight": 0.5}],
        "report": {
            "tokens": {"sampled": 48, "encoded": 40, "merged": 12, "last_layer": 6},
            "kv": {"entries": [31, 17], "bytes": 4096, "dense_bytes": 65536},
            "flops": {"encode": cost, "total": cost, "dense": {"linear": 6e9, "attention": 0.0, "total": 6e9}},
            "seconds": {"encode": 0.123456, "prefill": 0.25}, "peak_bytes": 1,
            "choices": [{"name": "device", "value": "cpu", "reason": ATTACK}],
        },
    }  # fmt: skip


def data(**more: Any) -> PageData:
    cells = np.array([[2, 1], [0, 0]], dtype=np.uint8)
    picture = np.full((8, 8, 3), 200, np.uint8)
    result = {
        "film": f"films/{ATTACK}.mp4",
        "model": ATTACK,
        "recipe": "demo",
        "overrides": [ATTACK],
        "warnings": [ATTACK],
    }
    return PageData(
        result={**result, "answers": [report()], **more},
        frames=[Shown(n, float(n), n // 2, picture if n else None, cells) for n in range(3)],
        bounds=np.array([[0, 1], [2, 2]]),
        frame_seconds=np.arange(3.0),
        similarity=np.array([0.5, 0.9]),
        relevance=[np.array([0.1, 0.7, 0.2])],
        key=[np.array([True, False])],
        tokens_by_layer=[[12, 6]],
    )


def test_what_comes_from_outside_stays_text() -> None:
    text = page(data(compare=[report("other")]))
    read = Reader(text)
    scripts = [attrs for tag, attrs in read.tags if tag == "script"]
    assert [attrs.get("type") for attrs in scripts] == ["application/json"]
    assert not [attrs for _, attrs in read.tags if any(name.startswith("on") for name in attrs)]
    sources = [attrs.get("src") or attrs.get("href") or "" for _, attrs in read.tags]
    assert all(source.startswith(("data:", "#", "")) and "//" not in source.partition(",")[0] for source in sources)
    assert "default-src 'none'" in text
    assert f"why {ATTACK}" in "".join(read.texts)
    inert = re.search(r'<script type="application/json" id="result">(.*?)</script>', text, re.DOTALL)
    assert inert
    assert json.loads(inert.group(1))["answers"][0]["question"] == f"why {ATTACK}"


def test_its_numbers_are_those_of_the_report() -> None:
    read = Reader(page(data()))
    one = report()["report"]
    expected = [
        *one["tokens"].values(),
        one["kv"]["bytes"],
        one["flops"]["total"]["total"],
        sum(one["seconds"].values()),
    ]
    expected += [one["seconds"]["encode"], one["flops"]["encode"]["total"], one["seconds"]["prefill"], 12, 31, 6, 17]
    assert sorted(read.numbers) == sorted(map(float, expected))


def test_evidence_leads_to_the_frame_that_is_nearest_in_time() -> None:
    read = Reader(page(data()))
    assert [attrs["href"] for tag, attrs in read.tags if tag == "a"] == ["#frame-1"]
    assert "frame-1" in [attrs.get("id") for tag, attrs in read.tags if tag == "figure"]
    labels = [attrs["alt"] for tag, attrs in read.tags if tag == "img"]
    assert labels[1] == "0:01: 1 of 4 tokens kept, 1 merged"


def test_ask_and_show_write_them(videoprune: Callable[..., Any], tmp_path: Path) -> None:
    film, out, picture = tmp_path / "<b>film.mp4", tmp_path / "page.html", tmp_path / "kept.png"
    make_film(film, minutes=0.25, seed=3)
    asked = videoprune("ask", film, "Where does it take place?", "--compare", "--json", "--report", out)
    assert asked.code == 0
    printed = json.loads(asked.out)
    read = Reader(out.read_text(encoding="utf-8"))
    for answer in (*printed["answers"], *printed["compare"]):
        for value in (*answer["report"]["seconds"].values(), answer["report"]["flops"]["prefill"]["total"]):
            assert value in read.numbers
    assert len([1 for tag, _ in read.tags if tag == "img"]) == 15
    assert videoprune("show", film, "--out", picture, "--shown", "6", "-q").code == 0
    with Image.open(picture) as image:
        assert image.width > 300
    for words in (
        ["ask", film, "q?", "--report", tmp_path / "none" / "page.html"],
        ["show", film, "--out", tmp_path / "x.gif"],
    ):
        bad = videoprune(*words)
        assert bad.code == 2
        assert "--report" in bad.err or "--out" in bad.err


@pytest.mark.parametrize("missing", ["similarity", "relevance", "key", "frames"])
def test_parts_that_are_not_there_are_left_out(missing: str) -> None:
    shown = data()
    setattr(shown, missing, None if missing == "similarity" else [])
    assert "</html>" in page(shown)
