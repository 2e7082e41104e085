"""A benchmark under one or several recipes: read, plan, run on an engine, and leave a folder that can be resumed and scored.

    outcome = run_batch(Batch(benchmark="mlvu", path=Path("MLVU"), out=Path("runs/demo"), recipes=("demo",)))
    outcome.rows["demo"]      # the rows that count, sorted by key

One recipe's results lie in `out` itself; of several, each has a folder of its own in it, named like the recipe. Imports no torch
where the recipe is named: the workers do.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from videoprune import __version__
from videoprune.errors import UsageError
from videoprune.evaluate import base
from videoprune.evaluate.jobs import DIGESTS, Job, Settings, gather, model_revision, plan
from videoprune.evaluate.lock import Lock
from videoprune.evaluate.rows import SEMANTICS, Row, Setup, read_rows
from videoprune.evaluate.runner import TIMEOUT, Runner, Tally, cores
from videoprune.evaluate.store import Results, unwritable
from videoprune.recipe import Recipe
from videoprune.video import FrameRule

ENGINES = ("local", "ray")
MOST_WORKERS = 1024
Say = Callable[[str], None]
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Batch:
    """What to run.

    Attributes:
        benchmark, path: name of the layout, and its folder.
        out: folder of the results.
        recipes: names or files; None stands for the model's default.
        overrides: "stage.key=value" changes to every recipe.
        protocol: None takes the benchmark's own.
        rule: puts flags over a recipe's frame rule.
        model, revision, device, dtype, attn, decoder, seed: as for `Pipeline.load`.
        workers: processes, or model actors.
        engine: "local" or "ray".
        shard: (i, n) of the films.
        limit: films at most, the benchmark's first; None takes all.
        retry_errors: do again what has an error row only.
        timeout: seconds a film may take.
    """

    benchmark: str
    path: Path
    out: Path
    recipes: tuple[str | None, ...] = (None,)
    overrides: tuple[str, ...] = ()
    protocol: str | None = None
    rule: Callable[[FrameRule], FrameRule] | None = None
    model: str | None = None
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    attn: str = "sdpa"
    decoder: str = "auto"
    seed: int = 0
    workers: int = 1
    engine: str = "local"
    shard: tuple[int, int] = (1, 1)
    limit: int | None = None
    retry_errors: bool = False
    timeout: float = TIMEOUT

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise UsageError(f"--engine {self.engine}: allowed are {', '.join(ENGINES)}")
        if not 1 <= self.workers <= MOST_WORKERS:
            raise UsageError(f"--workers {self.workers}: allowed are 1 to {MOST_WORKERS}")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit {self.limit}: a count of films of at least 1 is allowed")
        if not self.timeout > 0:
            raise UsageError(f"--timeout {self.timeout:g}: a number of seconds above 0 is allowed")


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Attributes:
        benchmark, protocol: as read.
        folders: of each recipe, by name.
        rows: that count, sorted by key, by recipe.
        tally: of this run.
        total: questions that it covered, of all recipes.
        errors: error rows that count, of all recipes.
    """

    benchmark: base.Benchmark
    protocol: base.Protocol
    folders: dict[str, Path]
    rows: dict[str, list[Row]]
    tally: Tally
    total: int
    errors: list[Row] = field(default_factory=list)


def run_batch(
    batch: Batch,
    *,
    say: Say | None = None,
    progress: Progress | None = None,
    display: Callable[[Sequence[tuple[str, Results]], int], Any] | None = None,
) -> Outcome:
    """Run what is left of a batch.

    Args:
        say: called with one line about each thing worth knowing.
        progress: called with (stage, done, total) while films are identified.
        display: makes a context manager from the results and the questions in all, that is called with each Tally.

    Raises:
        UsageError: a bad setting, no such benchmark at `path`, results of something else in `out`, or another run there.
        EnvironmentProblem: the model can't be loaded, or the results can't be written.
        KeyboardInterrupt: Ctrl-C or SIGTERM; all rows so far are on the disk.
    """
    say, progress = say or (lambda line: None), progress or (lambda stage, done, total: None)
    benchmark = base.read(batch.benchmark, batch.path)
    for problem in benchmark.problems:
        say(f"data: {problem}")
    protocol = _protocol(batch)
    recipes = _recipes(batch)
    settings = _settings(batch, protocol, recipes)
    folders = _folders(batch.out, recipes)
    try:
        batch.out.mkdir(parents=True, exist_ok=True)
        lock = Lock(batch.out, batch.shard)
    except OSError as error:
        raise unwritable(batch.out, error) from None
    with ExitStack() as stack:
        stack.callback(lock.release)
        results = []
        for setup, folder in zip(settings.setups, folders.values(), strict=True):
            results.append(Results(folder, _identity(batch.benchmark, setup), batch.shard))
            stack.callback(results[-1].close)
        for healed in (line for result in results for line in result.healed):
            say(f"healed: {healed}")
        films = gather(benchmark, batch.out / DIGESTS, lambda done, total: progress("identify films", done, total))
        jobs, total = plan(
            films, settings.setups, results, shard=batch.shard, limit=batch.limit, retry_errors=batch.retry_errors
        )  # fmt: skip
        done = total - sum(job.count for job in jobs)
        if done:
            say(f"resuming: {done} of {total} questions have rows already")
        tally = Tally()
        if jobs:
            named = list(zip(folders, results, strict=True))
            shown = stack.enter_context(display(named, total)) if display else (lambda tally: None)
            tally = _engine(batch, settings, jobs, results, benchmark, protocol, shown)
    rows = {name: read_rows(folder) if _any(folder) else [] for name, folder in folders.items()}
    errors = [row for some in rows.values() for row in some if row["error"] is not None]
    return Outcome(benchmark, protocol, folders, rows, tally, total, errors)


def _engine(
    batch: Batch,
    settings: Settings,
    jobs: list[Job],
    results: list[Results],
    benchmark: base.Benchmark,
    protocol: base.Protocol,
    shown: Callable[[Tally], None],
) -> Tally:
    def ready(facts: dict[str, Any]) -> None:
        """Only now is it sure that the recipe fits the model: from here on the folder is this run's."""
        for recipe, rule, result in zip(settings.recipes, settings.rules, results, strict=True):
            result.describe(_description(batch, recipe, rule, benchmark, protocol, facts))

    if batch.engine == "ray":
        from videoprune.evaluate.ray_engine import run_ray

        return run_ray(
            settings, jobs, results, workers=batch.workers, timeout=batch.timeout, tell=shown, ready=ready
        )  # fmt: skip
    return Runner(
        settings, jobs, results, workers=batch.workers, timeout=batch.timeout, tell=shown, ready=ready
    ).run()  # fmt: skip


def _protocol(batch: Batch) -> base.Protocol:
    if batch.protocol is None:
        return base.default_protocol(batch.benchmark, "demo" if batch.model is None else None)
    found = base.protocol(batch.protocol)
    if found.benchmarks and batch.benchmark not in found.benchmarks:
        raise UsageError(
            f"--protocol {found.name} is made for {', '.join(found.benchmarks)}, not for {batch.benchmark}; "
            "leave it out for the benchmark's own, or take `likelihood`"
        )
    return found


def _recipes(batch: Batch) -> list[Recipe]:
    recipes = []
    for name in batch.recipes:
        source: Any = name
        if source is None:
            source = _default_recipe(batch)
        recipes.append(Recipe.load(source, batch.overrides))
    names = [recipe.name for recipe in recipes]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--recipes: {name!r} is given twice; give each once")
        if len(names) > 1 and (name in (".", "..") or "/" in name or "\\" in name):
            raise UsageError(f"--recipes: {name!r} can't name a folder; rename the recipe")
    return recipes


def _default_recipe(batch: Batch) -> Any:
    if batch.model is None:
        return "demo"
    from videoprune.models.load import read_json, recognise

    return recognise(read_json(batch.model, "config.json", batch.revision))[0].default_recipe


def _settings(batch: Batch, protocol: base.Protocol, recipes: list[Recipe]) -> Settings:
    model, revision = model_revision(batch.model, batch.revision)
    rules = [protocol.frame_rule(batch.rule(recipe.frames) if batch.rule else recipe.frames) for recipe in recipes]
    setups = []
    for recipe, rule in zip(recipes, rules, strict=True):
        frames = {key: value for key, value in asdict(rule).items() if value is not None and value is not False}
        setups.append(
            Setup(
                recipe.name, recipe.digest()[:16], model, revision, frames, protocol.name, protocol.digest(), batch.seed
            )
        )
    return Settings(
        model=batch.model,
        revision=batch.revision,
        device=batch.device,
        dtype=batch.dtype,
        attn=batch.attn,
        decoder=batch.decoder,
        seed=batch.seed,
        recipes=tuple(recipes),
        rules=tuple(rules),
        setups=tuple(setups),
        protocol=protocol.name,
        threads=_threads(batch.workers),
    )


def _threads(workers: int) -> int | None:
    """Threads of each worker's torch: an equal share of the cores, unless the environment says how many."""
    if "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, cores() // workers)


def _folders(out: Path, recipes: list[Recipe]) -> dict[str, Path]:
    if len(recipes) == 1:
        return {recipes[0].name: out}
    if list(out.glob("run*.json")):
        raise UsageError(f"--out {out} holds the results of one recipe; give another folder for --recipes")
    return {recipe.name: out / recipe.name for recipe in recipes}


def _any(folder: Path) -> bool:
    return any(folder.glob("results*.jsonl"))


def _identity(benchmark: str, setup: Setup) -> dict[str, Any]:
    """What all rows of a folder share; any other run is refused there."""
    return {"benchmark": benchmark, **asdict(setup), "frames": dict(setup.frames), "semantics": SEMANTICS}


def _description(
    batch: Batch,
    recipe: Recipe,
    rule: FrameRule,
    benchmark: base.Benchmark,
    protocol: base.Protocol,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """What `run.json` says beyond the identity."""
    first = benchmark.questions[0] if benchmark.questions else None
    prompt = protocol.prompt(first).flat() if first and not protocol.needs_seconds else protocol.digest()
    return {
        "videoprune": __version__,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "path": str(batch.path),
        "questions": len(benchmark),
        "tasks": benchmark.tasks(),
        "problems": [str(problem) for problem in benchmark.problems],
        "recipe": recipe.to_dict(),
        "overrides": list(recipe.overrides),
        "frames": {key: value for key, value in asdict(rule).items() if value is not None},
        "protocol": protocol.describe(),
        "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest(),
        "seed": batch.seed,
        "engine": batch.engine,
        "workers": batch.workers,
        "shard": list(batch.shard),
        "timeout": batch.timeout,
        **facts,
    }
