"""What is planned: films by content, longest first, and shards that cover a set."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from videoprune.errors import FilmError, UsageError
from videoprune.evaluate.base import Benchmark, Question
from videoprune.evaluate.jobs import gather, model_revision, plan, read_shard
from videoprune.evaluate.rows import Setup, error_of, film_row, question_row
from videoprune.evaluate.store import Results

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
