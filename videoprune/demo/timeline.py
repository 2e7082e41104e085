"""What happens in a film and when: drawn from a seed, without drawing a single picture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from videoprune.demo import names
from videoprune.demo.scenes import Event, random_event

Object = tuple[str, str]  # shape, colour
OBJECTS: tuple[Object, ...] = tuple((shape, colour) for shape in names.SHAPES for colour in names.COLOURS)

GAP = 2.0  # seconds without an event between two events, at least
LENGTHS = {"actor": (3.0, 5.0), "item": (1.2, 2.2), "anomaly": (2.0, 4.0)}  # seconds, shortest and longest
ANOMALY_SHARE = 0.75  # of films
CUTAWAY_SHARES = (0.5, 0.3, 0.2)  # of films with no, one or two cutaways
EMPTY_CUTAWAY_SHARE = 0.25
SHORTEST_WITH_CUTAWAY = 28.0  # seconds
MOST_REPEATS = 4  # "four" is the largest number word of the questions' answers
MOST_ACTORS = 14


@dataclass(frozen=True)
class Shot:
    """A span of the film at one place, ``[start, end)`` seconds."""

    place: str
    start: float
    end: float
    cutaway: bool


@dataclass(frozen=True)
class Timeline:
    """A film's content. ``shots`` cover it from 0 to ``seconds``; ``events`` never overlap and are in order."""

    seconds: float
    shots: tuple[Shot, ...]
    events: tuple[Event, ...]

    @property
    def main_place(self) -> str:
        return next(shot.place for shot in self.shots if not shot.cutaway)

    @property
    def actors(self) -> list[Event]:
        return [event for event in self.events if event.kind == "actor"]

    def shot_at(self, seconds: float) -> Shot:
        return next((shot for shot in self.shots if seconds < shot.end), self.shots[-1])

    def shot_of(self, event: Event) -> Shot:
        return self.shot_at((event.start + event.end) / 2)

    def event_at(self, seconds: float) -> Event | None:
        return next((event for event in self.events if event.start <= seconds < event.end), None)


def actor_count(seconds: float, rng: np.random.Generator) -> int:
    """How many objects cross: 5 to 8 in two minutes, about one more for each doubling, as many as fit when short."""
    middle = 6.5 + 1.2 * math.log2(max(seconds, 8.0) / 120)
    wanted = int(rng.integers(math.ceil(middle - 1.5), math.floor(middle + 1.5) + 1))
    room = int((seconds - 6) / (LENGTHS["actor"][1] + GAP))
    return max(1, min(wanted, room, MOST_ACTORS))


def draw_script(
    seconds: float, rng: np.random.Generator, objects: Sequence[Object]
) -> list[tuple[str, tuple[str, ...]]]:
    """What happens, in order, as ``(kind, name)``: one object comes once to four times, the others once."""
    n = min(actor_count(seconds, rng), len(objects) - 1 + MOST_REPEATS)
    repeats = int(rng.integers(1, min(MOST_REPEATS, n) + 1))
    repeats = max(repeats, n - len(objects) + 1)
    chosen = [objects[i] for i in rng.choice(len(objects), n - repeats + 1, replace=False)]
    cast = [chosen[0]] * repeats + chosen[1:]
    rng.shuffle(cast)
    script: list[tuple[str, tuple[str, ...]]] = []
    for shape, colour in cast:
        direction = names.DIRECTIONS[rng.integers(len(names.DIRECTIONS))]
        script.append(("actor", (str(shape), str(colour), direction)))
    if seconds >= 16 or rng.random() < 0.4:
        item = names.ITEMS[rng.integers(len(names.ITEMS))]
        script.insert(int(rng.integers(len(script) + 1)), ("item", (item,)))
    if rng.random() < ANOMALY_SHARE and seconds >= 16:
        anomaly = names.ANOMALIES[rng.integers(len(names.ANOMALIES))]
        script.insert(int(rng.integers(len(script) + 1)), ("anomaly", (anomaly,)))
    return script


def spread(lengths: Sequence[float], seconds: float, rng: np.random.Generator) -> list[float]:
    """Start times of spans of these lengths in ``[0, seconds)``, in order, at least ``GAP`` apart."""
    spare = seconds - sum(lengths) - GAP * (len(lengths) - 1)
    offsets = np.sort(rng.uniform(0, spare, len(lengths)))
    starts, used = [], 0.0
    for offset, length in zip(offsets, lengths, strict=True):
        starts.append(float(offset) + used)
        used += length + GAP
    return starts


def draw_cutaways(events: Sequence[Event], seconds: float, main: str, rng: np.random.Generator) -> list[Shot]:
    """No, one or two short visits to other places, each around one actor or in an empty stretch."""
    count = int(rng.choice(len(CUTAWAY_SHARES), p=CUTAWAY_SHARES)) if seconds >= SHORTEST_WITH_CUTAWAY else 0
    edges = [(a.end, b.start) for a, b in itertools.pairwise(events)]
    before = [0.0] + [b - a for a, b in edges]
    others = [place for place in names.PLACES if place != main]
    spans: list[tuple[float, float]] = []
    for _ in range(count):
        wide = [(a, b) for a, b in edges if b - a > 8.0]
        if wide and rng.random() < EMPTY_CUTAWAY_SHARE:
            a, b = wide[rng.integers(len(wide))]
            length = min(b - a - 2.0, rng.uniform(5.0, 9.0))
            start = rng.uniform(a + 1.0, b - 1.0 - length)
            span = (start, start + length)
        else:  # actors with neighbours on both sides: never the first or the last event
            inner = [i for i in range(1, len(events) - 1) if events[i].kind == "actor"]
            if not inner:
                continue
            i = inner[rng.integers(len(inner))]
            event, after = events[i], events[i + 1].start - events[i].end
            lead, tail = (min(gap - 1.0, rng.uniform(1.0, 4.0)) for gap in (before[i], after))
            span = (event.start - lead, event.end + tail)
        if all(span[1] + 3.0 < a or b + 3.0 < span[0] for a, b in spans):
            spans.append(span)
    places = rng.permutation(others)
    return [Shot(str(place), a, b, True) for place, (a, b) in zip(places, sorted(spans), strict=False)]


def draw_timeline(
    seconds: float,
    rng: np.random.Generator,
    objects: Sequence[Object] = OBJECTS,
    main: str | None = None,
    length_of: Callable[[str], float] | None = None,
    step: float = 0.0,
) -> Timeline:
    """Draw a film's content.

    Parameters
    ----------
    seconds : float
        Length of the film, at least 8.
    objects
        Shapes and colours that may appear.
    main : str, optional
        The main place; drawn when not given.
    length_of : callable, optional
        Seconds of an event by its kind; drawn from ``LENGTHS`` when not given.
    step : float
        Events start at multiples of this (0: anywhere).
    """
    place = main or names.PLACES[rng.integers(len(names.PLACES))]
    script = draw_script(seconds, rng, objects)
    lengths = [length_of(kind) if length_of else float(rng.uniform(*LENGTHS[kind])) for kind, _ in script]
    while sum(lengths) + GAP * (len(lengths) - 1) > seconds:
        extras = [i for i, (kind, _) in enumerate(script) if kind != "actor"] or [len(script) - 1]
        del script[extras[-1]], lengths[extras[-1]]
    events = []
    for (kind, name), length, start in zip(script, lengths, spread(lengths, seconds, rng), strict=True):
        start = math.floor(start / step) * step if step else start
        events.append(random_event(kind, name, rng, start, start + length))
    shots, at = [], 0.0
    for cut in draw_cutaways(events, seconds, place, rng):
        shots += [Shot(place, at, cut.start, False), cut]
        at = cut.end
    shots.append(Shot(place, at, seconds, False))
    return Timeline(seconds, tuple(shots), tuple(events))
