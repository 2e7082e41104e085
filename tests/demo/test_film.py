"""The generator: the same seed, the same film; what the questions say is what the pictures show."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest

from videoprune.demo import is_demo_film, scenes
from videoprune.demo.film import draw_film, film_timeline, frame_count, make_film
from videoprune.demo.timeline import GAP, LENGTHS, Timeline

SHORT = 0.5  # minutes
FPS = 8


def pictures(timeline: Timeline, seed: int, *seconds: float) -> list[np.ndarray]:
    """The drawn pictures nearest to these times."""
    wanted = [round(s * FPS) for s in seconds]
    drawn = {}
    for i, picture in enumerate(draw_film(timeline, seed, FPS)):
        if i in wanted:
            drawn[i] = picture
        if i > max(wanted):
            break
    return [drawn[i] for i in wanted]


def coloured(picture: np.ndarray, background: np.ndarray, rgb: tuple[int, int, int]) -> np.ndarray:
    """Mask of pixels that have this colour and did not have it before."""

    def near(image: np.ndarray) -> np.ndarray:
        return np.abs(image.astype(int) - np.array(rgb)).max(-1) < 35

    return near(picture) & ~near(background)


def test_same_seed_same_timeline_and_pictures() -> None:
    first, again, other = film_timeline(2, 7), film_timeline(2, 7), film_timeline(2, 8)
    assert first == again
    assert first.events != other.events
    a, b = pictures(first, 7, 3.0, 4.0), pictures(again, 7, 3.0, 4.0)
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not np.array_equal(a[0], a[1])  # noise, flicker and camera: no two pictures are equal


def test_films_keep_their_promises() -> None:
    counts, cutaways = [], 0
    for seed in range(60):
        film = film_timeline(2, seed)
        counts.append(len(film.actors))
        cutaways += any(shot.cutaway for shot in film.shots)
        for event in film.events:
            low, high = LENGTHS[event.kind]
            assert low <= event.end - event.start <= high
            assert event.start >= 0
            assert event.end <= film.seconds
        for a, b in zip(film.events, film.events[1:], strict=False):
            assert b.start - a.end >= GAP - 1e-9
        assert film.shots[0].start == 0
        assert film.shots[-1].end == film.seconds
        for a, b in zip(film.shots, film.shots[1:], strict=False):
            assert a.end == b.start
            assert a.place != b.place
        main = sum(s.end - s.start for s in film.shots if s.place == film.main_place)
        assert main > film.seconds / 2
    assert min(counts) >= 5
    assert max(counts) <= 8
    assert len(set(counts)) > 1
    assert 15 <= cutaways <= 45  # half of the films


@pytest.mark.parametrize("minutes", [0.2, 1, 60, 24 * 60])
def test_any_length(minutes: float) -> None:
    film = film_timeline(minutes, 3)
    assert film.actors
    assert film.events[-1].end <= 60 * minutes


@pytest.mark.parametrize("seed", [0, 1, 2, 5])
def test_evidence_shows_the_object_and_it_moves_that_way(seed: int) -> None:
    film = film_timeline(1, seed)
    event = next(e for e in film.actors if not film.shot_of(e).cutaway and e.start > 1)
    _, colour, direction = event.name
    length = event.end - event.start
    times = (event.start - 0.4, event.start + 0.25 * length, event.start + 0.75 * length, event.end + 0.4)
    before, early, late, after = pictures(film, seed, *times)
    rgb = scenes.COLOUR_RGB[colour]
    shown = [coloured(p, before, rgb).sum() for p in (early, late, after)]
    assert min(shown[:2]) > 100 > 3 * shown[2]
    (y0, x0), (y1, x1) = (np.argwhere(coloured(p, before, rgb)).mean(0) for p in (early, late))
    moved = {"left": x0 - x1, "right": x1 - x0, "up": y0 - y1, "down": y1 - y0}
    assert max(moved, key=lambda way: moved[way]) == direction
    assert moved[direction] > 25


def test_file_is_tagged_complete_and_repeatable(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    made = make_film(tmp_path / "a.mp4", SHORT, 11, progress=lambda done, total: calls.append((done, total)))
    make_film(tmp_path / "b.mp4", SHORT, 11)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.mp4", "b.json", "b.mp4"]
    assert calls[-1] == (frame_count(SHORT, FPS), frame_count(SHORT, FPS))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert is_demo_film(container.metadata)
        decoded = list(container.decode(video=0))
    assert len(decoded) == made["frames"] == 240
    assert decoded[-1].time == pytest.approx(30 - 1 / FPS, abs=1e-3)
    assert len(json.loads((tmp_path / "a.json").read_text())) == made["rows"] > 5


def test_other_films_are_not_recognised() -> None:
    assert not is_demo_film({})
    assert not is_demo_film({"comment": "my holiday"})
    assert not is_demo_film({"title": 'videoprune-demo {"version":1}'})
    assert is_demo_film({"COMMENT": 'videoprune-demo {"version":1}'})  # Matroska writes keys in upper case


def test_nothing_is_left_behind_when_it_fails(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_film(tmp_path / "a.mp4", 0.2, 0, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"minutes": 0}, "minutes is 0"),
        ({"minutes": float("nan")}, "minutes is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"fps": 1}, "fps is 1"),
        ({"out": Path("film.txt")}, "film.txt"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, change: dict, words: str) -> None:
    arguments = {"out": tmp_path / "a.mp4", "minutes": 1, "seed": 0} | change
    with pytest.raises(ValueError, match=words):
        make_film(**arguments)
    assert list(tmp_path.iterdir()) == []
