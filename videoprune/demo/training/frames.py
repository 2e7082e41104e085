"""Training pictures: draw the moments that a 1 frame-a-second sampler would see, and pass them through h264."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np

from videoprune.demo import names, scenes

CODED_SIZE = 2 * scenes.SIZE  # films are stored at twice the drawn size
CRF_RANGE = (24, 33)  # x264 quality of training pictures, drawn per stream; films use a value inside it
CODED_SHARE = 0.6  # of training streams; the others stay as drawn, to save time
ACTOR_SECONDS = (3.0, 5.0)
_LABEL = {name: i for i, name in enumerate(names.CONCEPTS)}
_HYPERNYM = {"actor": "object", "item": "item", "anomaly": "unusual"}


@dataclass(frozen=True)
class Moment:
    """One sampled instant: which event is seen (or none), and how far it is."""

    event: scenes.Event | None = None
    progress: float = 0.0


def passage(
    event: scenes.Event, rng: np.random.Generator, seconds: tuple[float, float] = ACTOR_SECONDS
) -> list[Moment]:
    """The instants at which an event of random length is seen by a 1 fps sampler of random phase."""
    length, phase = rng.uniform(*seconds), rng.uniform()
    return [Moment(event, (phase + i) / length) for i in range(int(np.ceil(length - phase)))]


def concept_labels(place: str, moment: Moment, cover: np.ndarray) -> np.ndarray:
    """What each cell shows: (GRID * GRID, concepts) float16 in 0..1."""
    labels = np.zeros((len(cover), len(names.CONCEPTS)), np.float16)
    labels[:, _LABEL[place]] = 1
    if moment.event is not None:
        for word in (*moment.event.name, _HYPERNYM[moment.event.kind]):
            labels[:, _LABEL[word]] = cover
    return labels


def draw_moments(
    place: str, scene: np.ndarray, moments: Sequence[Moment], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw moments at one place: images (F, SIZE, SIZE, 3) uint8 and concept labels (F, cells, concepts)."""
    images = np.empty((len(moments), scenes.SIZE, scenes.SIZE, 3), np.uint8)
    labels = np.empty((len(moments), scenes.GRID**2, len(names.CONCEPTS)), np.float16)
    for i, moment in enumerate(moments):
        shake = (int(rng.integers(-3, 4)), int(rng.integers(-3, 4)))
        images[i], cover = scenes.draw_frame(scene, rng, shake, moment.event, moment.progress)
        labels[i] = concept_labels(place, moment, cover)
    return images, labels


def through_h264(images: np.ndarray, crf: int) -> np.ndarray:
    """Encode and decode frames in memory at film size: (F, SIZE, SIZE, 3) uint8 in, the same shape out."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width = encoder.height = CODED_SIZE
    encoder.pix_fmt, encoder.framerate, encoder.thread_count = "yuv420p", Fraction(8), 1
    encoder.options = {"crf": str(crf), "preset": "superfast"}
    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    packets = []
    for i, image in enumerate(images):
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame = frame.reformat(CODED_SIZE, CODED_SIZE, "yuv420p", interpolation="BILINEAR")
        frame.pts = i
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    frames = [frame for packet in packets for frame in decoder.decode(packet)]
    frames += decoder.decode(None)
    frames.sort(key=lambda frame: frame.pts or 0)
    size = scenes.SIZE
    return np.stack([f.reformat(size, size, "rgb24", interpolation="BICUBIC").to_ndarray() for f in frames])


def mixed_stream(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """``n`` unrelated moments at one place, for training the tower: images and labels as in :func:`draw_moments`."""
    rng = np.random.default_rng((seed, 1))
    place = names.PLACES[seed % len(names.PLACES)]
    moments = []
    for kind in rng.choice(4, n, p=(0.6, 0.2, 0.1, 0.1)):
        if kind == 0:
            name = (str(rng.choice(names.SHAPES)), str(rng.choice(names.COLOURS)), str(rng.choice(names.DIRECTIONS)))
            moments.append(Moment(scenes.random_event("actor", name, rng), rng.uniform()))
        elif kind == 1:
            moments.append(Moment(scenes.random_event("item", (str(rng.choice(names.ITEMS)),), rng)))
        elif kind == 2:
            event = scenes.random_event("anomaly", (str(rng.choice(names.ANOMALIES)),), rng)
            moments.append(Moment(event, rng.uniform()))
        else:
            moments.append(Moment())
    images, labels = draw_moments(place, scenes.draw_place(place, rng), moments, rng)
    if rng.random() < CODED_SHARE:
        images = through_h264(images, int(rng.integers(*CRF_RANGE)))
    return images, labels
