"""What is planned: films by content, longest first, shards that cover a set, and decoding ahead under a bound."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from videoprune.errors import FilmError, UsageError
from videoprune.evaluate.base import Benchmark, Question
from videoprune.evaluate.decoding import DecodeProcess, DecodeThread, Ended, Opened, Reading
from videoprune.evaluate.jobs import gather, model_revision, plan, read_shard
from videoprune.evaluate.rows import Setup, error_of, film_row, question_row
from videoprune.evaluate.store import Results
from videoprune.video import Frames

SETUP = Setup("demo", "aa", "demo", "bb", {"fps": 1}, "likelihood", "cc", 0)


@pytest.fixture
def benchmark(tmp_path: Path) -> Benchmark:
    """Five names, four contents: b is a copy of a, and e is missing."""
    films = tmp_path / "films"
    films.mkdir()
    for number, name in enumerate("acd"):
        (films / f"{name}.mp4").write_bytes(bytes([number]) * (1000 + number))
    shutil.copy(films / "a.mp4", films / "b.mp4")
    lengths = {"a": 10.0, "b": 12.0, "c": 30.0, "d": None, "e": 20.0}
    questions = [
        Question(f"t/{i}", f"{n}.mp4", films / f"{n}.mp4", "t", f"{n}{i}?", ("x", "y"), "x", lengths[n], {"row": {}})
        for i, n in enumerate("abcdeabcde")
    ]
    return Benchmark("folder", tmp_path, tuple(questions))


def test_copies_of_a_film_are_one_film(benchmark: Benchmark, tmp_path: Path) -> None:
    films = gather(benchmark, tmp_path / "digests.json")
    assert [film.path.name for film in films] == ["a.mp4", "c.mp4", "d.mp4", "e.mp4"]
    assert [len(film.questions) for film in films] == [4, 2, 2, 2]
    assert films[0].duration == 12.0
    assert all("row" not in question.extra for film in films for question in film.questions)


def test_digests_are_remembered_until_the_film_changes(
    benchmark: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "digests.json"
    first = gather(benchmark, cache)
    read: list[str] = []

    def counting(path: Path) -> str:
        read.append(path.name)
        return "0" * 64

    monkeypatch.setattr("videoprune.evaluate.jobs.film_digest", counting)
    assert [film.film for film in gather(benchmark, cache)] == [film.film for film in first]
    assert not read
    (tmp_path / "films" / "c.mp4").write_bytes(b"another")
    gather(benchmark, cache)
    assert "c.mp4" in read


def test_longest_first_and_shards_cover_the_set(benchmark: Benchmark, tmp_path: Path) -> None:
    films, results = gather(benchmark), [Results(tmp_path / "out", {})]
    jobs, total = plan(films, [SETUP], results)
    assert total == 10
    assert [Path(job.path).name for job in jobs] == ["c.mp4", "e.mp4", "a.mp4", "d.mp4"]
    shards = [plan(films, [SETUP], results, shard=(i, 3))[0] for i in (1, 2, 3)]
    assert sorted(job.film for shard in shards for job in shard) == sorted(job.film for job in jobs)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    limited, _ = plan(films, [SETUP], results, limit=2)
    assert {Path(job.path).name for job in limited} == {"a.mp4", "c.mp4"}


def test_only_what_has_no_row_is_left(benchmark: Benchmark, tmp_path: Path) -> None:
    films, result = gather(benchmark), Results(tmp_path / "out", {})
    a, c = films[0], films[1]
    result.append(0, [question_row(SETUP, a.film, question, prediction="x") for question in a.questions[:3]])
    result.append(0, [question_row(SETUP, a.film, a.questions[3], error=error_of(ValueError("x"), "ask"))])
    result.append(0, [film_row(SETUP, c.film, c.questions, error_of(FilmError("x")), 0)])
    jobs, total = plan(films, [SETUP], [result])
    assert total == 10
    assert {Path(job.path).name for job in jobs} == {"d.mp4", "e.mp4"}
    retried, _ = plan(films, [SETUP], [result], retry_errors=True)
    assert {Path(job.path).name: job.count for job in retried} == {"a.mp4": 1, "c.mp4": 2, "d.mp4": 2, "e.mp4": 2}


def test_an_entry_that_is_there_twice_is_one_question(benchmark: Benchmark, tmp_path: Path) -> None:
    doubled = Benchmark("folder", tmp_path, (*benchmark.questions, *benchmark.questions))
    jobs, total = plan(gather(doubled), [SETUP], [Results(tmp_path / "out", {})])
    assert total == 10
    assert sum(job.count for job in jobs) == 10


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2", "1/2/3"])
def test_bad_shards_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="i/n"):
        read_shard(text)


def test_a_models_revision_follows_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1" * 100)
    name, first = model_revision(str(tmp_path), None)
    (tmp_path / "README.md").write_text("changed")
    assert model_revision(str(tmp_path), None) == (name, first) == (tmp_path.name, first)
    (tmp_path / "model.safetensors").write_bytes(b"2" * 100)
    assert model_revision(str(tmp_path), None)[1] != first
    assert model_revision(None, None)[0] == "demo"


# ----------------------------------------------------------------------------------------------------------- decoding


class FakeFilm:
    """A film of `count` chunks that notes how far it was read."""

    def __init__(self, count: int, read: list[int], fail_at: int | None = None) -> None:
        self.count, self.read, self.fail_at = count, read, fail_at
        self.info: Any = SimpleNamespace(duration=float(count))
        self.warnings = ["cut"]

    def __enter__(self) -> FakeFilm:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        for number in range(self.count):
            if number == self.fail_at:
                raise FilmError("broken")
            self.read.append(number)
            yield Frames(np.full((1, 10, 10, 3), number, np.uint8), np.array([float(number)]), np.array([number]))


class FatalFilm(FakeFilm):
    """Takes its process with it."""

    def __iter__(self) -> Any:
        yield next(super().__iter__())
        os.kill(os.getpid(), signal.SIGKILL)


def everything(thread: DecodeThread | DecodeProcess) -> list[Any]:
    items: list[Any] = []
    while not items or not isinstance(items[-1], Ended):
        items.append(thread.take())
    return items


def test_films_come_in_order_and_their_errors_with_them() -> None:
    thread = DecodeThread()
    thread.submit(Reading(lambda: FakeFilm(2, [])))  # type: ignore[arg-type, return-value]
    thread.submit(Reading(lambda: FakeFilm(3, [], fail_at=1)))  # type: ignore[arg-type, return-value]
    first, second = everything(thread), everything(thread)
    assert [type(item) for item in first] == [Opened, Frames, Frames, Ended]
    assert first[-1].error is None
    assert first[-1].warnings == ["cut"]
    assert [type(item) for item in second] == [Opened, Frames, Ended]
    assert isinstance(second[-1].error, FilmError)


def settled(read: list[int]) -> int:
    before = -1
    while before != len(read):
        before = len(read)
        time.sleep(0.1)
    return before


def test_no_more_is_decoded_ahead_than_the_bound() -> None:
    read: list[int] = []
    thread = DecodeThread(ahead=1000)  # three chunks of 300 bytes
    thread.submit(Reading(lambda: FakeFilm(50, read)))  # type: ignore[arg-type, return-value]
    assert settled(read) == 4  # three wait, and one stands at the door
    assert isinstance(thread.take(), Opened)
    thread.take()
    assert settled(read) == 5
    assert len(everything(thread)) == 50  # 49 chunks and the end


def test_the_rest_of_a_film_can_be_skipped() -> None:
    read: list[int] = []
    reading = Reading(lambda: FakeFilm(1000, read))  # type: ignore[arg-type, return-value]
    thread = DecodeThread(ahead=1000)
    thread.submit(reading)
    assert isinstance(thread.take(), Opened)
    reading.skip.set()
    ended = everything(thread)[-1]
    assert ended.error is None
    assert len(read) < 10
    assert threading.active_count() < 50


def test_a_process_hands_over_what_a_thread_does_and_survives_a_crash() -> None:
    decoder = DecodeProcess()
    films = [
        partial(FakeFilm, 2, []),
        partial(FakeFilm, 3, [], fail_at=1),
        partial(FatalFilm, 3, []),
        partial(FakeFilm, 1, []),
    ]
    for film in films:
        decoder.submit(Reading(film))
    whole, broken, fatal, after = (everything(decoder) for _ in films)
    assert [type(item) for item in whole] == [Opened, Frames, Frames, Ended]
    assert [item.images.mean() for item in whole[1:3]] == [0, 1]
    assert whole[2].images.shape == (1, 10, 10, 3)
    assert (whole[2].seconds.tolist(), whole[2].index.tolist()) == ([1.0], [1])
    assert whole[-1].warnings == ["cut"]
    assert error_of(broken[-1].error)["message"] == "broken"
    assert error_of(broken[-1].error)["type"] == "FilmError"
    assert error_of(fatal[-1].error)["type"] == "DecoderDied"
    assert "signal 9" in str(fatal[-1].error)
    assert [type(item) for item in after] == [Opened, Frames, Ended]
    assert decoder.resident() > 1 << 20
    decoder.close()


def test_a_process_skips_the_rest_of_a_film() -> None:
    decoder = DecodeProcess(ahead=1000)
    reading = Reading(partial(FakeFilm, 100_000, []))
    decoder.submit(reading)
    assert isinstance(decoder.take(), Opened)
    reading.skip.set()
    assert len(everything(decoder)) < 50_000
    decoder.close()
