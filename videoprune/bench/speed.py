"""How fast a film is answered: dense next to recipes stage by stage, and what our layer loop and the selections cost in pairs."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from videoprune.answer import Progress, silent
from videoprune.bench.machine import describe
from videoprune.bench.pairs import Ratio, clock_of, interleaved
from videoprune.bench.replay import Recorded
from videoprune.bench.shapes import shaped_host
from videoprune.bench.stage_run import ask, run_stages, watch
from videoprune.demo.film import MINUTES_RANGE, make_film
from videoprune.errors import UsageError
from videoprune.models.host import Host
from videoprune.models.load import choose_device, choose_dtype
from videoprune.models.prompt import Prompt
from videoprune.models.session import Session
from videoprune.pipeline import Pipeline
from videoprune.recipe import Recipe
from videoprune.registry import STAGES, find

DENSE = "dense"
QUESTION = "What happens after the red circle appears?"
LOOP_BAR, CHOICE_BAR = 1.03, 1.05  # what the loop and the selections may cost
WARM_UP = 2  # frames of a run that nothing is noted of


def read_counts(text: str, flag: str) -> list[int]:
    """ "32,128" → [32, 128].

    Raises:
        UsageError: for what is no whole number of at least 1; nothing at all is an empty list.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if any(not part.isdecimal() or int(part) < 1 for part in parts):
        raise UsageError(f"{flag} {text!r}: allowed are whole numbers of at least 1, as in 32,128")
    return [int(part) for part in parts]


def read_recipe(text: str, new_tokens: int) -> Recipe:
    """A recipe by name or file, or one method alone as STAGE.NAME, with changes behind plus signs.

    "metok-release", "prefill.fastv", "metok-release+merge.key_frames=20+merge.at_most=16384".

    Raises:
        UsageError: a name or a change that does not exist.
    """
    name, *changes = text.split("+")
    stage, _, method = name.partition(".")
    if stage in STAGES and method and not Path(name).is_file():
        entry = find(stage, method)
        data: dict[str, Any] = {stage: {"method": method}}
        if stage != "segment" and (entry.scope == "event" or method in ("metok", "prunevid")):
            data["segment"] = {"method": "metok"}
        recipe = Recipe.load(data, changes)
    else:
        recipe = Recipe.load(name, changes)
    return dataclasses.replace(recipe, name=text, max_new_tokens=new_tokens)


def measure(
    shape: str,
    *,
    recipes: Sequence[str],
    frames: Sequence[int],
    pair_frames: Sequence[int] = (),
    pairs: int = 21,
    width: int = 512,
    layers: int = 28,
    new_tokens: int = 8,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    film: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    so_far: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Measure one model.

    Args:
        shape: one of `shapes.SHAPES`.
        recipes: as `read_recipe` takes them; dense is always there, first.
        frames: numbers of frames that the stages are measured at.
        pair_frames: numbers of frames that pairs are run at, `pairs` of each kind.
        width, layers: of the random models.
        new_tokens: length of the answer in the stages.
        threads: of torch; None leaves its own.
        film: to watch; a generated one of a frame a second is drawn otherwise.
        progress: called with (stage, done, total).
        so_far: called with the result after every row.

    Raises:
        UsageError: a shape, size, recipe or number that is not allowed.
    """
    if pairs < 1 and pair_frames:
        raise UsageError(
            f"--pairs {pairs}: allowed is a whole number of at least 1; leave --pair-frames empty for none"
        )
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads}: allowed is a whole number of at least 1")
    tell = progress or silent
    named = [read_recipe(DENSE, new_tokens), *(read_recipe(each, new_tokens) for each in recipes if each != DENSE)]
    for recipe in named:
        recipe.build()  # a bad option is told before a model is built
    place, kind = choose_device(device)[0], choose_dtype(dtype, choose_device(device)[0])[0]
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        tell("build model", 0, None)
        host = shaped_host(shape, width, layers, place, kind)
        pipes = [Pipeline(host, recipe) for recipe in named]
        shown = host.decoder_shape
        result: dict[str, Any] = {
            "machine": {
                **describe(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
                "transformers": transformers.__version__, "device": _device_name(place), "dtype": str(kind)[6:],
                "clock": "process CPU time" if place.type == "cpu" else "wall time, device done",
            },
            "model": {"shape": shape, **dataclasses.asdict(shown)},
            "runs": [],
            "pairs": [],
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            path = film or _film(Path(folder), max([*frames, *pair_frames, WARM_UP]), tell)
            run_stages(pipes[0], path, WARM_UP, QUESTION, new_tokens)
            for count in frames:
                for pipe in pipes:
                    tell(f"{count} frames, {pipe.recipe.name}", 0, None)
                    result["runs"].append(run_stages(pipe, path, count, QUESTION, new_tokens).to_dict())
                    if so_far is not None:
                        so_far(result)
            for count in pair_frames:
                for pipe in pipes:
                    for row in pair_rows(pipe, path, count, pairs, tell):
                        result["pairs"].append(row)
                        if so_far is not None:
                            so_far(result)
    finally:
        torch.set_num_threads(before)
    return result


def pair_rows(pipe: Pipeline, film: str | os.PathLike[str], frames: int, pairs: int, tell: Progress) -> Any:
    """Yield the rows of one recipe: dense against stock `generate()`, others against the loop that is given the indices."""
    host = pipe.host
    asked = ask(pipe, watch(pipe, film, frames), QUESTION)
    clock, prompt = clock_of(host.device), asked.prompt
    entered = {"recipe": pipe.recipe.name, "frames": frames, "rows": prompt.embeddings.shape[1]}

    def row(what: str, bar: float, ours: Callable[[], object], theirs: Callable[[], object]) -> dict[str, Any]:
        name = f"{frames} frames, {pipe.recipe.name}: {what}"
        ratio = interleaved(ours, theirs, pairs, clock, lambda done: tell(name, done, pairs))
        return {"what": what, **entered, **ratio.to_dict(), "bar": bar, "verdict": verdict(ratio, bar)}

    def fresh(prefill: bool, decode: bool) -> Session:
        session = asked.session()
        session.prefill = session.prefill if prefill else ()
        session.decode = session.decode if decode else ()
        return session

    if not asked.session().prefill and not asked.session().decode:
        if pipe.recipe.name == DENSE:
            run = lambda: host.generate(prompt, fresh(False, False), 1)  # noqa: E731
            yield row("loop / stock generate()", LOOP_BAR, run, lambda: stock_prefill(host, prompt))
        return
    for what, decode in (("prefill / given the indices", False), ("prefill and eviction / given the indices", True)):
        if decode and not asked.session().decode:
            continue
        if not decode and not asked.session().prefill:
            continue
        recording = fresh(True, decode)
        recorded = Recorded(recording)
        host.generate(prompt, recording, 1)
        yield row(
            what, CHOICE_BAR,
            lambda decode=decode: host.generate(prompt, fresh(True, decode), 1),  # type: ignore[misc]
            lambda recorded=recorded: host.generate(prompt, recorded.session(), 1),  # type: ignore[misc]
        )  # fmt: skip


def verdict(ratio: Ratio, bar: float) -> str:
    """ "meets": the median and its whole interval are at most the bar; "median meets"; "misses"."""
    if ratio.median > bar:
        return "misses"
    return "meets" if ratio.high is not None and ratio.high <= bar else "median meets"


@torch.no_grad()
def stock_prefill(host: Host, prompt: Prompt) -> object:
    """The first token of the untouched stock model."""
    return host.model.generate(
        inputs_embeds=prompt.embeddings,
        attention_mask=torch.ones(prompt.embeddings.shape[:2], dtype=torch.int64, device=host.device),
        position_ids=prompt.position_ids,
        max_new_tokens=1,
        do_sample=False,
        num_beams=1,
        return_dict_in_generate=True,
    )


def _film(folder: Path, frames: int, tell: Progress) -> Path:
    """A generated film of so many seconds."""
    minutes = max(MINUTES_RANGE[0], frames / 60)
    made = make_film(folder / "film.mp4", minutes, 0, progress=lambda done, total: tell("draw film", done, total))
    return Path(made["film"])


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
