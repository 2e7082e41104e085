"""The command line: puts the commands of `videoprune.commands` into one app.

Nothing here imports torch before a command needs it, so that `--help`, `methods` and `recipes` answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from videoprune import __version__, console
from videoprune.commands import (
    ask,
    batch,
    bench,
    compare,
    demo,
    doctor,
    hosts,
    index,
    lists,
    plan,
    score,
    show,
    train,
    tune,
)

app = typer.Typer(
    name="videoprune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 1 a film can't be read, 2 usage, 3 environment (device, package, model), 130 interrupted.",
)
app.command()(ask.ask)
app.command()(plan.plan)
app.command()(batch.batch)
app.command()(score.score)
app.command()(compare.compare)
app.command()(index.index)
app.command()(show.show)
app.add_typer(demo.app, name="demo")
app.command()(tune.tune)
app.command()(train.train)
app.add_typer(bench.app, name="bench")
for listing in (lists.methods, lists.recipes, hosts.hosts, lists.validate, doctor.doctor):
    app.command()(listing)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"videoprune {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error comes from; works behind any command.")
    ] = False,
) -> None:
    """Answer questions about long videos with open video language models, at a fraction of their cost.

    \b
    Examples:
      videoprune demo
      videoprune ask film.mp4 "what happens first?"
      videoprune ask film.mp4 "where is it?" --set prefill.keep=0.25 -v
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code; nothing it does ends the process."""
    args = list(sys.argv[1:] if argv is None else argv)
    flags = args[: args.index("--")] if "--" in args else args
    debug = "--debug" in flags or os.environ.get("VIDEOPRUNE_DEBUG", "") not in ("", "0")
    args = [arg for arg in flags if arg != "--debug"] + args[len(flags) :]
    try:
        return int(app(args=args, prog_name="videoprune", standalone_mode=False) or 0)
    except KeyboardInterrupt:
        return console.INTERRUPTED
    except BrokenPipeError:  # the reader of our stdout left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return console.fail(error, as_json="--json" in flags, debug=debug)


def run() -> None:
    """The `videoprune` script: `main`, and the ways a process ends."""
    console.leave_on_interrupt()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a terminal without UTF-8 must not turn an answer into an error
    code = main()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if code == console.INTERRUPTED:
        console.say("interrupted")
        os._exit(code)  # without waiting for decoder threads
    sys.exit(code)
