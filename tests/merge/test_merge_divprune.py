"""DivPrune against a search in float64, its budget and its ledger."""

import numpy as np
import pytest
import torch

from tests.merge_films import film, run, still
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


@pytest.mark.parametrize("keep", [0.25, 0.9, 1, 3])
@pytest.mark.parametrize("at_most", [None, 5])
@pytest.mark.parametrize(("lengths", "grid"), [((1,), (1, 1)), ((1,), (3, 3)), ((3, 4), (1, 1)), ((4, 1, 6), (3, 4))])
def test_budget_order_and_ledger(keep, at_most, lengths, grid):
    method = DivPrune(keep=keep, at_most=at_most)
    for tokens in (film(sum(lengths), grid), still(sum(lengths), grid)):
        left = method(tokens, run(*lengths)).check()
        wanted = method.count(len(tokens))
        assert left.count == wanted
        assert bool((left.frame.diff() >= 0).all())
        assert bool((left.frame * 1000 + left.cell[:, 0] * grid[1] + left.cell[:, 1]).diff().gt(0).all())
        again = method(tokens, run(*lengths))
        assert torch.equal(again.features, left.features)
        assert torch.equal(again.owner, left.owner)
        if wanted == len(tokens):
            assert torch.equal(left.features, tokens.features)


@pytest.mark.parametrize("settings", [{}, {"keep": 0.2}, {"at_most": 9}])
def test_black_repeated_half_precision_and_torn_films(settings):
    method = DivPrune(**settings)
    black, same = film(5, rows=torch.zeros(80, 6)), film(5, rows=torch.ones(80, 6))
    for tokens, value in ((black, 0.0), (same, 1.0)):
        left = method(tokens, run(2, 3)).check()
        assert torch.allclose(left.features, torch.full_like(left.features, value))
        assert 1 <= left.count <= method.count(80)
    half = method(film(5, dtype=torch.bfloat16), run(2, 3)).check()
    assert half.features.dtype == torch.bfloat16
    assert bool(torch.isfinite(half.features).all())
    torn = film(5).keep(torch.cat((torch.arange(3, 16), torch.tensor([20]), torch.arange(64, 80))))
    torn = torn.insert(torch.tensor([12, 13]), torch.full((2, 6), 9.0))
    left = method(torn, run(2, 3)).check()
    assert bool((left.features[left.weight == 0] == 9).all())
    assert int((left.weight == 0).sum()) == 2
    assert left.count <= method.count(30)


def test_positions():
    kept, moved = DivPrune(keep=6, positions="original"), DivPrune(keep=6, positions="compact")
    tokens = film(4)
    assert moved(tokens, run(4)).position.tolist() == list(range(6))
    assert (
        kept(tokens, run(4)).position.tolist()
        == (16 * kept(tokens, run(4)).frame + kept(tokens, run(4)).cell @ torch.tensor([4, 1])).tolist()
    )


@pytest.mark.parametrize("bad", [{"window": 0}, {"keep": 0}, {"positions": "new"}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        DivPrune(**bad)
