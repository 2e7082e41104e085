"""A benchmark of generated films in a published layout: the films in parallel and resumably, then the questions around them.

A film's length and content follow from its own number alone, so a set of 60 holds the films of a set of 20. While it is
being made everything lies in a folder `.making` inside the target; a second start takes up what is finished there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from videoprune.demo.film import FPS, SEED_LIMIT, make_film, tag
from videoprune.demo.layouts import LAYOUTS, Film
from videoprune.processes import die_with_parent

MINUTES = (3.0, 60.0)
SEEN = 256  # frames that the demo model looks at; films beyond as many seconds slow down, so that it sees what happens
MOST_VIDEOS = 10_000
GOLDEN = (5**0.5 - 1) / 2
MAKING, MADE = ".making", "made.json"


@dataclass(frozen=True)
class Plan:
    """What a folder of generated films is; written into it as `made.json`."""

    benchmark: str
    videos: int
    seed: int
    shortest: float
    longest: float
    generated: bool


def minutes_of(seed: int, shortest: float = MINUTES[0], longest: float = MINUTES[1]) -> float:
    """Length of film `seed` in minutes; any run of seeds covers the span, half of them below about twice the shortest."""
    place = (0.5 + GOLDEN * seed) % 1.0
    return round(shortest * (longest / shortest) ** (place * place), 2)


def pace_of(minutes: float) -> float:
    """How much slower a film is where its seconds are more than the frames that are looked at."""
    return round(max(1.0, 60.0 * minutes / SEEN), 3)


def make_benchmark(
    out: Path,
    benchmark: str = "mlvu",
    videos: int = 60,
    seed: int = 0,
    *,
    minutes: tuple[float, float] = MINUTES,
    generated: bool = True,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write a benchmark folder of generated films that the demo model can answer.

    Args:
        out: the folder; new or empty, or begun by the same call before.
        benchmark: layout, one of LAYOUTS.
        videos: how many films; they have the seeds from `seed` on.
        minutes: shortest and longest.
        generated: also the questions that are answered in sentences (MLVU's sub-scene and summary).
        workers: films drawn at a time, each in a process of its own.
        progress: called with films done and films in all.

    Returns:
        `out`, `benchmark`, `videos`, `minutes` (of all films together) and `questions` (by task).

    Raises:
        ValueError: an argument is outside its range, or the folder holds something else.
        OSError: it can't be written.
    """
    plan = _checked(benchmark, videos, seed, minutes, generated, workers)
    out = Path(out)
    made = out / MADE
    if made.is_file():
        _same(made, plan)
        return dict(json.loads(made.read_text(encoding="utf-8"))["result"])
    making = out / MAKING
    begun = making / MADE
    if begun.is_file():
        _same(begun, plan)
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; give a new folder, or one that the same command began")
    making.mkdir(parents=True, exist_ok=True)
    begun.write_text(json.dumps({"plan": asdict(plan)}), encoding="utf-8")
    films = _films(making, plan, workers, progress)
    tasks = LAYOUTS[benchmark](films, out)
    result = {
        "out": str(out),
        "benchmark": benchmark,
        "videos": videos,
        "minutes": round(sum(film.minutes for film in films), 2),
        "questions": tasks,
    }
    part = out / f".{MADE}.part"
    part.write_text(json.dumps({"plan": asdict(plan), "result": result}, indent=1) + "\n", encoding="utf-8")
    os.replace(part, made)
    shutil.rmtree(making)
    return result


def _checked(
    benchmark: str, videos: int, seed: int, minutes: tuple[float, float], generated: bool, workers: int
) -> Plan:
    if benchmark not in LAYOUTS:
        raise ValueError(f"benchmark is {benchmark!r}; allowed are {', '.join(LAYOUTS)}: give one of them")
    for name, value, most in (("videos", videos, MOST_VIDEOS), ("workers", workers, 256)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ValueError(f"{name} is {value!r}; allowed are whole numbers from 1 to {most}: give one of them")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEED_LIMIT - videos:
        raise ValueError(
            f"seed is {seed!r}; allowed are whole numbers from 0 to 2**63 less the films: give one of them"
        )
    shortest, longest = minutes
    if not 0.2 <= shortest <= longest <= 24 * 60:
        raise ValueError(f"minutes are {shortest} to {longest}; allowed are 0.2 to 1440, the shortest first")
    return Plan(benchmark, videos, seed, float(shortest), float(longest), generated)


def _same(path: Path, plan: Plan) -> None:
    """Refuse to go on in a folder that holds something else."""
    try:
        there = json.loads(path.read_text(encoding="utf-8"))["plan"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is no record of a generated benchmark; give another folder") from None
    for key, value in asdict(plan).items():
        if there.get(key) != value:
            raise ValueError(
                f"{path.parent} holds generated films with {key} {there.get(key)!r}, not {value!r}; give another folder"
            )


def _films(folder: Path, plan: Plan, workers: int, progress: Callable[[int, int], None] | None) -> list[Film]:
    """Draw what is missing, longest first, and give all films in the order of their seeds."""
    films = []
    for seed in range(plan.seed, plan.seed + plan.videos):
        minutes = minutes_of(seed, plan.shortest, plan.longest)
        films.append(Film(folder / f"demo_{seed}.mp4", seed, minutes, pace_of(minutes)))
    missing = sorted((film for film in films if not _finished(film)), key=lambda film: -film.minutes)
    done = len(films) - len(missing)
    tell = progress or (lambda done, total: None)
    tell(done, len(films))
    if workers == 1 or len(missing) < 2:
        for film in missing:
            _draw(film, plan.generated)
            done += 1
            tell(done, len(films))
        return films
    pool = ProcessPoolExecutor(min(workers, len(missing)), get_context("spawn"), initializer=die_with_parent)
    try:
        waiting = {pool.submit(_draw, film, plan.generated) for film in missing}
        while waiting:
            ready, waiting = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in ready:
                future.result()
                done += 1
                tell(done, len(films))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return films


def _draw(film: Film, generated: bool) -> None:
    make_film(film.path, film.minutes, film.seed, generated=generated, pace=film.pace)


def _finished(film: Film) -> bool:
    """Whether the film and its questions are there, made by this version of the generator."""
    import av

    if not (film.path.is_file() and film.path.with_suffix(".json").is_file()):
        return False
    with av.open(str(film.path)) as container:
        return bool(container.metadata.get("comment") == tag(film.minutes, film.seed, FPS, film.pace))
