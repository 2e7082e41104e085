"""`videoprune batch` from the command to the rows: resumed, in parallel, on Ray, through bad films, and stopped in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ended
from tests.evaluate.made import A_FILM, BAD, FILMS, add_bad, copy_of, make_small
from videoprune.evaluate.rows import read_rows

Command = Callable[..., Ended]
FLAGS = ("--protocol", "likelihood", "--device", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small(tmp_path_factory.mktemp("made") / "mlvu")


@pytest.fixture(scope="module")
def base(folder: Path) -> tuple[Path, list[dict[str, Any]], str]:
    """An undisturbed run: its folder, rows and what it printed."""
    out = folder.parent / "base"
    words = [sys.executable, "-m", "videoprune", "batch", str(folder), "--out", str(out), *FLAGS]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return out, rows_of(out), done.stdout


def rows_of(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for path in out.glob("results*.jsonl") for line in path.read_text().splitlines()]
    return sorted(({k: v for k, v in row.items() if k != "seconds"} for row in rows), key=lambda row: row["key"])


def test_a_run_answers_everything_and_prints_its_score(base: tuple[Path, list[dict[str, Any]], str]) -> None:
    out, rows, text = base
    assert len({row["film"] for row in rows}) == FILMS
    assert FILMS < len(rows) <= FILMS * A_FILM
    assert all(row["error"] is None and row["tokens"]["merged"] > 0 for row in rows)
    chosen = [row for row in rows if row["options"]]
    assert all(row["prediction"] == row["options"][row["choice"]] for row in chosen)
    assert all(row["correct"] == (row["prediction"] == row["answer"]) for row in chosen)
    share = 100 * sum(row["correct"] for row in chosen) / len(chosen)
    assert f"{share:.1f} %" in next(line for line in text.splitlines() if line.startswith("all questions"))
    run = json.loads((out / "run.json").read_text())
    assert run["identity"]["recipe"] == "demo"
    assert {"torch", "transformers", "av"} <= set(run["versions"])
    assert run["device"] == "cpu"
    assert run["protocol"]["name"] == "likelihood"
    assert not list(out.glob(".lock*"))


def test_a_finished_run_is_not_done_again(
    base: tuple[Path, list[dict[str, Any]], str], folder: Path, videoprune: Command, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("videoprune.evaluate.batch.Runner", None)
    ended = videoprune("batch", folder, "--out", base[0], *FLAGS, "--json", "--export", tmp_path / "rows.csv")
    assert ended.code == 0
    found = json.loads(ended.out)["recipes"]["demo"]
    assert found["questions"] == len(base[1])
    assert len((tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines()) == len(base[1]) + 1
    for more, label in ((("--recipe", "dense"), "recipe"), (("--seed", "3"), "seed"), (("--fps", "2"), "frame rule")):
        ended = videoprune("batch", folder, "--out", base[0], *FLAGS, *more)
        assert ended.code == 2
        assert f"its {label} is" in ended.err


def test_several_recipes_over_one_decoding_and_two_workers(
    base: tuple[Path, list[dict[str, Any]], str], folder: Path, videoprune: Command, tmp_path: Path
) -> None:
    ended = videoprune("batch", folder, "--out", tmp_path / "x", *FLAGS, "--recipes", "demo,dense", "--workers", "2")
    assert ended.code == 0, ended.err
    assert rows_of(tmp_path / "x" / "demo") == base[1]
    dense = rows_of(tmp_path / "x" / "dense")
    assert len(dense) == len(base[1])
    assert all(row["tokens"]["merged"] == row["tokens"]["sampled"] for row in dense)
    records = (tmp_path / "x" / "demo" / "films.jsonl").read_text().splitlines()
    assert len(records) == FILMS  # each was decoded once
    assert sum(json.loads(record)["questions"] for record in records) == 2 * len(base[1])
    assert "DENSE" in ended.out


def test_ray_gives_the_same_rows(
    base: tuple[Path, list[dict[str, Any]], str], folder: Path, videoprune: Command, tmp_path: Path
) -> None:
    bad = copy_of(folder, tmp_path / "folder")
    (bad / "video" / "1_plotQA" / "empty.mp4").write_bytes(b"")
    path = bad / "json" / "1_plotQA.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps([*rows, {**rows[0], "video": "empty.mp4"}]), encoding="utf-8")
    ended = videoprune("batch", bad, "--out", tmp_path / "x", *FLAGS, "--engine", "ray", "--workers", "2")
    assert ended.code == 1, ended.err
    found = rows_of(tmp_path / "x")
    assert [row for row in found if row["error"] is None] == base[1]
    errors = [row["error"] for row in found if row["error"] is not None]
    assert [(error["type"], error["stage"]) for error in errors] == [("FilmError", "video")]
    assert "0 bytes" in errors[0]["message"]


def test_five_bad_films_cost_themselves_alone(
    base: tuple[Path, list[dict[str, Any]], str], folder: Path, videoprune: Command, tmp_path: Path
) -> None:
    bad = copy_of(folder, tmp_path / "folder")
    add_bad(bad)
    ended = videoprune("batch", bad, "--out", tmp_path / "x", *FLAGS, "--timeout", "15")
    assert ended.code == 1
    found = rows_of(tmp_path / "x")
    assert [row for row in found if row["error"] is None] == base[1]
    errors = {row["video"]: row["error"] for row in found if row["error"] is not None}
    assert sorted(errors) == sorted(BAD)
    assert {error["stage"] for error in errors.values()} == {"video"}
    assert errors["hangs.avi"]["type"] == "Timeout"
    assert {errors[name]["type"] for name in BAD if name != "hangs.avi"} == {"FilmError"}
    assert "5 films and 0 questions ended in error rows" in ended.err
    assert "all questions" in ended.out
    # put back what was missing, and only that is done again
    for path in (bad / "video" / "1_plotQA").glob("demo_*.mp4"):
        content = path.read_bytes()
    for name in BAD[:4]:
        (bad / "video" / "1_plotQA" / name).write_bytes(content)
    (bad / "video" / "1_plotQA" / "hangs.avi").unlink()
    ended = videoprune("batch", bad, "--out", tmp_path / "x", *FLAGS, "--retry-errors")
    rows = read_rows(tmp_path / "x")
    assert sum(row["error"] is None for row in rows) == len(base[1]) + 4
    assert [row["video"] for row in rows if row["error"] is not None] == ["hangs.avi"]


def test_a_run_that_was_stopped_goes_on(
    base: tuple[Path, list[dict[str, Any]], str], folder: Path, videoprune: Command, tmp_path: Path
) -> None:
    out, before = tmp_path / "x", 0
    words = [sys.executable, "-m", "videoprune", "batch", str(folder), "--out", str(out), *FLAGS]
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and count(out) <= before:
            time.sleep(0.02)
        os.kill(process.pid, number)
        assert process.wait(20) == code
        after = count(out)
        assert before < after < len(base[1])
        before = after
    ended = videoprune("batch", folder, "--out", out, *FLAGS)
    assert ended.code == 0, ended.err
    assert f"of {len(base[1])} questions have rows already" in ended.err
    assert rows_of(out) == base[1]


def count(out: Path) -> int:
    """Whole rows on the disk."""
    return sum(path.read_bytes().count(b"\n") for path in out.glob("results*.jsonl"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--protocol", "video-mme"), "is made for video-mme"),
        (("--protocol", "mlvu-offical"), "mlvu-official"),
        (("--shard", "3/2"), "i/n"),
        (("--recipe", "demo", "--recipes", "demo"), "exclude each other"),
        (("--recipes", "demo,demo"), "given twice"),
        (("--recipe", "demos"), "demo"),
        (("--timeout", "0"), "above 0"),
        (("--workers", "0"), "--workers 0"),
        (("--export", "x.xlsx"), ".parquet"),
        (("--benchmark", "mvlu"), "mlvu"),
    ],
)
def test_bad_settings_are_told_before_any_work(
    folder: Path, videoprune: Command, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    ended = videoprune("batch", folder, "--out", tmp_path / "x", *words)
    assert ended.code == 2
    assert message in ended.err
    assert not (tmp_path / "x").exists()
