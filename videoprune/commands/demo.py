"""`videoprune demo` and `videoprune demo make`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from videoprune import console
from videoprune.commands.common import (
    Json,
    Quiet,
    RecipeName,
    Set,
    Verbose,
    answers_of,
    check_recipe,
    dense_of,
    load_pipeline,
)
from videoprune.console import Progress
from videoprune.errors import UsageError

app = typer.Typer(invoke_without_command=True)


@app.callback()
def demo(
    context: typer.Context,
    recipe: RecipeName = None,
    set_: Set = None,
    questions: Annotated[
        int, typer.Option("--questions", min=1, help="How many to ask, each of another kind first.")
    ] = 5,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Ask the demo film a few questions, dense next to pruned.

    \b
    Examples:
      videoprune demo
      videoprune demo --recipe sta-aim-metok --questions 8
      videoprune demo make --out film.mp4 --minutes 2 --seed 0
    """
    if context.invoked_subcommand is not None:
        return
    check_recipe(recipe, set_ or [], has_default=True)
    film, rows = console.demo_material(questions)
    console.quiet_libraries(verbose)
    with Progress(quiet=quiet) as progress:
        pipe = load_pipeline(progress, recipe, overrides=set_ or [])
        rule, asked = pipe.recipe.frames, [row["question"] for row in rows]
        pruned = answers_of(pipe, str(film), asked, rule, progress)[1]
        dense = answers_of(dense_of(pipe), str(film), asked, rule, progress)[1]
    if verbose:
        console.print_rich(pruned[0].report.table(pruned[0].evidence), stderr=True)
    pairs = [(row, one.to_dict(), other.to_dict()) for row, one, other in zip(rows, pruned, dense, strict=True)]
    if json:
        console.print_json(
            {
                "film": str(film),
                "scenes": "generated",
                "model": pipe.model_name,
                "recipe": pipe.recipe.name,
                "questions": [
                    {"question": row["question"], "expected": row.get("answer"), "pruned": one, "dense": other}
                    for row, one, other in pairs
                ],
            }
        )
        return
    table = [(row["question"], str(row.get("answer", "")), one["text"], other["text"]) for row, one, other in pairs]
    print(f"{film.name}: generated scenes, {pipe.model_name}\n")
    print(console.columns(("QUESTION", "EXPECTED", pipe.recipe.name.upper(), "DENSE"), table))
    print(
        "\n"
        + console.columns(("A QUESTION COSTS", pipe.recipe.name.upper(), "DENSE"), console.cost_rows(*pairs[0][1:]))
    )


@app.command("make")
def demo_make(
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="FILE|DIR", help="The film, its questions go beside it as FILE.json; or the folder."
        ),
    ],
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", help="How long; 2 where nothing is said. With --benchmark, of every film."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="The same seed makes the same film.")] = 0,
    benchmark: Annotated[
        str | None,
        typer.Option("--benchmark", metavar="NAME", help="A folder of films: mlvu, video-mme, longvideobench, folder."),
    ] = None,
    videos: Annotated[
        int, typer.Option("--videos", help="Films of a benchmark, of 3 to 60 minutes, mostly short.")
    ] = 60,
    workers: Annotated[int, typer.Option("--workers", help="Films of a benchmark drawn at a time.")] = 1,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a film of generated scenes with its questions beside it, or a whole benchmark of them.

    A benchmark that was stopped goes on with the same command; a minute of film takes about a second and 150 kB.

    \b
    Examples:
      videoprune demo make --out film.mp4 --minutes 3 --seed 7
      videoprune demo make --benchmark mlvu --videos 60 --out MLVU/ --workers 2
      videoprune demo make --benchmark folder --videos 5 --minutes 1 --out films/
    """
    from videoprune.demo.benchmark import MINUTES, make_benchmark
    from videoprune.demo.film import make_film

    made: dict[str, Any]
    try:
        with Progress(quiet=quiet) as progress:
            if benchmark is None:
                make_film(
                    out,
                    2.0 if minutes is None else minutes,
                    seed,
                    progress=lambda done, total: progress("make film", done, total),
                )
                made = {"film": str(out), "questions": str(out.with_suffix(".json"))}
            else:
                made = make_benchmark(
                    out,
                    benchmark,
                    videos,
                    seed,
                    minutes=MINUTES if minutes is None else (minutes, minutes),
                    workers=workers,
                    progress=lambda done, total: progress("make films", done, total),
                )
    except (ValueError, OSError) as error:
        raise UsageError(f"demo make: {error}") from error
    if json:
        console.print_json(made)
    elif benchmark is None:
        print(out)
    else:
        print(f"{out}: {made['videos']} films of generated scenes, {made['minutes']:.0f} minutes together")
        print(console.columns(("TASK", "QUESTIONS"), [(task, str(n)) for task, n in made["questions"].items()]))
