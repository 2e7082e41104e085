"""`videoprune demo` and `videoprune demo make`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
        Path, typer.Option("--out", metavar="FILE", help="The film; its questions go beside it as FILE.json.")
    ],
    minutes: Annotated[float, typer.Option("--minutes", help="How long.")] = 2.0,
    seed: Annotated[int, typer.Option("--seed", help="The same seed makes the same film.")] = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a film of generated scenes with its questions beside it.

    \b
    Example:
      videoprune demo make --out film.mp4 --minutes 3 --seed 7
    """
    from videoprune.demo.film import make_film

    try:
        with Progress(quiet=quiet) as progress:
            make_film(out, minutes, seed, progress=lambda done, total: progress("make film", done, total))
    except (ValueError, OSError) as error:
        raise UsageError(f"demo make: {error}") from error
    if json:
        console.print_json({"film": str(out), "questions": str(out.with_suffix(".json"))})
    else:
        print(out)
