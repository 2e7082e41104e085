"""FastVID's merging against loops in float64."""

import numpy as np
import pytest
import torch

from tests.merge_films import film, run
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


@pytest.mark.parametrize("bad", [{"context": 2}, {"period": 0}, {"mix": -1}, {"neighbors": 0}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        FastVID(**bad)
