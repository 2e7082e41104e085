"""Sampling a film: our CPU time and frames against decord's and against plain PyAV seeking, in interleaved pairs.

    python benchmarks/sampling.py
    python benchmarks/sampling.py --clips CLIPS      # the difference on other films, too

The films are generated 8-bit h264 of a constant rate, with a keyframe every half second and every ten seconds, both with
B-frames. All sides open the film anew each time, use one thread, and give (H, W, 3) uint8 RGB. Needs decord. Writes
docs/results/sampling.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import shared

FPS, SHORT, LONG = 24, 12, 240  # pictures a second, and from one keyframe to the next
COUNTS = (64, 256)
STEPS = 1024  # of a wave
PAGE, TITLE = "sampling.md", "Sampling frames"


# -------------------------------------------------------------------------------------------------------------- films


def pictures(seconds: float, height: int, width: int, seed: int) -> Iterator[np.ndarray]:
    """A smooth, moving picture with a little noise and a cut every 7 s: cheap to draw, and no two frames are alike."""
    rng = np.random.default_rng(seed)
    grain = rng.integers(-6, 7, (height + 32, width + 32, 1), dtype=np.int16)
    wave = np.round(127 + 100 * np.sin(np.arange(STEPS) * 2 * np.pi / STEPS)).astype(np.int16)
    y, x = np.mgrid[0:height, 0:width]
    for number in range(round(seconds * FPS)):
        scene = number // (7 * FPS)
        phases = [(x * (1 + (scene + c) % 3) + y * (1 + scene * c % 4)) * 2 + (1 + c) * number * 7 for c in range(3)]
        dy, dx = int(rng.integers(32)), int(rng.integers(32))
        noisy = wave[np.stack(phases, axis=2) % STEPS] + grain[dy : dy + height, dx : dx + width]
        yield noisy.clip(0, 255).astype(np.uint8)


def write(path: Path, frames: Iterator[np.ndarray], shape: tuple[int, int], gop: int) -> None:
    """An h264 film of FPS pictures a second with a keyframe every `gop` of them."""
    import av

    part = path.with_suffix(".part.mp4")
    with av.open(str(part), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = *shape, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "23", "preset": "veryfast", "g": str(gop), "keyint_min": str(gop), "sc_threshold": "0"}
        for at, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = at
            frame.time_base = Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    os.replace(part, path)


def constant_film(cache: Path, name: str, gop: int, given: argparse.Namespace) -> Path:
    height, width = given.height, given.height * 16 // 9 // 2 * 2
    path = cache / f"{name}_{height}_{given.seconds:g}_{given.seed}.mp4"
    if not path.is_file():
        print(f"drawing {path.name}", file=sys.stderr, flush=True)
        frames = pictures(given.seconds, height, width, given.seed)
        write(path, frames, (height, width), gop)
    return path


# -------------------------------------------------------------------------------------------------------------- sides


def ours(path: Path, count: int, seconds: list[float] | None = None) -> np.ndarray:
    """(F, H, W, 3) and, in `seconds`, when they are shown."""
    from videoprune.video import Film, FrameRule

    with Film(path, FrameRule(frames=count)) as film:
        chunks = list(film)
    if seconds is not None:
        seconds += np.concatenate([each.seconds for each in chunks]).tolist()
    return np.concatenate([each.images for each in chunks])


def decord(path: Path, index: list[int]) -> np.ndarray:
    import decord as library

    library.logging.set_level(library.logging.ERROR)
    pixels: np.ndarray = library.VideoReader(str(path), num_threads=1).get_batch(index).asnumpy()
    return pixels


def seeking(path: Path, ticks: list[int]) -> np.ndarray:
    """PyAV as its own recipes have it: for each wanted time a seek to the keyframe before it, then decode up to it."""
    import av

    out = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for tick in ticks:
            container.seek(tick, stream=stream, backward=True)
            frame = next(each for each in container.decode(stream) if each.pts is not None and each.pts >= tick)
            out.append(frame.to_ndarray(format="rgb24", threads=1))
    return np.stack(out)


def all_times(path: Path) -> tuple[list[int], float]:
    """Presentation times of all frames in ticks, ascending, and seconds a tick."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        ticks = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None and packet.size)
        return ticks, float(stream.time_base)


def places(ticks: list[int], tick: float, seconds: list[float]) -> list[int]:
    """The number of the frame that is shown at each of `seconds`, counted in the order of presentation."""
    at = np.asarray(ticks) - ticks[0]
    return [int(np.abs(at * tick - second).argmin()) for second in seconds]


def compare(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """How far two sets of frames are from each other."""
    if ours.shape != theirs.shape:
        return {"identical": 0, "of": len(ours), "largest": None, "mean": None, "shapes": [ours.shape, theirs.shape]}
    apart = [np.abs(a.astype(np.int16) - b) for a, b in zip(ours, theirs, strict=True)]
    return {
        "identical": sum(not each.any() for each in apart),
        "of": len(apart),
        "largest": int(max(each.max() for each in apart)),
        "mean": float(np.mean([each.mean() for each in apart])),
    }


# ----------------------------------------------------------------------------------------------------------- measuring


def row(path: Path, name: str, count: int, pairs: int) -> dict[str, Any]:
    """CPU time and frames of one film at one count."""
    from videoprune.bench.pairs import interleaved

    ticks, tick = all_times(path)
    seconds: list[float] = []
    frames = ours(path, count, seconds)
    index = places(ticks, tick, seconds)
    wanted = [ticks[each] for each in index]
    found: dict[str, Any] = {"film": name, "count": count, "frames": len(frames)}
    sides = {"decord": lambda: decord(path, index), "PyAV seeking": lambda: seeking(path, wanted)}
    for side, work in sides.items():
        same = compare(frames, work())
        ratio = interleaved(lambda: ours(path, count), work, pairs, time.process_time).to_dict()
        found[side] = {"ratio": ratio, "same": same}
        print(f"{name}, {count}: {side} {ratio['median']:.3f}, {same}", file=sys.stderr, flush=True)
    return found


def other(path: Path, count: int) -> dict[str, Any]:
    """What differs from decord on a film that is not of that kind: pixels of the same frames, and which frames are taken."""
    import decord as library

    ticks, tick = all_times(path)
    seconds: list[float] = []
    frames = ours(path, count, seconds)
    index = places(ticks, tick, seconds)
    found: dict[str, Any] = {"film": path.name, "count": len(frames)}
    try:
        reader = library.VideoReader(str(path), num_threads=1)
        theirs = reader.get_batch(index).asnumpy()
        number = len(reader)
        middle = [int((place + 0.5) * number / count) for place in range(count)]  # what is usual: by frame number
        begins = reader.get_frame_timestamp(middle)[:, 0] - reader.get_frame_timestamp([0])[0, 0]
    except Exception as error:  # decord raises a class of its own, with a stack of C++ in its text
        return {**found, "error": str(error).strip().splitlines()[0][:120]}
    gaps = np.diff(np.asarray(ticks) * tick)
    span = np.asarray(seconds)
    due = (np.arange(count) + 0.5) * ((ticks[-1] - ticks[0]) * tick + float(np.median(gaps))) / count
    found["frames counted"] = [len(ticks), number]
    found["late by time"] = float(np.abs(span - due[: len(span)]).max()) if len(span) == count else None
    found["late by number"] = float(np.abs(begins - due).max())
    return {**found, **compare(frames, theirs)}


def main() -> None:
    command = shared.parser(__doc__)
    command.add_argument("--cache", type=Path, help="where generated films are kept; else nowhere")
    command.add_argument("--seconds", type=float, default=120, help="length of the films; 120")
    command.add_argument("--height", type=int, default=360, help="of their pictures, 16:9; 360")
    command.add_argument("--seed", type=int, default=0, help="of the films; 0")
    command.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), help="frames to sample; 64 256")
    command.add_argument("--pairs", type=int, default=21, help="interleaved pairs of each kind; 21")
    command.add_argument("--clips", type=Path, help="folder of other films: the difference is reported")
    shared.add_output(command, PAGE)
    given = command.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        cache: Path = given.cache or Path(scratch)
        cache.mkdir(parents=True, exist_ok=True)
        films = {
            f"a keyframe every {gop / FPS:g} s": constant_film(cache, f"gop{gop}", gop, given) for gop in (SHORT, LONG)
        }
        rows = [row(path, name, count, given.pairs) for name, path in films.items() for count in given.counts]
        clips = sorted(given.clips.iterdir()) if given.clips else []
        others = [other(path, given.counts[0]) for path in clips if path.suffix in (".mp4", ".mkv", ".webm", ".mov")]
    data = {"seconds": given.seconds, "height": given.height, "seed": given.seed, "rows": rows, "others": others}
    shared.publish(given, TITLE, "CPU time and frames", text(data), data)


def text(data: dict[str, Any]) -> str:
    lines = []
    for each in data["rows"]:
        for side in ("decord", "PyAV seeking"):
            ratio, same = each[side]["ratio"], each[side]["same"]
            span = "–" if ratio["low"] is None else f"{ratio['low']:.3f} – {ratio['high']:.3f}"
            lines.append(
                (
                    each["film"], each["count"], side, f"{1000 * ratio['ours']:.0f}", f"{1000 * ratio['theirs']:.0f}",
                    f"**{ratio['median']:.3f}**", span, ratio["pairs"], f"{same['identical']} of {same['of']}",
                    "–" if same["largest"] is None else same["largest"],
                    shared.mark(ratio["median"] <= 1 and same["identical"] == same["of"]),
                )
            )  # fmt: skip
    head = (
        "film", "frames", "next to", "ours, ms", "theirs, ms", "ours / theirs", "95 %", "pairs", "frames identical",
        "largest difference", "bar: ≤ 1, identical",
    )  # fmt: skip
    parts = [
        shared.prose(
            f"Generated films of {data['seconds']:g} s, {data['height']} lines, {FPS} pictures a second, h264 8 bit with",
            "B-frames; one thread each; process CPU time, the film opened anew each time. Ours is",
            "`Film(path, FrameRule(frames=N))`, the others are given the same frames by number or time.",
        ),
        shared.table(head, lines),
    ]
    if data["others"]:
        rows = []
        for each in data["others"]:
            if "error" in each:
                rows.append((each["film"], each["count"], f"decord: {each['error']}", "–", "–", "–", "–"))
                continue
            late = each["late by time"]
            rows.append(
                (
                    each["film"], each["count"], f"{each['identical']} of {each['of']}",
                    "–" if each["largest"] is None else each["largest"],
                    "–" if each["mean"] is None else f"{each['mean']:.3f}",
                    "–" if late is None else f"{1000 * late:.0f}", f"{1000 * each['late by number']:.0f}",
                )
            )  # fmt: skip
        head = (
            "film", "frames", "identical to decord's", "largest difference", "mean difference",
            "ms off, ours by time", "ms off, decord by number",
        )  # fmt: skip
        parts += [
            "### Other films",
            shared.prose(
                "The same frames as decord gives them, and how far the frame that is taken is from its due time, by time and by",
                "frame number (at most, over the frames).",
            ),
            shared.table(head, rows),
        ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
