"""PruneVid's merging against loops in float64."""

import numpy as np
import pytest
import torch

from tests.merge_films import film, run, still
from videoprune.errors import UsageError
from videoprune.merge.prunevid import PruneVid, mean_pair_cosine, static_into


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
            pairs = [cos(tokens.features[a], tokens.features[b]) for a in rows for b in rows if a < b]
            if len(rows) == len(frames) and pairs and np.mean(pairs) > threshold:
                into = [rows[0] if row in rows else target for row, target in enumerate(into)]
    return into


@pytest.mark.parametrize("lengths", [(3, 1, 4), (8,)])
def test_static_places_are_averaged_over_their_event(lengths):
    torn = torch.arange(128)
    for tokens in (still(8), film(8), still(8).keep(torn[torn % 13 != 4])):
        want = slow_static(tokens, lengths, 0.8)
        event = run(*lengths).events.frame_event[tokens.frame]
        place = tokens.cell @ torch.tensor([4, 1])
        assert static_into(tokens.features, tokens.frame, event, place, 16, 0.8).tolist() == want
        left = PruneVid(share=1.0)(tokens, run(*lengths)).check()  # no clustering
        for row, first in enumerate(sorted(set(want))):
            members = [member for member, target in enumerate(want) if target == first]
            assert torch.allclose(left.features[row], tokens.features[members].mean(dim=0), atol=1e-5)
            assert int(left.weight[row]) == len(members)


def test_mean_pair_cosine():
    rows = torch.randn(9, 6, generator=torch.Generator().manual_seed(3))
    rows[2] = 0
    slot = torch.tensor([0, 1, 1, 1, 2, 2, 0, 4, 2])
    got = mean_pair_cosine(rows, slot, 5).tolist()
    for number in range(5):
        own = (slot == number).nonzero()[:, 0].tolist()
        pairs = [cos(rows[a], rows[b]) for a in own for b in own if a < b]
        assert got[number] == pytest.approx(np.mean(pairs) if pairs else -2, abs=1e-5)


def test_the_papers_schedule():
    tokens = film(4, (4, 5))
    assert torch.bincount(PruneVid()(tokens, run(4)).frame).tolist() == [10] * 4
    small = film(4, (2, 7))
    assert PruneVid()(small, run(4)).count == len(small)  # 14 are not clustered
    moving = 6
    left = PruneVid(least=0)(still(4), run(4)).check()  # 10 static places, 6 moving a frame
    assert torch.bincount(left.frame).tolist() == [5 + moving // 2, 3, 3, 3]
    assert int(left.weight.sum()) == 64
    assert PruneVid(at_most=11)(film(4), run(4)).count == 11


def test_clusters_become_their_means():
    tokens = film(2)
    left = PruneVid(share=0.25)(tokens, run(2)).check()
    for row in range(len(left)):
        members = (left.owner == row).nonzero()[:, 0]
        assert torch.allclose(left.features[row], tokens.features[members].mean(dim=0), atol=1e-5)


# ------------------------------------------------------------------------------------------------------ invariants


@pytest.mark.parametrize("bad", [{"threshold": 2}, {"share": 0.0}, {"least": -1}, {"neighbors": 0}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        PruneVid(**bad)
