"""FastVID's cuts against sorting."""

import numpy as np
import pytest
import torch

from videoprune.errors import UsageError
from videoprune.segment.fastvid import FastVID, dynamic_cuts


@pytest.mark.parametrize("segments", [1, 3, 8, 50])
@pytest.mark.parametrize("threshold", [-1.0, 0.3, 0.9])
def test_cuts(segments, threshold):
    similarity = torch.rand(20, generator=torch.Generator().manual_seed(segments)).round(decimals=1)
    order = np.argsort(similarity.double().numpy(), kind="stable")[: segments - 1].tolist()
    want = sorted(set(order) | {t for t in range(20) if similarity[t].item() < torch.tensor(threshold).item()})
    assert dynamic_cuts(similarity, segments, threshold).tolist() == want


@pytest.mark.parametrize("frames", [1, 2, 7, 8, 30])
def test_still_and_black_films(frames):
    still = FastVID()(torch.ones(frames, 4))
    assert len(still) == min(frames, 8)
    assert int(still.frames_each.sum()) == frames
    assert len(FastVID()(torch.zeros(frames, 4))) == frames  # black is like nothing
    assert torch.equal(FastVID()(torch.ones(frames, 4).bfloat16()).frame_event, still.frame_event)


@pytest.mark.parametrize("bad", [{"segments": 0}, {"threshold": 2}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        FastVID(**bad)
