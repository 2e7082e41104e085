"""The shipped folder is what the generator writes; benchmarks of generated films in every layout."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest

from videoprune.demo import film_path, is_demo_film, questions_path
from videoprune.demo.benchmark import make_benchmark, minutes_of, pace_of
from videoprune.demo.film import film_rows, film_timeline
from videoprune.demo.layouts import LAYOUTS
from videoprune.demo.layouts import MLVU_FILES as FILES

MINUTES = 13 / 6
DATA = Path(__file__).resolve().parents[2] / "data"
SHIPPED_SEED = 0
MOST_BYTES = 1_000_000


def test_shipped_questions_are_the_generators() -> None:
    shipped = [row for path in sorted((DATA / "json").glob("*.json")) for row in json.loads(path.read_text())]
    fresh = json.loads(json.dumps(film_rows(film_timeline(MINUTES, SHIPPED_SEED), SHIPPED_SEED, "demo.mp4")))
    assert sorted(shipped, key=lambda r: r["question"]) == sorted(fresh, key=lambda r: r["question"])
    assert 22 <= len(shipped) <= 30
    for path in (DATA / "json").glob("*.json"):
        assert {FILES[row["question_type"]] for row in json.loads(path.read_text())} == {path.stem}


def test_shipped_film() -> None:
    copies = list((DATA / "video").glob("*/demo.mp4"))
    assert sorted(p.parent.name for p in copies) == sorted(p.stem for p in (DATA / "json").glob("*.json"))
    assert len({p.read_bytes() for p in copies}) == 1
    assert copies[0].stat().st_size <= MOST_BYTES
    with av.open(str(film_path())) as container:
        assert is_demo_film(container.metadata)
        assert container.duration / av.time_base == pytest.approx(60 * MINUTES, abs=0.2)
    assert questions_path().exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "mlvu"
    make_benchmark(out, "mlvu", 2, 30, minutes=(0.3, 0.5))
    return out


def test_mlvu_layout(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["json", "made.json", "video"]
    counts = {}
    for path in (folder / "json").glob("*.json"):
        rows = json.loads(path.read_text())
        counts[path.stem] = len(rows)
        for row in rows:
            assert (folder / "video" / path.stem / row["video"]).exists()
            assert row["video"] in ("demo_30.mp4", "demo_31.mp4")
            if "candidates" in row:
                assert row["answer"] in row["candidates"]
                assert len(set(row["candidates"])) == 4
    made = json.loads((folder / "made.json").read_text())["result"]
    assert {FILES[task]: count for task, count in made["questions"].items()} == counts
    summaries = json.loads((folder / "json" / "9_summary.json").read_text())
    assert len(summaries) == 2
    assert not any("candidates" in row for row in summaries)


def test_a_second_start_makes_nothing_and_another_plan_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("videoprune.demo.benchmark.make_film", None)
    made = make_benchmark(folder, "mlvu", 2, 30, minutes=(0.3, 0.5))
    assert made["videos"] == 2
    with pytest.raises(ValueError, match="with videos 2, not 3"):
        make_benchmark(folder, "mlvu", 3, 30, minutes=(0.3, 0.5))


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match="is not empty"):
        make_benchmark(tmp_path, "mlvu", 1, minutes=(0.3, 0.3))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_stopped_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import videoprune.demo.benchmark as module

    real, drawn = module.make_film, []

    def stops(path: Path, *rest: object, **named: object) -> object:
        if len(drawn) == 1:
            raise OSError(28, "No space left on device")
        drawn.append(path.name)
        return real(path, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "make_film", stops)
    with pytest.raises(OSError, match="No space"):
        make_benchmark(tmp_path / "x", "folder", 2, 5, minutes=(0.2, 0.25))
    monkeypatch.setattr(
        module, "make_film", lambda path, *rest, **named: drawn.append(path.name) or real(path, *rest, **named)
    )
    make_benchmark(tmp_path / "x", "folder", 2, 5, minutes=(0.2, 0.25))
    assert sorted(drawn) == ["demo_5.mp4", "demo_6.mp4"]
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["made.json", "questions.jsonl", "videos"]


@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - {"mlvu"}))
def test_other_layouts_can_be_read(tmp_path: Path, layout: str) -> None:
    from videoprune.evaluate.base import read

    made = make_benchmark(tmp_path / "x", layout, 1, 3, minutes=(0.5, 0.5))
    benchmark = read(layout, tmp_path / "x")
    assert len(benchmark) == sum(made["questions"].values())
    assert not benchmark.problems
    assert all(question.path.is_file() for question in benchmark.questions)
    assert all(question.gold is not None for question in benchmark.questions if question.options)


def test_lengths_are_spread_towards_short_ones() -> None:
    lengths = sorted(minutes_of(seed) for seed in range(60))
    assert 3.0 <= lengths[0] < 3.1
    assert 50 < lengths[-1] <= 60
    assert 5 < lengths[30] < 8  # the median, far below the middle of the span
    assert [minutes_of(seed) for seed in range(20)] == [minutes_of(seed) for seed in range(60)][:20]


def test_long_films_are_slow_enough_to_be_seen() -> None:
    assert pace_of(4) == 1.0
    film = film_timeline(60, 3, pace_of(60))
    between = 3600 / 256  # seconds between two frames that are looked at
    assert all(event.end - event.start > between for event in film.events)
    assert film_timeline(2, 3, 1.0) == film_timeline(2, 3)


@pytest.mark.parametrize("videos", [0, -1, 1.5, True])
def test_bad_count_is_refused(tmp_path: Path, videos: int) -> None:
    with pytest.raises(ValueError, match="videos is"):
        make_benchmark(tmp_path / "x", "mlvu", videos)
