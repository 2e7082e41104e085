"""FastVID's merging against loops in float64."""

import numpy as np
import pytest
import torch

from tests.merge_films import film, run, still
from videoprune.errors import UsageError
from videoprune.merge.fastvid import FastVID, anchor_frames, frame_quotas, gather_context


def test_anchor_frames_are_counted_back_from_the_end():
    counts, event = torch.full((11,), 16), torch.tensor([0] * 6 + [1] * 5)
    assert anchor_frames(counts, event, 4).nonzero()[:, 0].tolist() == [1, 5, 6, 10]
    counts[10] = 0
    assert anchor_frames(counts, event, 4).nonzero()[:, 0].tolist() == [1, 5, 9]


def test_quotas():
    counts, event = torch.full((8,), 20), torch.tensor([0] * 4 + [1] * 4)
    salient, anchors = frame_quotas(counts, event, 80, 0.4, 4)
    assert salient.tolist() == [6] * 8
    assert anchors.tolist() == [0, 0, 0, 14, 0, 0, 0, 14]  # 16 are given, 14 are not salient
    salient, anchors = frame_quotas(counts, event, 40, 0.4, 4)
    assert anchors.tolist() == [0, 0, 0, 8, 0, 0, 0, 8]


def test_anchors_gather_their_event():
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(40, 6, generator=generator)
    frame, group = torch.arange(40) // 8, torch.arange(40) // 24
    anchor = torch.zeros(40, dtype=torch.bool)
    anchor[[9, 12, 18, 19, 20]] = True
    group[torch.arange(40) % 7 == 3] = -1
    into, out = gather_context(rows, group, anchor, frame, 0.6)
    exact = rows.double().numpy()
    scaled = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    members = [r for r in range(40) if group[r] == 0 and not anchor[r]]
    chosen = anchor.nonzero()[:, 0].tolist()
    for row in range(40):
        if row in members:
            assert into[row] == max(chosen, key=lambda a: scaled[row] @ scaled[a])
        else:
            assert into[row] == (-1 if group[row] == 1 else row)
    for number in (1, 2):
        own = [a for a in chosen if frame[a] == number]
        nearest = {row: max(own, key=lambda a: scaled[row] @ scaled[a]) for row in members}
        for a in own:
            joined = [row for row in members if nearest[row] == a]
            share = max(0.6, 1 / (1 + len(joined)))
            want = share * exact[a] + (1 - share) * exact[joined].mean(axis=0) if joined else exact[a]
            assert np.allclose(out[a], want, atol=1e-5)


def test_salient_tokens_stay_as_they_are():
    tokens = film(6)
    given = torch.rand(96, generator=torch.Generator().manual_seed(8))
    left = FastVID(keep=30)(tokens.with_scores(cls_attention=given), run(2, 4)).check()
    assert left.count == 30
    for frame in range(6):
        best = sorted(range(16 * frame, 16 * frame + 16), key=lambda r: -given[r])[:3]
        for row in best:
            slot = int(left.owner[row])
            assert torch.equal(left.features[slot], tokens.features[row])
    assert int(left.weight.sum()) == 96  # every event has anchors
    counts = torch.bincount(left.frame, minlength=6).tolist()
    assert counts == [3, 7, 3, 3, 3, 11]


def test_salience_without_attention_is_likeness_to_the_frames_mean():
    tokens = film(3)
    left = FastVID(keep=15, context=0.0)(tokens, run(3)).check()
    want = []
    for frame in range(3):
        rows = tokens.features[16 * frame : 16 * frame + 16].double().numpy()
        mean = rows.mean(axis=0)
        like = rows @ mean / np.linalg.norm(rows, axis=1) / np.linalg.norm(mean)
        want += sorted(16 * frame + place for place in np.argsort(-like)[:5].tolist())
    assert torch.equal(left.features, tokens.features[want])
    assert int(left.weight.sum()) == 15


# ------------------------------------------------------------------------------------------------------ invariants


@pytest.mark.parametrize("keep", [0.25, 0.9, 1, 3])
@pytest.mark.parametrize("at_most", [None, 5])
@pytest.mark.parametrize(("lengths", "grid"), [((1,), (1, 1)), ((1,), (3, 3)), ((3, 4), (1, 1)), ((4, 1, 6), (3, 4))])
def test_budget_order_and_ledger(keep, at_most, lengths, grid):
    method = FastVID(keep=keep, at_most=at_most)
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
    method = FastVID(**settings)
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
    kept, moved = FastVID(keep=6, positions="original"), FastVID(keep=6, positions="compact")
    tokens = film(4)
    assert moved(tokens, run(4)).position.tolist() == list(range(6))
    assert (
        kept(tokens, run(4)).position.tolist()
        == (16 * kept(tokens, run(4)).frame + kept(tokens, run(4)).cell @ torch.tensor([4, 1])).tolist()
    )


@pytest.mark.parametrize("bad", [{"context": 2}, {"period": 0}, {"mix": -1}, {"neighbors": 0}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        FastVID(**bad)
