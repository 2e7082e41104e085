"""Subtitle files: SubRip as Video-MME has them, and the two JSON forms of LongVideoBench."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from videoprune.errors import UsageError
from videoprune.evaluate.files import load_json, read_text

TIME = re.compile(r"(\d+):(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)")
SPAN = re.compile(rf"^\s*({TIME.pattern})\s*-->\s*({TIME.pattern})")


@dataclass(frozen=True)
class Line:
    """What is said from `start` to `end`, in seconds of the film."""

    start: float
    end: float
    text: str


def seconds_of(clock: str) -> float:
    """Seconds of "H:MM:SS.mmm" or "H:MM:SS,mmm".

    Raises:
        ValueError: it is no such time.
    """
    found = TIME.fullmatch(clock.strip())
    if not found:
        raise ValueError(f"{clock!r} is no time; HH:MM:SS.mmm is one")
    return 3600 * int(found[1]) + 60 * int(found[2]) + float(found[3].replace(",", "."))


@lru_cache(maxsize=64)
def read_srt(path: Path) -> tuple[Line, ...]:
    """The lines of a SubRip file, tags taken out; blocks without a time are left out.

    Raises:
        UsageError: it can't be read.
    """
    lines: list[Line] = []
    for block in re.split(r"\n\s*\n", read_text(path).replace("\r\n", "\n")):
        rows = block.strip().split("\n")
        for number, row in enumerate(rows):
            found = SPAN.match(row)
            if found:
                text = " ".join(re.sub(r"<[^>]*>", "", rest).strip() for rest in rows[number + 1 :]).strip()
                lines.append(Line(seconds_of(found[1]), seconds_of(found[5]), text))
                break
    return tuple(lines)


@lru_cache(maxsize=64)
def read_json_lines(path: Path, offset: float, duration: float) -> tuple[Line, ...]:
    """LongVideoBench's subtitles: `{"timestamp": [start, end], "text"}` or `{"start", "end", "line"}`, less `offset` seconds.

    An end that is no float is the film's end, as in the benchmark's own loader.

    Raises:
        UsageError: it can't be read, or an entry has neither form.
    """
    rows: Any = load_json(path)
    if not isinstance(rows, list):
        raise UsageError(f"{path}: a list of subtitles is expected, {type(rows).__name__} is there")
    lines = []
    for index, row in enumerate(rows):
        try:
            if "timestamp" in row:
                start, end = row["timestamp"]
                end, text = end if isinstance(end, float) else duration, row["text"]
            else:
                start, end, text = seconds_of(row["start"]), seconds_of(row["end"]), row["line"]
            lines.append(Line(float(start) - offset, float(end) - offset, str(text)))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path}: entry {index} is no subtitle ({type(error).__name__}: {error})") from None
    return tuple(lines)


def shown_at(lines: Sequence[Line], seconds: Sequence[float]) -> list[str]:
    """Texts of the lines that are on at one of the sampled frames (start ≤ t < end), each once, in order: Video-MME's rule."""
    return [line.text for line in lines if line.text and any(line.start <= t < line.end for t in seconds)]


def between_frames(lines: Sequence[Line], seconds: Sequence[float]) -> tuple[tuple[float, str], ...]:
    """(middle, text) of the lines that cover a sampled frame: LongVideoBench's rule; a line under a second counts as one."""
    kept = []
    for line in lines:
        middle, start, end = (line.start + line.end) / 2, line.start, line.end
        if end - start < 1:
            start, end = middle - 0.5, middle + 0.5
        if any(start < t < end for t in seconds):
            kept.append((middle, line.text))
    return tuple(kept)


def interleave(seconds: Sequence[float], lines: Sequence[tuple[float, str]]) -> list[int | str]:
    """Frames (their numbers) and subtitle texts in the order in which LongVideoBench feeds them: a line comes behind all frames
    up to its middle."""
    order: list[int | str] = []
    given = 0
    for middle, text in lines:
        while given < len(seconds) and seconds[given] <= middle:
            order.append(given)
            given += 1
        order.append(text)
    return order + list(range(given, len(seconds)))
