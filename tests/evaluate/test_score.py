"""Scores, their intervals, and how errors count; against numpy loops and numbers worked out by hand."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Ended
from tests.evaluate.runs import asked, failed, row, write_run
from videoprune.errors import UsageError
from videoprune.evaluate.intervals import by_film, macro_of, mcnemar, wilson
from videoprune.evaluate.score import group_of, score

LETTER = {True: "A", False: "B"}


def test_wilson_against_published_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    for correct, total, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(correct, total) == pytest.approx((low, high), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(29, 29) == pytest.approx((1 - wilson(0, 29)[1], 1.0))


def test_mcnemar_is_the_exact_binomial_test() -> None:
    for first, second in ((0, 0), (5, 0), (3, 8), (10, 10), (41, 30)):
        total = first + second
        chances = [Fraction(math.comb(total, k), 2**total) for k in range(total + 1)]
        want = sum(chance for chance in chances if chance <= chances[first])  # as unlikely as what was seen, or more
        assert mcnemar(first, second) == pytest.approx(float(want))
    assert mcnemar(900, 1100) == pytest.approx(8.5e-6, rel=0.05)  # normal approximation with continuity correction


def test_bootstrap_draws_whole_films() -> None:
    rng = np.random.default_rng(1)
    films = [f"f{index}" for index in rng.integers(0, 12, 200)]
    tasks = rng.integers(0, 3, 200)
    right = rng.random(200) < 0.6
    total = np.eye(3)[tasks]
    low, high = by_film(films, (total * right[:, None], total), macro_of, seed=3, resamples=4000)

    names = sorted(set(films))
    places = {name: [i for i, film in enumerate(films) if film == name] for name in names}
    draw = np.random.default_rng(99)
    values = []
    for _ in range(4000):
        taken = [i for name in draw.choice(names, len(names)) for i in places[name]]
        values.append(
            np.mean([right[taken][tasks[taken] == task].mean() for task in range(3) if (tasks[taken] == task).any()])
        )
    assert (low, high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), abs=0.012)
    for few, count in ((["f"] * 200, 200), ([], 0)):  # one film tells nothing about others
        empty = by_film(few, ((total * right[:, None])[:count], total[:count]), macro_of)
        assert all(math.isnan(value) for value in empty)


def run_of(tmp_path: Path) -> Path:
    rows = [row(asked(index, "plotQA", film=index % 2), LETTER[index < 3]) for index in range(4)]
    rows += [
        row(asked(4, "ego", film=2), "A"),
        row(asked(5, "ego", film=2), None, error={"stage": "ask", "message": "too long"}),
    ]
    rows += [failed([asked(6, "count", film=3), asked(7, "ego", film=3), asked(8, "summary", film=3, options=())])]
    rows += [row(asked(9, "summary", options=(), answer="It rains."), "It snows.")]
    return write_run(tmp_path / "run", rows)


def test_errors_count_as_wrong_and_are_listed(tmp_path: Path) -> None:
    result = score(run_of(tmp_path), by=("task", "duration"))
    assert [(line["name"], line["correct"], line["questions"], line["errors"]) for line in result["by"]["task"]] == [
        ("plotQA", 3, 4, 0), ("ego", 1, 3, 2), ("count", 0, 1, 1)
    ]  # fmt: skip
    assert result["macro"]["value"] == result["headline"]["value"] == pytest.approx((3 / 4 + 1 / 3 + 0) / 3)
    assert result["micro"]["value"] == pytest.approx(4 / 8)
    assert result["micro"]["interval"] == pytest.approx(list(wilson(4, 8)))
    assert result["unscored"] == {"summary": 2}
    assert [(each["id"], each["error"]) for each in result["errors"]] == [
        (f"{task}/{index}", said)
        for task, index, said in sorted(
            [
                ("ego", 5, "ask: too long"),
                ("count", 6, "video: cut off"),
                ("ego", 7, "video: cut off"),
                ("summary", 8, "video: cut off"),
            ],
            key=lambda each: [found["id"] for found in result["errors"]].index(f"{each[0]}/{each[1]}"),
        )
    ]
    assert len(result["errors"]) == 4
    assert [line["name"] for line in result["by"]["duration"]] == ["3-10 min", "10-30 min", "30-60 min"]


def test_bands_and_groups() -> None:
    assert [group_of(asked(0, film=film), "duration") for film in (0, 1, 3, 6)] == [
        "3-10 min", "10-30 min", "30-60 min", "over 60 min"
    ]  # fmt: skip
    grouped = asked(0, group={"length": "medium", "domain": "Knowledge"})
    assert (group_of(grouped, "duration"), group_of(grouped, "domain")) == ("medium", "Knowledge")
    with pytest.raises(UsageError, match="did you mean 'domain'"):
        group_of(grouped, "domian")


def test_later_answers_replace_errors(tmp_path: Path) -> None:
    question = asked(0, film=0)
    run = write_run(tmp_path / "run", [failed([question]), row(question, "A")])
    result = score(run)
    assert (result["micro"]["value"], result["errors"]) == (1.0, [])


def test_likelihood_rows_are_read_by_likelihood_protocols_only(tmp_path: Path) -> None:
    rows = [
        row(asked(0), "c0", choice=0, logprobs=[-1.0, -5.0, -9.0, None], lengths=[1, 1, 9, 1]),
        row(asked(1), "c1", choice=1, logprobs=[-4.0, -3.0, -9.0, -9.0], lengths=[4, 1, 1, 1]),
    ]
    run = write_run(tmp_path / "run", rows, protocol="likelihood")
    assert score(run)["micro"]["value"] == 0.5
    assert score(run, protocol_name="likelihood-mean")["micro"]["value"] == 1.0
    with pytest.raises(UsageError, match="give --protocol likelihood"):
        score(run, protocol_name="plain")
    texts = write_run(tmp_path / "texts", [row(asked(0), "A", choice=0)])
    with pytest.raises(UsageError, match="run the batch with it"):
        score(texts, protocol_name="likelihood")


def test_a_folder_without_a_run_json_needs_a_protocol(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [row(asked(0), "A")], protocol=None)
    with pytest.raises(UsageError, match="give --protocol"):
        score(run)
    assert score(run, protocol_name="mlvu-official")["micro"]["value"] == 1.0
    (run / "run.json").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        score(run)
    with pytest.raises(UsageError, match="no folder"):
        score(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="it holds the runs run: give one of them"):
        score(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no results"):
        score(tmp_path / "empty")


def test_damaged_lines_are_counted(tmp_path: Path, videoprune: Callable[..., Ended]) -> None:
    run = write_run(tmp_path / "run", [row(asked(0), "A")])
    with open(run / "results.jsonl", "a") as file:
        file.write('{"key": "x", "err')
    assert score(run)["damaged"] == 1
    assert "1 damaged lines" in videoprune("score", run).out


def test_another_protocol_says_who_asked(tmp_path: Path) -> None:
    result = score(run_of(tmp_path), protocol_name="mlvu-lmms-eval")
    assert any("asked as by mlvu-official" in note for note in result["protocol"]["notes"])


def test_command(tmp_path: Path, videoprune: Callable[..., Ended]) -> None:
    run = run_of(tmp_path)
    ended = videoprune("score", run, "--by", "task,duration", "--csv", tmp_path / "lines.csv")
    assert ended.code == 0, ended.err
    assert "protocol mlvu-official" in ended.out
    assert "plotQA  4          3      75.0  30.1 to 95.4" in ended.out
    assert "4 questions failed and count as wrong" in ended.out
    with open(tmp_path / "lines.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [(line["by"], line["name"]) for line in lines[:3]] == [
        ("task", "plotQA"),
        ("task", "ego"),
        ("task", "count"),
    ]
    assert float(lines[0]["low"]) == pytest.approx(wilson(3, 4)[0])
    assert {line["by"] for line in lines[-3:]} == {"headline", "macro", "micro"}

    ended = videoprune("score", run, "--json", "--parquet", tmp_path / "lines.parquet")
    assert json.loads(ended.out)["headline"]["value"] == pytest.approx((3 / 4 + 1 / 3) / 3)
    import pyarrow.parquet

    assert pyarrow.parquet.read_table(tmp_path / "lines.parquet").num_rows == 6
    for flags, word in (
        (("--protocol", "mlvu"), "protocol"),
        (("--by", "colour"), "--by"),
        (("--csv", "x.txt"), r".csv"),
        (("--judge", "endpoint"), "--judge-model"),
        (("--judge-model", "x"), "--judge"),
    ):
        ended = videoprune("score", run, *flags)
        assert ended.code == 2
        assert word in ended.err
