"""HoliTom's merging against loops in float64."""

import itertools

import numpy as np
import pytest
import torch

from tests.merge_films import film, run, still
from videoprune.errors import UsageError
from videoprune.merge.holitom import HoliTom, mixed, static_runs


def cos(a, b):
    a, b = a.double().numpy(), b.double().numpy()
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / size) if size else 0.0


def slow_static(tokens, lengths, threshold):
    event = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[tokens.frame]
    into = list(range(len(tokens)))
    for number in range(len(lengths)):
        frames = tokens.frame[event == number].unique()
        for cell in tokens.cell.unique(dim=0):
            rows = ((event == number) & (tokens.cell == cell).all(dim=1)).nonzero()[:, 0].tolist()
            near = [cos(tokens.features[a], tokens.features[b]) for a, b in itertools.pairwise(rows)]
            if len(rows) == len(frames) and near and min(near) > threshold:
                into = [rows[0] if row in rows else target for row, target in enumerate(into)]
    return into


@pytest.mark.parametrize("lengths", [(3, 1, 4), (8,), (2, 6)])
@pytest.mark.parametrize("threshold", [0.65, -0.3])
def test_static_places(lengths, threshold):
    torn = torch.arange(128)
    for tokens in (still(8), film(8), still(8).keep(torn[torn % 13 != 4])):
        event = run(*lengths).events.frame_event[tokens.frame]
        place = tokens.cell @ torch.tensor([4, 1])
        got = static_runs(tokens.features, tokens.frame, event, place, threshold)
        assert got.tolist() == slow_static(tokens, lengths, threshold)


def test_centres_are_mixed_with_what_joins_them():
    rows = torch.randn(7, 6, generator=torch.Generator().manual_seed(3))
    into = torch.tensor([0, 0, -1, 3, 0, 3, 6])
    got = mixed(rows, into, 0.6)
    assert torch.allclose(got[0], 0.6 * rows[0] + 0.4 * rows[[1, 4]].mean(dim=0), atol=1e-6)
    assert torch.allclose(got[3], 0.6 * rows[3] + 0.4 * rows[5], atol=1e-6)
    assert torch.equal(got[[1, 2, 6]], rows[[1, 2, 6]])
    assert torch.allclose(mixed(rows, into, 0.2)[3], 0.5 * rows[3] + 0.5 * rows[5], atol=1e-6)


def test_moving_tokens_are_those_that_are_looked_at():
    tokens, events = film(4), run(4)
    given = torch.rand(64, generator=torch.Generator().manual_seed(8))
    left = HoliTom(keep=20, threshold=1.0)(tokens.with_scores(cls_attention=given), events).check()
    want = [sorted(sorted(range(16 * f, 16 * f + 16), key=lambda r: -given[r])[:5]) for f in range(4)]
    assert torch.equal(left.features, tokens.features[list(itertools.chain(*want))])
    received = []
    for frame in range(4):
        rows = tokens.features[16 * frame : 16 * frame + 16].double().numpy()
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        looks = np.exp(rows @ rows.T / 0.1)
        received += (looks / looks.sum(axis=1, keepdims=True)).mean(axis=0).tolist()
    left = HoliTom(keep=20, threshold=1.0)(tokens, events).check()
    want = [sorted(sorted(range(16 * f, 16 * f + 16), key=lambda r: -received[r])[:5]) for f in range(4)]
    assert torch.equal(left.features, tokens.features[list(itertools.chain(*want))])


def test_the_share_grows_with_what_static_places_save():
    tokens = still(8)  # 10 static places, 6 moving a frame: 58 tokens are left of 128
    left = HoliTom(keep=29)(tokens, run(8)).check()
    assert left.count == 29
    assert torch.bincount(left.frame).tolist() == [8, 3, 3, 3, 3, 3, 3, 3]
    assert HoliTom(keep=100)(tokens, run(8)).count == 58
    joined = (left.weight > 1).nonzero()[:, 0]
    assert len(joined) == 5
    assert int(left.weight[joined].sum()) == 80


# ------------------------------------------------------------------------------------------------------ invariants


@pytest.mark.parametrize("keep", [0.25, 0.9, 1, 3])
@pytest.mark.parametrize("at_most", [None, 5])
@pytest.mark.parametrize(("lengths", "grid"), [((1,), (1, 1)), ((1,), (3, 3)), ((3, 4), (1, 1)), ((4, 1, 6), (3, 4))])
def test_budget_order_and_ledger(keep, at_most, lengths, grid):
    method = HoliTom(keep=keep, at_most=at_most)
    for tokens in (film(sum(lengths), grid), still(sum(lengths), grid)):
        left = method(tokens, run(*lengths)).check()
        wanted = method.count(len(tokens))
        assert left.count == wanted or (
            tokens.features.equal(still(sum(lengths), grid).features) and left.count < wanted
        )
        assert bool((left.frame.diff() >= 0).all())
        assert bool((left.frame * 1000 + left.cell[:, 0] * grid[1] + left.cell[:, 1]).diff().gt(0).all())
        again = method(tokens, run(*lengths))
        assert torch.equal(again.features, left.features)
        assert torch.equal(again.owner, left.owner)
        if wanted == len(tokens):
            assert torch.equal(left.features, tokens.features)


@pytest.mark.parametrize("settings", [{}, {"keep": 0.2}, {"at_most": 9}])
def test_black_repeated_half_precision_and_torn_films(settings):
    method = HoliTom(**settings)
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
    kept, moved = HoliTom(keep=6, positions="original"), HoliTom(keep=6, positions="compact")
    tokens = film(4)
    assert moved(tokens, run(4)).position.tolist() == list(range(6))
    assert (
        kept(tokens, run(4)).position.tolist()
        == (16 * kept(tokens, run(4)).frame + kept(tokens, run(4)).cell @ torch.tensor([4, 1])).tolist()
    )


@pytest.mark.parametrize("bad", [{"threshold": 2}, {"mix": -1}, {"neighbors": 0}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        HoliTom(**bad)
