"""The local engine: worker processes, each a film at a time, watched from outside so that none of them can stop the run.

The runner owns the files and imports no torch; a worker that hangs or dies costs its film, not the run.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

from videoprune.errors import EnvironmentProblem, UsageError, VideoPruneError
from videoprune.evaluate.jobs import Job, Settings
from videoprune.evaluate.rows import Row, film_row
from videoprune.evaluate.store import Results
from videoprune.evaluate.worker import STAGES, serve
from videoprune.processes import how_it_ended, resident

TIMEOUT = 3600.0  # seconds a film may take, unless told otherwise
STARTING = 1800.0  # seconds a model may take to load
AHEAD = 2  # films given to a worker: one that is asked, one that is decoded
TRIES = 2  # times that a film is given to a worker that dies of it
PATIENCE = 5.0  # seconds a worker gets to leave by itself

Tell = Callable[["Tally"], None]


@dataclass
class Tally:
    """Where a run stands.

    Attributes:
        questions, errors: rows written in this run.
        films, all_films: films finished, and films that there were to do.
        film_seconds: of the films that were watched.
        workers: workers that are up.
        running: names of the films that are worked on.
    """

    questions: int = 0
    errors: int = 0
    films: int = 0
    all_films: int = 0
    film_seconds: float = 0.0
    workers: int = 0
    running: list[str] = field(default_factory=list)


@dataclass(eq=False)
class _Worker:
    number: int
    process: Any
    connection: Any
    stage: Any
    jobs: deque[Job] = field(default_factory=deque)
    ready: bool = False
    since: float = 0.0  # when its first job became its first
    told_to_leave: bool = False


class Runner:
    """Does jobs with `workers` processes and appends their rows.

    Args:
        settings: of the workers.
        jobs: in the order in which they are begun.
        results: of each recipe.
        workers: processes.
        timeout: seconds that a film may take from the moment when the film before it is done.
        tell: called with the tally when something changed, at least once a second.
        ready: called with a worker's facts, once.

    Raises:
        EnvironmentProblem: the model can't be loaded, or the rows can't be written.
        UsageError: a recipe does not fit the model.
    """

    def __init__(
        self,
        settings: Settings,
        jobs: Sequence[Job],
        results: Sequence[Results],
        *,
        workers: int = 1,
        timeout: float = TIMEOUT,
        tell: Tell | None = None,
        ready: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        if not timeout > 0:
            raise UsageError(f"--timeout {timeout:g}: a number of seconds above 0 is allowed")
        self.settings, self.results, self.timeout = settings, results, timeout
        self.tell, self.ready = tell or (lambda tally: None), ready
        self.waiting = deque(jobs)
        self.tally = Tally(all_films=len(jobs))
        self.count = max(1, min(workers, len(jobs)))
        self.deaths: dict[int, int] = {}
        self.context = multiprocessing.get_context("spawn")
        self.workers: list[_Worker] = []

    def run(self) -> Tally:
        """Do all jobs; on any way out, the workers are gone and the rows are on the disk."""
        try:
            with terminable():
                for number in range(self.count):
                    self.workers.append(self._start(number))
                while self.workers:
                    self._turn()
        finally:
            for worker in self.workers:
                _end(worker.process)
        return self.tally

    # ------------------------------------------------------------------ one turn

    def _turn(self) -> None:
        by_connection = {worker.connection: worker for worker in self.workers}
        for connection in wait(list(by_connection), timeout=self._rest()):
            worker = by_connection[connection]
            events, alive = _drain(connection)
            self._take(worker, events)
            if not alive and worker in self.workers:
                self._buried(worker)
        for worker in list(self.workers):
            self._hurry(worker)
        self.tally.workers = sum(worker.ready for worker in self.workers)
        self.tally.running = [worker.jobs[0].video for worker in self.workers if worker.jobs and worker.ready]
        self.tell(self.tally)

    def _rest(self) -> float:
        """Seconds until somebody may have to be hurried; at most one, so that the display lives."""
        now = time.monotonic()
        limits = [
            w.since + (self.timeout if w.ready else STARTING) - now for w in self.workers if w.jobs or not w.ready
        ]
        return max(0.0, min([1.0, *limits]))

    def _take(self, worker: _Worker, events: list[dict[str, Any]]) -> None:
        rows: list[list[Row]] = [[] for _ in self.results]
        done: list[int] = []
        fatal: dict[str, Any] | None = None
        for event in events:
            if "row" in event:
                rows[event["recipe"]].append(event["row"])
                self.tally.questions += event["row"]["error"] is None
                self.tally.errors += event["row"]["error"] is not None
            elif "film" in event:
                self.tally.film_seconds += event["film"]["film_seconds"]
                self.results[0].time({"worker": worker.number, **event["film"], "runner_rss": resident()})
            elif "done" in event:
                done.append(event["done"])
            elif "ready" in event:
                worker.ready = True
                if self.ready is not None:
                    self.ready(event["ready"])
                    self.ready = None
                worker.since = time.monotonic()
                self._feed(worker)
            elif "fatal" in event:
                fatal = event["fatal"]
        for result, some in zip(self.results, rows, strict=True):
            result.append(worker.number, some)
        for number in done:  # only now are its rows on the disk
            assert worker.jobs[0].number == number
            worker.jobs.popleft()
            worker.since = time.monotonic()
            self.tally.films += 1
        if fatal is not None:
            raise raised(fatal)
        if done:
            self._feed(worker)

    def _feed(self, worker: _Worker) -> None:
        with contextlib.suppress(OSError):  # a worker that is gone is found out when its connection is read
            while self.waiting and len(worker.jobs) < AHEAD:
                job = self.waiting.popleft()
                worker.jobs.append(job)
                worker.connection.send(job)
            if not worker.jobs and not worker.told_to_leave:
                worker.told_to_leave = True
                worker.connection.send(None)

    # ------------------------------------------------------------------ what can go wrong

    def _hurry(self, worker: _Worker) -> None:
        """End a worker whose film takes too long, and say so in the film's row."""
        spent = time.monotonic() - worker.since
        if not worker.ready:
            if spent > STARTING:
                raise EnvironmentProblem(f"the model was not loaded after {STARTING:g} s; check the disk it lies on")
            return
        if not worker.jobs or spent <= self.timeout:
            return
        job, stage = worker.jobs[0], STAGES[worker.stage.value]
        self._take(worker, _drain(worker.connection)[0])  # it may have come to its end at this moment
        if not worker.jobs or worker.jobs[0] is not job:
            return
        worker.jobs.popleft()
        message = (
            f"not done after {self.timeout:g} s, while it was being {_DOING[stage]}; "
            "look at the film, or give more with --timeout and --retry-errors"
        )
        _end(worker.process)
        self._give_up(job, {"type": "Timeout", "stage": _NAMES[stage], "message": message}, spent, worker.number)
        self._replace(worker)

    def _buried(self, worker: _Worker) -> None:
        """A worker left: because there is nothing to do any more, or it died of its film."""
        self.workers.remove(worker)
        worker.process.join(PATIENCE)
        _end(worker.process)
        if worker.told_to_leave and not worker.jobs:
            return
        how = how_it_ended(worker.process.exitcode)
        if not worker.ready:
            raise EnvironmentProblem(
                f"a worker ended by {how} while it loaded the model; is there memory enough for {self.count} of them?"
            )
        if worker.jobs:
            job, stage = worker.jobs[0], STAGES[worker.stage.value]
            self.deaths[job.number] = self.deaths.get(job.number, 0) + 1
            if self.deaths[job.number] >= TRIES:
                worker.jobs.popleft()
                message = f"the worker ended by {how} while the film was being {_DOING[stage]}, {TRIES} times"
                error = {"type": "WorkerDied", "stage": _NAMES[stage], "message": message}
                self._give_up(job, error, time.monotonic() - worker.since, worker.number)
        self._replace(worker)

    def _give_up(self, job: Job, error: dict[str, Any], seconds: float, number: int) -> None:
        """Write the error row of a film for those of its questions that have no row."""
        for setup, result, questions in zip(self.settings.setups, self.results, job.todo, strict=True):
            left = [question for question in questions if setup.key(job.film, question) not in result.answered]
            if left:
                result.append(number, [film_row(setup, job.film, left, error, seconds)])
                self.tally.errors += 1
        self.tally.films += 1

    def _replace(self, worker: _Worker) -> None:
        """Put back what a worker was given, less what it has answered, and start another if there is need for one."""
        for job in reversed(worker.jobs):
            todo = tuple(
                tuple(q for q in questions if setup.key(job.film, q) not in result.answered)
                for setup, result, questions in zip(self.settings.setups, self.results, job.todo, strict=True)
            )
            if any(todo):
                self.waiting.appendleft(Job(job.number, job.film, job.path, job.video, job.duration, job.size, todo))
            else:
                self.tally.films += 1
        if worker in self.workers:
            self.workers.remove(worker)
        worker.connection.close()
        if self.waiting:
            self.workers.append(self._start(worker.number))

    def _start(self, number: int) -> _Worker:
        ours, theirs = self.context.Pipe()
        stage = self.context.Value("i", 0, lock=False)
        process = self.context.Process(  # no daemon: it has a child of its own, which decodes
            target=serve, args=(theirs, self.settings, stage), name=f"videoprune-worker-{number}"
        )
        process.start()
        theirs.close()
        return _Worker(number, process, ours, stage, since=time.monotonic())


_DOING = {"start": "begun", "decode": "decoded", "encode": "encoded", "ask": "asked"}
_NAMES = {"start": "video", "decode": "video", "encode": "encode", "ask": "ask"}


def _drain(connection: Any) -> tuple[list[dict[str, Any]], bool]:
    """All events that have come, and whether more may come."""
    events: list[dict[str, Any]] = []
    try:
        while connection.poll():
            events.append(connection.recv())
    except (EOFError, OSError):
        return events, False
    return events, True


def _end(process: Any) -> None:
    if process.is_alive():
        process.kill()
    process.join(PATIENCE)


def raised(fatal: dict[str, Any]) -> VideoPruneError:
    """The worker's error as its own kind here."""
    kind = {2: UsageError, 3: EnvironmentProblem}.get(fatal["exit_code"], VideoPruneError)
    return kind(fatal["message"], stage=fatal["stage"])


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Take SIGTERM, which schedulers send, as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread() or os.name == "nt":
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
