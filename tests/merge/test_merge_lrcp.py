"""LRCP against numpy's SVD in float64."""

import numpy as np
import pytest
import torch

from tests.merge_films import film, run, still
from videoprune.errors import UsageError
from videoprune.merge.lrcp import LRCP, reconstruction_error


def spectrum(count, width, seed=0):
    """Rows with a decaying spectrum around a large mean."""
    generator = torch.Generator().manual_seed(seed)
    scale = 0.7 ** torch.arange(width)
    return torch.randn(count, width, generator=generator) * scale @ torch.randn(width, width, generator=generator) + 5


def slow(rows, rank):
    rows = rows.double().numpy()
    rows = rows - rows.mean(axis=0)
    kept = np.linalg.svd(rows, full_matrices=False)[2][:rank]
    return ((rows - rows @ kept.T @ kept) ** 2).sum(axis=1)


@pytest.mark.parametrize(("count", "width"), [(60, 12), (9, 20), (1, 5), (3, 3)])
@pytest.mark.parametrize("rank", [1, 4])
def test_reconstruction_error(count, width, rank):
    rows = spectrum(count, width)
    want = slow(rows, rank)
    assert np.allclose(
        reconstruction_error(rows, rank), want, atol=1e-4 * float((rows - rows.mean(0)).square().sum(1).max())
    )


def test_what_is_explained_least_stays_and_the_rest_may_join_it():
    tokens = film(4)
    score = slow(tokens.features, 2)
    stays = sorted(sorted(range(64), key=lambda row: -score[row])[:10])
    assert torch.equal(LRCP(keep=10, rank=2)(tokens, run(4)).features, tokens.features[stays])
    left = LRCP(keep=10, rank=2, merge=True)(tokens, run(4)).check()
    rows = tokens.features.double().numpy()
    scaled = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    groups = {row: [row] for row in stays}
    for row in set(range(64)) - set(stays):
        groups[max(stays, key=lambda kept: scaled[row] @ scaled[kept])].append(row)
    assert left.weight.tolist() == [len(groups[row]) for row in stays]
    assert np.allclose(left.features, [rows[groups[row]].mean(axis=0) for row in stays], atol=1e-5)


# ------------------------------------------------------------------------------------------------------ invariants


@pytest.mark.parametrize("keep", [0.25, 0.9, 1, 3])
@pytest.mark.parametrize("at_most", [None, 5])
@pytest.mark.parametrize(("lengths", "grid"), [((1,), (1, 1)), ((1,), (3, 3)), ((3, 4), (1, 1)), ((4, 1, 6), (3, 4))])
def test_budget_order_and_ledger(keep, at_most, lengths, grid):
    method = LRCP(keep=keep, at_most=at_most)
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
    method = LRCP(**settings)
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
    kept, moved = LRCP(keep=6, positions="original"), LRCP(keep=6, positions="compact")
    tokens = film(4)
    assert moved(tokens, run(4)).position.tolist() == list(range(6))
    assert (
        kept(tokens, run(4)).position.tolist()
        == (16 * kept(tokens, run(4)).frame + kept(tokens, run(4)).cell @ torch.tensor([4, 1])).tolist()
    )


@pytest.mark.parametrize("bad", [{"rank": 0}, {"keep": 0}, {"positions": "new"}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        LRCP(**bad)
