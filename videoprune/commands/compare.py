"""`videoprune compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from videoprune import console
from videoprune.commands.common import Json


def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN…", help="Results folders; the first is compared with.")
    ],
    protocol: Annotated[
        str | None, typer.Option("--protocol", "-p", metavar="NAME", help="Who reads the answers; else the runs' own.")
    ] = None,
    common: Annotated[bool, typer.Option("--common", help="Compare on the questions that all runs have.")] = False,
    budget: Annotated[
        Literal["flops", "tokens", "last_layer", "seconds"],
        typer.Option("--budget", help="What accuracy is set against."),
    ] = "flops",
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw accuracy against budget: .png, .pdf, .svg.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the bootstrap.")] = 0,
    json: Json = False,
) -> None:
    """Compare runs on the same questions: paired differences with 95 % intervals, McNemar's test, accuracy against budget.

    \b
    Examples:
      videoprune compare runs/dense runs/metok
      videoprune compare runs/* --budget tokens --plot pareto.png
      videoprune compare runs/dense runs/half-done --common
    """
    from videoprune.evaluate import compare as comparing
    from videoprune.evaluate import show

    result = comparing.compare(folders, protocol_name=protocol, common=common, budget=budget, seed=seed)
    if plot is not None:
        comparing.plot(result, plot)
        console.say(f"written: {plot}")
    if json:
        console.print_json(result)
    else:
        print(show.compare_text(result))
