"""The shipped folder is what the generator writes, and a folder of several films has the same layout."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest

from videoprune.demo import film_path, is_demo_film, questions_path
from videoprune.demo.film import film_rows, film_timeline
from videoprune.demo.mlvu import FILES, MINUTES, make_mlvu

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


def test_folder_of_two(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    made = make_mlvu(tmp_path, 2, 30, minutes=0.3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["json", "mine.txt", "video"]
    for path in (tmp_path / "json").glob("*.json"):
        for row in json.loads(path.read_text()):
            assert (tmp_path / "video" / path.stem / row["video"]).exists()
            assert row["video"] in ("demo_30.mp4", "demo_31.mp4")
    assert sum(made["rows"].values()) == sum(len(json.loads(p.read_text())) for p in (tmp_path / "json").glob("*.json"))


@pytest.mark.parametrize("videos", [0, -1, 1.5, True])
def test_bad_count_is_refused(tmp_path: Path, videos: int) -> None:
    with pytest.raises(ValueError, match="videos is"):
        make_mlvu(tmp_path, videos)
