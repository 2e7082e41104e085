"""`videoprune score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from videoprune import console
from videoprune.commands.common import Json, Quiet
from videoprune.console import Progress


def score(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The --out folder of a `videoprune batch` run.")],
    protocol: Annotated[
        str | None, typer.Option("--protocol", "-p", metavar="NAME", help="Who reads the answers; else the run's own.")
    ] = None,
    by: Annotated[
        str, typer.Option("--by", metavar="NAMES", help="task, duration, or the data's own, as domain.")
    ] = "task",
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the lines as CSV.")] = None,
    parquet: Annotated[
        Path | None, typer.Option("--parquet", metavar="FILE", help="Write the lines as Parquet.")
    ] = None,
    official: Annotated[
        Path | None, typer.Option("--official", metavar="DIR", help="Write the benchmark's own prediction files.")
    ] = None,
    judge: Annotated[
        Literal["events", "endpoint", "local"] | None,
        typer.Option(
            "--judge", help="Who judges answers in sentences: event F1, an OpenAI-compatible endpoint, a local model."
        ),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option("--judge-model", metavar="NAME|FOLDER", help="The judge's model.")
    ] = None,
    judge_url: Annotated[
        str, typer.Option("--judge-url", metavar="URL", help="The endpoint; its key is in VIDEOPRUNE_JUDGE_KEY.")
    ] = "https://api.openai.com/v1",
    rubric: Annotated[
        Path | None, typer.Option("--rubric", metavar="FILE", help="What the judge is told, in place of ours.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the bootstrap.")] = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a batch by any protocol, with 95 % intervals. Errors count as wrong and are listed.

    \b
    Examples:
      videoprune score runs/metok
      videoprune score runs/metok --protocol mlvu-lmms-eval --by task,duration
      videoprune score runs/metok --judge endpoint --judge-model gpt-4-turbo
      videoprune score runs/metok --official submission
    """
    from videoprune.evaluate import judge as judges
    from videoprune.evaluate import show
    from videoprune.evaluate.score import chosen_protocol, load_run, score, verdicts
    from videoprune.evaluate.submit import write_official

    made = judges.of(judge, judge_model, judge_url, rubric)
    for path in (csv, parquet):
        show.check_table(path)
    names = [name.strip() for name in by.split(",") if name.strip()]
    result = score(folder, protocol_name=protocol, by=names, seed=seed)
    if made is not None:
        run = load_run(folder)
        with Progress(quiet=quiet) as progress:
            found = judges.judged(
                verdicts(run.rows, chosen_protocol(run, protocol)),
                made,
                folder / judges.JUDGEMENTS,
                lambda done, total: progress("judge", done, total),
            )
        result["judged"] = judges.summary_of(found, made, seed=seed)
    for path in (csv, parquet):
        if path is not None:
            show.write_table(result, path)
    written: list[Path] = []
    if official is not None:
        run = load_run(folder)
        written = write_official(run, chosen_protocol(run, protocol), official)
        result["official"] = [str(path) for path in written]
    for path in written:
        console.say(f"written: {path}")
    _print(result, json, show.score_text(result))


def _print(result: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        console.print_json(result)
    else:
        print(text)
