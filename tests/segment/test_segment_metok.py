"""METok's cuts and the equal spans."""

import itertools

import numpy as np
import pytest
import torch

from videoprune.errors import UsageError
from videoprune.segment.metok import METok, cut_points
from videoprune.segment.uniform import Uniform


def features(frames, seed=0):
    return torch.randn(frames, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("cuts", [0, 1, 4, 11])
def test_cuts_are_the_lowest_similarities(cuts):
    film = features(12)
    rows = film.double().numpy()
    similarity = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.pairwise(rows)]
    assert cut_points(film, cuts).tolist() == sorted(np.argsort(similarity, kind="stable")[:cuts].tolist())


def test_ties_go_to_the_earlier_frame():
    assert cut_points(torch.ones(9, 4), 3).tolist() == [0, 1, 2]
    assert cut_points(torch.zeros(9, 4), 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("frames", [1, 2, 4, 5, 6, 40])
def test_events_of_short_and_long_films(frames):
    events = METok()(features(frames))
    assert len(events) == min(frames, 5)
    assert len(events.similarity) == frames - 1
    assert int(events.frames_each.sum()) == frames


def test_ranking():
    events = METok(cuts=3, key_events=2)(torch.eye(4).repeat_interleave(3, dim=0))
    assert events.frame_event.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    relevance = torch.tensor([0.1, 0.9, 0.1, 0.2, 0.2, 0.2, 0.1, 0.1, 0.5, 0.3, 0.3, 0.3])
    assert METok(key_events=2).rank(events, relevance).key.tolist() == [True, False, True, False]
    assert Uniform(key_events=1).rank(events, relevance).key.tolist() == [True, False, False, False]


def test_half_precision_changes_no_cut():
    film = features(30).bfloat16()
    assert torch.equal(cut_points(film, 4), cut_points(film.double(), 4))


@pytest.mark.parametrize(("frames", "lengths"), [(1, [1]), (3, [1, 1, 1]), (10, [2] * 5), (12, [3, 2, 3, 2, 2])])
def test_equal_spans(frames, lengths):
    assert Uniform()(features(frames)).frames_each.tolist() == lengths


@pytest.mark.parametrize("bad", [{"cuts": -1}, {"cuts": 2.5}, {"key_events": 0}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        METok(**bad)
