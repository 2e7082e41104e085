"""Greedy farthest points against a search in float64."""

import numpy as np
import pytest
import torch

from videoprune.ops import farthest
from videoprune.ops.farthest import farthest_points, nearest_similarity
from videoprune.ops.similarity import unit


def points(count, seed=0):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def similarities(rows):
    rows = rows.double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    like = rows @ rows.T
    np.fill_diagonal(like, -np.inf)
    return like


def test_nearest_similarity_by_blocks(monkeypatch):
    rows = points(23)
    want = similarities(rows).max(axis=1)
    for block in (2**24, 50, 1):
        monkeypatch.setattr(farthest, "BLOCK", block)
        assert np.allclose(nearest_similarity(unit(rows)), want, atol=1e-6)


@pytest.mark.parametrize("hold", [8192, 0])
def test_every_step_takes_the_farthest(hold, monkeypatch):
    monkeypatch.setattr(farthest, "HOLD", hold)
    rows = points(30, 4)
    like = similarities(rows)
    picked = farthest_points(rows, 30).tolist()
    assert picked[0] == int(like.max(axis=1).argmin())
    for step in range(1, 30):
        rest = [j for j in range(30) if j not in picked[:step]]
        assert picked[step] == min(rest, key=lambda j: (like[j][picked[:step]].max(), j))


@pytest.mark.parametrize("hold", [8192, 0])
def test_no_row_is_taken_twice(hold, monkeypatch):
    monkeypatch.setattr(farthest, "HOLD", hold)
    rows = points(4).repeat(5, 1)
    assert sorted(farthest_points(rows, 20).tolist()) == list(range(20))
    assert sorted(farthest_points(torch.zeros(6, 3), 6).tolist()) == list(range(6))
    assert farthest_points(points(1), 1).tolist() == [0]
    assert farthest_points(points(3), 0).tolist() == []


def test_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.3"):
        farthest_points(points(3), 4)
