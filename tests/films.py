"""Films whose frames prove their own index: a 12-bit counter is burnt in as black and white blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS, BLOCK = 12, 16
WIDTH, HEIGHT = 128, 96


def picture(index: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """(H, W, 3) uint8: blocks of the bits of `index` in the upper left (6 by 2), a moving bar, a red corner."""
    image = np.full((height, width, 3), 128, np.uint8)
    for bit in range(BITS):
        row, column = divmod(bit, 6)
        image[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK] = 255 if index >> bit & 1 else 0
    image[2 * BLOCK + 4 : 2 * BLOCK + 20, (index * 3) % (width - 8) : (index * 3) % (width - 8) + 8] = (0, 200, 255)
    image[-24:, -24:] = (255, 0, 0)
    return image


def counter(image: np.ndarray) -> int:
    """The index burnt into an upright (H, W, 3) picture."""
    value = 0
    for bit in range(BITS):
        row, column = divmod(bit, 6)
        block = image[row * BLOCK + 4 : (row + 1) * BLOCK - 4, column * BLOCK + 4 : (column + 1) * BLOCK - 4]
        value |= int(block.mean() > 128) << bit
    return value


def counters(images: np.ndarray) -> list[int]:
    return [counter(image) for image in images]


def write(
    path: Path,
    frames: int,
    *,
    codec: str = "libx264",
    fps: int | Fraction = 25,
    gop: int = 250,
    pixel_format: str = "yuv420p",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    rotation: float | None = None,
    hflip: bool = False,
    first: int = 0,
    sound: float = 0.0,
    tags: dict[str, str] | None = None,
) -> Path:
    """A film of `frames` counted pictures; `times` are presentation times in `time_base`, else the constant `fps`."""
    with av.open(str(path), "w", options={}, container_options=container or {}) as out:
        out.metadata.update(tags or {})
        stream = out.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        context = stream.codec_context
        context.gop_size, context.thread_count = gop, 1
        default = {"preset": "ultrafast", "crf": "20", "bf": "3", "sc_threshold": "0"}
        context.options = default if options is None else options
        if time_base is not None:
            context.time_base = time_base
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip=hflip)
        audio = out.add_stream("aac", rate=16000) if sound else None
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(first + i, *size), format="rgb24")
            frame.pts = times[i] if times is not None else i
            frame.time_base = time_base or 1 / Fraction(fps)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if audio is not None:
            for at in range(0, int(sound * 16000), 1024):
                tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                tone.sample_rate, tone.pts, tone.time_base = 16000, at, Fraction(1, 16000)
                out.mux(audio.encode(tone))
            out.mux(audio.encode())
    return path


def two_streams(path: Path, default: int | None) -> Path:
    """Two video streams; the frames of the second count from 2048; `default` is marked."""
    with av.open(str(path), "w") as out:
        streams = [out.add_stream("libx264", rate=25) for _ in range(2)]
        for number, stream in enumerate(streams):
            stream.width, stream.height, stream.pix_fmt = WIDTH + 32 * number, HEIGHT, "yuv420p"
            stream.codec_context.options = {"preset": "ultrafast", "crf": "20"}
            stream.disposition = av.stream.Disposition.default if number == default else av.stream.Disposition(0)
        for i in range(20):
            for number, stream in enumerate(streams):
                image = picture(2048 * number + i, WIDTH + 32 * number)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 25)
                out.mux(stream.encode(frame))
        for stream in streams:
            out.mux(stream.encode())
    return path


def sound_only(path: Path, seconds: float = 1.0) -> Path:
    with av.open(str(path), "w") as out:
        audio = out.add_stream("aac", rate=16000)
        for at in range(0, int(seconds * 16000), 1024):
            tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            tone.sample_rate, tone.pts, tone.time_base = 16000, at, Fraction(1, 16000)
            out.mux(audio.encode(tone))
        out.mux(audio.encode())
    return path


def boxes(data: bytes) -> Iterable[tuple[bytes, int, int]]:
    """Kind, start and end of the top-level boxes of an MP4."""
    at = 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], at, at + length
        at += max(length, 8)


def decode_all(path: Path, stream: int = 0) -> list[tuple[float, np.ndarray]]:
    """Every frame (seconds from the first, image), one after the other: the independent reading."""
    with av.open(str(path)) as container:
        chosen = container.streams.video[stream]
        frames = [(f.pts * chosen.time_base, f.to_ndarray(format="rgb24")) for f in container.decode(chosen)]
    return [(float(t - frames[0][0]), image) for t, image in frames]
