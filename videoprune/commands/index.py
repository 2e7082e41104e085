"""`videoprune index`: watch a film once and keep what was seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    Verbose,
    check_recipe,
    frame_flags,
    load_pipeline,
)
from videoprune.console import Progress


def index(
    film: Annotated[str, typer.Argument(metavar="FILM", help="A video file.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.vpz", help="Where to; FILM with ending .vpz where absent.")
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
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Watch a film once and write movie.vpz; `videoprune ask movie.vpz "…"` then answers without decoding or encoding.

    \b
    Examples:
      videoprune index film.mp4
      videoprune index film.mp4 --recipe aim-paper --out seen.vpz
      videoprune ask film.vpz "what happens first?"
    """
    from videoprune.identity import WATCHED
    from videoprune.video import Film, FrameRule

    rule_of = frame_flags(fps=fps, frames=frames, max=max_frames, start=start, end=end)
    Film(film, rule_of(FrameRule())).close()
    check_recipe(recipe, set_ or [], has_default=model is None)
    console.quiet_libraries(verbose)
    with Progress(quiet=quiet) as progress:
        pipe = load_pipeline(progress, recipe, model=model, overrides=set_ or [], device=device, dtype=dtype)
        video = pipe.watch(film, frames=rule_of(pipe.recipe.frames), progress=progress)
        target = video.save(out or Path(film).with_suffix(WATCHED))
    for warning in video.warnings:
        console.say(f"warning: {warning}")
    if json:
        console.print_json(
            {
                "film": video.film,
                "saved": str(target),
                "bytes": target.stat().st_size,
                "model": pipe.model_name,
                "recipe": pipe.recipe.name,
                "tokens": {"sampled": len(video.tokens.owner), "stored": video.tokens.count},
                "watch": {"seconds": video.seconds, "flops": video.flops},
            }
        )
    else:
        print(target)
