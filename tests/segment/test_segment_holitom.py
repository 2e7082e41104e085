"""HoliTom's windows against every partition there is."""

import itertools

import numpy as np
import pytest
import torch

from videoprune.errors import UsageError
from videoprune.segment.holitom import HoliTom, static_windows


def slow(similarity, threshold):
    """Best partition in float64; of equals the one with the shortest last window."""
    frames, best = len(similarity) + 1, None
    for cuts in itertools.product((False, True), repeat=frames - 1):
        ends = [t for t, cut in enumerate(cuts) if cut] + [frames - 1]
        windows = list(zip([0] + [end + 1 for end in ends[:-1]], ends, strict=True))
        worth = sum((e - s) * int(np.all(similarity[s:e] > threshold, axis=0).sum()) for s, e in windows)
        rank = (-worth, [e - s for s, e in reversed(windows)])
        if best is None or rank < best[0]:
            best = rank, windows
    return [list(window) for window in best[1]]


@pytest.mark.parametrize("frames", [1, 2, 8])
def test_windows_are_the_best(frames):
    similarity = torch.rand(frames - 1, 6, generator=torch.Generator().manual_seed(frames))
    for threshold in (0.1, 0.4, 0.9):
        assert static_windows(similarity, threshold).tolist() == slow(similarity.double().numpy(), threshold)


def test_a_long_still_film_and_the_limit():
    assert static_windows(torch.ones(2999, 4), 0.8).shape[1] == 2
    assert static_windows(torch.ones(49, 4), 0.8).tolist() == [[0, 49]]
    assert int((static_windows(torch.ones(49, 4), 0.8, 7).diff(dim=1) + 1).max()) == 7


def test_events_are_runs_of_like_frames():
    film = torch.eye(3).repeat_interleave(torch.tensor([4, 1, 3]), dim=0)
    assert HoliTom()(film).frame_event.tolist() == [0] * 4 + [1] + [2] * 3
    assert torch.equal(HoliTom()(film.bfloat16()).frame_event, HoliTom()(film).frame_event)
    assert HoliTom()(torch.zeros(5, 3)).frame_event.tolist() == [0, 1, 2, 3, 4]  # black is like nothing
    assert HoliTom()(torch.ones(1, 3)).frame_event.tolist() == [0]


@pytest.mark.parametrize("bad", [{"threshold": 1.5}, {"longest": 0}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        HoliTom(**bad)
