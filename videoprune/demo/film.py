"""Generated films: drawn lazily from a timeline, written as tagged mp4 files with their questions beside them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from videoprune.demo import names, questions, scenes
from videoprune.demo.timeline import LENGTHS, Timeline, draw_timeline

TAG = "videoprune-demo"  # the container's "comment" starts with it
VERSION = 1  # of the generator: the same seed draws the same film as long as this number stays
FPS = 8
FPS_RANGE = (8, 60)
MINUTES_RANGE = (0.2, 24 * 60)
CODED_SIZE = 2 * scenes.SIZE
CRF, PRESET = 30, "superfast"  # two minutes are well below a megabyte
SEED_LIMIT = 2**63
KINDS = ("topic", "anomaly", "needle", "colour", "after", "before", "where", "direction", "count", "order")
ROUNDS = 12  # how often each kind is tried
MOST, MOST_DEFAULT = {"topic": 2, "anomaly": 2, "needle": 2, "where": 2, "count": 4}, 3  # questions of a kind
ONE_FACT = ("topic", "anomaly", "needle")  # asked again in other words only


def film_timeline(minutes: float, seed: int, pace: float = 1.0) -> Timeline:
    """What happens in the film of this length and seed; with a pace of 2, everything that happens takes twice as long."""
    rng = np.random.default_rng((seed, 0))
    return draw_timeline(60.0 * minutes, rng, length_of=lambda kind: pace * float(rng.uniform(*LENGTHS[kind])))


def frame_count(minutes: float, fps: int) -> int:
    return math.ceil(round(60.0 * minutes * fps, 6))


def draw_film(timeline: Timeline, seed: int, fps: int = FPS) -> Iterator[np.ndarray]:
    """The film's pictures one by one, (SIZE, SIZE, 3) uint8: constant memory however long it is."""
    views: dict[str, np.ndarray] = {}
    for i in range(frame_count(timeline.seconds / 60, fps)):
        t = i / fps
        place = timeline.shot_at(t).place
        if place not in views:
            views[place] = scenes.draw_place(place, np.random.default_rng((seed, 1, names.PLACES.index(place))))
        # each picture has its own generator, so that it does not depend on how many were drawn before it
        rng = np.random.default_rng((seed, 2, i))
        event = timeline.event_at(t)
        yield scenes.draw_frame(views[place], rng, camera(t, seed), event, event.progress(t) if event else 0.0)[0]


def camera(seconds: float, seed: int) -> tuple[int, int]:
    """A slight, slow sway of the camera, in pixels."""
    phase = seed % 97
    return (
        round(1.6 * math.sin(0.9 * seconds + phase) + 0.8 * math.sin(2.3 * seconds)),
        round(1.4 * math.sin(0.7 * seconds + 2 * phase) + 0.8 * math.cos(2.9 * seconds)),
    )


def film_questions(timeline: Timeline, seed: int, generated: bool = False) -> list[questions.Question]:
    """22 to 26 questions about a film of two minutes, fewer where little happens; all have four options.

    With ``generated``, also the summary and the sub-scene, which are answered in sentences.
    """
    asker = questions.Asker(timeline, np.random.default_rng((seed, 3)))
    found: dict[tuple[object, ...], questions.Question] = {}
    for kind in KINDS:
        for _ in range(ROUNDS):
            question = asker.ask(kind)
            if question is None or sum(k[0] == kind for k in found) == MOST.get(kind, MOST_DEFAULT):
                break
            fact = (kind, question.text) if kind in ONE_FACT else (kind, question.evidence, question.answer)
            found.setdefault(fact, question)
    asked = list(found.values())
    if generated:
        asked += [q for q in map(asker.ask, questions.GENERATED) if q is not None]
    return sorted(asked, key=lambda q: list(questions.TASKS).index(q.kind))


def film_rows(timeline: Timeline, seed: int, video: str, generated: bool = False) -> list[dict[str, object]]:
    """The film's questions as MLVU rows."""
    rng = np.random.default_rng((seed, 4))
    asked = film_questions(timeline, seed, generated)
    return [questions.mlvu_row(question, video, timeline.seconds, rng) for question in asked]


def tag(minutes: float, seed: int, fps: int, pace: float = 1.0) -> str:
    """What the container's comment says about a generated film."""
    facts = {"version": VERSION, "seed": seed, "minutes": minutes, "fps": fps} | ({"pace": pace} if pace != 1 else {})
    return f"{TAG} " + json.dumps(facts, separators=(",", ":"))


def is_demo_film(metadata: Mapping[str, str]) -> bool:
    """Whether a container's metadata are those of a generated film."""
    return any(key.lower() == "comment" and value.startswith(f"{TAG} {{") for key, value in metadata.items())


def make_film(
    out: Path,
    minutes: float,
    seed: int,
    fps: int = FPS,
    *,
    generated: bool = False,
    pace: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write a generated film and, beside it, its questions (``out`` with the ending ``.json``).

    Both files appear at once and complete: they are written under temporary names and renamed.

    Parameters
    ----------
    out : Path
        Where the film goes; must end in ``.mp4`` or ``.mkv``.
    minutes, seed, fps
        Length, seed and frame rate. The same three give the same film.
    generated : bool
        Also write the questions that are answered in sentences (summary, sub-scene).
    pace : float
        What happens takes so many times as long; long films of which few frames are looked at need it above 1.
    progress : callable, optional
        Called with the pictures done and the pictures in all.

    Returns
    -------
    dict
        ``film`` and ``questions`` (paths), ``seconds``, ``frames``, ``bytes``, ``rows`` (number of questions).

    Raises
    ------
    ValueError
        When an argument is outside its range.
    """
    out = Path(out)
    _check(out, minutes, seed, fps)
    timeline = film_timeline(minutes, seed, pace)
    total = frame_count(minutes, fps)
    beside = out.with_suffix(".json")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.stem}.{os.getpid()}.part{out.suffix}")
    part_rows = beside.with_name(f".{beside.stem}.{os.getpid()}.part.json")
    rows = film_rows(timeline, seed, out.name, generated)
    try:
        write_video(part, draw_film(timeline, seed, fps), fps, total, tag(minutes, seed, fps, pace), progress)
        part_rows.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        os.replace(part, out)
        os.replace(part_rows, beside)
    finally:
        part.unlink(missing_ok=True)
        part_rows.unlink(missing_ok=True)
    size = out.stat().st_size
    return {
        "film": out,
        "questions": beside,
        "seconds": timeline.seconds,
        "frames": total,
        "bytes": size,
        "rows": len(rows),
    }


def _check(out: Path, minutes: float, seed: int, fps: int) -> None:
    if out.suffix.lower() not in (".mp4", ".mkv"):
        raise ValueError(f"the film's name is {out.name!r}; it must end in .mp4 or .mkv: give such a name")
    low, high = MINUTES_RANGE
    if not (isinstance(minutes, (int, float)) and low <= minutes <= high):
        raise ValueError(f"minutes is {minutes!r}; allowed are {low} to {high}: give a length in that range")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEED_LIMIT:
        raise ValueError(f"seed is {seed!r}; allowed are whole numbers from 0 to 2**63 - 1: give one of them")
    slow, fast = FPS_RANGE
    if isinstance(fps, bool) or not isinstance(fps, int) or not slow <= fps <= fast:
        raise ValueError(f"fps is {fps!r}; allowed are whole numbers from {slow} to {fast}: give one of them")


def write_video(
    path: Path,
    pictures: Iterator[np.ndarray],
    fps: int,
    total: int,
    comment: str,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Encode pictures as h264 at twice the drawn size."""
    import av

    with av.open(str(path), "w") as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=fps)
        stream.width = stream.height = CODED_SIZE
        stream.pix_fmt = "yuv420p"
        # one thread: the file is then the same on every machine with this x264
        stream.codec_context.thread_count = 1
        stream.options = {"crf": str(CRF), "preset": PRESET}
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(CODED_SIZE, CODED_SIZE, "yuv420p", interpolation="BILINEAR")
            frame.pts = i
            container.mux(stream.encode(frame))
            if progress and (i % 32 == 31 or i + 1 == total):
                progress(i + 1, total)
        container.mux(stream.encode(None))
