"""Accuracy by length of film: the part of `long_films.py` that asks questions."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import shared

MINUTES, FILMS = (10, 60, 180), (8, 4, 3)
LEAST, BAR = 100, 10.0


def add_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--minutes", type=int, nargs="+", default=list(MINUTES), help="10 60 180")
    command.add_argument(
        "--films", type=int, nargs="+", default=list(FILMS), help="films of each length; 8 4 3, of neighbouring seeds"
    )
    command.add_argument("--each", type=int, default=12, help="questions of a kind and film, at most; 12")
    command.add_argument("--recipe", default="demo", help="demo")
    command.add_argument("--workers", type=int, default=1, help="films at a time, a thread each; 1")


def accuracy(given: argparse.Namespace) -> None:
    """Ask all that is missing, then the table; rows lie in CACHE/accuracy-EACH/rows.jsonl and are not asked again."""
    from videoprune.bench.accuracy import run
    from videoprune.bench.films import MACRO
    from videoprune.bench.settings import Setting
    from videoprune.recipe import Recipe

    if len(given.films) != len(given.minutes):
        sys.exit(f"--films {given.films}: give one number for each of --minutes {given.minutes}")
    recipe = Recipe.load(given.recipe)
    setting = Setting(given.recipe, {**recipe.to_dict(), "max_new_tokens": 64})
    cache: Path = given.cache
    cache.mkdir(parents=True, exist_ok=True)
    lengths = []
    for minutes, count in zip(given.minutes, given.films, strict=True):
        rows = run(
            lambda _: [setting],
            cache / f"accuracy-{given.each}",
            lengths=[60 * minutes],
            count=count,
            each=given.each,
            first_seed=given.seed,
            forms=("open", "options"),
            choices=(setting.name,),
            workers=given.workers,
            keep_films=True,
            films=cache,
            tell=lambda what, done, total: print(f"{minutes} min: {what} {done}/{total}", file=sys.stderr, flush=True),  # noqa: B023
        )
        lengths.append({"minutes": minutes, "films": count, **scores(rows, MACRO)})
    data = {"seed": given.seed, "recipe": given.recipe, "lengths": lengths}
    shared.publish(given, "Long films", "Accuracy by length", text(data), data)


def scores(rows: list[dict[str, Any]], kinds: tuple[str, ...]) -> dict[str, Any]:
    """By form: n and the share right of every single-answer kind, and their macro mean with its interval over films."""
    from videoprune.bench.accuracy_table import summarise

    found: dict[str, Any] = {"tokens": None}
    for record in summarise(rows, sorted({row["setting"] for row in rows})):
        own = {kind: record["kinds"][kind] for kind in (*kinds, "where") if kind in record["kinds"]}
        found[record["form"]] = {
            "n": sum(record["kinds"][kind]["n"] for kind in kinds if kind in record["kinds"]),
            "kinds": own,
            "macro": record["macro"],
        }
        found["tokens"] = record.get("tokens") or found["tokens"]
        found["evidence"] = record.get("evidence") or found.get("evidence")
    return found


def text(data: dict[str, Any]) -> str:
    lengths = data["lengths"]
    parts = [
        shared.prose(
            f"Generated scenes, held-out seeds from {data['seed']:,}; recipe `{data['recipe']}`, 1 frame a second. Free",
            "answers: exact match of the whole answer; options: the likeliest of four. Macro: mean over the nine single-answer",
            "kinds, its interval over films. Questions about one film stand and fall together, and a film has one place, item",
            "and oddity (asked in several wordings), so the numbers are coarser than n says.",
        )
    ]
    for form, name in (("open", "free answers"), ("options", "four options by likelihood")):
        kinds = list(dict.fromkeys(kind for each in lengths for kind in each[form]["kinds"]))
        rows = []
        for each in lengths:
            macro = each[form]["macro"]
            cells = [f"{each['minutes']} min", each["films"], each[form]["n"]]
            span = (
                f" [{100 * macro['low']:.1f}, {100 * macro['high']:.1f}]" if each["films"] > 1 else ""
            )  # one film has none
            cells.append(f"{100 * macro['mean']:.1f}{span}")
            for kind in kinds:
                got = each[form]["kinds"].get(kind)
                cells.append(f"{100 * got['score']:.0f} ({got['n']})" if got else "–")
            rows.append(cells)
        head = ["film", "films", "n", "macro [95 %]", *(f"{kind} (n)" for kind in kinds)]
        difference = 100 * (lengths[-1][form]["macro"]["mean"] - lengths[0][form]["macro"]["mean"])
        enough = min(each[form]["n"] for each in lengths) >= LEAST
        verdict = shared.mark(difference >= -BAR and enough)
        parts.append(f"### {name.capitalize()}\n\n{shared.table(head, rows)}")
        if len(lengths) > 1:
            parts.append(
                f"The longest less the shortest: **{difference:+.1f} points**, bar −{BAR:.0f} with n ≥ {LEAST} each: {verdict}."
            )
    shares = "; ".join(
        f"{each['minutes']} min {100 * each['tokens']['merged']:.1f} %, {100 * each['evidence']:.0f} %"
        for each in lengths
        if each["tokens"] and each.get("evidence") is not None
    )
    shared_out = (
        "Share of sampled tokens that enter the language model, and of evidence frames with a token at its last layer:"
    )
    parts.append(shared.prose(shared_out, f"{shares}."))
    return "\n\n".join(parts)
