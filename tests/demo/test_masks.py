"""Masks of generated scenes against the pictures that are drawn with and without what happens."""

import numpy as np
import pytest

from videoprune.demo import names, scenes
from videoprune.demo.masks import body_mask, box_of, event_mask


def drawn(event, progress, seed=0):
    """The picture with the event, the same without it, and the mask."""
    place = scenes.draw_place("desert", np.random.default_rng(seed))
    mask = event_mask(place, np.random.default_rng(7), (2, -1), event, progress)
    shown, _ = scenes.draw_frame(place, np.random.default_rng(7), (2, -1), event, progress)
    empty, _ = scenes.draw_frame(place, np.random.default_rng(7), (2, -1))
    return shown.astype(int), empty.astype(int), mask


@pytest.mark.parametrize("kind", ["actor", "item"])
def test_a_mask_is_where_the_picture_changes(kind):
    rng = np.random.default_rng(3)
    for progress in (0.0, 0.3, 0.8):
        name = ("star", "purple", "left") if kind == "actor" else (names.ITEMS[0],)
        shown, empty, mask = drawn(scenes.random_event(kind, name, rng), progress)
        change = np.abs(shown - empty).max(axis=2)
        assert mask.any()
        assert not (change[~mask] > 30).any()  # a tenth of 255, noise and rounding
        assert (change[mask] > 4).mean() > 0.8


@pytest.mark.parametrize("name", names.ANOMALIES)
def test_an_anomaly_covers_what_it_changes(name):
    """The mask draws the flames and bolts that the picture will have: the generator is not moved."""
    event = scenes.random_event("anomaly", (name,), np.random.default_rng(3))
    place = scenes.draw_place("city", np.random.default_rng(0))
    rng = np.random.default_rng(7)
    mask = event_mask(place, rng, (0, 0), event, 0.5)
    image = place[scenes.PAD : scenes.PAD + scenes.SIZE, scenes.PAD : scenes.PAD + scenes.SIZE].copy()
    still = image.copy()
    scenes.paint_anomaly(image, name, 0.5, np.random.default_rng(event.seed), rng)
    assert np.array_equal(mask, np.abs(image - still).max(axis=2) > 10)
    assert mask.mean() > 0.1


def test_nothing_and_beyond_the_edge():
    assert not event_mask(np.zeros((124, 124, 3), np.float32), np.random.default_rng(0)).any()
    sprite = scenes.actor_sprite("square", "red", "up", 14)
    assert not body_mask(sprite, -60, 50).any()
    corner = body_mask(sprite, 0, 0, body=True)
    assert box_of(corner) == (0, 0, *corner.nonzero()[0][[-1]] + 1, *corner.nonzero()[1].max(keepdims=True) + 1)
    assert box_of(np.zeros((4, 4), bool)) is None
    whole = body_mask(sprite, 50, 60, body=True)
    left, top, right, bottom = box_of(whole)
    assert abs((left + right) / 2 - 50) <= 1
    assert abs((top + bottom) / 2 - 60) <= 1
    assert body_mask(sprite, 50, 60).sum() > whole.sum()  # the streak
