"""Decoding in a process beside the model's.

A decoder calls into its library for every packet and the model into torch for every small operation, and two threads that
hand the interpreter to and fro at each call cost the model a quarter more CPU time than two processes do. A decoder that
crashes then takes one film with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, Pipe

import numpy as np

from videoprune.decoding import AHEAD, DecodeThread, Ended, Opened, Opener, Reading
from videoprune.errors import EnvironmentProblem, VideoPruneError
from videoprune.processes import how_it_ended, resident
from videoprune.video import Film, Frames

MEMORY_FILES = hasattr(os, "memfd_create")  # Linux; elsewhere a file in the folder for temporary ones
CLOSING = 5.0  # seconds a decoder's process gets to leave


class Given(Exception):
    """An error that was found in another process, as its row shall show it."""

    def __init__(self, reported: str, stage: str | None, message: str) -> None:
        super().__init__(reported, stage, message)
        self.reported, self.stage, self.message = reported, stage, message

    def __str__(self) -> str:
        return self.message


def portable(item: Opened | Frames | Ended) -> Opened | Frames | Ended:
    """The item as another process can take it: exceptions of libraries do not always survive pickling, ours do."""
    if not isinstance(item, Ended) or item.error is None or isinstance(item.error, VideoPruneError):
        return item
    return dataclasses.replace(item, error=Given(type(item.error).__name__, "video", str(item.error)))


@dataclass(frozen=True, eq=False)
class _Header:
    """Announces the pixels of a chunk, which lie in the slot until `_TAKEN` is said."""

    shape: tuple[int, ...]
    seconds: np.ndarray
    index: np.ndarray


class _Slot:
    """Memory that both processes see: the number of the film that was opened last, which outlives a crash, and one chunk's
    pixels. A pipe would take ten times as long for them."""

    NUMBER = 8  # bytes

    def __init__(self, file: int) -> None:
        self._file = file
        if os.fstat(file).st_size < self.NUMBER:
            os.ftruncate(file, self.NUMBER)
        self._map = mmap.mmap(file, 0)

    @property
    def opened(self) -> int:
        return int.from_bytes(self._map[: self.NUMBER], sys.byteorder, signed=True)

    @opened.setter
    def opened(self, number: int) -> None:
        self._map[: self.NUMBER] = number.to_bytes(self.NUMBER, sys.byteorder, signed=True)

    def _pixels(self, shape: tuple[int, ...]) -> np.ndarray:
        """(F, H, W, 3) uint8 that lies in the slot."""
        size = self.NUMBER + math.prod(shape)
        if size > len(self._map):  # the other side may have made it larger
            if os.fstat(self._file).st_size < size:
                os.ftruncate(self._file, size)
            self._map = mmap.mmap(self._file, 0)
        return np.frombuffer(self._map, np.uint8, math.prod(shape), self.NUMBER).reshape(shape)

    def put(self, images: np.ndarray) -> None:
        self._pixels(images.shape)[:] = images

    def get(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._pixels(shape).copy()


@dataclass(eq=False)
class _Asked:
    """A reading that was submitted and is not ended; `died` where it took a decoder with it."""

    number: int
    reading: Reading
    died: Ended | None = None


class DecodeProcess:
    """What `DecodeThread` does, in a process of its own, which is started again when it dies of a film.

    `submit` and `take` may be called from two threads. The process is no `multiprocessing.Process`, which would run the
    caller's script a second time where that has no `if __name__ == "__main__"`.
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
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSING)
        self.kill()

    def kill(self) -> None:
        """End the process wherever it is."""
        self._process.kill()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        self._connection.close()
        self._memory.close()

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
            images = self._slot.get(item.shape)
            with self._lock:
                self._connection.send(_TAKEN)
            return Frames(images, item.seconds, item.index)
        except (EOFError, OSError):
            self._revive()
            return None

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        # A file without a name in memory; /dev/shm is often too small for large pictures, and would kill both sides.
        self._memory = os.fdopen(os.memfd_create("videoprune"), "r+b") if MEMORY_FILES else tempfile.TemporaryFile()  # noqa: SIM115
        self._slot = _Slot(self._memory.fileno())
        self._slot.opened = -1
        fds = theirs.fileno(), self._memory.fileno()
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve(*{fds}, {self._ahead})"
        self._process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL, pass_fds=fds)
        theirs.close()

    def _revive(self) -> None:
        how = how_it_ended(self._process.wait())
        with self._lock:
            guilty = next((asked for asked in self._asked if asked.number == self._slot.opened), None)
            if guilty is None:  # it did not get as far as a film: another one would not either
                raise EnvironmentProblem(f"the decoder's process ended by {how} before it read a film")
            error = Given("DecoderDied", "video", f"the decoder ended by {how} at this film; look at the film")
            guilty.died = Ended([], time.monotonic() - self._begun, 0.0, error)
            self._again = 0 if guilty is self._asked[0] else self._taken
            self._told = False
            self._close()
            self._start()
            for asked in self._asked:
                if asked.died is None:
                    self._connection.send((asked.number, asked.reading.open))


def decoded_beside(film: Film) -> Iterator[Frames]:
    """The chunks of a film, decoded in a process beside this one; what is wrong with it is added to `film.warnings`.

    Raises:
        FilmError: as the film's own iteration.
        EnvironmentProblem: the process died.
    """
    decoder = DecodeProcess(ahead=film.chunk * film.info.width * film.info.height * 3)
    try:
        decoder.submit(Reading(film.opener()))
        while True:
            item = decoder.take()
            if isinstance(item, Frames):
                yield item
            elif isinstance(item, Ended):
                film.warnings[:] = item.warnings
                if isinstance(item.error, Given):
                    raise EnvironmentProblem(f"film {film.info.path!r}: {item.error}", stage="video")
                if item.error is not None:
                    raise item.error
                return
    finally:
        decoder.kill()


_SKIP, _TAKEN = "skip", "taken"


def _open(slot: _Slot, number: int, opener: Opener) -> Film:
    slot.opened = number
    return opener()


def serve(connection_fd: int, memory_fd: int, ahead: int) -> None:
    """Body of a decoder's process: numbered openers in, items out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    connection, slot, free = Connection(connection_fd), _Slot(memory_fd), threading.Semaphore()
    thread = DecodeThread(ahead)
    readings: deque[Reading | None] = deque()
    arrived = threading.Semaphore(0)

    def receive() -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                asked = connection.recv()
                if asked == _TAKEN:
                    free.release()
                    continue
                if asked == _SKIP:
                    first = readings[0]
                    if first is not None:
                        first.skip.set()
                    continue
                reading = None if asked is None else Reading(partial(_open, slot, *asked))
                readings.append(reading)
                thread.submit(reading)
                arrived.release()
        os._exit(1)  # the parent is gone

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
                    free.acquire()
                    slot.put(item.images)
                    connection.send(_Header(item.images.shape, item.seconds, item.index))
                    continue
                ended = isinstance(item, Ended)
                if ended:
                    readings.popleft()
                connection.send(item)
    os._exit(0)  # closes the connection; closed before, the thread that listens to it might end first, as if left alone
