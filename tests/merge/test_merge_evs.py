"""EVS against loops in float64."""

import numpy as np
import pytest
import torch

from tests.merge_films import film, run, still
from videoprune.errors import UsageError
from videoprune.merge.evs import EVS


def slow(tokens, count):
    """Rows kept, by a search for the same place in earlier frames."""
    score = []
    rows = tokens.features.double().numpy()
    for row in range(len(tokens)):
        past = [o for o in range(row) if torch.equal(tokens.cell[o], tokens.cell[row])]
        if past:
            a, b = rows[row], rows[past[-1]]
            score.append(1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
        else:
            score.append(255.0)
    return sorted(sorted(range(len(tokens)), key=lambda row: (-score[row], row))[:count])


@pytest.mark.parametrize("keep", [0.25, 0.5, 33, 4])
def test_the_tokens_that_changed_most(keep):
    method = EVS(keep=keep)
    for tokens in (film(5), still(5), film(5).keep(torch.cat((torch.arange(5, 16), torch.arange(22, 80))))):
        left = method(tokens, run(5))
        assert left.position.tolist() == tokens.position[slow(tokens, method.count(len(tokens)))].tolist()


def test_the_first_frame_comes_first():
    assert EVS(keep=16)(film(5), run(5)).frame.tolist() == [0] * 16


# ------------------------------------------------------------------------------------------------------ invariants


@pytest.mark.parametrize("keep", [0.25, 0.9, 1, 3])
@pytest.mark.parametrize("at_most", [None, 5])
@pytest.mark.parametrize(("lengths", "grid"), [((1,), (1, 1)), ((1,), (3, 3)), ((3, 4), (1, 1)), ((4, 1, 6), (3, 4))])
def test_budget_order_and_ledger(keep, at_most, lengths, grid):
    method = EVS(keep=keep, at_most=at_most)
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
    method = EVS(**settings)
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
    kept, moved = EVS(keep=6, positions="original"), EVS(keep=6, positions="compact")
    tokens = film(4)
    assert moved(tokens, run(4)).position.tolist() == list(range(6))
    assert (
        kept(tokens, run(4)).position.tolist()
        == (16 * kept(tokens, run(4)).frame + kept(tokens, run(4)).cell @ torch.tensor([4, 1])).tolist()
    )


@pytest.mark.parametrize("bad", [{"keep": 0}, {"at_most": 0}, {"positions": "new"}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        EVS(**bad)
