"""The worker: one loaded model that watches films and answers their questions, and the process around it.

`FilmModel` is what the local engine's processes and Ray's actors share; everything that a row says is made here.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from videoprune.decode_process import DecodeProcess
from videoprune.decoding import Ended, Opened, Reading
from videoprune.errors import EnvironmentProblem, VideoPruneError
from videoprune.evaluate.base import Question, protocol
from videoprune.evaluate.jobs import Job, Settings
from videoprune.evaluate.rows import DIGITS, Row, error_of, film_row, question_row
from videoprune.processes import die_with_parent, resident
from videoprune.video import FrameRule, Frames

if TYPE_CHECKING:
    from videoprune.pipeline import Pipeline

STAGES = ("start", "decode", "encode", "ask")  # what a worker is at, told to the runner through a shared number
Take = Callable[[], Opened | Frames | Ended]
Event = dict[str, Any]


class Plans:
    """What has to be decoded: recipes that look at the same frames share one decoding.

    Args:
        pipes: pipelines of the recipes, or what has their `stages` and `decoder`.
    """

    def __init__(self, settings: Settings, pipes: Sequence[Any]) -> None:
        self.pipes = pipes
        self.groups: list[tuple[FrameRule, list[int]]] = []
        for index, rule in enumerate(settings.rules):
            group = next((group for known, group in self.groups if known == rule), None)
            if group is None:
                self.groups.append((rule, [index]))
            else:
                group.append(index)

    def readings(self, job: Job) -> list[tuple[Reading, list[int]]]:
        """A reading for each frame rule of the recipes that still have questions, with those recipes."""
        from videoprune.watching import opener

        found = []
        for rule, indices in self.groups:
            wanted = [index for index in indices if job.todo[index]]
            if wanted:
                found.append((Reading(opener(job.path, rule, [self.pipes[index] for index in wanted])), wanted))
        return found


class FilmModel:
    """A loaded model with the pipelines of all recipes.

    Raises:
        UsageError: a recipe does not fit the model.
        EnvironmentProblem: the model can't be loaded.
    """

    def __init__(self, settings: Settings, tell: Callable[[str], None] | None = None) -> None:
        import torch

        from videoprune.pipeline import Pipeline

        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self.settings, self.tell = settings, tell or (lambda stage: None)
        self.protocol = protocol(settings.protocol)
        first = Pipeline.load(
            settings.recipes[0], model=settings.model, device=settings.device, dtype=settings.dtype, attn=settings.attn,
            decoder=settings.decoder, seed=settings.seed, revision=settings.revision,
        )  # fmt: skip
        self.pipes = [first, *(first.with_recipe(recipe) for recipe in settings.recipes[1:])]
        short = self.protocol.max_new_tokens
        self.brief = [pipe if short is None else _with_length(pipe, short) for pipe in self.pipes]  # for chosen answers
        self.plans = Plans(settings, self.pipes)

    def facts(self) -> dict[str, Any]:
        """Versions, device and automatic choices, for run.json."""
        import importlib.metadata
        import platform

        import torch

        versions = {"python": platform.python_version()}
        for package in ("videoprune", "torch", "transformers", "av", "numpy"):
            versions[package] = importlib.metadata.version(package)
        host = self.pipes[0].host
        gpu = torch.cuda.get_device_name(host.device) if host.device.type == "cuda" else None
        return {
            "versions": versions,
            "device": str(host.device),
            "gpu": gpu,
            "dtype": str(host.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "choices": self.pipes[0].choices,
        }

    def film(self, job: Job, readings: Sequence[tuple[Reading, list[int]]], take: Take) -> Iterator[Event]:
        """Watch a film and ask its questions.

        Args:
            job, readings: the film, and its readings in the order in which `take` gives their items.

        Yields:
            {"row": row, "recipe": index} for each question, or once for a film that can't be watched; last {"film": record} with
            what it took.
        """
        started = time.perf_counter()
        record: dict[str, Any] = {
            "film": job.film,
            "video": job.video,
            "film_seconds": 0.0,
            "frames": 0,
            "questions": 0,
        }
        record |= {"decode": 0.0, "wait": 0.0, "encode": 0.0, "ask": 0.0, "cpu": 0.0}
        cpu = time.thread_time()
        for reading, indices in readings:
            yield from self._group(job, reading, indices, take, record, started)
        record["cpu"] += time.thread_time() - cpu
        record |= {"seconds": time.perf_counter() - started, "rss": resident()}
        yield {"film": {key: round(value, 4) if isinstance(value, float) else value for key, value in record.items()}}

    def _group(
        self, job: Job, reading: Reading, indices: list[int], take: Take, record: dict[str, Any], started: float
    ) -> Iterator[Event]:
        ended: Ended | None = None

        def next_item() -> Opened | Frames | Ended:
            nonlocal ended
            self.tell("decode")
            since = time.perf_counter()
            item = take()
            record["wait"] += time.perf_counter() - since
            if isinstance(item, Ended):
                ended = item
                record["decode"] += item.seconds
                record["cpu"] += item.cpu
            return item

        def failed(problem: BaseException, stage: str) -> list[Event]:
            spent = time.perf_counter() - started
            error = error_of(problem, stage)
            rows = [film_row(self.settings.setups[i], job.film, job.todo[i], error, spent) for i in indices]
            return [{"row": row, "recipe": i} for row, i in zip(rows, indices, strict=True)]

        stage = "video"
        try:
            from videoprune.watching import Watcher, add_to_all, spacing

            item = next_item()
            watchers = []
            if isinstance(item, Opened):
                opened = item
                rules = self.settings.rules
                watchers = [
                    Watcher(self.pipes[i], job.path, rules[i], opened.total, interval=spacing(opened.info, rules[i]))
                    for i in indices
                ]
            while ended is None:
                item = next_item()
                if isinstance(item, Frames):
                    stage = "encode"
                    self.tell(stage)
                    since = time.perf_counter()
                    add_to_all(watchers, item)
                    record["frames"] += len(item)
                    record["encode"] += time.perf_counter() - since
                    stage = "video"
            if ended.error is not None:
                raise ended.error
            stage = "encode"
            self.tell(stage)
            since = time.perf_counter()
            videos = [watcher.finish(opened.info, ended.warnings) for watcher in watchers]
            record["encode"] += time.perf_counter() - since
            record["film_seconds"] = opened.info.duration or 0.0
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as problem:
            _reraise_fatal(problem)
            reading.skip.set()
            while ended is None:  # what was decoded ahead of this film is nobody's
                next_item()
            yield from failed(problem, stage)
            return
        self.tell("ask")
        shared = (time.perf_counter() - started) / max(1, job.count)
        for video, index in zip(videos, indices, strict=True):
            for question in job.todo[index]:
                since = time.perf_counter()
                row = self._answer(video, index, job.film, question)
                spent = time.perf_counter() - since
                row["seconds"] = round(shared + spent, 4)
                record["ask"] += spent
                record["questions"] += 1
                yield {"row": row, "recipe": index}

    def _answer(self, video: Any, index: int, film: str, question: Question) -> Row:
        """One question's row; what goes wrong with it alone is said in it."""
        setup, harness = self.settings.setups[index], self.protocol
        try:
            seconds = video.tokens.frame_seconds.tolist() if harness.needs_seconds else []
            text = harness.prompt(question, seconds).flat()
            if harness.mode == "likelihood" and question.options:
                found = self._likelihoods(video, text, question)
            else:
                pipe = self.pipes[index] if question.generation else self.brief[index]
                answer = dataclasses.replace(video, pipeline=pipe).ask(text)
                choice = harness.extract(answer.text, question)
                found = {"prediction": answer.text, "choice": choice, "correct": harness.right(choice, question)}
                found |= _cost(answer.report)
            return question_row(setup, film, question, **found)
        except (KeyboardInterrupt, SystemExit):
            raise
        except Exception as problem:
            _reraise_fatal(problem)
            return question_row(setup, film, question, error=error_of(problem, "ask"))

    def _likelihoods(self, video: Any, text: str, question: Question) -> dict[str, Any]:
        """Score the options' texts; options that repeat share their score, empty ones are never chosen."""
        harness = self.protocol
        texts = [reply.strip() for reply in harness.replies(question)]
        replies = list(dict.fromkeys(filter(None, texts)))
        if len(replies) < 2:  # nothing to choose from: as no answer
            return {"prediction": "", "choice": None, "correct": harness.right(None, question)}
        scored = video.options(text, replies)
        by_text = dict(zip(replies, zip(scored.logprobs, scored.lengths, strict=True), strict=True))
        pairs = [by_text.get(reply, (float("-inf"), 1)) for reply in texts]
        choice = harness.choose(pairs)
        return {
            "prediction": question.options[choice],
            "choice": choice,
            "correct": harness.right(choice, question),
            "logprobs": [round(total, DIGITS) if total > float("-inf") else None for total, _ in pairs],
            "lengths": [length for _, length in pairs],
            **_cost(scored.report),
        }


def _with_length(pipe: Pipeline, most: int) -> Pipeline:
    """The same pipeline with answers of at most so many tokens."""
    recipe = dataclasses.replace(pipe.recipe, max_new_tokens=most)
    return type(pipe)(pipe.host, recipe, decoder=pipe.decoder, seed=pipe.seed, choices=pipe.choices)


def _cost(report: Any) -> dict[str, Any]:
    return {"tokens": report.tokens, "flops": {"total": report.total.total, "dense": report.dense.total}}


def _reraise_fatal(problem: BaseException) -> None:
    """What no other film would survive either: a missing environment, or a device that is gone."""
    if isinstance(problem, EnvironmentProblem):
        raise problem
    if type(problem).__name__ == "AcceleratorError" or "CUDA error" in str(problem):
        raise problem  # the process is lost: the runner starts another


# ----------------------------------------------------------------------------------------------------------- process


def serve(connection: Any, settings: Settings, stage: Any) -> None:
    """Body of a worker process: load, then answer jobs from `connection` in order until it gives None.

    Sends {"ready": facts}, then the events of each film followed by {"done": number}, or {"fatal": …} where it can't go on.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the runner's to answer
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent()
    from videoprune.console import quiet_libraries

    quiet_libraries(False)

    def tell(name: str) -> None:
        stage.value = STAGES.index(name)

    try:
        model = FilmModel(settings, tell)
        connection.send({"ready": model.facts()})
        _answer_jobs(connection, model)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the runner is gone
    except VideoPruneError as problem:
        connection.send({"fatal": {**error_of(problem), "exit_code": problem.exit_code}})
    connection.close()
    os._exit(0)  # all is said; libraries' own threads would only complain on the way out


def _answer_jobs(connection: Any, model: FilmModel) -> None:
    decoder = DecodeProcess()
    waiting: list[tuple[Job, list[tuple[Reading, list[int]]]] | None] = []
    arrived = threading.Condition()

    def receive() -> None:
        while True:
            try:
                job = connection.recv()
            except (EOFError, OSError):
                os._exit(1)
            entry = None
            if job is not None:
                entry = (job, model.plans.readings(job))
                for reading, _ in entry[1]:
                    decoder.submit(reading)
            with arrived:
                waiting.append(entry)
                arrived.notify()
            if job is None:
                return

    threading.Thread(target=receive, name="videoprune-jobs", daemon=True).start()
    while True:
        with arrived:
            while not waiting:
                arrived.wait()
            entry = waiting.pop(0)
        if entry is None:
            decoder.close()
            return
        job, readings = entry
        for event in model.film(job, readings, decoder.take):
            if "film" in event:
                event["film"]["rss"] += decoder.resident()
            connection.send({**event, "job": job.number})
        connection.send({"done": job.number})
