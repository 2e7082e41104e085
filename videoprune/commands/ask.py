"""`videoprune ask`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from videoprune import console
from videoprune.commands.common import (
    Device,
    DeviceMap,
    Dtype,
    End,
    Fps,
    FrameCount,
    FrameFit,
    Json,
    MaxFrames,
    Model,
    Quantize,
    Quiet,
    RecipeName,
    Seed,
    Set,
    Start,
    Verbose,
    answers_of,
    check_recipe,
    dense_of,
    frame_flags,
    load_pipeline,
    watched_with,
)
from videoprune.console import Progress


def ask(
    film: Annotated[str, typer.Argument(metavar="FILM", help="A video file, or a film.vpz that `index` wrote.")],
    questions: Annotated[
        list[str] | None, typer.Argument(metavar="QUESTION", help="Questions; `-` reads them from stdin, one a line.")
    ] = None,
    model: Model = None,
    recipe: RecipeName = None,
    set_: Set = None,
    fps: Fps = None,
    frames: FrameCount = None,
    max_frames: MaxFrames = None,
    start: Start = None,
    end: End = None,
    decoder: Annotated[
        Literal["auto", "pyav", "decord", "torchcodec"], typer.Option("--decoder", help="Who decodes.")
    ] = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    quantize: Quantize = None,
    attn: Annotated[str, typer.Option("--attn", help="Attention kernel: sdpa, flash_attention_2, eager.")] = "sdpa",
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Of a checkpoint that is named, not a folder.")
    ] = None,
    frame_fit: FrameFit = None,
    seed: Seed = 0,
    compare: Annotated[bool, typer.Option("--compare", help="Answer the same dense, side by side.")] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE.html", help="Write a page of what was kept, spent and answered."),
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Answer questions about a film. Several questions share one encoding.

    \b
    Examples:
      videoprune ask film.mp4 "what happens after the red circle?"
      videoprune ask film.mp4 "who wins?" "how many goals?" --fps 2
      videoprune ask film.mp4 "who wins?" --model FOLDER --compare
      videoprune index film.mp4 && videoprune ask film.vpz "who wins?"
      videoprune ask film.mp4 "who wins?" --compare --report page.html
      cat questions.txt | videoprune ask film.mp4 --json
    """
    # all that can be wrong without the model is found before the model is loaded
    from videoprune.identity import WATCHED
    from videoprune.video import Film, FrameRule

    asked = console.read_questions(questions or [])
    flags = {"fps": fps, "frames": frames, "max": max_frames, "start": start, "end": end}
    rule_of = frame_flags(**flags)
    chosen: Any = recipe
    if film.endswith(WATCHED):
        model, chosen = watched_with(
            film,
            model,
            recipe,
            [*(k for k, v in flags.items() if v is not None), *["frame-fit"] * bool(frame_fit), *["compare"] * compare],
        )
    else:
        Film(film, rule_of(FrameRule()), decoder=decoder).close()
    check_recipe(chosen, set_ or [], has_default=model is None)
    console.quiet_libraries(verbose)
    with Progress(quiet=quiet) as progress:
        pipe = load_pipeline(
            progress, chosen, model=model, overrides=set_ or [], device=device, dtype=dtype, attn=attn, decoder=decoder,
            seed=seed, revision=revision, device_map=device_map, quantize=quantize, max_new_tokens=max_new_tokens,
            frame_fit=frame_fit,
        )  # fmt: skip
        rule = rule_of(pipe.recipe.frames)
        from videoprune.report.gather import result, write_page

        video, answers = answers_of(pipe, film, asked, rule, progress)
        dense = answers_of(dense_of(pipe), film, asked, rule, progress)[1] if compare else []
        if report is not None:
            progress("report", 0, None)
            write_page(report, video, answers, dense)
    for warning in video.warnings:
        console.say(f"warning: {warning}")
    for notice in dict.fromkeys(answer.notice for answer in answers if answer.notice):
        console.say(f"note: {notice}")
    if json:
        console.print_json(result(video, answers, dense))
    for number, answer in enumerate(answers):
        if verbose:
            console.print_rich(answer.report.table(answer.evidence), stderr=True)
        if json:
            continue
        if compare:
            console.print_rich(
                console.comparison(asked[number], answer.to_dict(), dense[number].to_dict(), pipe.recipe.name)
            )
            continue
        if len(asked) > 1 and not quiet:
            console.say(asked[number])
        print(answer.text, flush=True)
