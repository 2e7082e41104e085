"""SnapKV against sums over rows in float64."""

import math

import numpy as np
import pytest
import torch

from tests.decode.fakes import KV_HEADS, WIDTH, checked, step_view, view
from videoprune.decode.snapkv import SnapKV
from videoprune.errors import UsageError
from videoprune.run import Events, Run

RUN = Run(Events.single(4))


def oracle(query, key, window, kernel):
    """(Hkv, S - window) float64."""
    query, key = query.double().numpy(), key.double().numpy()
    heads, length, width = query.shape
    group = heads // len(key)
    votes = np.zeros((len(key), length - window))
    for head in range(heads):
        for row in range(length - window, length):
            logits = query[head, row] @ key[head // group, : row + 1].T / math.sqrt(width)
            weight = np.exp(logits - logits.max())
            votes[head // group] += (weight / weight.sum())[: length - window] / (window * group)
    smooth = np.zeros_like(votes)
    for k in range(votes.shape[1]):
        for near in range(k - kernel // 2, k + kernel // 2 + 1):
            if 0 <= near < votes.shape[1]:
                smooth[:, k] += votes[:, near] / kernel
    return smooth


@pytest.mark.parametrize(("window", "kernel"), [(16, 5), (1, 1), (30, 7)])
def test_the_most_voted_and_the_window_stay(window, kernel):
    seen = view(length=80, visual=(10, 70))
    index = checked(SnapKV(window=window, kernel=kernel).start(RUN, 28).after(seen), 80)
    score = oracle(seen.query, seen.keys, window, kernel)
    for head in range(KV_HEADS):
        best = np.argsort(-score[head], kind="stable")[: 40 - window]
        assert index[head].tolist() == sorted(best.tolist()) + list(range(80 - window, 80))


@pytest.mark.parametrize(("keep", "want"), [(0.25, 10), (7, 7), (1, None), (0.01, 1), (90, None), (39, 39)])
@pytest.mark.parametrize("window", [8, 64])
def test_budget(keep, want, window):
    kept = SnapKV(keep=keep, window=window).start(RUN, 28).after(view())
    assert kept is None if want is None else checked(kept, 40).shape == (KV_HEADS, want)
    if want in (7, 1):
        assert kept.index[0].tolist() == list(range(40 - want, 40))


def test_protected_text_counts_within_the_budget():
    text = {*range(6), *range(30, 40)}
    index = checked(SnapKV(keep=20, protect_text=True, window=4).start(RUN, 28).after(view()), 40)
    assert index.shape[1] == 20
    assert all(text <= set(head.tolist()) for head in index)
    over = checked(SnapKV(keep=5, protect_text=True).start(RUN, 28).after(view()), 40)
    assert set(over[0].tolist()) == text


def test_it_acts_once_on_any_precision():
    state, seen = SnapKV(window=8).start(RUN, 28), view()
    first = state.after(seen).index
    assert torch.equal(first, SnapKV(window=8).start(RUN, 28).after(view()).index)
    assert state.after(step_view(0, 1, seen.keys, seen.position, (6, 30), seen.query[:, -1:])) is None
    assert SnapKV(keep=0.5).start(RUN, 28).after(view(length=1, visual=(0, 1))) is None
    flat = view()
    flat.attention = lambda rows: torch.full((4, rows, 40), 1 / 40, dtype=torch.bfloat16).float()
    index = checked(SnapKV(keep=20, window=10, kernel=1).start(RUN, 28).after(flat), 40)
    assert index[0].tolist() == [*range(10), *range(30, 40)]  # all alike: the first ones
    assert seen.keys.shape[2] == WIDTH


@pytest.mark.parametrize("bad", [{"window": 0}, {"kernel": 4}, {"kernel": 0}, {"keep": 0}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        SnapKV(**bad)
