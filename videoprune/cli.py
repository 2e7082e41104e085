"""The command line: every command is a few lines over the Python API.

Nothing here imports torch before a command needs it, so that `--help`, `methods` and `recipes` answer at once.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from videoprune import __version__, console
from videoprune.console import Progress
from videoprune.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from videoprune.pipeline import Pipeline, Video
    from videoprune.video import FrameRule

app = typer.Typer(
    name="videoprune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 1 a film can't be read, 2 usage, 3 environment (device, package, model), 130 interrupted.",
)
demo_app = typer.Typer(invoke_without_command=True)
app.add_typer(demo_app, name="demo")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; errors too.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Report and automatic choices on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Model = Annotated[
    str | None, typer.Option("--model", "-m", metavar="NAME|FOLDER", help="Checkpoint; else the demo model.")
]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", "-r", metavar="NAME|FILE", help="See `videoprune recipes`.")
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As prefill.keep=0.25; repeatable.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16, float16.")]
Seed = Annotated[int, typer.Option("--seed", help="For methods that draw.")]


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


# ---------------------------------------------------------------------------------------------------------------- ask


@app.command()
def ask(
    film: Annotated[str, typer.Argument(metavar="FILM", help="A video file.")],
    questions: Annotated[
        list[str] | None, typer.Argument(metavar="QUESTION", help="Questions; `-` reads them from stdin, one a line.")
    ] = None,
    model: Model = None,
    recipe: RecipeName = None,
    set_: Set = None,
    fps: Annotated[float | None, typer.Option("--fps", help="Frames per second of film.")] = None,
    frames: Annotated[int | None, typer.Option("--frames", help="This many frames, evenly spread.")] = None,
    max_frames: Annotated[int | None, typer.Option("--max-frames", help="The most frames that --fps may give.")] = None,
    start: Annotated[float | None, typer.Option("--start", help="Second to start at.")] = None,
    end: Annotated[float | None, typer.Option("--end", help="Second to stop at.")] = None,
    decoder: Annotated[
        Literal["auto", "pyav", "decord", "torchcodec"], typer.Option("--decoder", help="Who decodes.")
    ] = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    attn: Annotated[str, typer.Option("--attn", help="Attention kernel: sdpa, flash_attention_2, eager.")] = "sdpa",
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Of a checkpoint that is named, not a folder.")
    ] = None,
    seed: Seed = 0,
    compare: Annotated[bool, typer.Option("--compare", help="Answer the same dense, side by side.")] = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Answer questions about a film. Several questions share one encoding.

    \b
    Examples:
      videoprune ask film.mp4 "what happens after the red circle?"
      videoprune ask film.mp4 "who wins?" "how many goals?" --fps 2
      videoprune ask film.mp4 "who wins?" --model FOLDER --compare
      cat questions.txt | videoprune ask film.mp4 --json
    """
    # all that can be wrong without the model is found before the model is loaded
    from videoprune.video import Film, FrameRule

    asked = console.read_questions(questions or [])
    flags = {"fps": fps, "frames": frames, "max": max_frames, "start": start, "end": end}
    rule_of = _frame_flags({key: value for key, value in flags.items() if value is not None})
    Film(film, rule_of(FrameRule()), decoder=decoder).close()
    _check_recipe(recipe, set_ or [], has_default=model is None)
    console.quiet_libraries(verbose)
    with Progress(quiet=quiet) as progress:
        pipe = _load(
            progress, recipe, model=model, overrides=set_ or [], device=device, dtype=dtype, attn=attn, decoder=decoder,
            seed=seed, revision=revision, max_new_tokens=max_new_tokens,
        )  # fmt: skip
        rule = rule_of(pipe.recipe.frames)
        video, answers = _answers(pipe, film, asked, rule, progress)
        dense = _answers(_dense(pipe), film, asked, rule, progress)[1] if compare else []
    for warning in video.warnings:
        console.say(f"warning: {warning}")
    for notice in dict.fromkeys(answer.notice for answer in answers if answer.notice):
        console.say(f"note: {notice}")
    if json:
        console.print_json(
            {
                "film": video.film,
                "model": pipe.model_name,
                "recipe": pipe.recipe.name,
                "overrides": list(pipe.recipe.overrides),
                "digest": pipe.recipe.digest(),
                "warnings": list(video.warnings),
                "watch": {"seconds": video.seconds, "flops": video.flops},
                "answers": [answer.to_dict() for answer in answers],
                **({"compare": [answer.to_dict() for answer in dense]} if compare else {}),
            }
        )
    for number, answer in enumerate(answers):
        if verbose:
            console.print_rich(answer.report.table(answer.evidence), stderr=True)
        if json:
            continue
        if compare:
            console.print_rich(
                console.comparison(asked[number], answer.to_dict(), dense[number].to_dict(), pipe.recipe.name)
            )
            continue
        if len(asked) > 1 and not quiet:
            console.say(asked[number])
        print(answer.text, flush=True)


def _answers(
    pipe: Pipeline, film: str, asked: Sequence[str], rule: FrameRule, progress: Progress
) -> tuple[Video, list[Any]]:
    video = pipe.watch(film, frames=rule, question_known=len(asked) == 1, progress=progress)
    return video, [video.ask(question, progress=progress) for question in asked]


def _dense(pipe: Pipeline) -> Pipeline:
    """The same model, nothing pruned, answers as long."""
    from videoprune.recipe import Recipe

    return pipe.with_recipe(dataclasses.replace(Recipe.load("dense"), max_new_tokens=pipe.recipe.max_new_tokens))


def _load(progress: Progress, recipe: Any, **settings: Any) -> Pipeline:
    progress("load model", 0, None)
    from videoprune.pipeline import Pipeline

    return Pipeline.load(recipe, **settings)


def _check_recipe(recipe: str | None, overrides: Sequence[str], *, has_default: bool) -> None:
    """Build the recipe once before any work; where none is named, a model other than the demo's brings its own."""
    from videoprune.recipe import Recipe

    if recipe is not None or has_default:
        Recipe.load(recipe or "demo", overrides).build()


def _frame_flags(given: dict[str, Any]) -> Any:
    """Check the flags by themselves; the result puts them over a recipe's rule (fps and frames replace each other)."""
    from videoprune.video import FrameRule

    try:
        FrameRule(**given)
    except UsageError as error:
        flags = " ".join(f"--{'max-frames' if key == 'max' else key} {value}" for key, value in given.items())
        raise UsageError(f"{flags}: {error}") from None
    rivals: dict[str, Any] = {"fps": None} if "frames" in given else {"frames": None} if "fps" in given else {}
    return lambda rule: dataclasses.replace(rule, **rivals, **given)


# --------------------------------------------------------------------------------------------------- what there is


@app.command()
def methods(
    stage: Annotated[str | None, typer.Argument(metavar="STAGE", help="segment, encode, …")] = None, json: Json = False
) -> None:
    """List the methods, of all stages or of one.

    \b
    Examples:
      videoprune methods
      videoprune methods prefill --json
    """
    from videoprune.registry import discover
    from videoprune.registry import methods as listed

    entries = listed(stage)
    for problem in discover()[1]:
        console.say(f"warning: method {problem}")
    if json:
        console.print_json([entry.facts() for entry in entries])
        return
    rows = []
    for entry in entries:
        question, count = "needed" if entry.needs_question else "-", "fixed" if entry.fixed_count else "by data"
        rows.append((entry.stage, entry.name, entry.scope, question, count, entry.attention, entry.paper))
    print(console.columns(("STAGE", "METHOD", "SCOPE", "QUESTION", "COUNT", "ATTENTION", "PAPER"), rows))


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this one.")] = None, json: Json = False
) -> None:
    """List the shipped recipes, or print one as YAML to start your own from.

    \b
    Examples:
      videoprune recipes
      videoprune recipes demo > mine.yaml
    """
    from videoprune.recipe import Recipe, recipe_names, recipe_text

    if name is not None:
        text, recipe = recipe_text(name), Recipe.load(name)
        if json:
            console.print_json({**recipe.to_dict(), "stages": recipe.stages(), "digest": recipe.digest()})
        else:
            print(text, end="")
        return
    found = [Recipe.load(each) for each in recipe_names()]
    if json:
        console.print_json(
            [{"name": each.name, "description": each.description, "stages": each.stages()} for each in found]
        )
        return
    for each in found:
        chain = (
            "  ".join(f"{stage}: {'+'.join(names)}" for stage, names in each.stages().items()) or "nothing is pruned"
        )
        print(f"{each.name}\n  {each.description}\n  {chain}")


@app.command()
def validate(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name or a YAML file.")],
    set_: Set = None,
    json: Json = False,
) -> None:
    """Check a recipe without a model: keys, types, methods and their options.

    \b
    Examples:
      videoprune validate mine.yaml
      videoprune validate demo --set merge.keep=0.3
    """
    from videoprune.recipe import Recipe

    checked = Recipe.load(recipe, set_ or [])
    checked.build()
    if json:
        console.print_json({"valid": True, **checked.to_dict(), "digest": checked.digest()})
    else:
        print(f"{checked.name} is valid")
        print(checked.to_yaml(), end="")


@app.command()
def doctor(json: Json = False) -> None:
    """Say what is installed and what would be used, and why; exit 3 if the demo can't run."""
    console.quiet_libraries(False)
    facts = console.examine()
    console.print_json(facts) if json else print(console.examined(facts))
    if not facts["ready"]:
        raise typer.Exit(EnvironmentProblem.exit_code)


# --------------------------------------------------------------------------------------------------------------- demo


@demo_app.callback()
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
    _check_recipe(recipe, set_ or [], has_default=True)
    film, rows = console.demo_material(questions)
    console.quiet_libraries(verbose)
    with Progress(quiet=quiet) as progress:
        pipe = _load(progress, recipe, overrides=set_ or [])
        rule, asked = pipe.recipe.frames, [row["question"] for row in rows]
        pruned = _answers(pipe, str(film), asked, rule, progress)[1]
        dense = _answers(_dense(pipe), str(film), asked, rule, progress)[1]
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


@demo_app.command("make")
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


# --------------------------------------------------------------------------------------------------------------- main


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
