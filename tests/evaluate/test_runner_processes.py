"""The runner against workers that hang, die, refuse and lie in wait: none of them stops it, and no row is lost."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from videoprune.errors import EnvironmentProblem, UsageError
from videoprune.evaluate import runner
from videoprune.evaluate.base import Question
from videoprune.evaluate.jobs import Job, Settings
from videoprune.evaluate.rows import Setup, question_row
from videoprune.evaluate.store import Results
from videoprune.video import FrameRule

SETUP = Setup("demo", "aa", "demo", "bb", {"fps": 1}, "likelihood", "cc", 0)


def settings() -> Settings:
    return Settings(None, None, "cpu", "auto", "sdpa", "auto", 0, (), (FrameRule(),), (SETUP,), "likelihood")


def job(number: int, name: str, questions: int = 2) -> Job:
    asked = tuple(
        Question(f"t/{number}.{i}", f"{name}.mp4", Path(f"/{name}.mp4"), "t", f"{name} {i}?", ("x", "y"), "x", 1.0, {})
        for i in range(questions)
    )
    return Job(number, f"film-{name}", f"/{name}.mp4", f"{name}.mp4", 1.0, 1, (asked,))


def pretend(connection: Any, given: Settings, stage: Any) -> None:
    """A worker without a model: what it does to a film is the film's name."""
    connection.send({"ready": {"device": "none"}})
    while True:
        work = connection.recv()
        if work is None:
            os._exit(0)
        name = work.video.removesuffix(".mp4")
        stage.value = 1
        for place, question in enumerate(work.todo[0]):
            if name == "hangs" or (name == "hangs-late" and place == 1):
                time.sleep(600)
            if name == "dies" or (name == "dies-once" and not Path(os.environ["MARK"]).exists()):
                Path(os.environ["MARK"]).touch()
                os._exit(7)
            stage.value = 3
            row = question_row(SETUP, work.film, question, prediction="x", choice=0, correct=True, seconds=0.0)
            connection.send({"row": row, "recipe": 0, "job": work.number})
        if name == "fatal":
            connection.send({"fatal": {"type": "X", "stage": "model", "message": "no memory", "exit_code": 3}})
            os._exit(0)
        connection.send({"film": {"film_seconds": 1.0}, "job": work.number})
        connection.send({"done": work.number})


def refuse(connection: Any, given: Settings, stage: Any) -> None:
    connection.send({"fatal": {"type": "UsageError", "stage": "merge", "message": "keep: 7", "exit_code": 2}})
    os._exit(0)


def fall(connection: Any, given: Settings, stage: Any) -> None:
    os._exit(9)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    monkeypatch.setattr(runner, "serve", pretend)
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    return Results(tmp_path / "out", {})


def written(results: Results) -> list[dict[str, Any]]:
    return [json.loads(line) for path in results.folder.glob("results*") for line in path.read_text().splitlines()]


@pytest.mark.parametrize("workers", [1, 3])
def test_every_question_has_a_row(results: Results, workers: int) -> None:
    seen = []
    jobs = [job(number, f"film{number}") for number in range(7)]
    told = runner.Runner(settings(), jobs, [results], workers=workers, tell=lambda tally: None, ready=seen.append)
    tally = told.run()
    assert (tally.films, tally.questions, tally.errors, tally.film_seconds) == (7, 14, 0, 7.0)
    rows = written(results)
    assert len({row["key"] for row in rows}) == len(rows) == 14
    assert seen == [{"device": "none"}]


@pytest.mark.parametrize(("name", "answered", "lost"), [("hangs", 0, 2), ("hangs-late", 1, 1)])
def test_a_film_that_hangs_costs_itself_alone(results: Results, name: str, answered: int, lost: int) -> None:
    jobs = [job(0, "first"), job(1, name), job(2, "behind"), job(3, "last")]
    tally = runner.Runner(settings(), jobs, [results], timeout=1.0).run()
    rows = written(results)
    error = next(row for row in rows if row["error"])
    assert error["video"] == f"{name}.mp4"
    assert len(error["questions"]) == lost
    assert error["error"]["type"] == "Timeout"
    assert "after 1 s" in error["error"]["message"]
    assert sum(row["error"] is None for row in rows) == 6 + answered
    assert (tally.films, tally.errors) == (4, 1)


def test_the_stage_of_a_time_out_is_told(results: Results) -> None:
    runner.Runner(settings(), [job(0, "hangs"), job(1, "hangs-late")], [results], timeout=1.0).run()
    stages = {row["video"]: row["error"]["stage"] for row in written(results) if row["error"]}
    assert stages == {"hangs.mp4": "video", "hangs-late.mp4": "ask"}


def test_a_film_that_kills_its_worker_is_tried_twice(results: Results) -> None:
    jobs = [job(0, "before"), job(1, "dies"), job(2, "behind")]
    runner.Runner(settings(), jobs, [results]).run()
    rows = written(results)
    error = next(row for row in rows if row["error"])
    assert error["error"]["type"] == "WorkerDied"
    assert "exit code 7" in error["error"]["message"]
    assert sum(row["error"] is None for row in rows) == 4


def test_a_worker_that_dies_once_is_replaced(results: Results) -> None:
    runner.Runner(settings(), [job(0, "dies-once"), job(1, "behind")], [results]).run()
    rows = written(results)
    assert len(rows) == 4
    assert all(row["error"] is None for row in rows)


def test_what_came_before_the_end_is_kept(results: Results) -> None:
    with pytest.raises(EnvironmentProblem, match="no memory"):
        runner.Runner(settings(), [job(0, "fine"), job(1, "fatal"), job(2, "never")], [results]).run()
    assert len(written(results)) == 4


def test_a_recipe_that_does_not_fit_is_a_usage_error(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "serve", refuse)
    with pytest.raises(UsageError, match="keep: 7"):
        runner.Runner(settings(), [job(0, "a")], [results]).run()


def test_a_worker_that_falls_while_loading_ends_the_run(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "serve", fall)
    with pytest.raises(EnvironmentProblem, match="exit code 9"):
        runner.Runner(settings(), [job(0, "a")], [results]).run()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_worker_behind(results: Results, number: int) -> None:
    work = runner.Runner(settings(), [job(0, "first"), job(1, "hangs")], [results])
    before = signal.getsignal(signal.SIGTERM)

    def strike() -> None:
        while not list(results.folder.glob("results*")) or len(written(results)) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=strike, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        work.run()
    assert len(written(results)) == 2
    assert all(not worker.process.is_alive() for worker in work.workers)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_time_out_must_be_above_nothing(results: Results) -> None:
    with pytest.raises(UsageError, match="above 0"):
        runner.Runner(settings(), [], [results], timeout=0)
