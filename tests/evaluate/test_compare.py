"""Paired comparisons of runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Ended
from tests.evaluate.runs import asked, failed, row, write_run
from videoprune.errors import UsageError
from videoprune.evaluate.compare import compare
from videoprune.evaluate.intervals import mcnemar

LETTER = {True: "A", False: "B"}


def cost(flops: float, merged: int) -> dict[str, Any]:
    return {
        "flops": {"total": flops, "dense": 100.0},
        "tokens": {"sampled": 1000, "merged": merged, "last_layer": merged // 2},
        "seconds": flops / 10,
    }


def runs_of(tmp_path: Path) -> list[Path]:
    """Three runs over 40 questions of two tasks on ten films."""
    rng = np.random.default_rng(0)
    folders = []
    for name, share, flops, merged in (
        ("dense", 0.8, 100.0, 1000),
        ("half", 0.75, 40.0, 500),
        ("worse", 0.3, 60.0, 600),
    ):
        rows = [
            row(
                asked(index, "ego" if index % 2 else "plotQA", film=index // 4),
                LETTER[bool(rng.random() < share)],
                **cost(flops, merged),
            )
            for index in range(40)
        ]
        folders.append(write_run(tmp_path / name, rows, recipe=name))
    return folders


def right_of(folder: Path) -> np.ndarray:
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return np.array(
        [each["prediction"] == "A" for each in sorted(rows, key=lambda each: int(each["id"].split("/")[1]))]
    )


def test_differences_are_paired(tmp_path: Path) -> None:
    folders = runs_of(tmp_path)
    result = compare(folders)
    first, second = right_of(folders[0]), right_of(folders[1])
    pair = result["pairs"][0]
    assert (pair["first"], pair["second"], result["questions"], result["films"]) == ("dense", "half", 40, 10)
    assert pair["micro"]["value"] == pytest.approx(second.mean() - first.mean())
    halves = [np.arange(40) % 2 == task for task in (0, 1)]
    by_task = [second[half].mean() - first[half].mean() for half in halves]
    assert pair["headline"]["value"] == pytest.approx(np.mean(by_task))
    assert (pair["only_first"], pair["only_second"]) == ((first & ~second).sum(), (second & ~first).sum())
    assert pair["p"] == mcnemar(pair["only_first"], pair["only_second"])

    draw = np.random.default_rng(5)
    difference = (second.astype(float) - first).reshape(10, 4)
    values = [difference[draw.integers(0, 10, 10)].mean() for _ in range(4000)]
    assert pair["micro"]["interval"] == pytest.approx(list(np.percentile(values, [2.5, 97.5])), abs=0.02)
    low, high = result["pairs"][1]["headline"]["interval"]
    assert low < result["pairs"][1]["headline"]["value"] < high < 0  # worse beyond doubt


def test_a_run_against_itself_differs_by_nothing(tmp_path: Path) -> None:
    folder = runs_of(tmp_path)[0]
    pair = compare([folder, folder])["pairs"][0]
    assert pair["headline"] == pair["micro"] == {"value": 0.0, "interval": [0.0, 0.0]}
    assert pair["p"] == 1.0


def test_pareto(tmp_path: Path) -> None:
    result = compare(runs_of(tmp_path), budget="tokens")
    assert [each["budgets"]["tokens"] for each in result["runs"]] == pytest.approx([1.0, 0.5, 0.6])
    assert [each["budgets"]["flops"] for each in result["runs"]] == pytest.approx([1.0, 0.4, 0.6])
    accurate = [each["headline"] for each in result["runs"]]
    assert [each["pareto"] for each in result["runs"]] == [accurate[0] > accurate[1], True, False]


def test_other_questions_are_refused_or_left_out_with_a_count(tmp_path: Path) -> None:
    folders = runs_of(tmp_path)
    lines = (folders[1] / "results.jsonl").read_text().splitlines()
    (folders[1] / "results.jsonl").write_text("\n".join(lines[:30]) + "\n")
    with pytest.raises(UsageError, match=r"dense: 40, half: 30; 30 in common"):
        compare(folders[:2])
    result = compare(folders[:2], common=True)
    assert (result["questions"], result["left_out"]) == (30, {"dense": 10, "half": 0})
    other = write_run(tmp_path / "other", [row(asked(99), "A")])
    with pytest.raises(UsageError, match="no scored question in common"):
        compare([folders[0], other], common=True)


def test_other_protocols_and_benchmarks_are_refused(tmp_path: Path) -> None:
    rows = [row(asked(index), "A") for index in range(3)]
    one = write_run(tmp_path / "one", rows)
    two = write_run(tmp_path / "two", rows, protocol="mlvu-lmms-eval")
    with pytest.raises(UsageError, match=r"one: mlvu-official, two: mlvu-lmms-eval"):
        compare([one, two])
    assert compare([one, two], protocol_name="mlvu-official")["protocol"]["name"] == "mlvu-official"
    three = write_run(tmp_path / "three", rows, benchmark="mlvu-test")
    with pytest.raises(UsageError, match="different benchmarks"):
        compare([one, three])
    with pytest.raises(UsageError, match="two at least"):
        compare([one])


def test_errors_are_wrong_and_rows_without_costs_have_no_budget(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", [row(asked(0, film=0), "A"), row(asked(1, film=1), "A")])
    two = write_run(tmp_path / "two", [row(asked(0, film=0), "A"), failed([asked(1, film=1)])])
    result = compare([one, two])
    assert result["pairs"][0]["micro"]["value"] == -0.5
    assert [each["errors"] for each in result["runs"]] == [0, 1]
    assert result["runs"][0]["pareto"] is None


def test_command_and_plot(tmp_path: Path, videoprune: Callable[..., Ended]) -> None:
    folders = runs_of(tmp_path)
    ended = videoprune("compare", *folders, "--plot", tmp_path / "pareto.png")
    assert ended.code == 0, ended.err
    assert "40 common questions on 10 films" in ended.out
    assert "half - dense" in ended.out
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads(videoprune("compare", *folders, "--json").out)["pairs"]) == 2
    assert videoprune("compare", *folders, "--plot", tmp_path / "pareto.txt").code == 2
    assert videoprune("compare", folders[0]).code == 2
