"""The accuracy table: its settings, scores, intervals, page, and a run that is stopped and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videoprune.bench import accuracy
from videoprune.bench.accuracy_table import as_markdown, summarise
from videoprune.bench.films import HeldOut
from videoprune.bench.settings import settings
from videoprune.errors import UsageError

Run = Callable[..., Any]


def test_settings() -> None:
    rows = settings(["demo", "metok-release", "random"], ["prefill.fastv", "merge"], ["own", "0.1"], 1024, 64)
    by_name = {row.name: row for row in rows}
    assert rows[0].name == "dense"
    assert rows[-1].name == "blind"
    assert by_name["demo@0.1"].recipe["merge"][-1]["keep"] == 102
    assert "at_most" not in by_name["demo@0.1"].recipe["merge"][-1]
    assert by_name["random@0.1"].recipe["merge"] == {"method": "random", "keep": 0.1}
    assert by_name["prefill.fastv@0.1"].recipe["prefill"] == {"method": "fastv", "keep": 0.1}
    assert by_name["merge.holitom@0.1"].recipe["segment"] == {"method": "metok"}
    assert len({row.digest() for row in rows}) == len(rows) - (
        by_name["random@0.1"].digest() == by_name.get("merge.random@0.1", rows[0]).digest()
    )
    for bad in (
        (["none-such"], [], ["own"]),
        ([], ["merge.none"], ["0.1"]),
        ([], ["segment"], ["0.1"]),
        (["demo"], [], ["1.5"]),
    ):
        with pytest.raises(UsageError):
            settings(*bad, 1024, 64)


def test_questions_repeat_and_their_evidence_is_where_they_say() -> None:
    film = HeldOut(8_000_001, 64)
    asked = film.questions(2)
    assert [one.question for one in asked] == [one.question for one in film.questions(2)]
    assert max(sum(one.kind == kind for one in asked) for kind in accuracy.KINDS) == 2
    needle = next(one for one in asked if one.kind == "needle")
    (start, end), seconds = needle.question.evidence[0], np.arange(64.0)
    assert needle.evidence(seconds).nonzero()[0].tolist() == [s for s in range(64) if start <= s < end]
    assert needle.options[needle.right or 0] == needle.question.answer


def row(setting: str, seed: int, kind: str, score: float, **more: Any) -> dict[str, Any]:
    tokens = {"sampled": 100, "encoded": 80, "merged": 20, "last_layer": 10}
    return {
        "frames": 64, "form": "open", "setting": setting, "seed": seed, "kind": kind, "question": "q",
        "answer": "a", "score": score,
        "tokens": tokens, "kv_bytes": 1, "kv_dense_bytes": 4, "flops": 2.0, "flops_dense": 8.0, "seconds": {"prefill": 0.5},
        "evidence": 0.5, **more,
    }  # fmt: skip


def test_summary_by_hand() -> None:
    dense = [row("dense", seed, kind, 1.0, recall=0.9) for seed in range(4) for kind in ("count", "topic")]
    pruned = [row("demo", seed, "count", float(seed > 0)) for seed in range(4)]
    pruned += [row("demo", seed, "topic", 1.0) for seed in range(4)]
    first, second = summarise([*pruned, *dense], ["dense", "demo"])
    assert (first["setting"], first["macro"]["mean"], first["recall"]) == ("dense", 1.0, pytest.approx(0.9))
    assert second["kinds"]["count"] == {
        "n": 4,
        "score": 0.75,
        "low": pytest.approx(0.3006, abs=1e-4),
        "high": pytest.approx(0.9544, abs=1e-4),
    }
    assert second["macro"]["mean"] == pytest.approx(0.875)
    assert second["difference"]["mean"] == pytest.approx(-0.125)
    assert second["difference"]["low"] <= -0.125 <= second["difference"]["high"]
    assert (second["tokens"]["merged"], second["flops"], second["kv"], second["seconds"]) == (0.2, 0.25, 0.25, 0.5)
    page = as_markdown([first, second], "# Title")
    assert "| demo | 87.5 [" in page
    assert "-12.5 [" in page
    assert "90.0 % of the evidence frames" in page


def test_a_run_and_its_resumption(videoprune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = (
        "bench accuracy --recipes random --budgets 0.2 --lengths 24 --films 2 --each 1 --workers 1 --first-seed 8100000"
    )
    words = [*line.split(), "--max-new-tokens", "12", "--no-plot", "--json", "--out", str(tmp_path / "out")]
    done = videoprune(*words)
    assert done.code == 0, done.err
    records = json.loads(done.out)
    named = {(record["setting"], record["form"]) for record in records}
    assert {
        ("dense", "open"),
        ("dense", "options"),
        ("dense", "letters"),
        ("random@0.2", "open"),
        ("blind", "open"),
    } <= named
    pruned = next(record for record in records if record["setting"] == "random@0.2")
    assert pruned["tokens"]["merged"] == pytest.approx(0.2, abs=0.01)
    lines = (tmp_path / "out" / "rows.jsonl").read_text().splitlines(keepends=True)
    first_film = [line for line in lines if json.loads(line)["seed"] == json.loads(lines[0])["seed"]]
    (tmp_path / "out" / "rows.jsonl").write_text(
        "".join(first_film) + lines[-1][:40] + "\n"
    )  # as if killed in the second film
    again = videoprune(*words)
    assert again.code == 0, again.err
    assert "films: 1/1" in again.err
    kept = [
        json.loads(line)
        for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()
        if line.startswith("{") and line.endswith("}")
    ]
    assert sorted(r["key"] + r["question"] + r["form"] + r["text"] for r in kept) == sorted(
        r["key"] + r["question"] + r["form"] + r["text"] for r in map(json.loads, lines)
    )


@pytest.mark.parametrize(("count", "panels"), [(3, 3), (30, 2)])
def test_the_picture_shows_every_setting(
    count: int, panels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    from videoprune.bench.accuracy_plot import plot

    names = ["dense", "random@0.1", *(f"{'prefill' if at % 2 else 'merge'}.m{at}@0.1" for at in range(count - 2))]
    records = [
        {
            "frames": 64, "form": "open", "setting": name, "macro": {"mean": 0.5, "low": 0.4, "high": 0.6},
            "tokens": {"last_layer": 0.1}, "flops": 0.2, "seconds": 1.0,
        }
        for name in names
    ]  # fmt: skip
    made: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *given, **named: (made.append(figure), save(figure, *given, **named))
    )
    plot(records, tmp_path / "table.png")
    assert (tmp_path / "table.png").stat().st_size > 5000
    assert len(made[0].axes) == panels
    said = {text.get_text() for axis in made[0].axes for text in (*axis.texts, *axis.get_yticklabels())}
    assert {name if count == 3 else name.split("@")[0].rpartition(".")[2] for name in names} - {"dense"} <= said


def test_some_kinds_alone_and_films_that_were_asked_all(
    videoprune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "bench accuracy --recipes random --budgets 0.2 --lengths 24 --each 1 --workers 1 --first-seed 8100000 --forms open"
    words = [*line.split(), "--max-new-tokens", "4", "--no-plot", "--json", "--out", str(tmp_path / "out")]
    assert videoprune(*words, "--films", "1").code == 0
    some = videoprune(*words, "--films", "2", "--kinds", "topic,order")
    assert some.code == 0, some.err
    assert "films: 1/1" in some.err  # the first one was asked all kinds
    kinds = next(record["kinds"] for record in json.loads(some.out) if record["setting"] == "dense")
    assert {kind: found["n"] for kind, found in kinds.items()}["topic"] == 2
    assert kinds["list"]["n"] == 1
    refused = videoprune(*words, "--kinds", "colour,size")
    assert refused.code == 2
    assert "--kinds size" in refused.out
