"""Decoding ahead of the model, one film after the other, into a queue that is bounded by bytes.

`DecodeThread` is the queue. `DecodeProcess` has one in a process beside the model's: a decoder calls into its library for
every packet and the model into torch for every small operation, and two threads that hand the interpreter to and fro at each
call cost the model a quarter more CPU time than two processes do. A decoder that crashes then takes one film with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from videoprune.errors import EnvironmentProblem
from videoprune.evaluate.rows import error_of
from videoprune.processes import die_with_parent, how_it_ended, resident
from videoprune.video import Film, FilmInfo, Frames

CLOSING = 5.0  # seconds a decoder's process gets to leave
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


class Given(Exception):
    """An error that was found in another process, as its row shall show it."""

    def __init__(self, reported: str, stage: str | None, message: str) -> None:
        super().__init__(reported, stage, message)
        self.reported, self.stage, self.message = reported, stage, message

    def __str__(self) -> str:
        return self.message


def portable(item: Opened | Frames | Ended) -> Opened | Frames | Ended:
    """The item as another process can take it: exceptions of libraries do not always survive pickling."""
    if not isinstance(item, Ended) or item.error is None:
        return item
    found = error_of(item.error, "video")
    return dataclasses.replace(item, error=Given(found["type"], found["stage"], found["message"]))


@dataclass(frozen=True, eq=False)
class _Header:
    """Announces the pixels of a chunk, which follow as plain bytes."""

    shape: tuple[int, ...]
    seconds: np.ndarray
    index: np.ndarray


@dataclass(eq=False)
class _Asked:
    """A reading that was submitted and is not ended; `died` where it took a decoder with it."""

    number: int
    reading: Reading
    died: Ended | None = None


class DecodeProcess:
    """What `DecodeThread` does, in a process of its own, which is started again when it dies of a film.

    `submit` and `take` may be called from two threads. The process must not be a daemon's child: see `multiprocessing`.
    """

    def __init__(self, ahead: int = AHEAD) -> None:
        self._ahead = ahead
        self._lock = threading.Lock()
        self._asked: deque[_Asked] = deque()
        self._count = 0
        self._taken = self._again = 0  # items of the first reading: handed over, and of those to come a second time
        self._told = False  # that the first reading is to be skipped
        self._begun = time.monotonic()
        self._start()

    def submit(self, reading: Reading | None) -> None:
        """Add a reading; None: there are no more."""
        with self._lock, contextlib.suppress(OSError):  # that it died is found out in `take`
            if reading is None:
                self._connection.send(None)
                return
            self._asked.append(_Asked(self._count, reading))
            self._count += 1
            self._connection.send((self._asked[-1].number, reading.open))

    def take(self) -> Opened | Frames | Ended:
        """The next item; waits for it. A reading that the process died of ends with an error."""
        while True:
            first = self._asked[0] if self._asked else None
            item = (first and first.died) or self._receive(first)
            if item is None:
                continue
            if self._again:  # it was handed over before the decoder died of a later reading
                self._again -= 1
                continue
            self._taken += 1
            if isinstance(item, Ended):
                with self._lock:
                    self._asked.popleft()
                self._taken, self._told, self._begun = 0, False, time.monotonic()
            return item

    def close(self) -> None:
        """End the process behind what it was given, and wait for it: what it took is then counted as its parent's."""
        self.submit(None)
        self._process.join(CLOSING)
        self._connection.close()

    def resident(self) -> int:
        """Memory that the process holds, in bytes."""
        return resident(self._process.pid or 0)

    def _receive(self, first: _Asked | None) -> Opened | Frames | Ended | None:
        """The next item, None where the process died and was started again."""
        try:
            if first is not None and first.reading.skip.is_set() and not self._told:
                self._told = True
                with self._lock:
                    self._connection.send(_SKIP)
            item = self._connection.recv()
            if not isinstance(item, _Header):
                return item  # type: ignore[no-any-return]
            images = np.empty(item.shape, np.uint8)
            self._connection.recv_bytes_into(images.data.cast("B"))
            return Frames(images, item.seconds, item.index)
        except (EOFError, OSError):
            self._revive()
            return None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._at = context.Value("q", -1, lock=False)  # number of the reading that was opened last
        self._process = context.Process(
            target=_serve, args=(theirs, self._ahead, self._at), name="videoprune-decoder", daemon=True
        )
        self._process.start()
        theirs.close()

    def _revive(self) -> None:
        self._process.join()
        how = how_it_ended(self._process.exitcode)
        with self._lock:
            guilty = next((asked for asked in self._asked if asked.number == self._at.value), None)
            if guilty is None:  # it did not get as far as a film: another one would not either
                raise EnvironmentProblem(f"the decoder's process ended by {how} before it read a film")
            error = Given("DecoderDied", "video", f"the decoder ended by {how} at this film; look at the film")
            guilty.died = Ended([], time.monotonic() - self._begun, 0.0, error)
            self._again = 0 if guilty is self._asked[0] else self._taken
            self._told = False
            self._connection.close()
            self._start()
            for asked in self._asked:
                if asked.died is None:
                    self._connection.send((asked.number, asked.reading.open))


_SKIP = "skip"


def _open(at: Any, number: int, opener: Opener) -> Film:
    at.value = number
    return opener()


def _serve(connection: Any, ahead: int, at: Any) -> None:
    """Body of a decoder's process: numbered openers in, items out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the runner's to answer
    die_with_parent()
    thread = DecodeThread(ahead)
    readings: deque[Reading | None] = deque()
    arrived = threading.Semaphore(0)

    def receive() -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                asked = connection.recv()
                if asked == _SKIP:
                    first = readings[0]
                    if first is not None:
                        first.skip.set()
                    continue
                reading = None if asked is None else Reading(partial(_open, at, *asked))
                readings.append(reading)
                thread.submit(reading)
                arrived.release()
                if reading is None:
                    return
        os._exit(1)  # the worker is gone

    threading.Thread(target=receive, name="videoprune-readings", daemon=True).start()
    with contextlib.suppress(OSError):
        while True:
            arrived.acquire()
            if readings[0] is None:
                break
            ended = False
            while not ended:
                item = portable(thread.take())
                if isinstance(item, Frames):
                    connection.send(_Header(item.images.shape, item.seconds, item.index))
                    connection.send_bytes(np.ascontiguousarray(item.images).data.cast("B"))
                    continue
                ended = isinstance(item, Ended)
                if ended:
                    readings.popleft()
                connection.send(item)
    connection.close()
    os._exit(0)
