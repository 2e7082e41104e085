"""`videoprune bench accuracy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from videoprune import __version__, console
from videoprune.commands.common import Json, Quiet
from videoprune.console import Progress
from videoprune.errors import UsageError

SEEDS = 8_000_000  # as videoprune.bench.films.FIRST_SEED, which is not imported for --help


def accuracy(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Rows, table and plot; a run there is resumed.")],
    recipes: Annotated[
        str, typer.Option("--recipes", metavar="A,B,…", help="Recipes; random and uniform are baselines.")
    ] = "demo,random,uniform",
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods", metavar="STAGE[.NAME],…", help="Methods alone: merge.evs, or all of a stage: prefill."
        ),
    ] = None,
    budgets: Annotated[
        str, typer.Option("--budgets", metavar="own,0.15,…", help="A recipe's own, and shares of a dense run's tokens.")
    ] = "own,0.15",
    lengths: Annotated[str, typer.Option("--lengths", metavar="N,N,…", help="Frames of a film, one a second.")] = "64",
    films: Annotated[int, typer.Option("--films", min=1, help="Films of each length.")] = 100,
    each: Annotated[int, typer.Option("--each", min=1, help="Questions of a kind and film, at most.")] = 2,
    forms: Annotated[
        str, typer.Option("--forms", metavar="open,…", help="open, options (by likelihood), letters (generated).")
    ] = "open,options,letters",
    choices: Annotated[
        str, typer.Option("--choices", metavar="A,B,…", help="Settings that are asked in all forms, others open alone.")
    ] = "dense,demo,blind",
    kinds: Annotated[
        str | None,
        typer.Option("--kinds", metavar="A,B,…", help="Kinds of questions, such as order,count; all of them."),
    ] = None,
    first_seed: Annotated[
        int, typer.Option("--first-seed", help="Films are drawn from the seeds from here on.")
    ] = SEEDS,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 160,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes of one thread each.")] = 2,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="FOLDER", help="Another model in the demo model's language.")
    ] = None,
    keep_films: Annotated[bool, typer.Option("--keep-films", help="Leave the mp4 files in DIR/films.")] = False,
    no_plot: Annotated[bool, typer.Option("--no-plot", help="No picture; it needs matplotlib.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how many answers stay right on held-out generated films, next to dense, random, uniform and blind.

    Films are drawn, encoded to mp4 and decoded; each is asked the same questions under every setting. Writes rows.jsonl,
    accuracy.md, accuracy.json and accuracy.png into DIR.

    \b
    Examples:
      videoprune bench accuracy --out table --films 20
      videoprune bench accuracy --out DIR --recipes demo,aim-paper,random,uniform --lengths 64,128
      videoprune bench accuracy --out DIR --recipes random,uniform --methods merge,prefill.fastv --budgets 0.1
    """
    from videoprune.bench import accuracy as bench
    from videoprune.bench.accuracy_plot import plot
    from videoprune.bench.accuracy_table import as_markdown, summarise
    from videoprune.bench.settings import settings

    def listed(text: str | None) -> list[str]:
        return [part.strip() for part in (text or "").split(",") if part.strip()]

    frames = [_whole(part) for part in listed(lengths)]
    unknown = [form for form in listed(forms) if form not in bench.FORMS]
    if unknown:
        raise UsageError(f"--forms {unknown[0]}: allowed are {', '.join(bench.FORMS)}")

    strange = [kind for kind in listed(kinds) if kind not in bench.KINDS]
    if strange:
        raise UsageError(f"--kinds {strange[0]}: allowed are {', '.join(bench.KINDS)}")

    def of(length: int) -> list:  # type: ignore[type-arg]
        return settings(listed(recipes), listed(methods), listed(budgets), length * 16, max_new_tokens)

    of(frames[0])  # a bad name is told before the first film
    console.quiet_libraries(False)
    with Progress(quiet=quiet) as progress:
        rows = bench.run(
            of, out, lengths=frames, count=films, each=each, first_seed=first_seed, forms=listed(forms),
            choices=listed(choices), kinds=listed(kinds) or bench.KINDS, workers=workers, model=model,
            keep_films=keep_films, tell=progress,
        )  # fmt: skip
    records = summarise(rows, [setting.name for setting in of(frames[0])])
    command = (
        f"videoprune bench accuracy --out DIR --recipes {recipes}{f' --methods {methods}' if methods else ''} "
        f"--budgets {budgets} --lengths {lengths} --films {films} --each {each} --first-seed {first_seed} --workers {workers}"
        + (f" --kinds {kinds}" if kinds else "")
    )
    head = (
        f"# Accuracy on generated scenes\n\n`{command}`\n\nvideoprune {__version__}, {films} held-out films of each length, "
        f"seeds {first_seed} to {first_seed + films - 1}. Macro: mean over topic, anomaly, needle, colour, direction, order, "
        "after, before and count. Intervals: 95 %, bootstrap over films; differences are paired by question. "
        "`s` is wall time of one question with its film's watching, on a shared machine. "
        "`evidence`: share of the frames that prove an answer of which a token reaches the last layer."
    )
    page = as_markdown(records, head)
    (out / "accuracy.md").write_text(page, encoding="utf-8")
    (out / "accuracy.json").write_text(console.as_json(records) + "\n", encoding="utf-8")
    if not no_plot:
        plot(records, out / "accuracy.png")
    if json:
        console.print_json(records)
    else:
        print(page)


def _whole(text: str) -> int:
    if not text.isdecimal() or not 12 <= int(text) <= 86_400:
        raise UsageError(f"--lengths {text!r}: allowed are whole numbers of frames from 12 to 86400")
    return int(text)
