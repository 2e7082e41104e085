"""What `videoprune batch` promises, checked on a folder of generated films. A check that fails leaves with 1.

    videoprune demo make --benchmark mlvu --videos 60 --out MLVU --workers 2
    python benchmarks/batch_checks.py rows MLVU            # one, two workers and Ray: the same rows
    python benchmarks/batch_checks.py kill MLVU            # kill -9 at ten random moments, then resume
    python benchmarks/batch_checks.py bad MLVU             # five bad films, one of which hangs the decoder
    python benchmarks/batch_checks.py speed MLVU           # CPU and wall time against the bare parts; on a quiet machine
    python benchmarks/batch_checks.py memory MLVU          # resident memory after the third film and at the end

Flags behind `--` go to every `videoprune batch`: as `-- --protocol likelihood --max-frames 64`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FRESH = ("seconds",)  # fields that differ from run to run
KILLS = 10


def command(folder: Path, out: Path, flags: list[str]) -> list[str]:
    return [sys.executable, "-m", "videoprune", "batch", str(folder), "--out", str(out), *flags]


def rows_of(out: Path) -> list[dict[str, Any]]:
    """All lines of all results files, sorted by key, without what differs from run to run."""
    rows = [json.loads(line) for path in out.glob("results*.jsonl") for line in path.read_text().splitlines()]
    return sorted(({k: v for k, v in row.items() if k not in FRESH} for row in rows), key=lambda row: row["key"])


def run(folder: Path, out: Path, flags: list[str], expected: int = 0) -> tuple[float, float, str]:
    """Run a batch; (wall seconds, CPU seconds, stdout)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(command(folder, out, flags), capture_output=True, text=True, check=False)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != expected:
        sys.exit(f"exit code {done.returncode}, not {expected}:\n{done.stdout}\n{done.stderr}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def verdict(good: bool, line: str) -> bool:
    print(f"{'ok  ' if good else 'FAIL'} {line}", flush=True)
    return good


# ------------------------------------------------------------------------------------------------------------- checks


def check_rows(folder: Path, work: Path, flags: list[str]) -> bool:
    wall, _, text = run(folder, work / "one", flags)
    print(text, flush=True)
    base = rows_of(work / "one")
    films, tasks = {row["film"] for row in base}, {row["task"] for row in base}
    good = verdict(
        len(films) >= 60 and len(base) >= 400 and len(tasks) == 9,
        f"{len(films)} films, {len(base)} questions, {len(tasks)} tasks in {wall:.0f} s",
    )
    for name, more in (("two", ["--workers", "2"]), ("ray", ["--workers", "2", "--engine", "ray"])):
        wall, _, _ = run(folder, work / name, [*flags, *more])
        good &= verdict(rows_of(work / name) == base, f"{' '.join(more)}: the same {len(base)} rows, in {wall:.0f} s")
    return good


def check_kill(folder: Path, work: Path, flags: list[str]) -> bool:
    wall, _, _ = run(folder, work / "whole", flags)
    base = rows_of(work / "whole")
    asked = {film: sum(row["film"] == film for row in base) for film in {row["film"] for row in base}}
    out, rng, good = work / "killed", random.Random(0), True
    for number in range(1, KILLS + 1):
        moment = rng.uniform(0.5, 2 * wall / KILLS)
        process = subprocess.Popen(command(folder, out, flags), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        there = rows_of(out)
        answered = {film: sum(row["film"] == film for row in there) for film in asked}
        begun = sum(0 < answered[film] < count for film, count in asked.items())
        good &= verdict(begun <= 1, f"kill {number} after {moment:.1f} s: {len(there)} rows, {begun} films begun")
    run(folder, out, flags)
    final = rows_of(out)
    records = [json.loads(line) for line in (out / "films.jsonl").read_text().splitlines()]
    again = len(records) - len({record["film"] for record in records})
    good &= verdict(len({row["key"] for row in final}) == len(final), f"{len(final)} rows, no key twice")
    good &= verdict(final == base, "the rows of the run that was not disturbed")
    return good & verdict(again <= KILLS, f"{again} films were watched to their end more than once")


def check_bad(folder: Path, work: Path, flags: list[str]) -> bool:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.evaluate.made import BAD, add_bad, copy_of

    bad = copy_of(folder, work / "folder")
    add_bad(bad)
    _, _, text = run(bad, work / "out", [*flags, "--timeout", "60"], expected=1)
    rows = rows_of(work / "out")
    errors = [row for row in rows if row["error"] is not None]
    for row in errors:
        print(f"     {row['video']}: {row['error']['type']}, {row['error']['stage']}: {row['error']['message'][:110]}")
    good = verdict(sorted(row["video"] for row in errors) == sorted(BAD), f"{len(errors)} error rows, exit code 1")
    questions = sum(len(json.loads(path.read_text())) for path in (folder / "json").glob("*.json"))
    good &= verdict(len(rows) - len(errors) == questions, f"{len(rows) - len(errors)} of {questions} others answered")
    return good & verdict("all questions" in text, "and scored")


def check_memory(folder: Path, work: Path, flags: list[str]) -> bool:
    run(folder, work / "out", flags)
    records = [json.loads(line) for line in (work / "out" / "films.jsonl").read_text().splitlines()]
    questions = sum(record["questions"] for record in records)
    good = verdict(questions >= 2000, f"{len(records)} films, {questions} questions")
    for name in ("rss", "runner_rss"):
        third, most = records[2][name], max(record[name] for record in records[2:])
        line = f"{name}: {third / 2**20:.0f} MiB after the third film, at most {most / 2**20:.0f} MiB later"
        good &= verdict(most <= 1.10 * third, f"{line}: × {most / third:.3f}, × 1.10 is allowed")
    return good


def check_speed(folder: Path, work: Path, flags: list[str]) -> bool:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    cores = len(os.sched_getaffinity(0))
    wall, cpu, _ = run(folder, work / "out", flags)
    bare = subprocess.run(
        [sys.executable, __file__, "parts", str(folder), "--work", str(work), "--", *flags],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    parts = json.loads(bare.stdout)
    names = ("decode", "encode", "ask")
    total = sum(parts[name]["cpu"] for name in names)
    for name in ("load", *names):
        print(f"     bare {name}: {parts[name]['cpu']:.1f} s CPU, {parts[name]['wall']:.1f} s wall")
    good = verdict(
        cpu <= 1.10 * total, f"CPU {cpu:.1f} s, bare parts {total:.1f} s: × {cpu / total:.3f}, × 1.10 is allowed"
    )
    model = parts["encode"]["wall"] + parts["ask"]["wall"]
    allowed = max(1.15 * max(parts["decode"]["wall"], model), 1.10 * cpu / cores)
    return good & verdict(wall <= allowed, f"wall {wall:.1f} s, {allowed:.1f} s are allowed on {cores} cores")


def parts(folder: Path, work: Path, flags: list[str]) -> None:
    """Decode, encode and ask the same questions without the runner, one after the other, in this process."""
    from videoprune.evaluate import base
    from videoprune.evaluate.jobs import gather
    from videoprune.evaluate.worker import FilmModel
    from videoprune.watching import Watcher, open_film, spacing

    spent = {name: {"cpu": 0.0, "wall": 0.0} for name in ("load", "decode", "encode", "ask")}

    class Measure:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            self.cpu, self.wall = time.process_time(), time.perf_counter()

        def __exit__(self, *_: object) -> None:
            spent[self.name]["cpu"] += time.process_time() - self.cpu
            spent[self.name]["wall"] += time.perf_counter() - self.wall

    settings, benchmark = _settings(folder, work, flags)
    with Measure("load"):
        model = FilmModel(settings)
    pipe, rule = model.pipes[0], settings.rules[0]
    for film in gather(base.read(benchmark, folder)):
        with Measure("decode"), open_film(film.path, rule, [pipe]) as reader:
            chunks, info, warnings = list(reader), reader.info, list(reader.warnings)
        with Measure("encode"):
            watcher = Watcher(pipe, film.path, rule, sum(map(len, chunks)), interval=spacing(info, rule))
            for chunk in chunks:
                watcher.add(chunk)
            video = watcher.finish(info, warnings)
        with Measure("ask"):
            for question in film.questions:
                model._answer(video, 0, film.film, question)
    print(json.dumps(spent))


def _settings(folder: Path, work: Path, flags: list[str]) -> tuple[Any, str]:
    """The settings that the command line would make of these flags."""
    from videoprune import cli
    from videoprune.evaluate import batch as module

    kept: list[Any] = []

    def keep(asked: Any, **_: Any) -> Any:
        kept.append(asked)
        raise SystemExit

    module.run_batch, real = keep, module.run_batch
    with contextlib.suppress(SystemExit):
        cli.main(["batch", str(folder), "--out", str(work / "unused"), "-q", *flags])
    module.run_batch = real
    asked = kept[0]
    protocol = module._protocol(asked)
    return module._settings(asked, protocol, module._recipes(asked)), asked.benchmark


CHECKS = {"rows": check_rows, "kill": check_kill, "bad": check_bad, "memory": check_memory, "speed": check_speed}


def main() -> None:
    words = sys.argv[1:]
    flags = words[words.index("--") + 1 :] if "--" in words else []
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=[*CHECKS, "parts"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, help="where the results go; else a folder that is removed")
    given = parser.parse_args(words[: words.index("--")] if "--" in words else words)
    if given.check == "parts":
        parts(given.folder, given.work, flags)
        return
    work = given.work or Path(tempfile.mkdtemp(prefix="batch-check-", dir=given.folder.resolve().parent))
    try:
        good = CHECKS[given.check](given.folder, work, flags)
    finally:
        if given.work is None:
            shutil.rmtree(work)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
