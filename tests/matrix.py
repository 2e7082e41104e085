"""The matrix: every method on every host, at several budgets, in two dtypes, on films that are easy to get wrong.

    python -m tests.matrix                  all cells
    python -m tests.matrix --only prefill   cells whose name contains this
    python -m tests.matrix --covering       the subset that every test run has: all pairs of method and anything else

What must hold in a cell stands in `check`. A method that a host refuses is refused before the film is opened.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests import tiny, tiny_qwen
from tests.learned import untrained
from videoprune.errors import UsageError
from videoprune.models.host import Host
from videoprune.models.load import load_host
from videoprune.pipeline import Pipeline
from videoprune.recipe import Recipe
from videoprune.registry import find, methods
from videoprune.tokens import budget
from videoprune.trained import Trained
from videoprune.video import FrameRule, Frames
from videoprune.watched import Answer, Video
from videoprune.watching import Watcher

STAGES = ("scout", "segment", "encode", "merge", "prefill", "decode")
MAKERS = {
    maker.__name__: maker
    for maker in (
        tiny.onevision, tiny.longva, tiny.llava_next_video, tiny.video_llava, tiny.llava15, tiny.llava_next, tiny.internvl,
        tiny_qwen.qwen2_vl, tiny_qwen.qwen2_5_vl, tiny_qwen.qwen3_vl,
    )
}  # fmt: skip
HOSTS = tuple(MAKERS)
KEEPS: tuple[float | int | None, ...] = (1, None, 0.5, 0.1, 7, 100_000)
DTYPES = ("float32", "bfloat16")
FILMS = ("moving", "repeated", "black", "one_frame", "two_frames")
QUESTION = "What happens after the red circle?"
STEPS = 4
BESIDE = {  # what must be there for methods that read what another stage leaves
    "decode.metok": {"prefill": {"method": "metok"}},
    "encode.ssm": {"scout": {"method": "ssm", "keep": 0.5}},
    "decode.lazyllm": {"prefill": {"method": "lazyllm"}},
    "prefill.vflowopt": {"merge": {"method": "vflowopt", "keep": 0.9}},
}


@dataclass(frozen=True)
class Cell:
    """One combination."""

    stage: str
    method: str
    host: str
    keep: float | int | None
    dtype: str
    film: str

    def __str__(self) -> str:
        return f"{self.stage}.{self.method}-{self.host}-keep={self.keep}-{self.dtype}-{self.film}"


def every_method() -> list[tuple[str, str]]:
    return [(entry.stage, entry.name) for entry in methods() if entry.stage in STAGES]


def all_cells() -> Iterator[Cell]:
    for (stage, method), host, keep, dtype, film in itertools.product(every_method(), HOSTS, KEEPS, DTYPES, FILMS):
        if stage != "segment" or keep == 1:  # a segmentation has no budget
            yield Cell(stage, method, host, keep, dtype, film)


def covering() -> list[Cell]:
    """For each method enough cells that every host, budget, dtype and film occurs with it, and all pairs over the methods."""
    chosen = []
    for number, (stage, method) in enumerate(every_method()):
        keeps = KEEPS if stage != "segment" else (1,)
        for step in range(max(len(HOSTS), len(keeps), len(FILMS))):
            pick = number + step
            host = HOSTS[step % len(HOSTS)]
            chosen.append(
                Cell(
                    stage,
                    method,
                    host,
                    keeps[pick % len(keeps)],
                    DTYPES[(pick // 2) % 2],
                    FILMS[(number * 3 + step) % len(FILMS)],
                )
            )
    return list(dict.fromkeys(chosen))


# ------------------------------------------------------------------------------------------------------------- running


@lru_cache(maxsize=1)
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="videoprune-matrix-"))


@cache
def host_of(name: str, dtype: str) -> Host:
    folder = _folder() / name
    if not folder.exists():
        MAKERS[name](folder)
    loaded = load_host(folder, device="cpu", dtype=dtype)
    loaded.model.generation_config.eos_token_id = None  # every run decodes as many tokens
    return loaded


@cache
def frames_of(film: str) -> Frames:
    """(F, 60, 80, 3) pictures: a place with noise and something that crosses it; or that picture again and again; or black."""
    count = {"one_frame": 1, "two_frames": 2}.get(film, 8)
    rng = np.random.default_rng(0)
    place = rng.integers(60, 200, (60, 80, 3))
    images = np.repeat(place[None], count, axis=0)
    if film == "black":
        images = np.zeros_like(images)
    elif film != "repeated":
        images = images + rng.integers(-10, 10, images.shape)
        for number in range(count):
            images[number, 20:40, 8 * number : 8 * number + 20] = (250, 30, 30)
    return Frames(images.clip(0, 255).astype(np.uint8), np.arange(count, dtype=np.float64), np.arange(count))


def recipe_of(cell: Cell) -> Recipe:
    step = {"method": cell.method} | ({"keep": cell.keep} if cell.keep is not None and cell.stage != "segment" else {})
    if issubclass(find(cell.stage, cell.method).load(), Trained):
        step["weights"] = str(learned(cell.stage, cell.method, cell.host, cell.dtype))
    return Recipe.load({**beside(cell), cell.stage: step})


@cache
def learned(stage: str, method: str, host: str, dtype: str) -> Path:
    """A learned part with random weights for one of the hosts, as a file."""
    return untrained(stage, method, host_of(host, dtype), _folder() / f"{host}-{dtype}-learned")


def beside(cell: Cell) -> dict[str, Any]:
    """The recipe of a cell without its method."""
    return {"segment": {"method": "metok"}, "max_new_tokens": STEPS, **BESIDE.get(f"{cell.stage}.{cell.method}", {})}


def watch(pipe: Pipeline, film: str) -> Video:
    watcher = Watcher(pipe, film, FrameRule())
    watcher.add(frames_of(film))
    return watcher.finish(SimpleNamespace(metadata={}, choices=[], decoder="none"), [])  # type: ignore[arg-type]


def with_points(host: Host) -> Host:
    """The host with a 3-D point for every token, as a caller of Geo3DPruner gives them."""

    class Pointed:
        def __getattr__(self, name: str) -> Any:
            return getattr(host, name)

        def encode(self, *args: Any, **named: Any) -> Any:
            encoded = host.encode(*args, **named)
            tokens = encoded.tokens
            place = torch.cat((tokens.frame[:, None], tokens.cell), dim=1).float()
            return replace(encoded, tokens=tokens.with_scores(points=place))

    return Pointed()  # type: ignore[return-value]


def run(cell: Cell, without: bool = False) -> tuple[Video, Answer] | None:
    """The film watched and asked, `without` the method too; None where the pipeline refuses it on this host, before any work."""
    host = host_of(cell.host, cell.dtype)
    if cell.method == "geo3dpruner":
        host = with_points(host)
    recipe = Recipe.load(beside(cell)) if without else recipe_of(cell)
    try:
        pipe = Pipeline(host, recipe)
    except UsageError:
        return None
    video = watch(pipe, cell.film)
    return video, video.ask(QUESTION, logits=True)


@lru_cache(maxsize=64)
def run_without(cell: Cell) -> tuple[Video, Answer]:
    found = run(cell, without=True)
    assert found is not None
    return found


def check(cell: Cell) -> str:
    """Run a cell and raise where something that must hold does not; "refused" or "ok"."""
    found = run(cell)
    if found is None:
        return "refused"
    video, answer = found
    alone = f"{cell.stage}.{cell.method}" not in BESIDE  # then the run without the method is the same for all
    dense = run_without(replace(cell, keep=1, **({"stage": "merge", "method": "random"} if alone else {})))[1]
    again = run(cell)
    assert again is not None
    trace, tokens = answer.trace, answer.tokens
    # deterministic
    assert again[1].ids == answer.ids
    assert again[1].logits is not None
    assert answer.logits is not None
    assert torch.equal(again[1].logits, answer.logits)
    assert bool(torch.isfinite(answer.logits).all())
    # the ledger is conserved and in order
    tokens.check()
    assert len(tokens.owner) == len(dense.tokens.owner)
    order = tokens.position if tokens.position.ndim == 1 else tokens.frame
    assert bool((order[1:] >= order[:-1]).all())
    for kept in trace.kept.values():
        assert bool((kept[1:] > kept[:-1]).all())
    # text and [CLS] are never removed before decode
    text = {queries - visual for queries, visual in zip(trace.queries[0], trace.visual_rows, strict=True)}
    assert len(text) == 1
    added = (tokens.weight == 0).nonzero()[:, 0]
    assert torch.isin(added, answer.alive).all()
    # events partition the frames
    bounds = video.events.bounds
    assert int(bounds[0, 0]) == 0
    assert int(bounds[-1, 1]) == tokens.frames - 1
    assert torch.equal(bounds[1:, 0], bounds[:-1, 1] + 1)
    if cell.stage == "segment" or cell.keep == 1:
        assert answer.ids == dense.ids
        assert dense.logits is not None
        assert torch.equal(answer.logits, dense.logits)
    else:
        _check_budget(cell, video, answer, dense)
    return "ok"


def _check_budget(cell: Cell, video: Video, answer: Answer, dense: Answer) -> None:
    """Where a method says that its count is known, it is met exactly; elsewhere it is not passed."""
    stages, tokens = video.pipeline.stages, answer.tokens
    acting = {
        "scout": (stages.scout,),
        "encode": stages.encode or stages.prune,
        "merge": (*stages.blind, *stages.aware),
        "prefill": stages.prefill,
        "decode": stages.decode,
    }
    method = acting[cell.stage][0]
    if cell.keep is None:
        return
    if stages.scout is not None:  # what prunes its tower leaves the host's alone
        share = cell.keep if cell.stage == "scout" else stages.scout.keep
        assert video.encoded_count == budget(tokens.frames, share) * tokens.per_frame
        return
    if cell.stage == "encode":
        frames, each = tokens.frames, tokens.per_frame
        expected, got = frames * budget(each, cell.keep), video.encoded_count
    elif cell.stage == "merge":
        expected, got = budget(dense.tokens.count, cell.keep, method.at_most), tokens.count
    elif cell.stage == "prefill":
        alive = answer.alive
        expected, got = budget(tokens.count, cell.keep, method.at_most), int((tokens.weight[alive] > 0).sum())
    else:
        before, after = sum(dense.trace.prefill_entries), sum(answer.trace.prefill_entries)
        assert after <= before
        return
    if method.fixed_count:
        assert got == expected, f"{got} tokens left, {expected} were asked for"
    else:
        assert got <= max(expected, 1), f"{got} tokens left, at most {expected} were asked for"


# ------------------------------------------------------------------------------------------------------------ the command


def run_all(cells: Iterable[Cell], tell: bool = True) -> dict[str, list[str]]:
    cells = list(cells)
    outcome: dict[str, list[str]] = {"ok": [], "refused": [], "failed": []}
    started = time.perf_counter()
    for number, cell in enumerate(cells, 1):
        try:
            outcome[check(cell)].append(str(cell))
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            outcome["failed"].append(
                f"{cell}: {type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
            )
        if tell and (number % 200 == 0 or number == len(cells)):
            spent = time.perf_counter() - started
            counts = ", ".join(f"{len(found)} {name}" for name, found in outcome.items())
            print(f"{number}/{len(cells)} cells, {counts}, {spent:.0f} s", file=sys.stderr, flush=True)
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--covering", action="store_true", help="the subset of every test run")
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--shard", default="1/1", help="the i-th of n parts, as 1/2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    part, parts = map(int, options.shard.split("/"))
    cells = [cell for cell in (covering() if options.covering else all_cells()) if options.only in str(cell)]
    outcome = run_all(cells[part - 1 :: parts])
    for line in outcome["failed"]:
        print(line)
    print(
        f"cells run {sum(map(len, outcome.values()))}: "
        + ", ".join(f"{len(found)} {name}" for name, found in outcome.items())
    )
    return int(bool(outcome["failed"]))


if __name__ == "__main__":
    sys.exit(main())
