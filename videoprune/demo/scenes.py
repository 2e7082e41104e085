"""Draw generated scenes, one frame at a time: a still place, and at most one moving event in front of it.

All drawing is at :data:`SIZE` pixels in numpy and Pillow. A frame is a function of its arguments and of the random
generator that is passed in, so a film is the same for the same seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 112  # drawn frame, pixels a side
GRID = 4  # cells a side after the model's 2x2 pooling: one visual token each
PAD = 6  # margin around a place, so that the camera can move
CANVAS = 72  # sprite canvas, pixels a side
PATH = (8.0, SIZE - 8.0)  # an actor's centre crosses from one of these to the other
RADII = (12, 14, 16)  # actor sizes
ITEM_RADIUS = 11
COVER_FULL, COVER_MIN = 0.25, 0.08  # share of an object in a cell that counts as fully there / as absent

COLOUR_RGB = {
    "red": (225, 30, 35),
    "green": (30, 190, 60),
    "blue": (40, 70, 235),
    "yellow": (250, 225, 40),
    "purple": (165, 50, 200),
    "white": (245, 245, 245),
}
ITEM_RGB = (255, 150, 20)
STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

Sprite = tuple[np.ndarray, np.ndarray, np.ndarray]  # colour (C, C, 3), opacity (C, C), solid body (C, C)


@dataclass(frozen=True)
class Event:
    """One thing that happens.

    Attributes
    ----------
    kind : str
        ``"actor"`` (a coloured shape crosses), ``"item"`` (a small thing lies there) or ``"anomaly"`` (whole frame).
    name : tuple of str
        ``(shape, colour, direction)``, ``(item,)`` or ``(anomaly,)``.
    radius : int
        Size of an actor in pixels.
    across : (float, float)
        Position of an actor on the axis that it does not cross (first number), or x and y of an item.
    start, end : float
        Seconds in the film; half open.
    seed : int
        For what is random inside the event (flames, clouds).
    """

    kind: str
    name: tuple[str, ...]
    radius: int = RADII[1]
    across: tuple[float, float] = (SIZE / 2, SIZE / 2)
    start: float = 0.0
    end: float = 1.0
    seed: int = 0

    def progress(self, seconds: float) -> float:
        """How far the event is at ``seconds``: 0 at its start, 1 at its end."""
        return (seconds - self.start) / (self.end - self.start)


# ---- places ----------------------------------------------------------------------------------------------------


class _Brush:
    """A canvas with colours that vary a little, and few-letter access to the generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.n = SIZE + 2 * PAD
        self.image = Image.new("RGB", (self.n, self.n))
        self.draw = ImageDraw.Draw(self.image)
        self.horizon = int(self.n * rng.uniform(0.35, 0.6))

    def colour(self, rgb: tuple[int, int, int], spread: float = 14.0) -> tuple[int, ...]:
        return tuple(int(np.clip(v + self.rng.normal(0, spread), 0, 255)) for v in rgb)

    def between(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high))

    def sky_and_ground(self, sky: tuple[int, int, int], ground: tuple[int, int, int]) -> None:
        self.draw.rectangle([0, 0, self.n, self.horizon], fill=self.colour(sky))
        self.draw.rectangle([0, self.horizon, self.n, self.n], fill=self.colour(ground))


def _forest(b: _Brush) -> None:
    b.sky_and_ground((150, 190, 170), (70, 100, 50))
    for _ in range(b.between(5, 10)):
        x, width, top, foot = (
            b.between(0, b.n),
            b.between(10, 22),
            b.between(5, b.horizon),
            b.horizon + b.between(0, 30),
        )
        b.draw.rectangle([x - 2, top, x + 2, foot + 6], fill=b.colour((90, 60, 35)))
        crown = [(x, top - 8), (x - width // 2, foot), (x + width // 2, foot)]
        b.draw.polygon(crown, fill=b.colour((35, 85, 45)))


def _desert(b: _Brush) -> None:
    b.sky_and_ground((200, 200, 190), (205, 165, 100))
    h = b.horizon
    for _ in range(b.between(2, 5)):
        x, width = b.between(0, b.n), b.between(30, 70)
        b.draw.polygon(
            [(x, h - b.between(5, 25)), (x - width, h + 8), (x + width, h + 8)], fill=b.colour((190, 150, 95))
        )
    for _ in range(b.between(1, 4)):
        x, y = b.between(0, b.n), b.between(h, b.n)
        b.draw.line([x, y, x, y - 18], fill=b.colour((70, 110, 60)), width=4)
        b.draw.line([x, y - 9, x + 6, y - 9, x + 6, y - 15], fill=b.colour((70, 110, 60)), width=3)


def _beach(b: _Brush) -> None:
    b.sky_and_ground((140, 190, 225), (225, 205, 160))
    h = b.horizon
    b.draw.rectangle([0, h - b.between(10, 25), b.n, h], fill=b.colour((50, 125, 170)))
    for _ in range(4):
        x, y = b.between(0, b.n), b.between(h - 8, h)
        b.draw.line([x, y, x + 14, y], fill=b.colour((215, 230, 235)))


def _city(b: _Brush) -> None:
    b.sky_and_ground((165, 170, 185), (95, 95, 100))
    x, h = 0, b.horizon
    while x < b.n:
        width, top = b.between(10, 24), b.between(5, h - 5)
        b.draw.rectangle([x, top, x + width - 2, h], fill=b.colour((110, 105, 115)))
        for wy in range(top + 3, h - 3, 6):
            for wx in range(x + 2, x + width - 4, 5):
                if b.rng.random() < 0.6:
                    b.draw.rectangle([wx, wy, wx + 2, wy + 2], fill=b.colour((190, 180, 140)))
        x += width
    middle = (h + b.n) // 2
    for x in range(0, b.n, 16):
        b.draw.rectangle([x, middle, x + 8, middle + 2], fill=b.colour((200, 200, 190)))


def _space(b: _Brush) -> None:
    b.draw.rectangle([0, 0, b.n, b.n], fill=b.colour((18, 16, 36), 6))
    for _ in range(b.between(30, 70)):
        b.draw.point([b.between(0, b.n), b.between(0, b.n)], fill=b.colour((200, 200, 210)))
    r, x, y = b.between(8, 20), b.between(0, b.n), b.between(0, b.n)
    b.draw.ellipse([x - r, y - r, x + r, y + r], fill=b.colour((120, 95, 85)))


def _room(b: _Brush) -> None:
    b.sky_and_ground((190, 170, 150), (130, 95, 70))
    h = b.horizon
    x, y = b.between(5, b.n - 40), b.between(4, max(6, h - 34))
    b.draw.rectangle([x, y, x + 26, y + 24], fill=b.colour((170, 200, 215)), outline=b.colour((110, 80, 60)), width=2)
    b.draw.line([x + 13, y, x + 13, y + 24], fill=(120, 90, 70))
    x = b.between(0, b.n - 40)
    b.draw.rectangle([x, h - 12, x + b.between(24, 44), h + 14], fill=b.colour((110, 75, 80)))
    x = b.between(0, b.n - 30)
    b.draw.rectangle([x, h - 30, x + 14, h], fill=b.colour((120, 85, 55)))


_PAINT = {"forest": _forest, "desert": _desert, "beach": _beach, "city": _city, "space": _space, "room": _room}


def draw_place(name: str, rng: np.random.Generator) -> np.ndarray:
    """A new instance of a place: (SIZE + 2 PAD, SIZE + 2 PAD, 3) float32 in 0..255."""
    brush = _Brush(rng)
    _PAINT[name](brush)
    cells, n = brush.between(6, 24), brush.n
    coarse = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32)).resize(
        (n, n), Image.Resampling.BICUBIC
    )
    texture = np.asarray(coarse) * rng.uniform(3, 9) + rng.normal(0, rng.uniform(1, 3), (n, n))
    return np.clip(np.asarray(brush.image, np.float32) + texture[..., None].astype(np.float32), 0, 255)


# ---- sprites ---------------------------------------------------------------------------------------------------


def _outline(shape: str, c: float, r: float) -> list[tuple[float, float]]:
    """Corners of a shape of radius ``r`` around ``(c, c)``."""
    if shape == "square":
        s = 0.85 * r
        return [(c - s, c - s), (c + s, c - s), (c + s, c + s), (c - s, c + s)]
    if shape == "triangle":
        return [(c, c - r), (c + r, c + 0.8 * r), (c - r, c + 0.8 * r)]
    if shape == "diamond":
        return [(c, c - 1.1 * r), (c + 0.75 * r, c), (c, c + 1.1 * r), (c - 0.75 * r, c)]
    if shape == "star":
        reach = [1.1 * r if i % 2 == 0 else 0.45 * r for i in range(10)]
        return [(c + d * math.sin(i * math.pi / 5), c - d * math.cos(i * math.pi / 5)) for i, d in enumerate(reach)]
    turns = [i / 40 * 2 * math.pi for i in range(40)]  # heart
    return [
        (
            c + r * math.sin(t) ** 3,
            c - r * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 15,
        )
        for t in turns
    ]


OVERSAMPLE = 4  # sprites are drawn this much larger and averaged down, for smooth edges


def _shrink(mask: Image.Image) -> np.ndarray:
    return np.asarray(mask.resize((CANVAS, CANVAS), Image.Resampling.BOX), np.float32) / 255


@lru_cache(maxsize=1024)
def actor_sprite(shape: str, colour: str, direction: str, radius: int) -> Sprite:
    """A shape with a dark rim, and a streak behind it that tells where it goes even in a single frame."""
    n, c = CANVAS * OVERSAMPLE, CANVAS * OVERSAMPLE / 2
    masks = []
    for r in (radius * OVERSAMPLE, (radius - 1.6) * OVERSAMPLE):  # with the rim, without it
        mask = Image.new("L", (n, n))
        pen = ImageDraw.Draw(mask)
        if shape == "circle":
            pen.ellipse([c - r, c - r, c + r, c + r], fill=255)
        else:
            pen.polygon(_outline(shape, c, r), fill=255)
        masks.append(_shrink(mask))
    body, inside = masks
    rgb = np.asarray(COLOUR_RGB[colour], np.float32)
    dx, dy = STEP[direction]
    streak = np.zeros((CANVAS, CANVAS), np.float32)
    for shift, opacity in ((20, 0.25), (14, 0.4), (8, 0.55)):
        streak = np.maximum(streak, np.roll(inside, (-dy * shift, -dx * shift), (0, 1)) * opacity)
    opacity_all = np.maximum(body, streak * (1 - body))
    tone = inside / np.maximum(body, 0.02)  # 1 in the shape, 0 on its rim
    tone = np.where(body > 0.02, np.minimum(tone, 1.0), 1.0)
    return tone[..., None] * rgb, opacity_all, body


@lru_cache(maxsize=64)
def item_sprite(item: str) -> Sprite:
    """A small orange thing with a dark rim."""
    n, c, r = CANVAS * OVERSAMPLE, CANVAS * OVERSAMPLE / 2, ITEM_RADIUS * OVERSAMPLE
    mask = Image.new("L", (n, n))
    pen, width = ImageDraw.Draw(mask), int(r * 0.28)

    def at(*units: float) -> list[float]:
        return [c + u * r for u in units]

    if item == "key":
        pen.ellipse(at(-1, -0.45, -0.1, 0.45), outline=255, width=width)
        for line in ((-0.1, 0, 1, 0), (0.9, 0, 0.9, 0.5), (0.5, 0, 0.5, 0.5)):
            pen.line(at(*line), fill=255, width=width)
    elif item == "flag":
        pen.line(at(-0.7, -1, -0.7, 1), fill=255, width=width)
        pen.polygon(at(-0.7, -1, 0.9, -0.5, -0.7, 0.1), fill=255)
    elif item == "umbrella":
        pen.pieslice(at(-1, -1, 1, 1), 180, 360, fill=255)
        pen.line(at(0, 0, 0, 0.9), fill=255, width=width)
        pen.arc(at(0, 0.6, 0.5, 1.1), 0, 180, fill=255, width=width)
    elif item == "anchor":
        pen.line(at(0, -0.6, 0, 1), fill=255, width=width)
        pen.ellipse(at(-0.3, -1.1, 0.3, -0.5), outline=255, width=width)
        pen.arc(at(-0.9, -0.4, 0.9, 1.05), 10, 170, fill=255, width=width)
        pen.line(at(-0.5, -0.25, 0.5, -0.25), fill=255, width=width)
    elif item == "mushroom":
        pen.pieslice(at(-1, -0.9, 1, 0.7), 180, 360, fill=255)
        pen.rectangle(at(-0.35, -0.1, 0.35, 0.95), fill=255)
    else:  # fish
        pen.ellipse(at(-1, -0.5, 0.5, 0.5), fill=255)
        pen.polygon(at(0.3, 0, 1, -0.55, 1, 0.55), fill=255)
    body, inside = _shrink(mask.filter(ImageFilter.MaxFilter(9))), _shrink(mask)
    tone = np.where(body > 0.02, np.minimum(inside / np.maximum(body, 0.02), 1.0), 0.0)
    return tone[..., None] * np.asarray(ITEM_RGB, np.float32), body, body


def paste(image: np.ndarray, sprite: Sprite, x: float, y: float) -> np.ndarray:
    """Paste a sprite around ``(x, y)`` in place; returns the share of its body in each cell, (GRID * GRID,)."""
    rgb, opacity, body = sprite
    left, top = round(x) - CANVAS // 2, round(y) - CANVAS // 2
    x0, y0, x1, y1 = max(0, left), max(0, top), min(SIZE, left + CANVAS), min(SIZE, top + CANVAS)
    part = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    a = opacity[part][..., None]
    image[y0:y1, x0:x1] += (rgb[part] - image[y0:y1, x0:x1]) * a
    cover = np.zeros((SIZE, SIZE), np.float32)
    cover[y0:y1, x0:x1] = body[part]
    cell = SIZE // GRID
    return (cover.reshape(GRID, cell, GRID, cell).sum((1, 3)) / body.sum()).ravel()


# ---- anomalies -------------------------------------------------------------------------------------------------

_ROW, _COLUMN = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)


def paint_anomaly(
    image: np.ndarray, name: str, progress: float, fixed: np.random.Generator, rng: np.random.Generator
) -> None:
    """Change the whole frame in place. ``fixed`` is the same in all frames of one event, ``rng`` is new in each."""
    if name == "fire":
        height = SIZE * (0.35 + 0.12 * np.sin(_COLUMN[0] / fixed.uniform(4, 8) + rng.uniform(0, 6)))
        height = height + np.repeat(rng.normal(0, 5, SIZE // 4), 4)
        flame, core = SIZE - height < _ROW, SIZE - 0.55 * height < _ROW
        image[flame] = image[flame] * 0.15 + np.array((250, 110, 20), np.float32) * 0.85
        image[core] = (255, 215, 70)
    elif name == "flood":
        level = SIZE * (0.68 - 0.28 * progress) + 3 * np.sin(_COLUMN / 7 + 9 * progress + fixed.uniform(0, 6))
        water = level < _ROW
        image[water] = image[water] * 0.3 + np.array((40, 110, 190), np.float32) * 0.7
    elif name == "lightning":
        image *= 0.6
        image += 60
        bolt = Image.new("L", (SIZE, SIZE))
        x = fixed.uniform(20, 90)
        points = [(x, 0.0)]
        for down in range(14, SIZE, 14):
            x += rng.uniform(-16, 16)
            points.append((x, float(down)))
        ImageDraw.Draw(bolt).line(points, fill=255, width=4)
        image[np.asarray(bolt) > 0] = (255, 255, 225)
    elif name == "blackout":
        image *= 0.12
    else:  # smoke
        cloud = np.zeros((SIZE, SIZE), np.float32)
        for _ in range(6):
            x, y, r = fixed.uniform(10, 100), fixed.uniform(10, 90) - 12 * progress, fixed.uniform(14, 30)
            cloud = np.maximum(cloud, np.clip(1.3 - ((_COLUMN - x) ** 2 + (_ROW - y) ** 2) / r**2, 0, 0.9))
        image += (np.array((150, 150, 155), np.float32) - image) * cloud[..., None]


# ---- frames ----------------------------------------------------------------------------------------------------

# A few noise fields, reused at random: drawing new noise would take longer than all the rest of a frame.
_NOISE = np.random.default_rng(0).normal(0, 1, (16, SIZE + 32, SIZE + 32, 1)).astype(np.float32)
NOISE_LEVEL = (0.5, 1.5)
FLICKER = (0.96, 1.04)


def draw_frame(
    place: np.ndarray,
    rng: np.random.Generator,
    shake: tuple[int, int] = (0, 0),
    event: Event | None = None,
    progress: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one frame.

    Parameters
    ----------
    place : (SIZE + 2 PAD, SIZE + 2 PAD, 3) float32
        From :func:`draw_place`.
    shake : (int, int)
        Camera shift in pixels, at most ``PAD`` each way.
    event, progress
        What happens, and how far it is (0 to 1).

    Returns
    -------
    image : (SIZE, SIZE, 3) uint8
    cover : (GRID * GRID,) float32
        How much of the event each cell shows, 0 to 1.
    """
    x, y = PAD + shake[0], PAD + shake[1]
    image = place[y : y + SIZE, x : x + SIZE].copy()
    cover = np.zeros(GRID * GRID, np.float32)
    if event is not None and event.kind == "anomaly":
        paint_anomaly(image, event.name[0], progress, np.random.default_rng(event.seed), rng)
        cover[:] = 1
    elif event is not None:
        if event.kind == "actor":
            sprite, (cx, cy) = actor_sprite(*event.name, event.radius), actor_position(event, progress)
        else:
            sprite, (cx, cy) = item_sprite(event.name[0]), event.across
        share = paste(image, sprite, cx, cy)
        cover = np.where(share < COVER_MIN, 0, np.clip(share / COVER_FULL, 0, 1)).astype(np.float32)
    image *= rng.uniform(*FLICKER)
    dx, dy = rng.integers(0, 32, 2)
    image += _NOISE[rng.integers(len(_NOISE)), dy : dy + SIZE, dx : dx + SIZE] * np.float32(rng.uniform(*NOISE_LEVEL))
    return np.clip(image, 0, 255).astype(np.uint8), cover


def actor_position(event: Event, progress: float) -> tuple[float, float]:
    """Centre of an actor: it crosses the frame along its direction, and sways a little across it."""
    dx, dy = STEP[event.name[2]]
    low, high = PATH
    along = low + (high - low) * progress if dx + dy > 0 else high - (high - low) * progress
    across = event.across[0] + 2.5 * math.sin(6 * progress + event.seed)
    return (along, across) if dx else (across, along)


def random_event(
    kind: str, name: tuple[str, ...], rng: np.random.Generator, start: float = 0.0, end: float = 1.0
) -> Event:
    """An event of this kind and name with the rest drawn at random."""
    across = tuple(float(v) for v in rng.uniform(18, SIZE - 18, 2))
    return Event(kind, name, int(rng.choice(RADII)), (across[0], across[1]), start, end, int(rng.integers(1 << 30)))
