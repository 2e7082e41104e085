"""`videoprune batch`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from videoprune import console
from videoprune.commands.common import (
    Device,
    Dtype,
    Fps,
    FrameCount,
    Json,
    MaxFrames,
    Model,
    Quiet,
    RecipeName,
    Seed,
    Set,
    frame_flags,
)
from videoprune.console import Progress


def batch(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The benchmark's folder.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Results go here; a run that was stopped goes on there.")
    ],
    benchmark: Annotated[
        str,
        typer.Option("--benchmark", "-b", metavar="NAME", help="mlvu, mlvu-test, video-mme, longvideobench, folder."),
    ] = "mlvu",
    recipe: RecipeName = None,
    recipes: Annotated[
        str | None, typer.Option("--recipes", metavar="A,B,C", help="Several over one decoding, a folder each in DIR.")
    ] = None,
    set_: Set = None,
    protocol: Annotated[
        str | None, typer.Option("--protocol", metavar="NAME", help="How to ask and judge; else the benchmark's own.")
    ] = None,
    model: Model = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Of a checkpoint that is named, not a folder.")
    ] = None,
    fps: Fps = None,
    frames: FrameCount = None,
    max_frames: MaxFrames = None,
    decoder: Annotated[
        Literal["auto", "pyav", "decord", "torchcodec"], typer.Option("--decoder", help="Who decodes.")
    ] = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    attn: Annotated[str, typer.Option("--attn", help="Attention kernel: sdpa, flash_attention_2, eager.")] = "sdpa",
    seed: Seed = 0,
    workers: Annotated[int, typer.Option("--workers", "-w", help="Models that work at a time.")] = 1,
    engine: Annotated[
        Literal["local", "ray"], typer.Option("--engine", help="Processes of this machine, or Ray Data's cluster.")
    ] = "local",
    shard: Annotated[str, typer.Option("--shard", metavar="I/N", help="Only every N-th film, from the I-th.")] = "1/1",
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", help="Only the first N films.")] = None,
    retry_errors: Annotated[bool, typer.Option("--retry-errors", help="Do again what has only an error row.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="That a film may take.")] = 3600.0,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Also write the rows as .csv or .parquet.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer a benchmark's questions, film by film, and score them. The same command goes on where a stopped run was.

    \b
    Examples:
      videoprune batch MLVU/ --recipe demo --protocol likelihood --out runs/demo
      videoprune batch MLVU/ --model FOLDER --recipes dense,metok-paper --workers 2 --out runs/two
      videoprune batch Video-MME/ -b video-mme --model FOLDER --shard 1/4 --out runs/mme
      videoprune batch films/ -b folder --limit 3 --timeout 600 --out runs/try --export rows.csv
    """
    from videoprune.errors import UsageError
    from videoprune.evaluate.batch import Batch, run_batch
    from videoprune.evaluate.jobs import read_shard
    from videoprune.evaluate.live import Live
    from videoprune.evaluate.report import outcome_json, print_outcome
    from videoprune.evaluate.rows import check_export
    from videoprune.evaluate.rows import export as write_table

    if recipe is not None and recipes is not None:
        raise UsageError("--recipe and --recipes exclude each other; give one of them")
    names: tuple[Any, ...] = (recipe,)
    if recipes is not None:
        names = tuple(name.strip() for name in recipes.split(",") if name.strip())
        if not names:
            raise UsageError(f"--recipes {recipes!r}: names with commas between them are allowed, as dense,demo")
    if export is not None:
        check_export(export)
    asked = Batch(
        benchmark=benchmark,
        path=path,
        out=out,
        recipes=names,
        overrides=tuple(set_ or []),
        protocol=protocol,
        rule=frame_flags(fps=fps, frames=frames, max=max_frames),
        model=model,
        revision=revision,
        device=device,
        dtype=dtype,
        attn=attn,
        decoder=decoder,
        seed=seed,
        workers=workers,
        engine=engine,
        shard=read_shard(shard),
        limit=limit,
        retry_errors=retry_errors,
        timeout=timeout,
    )
    with ExitStack() as bars:
        progress = bars.enter_context(Progress(quiet=quiet))

        def display(results: Any, total: int) -> Live:
            bars.close()  # one live display at a time
            return Live(results, total, quiet=quiet)

        try:
            outcome = run_batch(asked, say=console.say, progress=progress, display=display)
        except KeyboardInterrupt:
            console.say(f"stopped; what was answered is in {out}, and the same command goes on from there")
            raise
    if export is not None:
        write_table([row for rows in outcome.rows.values() for row in rows], export)
    if json:
        console.print_json(outcome_json(outcome))
    else:
        print_outcome(outcome)
    if outcome.errors:
        films = sum(row["question"] is None for row in outcome.errors)
        console.say(
            f"{films} films and {len(outcome.errors) - films} questions ended in error rows; --retry-errors does them again"
        )
        raise typer.Exit(1)
