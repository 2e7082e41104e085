"""Flags that commands share, and the few steps that they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from videoprune.console import Progress
from videoprune.errors import UsageError
from videoprune.identity import WATCHED

if TYPE_CHECKING:
    from videoprune.pipeline import Pipeline, Video
    from videoprune.video import FrameRule

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; errors too.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Report and automatic choices on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Model = Annotated[
    str | None, typer.Option("--model", "-m", metavar="NAME|FOLDER", help="Checkpoint; else the demo model.")
]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", "-r", metavar="NAME|FILE", help="See `videoprune recipes`.")
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As prefill.keep=0.25; repeatable.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16, float16.")]
Fps = Annotated[float | None, typer.Option("--fps", help="Frames per second of film.")]
FrameCount = Annotated[int | None, typer.Option("--frames", help="This many frames, evenly spread.")]
MaxFrames = Annotated[int | None, typer.Option("--max-frames", help="The most frames that --fps may give.")]
Start = Annotated[float | None, typer.Option("--start", help="Second to start at.")]
End = Annotated[float | None, typer.Option("--end", help="Second to stop at.")]
FrameFit = Annotated[
    Literal["crop", "pad", "squeeze"] | None,
    typer.Option("--frame-fit", help="How a frame that is not square is fitted; else as the model was trained."),
]
DeviceMap = Annotated[
    str | None, typer.Option("--device-map", help="auto: weights without room on the device wait in main memory.")
]
Quantize = Annotated[str | None, typer.Option("--quantize", help="4bit or 8bit; needs videoprune[quantize].")]
Seed = Annotated[int, typer.Option("--seed", help="For methods that draw.")]


def answers_of(
    pipe: Pipeline, film: str, asked: Sequence[str], rule: FrameRule, progress: Progress
) -> tuple[Video, list[Any]]:
    video = pipe.open(film) if film.endswith(WATCHED) else pipe.watch(film, frames=rule, progress=progress)
    return video, video.ask_all(asked, progress=progress)


def dense_of(pipe: Pipeline) -> Pipeline:
    """The same model, nothing pruned, answers as long."""
    from videoprune.recipe import Recipe

    return pipe.with_recipe(dataclasses.replace(Recipe.load("dense"), max_new_tokens=pipe.recipe.max_new_tokens))


def load_pipeline(progress: Progress, recipe: Any, **settings: Any) -> Pipeline:
    progress("load model", 0, None)
    from videoprune.pipeline import Pipeline

    return Pipeline.load(recipe, **settings)


def watched_with(film: str, model: str | None, recipe: str | None, refused: Sequence[str]) -> tuple[str | None, Any]:
    """The model and the recipe of a watched film, where none are asked for; flags that it leaves no choice in are refused."""
    from videoprune.saved import read_about

    about = read_about(film)
    if refused:
        flag = f"--{refused[0].replace('max', 'max-frames')}"
        raise UsageError(
            f"{flag}: {film} is a watched film, its frames were chosen and encoded when it was; give the film itself"
        )
    own = about["model"]["name"]
    return model or (None if own == "demo" else own), recipe or about["recipe"]


def check_recipe(recipe: Any, overrides: Sequence[str], *, has_default: bool) -> None:
    """Build the recipe once before any work; where none is named, a model other than the demo's brings its own."""
    from videoprune.recipe import Recipe

    if recipe is not None or has_default:
        Recipe.load(recipe or "demo", overrides).build()


def frame_flags(**flags: Any) -> Any:
    """Check the flags by themselves; the result puts them over a recipe's rule (fps and frames replace each other).

    A flag of None was not given.
    """
    from videoprune.video import FrameRule

    given = {key: value for key, value in flags.items() if value is not None}
    try:
        FrameRule(**given)
    except UsageError as error:
        typed = " ".join(f"--{'max-frames' if key == 'max' else key} {value}" for key, value in given.items())
        raise UsageError(f"{typed}: {error}") from None
    rivals: dict[str, Any] = {"fps": None} if "frames" in given else {"frames": None} if "fps" in given else {}
    return lambda rule: dataclasses.replace(rule, **rivals, **given)
