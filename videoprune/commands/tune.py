"""`videoprune tune`."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from videoprune import console
from videoprune.commands.common import Device, Dtype, Json, Model, Quiet, Seed, Set, load_pipeline
from videoprune.console import Progress
from videoprune.errors import UsageError


def tune(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name or file of the recipe to start from.")],
    films: Annotated[list[str], typer.Option("--films", metavar="FILM", help="A film to measure on; repeatable.")],
    questions: Annotated[
        list[str] | None,
        typer.Option("--question", metavar="TEXT", help="Asked of every film; else those in FILM's .json beside it."),
    ] = None,
    model: Model = None,
    set_: Set = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", min=0, max=1, help="Most that the mean share of tokens over layers may be."),
    ] = None,
    at_most: Annotated[
        int | None, typer.Option("--at-most", min=1, help="Most visual tokens that enter the language model.")
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search", metavar="KEY=LOW:HIGH", help="As merge.keep=0.1:0.6; repeatable. Else declared bounds."
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option("--trials", min=1, help="Settings to try, earlier ones of the study included.")
    ] = 50,
    per_film: Annotated[int, typer.Option("--per-film", min=1, help="Questions taken from a film's .json.")] = 4,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where the recipe goes; else stdout.")
    ] = None,
    study: Annotated[
        Path | None, typer.Option("--study", metavar="FILE", help="Keeps the trials; the same command goes on from it.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search a recipe's numbers so that the model's final state changes least against dense.

    Needs optuna: pip install 'videoprune[tune]'. Without --budget the mean share of tokens of the recipe as given is held.

    \b
    Examples:
      videoprune tune demo --films film.mp4 --trials 30 --out mine.yaml
      videoprune tune aim-paper --model FOLDER --films a.mp4 --films b.mp4 --budget 0.2 --study aim.journal --out aim-20.yaml
      videoprune tune demo --films film.mp4 --search merge.keep=0.1:0.6 --search prefill.keep=0.2:0.9
    """
    from videoprune.recipe import Recipe
    from videoprune.search import dials
    from videoprune.tune import require_optuna, tune

    given = Recipe.load(recipe, set_ or [])
    dials(given, search or [])
    require_optuna()
    asks = [(film, question) for film in films for question in questions or _questions(film, per_film)]
    if out is not None and not out.absolute().parent.is_dir():
        raise UsageError(f"--out: {out} is given, and its folder does not exist: make it first")
    console.quiet_libraries(False)
    with Progress(quiet=quiet) as progress:
        pipe = load_pipeline(progress, given, model=model, device=device, dtype=dtype, seed=seed)
        tuned = tune(
            pipe, given, asks, trials=trials, budget=budget, at_most=at_most, search=search or [], study=study, seed=seed,
            tell=progress,
        )  # fmt: skip
    best, start = tuned.best, tuned.start
    text = (
        f"# videoprune tune {given.name}: cosine of final states {best.cosine:.4f} at a mean share of {best.share:.3f}\n"
        f"# (as given: {start.cosine:.4f} at {start.share:.3f}); {len(asks)} questions, {tuned.trials} trials, "
        f"{pipe.model_name}\n" + tuned.recipe.to_yaml()
    )
    if out is not None:
        try:
            out.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--out: {out} can't be written: {error.strerror}") from None
    if json:
        console.print_json(
            {
                "recipe": tuned.recipe.to_dict(),
                "best": vars(best),
                "start": vars(start),
                "trials": tuned.trials,
                "within": tuned.within,
            }
        )
    elif out is None:
        print(text, end="")
    else:
        print(
            f"{out}: cosine {best.cosine:.4f}, mean share {best.share:.3f}, at most {best.entering} tokens enter; "
            f"as given {start.cosine:.4f}, {start.share:.3f}, {start.entering}; "
            f"{tuned.within} of {tuned.trials} trials in the budget"
        )


def _questions(film: str, count: int) -> list[str]:
    """The first questions of the MLVU rows beside a film."""
    beside = Path(film).with_suffix(".json")
    try:
        rows = jsonlib.loads(beside.read_text(encoding="utf-8"))
        found = [str(row["question"]) for row in rows][:count]
    except (OSError, ValueError, TypeError, KeyError):
        found = []
    if not found:
        raise UsageError(
            f"--question: none is given, and {beside} holds none; give --question, like 'what happens first?'"
        )
    return found
