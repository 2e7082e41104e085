"""Films as a stream of chunks of frames with their true times; never a whole film in memory.

Sampling is by time, so films with a variable frame rate come out right. Second 0 is the presentation time of the first
frame that can be decoded. The frame taken for a target is the one being shown then: the greatest presentation time at or
before it (half a millisecond is forgiven, for containers that round their times). A frame shown at several targets, as
when a film has fewer frames than were asked for, is given once.

    with Film("movie.mp4", FrameRule(fps=1, max=256)) as film:
        for frames in film:
            frames.images  # (F, H, W, 3) uint8, RGB
            frames.seconds  # (F,) float64

This module does not import torch.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from videoprune import decoders
from videoprune.decoders import DECODERS, available_decoders
from videoprune.errors import FilmError, UsageError
from videoprune.header import Header, orient, read_header
from videoprune.reader import Reader
from videoprune.spread import SPREADS, spread_seconds

__all__ = ["DECODERS", "Film", "FilmInfo", "FrameRule", "Frames", "available_decoders", "prefetch", "probe", "targets"]

log = logging.getLogger(__name__)
CHUNK_BYTES = 128 << 20  # a chunk of large frames is cut to this, so that memory does not follow the picture size
DEFAULT_FPS = 1.0  # where a rule names neither fps nor frames
Item = TypeVar("Item")


@dataclass(frozen=True)
class FrameRule:
    """Which frames of a film are looked at.

    Attributes:
        fps: frames per second of film: targets at start + k / fps, k = 0, 1, …, below the end.
        frames: this many: the span is cut into so many equal parts, and the target is the middle of each.
        max: the most frames; where `fps` gives more, this many spread as by `frames`.
        start: seconds from the first frame, 0 where absent.
        end: seconds from the first frame, the film's end where absent or later.
        keyframes: take the keyframe nearest to each target, and decode nothing else.
        spread: another way to spread `frames` (or `max`), by frame numbers i = 0 … N-1 as published harnesses do: "ends"
            (evenly from the first to the last), "inner" (i·N/(n+1) for i = 1 … n) or "floor" (every floor(N/n)-th from the
            first, with n at most the whole seconds). N is length × frame rate, exact where that is constant.
    """

    fps: float | None = None
    frames: int | None = None
    max: int | None = None
    start: float | None = None
    end: float | None = None
    keyframes: bool = False
    spread: str | None = None

    def __post_init__(self) -> None:
        if self.fps is not None and self.frames is not None:
            raise UsageError(
                f"frame rule: fps={self.fps} and frames={self.frames} exclude each other; give one of them"
            )
        _number("fps", self.fps, low=0, open_low=True)
        for name in ("frames", "max"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UsageError(f"frame rule: {name}={value!r}; a whole number of at least 1 is allowed")
        _number("start", self.start, low=0)
        _number("end", self.end, low=0, open_low=True)
        if self.end is not None and self.end <= (self.start or 0):
            raise UsageError(
                f"frame rule: end={self.end} is not after start={self.start or 0}; give an end beyond the start"
            )
        if not isinstance(self.keyframes, bool):
            raise UsageError(f"frame rule: keyframes={self.keyframes!r}; true or false is allowed")
        if self.spread is not None and self.spread not in SPREADS:
            raise UsageError(f"frame rule: spread={self.spread!r}; allowed are {', '.join(SPREADS)}")
        if self.spread is not None and self.frames is None and self.max is None:
            raise UsageError(f"frame rule: spread={self.spread!r} spreads a number of frames; give frames or max, too")


def _number(name: str, value: Any, low: float, open_low: bool = False) -> None:
    if value is None:
        return
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not right or value < low or (open_low and value == low):
        raise UsageError(
            f"frame rule: {name}={value!r}; a number {'above' if open_low else 'of at least'} {low} is allowed"
        )


@dataclass(frozen=True)
class StreamChoice:
    """Which video stream is watched: `count` of them in the file, the absolute index of the `chosen` one, and why."""

    count: int
    chosen: int
    reason: str


@dataclass(frozen=True)
class FilmInfo:
    """What a film is. Seconds count from its first frame; width and height are those of the upright picture.

    `rotation` is in degrees clockwise and already applied to frames; `start_time` is the presentation time, in seconds, of
    the first frame in the file's own clock; `frames` is what the header counts, None where it does not; `choices` are the
    automatic decisions, each with its reason.
    """

    path: str
    decoder: str
    duration: float | None
    fps: float | None
    frames: int | None
    width: int
    height: int
    rotation: int
    codec: str
    pixel_format: str
    streams: StreamChoice
    metadata: dict[str, str]
    start_time: float
    size_bytes: int
    choices: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Frames:
    """A chunk: `images` (F, H, W, 3) uint8 RGB, `seconds` (F,) float64 ascending, `index` (F,) int64 of the sampled frame."""

    images: np.ndarray
    seconds: np.ndarray
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.seconds)


def probe(path: str | os.PathLike[str]) -> FilmInfo:
    """What the film at `path` is, from its header and first frame (packets are counted where the header has no length)."""
    return _info(
        read_header(path), "pyav", ["decoder pyav: the default, reads every container without further libraries"]
    )


def _info(header: Header, decoder: str, choices: list[str]) -> FilmInfo:
    height, width = header.stored if header.matrix[0] else header.stored[::-1]
    streams = StreamChoice(header.videos, header.stream, header.reason)
    return FilmInfo(
        header.path, decoder, header.end, header.fps, header.frames, width, height, header.rotation, header.codec,
        header.pixel_format, streams, dict(header.metadata), header.base * header.time_base, header.size,
        [*choices, *header.notes],
    )  # fmt: skip


def targets(info: FilmInfo, rule: FrameRule) -> np.ndarray:
    """The seconds (F,) float64, ascending, at which `rule` looks at the film."""
    if info.duration is None or info.duration <= 0:
        raise FilmError(
            f"film {info.path!r}: its length is unknown, so it cannot be sampled by time; convert it with ffmpeg"
        )
    start, end = float(rule.start or 0), min(float(rule.end or math.inf), info.duration)
    if start >= info.duration:
        raise UsageError(
            f"start={start:g} s is past the end of the film ({info.duration:.3f} s); give a start below that",
            stage="video",
        )
    count = rule.frames
    if count is None:
        fps = float(rule.fps or DEFAULT_FPS)
        given = max(1, math.ceil((end - start) * fps - 1e-6))  # 2 s at 1 fps are 2 frames, rounding aside
        if rule.max is None or given <= rule.max:
            return start + np.arange(given, dtype=np.float64) / fps
        count = rule.max
    count = min(count, rule.max or count)
    if rule.spread is not None:
        fps = info.fps or (info.frames / info.duration if info.frames else DEFAULT_FPS)
        return start + spread_seconds(rule.spread, count, end - start, fps)
    return start + (np.arange(count, dtype=np.float64) + 0.5) * ((end - start) / count)


class Film:
    """A film opened for reading: iterate over it for `Frames`, any number of times.

    Args:
        path: a file.
        rule: which frames.
        decoder: one of DECODERS; "auto" is pyav.
        chunk: frames in a chunk at most; fewer where the pictures are so large that it would pass 128 MiB.
        window: chunks have a multiple of so many frames, the last one aside.
        threads: of the decoder.

    Attributes:
        info: FilmInfo.
        seconds: (F,) the targets.
        warnings: what was wrong with the film, filled while it is read.
        stats: of the last full reading with pyav: `decoded` packets and `seeks`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        rule: FrameRule | None = None,
        decoder: str = "auto",
        chunk: int = 32,
        threads: int = 1,
        window: int = 1,
    ) -> None:
        if decoder not in DECODERS:
            raise UsageError(f"decoder {decoder!r}; allowed are {', '.join(DECODERS)}", stage="video")
        for name, value in (("chunk", chunk), ("threads", threads), ("window", window)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"{name}={value!r}; a whole number of at least 1 is allowed", stage="video")
        self.rule = rule or FrameRule()
        self.decoder = "pyav" if decoder == "auto" else decoder
        self.chunk, self.threads, self.window = chunk, threads, window
        self.warnings: list[str] = []
        self.stats: dict[str, int] = {}
        self._open: list[Any] = []
        decoders.load(self.decoder)
        self._header = read_header(path)
        decoders.refuse(self.decoder, self._header, self.rule.keyframes)
        why = "auto: the default, reads every container without further libraries" if decoder == "auto" else "as asked"
        choices = [f"decoder {self.decoder}: {why}"]
        self.info = _info(self._header, self.decoder, choices)
        self.seconds = targets(self.info, self.rule)
        if self.rule.fps is None and self.rule.frames is None:
            choices.append(f"frames: {DEFAULT_FPS:g} a second, as the rule names neither fps nor frames")
        if self.rule.end is not None and self.info.duration is not None and self.rule.end > self.info.duration:
            choices.append(f"frames: end={self.rule.end:g} s is the film's end, {self.info.duration:.3f} s")
        if self.rule.fps is not None and self.rule.max is not None and len(self.seconds) == self.rule.max:
            choices.append(
                f"frames: at most {self.rule.max}, evenly over the film where {self.rule.fps:g} fps would give more"
            )
        room = max(1, CHUNK_BYTES // (self.info.width * self.info.height * 3) // window) * window
        if room < chunk:
            self.chunk = room
            choices.append(
                f"chunk: {room} frames, as {chunk} of {self.info.width}x{self.info.height} would pass 128 MiB"
            )
        self.info.choices[:] = choices + self.info.choices[1:]

    def __enter__(self) -> Film:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def opener(self) -> partial[Film]:
        """What opens it once more, as another process can be asked to."""
        return partial(Film, self.info.path, self.rule, self.decoder, self.chunk, self.threads, self.window)

    def close(self) -> None:
        """Close the file; a reading that is under way ends."""
        while self._open:
            self._open.pop().close()

    def __len__(self) -> int:
        """The count of frames to expect; fewer come where a frame is shown at several targets or the film is damaged."""
        return len(self.seconds) if self.info.frames is None else min(len(self.seconds), self.info.frames)

    def __iter__(self) -> Iterator[Frames]:
        return self.chunks()

    def chunks(self) -> Iterator[Frames]:
        """The sampled frames, `chunk` at a time, ascending. FilmError where not one can be decoded."""
        self.warnings.clear()
        shape = (self.info.height, self.info.width, 3)
        images, given = np.empty((0, *shape), np.uint8), 0
        seconds: list[float] = []
        pictures = self._pictures()
        try:
            for second, image in pictures:
                if not seconds:  # a new array a chunk: the last one belongs to whoever took it
                    images = np.empty((min(self.chunk, len(self.seconds)), *shape), np.uint8)
                images[len(seconds)] = image
                seconds.append(second)
                if len(seconds) == len(images):
                    yield Frames(images, np.array(seconds), np.arange(given, given + len(seconds), dtype=np.int64))
                    given += len(seconds)
                    seconds = []
            if seconds:
                n = len(seconds)
                yield Frames(images[:n].copy(), np.array(seconds), np.arange(given, given + n, dtype=np.int64))
                given += n
        finally:
            pictures.close()
        if not given:
            why = "; ".join(self.warnings) or "nothing is shown at the chosen times"
            raise FilmError(
                f"film {self.info.path!r}: no frame can be decoded: {why}; choose another part or fetch it again"
            )

    def _pictures(self) -> Any:
        """Generator of (seconds, image) from the chosen decoder."""
        if self.decoder == "pyav":
            return self._from_pyav()
        frames = decoders.decord_frames if self.decoder == "decord" else decoders.torchcodec_frames
        return frames(self._header, self.seconds, self.threads, self.chunk)

    def _from_pyav(self) -> Iterator[tuple[float, np.ndarray]]:
        header, resized = self._header, 0
        reader = Reader(header, self.threads)
        self._open.append(reader)
        try:
            found = reader.keyframes(self.seconds) if self.rule.keyframes else reader.shown(self.seconds)
            for ticks, frame in found:
                size = {}
                if (frame.height, frame.width) != header.stored:  # a broadcast may change its size on the way
                    size = {"height": header.stored[0], "width": header.stored[1]}
                    resized += 1
                # One thread: swscale otherwise starts one for each core, whatever the caller allowed.
                image = frame.to_ndarray(format="rgb24", threads=self.threads, **size)
                yield max(0.0, (ticks - header.base) * header.time_base), orient(image, header.matrix)
        finally:
            if reader in self._open:
                self._open.remove(reader)
            reader.close()
            self.stats = {"decoded": reader.decoded, "seeks": reader.seeks}
            if resized:
                self._warn(
                    f"{resized} frames are scaled to the size of the first, {header.stored[1]}x{header.stored[0]}"
                )
            for problem in reader.problems(len(self.seconds)):
                self._warn(problem)

    def _warn(self, message: str) -> None:
        self.warnings.append(message)
        log.warning("%s: %s", os.path.basename(self.info.path), message)


# --------------------------------------------------------------------------------------------------------- prefetch

_END = object()


def prefetch(iterator: Iterable[Item], depth: int = 2) -> Iterator[Item]:
    """The items of `iterator`, made in a thread up to `depth` ahead: decoding then overlaps with the model's work.

    Errors of the iterator are raised here. Leaving early (break, close, Ctrl-C) stops the thread after the item that it is at.
    """
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise UsageError(f"prefetch depth={depth!r}; a whole number of at least 1 is allowed", stage="video")
    return _prefetch(iterator, depth)


def _prefetch(iterator: Iterable[Item], depth: int) -> Iterator[Item]:
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    leave = threading.Event()

    def hand_over(item: Any, error: BaseException | None = None) -> None:
        while not leave.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        items, error = iter(iterator), None
        try:
            for item in items:
                hand_over(item)
                if leave.is_set():
                    break
        except BaseException as problem:  # whatever it is, it belongs to the consumer
            error = problem
        finally:
            close = getattr(items, "close", None)  # a generator is closed in the thread that ran it
            if close is not None:
                close()
            hand_over(_END, error)

    thread = threading.Thread(target=work, name="videoprune-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item, error = ready.get(timeout=0.2)  # wakes up for Ctrl-C on every platform
            except queue.Empty:
                continue
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        leave.set()
        thread.join(timeout=1.0)
