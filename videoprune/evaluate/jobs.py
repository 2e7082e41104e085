"""What is to be done: settings of a run, and films with the questions that have no row yet, longest first. Imports no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videoprune.errors import EnvironmentProblem, FilmError, UsageError
from videoprune.evaluate.base import Benchmark, Question
from videoprune.evaluate.rows import Setup
from videoprune.identity import film_digest

if TYPE_CHECKING:
    from videoprune.evaluate.store import Results
    from videoprune.recipe import Recipe
    from videoprune.video import FrameRule

DIGESTS = "digests.json"  # of films by path, size and date, so that a resumed run reads none again
READERS = 4  # films whose digests are read at a time
SUFFIXES = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja")  # of a checkpoint's files


@dataclass(frozen=True)
class Settings:
    """Everything that a worker needs to know, picklable.

    Attributes:
        model: checkpoint, None for the demo model.
        recipes: what each film is watched with, and `setups` of their rows.
        rules: frame rule of each recipe.
        protocol: name.
        threads: of torch, None leaves its own.
    """

    model: str | None
    revision: str | None
    device: str
    dtype: str
    attn: str
    decoder: str
    seed: int
    recipes: tuple[Recipe, ...]
    rules: tuple[FrameRule, ...]
    setups: tuple[Setup, ...]
    protocol: str
    threads: int | None = None


@dataclass(frozen=True)
class Job:
    """One film and what is still to be asked of it: for each recipe its questions (none where all have rows).

    Attributes:
        number: its place in this run.
        film: digest of its content, or of its name where it can't be read.
        path, video: file, and the name in the data set.
        duration: seconds by the data set, 0 where unknown.
        size: bytes.
        todo: questions by recipe.
    """

    number: int
    film: str
    path: str
    video: str
    duration: float
    size: int
    todo: tuple[tuple[Question, ...], ...]

    @property
    def count(self) -> int:
        return sum(map(len, self.todo))


@dataclass(frozen=True)
class FilmFile:
    """A film of a benchmark: its file, digest and questions."""

    path: Path
    film: str
    size: int
    questions: tuple[Question, ...]

    @property
    def duration(self) -> float:
        return max((question.duration or 0.0 for question in self.questions), default=0.0)


def gather(
    benchmark: Benchmark, cache: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> list[FilmFile]:
    """The films of a benchmark by content, in the order of their first question: copies of a film are one film.

    Args:
        cache: JSON file that remembers digests; None remembers nothing.
        progress: called with films read and films in all.
    """
    known = _read_cache(cache)
    films = list(benchmark.films().items())
    fresh: dict[str, Any] = {}

    def identify(path: Path) -> tuple[str, int]:
        try:
            facts = path.stat()
            stamp = [facts.st_size, facts.st_mtime_ns]
            before = known.get(str(path))
            digest = before[2] if before and before[:2] == stamp else film_digest(path)
            fresh[str(path)] = [*stamp, digest]
            return digest, facts.st_size
        except (OSError, FilmError):  # the film's turn will say what is wrong with it
            return hashlib.sha256(f"unreadable {path.name}".encode(errors="surrogatepass")).hexdigest(), 0

    found: dict[str, FilmFile] = {}
    with ThreadPoolExecutor(READERS) as pool:
        for number, ((path, questions), (digest, size)) in enumerate(
            zip(films, pool.map(identify, (path for path, _ in films)), strict=True), start=1
        ):
            before = found.get(digest)
            asked = (*(before.questions if before else ()), *map(_portable, questions))
            found[digest] = FilmFile(before.path if before else path, digest, size, asked)
            if progress:
                progress(number, len(films))
    _write_cache(cache, fresh, known)
    return list(found.values())


def _portable(question: Question) -> Question:
    """The question without its original row, as plain data for another process."""
    return dataclasses.replace(question, extra={key: value for key, value in question.extra.items() if key != "row"})


def _read_cache(cache: Path | None) -> dict[str, Any]:
    try:
        content = json.loads(cache.read_text(encoding="utf-8")) if cache else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_cache(cache: Path | None, fresh: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    if cache is None or dict(fresh) == dict(known):
        return
    part = cache.with_name(f".{cache.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(dict(fresh)), encoding="utf-8", errors="surrogatepass")
        os.replace(part, cache)
    except OSError:  # only a cache: the results' own file says what is wrong with the disk
        part.unlink(missing_ok=True)


def plan(
    films: Sequence[FilmFile],
    setups: Sequence[Setup],
    results: Sequence[Results],
    *,
    shard: tuple[int, int] = (1, 1),
    limit: int | None = None,
    retry_errors: bool = False,
) -> tuple[list[Job], int]:
    """Jobs that are left, longest first, and the number of questions that this run covers, done ones included.

    Args:
        films: of the benchmark.
        setups, results: of each recipe.
        shard: (i, n) of the films, dealt out longest first.
        limit: the first so many films only.
        retry_errors: do films and questions again whose only row is an error.
    """
    chosen = list(films[:limit])
    chosen.sort(key=lambda film: (-film.duration, -film.size, film.film))
    chosen = chosen[shard[0] - 1 :: shard[1]]
    jobs: list[Job] = []
    seen: set[str] = set()  # an entry that is there twice is one question
    for film in chosen:
        todo = []
        for setup, result in zip(setups, results, strict=True):
            failed = setup.key(film.film, None) in result.errors and not retry_errors
            left = []
            for question in film.questions:
                key = setup.key(film.film, question)
                if key in seen:
                    continue
                seen.add(key)
                if not failed and key not in result.answered and (retry_errors or key not in result.errors):
                    left.append(question)
            todo.append(tuple(left))
        if any(todo):
            name = film.questions[0].video
            jobs.append(Job(len(jobs), film.film, str(film.path), name, film.duration, film.size, tuple(todo)))
    return jobs, len(seen)


def model_revision(model: str | None, revision: str | None) -> tuple[str, str]:
    """(name, revision) of a checkpoint: the commit of a hub's, a digest of the files of a folder's.

    Raises:
        EnvironmentProblem: it can't be found.
    """
    from videoprune import demo

    folder = demo.weights_path() if model is None else Path(model).expanduser()
    if folder.is_dir():
        digest = hashlib.sha256()
        for path in sorted(folder.iterdir()):
            if path.suffix in SUFFIXES and path.is_file():
                digest.update(f"{path.name} {film_digest(path)}\n".encode())
        return ("demo" if model is None else folder.name), digest.hexdigest()[:16]
    from huggingface_hub import hf_hub_download

    assert model is not None
    try:
        config = Path(hf_hub_download(model, "config.json", revision=revision))
    except Exception as error:  # the hub's client raises many kinds
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EnvironmentProblem(
            f"model {model}: not in the cache and not reachable ({first[:160]}); download it first or give a folder"
        ) from None
    return model, config.parent.name  # a hub's snapshots lie in folders named by their commit


def read_shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n".

    Raises:
        UsageError: anything else.
    """
    first, slash, last = text.partition("/")
    if slash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last):
        return int(first), int(last)
    raise UsageError(f"--shard {text}: allowed is i/n with i from 1 to n, as 1/4")
