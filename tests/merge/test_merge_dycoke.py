"""DyCoke's temporal merging against loops in float64."""

import numpy as np
import pytest
import torch

from tests.merge_films import film, run, still
from videoprune.errors import UsageError
from videoprune.merge.dycoke import DyCoke, quotas


def like(tokens, row):
    frame = int(tokens.frame[row])
    past = frame - [4, 1, 2, 1][frame % 4]
    same = (tokens.frame == past) & (tokens.cell == tokens.cell[row]).all(dim=1)
    if past < 0 or not bool(same.any()):
        return -2.0
    a, b = tokens.features[row].double().numpy(), tokens.features[same][0].double().numpy()
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def test_the_papers_share_of_whole_windows():
    tokens = film(8, (5, 4))
    left = DyCoke()(tokens, run(8)).check()
    assert torch.bincount(left.frame).tolist() == [20, 6, 6, 6] * 2
    assert left.count / len(tokens) == pytest.approx(0.475)


@pytest.mark.parametrize("frames", [1, 2, 3, 6, 7])
def test_what_is_most_alike_leaves(frames):
    torn = torch.arange(frames * 16)
    torn = torn[torn % 11 != 5]
    for tokens in (film(frames), film(frames).keep(torn)):
        left = DyCoke(positions="original")(tokens, run(frames)).check()
        stays = []
        for frame in range(frames):
            rows = (tokens.frame == frame).nonzero()[:, 0].tolist()
            gone = 0 if frame % 4 == 0 else int(0.7 * len(rows) + 0.5)
            stays += sorted(sorted(rows, key=lambda row: (like(tokens, row), row))[: len(rows) - gone])
        assert left.position.tolist() == tokens.position[stays].tolist()


def test_quotas():
    counts, frames = torch.tensor([10, 10, 10, 10, 10]), torch.arange(5)
    assert quotas(counts, frames, 0.7, 32).tolist() == [10, 4, 4, 4, 10]
    assert quotas(counts, frames, 0.7, 15).tolist() == [8, 0, 0, 0, 7]
    assert quotas(counts, frames, 0.7, 50).tolist() == [10] * 5
    assert quotas(counts, frames, 1.0, None).tolist() == [10, 0, 0, 0, 10]


# ------------------------------------------------------------------------------------------------------ invariants


@pytest.mark.parametrize("keep", [0.25, 0.9, 1, 3])
@pytest.mark.parametrize("at_most", [None, 5])
@pytest.mark.parametrize(("lengths", "grid"), [((1,), (1, 1)), ((1,), (3, 3)), ((3, 4), (1, 1)), ((4, 1, 6), (3, 4))])
def test_budget_order_and_ledger(keep, at_most, lengths, grid):
    method = DyCoke(keep=keep, at_most=at_most)
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
    method = DyCoke(**settings)
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
    kept, moved = DyCoke(keep=6, positions="original"), DyCoke(keep=6, positions="compact")
    tokens = film(4)
    assert moved(tokens, run(4)).position.tolist() == list(range(6))
    assert (
        kept(tokens, run(4)).position.tolist()
        == (16 * kept(tokens, run(4)).frame + kept(tokens, run(4)).cell @ torch.tensor([4, 1])).tolist()
    )


@pytest.mark.parametrize("bad", [{"drop": 1.5}, {"keep": 0}, {"positions": "new"}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        DyCoke(**bad)
