"""DyCoke's cache against sorting in float64."""

import math

import numpy as np
import pytest
import torch

from tests.decode.fakes import KV_HEADS, checked, view
from videoprune.decode.dycoke import DyCoke
from videoprune.errors import UsageError
from videoprune.run import Events, Run

RUN = Run(Events.single(4))
TEXT = {*range(6), *range(30, 40)}


def decided(method, depth, cut=None):
    """Decisions of all layers; `cut` (layer -> entries) leaves a layer with some entries only."""
    state, views = method.start(RUN, depth), [view(layer, layers=depth) for layer in range(depth)]
    for one in views:
        assert state.after(one) is None
        if cut and one.layer in cut:
            index = torch.tensor(cut[one.layer])
            one.keys, one.position, one.text = one.keys[:, index], one.position[:, index], one.text[:, index]
    return state.finish(views), views


def last_row(seen):
    query, key = seen.query.double().numpy(), seen.keys.double().numpy()
    total = np.zeros(key.shape[1])
    for head in range(len(query)):
        logits = query[head, -1] @ key[head // 2].T / math.sqrt(key.shape[2])
        weight = np.exp(logits - logits.max())
        total += weight / weight.sum() / len(query)
    return total


@pytest.mark.parametrize(("depth", "first"), [(28, 3), (12, 1), (2, 1), (56, 6)])
def test_the_papers_schedule(depth, first):
    kept, views = decided(DyCoke(), depth)
    assert kept[:first] == [None] * first
    score = last_row(views[first - 1])
    best = sorted(range(6, 30), key=lambda i: (-score[i], i))[:7]  # 30 % of 24
    for one in kept[first:]:
        assert checked(one, 40).tolist() == [sorted(TEXT | set(best))] * KV_HEADS


@pytest.mark.parametrize(("keep", "want"), [(0.5, 20), (18, 18), (3, 16), (40, None)])
def test_a_budget_holds_in_every_layer(keep, want):
    kept, _ = decided(DyCoke(keep=keep), 6)
    for one in kept:
        assert one is None if want is None else checked(one, 40).shape == (KV_HEADS, want)
        assert one is None or set(one.index[0].tolist()) >= TEXT
    assert decided(DyCoke(keep=1), 6)[0] is None
    free, _ = decided(DyCoke(keep=3, protect_text=False), 6)
    assert all(one.index.shape[1] == 3 and int(one.index[0, -1]) == 39 for one in free)


def test_layers_with_fewer_entries():
    some = sorted(TEXT | {8, 12, 20, 25})
    kept, views = decided(DyCoke(keep=18), 28, dict.fromkeys(range(10, 28), some))
    score = last_row(views[2])
    best = sorted((8, 12, 20, 25), key=lambda i: (-score[i], i))[:2]
    assert [some[i] for i in kept[12].index[0].tolist()] == sorted(TEXT | set(best))


@pytest.mark.parametrize("bad", [{"prune": 1}, {"layer": 0}, {"paper_depth": 0}, {"keep": 0}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        DyCoke(**bad)
