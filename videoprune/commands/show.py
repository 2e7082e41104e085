"""`videoprune show`: which tokens of a film are kept, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from videoprune import console
from videoprune.commands.common import (
    Fps,
    MaxFrames,
    Model,
    Quiet,
    RecipeName,
    Set,
    check_recipe,
    frame_flags,
    load_pipeline,
)
from videoprune.console import Progress
from videoprune.errors import UsageError


def show(
    film: Annotated[str, typer.Argument(metavar="FILM", help="A video file.")],
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="Show what reaches the last layer for this question.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.png", help="Where to.")] = Path("kept.png"),
    recipe: RecipeName = None,
    set_: Set = None,
    model: Model = None,
    shown: Annotated[int, typer.Option("--shown", min=1, max=400, help="Frames in the picture, evenly spread.")] = 24,
    columns: Annotated[int, typer.Option("--columns", min=1, max=40, help="Frames in a row.")] = 8,
    fps: Fps = None,
    max_frames: MaxFrames = None,
    quiet: Quiet = False,
) -> None:
    """Draw a strip of frames: lit cells go on to the language model, half-lit ones live on in another, dark ones are dropped.

    \b
    Examples:
      videoprune show film.mp4 --out kept.png
      videoprune show film.mp4 "what happens first?" --recipe metok-release --shown 48
    """
    from videoprune.video import Film, FrameRule

    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UsageError(f"--out {out}: allowed are names that end in .png, .jpg or .webp")
    rule_of = frame_flags(fps=fps, max=max_frames)
    Film(film, rule_of(FrameRule())).close()
    check_recipe(recipe, set_ or [], has_default=model is None)
    console.quiet_libraries(False)
    with Progress(quiet=quiet) as progress:
        pipe = load_pipeline(progress, recipe, model=model, overrides=set_ or [])
        video = pipe.watch(film, frames=rule_of(pipe.recipe.frames), progress=progress)
        from videoprune.report.gather import kept_picture

        picture = kept_picture(video, video.ask(question) if question else None, shown, columns)
    try:
        picture.save(out)
    except OSError as error:
        raise UsageError(
            f"--out {out}: can't be written ({error.strerror or error}); give a folder that is there"
        ) from error
    print(out)
