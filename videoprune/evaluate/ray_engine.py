"""The same work on a Ray cluster: Ray Data streams films through a decoding stage on CPUs and a stage of model actors.

    films without rows ─ map_batches(Decode: CPU actors) ─ map_batches(Ask: model actors) ─ rows, appended here

Ray holds back the decoders when the models are behind. The rows come to the process that was started, which appends and syncs
them as the local engine does; what has a row is not submitted again, so a stopped run goes on by its keys, on either engine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import pickle
import re
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from videoprune.decode_process import Given, portable
from videoprune.decoding import DecodeThread, Ended
from videoprune.errors import EnvironmentProblem, VideoPruneError
from videoprune.evaluate.jobs import Job, Settings
from videoprune.evaluate.rows import error_of, film_row
from videoprune.evaluate.runner import Tally, cores, raised, terminable
from videoprune.evaluate.store import Results
from videoprune.evaluate.worker import FilmModel, Plans
from videoprune.processes import die_with_parent

PATIENCE = 120.0  # seconds a decoder's process gets to start
IN_FLIGHT = 2  # films that wait at an actor
Block = dict[str, Any]


def run_ray(
    settings: Settings,
    jobs: Sequence[Job],
    results: Sequence[Results],
    *,
    workers: int,
    timeout: float,
    tell: Callable[[Tally], None],
    ready: Callable[[dict[str, Any]], None],
) -> Tally:
    """Do jobs with `workers` model actors on the cluster of RAY_ADDRESS, or on this machine where there is none.

    Args:
        timeout: seconds that decoding a film may take; a decoder that takes longer is ended and its film gets an error row.

    Raises:
        EnvironmentProblem: ray is not installed, the cluster has no room, or the model can't be loaded.
    """
    ray = _import_ray()
    tally = Tally(all_films=len(jobs), workers=workers)
    actors = min(workers, len(jobs))
    ours = _connect(ray, 2 * actors)
    seen: set[int] = set()
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # a film that an actor dies of gets its row below, and the run goes on
        films = ray.data.from_items([{"job": pickle.dumps(job)} for job in jobs], override_num_blocks=len(jobs))
        frames = films.map_batches(
            Decode,
            fn_constructor_args=(settings, timeout),
            batch_size=1,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, max_tasks_in_flight_per_actor=IN_FLIGHT),
        )
        asked = frames.map_batches(
            Ask,
            fn_constructor_args=(settings,),
            batch_size=1,
            num_cpus=1,
            num_gpus=_gpus(ray, settings),
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=IN_FLIGHT),
        )
        with terminable():  # only now: Ray sets a handler of its own when it starts
            for block in asked.iter_rows():
                seen.add(int(block["number"]))
                _take(pickle.loads(block["events"]), results, tally, ready)  # noqa: S301 - our own actors wrote it
                tell(tally)
    except (VideoPruneError, KeyboardInterrupt):
        raise
    except Exception as problem:
        raise EnvironmentProblem(f"--engine ray: {_last_line(problem)}; see Ray's logs") from problem
    finally:
        if ours:
            ray.shutdown()
    for job in jobs:
        if job.number not in seen:
            error = {
                "type": "WorkerDied",
                "stage": None,
                "message": "an actor ended while it had the film; see Ray's logs",
            }
            for setup, result, questions in zip(settings.setups, results, job.todo, strict=True):
                if questions:
                    result.append(0, [film_row(setup, job.film, questions, error, 0.0)])
                    tally.errors += 1
            tally.films += 1
    return tally


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise EnvironmentProblem(
            f"--engine ray: {error}; pip install 'videoprune[ray]', or take --engine local"
        ) from None
    return ray


def _connect(ray: Any, slots: int) -> bool:
    """Join the cluster of RAY_ADDRESS, or start one of this machine alone; True where it is ours to stop."""
    if ray.is_initialized():
        return False
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # what matters is said in rows and in our own errors
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_worker_niceness", "0")  # the actors do the work: they are no background of it
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet = {"include_dashboard": False, "num_cpus": max(cores(), slots)} if "RAY_ADDRESS" not in os.environ else {}
    try:
        ray.init(logging_level="ERROR", log_to_driver=False, **quiet)
    except Exception as problem:
        raise EnvironmentProblem(
            f"--engine ray: no cluster can be joined or started ({_last_line(problem)})"
        ) from problem
    return True


def _gpus(ray: Any, settings: Settings) -> int:
    """GPUs of a model actor: one where the cluster has any and the CPU was not asked for."""
    return int(settings.device not in ("cpu", "mps") and ray.cluster_resources().get("GPU", 0) >= 1)


def _last_line(problem: BaseException) -> str:
    """What it came down to: Ray's messages end with the line of the error that was raised in an actor."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(problem)).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(problem).__name__


def _take(
    events: list[dict[str, Any]], results: Sequence[Results], tally: Tally, ready: Callable[[dict[str, Any]], None]
) -> None:
    """Append one film's rows."""
    rows: list[list[Any]] = [[] for _ in results]
    for event in events:
        if "fatal" in event:
            raise raised(event["fatal"])
        if "ready" in event and not tally.films:
            ready(event["ready"])
        if "row" in event:
            rows[event["recipe"]].append(event["row"])
            tally.questions += event["row"]["error"] is None
            tally.errors += event["row"]["error"] is not None
        if "film" in event:
            tally.film_seconds += event["film"]["film_seconds"]
            results[0].time({"worker": "ray", **event["film"]})
    for result, some in zip(results, rows, strict=True):
        result.append(0, some)
    tally.films += 1


# ------------------------------------------------------------------------------------------------------------- stages


class Decode:
    """Films to frames, in a process of its own that can be ended when it hangs."""

    def __init__(self, settings: Settings, timeout: float) -> None:
        self.settings, self.timeout = settings, timeout
        self.process: Any = None
        self.connection: Any = None

    def __call__(self, batch: Block) -> Block:
        """One job in; out the same with the items of all its readings, as a decoding thread would hand them over."""
        job: Job = pickle.loads(batch["job"][0])  # noqa: S301 - the driver wrote it
        return {"job": batch["job"], "items": _column(Items(self._decode(job)))}

    def _decode(self, job: Job) -> list[Any]:
        since = time.monotonic()
        try:
            self._start()
            self.connection.send(job)
            if self.connection.poll(self.timeout):
                found: list[Any] = self.connection.recv()
                return found
            message = (
                f"not done after {self.timeout:g} s, while it was being decoded; "
                "look at the film, or give more with --timeout and --retry-errors"
            )
            error = Given("Timeout", "video", message)
        except (EOFError, OSError) as problem:
            error = Given("WorkerDied", "video", f"the decoder ended by itself ({problem})")
        self._end()
        return [Ended([], time.monotonic() - since, 0.0, error) for _ in job.todo]

    def _start(self) -> None:
        if self.process is not None and self.process.is_alive():
            return
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=decode_jobs, args=(theirs, self.settings), daemon=True)
        self.process.start()
        theirs.close()
        if not self.connection.poll(PATIENCE):
            raise EOFError(f"it was not up after {PATIENCE:g} s")
        self.connection.recv()

    def _end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join(5)
            self.connection.close()
            self.process = self.connection = None


@dataclasses.dataclass(frozen=True, eq=False)
class Items:
    """A film's decoded items; an object of its own, as a column of plain bytes could hold no more than 2 GiB."""

    items: list[Any]


def _column(value: Any) -> np.ndarray:
    """One object as a column of a block."""
    column = np.empty(1, dtype=object)
    column[0] = value
    return column


def decode_jobs(connection: Any, settings: Settings) -> None:
    """Body of a decoder's process: jobs in, lists of items out."""
    die_with_parent()
    from videoprune import demo
    from videoprune.models.load import read_json, recognise
    from videoprune.stages import Stages

    folder = settings.model or os.fspath(demo.weights_path())
    family = recognise(read_json(folder, "config.json", settings.revision))[0]  # says how many frames go together
    pipes = [
        SimpleNamespace(stages=Stages.of(each), decoder=settings.decoder, host=family) for each in settings.recipes
    ]
    plans = Plans(settings, pipes)
    connection.send("ready")
    with contextlib.suppress(EOFError, OSError):
        while True:
            job = connection.recv()
            thread = DecodeThread(ahead=1 << 62)  # a film goes over as a whole
            items: list[Any] = []
            for reading, _ in plans.readings(job):
                thread.submit(reading)
                while True:
                    item = portable(thread.take())
                    items.append(item)
                    if isinstance(item, Ended):
                        break
            thread.submit(None)
            connection.send(items)
    os._exit(0)


class Ask:
    """Frames to rows, with a model that is loaded once an actor."""

    def __init__(self, settings: Settings) -> None:
        self.fatal: dict[str, Any] | None = None
        try:
            self.model = FilmModel(settings)
        except VideoPruneError as problem:  # Ray would start the actor again and again
            self.fatal = {**error_of(problem), "exit_code": problem.exit_code}

    def __call__(self, batch: Block) -> Block:
        job: Job = pickle.loads(batch["job"][0])  # noqa: S301 - the driver wrote it
        if self.fatal is not None:
            events: list[dict[str, Any]] = [{"fatal": self.fatal}]
        else:
            items = iter(batch["items"][0].items)
            events = [{"ready": self.model.facts()}]
            events += self.model.film(job, self.model.plans.readings(job), lambda: next(items))
        return {"number": np.array([job.number]), "events": np.array([pickle.dumps(events)], dtype=object)}
