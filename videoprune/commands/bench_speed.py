"""`videoprune bench speed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from videoprune import console
from videoprune.commands.common import Device, Dtype, Json, Quiet
from videoprune.console import Progress


def speed(
    shape: Annotated[
        Literal["demo", "longva", "onevision"],
        typer.Option("--shape", help="The demo model, or a random one of LongVA's or LLaVA-OneVision's shape."),
    ] = "demo",
    width: Annotated[
        int, typer.Option("--width", help="Of a random model; a multiple of 128, 3584 is the 7B one.")
    ] = 512,
    layers: Annotated[int, typer.Option("--layers", help="Of a random model.")] = 28,
    frames: Annotated[
        str, typer.Option("--frames", metavar="N,N,…", help="Frames that every stage is measured at, once.")
    ] = "32,128",
    pair_frames: Annotated[
        str, typer.Option("--pair-frames", metavar="N,N,…", help="Frames that pairs are run at; empty for none.")
    ] = "16",
    recipes: Annotated[
        str,
        typer.Option(
            "--recipes", metavar="A,B,…", help="Recipes, or STAGE.NAME; changes behind a plus: demo+merge.keep=0.1."
        ),
    ] = "metok-release,prefill.metok,prefill.fastv,demo",
    pairs: Annotated[int, typer.Option("--pairs", min=1, help="Interleaved pairs of every kind.")] = 21,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1, help="Length of the answer in the stages.")] = 8,
    film: Annotated[
        Path | None, typer.Option("--film", metavar="FILE", help="To watch; else a generated one, a second a frame.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads of torch; 1 gives the steadiest CPU times.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write the tables as a page, too.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Time a film and a question stage by stage, dense next to recipes, and what pruning itself costs.

    Pairs run in turn: our layer loop with nothing pruned against stock generate(), and each pruned prefill against the same
    loop given the indices. A random model's answers mean nothing; its times and counts do.

    \b
    Examples:
      videoprune bench speed --frames 32 --pair-frames 32
      videoprune bench speed --shape longva --recipes metok-release --frames 128 --pair-frames ""
      videoprune bench speed --shape onevision --width 3584 --device cuda --json
    """
    from videoprune.bench import speed as bench
    from videoprune.bench.page import write_page
    from videoprune.bench.speed_page import as_markdown

    listed = [part.strip() for part in recipes.split(",") if part.strip()]
    console.quiet_libraries(False)
    with Progress(quiet=quiet) as progress:
        result = bench.measure(
            shape, recipes=listed, frames=bench.read_counts(frames, "--frames"),
            pair_frames=bench.read_counts(pair_frames, "--pair-frames"), pairs=pairs, width=width, layers=layers,
            new_tokens=new_tokens, device=device, dtype=dtype, threads=threads, film=film, progress=progress,
            so_far=None if markdown is None else lambda so_far: write_page(markdown, as_markdown(so_far)),
        )  # fmt: skip
    if json:
        console.print_json(result)
    else:
        print(as_markdown(result))
