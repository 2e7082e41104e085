"""What a scout learns from."""

import numpy as np
import pytest
import torch

from videoprune.demo import names
from videoprune.errors import UsageError
from videoprune.scout.ssm import SSM
from videoprune.training import concepts
from videoprune.training.concepts import Concepts


def test_lesson_teaches_the_words_of_pictures(monkeypatch):
    method = SSM(width=16)
    lesson = Concepts(method, None, "demo", films=2, seed=3)
    assert len(lesson) == 80
    image, words = lesson[5]
    again = Concepts(method, None, "demo", films=2, seed=3)[5]
    assert np.array_equal(image, again[0])
    assert np.array_equal(words, again[1])
    shown = {names.CONCEPTS[number] for number in np.flatnonzero(words)}
    assert len(shown & set(names.PLACES)) == 1
    torch.manual_seed(0)
    part = method.build(None)
    optimiser = torch.optim.AdamW(part.parameters(), 3e-3)
    losses = []
    for step in range(30):
        rows = torch.randint(80, (16,))
        loss = lesson.loss(part, [lesson[int(row)] for row in rows], step / 30)
        assert 0 <= float(loss["found"]) <= 1
        optimiser.zero_grad()
        loss["loss"].backward()
        optimiser.step()
        losses.append(float(loss["loss"].detach()))
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
    assert part.centre.abs().sum() > 0
    monkeypatch.setattr(concepts, "HELD_STREAMS", 1)
    found = lesson.held_out(part.eval())
    assert found["pictures"] == 40
    assert {"shape", "place_pruned"} <= set(found)
    assert all(0 <= value <= 1 for key, value in found.items() if key != "pictures")


def test_films_without_words_are_refused():
    with pytest.raises(UsageError, match="official PlainMamba checkpoint"):
        Concepts(SSM(), None, "films/", films=2)
