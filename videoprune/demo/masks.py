"""Where the objects of a generated scene are: pixel masks, next to `scenes.draw_frame` that draws them."""

from __future__ import annotations

import copy

import numpy as np

from videoprune.demo import scenes

OPAQUE = 0.1  # of a sprite: below it, what is drawn cannot be told from the place behind it
CHANGED = 10.0  # levels of 255 that an anomaly must change a pixel by


def body_mask(sprite: scenes.Sprite, x: float, y: float, body: bool = False) -> np.ndarray:
    """Pixels that a sprite around ``(x, y)`` covers, (SIZE, SIZE) bool; with ``body`` without what trails behind it."""
    _, opacity, solid = sprite
    left, top = round(x) - scenes.CANVAS // 2, round(y) - scenes.CANVAS // 2
    x0, y0 = max(0, left), max(0, top)
    x1, y1 = min(scenes.SIZE, left + scenes.CANVAS), min(scenes.SIZE, top + scenes.CANVAS)
    mask = np.zeros((scenes.SIZE, scenes.SIZE), bool)
    if x0 < x1 and y0 < y1:
        part = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        mask[y0:y1, x0:x1] = (solid if body else opacity)[part] > OPAQUE
    return mask


def event_mask(
    place: np.ndarray,
    rng: np.random.Generator,
    shake: tuple[int, int] = (0, 0),
    event: scenes.Event | None = None,
    progress: float = 0.0,
) -> np.ndarray:
    """The foreground of the frame that ``scenes.draw_frame`` draws from the same arguments, (SIZE, SIZE) bool.

    An object with its streak, or what an anomaly changes; nothing where nothing happens. Call it before ``draw_frame``: the
    generator is read, not moved.
    """
    if event is None:
        return np.zeros((scenes.SIZE, scenes.SIZE), bool)
    if event.kind == "anomaly":
        x, y = scenes.PAD + shake[0], scenes.PAD + shake[1]
        still = place[y : y + scenes.SIZE, x : x + scenes.SIZE]
        image = still.copy()
        fixed = np.random.default_rng(event.seed)
        scenes.paint_anomaly(image, event.name[0], progress, fixed, copy.deepcopy(rng))
        changed: np.ndarray = np.abs(image - still).max(axis=2) > CHANGED
        return changed
    if event.kind == "actor":
        return body_mask(
            scenes.actor_sprite(*event.name, event.radius),
            *scenes.actor_position(event, progress),
        )
    return body_mask(scenes.item_sprite(event.name[0]), *event.across)


def box_of(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom (half open) of what a mask (H, W) marks; None where it marks nothing."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
