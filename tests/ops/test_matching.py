"""Similarity and matching against loops in float64."""

import numpy as np
import pytest
import torch

from videoprune.ops.matching import bipartite_plan, group_mean, nearest_kept
from videoprune.ops.similarity import adjacent_cosine, cosine, smallest, unit


def cos(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / size) if size > 0 else 0.0


def match(rows, remove):
    """Survivors and targets of one entry, one pair at a time."""
    best = {}
    for even in range(0, len(rows), 2):
        odds = range(1, len(rows), 2)
        if len(odds):
            partner = max(odds, key=lambda odd: (cos(rows[even], rows[odd]), -odd))
            best[even] = (cos(rows[even], rows[partner]), partner)
    gone = sorted(best, key=lambda even: (-best[even][0], even))[:remove]
    into = [best[place][1] if place in gone else place for place in range(len(rows))]
    return [place for place in range(len(rows)) if place not in gone], into


@pytest.mark.parametrize(("tokens", "remove"), [(8, 4), (9, 4), (9, 1), (7, 0), (2, 1), (1, 0)])
def test_plan_is_the_brute_force_one(tokens, remove):
    metric = torch.randn(3, tokens, 5, generator=torch.Generator().manual_seed(tokens))
    survivors, into = bipartite_plan(metric, remove)
    for entry in range(3):
        kept, target = match(metric[entry].numpy(), remove)
        assert survivors[entry].tolist() == kept
        assert into[entry].tolist() == target


def test_ties_go_to_the_lower_index():
    survivors, into = bipartite_plan(torch.zeros(1, 6, 4), 2)
    assert survivors.tolist() == [[1, 3, 4, 5]]
    assert into.tolist() == [[1, 1, 1, 3, 4, 5]]


def test_more_than_half_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.2"):
        bipartite_plan(torch.zeros(1, 5, 4), 3)


def test_nearest_kept():
    metric = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(1))
    keep = torch.tensor([[1, 0, 0, 1, 1, 0, 0], [0, 0, 1, 0, 0, 0, 1]], dtype=torch.bool)
    got = nearest_kept(metric, keep)
    for entry in range(2):
        kept = keep[entry].nonzero()[:, 0].tolist()
        for place in range(7):
            assert got[entry, place] == max(kept, key=lambda other: cos(metric[entry, place], metric[entry, other]))


def test_group_mean():
    rows = torch.arange(8.0).view(1, 4, 2)
    got = group_mean(rows, torch.tensor([[1, 3, 1, 1]]), torch.tensor([[0, 0, 1, 1]]), 2)
    assert torch.equal(got, torch.tensor([[[1.5, 2.5], [5.0, 6.0]]]))


def test_cosines():
    rows = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rows[3] = 0
    near = adjacent_cosine(rows)
    assert near.dtype == torch.float32
    assert np.allclose(near, [cos(rows[t], rows[t + 1]) for t in range(4)], atol=1e-6)
    assert np.allclose(cosine(rows, rows[:2]), [[cos(a, b) for b in rows[:2]] for a in rows], atol=1e-6)
    assert unit(rows.bfloat16()).dtype == torch.float32
    assert adjacent_cosine(torch.ones(1, 4)).shape == (0,)


def test_smallest_breaks_ties_by_index():
    score = torch.tensor([[2.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert smallest(score, torch.tensor([[2], [1]])).tolist() == [
        [False, True, True, False],
        [True, False, False, False],
    ]
