"""Decoding ahead of the model, one film after the other, into a queue that is bounded by bytes.

`DecodeThread` is the queue; `videoprune.decode_process` has one in a process beside the model's.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from videoprune.video import Film, FilmInfo, Frames

AHEAD = 256 << 20  # bytes of decoded frames that may wait for the model
Opener = Callable[[], Film]


@dataclass(eq=False)
class Reading:
    """One film, read for one frame rule. `skip` tells the decoder that nobody wants the rest.

    `open` goes to another process, so it is a partial of a module's function or class.
    """

    open: Opener
    skip: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, eq=False)
class Opened:
    info: FilmInfo
    total: int | None


@dataclass(frozen=True, eq=False)
class Ended:
    """The last item of a reading; `error` where it failed. `seconds` and `cpu` are what the decoder itself took."""

    warnings: list[str]
    seconds: float
    cpu: float
    error: BaseException | None = None


class DecodeThread:
    """Reads what `submit` is given, in order; `take` hands its items over: Opened, Frames …, Ended for each reading.

    Args:
        ahead: bytes of frames that may wait. One chunk is always let in, however large.
    """

    def __init__(self, ahead: int = AHEAD) -> None:
        self._ahead, self._waiting = ahead, 0
        self._change = threading.Condition()
        self._readings: deque[Reading | None] = deque()
        self._items: deque[Any] = deque()
        threading.Thread(target=self._work, name="videoprune-decode", daemon=True).start()

    def submit(self, reading: Reading | None) -> None:
        """Add a reading; None ends the thread behind those before it."""
        with self._change:
            self._readings.append(reading)
            self._change.notify_all()

    def take(self) -> Opened | Frames | Ended:
        """The next item; waits for it."""
        with self._change:
            while not self._items:
                self._change.wait()
            item = self._items.popleft()
            if isinstance(item, Frames):
                self._waiting -= item.images.nbytes
                self._change.notify_all()
            return item  # type: ignore[no-any-return]

    def _work(self) -> None:
        while True:
            with self._change:
                while not self._readings:
                    self._change.wait()
                reading = self._readings.popleft()
            if reading is None:
                return
            self._read(reading)

    def _read(self, reading: Reading) -> None:
        warnings: list[str] = []
        error: BaseException | None = None
        spent, cpu = 0.0, time.thread_time()
        started = time.perf_counter()
        try:
            with reading.open() as film:
                self._put(Opened(film.info, len(film) or None))
                chunks = iter(film)
                while not reading.skip.is_set():
                    batch = next(chunks, None)
                    spent += time.perf_counter() - started
                    if batch is None:
                        break
                    self._put(batch, batch.images.nbytes, reading.skip)
                    started = time.perf_counter()
                warnings = list(film.warnings)
        except BaseException as problem:  # whatever it is, it belongs to the film
            spent += time.perf_counter() - started
            error = problem
        self._put(Ended(warnings, spent, time.thread_time() - cpu, error))

    def _put(self, item: Any, size: int = 0, skip: threading.Event | None = None) -> None:
        with self._change:
            while size and self._waiting and self._waiting + size > self._ahead:
                if skip is not None and skip.is_set():
                    return
                self._change.wait(timeout=0.5)
            self._waiting += size
            self._items.append(item)
            self._change.notify_all()
