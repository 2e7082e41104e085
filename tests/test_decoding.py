"""Decoding ahead of the model under a bound, in a thread and in a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests import films
from videoprune import watching
from videoprune.decode_process import DecodeProcess, decoded_beside
from videoprune.decoding import DecodeThread, Ended, Opened, Reading
from videoprune.errors import EnvironmentProblem, FilmError
from videoprune.evaluate.rows import error_of
from videoprune.report.report import Stopwatch
from videoprune.video import Film, FrameRule, Frames


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


def test_what_was_submitted_before_the_end_still_comes() -> None:
    decoder = DecodeProcess()
    decoder.submit(Reading(partial(FakeFilm, 5, [])))
    decoder.submit(None)
    assert [type(item) for item in everything(decoder)] == [Opened, *[Frames] * 5, Ended]
    decoder.close()
    assert decoder._process.returncode == 0


def test_a_process_skips_the_rest_of_a_film() -> None:
    decoder = DecodeProcess(ahead=1000)
    reading = Reading(partial(FakeFilm, 100_000, []))
    decoder.submit(reading)
    assert isinstance(decoder.take(), Opened)
    reading.skip.set()
    assert len(everything(decoder)) < 50_000
    decoder.close()


# ------------------------------------------------------------------------------------------------- beside the watching

SCRIPT = """
import sys
from videoprune.decode_process import decoded_beside
from videoprune.video import Film, FrameRule

print("run once")
with Film(sys.argv[1], FrameRule(fps=2)) as film:
    print(sum(len(chunk) for chunk in decoded_beside(film)), "frames")
"""


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return films.write(tmp_path_factory.mktemp("films") / "film.mp4", 500)


def test_a_process_beside_the_watching_gives_the_same_frames(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chunks() -> list[Frames]:
        with Film(film, FrameRule(fps=2), chunk=16, window=4) as opened:
            return list(watching.decoded(opened, Stopwatch()))

    here = chunks()
    monkeypatch.setattr(watching, "prefetch", lambda *_: pytest.fail("decoded in a thread"))
    monkeypatch.setattr(watching, "LONG", 1)
    there = chunks()
    assert [len(chunk) for chunk in there] == [16, 16, 8]
    for one, other in zip(here, there, strict=True):
        assert np.array_equal(one.images, other.images)
        assert np.array_equal(one.seconds, other.seconds)
        assert np.array_equal(one.index, other.index)


def test_what_is_wrong_with_a_film_is_told_where_it_is_watched(film: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mp4"
    data = film.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(FilmError):
        Film(cut)
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(data)
    with Film(copy, FrameRule(fps=2)) as opened:
        copy.write_bytes(data[:5000])
        with pytest.raises(FilmError):
            list(decoded_beside(opened))


def test_a_process_that_dies_is_told(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = FatalFilm(3, [])
    opened.chunk, opened.opener = 1, lambda: partial(FatalFilm, 3, [])  # type: ignore[attr-defined]
    opened.info = SimpleNamespace(path="x.mp4", width=10, height=10)
    with pytest.raises(EnvironmentProblem, match="signal 9"):
        list(decoded_beside(opened))  # type: ignore[arg-type]


def test_leaving_early_ends_the_process(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[DecodeProcess] = []
    start = DecodeProcess._start
    monkeypatch.setattr(DecodeProcess, "_start", lambda self: (made.append(self), start(self))[1])
    with Film(film, FrameRule(fps=2), chunk=4) as opened:
        chunks = decoded_beside(opened)
        next(chunks)
        assert made[0]._process.poll() is None
        chunks.close()  # type: ignore[attr-defined]
    assert made[0]._process.returncode == -signal.SIGKILL


def test_a_callers_script_is_not_run_again(film: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script, film], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split("\n") == ["run once", "40 frames", ""]
