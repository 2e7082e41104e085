"""`videoprune train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from videoprune import console
from videoprune.commands.common import Device, Dtype, Json, Model, Quiet
from videoprune.console import Progress


def train(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="A method that learns: lvpruning, atp, …")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Weights, log, curve and checkpoints; a new folder.")
    ],
    model: Model = None,
    data: Annotated[
        str, typer.Option("--data", metavar="demo|DIR", help="Generated films; or films with questions and answers.")
    ] = "demo",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="Of the method, as target=0.1; repeatable."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Of the optimiser; else the method's own.")
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Examples a step.")] = None,
    accumulate: Annotated[
        int, typer.Option("--accumulate", min=1, help="Parts that a step is computed in; each holds less memory.")
    ] = 1,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="The highest; it falls.")] = None,
    films: Annotated[int | None, typer.Option("--films", min=1, help="Films that --data demo draws.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of initial weights, films, order and draws.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    save_every: Annotated[int, typer.Option("--save-every", min=1, help="Steps between checkpoints.")] = 50,
    log_every: Annotated[int, typer.Option("--log-every", min=1, help="Steps between rows of the log.")] = 5,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the learned part of a method for a model; the model stays as it is.

    Needs accelerate and tensorboard: pip install 'videoprune[train]'. Writes DIR/METHOD.safetensors, which a recipe names as
    `weights`, DIR/training.json, DIR/log.jsonl, DIR/loss.svg and DIR/tensorboard.

    \b
    Examples:
      videoprune train lvpruning --model demo --data demo --out runs/lvpruning
      videoprune train atp --out runs/atp-10 --set target=0.1
      videoprune train lvpruning --model llava-hf/llava-onevision-qwen2-0.5b-ov-hf --data films/ --out runs/ov --accumulate 8
      videoprune train atp --out runs/atp-10 --set target=0.1 --resume
    """
    console.quiet_libraries(False)
    with Progress(quiet=quiet) as progress:
        progress("load model", 0, None)
        from videoprune.training.trainer import train

        done = train(
            method, out, model=model, data=data, options=set_ or [], steps=steps, batch=batch, accumulate=accumulate,
            learning_rate=learning_rate, films=films, seed=seed, resume=resume, save_every=save_every, log_every=log_every,
            device=device, dtype=dtype, tell=progress,
        )  # fmt: skip
    if json:
        console.print_json({"weights": str(done.weights), "training": done.record})
        return
    print(done.weights)
    for key, value in {**done.record["last_losses"], **done.record["held_out"]}.items():
        console.say(f"{key}: {value:g}")
