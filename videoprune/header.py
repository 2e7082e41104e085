"""A film opened safely, and what its header and its first frame say.

Only one plain local file is ever opened: no playlist, no address, no file that another one names.
"""

from __future__ import annotations

import math
import os
import re
import stat
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Discard, Disposition

from videoprune.errors import FilmError

# Containers that hold their own pictures. Everything else is refused by FFmpeg itself before it reads a header: playlists
# (hls, concat, dash, sdp, image sequences …) name other files and addresses, and would open them for a stranger.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,nut,mxf,h264,hevc,av1,obu,ivf,m4v,"
    "yuv4mpegpipe,rm,wtv,dv,gxf,swf,vc1,gif,wav,mp3,flac,aac,w64,aiff,ac3"
)
PLAYLISTS = (
    (b"#EXTM3U", "an HLS playlist (m3u8)"),
    (b"ffconcat", "a concat list (ffconcat)"),
    (b"[playlist]", "a playlist (pls)"),
)


@dataclass(frozen=True)
class Header:
    """What is known of a film after its header and its first frame. Times in ticks of `time_base` (seconds a tick)."""

    path: str
    stream: int
    reason: str
    videos: int
    time_base: float
    base: int
    planned: bool
    end: float | None
    frames: int | None
    fps: float | None
    stored: tuple[int, int]
    matrix: tuple[int, int, int, int]
    rotation: int
    codec: str
    pixel_format: str
    interlaced: bool
    movie_index: bool  # MP4 or MOV: only true entry points are marked as keyframes
    metadata: dict[str, str]
    size: int
    best: int
    notes: tuple[str, ...]


def check_path(path: str | os.PathLike[str]) -> str:
    """The absolute path of a regular, non-empty file that does not look like text or a playlist; else FilmError."""
    name = os.fsdecode(path)
    if name == "-" or (
        re.match(r"(?i)(pipe|fd|concat|data|subfile|crypto|async|cache):", name) and not os.path.exists(name)
    ):
        raise FilmError(
            f"film {name!r}: a film is a file that can be searched, not a pipe; save it to a file and give its path"
        )
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name):
        raise FilmError(f"film {name!r}: addresses are not opened; download it first and give the path of the file")
    try:
        facts = os.stat(name)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FilmError(f"film {name!r}: {reason}; give the path of a video file") from None
    if stat.S_ISDIR(facts.st_mode):
        raise FilmError(f"film {name!r} is a folder; give one video file (`videoprune batch` takes many)")
    if not stat.S_ISREG(facts.st_mode):
        raise FilmError(f"film {name!r} is a device or a pipe; save it to a file and give its path")
    if facts.st_size == 0:
        raise FilmError(f"film {name!r} is empty (0 bytes); the download or the copy failed, fetch it again")
    try:
        with open(name, "rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise FilmError(f"film {name!r}: {error.strerror}; check its permissions") from None
    _refuse_text(name, head)
    return os.path.abspath(name)


def _refuse_text(name: str, head: bytes) -> None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    what = next((label for mark, label in PLAYLISTS if text.lower().startswith(mark.lower())), None)
    if what is None and text.startswith(b"<") and b"<MPD" in text:
        what = "a DASH manifest (mpd)"
    if what is None and re.match(rb"v=0\r?\n", text):
        what = "a session description (sdp)"
    if what:
        raise FilmError(
            f"film {name!r} is {what}, which names other files and addresses; join them into one file and give that "
            "(ffmpeg -i LIST -c copy film.mp4)"
        )
    control = set(range(32)) - {9, 10, 12, 13, 27}
    if not text.startswith(b"YUV4MPEG2") and not control.intersection(head):
        try:
            head[: max(1, len(head) - 4)].decode()
        except UnicodeDecodeError:
            return
        raise FilmError(f"film {name!r} holds text, not a film; give the video file itself")


def open_container(path: str) -> Any:
    """The film at the absolute `path` as a PyAV container that can open no other file and no address."""
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    try:
        return av.open("file:" + path, "r", container_options=options, metadata_errors="replace")
    except av.FFmpegError as error:
        name = os.path.basename(path)
        if _lacks_moov(path):
            raise FilmError(
                f"film {name!r}: its index (moov) is missing, because the recording or the download stopped before it was "
                "written; fetch the film again, or rebuild the index with a repair tool such as untrunc"
            ) from None
        if isinstance(error, av.error.ArgumentError):
            raise FilmError(
                f"film {name!r}: a format that is not read; allowed are films in one file (mp4, mkv, webm, mov, avi, "
                "ts, mpeg, flv …); convert it with ffmpeg"
            ) from None
        raise FilmError(
            f"film {name!r} is not a film or is damaged at its head ({error.strerror}); check it with ffprobe, or "
            "fetch it again"
        ) from None


def _lacks_moov(path: str) -> bool:
    """Whether the file is an MP4 or MOV (ftyp or mdat at its head) without the box that describes its streams."""
    kinds: set[bytes] = set()
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        at = 0
        while at + 8 <= size and len(kinds) < 64:
            file.seek(at)
            head = file.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if not at and kind not in {b"ftyp", b"mdat", b"wide", b"free", b"skip"}:
                return False
            kinds.add(kind)
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            if length < 8:
                break
            at += length
    return bool(kinds) and b"moov" not in kinds


def pick_stream(container: Any, name: str) -> tuple[Any, str]:
    """The video stream to watch, and why: marked as default, else the first; cover pictures and thumbnails never."""
    aside = Disposition.attached_pic | Disposition.timed_thumbnails
    real = [s for s in container.streams.video if not s.disposition & aside]
    if not real:
        what = "only a cover picture" if container.streams.video else "no video stream"
        sound = " (audio only)" if container.streams.audio else ""
        raise FilmError(f"film {name!r} has {what}{sound}; give a file with moving pictures")
    usable = [s for s in real if s.codec_context is not None]
    if not usable:
        raise FilmError(
            f"film {name!r}: no decoder for its video stream in this build of FFmpeg; convert it with ffmpeg (to H.264)"
        )
    default = [s for s in usable if s.disposition & Disposition.default]
    chosen = (default or usable)[0]
    if len(usable) == 1:
        return chosen, "the only video stream"
    if len(default) == 1:
        return chosen, f"marked as default among {len(usable)} video streams"
    return chosen, f"the first {'marked as default ' if default else ''}of {len(usable)} video streams"


def read_header(path: str | os.PathLike[str]) -> Header:
    """Open the film, decode its first frame (only frames carry rotation and the true first time), and close it.

    Packets are scanned, without decoding, only where the header has neither a length nor a stream length.
    """
    full = check_path(path)
    name = os.path.basename(full)
    with open_container(full) as container:
        stream, reason = pick_stream(container, name)
        notes = [f"video stream {stream.index}: {reason}"]
        only(container, stream)
        frame, timed = _first_frame(container, stream, name)
        tick = float(stream.time_base)
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate
        fps = float(rate) if rate else None
        planned = timed and frame.pts is not None and container.format.name != "avi"
        base = frame.pts if planned else stream.start_time or 0
        if not planned:
            notes.append("read from the start to the end: its packets carry no reliable presentation times")
        end, count, why = _length(container, stream, base, tick)
        if end is None:
            end, count = _scan(full, stream.index, base, tick, fps)
            why = "packet scan, as the header has none"
        notes.append(f"length {'unknown' if end is None else f'{end:.3f} s'}: {why}")
        matrix, rotation, note = _orientation(frame)
        notes += [note] if note else []
        sar = stream.sample_aspect_ratio
        if sar and sar != 1:
            notes.append(f"pixels are kept as stored; the film asks for a pixel aspect of {sar}")
        best = container.streams.best("video")
        tags = {str(k): str(v) for k, v in container.metadata.items()}
        return Header(
            full, stream.index, reason, len(container.streams.video), tick, base, planned, end, count, fps,
            (frame.height, frame.width), matrix, rotation, stream.codec_context.codec.canonical_name, frame.format.name,
            bool(frame.interlaced_frame), container.format.name.startswith("mov,"), tags, os.path.getsize(full),
            best.index if best is not None else stream.index, tuple(notes),
        )  # fmt: skip


def only(container: Any, stream: Any) -> None:
    """Have the demuxer throw away the packets of all other streams."""
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all


def _first_frame(container: Any, stream: Any, name: str) -> tuple[Any, bool]:
    """The first frame that can be decoded, and whether all packets up to it have presentation times."""
    timed, problem, packets = True, None, container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            problem, packet = error, None
        try:
            frames = stream.codec_context.decode(packet if packet is not None and packet.size else None)
        except av.FFmpegError as error:
            problem, frames = error, []
        if packet is not None and packet.size:
            timed = timed and packet.pts is not None
        if frames:
            return frames[0], timed
        if packet is None or not packet.size:
            why = (
                f"no frame of it can be decoded ({problem.strerror})" if problem else "it holds no frame (zero length)"
            )
            raise FilmError(f"film {name!r}: {why}; fetch or convert it again")


def _length(container: Any, stream: Any, base: int, tick: float) -> tuple[float | None, int | None, str]:
    """Seconds from the first frame to the end of the last by the header, the header's count of frames, and the source."""
    count, first = stream.frames or None, base * tick
    if stream.duration:
        start = stream.start_time if stream.start_time is not None else base
        return (start + stream.duration) * tick - first, count, "stream header"
    for key, value in stream.metadata.items():  # Matroska: the container's length counts the sound too
        clock = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", value) if key.upper().startswith("DURATION") else None
        if clock:
            return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3]) - max(first, 0.0), count, "stream tag"
    if container.duration:
        start = container.start_time / av.time_base if container.start_time is not None else first
        return start + container.duration / av.time_base - first, count, "container header"
    return None, count, "unknown"


def _scan(path: str, index: int, base: int, tick: float, fps: float | None) -> tuple[float | None, int | None]:
    """Length in seconds and count of frames from all packets, without decoding."""
    last, count, step = base, 0, round(1 / (fps * tick)) if fps else 0
    with open_container(path) as container:
        only(container, container.streams[index])
        try:
            for packet in container.demux(container.streams[index]):
                if packet.size:
                    count += 1
                    if packet.pts is not None:
                        last = max(last, packet.pts + (packet.duration or step))
        except av.FFmpegError:
            pass  # a cut tail: what was counted so far is the film
    if last > base:
        return (last - base) * tick, count or None
    return (count / fps if fps and count else None), count or None


def _orientation(frame: Any) -> tuple[tuple[int, int, int, int], int, str | None]:
    """The signs (a, b, c, d) of the display matrix: a pixel at (x, y) goes to (ax + cy, bx + dy); and clockwise degrees."""
    data = frame.side_data.get(SideData.DISPLAYMATRIX)
    if data is None:
        return (1, 0, 0, 1), 0, None
    cells = np.frombuffer(bytes(data), dtype=np.int32)
    a, b, c, d = (int(np.sign(round(float(cells[i]) / 65536))) for i in (0, 1, 3, 4))
    if abs(a * d - b * c) != 1 or (a and b):
        return (1, 0, 0, 1), 0, f"display rotation of {frame.rotation}° is not a quarter turn: left as stored"
    turn = {(1, 0): 0, (0, 1): 90, (-1, 0): 180, (0, -1): 270}[(a, b)]
    mirrored = " and mirrored" if a * d - b * c < 0 else ""
    note = f"turned by {turn}° clockwise{mirrored}, as its display matrix asks" if turn or mirrored else None
    return (a, b, c, d), turn, note


def orient(image: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """A view of `image` (H, W, 3) as it is to be shown."""
    a, b, c, d = matrix
    if a == 0:  # columns become rows
        image, across, down = image.swapaxes(0, 1), c, b
    else:
        across, down = a, d
    return image[:: 1 if down > 0 else -1, :: 1 if across > 0 else -1]


def ticks_at(seconds: np.ndarray, tick: float, base: int) -> list[int]:
    """The last tick that counts as shown at each of `seconds`.

    Half a tick, but at most half a millisecond, is forgiven: Matroska rounds its times to milliseconds, and frame 2 of a
    30 fps film, due at 66.7 ms, is written as 67.
    """
    slack = max(min(0.5, 0.0005 / tick), 1e-6)
    return [math.floor(base + s / tick + slack) for s in np.asarray(seconds, dtype=np.float64).tolist()]
