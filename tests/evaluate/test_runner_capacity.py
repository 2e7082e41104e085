"""Plans for sets of films, against the arithmetic done by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Ended
from tests.films import write
from videoprune.errors import UsageError
from videoprune.evaluate.capacity import FilmSet, Rates, capacity, film_set, frames_of

RATES = Rates(10, 100, decode=0.01, encode=0.1, ask=0.5, row_bytes=1000.0, device="x", rule={"fps": 1, "max": 200})


def sample(folder: Path, films: int = 4) -> Path:
    folder.mkdir()
    run = {"identity": {"frames": {"frames": 8}}, "device": "cpu", "gpu": None}
    (folder / "run.json").write_text(json.dumps(run))
    records = [
        {"film_seconds": 100.0, "frames": 8, "questions": 2, "decode": 2.0 + n, "encode": 4.0, "ask": 3.0}
        for n in range(films)
    ]
    (folder / "films.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"torn')
    (folder / "results-0.jsonl").write_text(("x" * 99 + "\n") * 2 * films)
    return folder


def test_rates_are_ratios_of_sums(tmp_path: Path) -> None:
    rates = Rates.of(sample(tmp_path / "run"))
    assert (rates.films, rates.questions) == (4, 8)
    assert rates.decode == pytest.approx((2 + 3 + 4 + 5) / 400)
    assert rates.encode == pytest.approx(16 / 32)
    assert rates.ask == pytest.approx(12 / 8)
    assert rates.row_bytes == 100


@pytest.mark.parametrize(
    ("seconds", "rule", "frames"),
    [
        (10.0, {"fps": 1}, 10), (10.5, {"fps": 2}, 21), (1000.0, {"fps": 1, "max": 256}, 256), (5.0, {"frames": 64}, 64),
        (5.0, {"frames": 64, "max": 8}, 8), (100.0, {"fps": 1, "start": 20, "end": 50}, 30), (0.2, {}, 1),
    ],
)  # fmt: skip
def test_frames_follow_the_rule(seconds: float, rule: dict[str, float], frames: int) -> None:
    assert frames_of(seconds, rule) == frames


def test_the_arithmetic() -> None:
    films = FilmSet(((100.0, 10_000), (3600.0, 90_000)), questions=30)
    found = capacity(RATES, films)
    # 100 + 200 frames, 30 questions; 3 700 s of film
    assert found["model_hours"] == pytest.approx((300 * 0.1 + 30 * 0.5) / 3600)
    assert found["decode_hours"] == pytest.approx(37.0 / 3600)
    assert found["decoders"] == 1
    assert found["hours"] == pytest.approx(45.0 / 3600)
    assert found["disk"] == {"films": 100_000, "results": 30_000}
    million = capacity(RATES, films, scale_to=1_000_000, hours=100)
    assert million["model_hours"] == pytest.approx(500_000 * 45 / 3600)
    assert million["models"] == 63  # 6 250 hours in 100
    assert million["set"]["questions"] == 15_000_000
    assert million["hours"] == pytest.approx(6250 / 63)


def test_a_slow_decoder_needs_more_threads() -> None:
    slow = Rates(10, 100, decode=0.1, encode=0.1, ask=0.5, row_bytes=1.0, device="x", rule={"frames": 10})
    found = capacity(slow, FilmSet(((100.0, 1),) * 10, questions=10))
    # a film: 10 s of decoding beside 1.5 s of the model
    assert found["decoders"] == 7
    assert found["hours"] == pytest.approx(10 * 1.5 / 3600)


def test_a_sample_that_says_too_little_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="watched 2 films"):
        Rates.of(sample(tmp_path / "run", films=2))
    with pytest.raises(UsageError, match="no finished run"):
        Rates.of(tmp_path)


def test_the_command(tmp_path: Path, videoprune: Callable[..., Ended]) -> None:
    films = tmp_path / "films"
    films.mkdir()
    for number in range(2):
        write(films / f"{number}.mp4", 50 * (number + 1), fps=10)
    (films / "broken.mp4").write_bytes(b"\0" * 100)
    found = film_set(films, None)
    assert sorted(length for length, _ in found.films) == pytest.approx([5.0, 10.0])
    assert (found.questions, found.unreadable) == (3, 1)
    run = sample(tmp_path / "run")
    ended = videoprune("plan", films, "--batch", "--from", run, "--films", "1000", "--hours", "1", "--json")
    assert ended.code == 0, ended.err
    plan = json.loads(ended.out)
    assert plan["set"]["frames"] == 8000
    assert plan["model_hours"] == pytest.approx((8000 * 0.5 + 1500 * 1.5) / 3600)
    assert plan["models"] == 2
    assert "1,000" in videoprune("plan", films, "--batch", "--from", run, "--films", "1000").out
    assert videoprune("plan", films, "--batch").code == 2
    assert videoprune("plan", films, "--hours", "3").code == 2
