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


@pytest.mark.parametrize("bad", [{"threshold": 2}, {"mix": -1}, {"neighbors": 0}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        HoliTom(**bad)
