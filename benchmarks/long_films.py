"""Films of ten minutes, one hour and three hours: memory, watching against its bare parts, accuracy. Linux.

    python benchmarks/long_films.py memory --cache films
    python benchmarks/long_films.py watch --cache films
    python benchmarks/long_films.py accuracy --cache films --workers 2

Films are generated (8 pictures a second, looked at once a second) and cached in a folder: three hours take some ten CPU
minutes and 50 MB. Each command writes its section of docs/results/long-films.md. Run on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import shared

TITLE, PAGE = "Long films", "long-films.md"
MINUTES = (10, 60, 180)
SEED = 8_000_000  # nothing was trained on the films from here on
QUESTION = "Which object appears first?"
ABOVE_BAR, ALL_BAR, LINEAR_BAR = 1.25, 1.15, 0.10
SLOWER_BAR, TOTAL_BAR = 1.15, 1.10


def film(cache: Path, minutes: int, seed: int) -> Path:
    """The film of this length and seed, drawn where it is not there yet."""
    from videoprune.bench.films import HeldOut

    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{60 * minutes}_{seed}.mp4"
    if not path.is_file():
        print(f"drawing {minutes} minutes, seed {seed}: about {4 * minutes} s of CPU time", file=sys.stderr, flush=True)
    return HeldOut(seed, 60 * minutes).file(cache)


# ------------------------------------------------------------------------------------------------------------- memory


def ask(path: str) -> None:
    """`videoprune ask` in this process, with what it holds and has spent once the model is loaded beside its JSON."""
    from videoprune.commands import ask as command
    from videoprune.decode_process import DecodeProcess

    loaded: dict[str, float] = {}
    load: Callable[..., Any] = command.load_pipeline

    def loading(*given: Any, **settings: Any) -> Any:
        pipe = load(*given, **settings)
        used = resource.getrusage(resource.RUSAGE_SELF)
        loaded.update(rss=shared.memory("VmRSS"), hwm=shared.memory("VmHWM"), cpu=used.ru_utime + used.ru_stime)
        return pipe

    command.load_pipeline = loading
    kill, beside = DecodeProcess.kill, [0]

    def killing(decoder: DecodeProcess) -> None:
        beside.append(decoder.resident())
        kill(decoder)

    DecodeProcess.kill = killing  # type: ignore[method-assign]
    sys.argv[1:] = ["ask", path, QUESTION, "--fps", "1", "--json", "--quiet"]
    import contextlib
    import io

    from videoprune import cli

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        cli.run()
    print(json.dumps({"loaded": loaded, "decoder": max(beside), "result": json.loads(out.getvalue())}))


def memory(given: argparse.Namespace) -> None:
    paths = {minutes: film(given.cache, minutes, given.seed) for minutes in given.minutes}
    rows: dict[int, list[dict[str, Any]]] = {minutes: [] for minutes in given.minutes}
    for _ in range(given.repeats):
        for minutes, path in paths.items():
            ended = shared.measured([sys.executable, __file__, "_ask", str(path)])
            said = json.loads(ended.out.splitlines()[-1])
            tokens = said["result"]["answers"][0]["report"]["tokens"]
            rows[minutes].append(
                {
                    "loaded": said["loaded"]["rss"],
                    "peak": ended.peak,
                    "above": ended.peak - said["loaded"]["rss"],
                    "decoder": said["decoder"],
                    "cpu": ended.cpu,
                    "cpu_above": ended.cpu - said["loaded"]["cpu"],
                    "wall": ended.wall,
                    "frames": tokens["sampled"] // 16,
                    "tokens": tokens,
                }
            )
            print(f"{minutes} min: {rows[minutes][-1]}", file=sys.stderr, flush=True)
    lengths = [
        {"minutes": minutes}
        | {
            key: median(each[key] for each in runs)
            for key in ("loaded", "peak", "above", "decoder", "cpu", "cpu_above", "wall")
        }
        | {"frames": runs[0]["frames"], "tokens": runs[0]["tokens"], "runs": runs}
        for minutes, runs in rows.items()
    ]
    data = {"seed": given.seed, "question": QUESTION, "lengths": lengths, **memory_verdict(lengths)}
    shared.publish(given, TITLE, "Memory and CPU time", memory_text(data), data)


def memory_verdict(lengths: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratios of the largest to the smallest, and how far CPU time is from the straight line through the outer lengths."""
    spread = {key: max(x[key] for x in lengths) / min(x[key] for x in lengths) for key in ("above", "peak")}
    found: dict[str, Any] = {"above_ratio": spread["above"], "peak_ratio": spread["peak"]}
    rates = [each["cpu_above"] / each["frames"] for each in lengths]
    found["cpu_a_frame_ratio"] = max(rates) / min(rates)
    ordered = sorted(lengths, key=lambda each: each["frames"])
    found["slopes"] = [(b["cpu_above"] - a["cpu_above"]) / (b["frames"] - a["frames"]) for a, b in pairwise(ordered)]
    found["slope_ratio"] = max(found["slopes"]) / min(found["slopes"]) if found["slopes"] else 1.0
    return found


def memory_text(data: dict[str, Any]) -> str:
    rows = [
        (
            f"{each['minutes']} min",
            f"{each['frames']:,}",
            f"{each['tokens']['sampled']:,}",
            f"{each['tokens']['merged']:,}",
            shared.mib(each["loaded"]),
            shared.mib(each["above"]),
            shared.mib(each["peak"]),
            shared.mib(each["decoder"]),
            f"{each['cpu']:.1f}",
            f"{each['cpu_above']:.1f}",
            f"{1000 * each['cpu_above'] / each['frames']:.2f}",
            f"{each['wall']:.1f}",
        )
        for each in data["lengths"]
    ]
    head = (
        "film", "frames", "tokens sampled", "enter the LM", "loaded, MiB", "peak above it, MiB", "peak, MiB", "decoder, MiB",
        "CPU s", "CPU s after loading", "ms a frame", "wall s",
    )  # fmt: skip
    above, peak, slope = data["above_ratio"], data["peak_ratio"], data["slope_ratio"]
    slopes = " and ".join(f"{1000 * each:.2f}" for each in data["slopes"])
    parts = [
        shared.prose(
            "`videoprune ask` with the demo model and its default recipe at 1 frame a second, no cap on frames, each run a",
            f"fresh process; medians of {len(data['lengths'][0]['runs'])} run(s). Peak: the kernel's `ru_maxrss`, as",
            "`/usr/bin/time -v` shows it; loaded: resident once the model is there; decoder: resident in the process that",
            "decodes beside it, which peak does not count. CPU time is of both.",
        ),
        shared.table(head, rows),
    ]
    if len(data["lengths"]) > 1:  # one length has nothing to be compared with
        parts.append(
            "\n".join(
                (
                    shared.prose(
                        f"- Peak above the loaded process, largest over smallest: **{above:.3f}**, bar {ABOVE_BAR}:",
                        f"{shared.mark(above <= ABOVE_BAR)}.",
                    ),
                    f"- Peak all told: **{peak:.3f}**, bar {ALL_BAR}: {shared.mark(peak <= ALL_BAR)}.",
                    shared.prose(
                        f"- CPU time by length: from one length to the next, {slopes} ms a frame more, so that starting has",
                        "no part in it (answering has, up to the recipe's most tokens); largest over smallest",
                        f"**{slope:.3f}**, bar {1 + LINEAR_BAR:.2f}: {shared.mark(slope <= 1 + LINEAR_BAR)}. CPU time after",
                        f"loading, a frame, largest over smallest: {data['cpu_a_frame_ratio']:.3f}.",
                    ),
                )
            )
        )
    return "\n\n".join(parts)


# -------------------------------------------------------------------------------------------------------------- watch


def watch(given: argparse.Namespace) -> None:
    """`watch` next to decoding alone and encoding alone, in turn, in one process."""
    import torch

    from videoprune.models.host import Sampling
    from videoprune.pipeline import Pipeline
    from videoprune.video import FrameRule
    from videoprune.watching import open_film, spacing

    torch.set_num_threads(given.threads)
    path, rule = film(given.cache, given.minutes, given.seed), FrameRule(fps=1, end=given.end)
    pipe = Pipeline.load("demo")
    with open_film(path, rule, [pipe]) as reader:
        batch, total, interval = next(iter(reader)), len(reader), spacing(reader.info, rule)
    spent: dict[str, list[tuple[float, float]]] = {"decode": [], "encode": [], "watch": []}
    frames = 0

    def clocked(name: str, work: Callable[[], object]) -> None:
        begun = time.perf_counter(), sum(os.times()[:4])  # with the process that decodes, once it has ended
        work()
        spent[name].append((time.perf_counter() - begun[0], sum(os.times()[:4]) - begun[1]))
        print(f"{name}: {spent[name][-1]}", file=sys.stderr, flush=True)

    def decode() -> None:
        nonlocal frames
        frames = 0
        with open_film(path, rule, [pipe]) as reader:
            for chunk in reader:
                frames += len(chunk)

    def encode() -> None:
        # one chunk's pictures again and again: what they show has no part in what the tower does
        sampling = Sampling(total, interval)
        for first in range(0, frames, len(batch)):
            rows = slice(0, min(len(batch), frames - first))
            pipe.host.encode(batch.images[rows], batch.seconds[rows], first, pipe.stages.encode, sampling)

    pipe.watch(path, frames=FrameRule(fps=1, end=64))  # first calls are slower
    for _ in range(given.repeats):
        clocked("decode", decode)
        clocked("encode", encode)
        clocked("watch", lambda: pipe.watch(path, frames=rule))
    cores = len(os.sched_getaffinity(0))
    walls = {name: median(each[0] for each in runs) for name, runs in spent.items()}
    cpus = {name: median(each[1] for each in runs) for name, runs in spent.items()}
    slower, total_bar = SLOWER_BAR * max(walls["decode"], walls["encode"]), TOTAL_BAR * cpus["watch"] / cores
    data = {
        "frames": frames, "seed": given.seed, "minutes": given.minutes, "threads": given.threads, "cores": cores,
        "repeats": given.repeats, "wall": walls, "cpu": cpus, "allowed": max(slower, total_bar),
        "allowed_by_slower": slower, "allowed_by_total": total_bar, "meets": walls["watch"] <= max(slower, total_bar),
    }  # fmt: skip
    rows = [
        (name, f"{walls[name]:.2f}", f"{cpus[name]:.2f}", f"{1000 * cpus[name] / frames:.2f}")
        for name in ("decode", "encode", "watch")
    ]
    both = cpus["decode"] + cpus["encode"]
    text = "\n\n".join(
        (
            shared.prose(
                f"{frames:,} frames of a film of {given.minutes} minutes, demo model and recipe, in turn in one process,",
                f"medians of {given.repeats} round(s); torch with {given.threads} thread(s), the decoder with one. Encoding",
                "alone is the recipe's encode stage on as many frames, decoded before (one chunk's pictures again and again).",
            ),
            shared.table(("", "wall s", "CPU s", "CPU ms a frame"), rows),
            shared.prose(
                f"Wall of `watch` **{walls['watch']:.2f} s**. Allowed: {SLOWER_BAR} × the slower part = {slower:.2f} s,",
                f"or {TOTAL_BAR} × CPU time of `watch` / {cores} cores = {total_bar:.2f} s, whichever is larger:",
                f"{shared.mark(bool(data['meets']))}. CPU time of `watch` over that of its parts: {cpus['watch'] / both:.3f}.",
            ),
        )
    )
    shared.publish(given, TITLE, "Watching against bare decoding and encoding", text, data)


# --------------------------------------------------------------------------------------------------------------- main


def main() -> None:
    top = shared.parser(__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, help: str, work: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help, description=help)
        made.add_argument("--cache", type=Path, required=True, metavar="DIR", help="where generated films are kept")
        made.add_argument("--seed", type=int, default=SEED, help=f"of the (first) film; {SEED}")
        shared.add_output(made, PAGE)
        made.set_defaults(work=work)
        return made

    one = command("memory", "peak memory and CPU time of `ask`, by length", memory)
    one.add_argument("--minutes", type=int, nargs="+", default=list(MINUTES), help="10 60 180")
    one.add_argument("--repeats", type=int, default=3, help="runs of each length, in turn; 3")

    two = command("watch", "`watch` against bare decoding and bare encoding", watch)
    two.add_argument("--minutes", type=int, default=MINUTES[-1], help="length of the film; 180")
    two.add_argument("--end", type=float, help="look at the film up to this second only")
    two.add_argument("--threads", type=int, default=1, help="of torch; the decoder has one; 1")
    two.add_argument("--repeats", type=int, default=3, help="rounds; 3")

    from long_accuracy import accuracy, add_flags

    add_flags(command("accuracy", "answers at each length, by kind; resumable", accuracy))
    if sys.argv[1:2] == ["_ask"]:  # a process that `memory` starts
        ask(sys.argv[2])
        return
    given = top.parse_args()
    given.work(given)


if __name__ == "__main__":
    main()
