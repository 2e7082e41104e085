"""decord and torchcodec behind the interface of the PyAV reader: (seconds, image) by time, each frame once.

Both are optional and imported only when asked for. Wheels of compiled decoders fail in more ways than ImportError (a CUDA
or FFmpeg library that is missing is an OSError or a RuntimeError), so all three count as "not there".
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from videoprune.errors import EnvironmentProblem, FilmError, UsageError
from videoprune.header import Header, orient

DECODERS = ("auto", "pyav", "decord", "torchcodec")
_MODULES = {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec.decoders"}
SLACK = 0.0005  # seconds, as in header.ticks_at


def load(decoder: str) -> Any:
    """The module of `decoder`; EnvironmentProblem with what to install where it cannot be imported."""
    try:
        return importlib.import_module(_MODULES[decoder])
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EnvironmentProblem(
            f"decoder {decoder!r} cannot be used: {reason}; pip install 'videoprune[{decoder}]', or take the decoder 'pyav'",
            stage="video",
        ) from None


def available_decoders() -> dict[str, str]:
    """Name -> "ok (version)", or why it cannot be used here."""
    found = {}
    for name in DECODERS[1:]:
        try:
            load(name)
            found[name] = (
                f"ok ({getattr(importlib.import_module(_MODULES[name].split('.')[0]), '__version__', 'version unknown')})"
            )
        except EnvironmentProblem as error:
            found[name] = str(error)
    return found


def refuse(decoder: str, header: Header, keyframes: bool) -> None:
    """Refuse what `decoder` would get wrong."""
    if decoder == "pyav":
        return
    if keyframes:
        raise UsageError(f"keyframes: not offered by the decoder {decoder!r}; take the decoder 'pyav'", stage="video")
    if decoder == "decord" and header.stream != header.best:
        raise UsageError(
            f"decoder 'decord' would read video stream {header.best}, not {header.stream} ({header.reason}); "
            "take the decoder 'pyav'",
            stage="video",
        )
    a, b, c, d = header.matrix
    if a * d - b * c < 0:
        raise UsageError(
            f"decoder {decoder!r} does not mirror pictures as this film asks; take the decoder 'pyav'", stage="video"
        )


def decord_frames(header: Header, seconds: np.ndarray, threads: int, chunk: int) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds, image (H, W, 3)) of the frame shown at each of `seconds`. decord holds its times in float32."""
    decord = load("decord")
    try:
        film = decord.VideoReader(header.path, ctx=decord.cpu(0), num_threads=threads)
        starts = np.asarray(film.get_frame_timestamp(np.arange(len(film))), dtype=np.float64)[:, 0]
        starts -= starts[0]
        wanted = np.unique(np.searchsorted(starts, seconds + SLACK, side="right") - 1).clip(0)
        if header.codec != "h264" or not header.movie_index:
            # Its seeks land one frame late behind an open group of pictures (seen with HEVC): one after the other is right.
            chosen = set(wanted.tolist())
            for index in range(int(wanted[-1]) + 1):
                image = film.next()
                if index in chosen:
                    yield float(starts[index]), image.asnumpy()
            return
        for at in range(0, len(wanted), chunk):
            part = wanted[at : at + chunk]
            for index, image in zip(part, film.get_batch(part.tolist()).asnumpy(), strict=True):
                yield float(starts[index]), image
    except Exception as error:  # decord raises its own kind, under no common base
        raise _unreadable("decord", header, error) from None


def torchcodec_frames(
    header: Header, seconds: np.ndarray, threads: int, chunk: int
) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds, image (H, W, 3)) of the frame shown at each of `seconds`."""
    torchcodec = load("torchcodec")
    try:
        film = torchcodec.VideoDecoder(
            header.path,
            stream_index=header.stream,
            dimension_order="NHWC",
            num_ffmpeg_threads=threads,
            seek_mode="exact",
        )
        facts = film.metadata
        first, end = float(facts.begin_stream_seconds), float(facts.end_stream_seconds)
        turned = hasattr(facts, "rotation")  # 0.11 turns pictures itself and says so; older ones do neither
        due = first + seconds + SLACK
        due, last = due[due < end], -1.0
        for at in range(0, len(due), chunk):
            batch = film.get_frames_played_at(seconds=due[at : at + chunk].tolist())
            for shown, image in zip(batch.pts_seconds.tolist(), batch.data.numpy(), strict=True):
                if shown > last:  # the same frame may be shown at several targets
                    last = shown
                    yield max(0.0, shown - first), image if turned else orient(image, header.matrix)
    except Exception as error:
        raise _unreadable("torchcodec", header, error) from None


def _unreadable(decoder: str, header: Header, error: Exception) -> FilmError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return FilmError(f"film {header.path!r}: {decoder} cannot read it ({reason[:160]}); take the decoder 'pyav'")
