"""How much a set of films will take, from what a finished sample run measured: `videoprune plan PATH --batch --from DIR`.

A run leaves in `films*.jsonl` what each film took. Three rates follow, as ratios of sums over its films:

    decode   seconds of one decoder thread / second of film
    encode   seconds of the model / frame
    ask      seconds of the model / question

A set then takes decode × seconds of film on CPUs, beside encode × frames + ask × questions on the model. Both go on at the same
time, so a machine needs as many decoder threads as keep its model busy, and the set takes model-hours / models. Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videoprune.errors import FilmError, UsageError
from videoprune.evaluate import base
from videoprune.evaluate.files import FILMS
from videoprune.evaluate.jobs import gather
from videoprune.evaluate.rows import PATTERN
from videoprune.header import read_header

FEWEST = 3  # films that a sample must have watched
HOUR = 3600.0
GIB = float(1 << 30)


@dataclass(frozen=True)
class Rates:
    """What a sample run measured.

    Attributes:
        films, questions: that it is made of.
        decode: seconds of a decoder thread for a second of film.
        encode: seconds of the model for a frame.
        ask: seconds of the model for a question.
        row_bytes: of results for a question.
        device: that it ran on.
        rule: frame rule of the run, as run.json has it.
    """

    films: int
    questions: int
    decode: float
    encode: float
    ask: float
    row_bytes: float
    device: str
    rule: dict[str, Any]

    @classmethod
    def of(cls, folder: Path) -> Rates:
        """Rates of the results folder of a finished run.

        Raises:
            UsageError: it is none, or watched too few films.
        """
        try:
            run = json.loads((sorted(folder.glob("run*.json")) or [folder / "run.json"])[0].read_text(encoding="utf-8"))
            lines = [line for path in sorted(folder.glob("films*.jsonl")) for line in path.read_bytes().splitlines()]
            seen = [record for record in map(_record, lines) if record and record["frames"] and record["questions"]]
            rule, device = dict(run["identity"]["frames"]), run.get("gpu") or run["device"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UsageError(
                f"--from {folder}: no finished run; give the --out folder of a `videoprune batch` with a sample, as --limit 20"
            ) from None
        if len(seen) < FEWEST:
            raise UsageError(
                f"--from {folder}: its run watched {len(seen)} films; give one of at least {FEWEST}, as --limit 20"
            )

        def total(name: str) -> float:
            return float(sum(record[name] for record in seen))

        size = sum(path.stat().st_size for path in folder.glob(PATTERN))
        rows = sum(path.read_bytes().count(b"\n") for path in folder.glob(PATTERN))
        return cls(
            films=len(seen),
            questions=int(total("questions")),
            decode=total("decode") / max(total("film_seconds"), 1e-9),
            encode=total("encode") / total("frames"),
            ask=total("ask") / total("questions"),
            row_bytes=size / max(rows, 1),
            device=str(device),
            rule=rule,
        )


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


@dataclass(frozen=True)
class FilmSet:
    """Films to be planned for: (seconds, bytes) of each, and the questions about all of them."""

    films: tuple[tuple[float, int], ...]
    questions: int
    unreadable: int = 0


def film_set(
    path: Path, benchmark: str | None, questions: int = 1, progress: Callable[[int, int], None] | None = None
) -> FilmSet:
    """The films of a benchmark, or all films in a folder with so many questions each; lengths from the data set, else headers.

    Raises:
        UsageError: there is no film.
    """
    if benchmark is not None:
        grouped = gather(base.read(benchmark, path))  # copies of a film are one film
        asked = sum(len(film.questions) for film in grouped)
        known = {film.path: film.duration for film in grouped}
    else:
        if not path.is_dir():
            raise UsageError(f"{path}: no folder; give a folder of films, or a benchmark's with --benchmark")
        found = sorted(each for each in path.rglob("*") if each.suffix.lower() in FILMS and each.is_file())
        asked, known = questions * len(found), dict.fromkeys(found, 0.0)
    films: list[tuple[float, int]] = []
    unreadable = 0
    for number, (film, seconds) in enumerate(known.items(), start=1):
        try:
            length = seconds or read_header(film).end or 0.0
            films.append((length, film.stat().st_size))
        except (FilmError, OSError):
            unreadable += 1
        if progress:
            progress(number, len(known))
    if not films:
        raise UsageError(f"{path}: no film there can be read; give a folder of films")
    return FilmSet(tuple(films), asked, unreadable)


def frames_of(seconds: float, rule: dict[str, Any]) -> int:
    """Frames that a rule takes of a film of so many seconds."""
    length = max(0.0, min(seconds, rule.get("end") or seconds) - (rule.get("start") or 0.0))
    if rule.get("frames") is not None:
        count = int(rule["frames"])
    else:
        count = max(1, math.ceil(length * float(rule.get("fps") or 1.0) - 1e-6))
    return min(count, rule.get("max") or count)


def capacity(
    rates: Rates, films: FilmSet, *, hours: float | None = None, scale_to: int | None = None
) -> dict[str, Any]:
    """What a set takes.

    Args:
        hours: in which it shall be done; gives the models that it takes.
        scale_to: as many films as this, like those of the set.

    Returns:
        `set` (films, film_hours, frames, questions, bytes), `rates`, `model_hours`, `decode_hours` (of one thread),
        `decoders` (threads that keep one model busy), `hours` (of one model), `models` and `threads` (for the hours asked
        for), `disk` (bytes of `films` and `results`).

    Raises:
        UsageError: hours or a count of films that are not above 0.
    """
    if hours is not None and not hours > 0:
        raise UsageError(f"--hours {hours:g}: a number above 0 is allowed")
    if scale_to is not None and scale_to < 1:
        raise UsageError(f"--films {scale_to}: a count of at least 1 is allowed")
    times = (scale_to or len(films.films)) / len(films.films)
    seconds = times * sum(length for length, _ in films.films)
    size = times * sum(each for _, each in films.films)
    frames = times * sum(frames_of(length, rates.rule) for length, _ in films.films)
    questions = times * films.questions
    model = (rates.encode * frames + rates.ask * questions) / HOUR
    decode = rates.decode * seconds / HOUR
    per_model = max(1, math.ceil(decode / model)) if model else 1
    models = 1 if hours is None else max(1, math.ceil(model / hours))
    return {
        "set": {
            "films": round(times * len(films.films)),
            "film_hours": seconds / HOUR,
            "frames": round(frames),
            "questions": round(questions),
            "unreadable": films.unreadable,
        },
        "rates": {
            "decode_seconds_per_film_second": rates.decode,
            "encode_seconds_per_frame": rates.encode,
            "ask_seconds_per_question": rates.ask,
            "device": rates.device,
            "sample_films": rates.films,
            "sample_questions": rates.questions,
        },
        "model_hours": model,
        "decode_hours": decode,
        "decoders": per_model,
        "hours": max(model / models, decode / (models * per_model)),
        "models": models,
        "threads": models * per_model,
        "disk": {"films": round(size), "results": round(rates.row_bytes * questions)},
    }


def capacity_rows(found: dict[str, Any]) -> Sequence[tuple[str, str, str]]:
    """The same as lines of a table: what, how much, how it follows."""
    films, rates = found["set"], found["rates"]
    decode, encode = rates["decode_seconds_per_film_second"], rates["encode_seconds_per_frame"]
    ask = rates["ask_seconds_per_question"]
    model = (
        f"{films['frames']:,} frames × {1000 * encode:.3g} ms + {films['questions']:,} questions × {1000 * ask:.3g} ms"
    )
    return [
        ("films", f"{films['films']:,}", f"{films['film_hours']:,.1f} h of film, {films['questions']:,} questions"),
        ("model", f"{found['model_hours']:,.2f} h", f"{model} on {rates['device']}"),
        ("decoding", f"{found['decode_hours']:,.2f} h", f"of one thread: {1000 * decode:.3g} ms for a second of film"),
        ("a model needs", f"{found['decoders']}", "decoder threads beside it, so as not to wait"),
        (
            "models",
            f"{found['models']:,}",
            f"with {found['threads']:,} decoder threads: done in {found['hours']:,.2f} h",
        ),
        (
            "disk",
            f"{found['disk']['films'] / GIB:,.2f} GiB",
            f"films; results {found['disk']['results'] / GIB:,.3f} GiB",
        ),
        (
            "measured on",
            f"{rates['sample_films']} films",
            f"and {rates['sample_questions']} questions of the sample run",
        ),
    ]
