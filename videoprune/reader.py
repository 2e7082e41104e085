"""A film through PyAV (FFmpeg): opened safely, decoded only where a frame is wanted.

The reader plans on packets, which cost next to nothing, before it decodes: packets carry the presentation time of the
frame inside them, so the frame shown at a target is known exactly before any pixel exists. It then decodes from the last
keyframe at or before that frame up to it, and not one packet further.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np

from videoprune.header import Header, only, open_container, ticks_at

# A picture of these codecs that is marked "not a reference" is used by no other, so it can be skipped without a trace.
# Not HEVC: a sub-layer non-reference picture may serve a higher layer. Not AV1: dav1d reads the setting only once.
SKIPPABLE = frozenset({"h264", "mpeg1video", "mpeg2video", "mpeg4"})
NEAR = 1.0  # seconds: below this, reading on is cheaper than a seek
PENDING = 64 << 20  # bytes of packets that may wait for a decision
REORDER = 17  # packets past a target after which none at or before it can follow (H.264 and HEVC reorder at most 16)


class Reader:
    """Frames of an opened film by time, ascending. One use: call `shown` or `keyframes` once, then `close`.

    Attributes:
        decoded: packets given to the decoder so far.
        seeks: seeks so far.
    """

    def __init__(self, header: Header, threads: int = 1) -> None:
        self.header, self.threads = header, threads
        self._open()
        self.skippable = header.codec in SKIPPABLE and not header.interlaced
        self.second = 1 / header.time_base  # ticks
        self.step = self.second / header.fps if header.fps else 0.04 * self.second
        entries = self.stream.index_entries
        self.indexed = bool(self.stream.frames) and len(entries) >= self.stream.frames
        self.reorder = max(0, header.base - entries[0].timestamp) if len(entries) else 0
        self.pending: deque[Any] = deque()  # read and not decoded, in decoding order
        self.waiting = 0  # their bytes
        self.ahead: list[int] = []  # heap of presentation times read and later than the target
        self.wanted: deque[int] = deque()  # given to the decoder and not yet returned, ascending
        self.early: dict[int, Any] = {}  # frames that came out and may be wanted next
        self.best: int | None = None  # greatest presentation time at or before the target
        self.read = header.base  # decoding time of the last packet read
        self.floor = -(2**62)  # frames before the keyframe where decoding started lack their references
        self.emitted = -(2**62)
        self.previous: Any = None
        self.gap = 10 * self.second  # without an index: how far ahead a seek is tried
        self.eof = self.broken = False
        self.rescues = 3  # seeks tried past unreadable data
        self.last = header.base  # end of the last frame read
        self.decoded = self.seeks = self.faulty = 0
        self.damage: list[int] = []  # where reading or decoding failed
        self.failed = False  # since the last start of decoding
        self.lost: list[int] = []  # wanted, and not decodable
        self.beyond = 0  # targets past the end of the data

    def close(self) -> None:
        self.container.close()

    def _open(self) -> None:
        self.container = open_container(self.header.path)
        self.stream = self.container.streams[self.header.stream]
        only(self.container, self.stream)
        self.codec = self.stream.codec_context
        self.stream.thread_type = "NONE" if self.threads == 1 else "AUTO"
        self.codec.thread_count = self.threads
        self.packets = self.container.demux(self.stream)

    # ---- what callers use

    def shown(self, seconds: np.ndarray) -> Iterator[tuple[int, Any]]:
        """(ticks, frame) of the frame shown at each of `seconds` (ascending, from the first frame), each frame once."""
        targets = ticks_at(seconds, self.header.time_base, self.header.base)
        if not self.header.planned:
            yield from self._sequential(targets)
            return
        for target in targets:
            yield from self._advance(target)
        yield from self._drain()

    def keyframes(self, seconds: np.ndarray) -> Iterator[tuple[int, Any]]:
        """(ticks, frame) of the keyframe nearest to each of `seconds`, each once."""
        # Not by Discard.nonkey: the MP4 demuxer then gives wrong presentation times where there are B-frames.
        window: list[Any] = []
        for target in ticks_at(seconds, self.header.time_base, self.header.base):
            if self._worth_a_seek(target) and (key := self._land(target)) is not None:
                window = [key]
            while not self.eof and not (
                window and (window[-1].pts > target or self._next_is_farther(window[-1].pts, target))
            ):
                packet = self._next()
                if packet is not None and packet.is_keyframe and packet.pts is not None and not packet.is_discard:
                    window = [*window[-1:], packet]
            if not window or (self.broken and window[-1].pts < target):
                self.beyond += 1
                continue
            key = min(window, key=lambda p: abs(p.pts - target))
            if key.pts <= self.emitted:
                continue
            frames = [f for f in [*self._decode(key), *self._decode(None)] if f.pts is not None]
            self.codec.flush_buffers()
            if frames:
                yield self._emit(key.pts, frames[0])
            else:
                self.lost.append(key.pts)

    def problems(self, targets: int) -> list[str]:
        """What went wrong, a line each, for the one who waits for the frames."""
        head, found = self.header, []
        if self.beyond:
            promise = f", {head.end:.1f} s are promised by its header" if head.end else ""
            found.append(
                f"no picture can be read past {self._seconds(self.last):.1f} s{promise}: {self.beyond} of {targets} frames "
                "are left out"
            )
        if self.lost:
            a, b = self._seconds(min(self.lost)), self._seconds(max(self.lost))
            found.append(
                f"{len(self.lost)} of {targets} frames cannot be decoded (between {a:.1f} and {b:.1f} s): left out"
            )
        if self.damage and not (self.beyond and len(self.damage) <= 3):
            a, b = self._seconds(min(self.damage)), self._seconds(max(self.damage))
            found.append(
                f"damaged data between {a:.1f} and {b:.1f} s ({len(self.damage)} faults): pictures there may be wrong"
            )
        elif self.faulty:
            found.append(f"{self.faulty} frames were decoded with faults")
        return found

    # ---- planning

    def _advance(self, target: int) -> Iterator[tuple[int, Any]]:
        """Plan and decode what `target` needs. A frame may leave the decoder only during a later call."""
        if self._worth_a_seek(target):
            yield from self._drain()
            key = self._land(target)
            if key is not None:
                self._restart(key)
        while self._fill(target):  # too much is waiting: decode what can no longer be the answer
            while len(self.pending) > 2 * REORDER:
                yield from self._feed(self._pop(), target)
        # A keyframe inside what was read makes all before it unneeded: no earlier target is open.
        keys = [i for i, p in enumerate(self.pending) if p.is_keyframe and p.pts <= target]
        if keys and keys[-1] > 3:
            yield from self._drain()
            self.codec.flush_buffers()
            for _ in range(keys[-1]):
                self._pop()
            self.floor, self.failed, self.previous = self.pending[0].pts, False, None
        best = self.best
        while self.ahead and self.ahead[0] <= target:
            best = heapq.heappop(self.ahead)
        if self.eof and target > self.last and best == self.best:
            self.beyond += 1
            return
        if best is None or best == self.best:
            return  # the same frame is still shown
        if self.eof and target > self.last:  # past the end, and the frame before it was never asked for
            self.beyond += 1
            heapq.heappush(self.ahead, best)
            return
        self.best = best
        self.wanted.append(best)
        self.early = {pts: frame for pts, frame in self.early.items() if pts >= best}
        if any(p.pts == best for p in self.pending):
            while self.pending:
                packet = self._pop()
                yield from self._feed(packet, best)
                if packet.pts == best:
                    break
        yield from self._settle()

    def _worth_a_seek(self, target: int) -> bool:
        if self.broken:
            return self.rescues > 0 and target > self.read
        if self.eof or target - self.read < NEAR * self.second:
            return False
        entries = self.stream.index_entries
        at = entries.search_timestamp(target - self.reorder) if len(entries) else -1
        if at >= 0 and entries[at].timestamp > self.read:
            return True
        return not self.indexed and target - self.read > self.gap

    def _next_is_farther(self, key: int, target: int) -> bool:
        """Whether the index says that the next keyframe is farther from `target` than `key` is, so need not be read."""
        if not self.indexed:
            return False
        at = self.stream.index_entries.search_timestamp(target, backward=False)
        return at >= 0 and self.stream.index_entries[at].timestamp - target > target - key

    def _land(self, target: int) -> Any:
        """Seek to a keyframe at or before `target` and return its packet; None where nothing can be read there."""
        before, back = self.read, 0
        while True:
            aim = max(target - back, self.header.base)
            try:
                self.container.seek(aim, stream=self.stream, backward=True)
                self.packets = self.container.demux(self.stream)
            except av.FFmpegError:
                if self.broken:
                    self.rescues = 0
                    return None
                self.gap, aim = 2**62, self.header.base  # this container cannot seek: from the start, and never again
                self.close()
                self._open()
            self.seeks += 1
            self.eof = self.broken = False
            self.pending.clear()
            self.ahead, self.waiting = [], 0
            key = None
            while not self.eof and key is None:
                packet = self._next()
                if packet is not None and packet.is_keyframe and packet.pts is not None:
                    key = packet
            if key is not None and (key.pts <= target or aim == self.header.base):
                break
            if self.broken or aim == self.header.base:
                self.rescues -= 1
                return None
            back = max(round(2 * self.second), 4 * back)  # transport streams land on any packet
        if self.read <= before:  # behind what was already read: keyframes are farther apart than thought
            self.gap = max(2 * self.gap, 2 * (target - key.pts))
            self.rescues -= bool(self.damage)
        return key

    def _restart(self, key: Any) -> None:
        self.floor, self.failed, self.previous, self.early = key.pts, False, None, {}
        self._push(key)

    def _fill(self, target: int) -> bool:
        """Read packets until all that are shown up to `target` are known; True when too much is waiting."""
        later = sum(pts > target for pts in self.ahead)
        while not self.eof and self.read <= target and later < REORDER:
            packet = self._next()
            if packet is None or packet.pts is None:
                continue
            self._push(packet)
            later += packet.pts > target
            if self.waiting > PENDING and len(self.pending) > 2 * REORDER:
                return True
        return False

    def _push(self, packet: Any) -> None:
        self.pending.append(packet)
        self.waiting += packet.size
        if packet.pts >= max(self.floor, self.header.base) and not packet.is_discard:
            heapq.heappush(self.ahead, packet.pts)

    def _pop(self) -> Any:
        packet = self.pending.popleft()
        self.waiting -= packet.size
        return packet

    def _next(self) -> Any:
        """The next usable packet, or None: at the end, or after data that cannot be read (then `broken` too)."""
        try:
            packet = next(self.packets, None)
        except av.FFmpegError:
            self.damage.append(self.read)
            packet, self.broken = None, True
        if packet is None or not packet.size:
            self.eof = packet is None or packet.dts is None  # an empty packet with a time is a repeated picture in AVI
            return None
        self.read = packet.dts if packet.dts is not None else max(self.read, (packet.pts or 0) - round(16 * self.step))
        if packet.is_corrupt and self.container.format.name != "mpegts":  # half a packet, at the cut
            self.damage.append(self.read)
            return None
        if packet.pts is not None:
            self.last = max(self.last, packet.pts + max(packet.duration or 0, round(2 * self.step)))
        return packet

    # ---- decoding

    def _decode(self, packet: Any) -> Sequence[Any]:
        try:
            self.decoded += packet is not None
            return self.codec.decode(packet)
        except av.EOFError:
            return []
        except av.FFmpegError:
            self.damage.append(self.read if packet is None or packet.pts is None else packet.pts)
            self.failed = True
            return []

    def _feed(self, packet: Any, upto: int) -> Iterator[tuple[int, Any]]:
        if packet.pts < self.floor:
            return  # leads the keyframe where decoding started: undecodable, and never wanted
        if self.skippable:
            self.codec.skip_frame = "NONREF" if packet.pts < upto else "DEFAULT"
        for frame in self._decode(packet):
            yield from self._take(frame)

    def _drain(self) -> Iterator[tuple[int, Any]]:
        """Get out what the decoder still holds; it takes packets again only after a seek or a flush."""
        if self.wanted:
            for frame in self._decode(None):
                yield from self._take(frame)
        while self.wanted:
            yield from self._miss(self.wanted.popleft())

    def _take(self, frame: Any) -> Iterator[tuple[int, Any]]:
        pts = frame.pts
        if pts is None or pts < self.floor:
            return
        while self.wanted and self.wanted[0] < pts:
            yield from self._miss(self.wanted.popleft())
        if self.best is None or pts >= self.best:
            self.early[pts] = frame
            if len(self.early) > 4:
                del self.early[min(self.early)]
        elif self.wanted and self.wanted[0] == pts:
            yield self._emit(self.wanted.popleft(), frame)
        self.previous = frame
        yield from self._settle()

    def _settle(self) -> Iterator[tuple[int, Any]]:
        while self.wanted and self.wanted[0] in self.early:
            yield self._emit(self.wanted[0], self.early.pop(self.wanted.popleft()))

    def _miss(self, pts: int) -> Iterator[tuple[int, Any]]:
        """A packet that gave no frame: a hidden one (VP8's alternative references, second fields), or damage."""
        previous = self.previous
        near = previous is not None and (not self.skippable or pts - previous.pts <= 1.5 * self.step)
        if near and not self.failed and previous.pts > self.emitted:
            yield self._emit(previous.pts, previous)
        elif not near or self.failed:
            self.lost.append(pts)

    def _emit(self, pts: int, frame: Any) -> tuple[int, Any]:
        self.emitted = pts
        self.faulty += bool(frame.is_corrupt)
        return pts, frame

    def _sequential(self, targets: list[int]) -> Iterator[tuple[int, Any]]:
        """Decode everything, for films whose packets do not say when they are shown."""
        avi = self.container.format.name == "avi"  # a constant rate, and with B-frames its times are in decoding order
        at, held, clock = 0, None, self.header.base - round(self.step)
        while at < len(targets) and not self.eof:
            packet = self._next()
            if packet is None and not self.eof:
                if avi and held is not None:  # an empty packet: the last picture stays for one more step
                    clock += round(self.step)
                continue
            for frame in self._decode(packet):
                pts = frame.pts if not avi and frame.pts is not None and frame.pts > clock else clock + round(self.step)
                while held is not None and at < len(targets) and targets[at] < pts:
                    if held[0] > self.emitted:
                        yield self._emit(*held)
                    at += 1
                held, clock = (pts, frame), pts
                self.last = max(self.last, pts + round(2 * self.step))
        while at < len(targets) and held is not None:
            if targets[at] > self.last:
                self.beyond += 1
            elif held[0] > self.emitted:
                yield self._emit(*held)
            at += 1

    def _seconds(self, ticks: int) -> float:
        return max(0.0, (ticks - self.header.base) * self.header.time_base)
