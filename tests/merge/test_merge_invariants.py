"""What holds for every merge method that keeps a share of a film: budget, order, ledger, degenerate films, positions."""

import pytest
import torch

from tests.merge_films import film, run, still
from videoprune.merge.divprune import DivPrune
from videoprune.merge.dycoke import DyCoke
from videoprune.merge.evs import EVS
from videoprune.merge.fastvid import FastVID
from videoprune.merge.geo3dpruner import Geo3DPruner
from videoprune.merge.holitom import HoliTom
from videoprune.merge.lrcp import LRCP
from videoprune.merge.prunevid import PruneVid
from videoprune.merge.vflowopt import VFlowOpt
from videoprune.tokens import VisualTokens

METHODS = (DivPrune, DyCoke, EVS, FastVID, Geo3DPruner, HoliTom, LRCP, PruneVid, VFlowOpt)
MAY_LEAVE_LESS = (HoliTom, PruneVid)  # static places of a film that stands still are more than the budget takes away


def with_points(tokens: VisualTokens) -> VisualTokens:
    """3-D points for Geo3DPruner, which the others do not look at."""
    generator = torch.Generator().manual_seed(1)
    return tokens.with_scores(points=torch.rand(len(tokens), 3, generator=generator) * 0.4 - 0.2)


@pytest.mark.parametrize("keep", [0.25, 0.9, 1, 3])
@pytest.mark.parametrize("at_most", [None, 5])
@pytest.mark.parametrize(("lengths", "grid"), [((1,), (1, 1)), ((1,), (3, 3)), ((3, 4), (1, 1)), ((4, 1, 6), (3, 4))])
@pytest.mark.parametrize("kind", METHODS)
def test_budget_order_and_ledger(kind, keep, at_most, lengths, grid):
    method = kind(keep=keep, at_most=at_most)
    for draw in (film, still):
        tokens = with_points(draw(sum(lengths), grid))
        left = method(tokens, run(*lengths)).check()
        wanted = method.count(len(tokens))
        assert left.count == wanted or (kind in MAY_LEAVE_LESS and draw is still and left.count < wanted)
        assert bool((left.frame.diff() >= 0).all())
        assert bool((left.frame * 1000 + left.cell[:, 0] * grid[1] + left.cell[:, 1]).diff().gt(0).all())
        again = method(tokens, run(*lengths))
        assert torch.equal(again.features, left.features)
        assert torch.equal(again.owner, left.owner)
        if wanted == len(tokens):
            assert torch.equal(left.features, tokens.features)


@pytest.mark.parametrize("settings", [{}, {"keep": 0.2}, {"at_most": 9}])
@pytest.mark.parametrize("kind", METHODS)
def test_black_repeated_half_precision_and_torn_films(kind, settings):
    method = kind(**settings)
    for value in (0.0, 1.0):
        tokens = with_points(film(5, rows=torch.full((80, 6), value)))
        left = method(tokens, run(2, 3)).check()
        assert torch.allclose(left.features, torch.full_like(left.features, value))
        assert 1 <= left.count <= method.count(80)
    half = method(with_points(film(5, dtype=torch.bfloat16)), run(2, 3)).check()
    assert half.features.dtype == torch.bfloat16
    assert bool(torch.isfinite(half.features).all())
    torn = with_points(film(5)).keep(torch.cat((torch.arange(3, 16), torch.tensor([20]), torch.arange(64, 80))))
    torn = torn.insert(torch.tensor([12, 13]), torch.full((2, 6), 9.0))
    left = method(torn, run(2, 3)).check()
    assert bool((left.features[left.weight == 0] == 9).all())
    assert int((left.weight == 0).sum()) == 2
    assert left.count <= method.count(30)


@pytest.mark.parametrize("kind", METHODS)
def test_positions(kind):
    kept, moved = kind(keep=6, positions="original"), kind(keep=6, positions="compact")
    tokens = with_points(film(4))
    assert moved(tokens, run(4)).position.tolist() == list(range(6))
    left = kept(tokens, run(4))
    assert left.position.tolist() == (16 * left.frame + left.cell @ torch.tensor([4, 1])).tolist()
