"""AIM's merging against loops in float64, its budget and its ledger; the baselines."""

import functools
import operator

import numpy as np
import pytest
import torch

from videoprune.errors import UsageError
from videoprune.merge.aim import AIM, merge_round, share_out
from videoprune.merge.random import Random
from videoprune.merge.uniform import Uniform
from videoprune.run import Events, Run
from videoprune.tokens import VisualTokens


def film(frames, grid=(4, 4), seed=0, dtype=torch.float32):
    rows = torch.randn(frames * grid[0] * grid[1], 6, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return VisualTokens.from_frames(rows, torch.arange(frames, dtype=torch.float64), grid)


def run(frames):
    return Run(Events.single(frames))


def slow_round(rows, groups, remove):
    """Rows (N, D) float64 and the original tokens in each -> the same after one round."""
    scaled = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    evens, odds = range(0, len(rows), 2), range(1, len(rows), 2)
    partner = {e: max(odds, key=lambda o: (scaled[e] @ scaled[o], -o)) for e in evens} if len(odds) else {}
    gone = sorted(partner, key=lambda e: (-(scaled[e] @ scaled[partner[e]]), e))[:remove]
    out, members = [], []
    for place in range(len(rows)):
        if place not in gone:
            joined = [place] + [e for e in gone if partner[e] == place]
            out.append(rows[joined].mean(axis=0))
            members.append(functools.reduce(operator.iadd, (groups[j] for j in joined), []))
    return np.stack(out), members


@pytest.mark.parametrize(("tokens", "remove"), [(16, 8), (9, 4), (9, 2), (5, 0)])
def test_round(tokens, remove):
    features = torch.randn(3, tokens, 6, generator=torch.Generator().manual_seed(tokens))
    got = merge_round(features, remove)
    want = [slow_round(frame, [[i] for i in range(tokens)], remove)[0] for frame in features.double().numpy()]
    assert np.allclose(got, want, atol=1e-5)


def test_too_large_a_round_is_refused():
    with pytest.raises(ValueError, match="remove"):
        merge_round(torch.zeros(1, 8, 2), 5)


def test_the_papers_rounds_with_their_ledger():
    tokens = film(3, (5, 5))
    merged = AIM()(tokens, run(3)).check()
    assert len(merged) == 3 * 7  # 25 -> 13 -> 7
    for frame in range(3):
        rows, groups = tokens.features[frame * 25 : frame * 25 + 25].double().numpy(), [[i] for i in range(25)]
        for remove in (12, 6):
            rows, groups = slow_round(rows, groups, remove)
        mine = merged.frame == frame
        assert np.allclose(merged.features[mine], rows, atol=1e-5)
        assert merged.weight[mine].tolist() == [len(group) for group in groups]
        first = int(mine.nonzero()[0])
        for place, group in enumerate(groups):
            assert {int(merged.owner[frame * 25 + token]) for token in group} == {first + place}
    assert merged.position.tolist() == list(range(21))
    assert bool((merged.cell[1:, 0] * 5 + merged.cell[1:, 1] + 25 * merged.frame[1:]).diff().gt(0).all())


@pytest.mark.parametrize("keep", [0.25, 0.1, 0.9, 0.03, 1, 7, 3, 1000])
@pytest.mark.parametrize("at_most", [None, 20, 2])
@pytest.mark.parametrize(("frames", "grid"), [(1, (1, 1)), (1, (3, 3)), (7, (1, 1)), (6, (3, 4)), (11, (4, 4))])
def test_budget_is_exact(keep, at_most, frames, grid):
    tokens = film(frames, grid)
    method = AIM(keep=keep, at_most=at_most)
    merged = method(tokens, run(frames)).check()
    assert merged.count == method.count(len(tokens))
    assert int(merged.weight.sum()) == len(tokens)
    counts = torch.bincount(merged.frame, minlength=frames)
    assert int(counts.max() - counts.min()) <= 1
    if keep == 1 and at_most is None:
        assert torch.equal(merged.features, tokens.features)


def test_a_cap_alone_keeps_the_papers_rounds_below_it():
    assert len(AIM(at_most=100)(film(4), run(4))) == 16
    assert len(AIM(at_most=13)(film(4), run(4))) == 13


def test_frames_that_lost_tokens_before():
    tokens = film(6)
    index = torch.cat((torch.arange(0, 16), torch.tensor([20]), torch.arange(32, 41), torch.arange(64, 80)))
    tokens = tokens.keep(index)  # 16, 1, 9, 0, 16, 0
    for keep in (0.5, 0.2, 5, 4, 3, 1):
        method = AIM(keep=keep)
        merged = method(tokens, run(6)).check()
        assert merged.count == method.count(42)
        assert int(merged.weight.sum()) == 42
        if merged.count >= 4:
            assert set(merged.frame.tolist()) == {0, 1, 2, 4}


def test_share_out():
    assert share_out(torch.tensor([16] * 5), 20).tolist() == [4] * 5
    counts = share_out(torch.tensor([16] * 6), 20)
    assert sorted(counts.tolist()) == [3, 3, 3, 3, 4, 4]
    high = (counts == 4).nonzero()[:, 0]
    assert int(high[1] - high[0]) == 3
    for total in range(1, 30):
        parts = share_out(torch.tensor([5, 0, 1, 16, 7]), total)
        assert int(parts.sum()) == max(total, 4)
        assert bool((parts <= torch.tensor([5, 0, 1, 16, 7])).all())


def test_weighted_means_follow_the_books():
    tokens = film(4)
    pair = torch.arange(64) // 2 * 2
    tokens = tokens.merge(pair)
    tokens = tokens.keep(torch.cat((torch.arange(0, 5), torch.arange(6, 32)))).check()
    merged = AIM(keep=0.3, weighted=True)(tokens, run(4)).check()
    # a weighted mean keeps the film's mean; the plain one does not
    before = (tokens.features * tokens.weight[:, None]).sum(dim=0)
    assert torch.allclose((merged.features * merged.weight[:, None]).sum(dim=0), before, atol=1e-4)
    deep = AIM(keep=2, weighted=True)(tokens, run(4))
    assert torch.allclose((deep.features * deep.weight[:, None]).sum(dim=0), before, atol=1e-4)


def test_added_rows_are_left_alone():
    tokens = film(3).insert(torch.tensor([15, 31]), torch.full((2, 6), 9.0))
    merged = AIM(keep=0.25)(tokens, run(3)).check()
    assert merged.count == 12
    assert len(merged) == 14
    assert bool((merged.features[merged.weight == 0] == 9).all())
    for method in (Random(), Uniform(), AIM(keep=2)):
        assert int((method(tokens, run(3)).check().weight == 0).sum()) == 2


def test_chunks_give_what_the_whole_gives():
    tokens = film(6)
    whole = AIM(keep=0.25)(tokens, run(6))
    parts = []
    for start in (0, 2, 4):
        rows = tokens.features[16 * start : 16 * start + 32]
        parts.append(
            AIM(keep=0.25)(VisualTokens.from_frames(rows, tokens.frame_seconds[start : start + 2], (4, 4)), run(2))
        )
    joined = VisualTokens.concat(parts)
    assert torch.allclose(joined.features, whole.features, atol=1e-6)
    assert torch.equal(joined.owner, whole.owner)


def test_black_repeated_and_half_precision_films():
    black = VisualTokens.from_frames(torch.zeros(64, 6), torch.arange(4.0), (4, 4))
    assert bool(AIM()(black, run(4)).check().features.eq(0).all())
    same = VisualTokens.from_frames(torch.ones(64, 6), torch.arange(4.0), (4, 4))
    assert torch.allclose(AIM(keep=0.2)(same, run(4)).check().features, torch.ones(13, 6))
    half = AIM(keep=0.2)(film(4, dtype=torch.bfloat16), run(4)).check()
    assert half.features.dtype == torch.bfloat16
    assert torch.equal(half.features, AIM(keep=0.2)(film(4, dtype=torch.bfloat16), run(4)).features)


def test_a_chain_of_stages_balances():
    # units as an encode stage leaves them: the odd ones of a frame were absorbed by the even ones, some are gone
    owner = torch.arange(96) // 2
    owner[::7] = -1
    rows = owner[owner >= 0].unique()
    slot = torch.full((48,), -1)
    slot[rows] = torch.arange(len(rows))
    owner = torch.where(owner >= 0, slot[owner.clamp(min=0)], -1)
    tokens = VisualTokens.from_frames(torch.randn(len(rows), 6), torch.arange(6.0), (4, 4), owner=owner)
    merged = AIM(keep=0.4)(tokens, run(6)).check()
    for method in (Uniform(keep=0.5), Random(keep=0.5), Uniform(keep=1), Random(keep=3, positions="compact")):
        left = method(merged, run(6)).check()
        assert left.count == method.count(merged.count)
        assert bool((left.position.diff() > 0).all())


def test_baselines_pick_what_they_say():
    tokens = film(4)
    assert Uniform(keep=4)(tokens, run(4)).position.tolist() == [8, 24, 40, 56]
    one, again = Random()(tokens, run(4)), Random()(tokens, run(4))
    assert torch.equal(one.position, again.position)
    assert len(one) == 16
    other = Random()(tokens, Run(Events.single(4), seed=1))
    assert not torch.equal(one.position, other.position)


@pytest.mark.parametrize("bad", [{"rounds": 0}, {"positions": "new"}, {"keep": 0}, {"at_most": 0}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        AIM(**bad)
