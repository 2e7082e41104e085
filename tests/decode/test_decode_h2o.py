"""H2O against the double sum in float64, evicting one entry at a time."""

import math

import numpy as np
import pytest
import torch

from tests.decode.fakes import HEADS, KV_HEADS, WIDTH, checked, step_view, view
from videoprune.decode.h2o import H2O
from videoprune.errors import UsageError
from videoprune.run import Events, Run

RUN = Run(Events.single(4))


def softmax(logits):
    weight = np.exp(logits - logits.max())
    return weight / weight.sum()


def oracle(query, key, first=0):
    query, key = query.double().numpy(), key.double().numpy()
    total = np.zeros((len(key), key.shape[1]))
    for head in range(len(query)):
        group = head * len(key) // len(query)
        for row in range(first, key.shape[1]):
            total[group, : row + 1] += softmax(query[head, row] @ key[group, : row + 1].T / math.sqrt(key.shape[2]))
    return total


@pytest.mark.parametrize("rows", [None, 15, 1024])
def test_heavy_hitters_and_recent_stay(rows):
    seen = view(length=60, visual=(10, 50))
    index = checked(H2O(keep=20, rows=rows).start(RUN, 28).after(seen), 60)
    score = oracle(seen.query, seen.keys, 45 if rows == 15 else 0)
    for head in range(KV_HEADS):
        best = np.argsort(-score[head, :50], kind="stable")[:10]
        assert index[head].tolist() == sorted(best.tolist()) + list(range(50, 60))


@pytest.mark.parametrize("protect", [False, True])
def test_every_answered_token_evicts_the_lowest(protect):
    budget, recent = 24, 6
    state = H2O(keep=budget, recent=0.25, protect_text=protect).start(RUN, 28)
    seen, generator = view(), torch.Generator().manual_seed(5)
    index = checked(state.after(seen), 40)
    full = oracle(seen.query, seen.keys)
    keys, position = seen.keys, seen.position
    score = np.stack([full[h, index[h].numpy()] for h in range(KV_HEADS)])
    for step in range(1, 7):
        new = torch.randn(KV_HEADS, 1, WIDTH, generator=generator)
        keys = torch.cat((keys.gather(1, index[..., None].expand(-1, -1, WIDTH)), new), 1)
        position = torch.cat((position.gather(1, index), torch.full((KV_HEADS, 1), 39 + step)), 1)
        query = torch.randn(HEADS, 1, WIDTH, generator=generator)
        index = checked(state.after(step_view(0, step, keys, position, (6, 30), query)), budget + 1)
        score = np.concatenate((score, np.zeros((KV_HEADS, 1))), 1)
        for head in range(HEADS):
            group = head * KV_HEADS // HEADS
            score[group] += softmax(query[head, 0].double().numpy() @ keys[group].double().numpy().T / WIDTH**0.5)
        stay = []
        for head in range(KV_HEADS):
            where = position[head].numpy()
            free = np.arange(budget + 1) < budget + 1 - recent
            if protect:
                free &= ~((where < 6) | ((where >= 30) & (where < 40)))
            worst = min(np.flatnonzero(free), key=lambda i, h=head: (score[h, i], -i))
            stay.append(np.delete(np.arange(budget + 1), worst))
        assert index.tolist() == np.stack(stay).tolist()
        score = np.take_along_axis(score, np.stack(stay), 1)


@pytest.mark.parametrize(("keep", "want"), [(0.25, 10), (7, 7), (1, None), (0.01, 1), (90, None), (None, None)])
def test_budget(keep, want):
    kept = H2O(keep=keep).start(RUN, 28).after(view())
    assert kept is None if want is None else checked(kept, 40).shape == (KV_HEADS, want)
    if want == 1:
        assert kept.index.tolist() == [[39], [39]]
    text = {*range(6), *range(30, 40)}
    if want == 7:
        over = H2O(keep=keep, protect_text=True).start(RUN, 28).after(view())
        assert set(over.index[0].tolist()) == text


def test_a_count_is_the_size_of_the_cache():
    state, seen = H2O(keep=41).start(RUN, 28), view()
    assert state.after(seen) is None
    keys, position, query = seen.keys, seen.position, seen.query[:, -1:]
    for step in (1, 2):
        keys = torch.cat((keys, keys[:, :1]), 1)
        position = torch.cat((position, torch.full((KV_HEADS, 1), 39 + step)), 1)
        kept = state.after(step_view(0, step, keys, position, (6, 30), query))
        assert kept is None if step == 1 else checked(kept, 42).shape == (KV_HEADS, 41)


def test_layers_and_answers_do_not_mix():
    method = H2O(keep=10)
    one, two = method.start(RUN, 28), method.start(RUN, 28)
    first = one.after(view(layer=1)).index
    one.after(view(layer=2))
    assert torch.equal(first, two.after(view(layer=1)).index)
    assert 2 not in two.sums


@pytest.mark.parametrize("bad", [{"recent": 1.5}, {"rows": 0}, {"keep": 0}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        H2O(**bad)
