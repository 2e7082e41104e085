"""`videoprune hosts`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from videoprune import console
from videoprune.commands.common import Json, Quiet
from videoprune.console import Progress

Row = tuple[str, ...]
Table = tuple[Sequence[str], list[Row]]
COLUMNS = ("FAMILY", "CHECKPOINTS", "TOWER", "[CLS]", "TOKENS A FRAME", "FRAMES", "CONTEXT", "EXAMPLE")


def hosts(
    json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables of docs/hosts.md.")] = False,
    quiet: Quiet = False,
) -> None:
    """List the model families, and which methods fit each: read from the code itself, no weights are needed.

    \b
    Examples:
      videoprune hosts
      videoprune hosts --json
      videoprune ask film.mp4 "what happens?" --model llava-hf/llava-onevision-qwen2-7b-ov-hf
    """
    from videoprune.models.support import supported

    with Progress(quiet=quiet) as progress:
        entries = supported(progress)
    if json:
        console.print_json(entries)
    else:
        print(hosts_markdown(entries) if markdown else hosts_text(entries))


def hosts_text(entries: list[dict[str, Any]]) -> str:
    """The families, and what every stage does on them, in aligned columns."""
    first, second, notes = tables(entries)
    parts = [console.columns(*first), "", console.columns(*second)]
    return "\n".join([*parts, *([""] if notes else []), *notes])


def hosts_markdown(entries: list[dict[str, Any]]) -> str:
    """The same as Markdown, and where templates, preprocessing and frame rules come from."""
    first, second, notes = tables(entries)
    sources: list[Row] = [(entry["family"], f"`{entry['stock']}`", entry["source"]) for entry in entries]
    from_where = _markdown(("FAMILY", "STOCK CLASS", "SOURCE"), sources)
    return "\n\n".join([_markdown(*first), _markdown(*second), *notes, from_where])


def tables(entries: list[dict[str, Any]]) -> tuple[Table, Table, list[str]]:
    """Families; family by stage; and why a method in the latter is left out or reads something else."""
    families: list[Row] = []
    for entry in entries:
        tokens, added = entry["tokens_a_frame"], entry["rows_a_frame"]
        cells = "by its shape" if tokens is None else f"{tokens} + {added}" if added else str(tokens)
        about = (entry["tower"], "yes" if entry["cls"] else "no", cells, entry["frames"], str(entry["context"]))
        families.append((entry["family"], entry["accepts"], *about, entry["example"]))
    stages = list(entries[0]["stages"])
    fits: list[Row] = [(entry["family"], *(_cell(entry["stages"][stage]) for stage in stages)) for entry in entries]
    notes: dict[str, None] = {}
    for entry in entries:
        for stage in stages:
            for name, fact in entry["stages"][stage].items():
                refused = f"{entry['family']}, {stage} {name}: {fact['why']}"
                notes[f"with *: {fact['why']}" if fact["status"] == "substitute" else refused] = None
    return (COLUMNS, families), (("FAMILY", *map(str.upper, stages)), fits), list(notes)


def _cell(facts: dict[str, dict[str, str]]) -> str:
    """What a stage does: "all", "all (name*)" for a method that reads a substitute, "all but name" for a refused one."""
    refused = [name for name, fact in facts.items() if fact["status"] == "refused"]
    instead = [f"{name}*" for name, fact in facts.items() if fact["status"] == "substitute"]
    text = f"all but {', '.join(refused)}" if refused else "all"
    return f"{text} ({', '.join(instead)})" if instead else text


def _markdown(head: Sequence[str], rows: list[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('*', chr(92) + '*') for cell in line)} |" for line in lines)
