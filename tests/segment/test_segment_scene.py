"""Shot cuts against a loop in float64."""

import pytest
import torch

from videoprune.errors import UsageError
from videoprune.segment.scene import Scene, shot_cuts


def slow(change, ratio, width, least):
    cuts = []
    for t in range(len(change)):
        around = [change[s] for s in range(max(0, t - width), min(len(change), t + width + 1)) if s != t]
        mean = sum(around) / len(around) if around else 0.0
        if change[t] >= least and change[t] >= ratio * mean:
            cuts.append(t)
    return cuts


@pytest.mark.parametrize("length", [1, 2, 3, 40])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_cuts_are_the_slow_ones(length, width):
    change = torch.rand(length, generator=torch.Generator().manual_seed(length)) ** 4
    assert shot_cuts(change, 2.0, width, 0.05).tolist() == slow(change.double().tolist(), 2.0, width, 0.05)


def test_shots_stand_out_and_pans_do_not():
    shots = torch.eye(3).repeat_interleave(5, dim=0)
    assert Scene()(shots).frame_event.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert torch.equal(Scene()(shots.bfloat16()).frame_event, Scene()(shots).frame_event)
    angle = torch.arange(12.0) * 0.5
    assert len(Scene()(torch.stack((angle.cos(), angle.sin()), dim=1))) == 1
    assert len(Scene()(torch.ones(9, 4))) == 1
    assert len(Scene()(torch.ones(1, 4))) == 1
    assert len(Scene()(torch.zeros(9, 4))) == 1  # all black: every step changes alike


@pytest.mark.parametrize("bad", [{"ratio": 0.5}, {"width": 0}, {"least": 0}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        Scene(**bad)
