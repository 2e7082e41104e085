"""Stage 2: a bank of visual tokens. Many places, each with empty frames and many passing events, seen once by the tower.

The language model trains on films composed from the bank: without end, never the same, and without drawing anything.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from videoprune.demo import names, scenes
from videoprune.demo.timeline import LENGTHS, OBJECTS, Object
from videoprune.demo.training import frames
from videoprune.demo.training.common import CELLS, WIDTH, pixels
from videoprune.demo.training.tower import TowerHead

log = logging.getLogger(__name__)
EMPTY_FRAMES, OBJECTS_PER_PLACE, CLIPS_PER_OBJECT = 8, 24, 2
SHOWN = 0.2  # cover from which a cell counts as evidence
BATCH = 256


@dataclass
class Clip:
    """Consecutive bank rows that show one event."""

    name: tuple[str, ...]
    rows: range


@dataclass
class Place:
    """One instance of a place in the bank."""

    name: str
    empty: range = range(0)
    actors: dict[Object, list[Clip]] = field(default_factory=dict)
    others: dict[str, list[Clip]] = field(default_factory=dict)  # items and anomalies by name


@dataclass
class Bank:
    """Tokens (rows, CELLS, WIDTH) bf16, which cells show an event (rows, CELLS) bool, and what the rows are."""

    tokens: torch.Tensor
    shown: np.ndarray
    places: list[Place]


def draw_place_frames(seed: int) -> tuple[np.ndarray, np.ndarray, Place]:
    """All pictures of one place instance, their evidence cells, and where things are (rows from 0)."""
    rng = np.random.default_rng((seed, 2))
    place = Place(names.PLACES[seed % len(names.PLACES)])
    moments = [frames.Moment()] * EMPTY_FRAMES
    place.empty = range(EMPTY_FRAMES)

    def film(kind: str, name: tuple[str, ...]) -> Clip:
        seen = frames.passage(scenes.random_event(kind, name, rng), rng, LENGTHS[kind])
        clip = Clip(name, range(len(moments), len(moments) + len(seen)))
        moments.extend(seen)
        return clip

    for i in rng.choice(len(OBJECTS), OBJECTS_PER_PLACE, replace=False):
        ways = rng.choice(len(names.DIRECTIONS), CLIPS_PER_OBJECT, replace=False)
        place.actors[OBJECTS[i]] = [film("actor", (*OBJECTS[i], names.DIRECTIONS[w])) for w in ways]
    for item in names.ITEMS:
        place.others[item] = [film("item", (item,)) for _ in range(2)]
    for anomaly in names.ANOMALIES:
        place.others[anomaly] = [film("anomaly", (anomaly,))]
    images, labels = frames.draw_moments(place.name, scenes.draw_place(place.name, rng), moments, rng)
    if rng.random() < frames.CODED_SHARE:
        images = frames.through_h264(images, int(rng.integers(*frames.CRF_RANGE)))
    first, last = names.CONCEPTS.index(names.PLACES[0]), names.CONCEPTS.index(names.PLACES[-1])
    events = np.delete(labels, np.s_[first : last + 1], axis=-1)
    return images, events.max(-1) > SHOWN, place


def build_bank(out: Path, tower: Path, count: int, first_seed: int, processes: int = 2) -> None:
    """Draw ``count`` places, run the frozen tower over all pictures and write the bank to ``out``."""
    start = time.time()
    pool = multiprocessing.get_context("fork").Pool(processes)  # before the tower's threads exist
    drawn = pool.imap(draw_place_frames, range(first_seed, first_seed + count), chunksize=2)
    head = TowerHead()
    state = torch.load(tower, weights_only=True)
    head.tower.load_state_dict(state["tower"])
    head.projector.load_state_dict(state["projector"])
    head.bfloat16()
    see = torch.compile(head.tokens, dynamic=False)
    tokens: list[torch.Tensor] = []
    shown: list[np.ndarray] = []
    places: list[Place] = []
    waiting: list[np.ndarray] = []
    rows = 0

    def flush(last: bool = False) -> None:
        nonlocal waiting
        images = np.concatenate(waiting)
        while len(images) >= BATCH or (last and len(images)):
            part, images = images[:BATCH], images[BATCH:]
            padded = np.concatenate([part, np.repeat(part[-1:], BATCH - len(part), 0)])
            with torch.no_grad():
                tokens.append(see(pixels(padded).bfloat16())[: len(part)].clone())
        waiting = [images]

    for i, (images, cells, place) in enumerate(drawn):
        for clip in chain.from_iterable([*place.actors.values(), *place.others.values()]):
            clip.rows = range(clip.rows.start + rows, clip.rows.stop + rows)
        place.empty = range(rows, rows + EMPTY_FRAMES)
        rows += len(images)
        waiting.append(images)
        shown.append(cells)
        places.append(place)
        flush()
        if i % 100 == 99:
            log.info("bank: %d/%d places, %.0f pictures/s", i + 1, count, rows / (time.time() - start))
    flush(last=True)
    pool.close()
    bank = Bank(torch.cat(tokens), np.concatenate(shown), places)
    if bank.tokens.shape != (rows, CELLS, WIDTH):
        raise RuntimeError(f"the bank has shape {tuple(bank.tokens.shape)}, expected {(rows, CELLS, WIDTH)}")
    temporary = out.with_suffix(".part")
    torch.save(bank, temporary)
    temporary.replace(out)
    log.info("bank: %d pictures in %.0f s", rows, time.time() - start)


def read_bank(path: Path) -> Bank:
    """What :func:`build_bank` wrote: our own pickle, so nobody else's file belongs here."""
    bank: Bank = torch.load(path, weights_only=False)
    return bank
