"""`videoprune plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from videoprune import console
from videoprune.commands.common import (
    Device,
    Dtype,
    End,
    Fps,
    FrameCount,
    Json,
    MaxFrames,
    Model,
    Quiet,
    RecipeName,
    Set,
    Start,
    frame_flags,
)
from videoprune.commands.plan_batch import plan_batch
from videoprune.console import Progress
from videoprune.errors import UsageError

if TYPE_CHECKING:
    from videoprune.fit import Fit
    from videoprune.plan import Plan


def plan(
    film: Annotated[
        str | None, typer.Argument(metavar="[FILM]", help="A video file; without one, give --frames.")
    ] = None,
    model: Model = None,
    recipe: RecipeName = None,
    set_: Set = None,
    fps: Fps = None,
    frames: FrameCount = None,
    max_frames: MaxFrames = None,
    start: Start = None,
    end: End = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    attn: Annotated[str, typer.Option("--attn", help="Attention kernel: sdpa, flash_attention_2, eager.")] = "sdpa",
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="Plan for a device with this much free, as 24GiB.")
    ] = None,
    question_tokens: Annotated[
        int, typer.Option("--question-tokens", help="Text of the prompt, template included.")
    ] = 64,
    new_tokens: Annotated[int, typer.Option("--new-tokens", help="Length of the answer.")] = 16,
    fit: Annotated[
        bool, typer.Option("--fit", help="Find the most frames, or for given frames the largest keep, that fits.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Of a checkpoint that is named, not a folder.")
    ] = None,
    batch: Annotated[bool, typer.Option("--batch", help="Plan for a folder of films, from a sample run.")] = False,
    sample: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="With --batch: the --out folder of the sample run.")
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option("--benchmark", "-b", help="With --batch: the folder's layout, for its questions.")
    ] = None,
    hours: Annotated[float | None, typer.Option("--hours", help="With --batch: in which it shall be done.")] = None,
    films: Annotated[
        int | None, typer.Option("--films", help="With --batch: as many films as this, like those of the folder.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what a run will cost before any weights are loaded: tokens, FLOPs, cache, peak memory, whether it fits.

    MODEL may be a folder with a config.json alone, or the name of a well-known checkpoint.

    \b
    Examples:
      videoprune plan film.mp4
      videoprune plan --model LongVA-7B --frames 128 --recipe aim-paper --memory 24GiB
      videoprune plan film.mp4 --model FOLDER --fit
      videoprune plan MLVU/ --batch -b mlvu --from runs/sample --hours 8
    """
    if batch:
        plan_batch(film, sample, benchmark, hours, films, json=json, quiet=quiet)
        return
    for flag, value in (("--from", sample), ("--benchmark", benchmark), ("--hours", hours), ("--films", films)):
        if value is not None:
            raise UsageError(f"{flag} belongs to --batch, which plans for a folder of films; give both")
    console.quiet_libraries(False)
    from videoprune.fit import command_line, fit_frames, fit_keep
    from videoprune.plan import PICTURE, Planner
    from videoprune.report.memory import parse_memory
    from videoprune.video import Film

    flags = {"fps": fps, "frames": frames, "max": max_frames, "start": start, "end": end}
    given = {key: value for key, value in flags.items() if value is not None}
    rule_of = frame_flags(**given)
    room = None if memory is None else parse_memory(memory)
    with Progress(quiet=quiet) as progress:
        progress("read shape", 0, None)
        planner = Planner.of(
            model, recipe, overrides=set_ or [], device=device, dtype=dtype, attn=attn, memory=room, revision=revision
        )
        rule, picture, most = rule_of(planner.recipe.frames), PICTURE, None
        if film is not None:
            with Film(film, rule) as opened:
                count, picture = len(opened), (opened.info.height, opened.info.width)
                most = _frames_in(opened)
        else:
            count = _frames_of(rule, fit)
        settings: dict[str, Any] = {"picture": picture, "question_tokens": question_tokens, "new_tokens": new_tokens}
        found: Fit | None = None
        if not fit:
            progress("rehearse", 0, None)
            result = planner.plan(count, **settings)
        else:
            chosen = [key for key in given if key in ("fps", "frames", "max")]
            tell = lambda tried: progress(f"try {tried}{' frames' if not chosen else ''}", 0, None)  # noqa: E731
            found = (
                fit_keep(planner, count, tell=tell, **settings)
                if chosen
                else fit_frames(planner, most, tell=tell, **settings)
            )
            result = found.plan
    words = [*_words("--model", model), *_words("--recipe", recipe)]
    for change in set_ or []:
        words += ["--set", change]
    for key, value in given.items():
        words += [f"--{'max-frames' if key == 'max' else key}", str(value)]
    words += [
        *(_words("--device", device) if device != "auto" else []),
        *(_words("--dtype", dtype) if dtype != "auto" else []),
    ]
    line = None if found is None else command_line(film, words, found)
    if json:
        data = {"film": film, **result.to_dict()}
        if found is not None:
            data["fit"] = {"changed": found.changed, "value": found.value, "limit": found.limit, "command": line}
        console.print_json(data)
        return
    print(_table(result))
    if found is not None:
        print(f"\nfit: {found.changed}{' = ' + found.value if found.value else ''}; {found.limit}\n  {line}")


def _words(flag: str, value: str | None) -> list[str]:
    return [] if value is None else [flag, value]


def _frames_of(rule: Any, fit: bool) -> int:
    """Frames of a plan without a film."""
    if rule.frames is not None:
        return min(rule.frames, rule.max or rule.frames)
    if fit:
        return 1
    raise UsageError("no film is given, so its length is unknown: give --frames N, or a film")


def _frames_in(film: Any) -> int:
    """Frames that the chosen part of a film has."""
    info, rule = film.info, film.rule
    length = min(rule.end or info.duration, info.duration) - (rule.start or 0)
    count = int(length * info.fps) if info.fps else len(film)
    return max(1, count if info.frames is None else min(count, info.frames))


def _table(plan: Plan) -> str:
    from videoprune.report.flops import Cost
    from videoprune.report.report import human_bytes, human_flops

    def span(pair: tuple[int, int], show: Any = lambda n: f"{n:,}") -> str:
        return show(pair[0]) if pair[0] == pair[1] else f"{show(pair[0])} – {show(pair[1])}"

    rows = [("model", plan.model, f"{plan.family}, {plan.dtype}"), ("recipe", plan.recipe, ", ".join(plan.overrides))]
    rows += [("frames", f"{plan.frames:,}", "")]
    names = {
        "sampled": "a dense run's",
        "encoded": "after the tower",
        "merged": "entering the LM",
        "last_layer": "at its last layer",
    }
    rows += [
        ("tokens" if n == 0 else "", span(plan.tokens[name]), what) for n, (name, what) in enumerate(names.items())
    ]
    rows += [("prompt", f"{plan.rows:,}", f"of {plan.context:,} rows{'' if plan.in_context else ': TOO LONG'}")]
    total = {**plan.flops, "total": sum(plan.flops.values(), Cost())}
    for number, (name, cost) in enumerate(total.items()):
        dense = plan.dense[name] if name in plan.dense else sum(plan.dense.values(), Cost())
        parts = f"linear {human_flops(cost.linear)}, attention {human_flops(cost.attention)}"
        split = f"{name}: {parts}; dense {human_flops(dense.total)}"
        rows.append(("FLOPs" if number == 0 else "", human_flops(cost.total), split))
    rows.append(("KV cache", span(plan.kv_bytes, human_bytes), f"dense {human_bytes(plan.dense_kv_bytes)}"))
    rows.append(("memory", human_bytes(plan.weight_bytes), "weights"))
    rows += [("", human_bytes(size), f"{phase}, beside the weights") for phase, size in plan.memory.phases.items()]
    free = "unknown" if plan.free_bytes is None else human_bytes(plan.free_bytes)
    where = "are given" if plan.device == "given" else f"free on {plan.device}"
    fits = {True: "fits", False: "DOES NOT FIT", None: "free memory is unknown"}[plan.fits]
    rows.append(("", human_bytes(plan.peak_bytes), f"peak, in {plan.memory.phase}; {free} {where}: {fits}"))
    text = console.columns(("WHAT", "", ""), rows)
    if len(plan.films) > 1:
        text += f"\nranges: counts depend on the film; rehearsed: {', '.join(plan.films)}"
    return text + "".join(f"\n{choice['name']}: {choice['value']} ({choice['reason']})" for choice in plan.choices)
