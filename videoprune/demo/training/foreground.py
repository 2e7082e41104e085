"""Training pictures with the mask of what happens in them, for methods that learn foreground from background."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence

import numpy as np

from videoprune.demo import names, scenes
from videoprune.demo.masks import event_mask
from videoprune.demo.training.frames import CODED_SHARE, CRF_RANGE, Moment, through_h264

KINDS = ("actor", "item", "anomaly", "nothing")
SHARES = (0.5, 0.15, 0.1, 0.25)  # of pictures; in a film most of the time nothing happens
STREAM = 40  # pictures drawn at one place
HELD_OUT = 1_000_000  # seeds from here on are never trained on


def draw_moment(rng: np.random.Generator) -> Moment:
    """Something that happens, or nothing."""
    kind = KINDS[rng.choice(len(KINDS), p=SHARES)]
    if kind == "nothing":
        return Moment()
    lists: dict[str, tuple[Sequence[str], ...]] = {
        "actor": (names.SHAPES, names.COLOURS, names.DIRECTIONS),
        "item": (names.ITEMS,),
        "anomaly": (names.ANOMALIES,),
    }
    name = tuple(str(rng.choice(words)) for words in lists[kind])
    return Moment(scenes.random_event(kind, name, rng), rng.uniform())


def masked_stream(seed: int, count: int = STREAM) -> tuple[np.ndarray, np.ndarray]:
    """Unrelated moments at one place: images (count, SIZE, SIZE, 3) uint8 and masks (count, SIZE, SIZE) bool."""
    rng = np.random.default_rng((seed, 5))
    scene = scenes.draw_place(names.PLACES[seed % len(names.PLACES)], rng)
    images = np.empty((count, scenes.SIZE, scenes.SIZE, 3), np.uint8)
    masks = np.empty((count, scenes.SIZE, scenes.SIZE), bool)
    for number in range(count):
        moment = draw_moment(rng)
        shake = (int(rng.integers(-3, 4)), int(rng.integers(-3, 4)))
        masks[number] = event_mask(scene, rng, shake, moment.event, moment.progress)
        images[number], _ = scenes.draw_frame(scene, rng, shake, moment.event, moment.progress)
    if rng.random() < CODED_SHARE:
        images = through_h264(images, int(rng.integers(*CRF_RANGE)))
    return images, masks


def draw_pool(streams: int, first: int, processes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The pictures of `streams` places, seeds from `first` on: as `masked_stream`, one behind the other."""
    seeds = range(first, first + streams)
    if processes == 1:
        drawn = [masked_stream(seed) for seed in seeds]
    else:
        with multiprocessing.get_context("fork").Pool(processes) as pool:
            drawn = list(pool.imap(masked_stream, seeds, chunksize=4))
    return np.concatenate([images for images, _ in drawn]), np.concatenate([masks for _, masks in drawn])
