"""What several tests of the demo model's training share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from videoprune.demo import names
from videoprune.demo.timeline import OBJECTS
from videoprune.demo.training.bank import Bank, Clip, Place
from videoprune.demo.training.common import CELLS, WIDTH


@pytest.fixture(scope="module")
def bank() -> Bank:
    """A bank without pictures: the first number of a token is its row."""
    places, rows = [], 0
    rng = np.random.default_rng(0)

    def take(n: int) -> range:
        nonlocal rows
        rows += n
        return range(rows - n, rows)

    for i in range(12):
        place = Place(names.PLACES[i % 6], take(8))
        for j in rng.choice(36, 24, replace=False):
            place.actors[OBJECTS[j]] = [
                Clip((*OBJECTS[j], way), take(int(rng.integers(3, 6)))) for way in ("left", "up")
            ]
        for name in (*names.ITEMS, *names.ANOMALIES):
            place.others[name] = [Clip((name,), take(2))]
        places.append(place)
    shown = np.ones((rows, CELLS), bool)
    for place in places:
        shown[place.empty] = False
    tokens = torch.zeros(rows, CELLS, WIDTH)
    tokens[..., 0] = torch.arange(rows)[:, None] % 200  # small enough for bf16
    return Bank(tokens.bfloat16(), shown, places)
