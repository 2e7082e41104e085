"""`videoprune bench`: measurements of this package on this machine, one command a kind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from videoprune import console
from videoprune.commands import bench_accuracy, bench_speed
from videoprune.commands.common import Json, Quiet
from videoprune.console import Progress

app = typer.Typer(no_args_is_help=True, help="Measure this package on this machine.")
app.command("accuracy")(bench_accuracy.accuracy)
app.command("speed")(bench_speed.speed)


@app.command("ops")
def bench_ops(
    tokens: Annotated[
        str, typer.Option("--tokens", metavar="N,N,…", help="Numbers of tokens, each its own row.")
    ] = "1568,6272,18432,50000",
    width: Annotated[int, typer.Option("--width", min=64, help="Of a token; a multiple of 64.")] = 896,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Cases whose name contains this; repeatable."),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="CPU time that one row is repeated for.")] = 3.0,
    longest: Annotated[
        float, typer.Option("--longest", min=0, help="Leave out what would run longer than this in CPU seconds.")
    ] = 300.0,
    threads: Annotated[
        int, typer.Option("--threads", min=1, help="Threads of torch; 1 gives the steadiest times.")
    ] = 1,
    json: Json = False,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write the table as a page, too.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Time every primitive and every method's selection next to a plain torch transcription of its paper.

    The transcriptions stand in benchmarks/reference of a source checkout; they are not installed. Ours and theirs run
    in turn, times are process CPU time, and each row says what share of the machine's measured speed it reached.

    \b
    Examples:
      videoprune bench ops --tokens 1568 --only dart
      videoprune bench ops --tokens 1568,6272 --json
      videoprune bench ops --markdown docs/results/ops.md
    """
    from videoprune.bench import ops

    sizes = ops.read_sizes(tokens)
    with Progress(quiet=quiet) as progress:
        result = ops.measure(
            sizes, width, only or [], seconds=seconds, threads=threads, progress=progress, longest=longest,
            so_far=None if markdown is None else lambda so_far: ops.write_page(markdown, ops.as_markdown(so_far)),
        )  # fmt: skip
    page = ops.as_markdown(result)
    if json:
        console.print_json(result)
    else:
        print(page)
