"""DivPrune against a search in float64, its budget and its ledger."""

import numpy as np
import pytest
import torch

from tests.merge_films import film, run
from videoprune.errors import UsageError
from videoprune.merge.divprune import DivPrune, select


def slow(rows, keep):
    rows = rows.double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    apart = 1 - rows @ rows.T
    np.fill_diagonal(apart, np.inf)
    picked = [int(apart.min(axis=1).argmax())]
    while len(picked) < keep:
        rest = [j for j in range(len(rows)) if j not in picked]
        picked.append(max(rest, key=lambda j: (min(apart[j][s] for s in picked), -j)))
    return picked


@pytest.mark.parametrize(("count", "keep"), [(40, 12), (40, 40), (2, 1), (7, 6)])
def test_selection(count, keep):
    rows = torch.randn(count, 8, generator=torch.Generator().manual_seed(count))
    assert select(rows, keep).tolist() == slow(rows, keep)


def test_streamed_selection_is_the_same(monkeypatch):
    rows = torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("videoprune.ops.farthest.HOLD", 10)
    monkeypatch.setattr("videoprune.ops.farthest.BLOCK", 500)
    assert select(rows, 20).tolist() == slow(rows, 20)


def test_copies_are_taken_once():
    rows = torch.randn(5, 8, generator=torch.Generator().manual_seed(2)).repeat(6, 1)
    picked = select(rows.bfloat16(), 30).tolist()
    assert sorted(picked) == list(range(30))
    assert {index % 5 for index in picked[:5]} == set(range(5))
    assert sorted(select(torch.zeros(9, 4), 4).tolist()) == [0, 1, 2, 3]


def test_the_whole_film_is_searched_and_windows_split_it():
    tokens = film(4)
    assert DivPrune(keep=9, positions="original")(tokens, run(4)).position.tolist() == sorted(slow(tokens.features, 9))
    left = DivPrune(keep=9, window=32, positions="original")(tokens, run(4)).check()
    assert left.count == 9
    assert left.position[:5].tolist() == sorted(slow(tokens.features[:32], 5))


# ------------------------------------------------------------------------------------------------------ invariants


@pytest.mark.parametrize("bad", [{"window": 0}, {"keep": 0}, {"positions": "new"}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        DivPrune(**bad)
