"""How many tokens ATP keeps of easy and of crowded films: its thresholds are learned, so that the count follows the film.

    python benchmarks/atp_counts.py --films 40 --cache films

Held-out generated films, sorted by how many events they show; every question is asked under `prefill: atp` with the weights that
ship. The share of tokens left is the mean over the pruning points, as in training. Films differ in more than their events, so
the same films are asked about once more with all events but the first object taken out, picture by picture the same otherwise.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace
from typing import Any

import shared

TOLERANCE = 0.10  # of the target, for the mean share


def main() -> None:
    parser = shared.parser(__doc__)
    parser.add_argument("--films", type=int, default=40)
    parser.add_argument("--frames", type=int, default=64, help="of a film, one a second; 64")
    parser.add_argument("--each", type=int, default=1, help="questions of a kind and film, at most; 1")
    parser.add_argument("--first-seed", type=int, default=8_000_000)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the films")
    shared.add_output(parser, "learned.md")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    pipe = loaded()
    rows = measure(pipe, given.films, given.frames, given.each, given.first_seed, given.cache)
    data = summary(rows) | {"pairs": emptied(pipe, given.films, given.frames, given.first_seed)}
    shared.publish(given, "Methods that are trained", "ATP: tokens left of easy and crowded films", text(data), data)


def loaded() -> Any:
    """The demo model under ATP."""
    import torch

    from videoprune.pipeline import Pipeline

    torch.set_num_threads(1)
    return Pipeline.load({"prefill": {"method": "atp"}}, device="cpu")


def share_left(pipe: Any, answer: Any) -> float:
    """Mean over the pruning points of the share of tokens that go on."""
    left = answer.trace.visual_rows
    return fmean(left[point + 1] / left[0] for point in pipe.stages.prefill[0].points(pipe.host.decoder_shape.layers))


def emptied(pipe: Any, films: int, frames: int, first: int) -> dict[str, Any]:
    """Shares of the same films with all their events and with the first object alone, and the mean difference with its
    95 % interval, by bootstrap over films."""
    import dataclasses

    import numpy as np

    from videoprune.bench.films import HeldOut
    from videoprune.demo.film import film_timeline
    from videoprune.demo.questions import WORDINGS
    from videoprune.video import Frames
    from videoprune.watching import Watcher

    questions = [WORDINGS[kind][0] for kind in ("topic", "order_first", "needle", "anomaly", "list")]
    crowded, easy = list[float](), list[float]()
    for number in range(films):
        film = HeldOut(first + number, frames)
        timeline = film_timeline(film.minutes, film.seed)
        for told, shares in ((timeline, crowded), (dataclasses.replace(timeline, events=(timeline.actors[0],)), easy)):
            images, seconds = film.drawn(told)
            watcher = Watcher(pipe, "drawn", film.rule, len(images), interval=1.0)
            watcher.add(Frames(images, seconds, np.arange(len(images))))
            video = watcher.finish(SimpleNamespace(metadata={}, choices=[], decoder="none"), [])
            shares.append(fmean(share_left(pipe, video.ask(question)) for question in questions))
        print(f"pair {number + 1} of {films}", file=sys.stderr, flush=True)
    difference = np.array(crowded) - np.array(easy)
    drawn = np.random.default_rng(0).choice(difference, (2000, films)).mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {
        "crowded": fmean(crowded), "easy": fmean(easy), "questions": len(questions), "difference": float(difference.mean()),
        "low": float(low), "high": float(high), "more": int((difference > 0).sum()),
    }  # fmt: skip


def measure(pipe: Any, films: int, frames: int, each: int, first: int, cache: Path) -> list[dict[str, Any]]:
    """A row a question: events of its film, the mean share of tokens left over the pruning points, and whether it is right."""
    from videoprune.bench.films import HeldOut
    from videoprune.demo.film import film_timeline

    rows: list[dict[str, Any]] = []
    for number in range(films):
        film = HeldOut(first + number, frames)
        events = len(film_timeline(film.minutes, film.seed).events)
        video = pipe.watch(film.file(cache), frames=film.rule)
        for asked in film.questions(each):
            answer = video.ask(asked.question.text)
            share = share_left(pipe, answer)
            right = answer.text.lower() == asked.question.answer.lower()
            rows.append({"film": film.seed, "events": events, "kind": asked.kind, "share": share, "right": right})
        print(f"film {number + 1} of {films}", file=sys.stderr, flush=True)
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Thirds of the films by their events, and the rank correlation of events and shares over films."""
    from scipy.stats import spearmanr

    from videoprune.prefill.atp import ATP

    films = {row["film"]: [each for each in rows if each["film"] == row["film"]] for row in rows}
    ordered = sorted(films.values(), key=lambda own: own[0]["events"])
    bounds = [round(len(ordered) * third / 3) for third in range(4)]
    thirds = [[row for own in ordered[low:high] for row in own] for low, high in pairwise(bounds)]
    shares = [fmean(row["share"] for row in own) for own in ordered]
    rank = spearmanr([own[0]["events"] for own in ordered], shares)
    return {
        "target": ATP().target,
        "mean": fmean(row["share"] for row in rows),
        "films": len(films),
        "questions": len(rows),
        "right": fmean(row["right"] for row in rows),
        "lowest": min(shares),
        "highest": max(shares),
        "deviation": stdev(shares),
        "correlation": float(rank.statistic),
        "p": float(rank.pvalue),
        "thirds": [
            {
                "events": [min(row["events"] for row in third), max(row["events"] for row in third)],
                "share": fmean(row["share"] for row in third),
                "right": fmean(row["right"] for row in third),
                "questions": len(third),
            }
            for third in thirds
        ],
    }


def text(data: dict[str, Any]) -> str:
    rows = [
        (
            f"{name}: {third['events'][0]} to {third['events'][1]} events",
            third["questions"],
            f"{third['share']:.1%}",
            f"{third['right']:.1%}",
        )
        for name, third in zip(("easy", "between", "crowded"), data["thirds"], strict=True)
    ]
    pairs = data["pairs"]
    off = data["mean"] / data["target"] - 1
    return "\n\n".join(
        [
            shared.table(("films", "questions", "tokens left", "right"), rows),
            shared.prose(
                f"Mean over {data['questions']} questions of {data['films']} films: {data['mean']:.1%} for a target of",
                f"{data['target']:.0%} ({off:+.1%} of it; {shared.mark(abs(off) <= TOLERANCE)} ±{TOLERANCE:.0%}).",
                f"{data['right']:.1%} of the answers are right. A film's mean share",
                f"is {data['lowest']:.1%} to {data['highest']:.1%}, standard deviation {data['deviation']:.1%};",
                f"its rank correlation with the film's events: {data['correlation']:+.2f}",
                f"(p = {data['p']:.2g}).",
            ),
            shared.prose(
                f"The same films with all events but the first object taken out, {pairs['questions']} questions each:",
                f"{pairs['easy']:.1%} of the tokens left, with all events {pairs['crowded']:.1%}; difference",
                f"{100 * pairs['difference']:+.2f} points [{100 * pairs['low']:+.2f}, {100 * pairs['high']:+.2f}],",
                f"more in {pairs['more']} of {data['films']} films.",
            ),
        ]
    )


if __name__ == "__main__":
    main()
