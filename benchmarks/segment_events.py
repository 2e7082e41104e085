"""Whether segment methods cut where something begins or ends: held-out generated films.

    python benchmarks/segment_events.py --films 40

A change is a frame that shows another object, or another place, than the frame before, or where an object has come or gone. A
cut counts as right, and a change as found, where one of the other kind is at most a frame away. Frame features are the
means of the demo model's visual tokens, nothing pruned.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import shared
import torch

from videoprune.bench.films import FIRST_SEED, HeldOut
from videoprune.demo import weights_path
from videoprune.demo.film import film_timeline
from videoprune.models.load import load_host
from videoprune.registry import find, methods

TITLE, PAGE = "Segmentation against what happens", "segments.md"
NEAR = 1  # frames
COUNTS = {"metok": "cuts", "dpc_knn": "events", "uniform": "events"}  # the option that sets how many events there are


def changes(film: HeldOut, seconds: np.ndarray) -> np.ndarray:
    """(F,) bool: what is shown is not what the frame before shows."""
    timeline = film_timeline(film.minutes, film.seed)
    shown = [(timeline.shot_at(second), timeline.event_at(second)) for second in seconds]
    return np.array([False, *(one != other for one, other in zip(shown[1:], shown, strict=False))])


def near(one: np.ndarray, other: np.ndarray) -> int:
    """How many of `one` (F,) bool have one of `other` at most `NEAR` frames away."""
    wide = np.convolve(other, np.ones(2 * NEAR + 1), mode="same") > 0
    return int((one & wide).sum())


def main() -> None:
    parser = shared.parser(__doc__)
    parser.add_argument("--films", type=int, default=40)
    parser.add_argument("--frames", type=int, default=64, help="of a film, one a second")
    shared.add_output(parser, PAGE)
    given = parser.parse_args()
    torch.set_num_threads(1)
    host = load_host(str(weights_path()), device="cpu", dtype="float32")
    found: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    draw = np.random.default_rng(0)
    total = there = 0
    for seed in range(FIRST_SEED, FIRST_SEED + given.films):
        film = HeldOut(seed, given.frames)
        images, seconds = film.drawn()
        features = host.encode(images, seconds, 0).tokens.frame_features()
        truth = changes(film, seconds)
        total, there = total + len(seconds), there + int(truth.sum())
        cuts: dict[str, np.ndarray] = {}
        for entry in methods("segment"):
            method: Any = find("segment", entry.name).load()()
            cuts[entry.name] = cut(method, features)
            option = COUNTS.get(entry.name)
            if option is not None:
                count = int(truth.sum()) + (option == "events")
                cuts[f"{entry.name}, as many as changes"] = cut(replace(method, **{option: max(1, count)}), features)
        cuts["at random, as many as changes"] = np.isin(
            np.arange(len(seconds)), 1 + draw.choice(len(seconds) - 1, int(truth.sum()), replace=False)
        )
        for name, each in cuts.items():
            counts = {"cuts": int(each.sum()), "right": near(each, truth), "seen": near(truth, each)}
            for key, count in counts.items():
                found[name][key] += count
    rows = []
    for name, each in found.items():
        precision, recall = each["right"] / max(1, each["cuts"]), each["seen"] / there
        f1 = 2 * precision * recall / max(1e-9, precision + recall)
        cells = (f"{100 * value:.1f} %" for value in (recall, precision, f1))
        rows.append((name, f"{each['cuts'] / given.films:.1f}", *cells))
    text = shared.prose(
        f"{given.films} films of {given.frames} seconds, seeds {FIRST_SEED:,} on; {total:,} frames, {there} changes,",
        f"{there / given.films:.1f} a film. Found: changes with a cut {NEAR} frame away or less; right: cuts so near a change.",
    )
    text += "\n\n" + shared.table(("method", "cuts a film", "changes found", "cuts right", "F1"), rows)
    data = {
        "films": given.films,
        "frames": total,
        "changes": there,
        "methods": {key: dict(each) for key, each in found.items()},
    }
    shared.publish(given, TITLE, "Cuts", text, data)


def cut(method: Any, features: torch.Tensor) -> np.ndarray:
    """(F,) bool: the frame begins an event."""
    event = method(features).frame_event.numpy()
    return np.concatenate(([False], event[1:] != event[:-1]))


if __name__ == "__main__":
    main()
