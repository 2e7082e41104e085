"""VFlowOpt's first stage against loops in float64."""

import numpy as np
import pytest
import torch

from tests.merge_films import film, run
from videoprune.errors import UsageError
from videoprune.merge.vflowopt import VFlowOpt, context_attention, recycling


def slow(importance, cell, count):
    """Groups left: representative -> members, by adding candidates one at a time."""
    order = sorted(range(len(importance)), key=lambda i: (importance[i], -i))
    for candidates in range(len(order) + 1):
        groups = {}
        for i in order[:candidates]:
            groups.setdefault(cell[i], []).append(i)
        if len(order) - candidates + len(groups) == count:
            break
    left = {i: [i] for i in order[candidates:]}
    heads = sorted((max(g, key=lambda i: (importance[i], -i)) for g in groups.values()), key=order.index)
    if len(order) - candidates + len(groups) > count:
        heads = heads[len(heads) - count :]
    left.update({head: groups[cell[head]] for head in heads})
    return left


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 12, 29, 30])
@pytest.mark.parametrize("ties", [False, True])
def test_recycling(count, ties):
    generator = torch.Generator().manual_seed(count)
    importance = torch.rand(30, generator=generator)
    importance = (importance * 4).round() if ties else importance
    cell = torch.randint(0, 5, (30,), generator=generator) * 3
    want = slow(importance.tolist(), cell.tolist(), count)
    into = recycling(importance, cell, count).tolist()
    assert {i for i in range(30) if into[i] == i} == set(want)
    assert all(into[member] == head for head, members in want.items() for member in members)
    assert sum(i >= 0 for i in into) == sum(map(len, want.values()))


def test_context_attention():
    attention = torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(0)) ** 4
    attention[0, :, 4] += 3
    attention[2, :, 2] += 3
    attention[2, :, 7] += 3
    attention = attention / attention.sum(dim=2, keepdim=True)
    for threshold in (2.0, 30.0):
        got = context_attention(attention, threshold)
        for entry, rows in enumerate(attention.double().numpy()):
            received = rows.mean(axis=0)
            context = np.flatnonzero(received > threshold * received.mean())
            context = context if len(context) else [received.argmax()]
            assert np.allclose(got[entry], rows[context].mean(axis=0), atol=1e-6)


def test_merged_features_are_weighted_by_importance():
    tokens = film(3)
    importance = torch.rand(48, generator=torch.Generator().manual_seed(4))
    left = VFlowOpt(keep=20, cell=2.5)(tokens.with_scores(importance=importance), run(3)).check()
    cell = [(int(f), int(r / 2.5), int(c / 2.5)) for f, (r, c) in zip(tokens.frame, tokens.cell.tolist(), strict=True)]
    want = slow(importance.tolist(), [hash(c) for c in cell], 20)
    rows, share = tokens.features.double().numpy(), importance.double().numpy()
    for slot, head in enumerate(sorted(want)):
        members = want[head]
        mean = (rows[members] * share[members, None]).sum(axis=0) / share[members].sum()
        assert np.allclose(left.features[slot], mean, atol=1e-5)
        assert int(left.weight[slot]) == len(members)
        assert float(left.scores["importance"][slot]) == float(importance[head])
    dropped = VFlowOpt(keep=20, cell=2.5, recycle=False)(tokens.with_scores(importance=importance), run(3)).check()
    assert torch.equal(dropped.features, tokens.features[sorted(want)])


def test_scores_of_earlier_stages():
    tokens = film(2)
    given = torch.rand(32, generator=torch.Generator().manual_seed(5))
    left = VFlowOpt(keep=0.5)(tokens.with_scores(cls_attention=given), run(2))
    assert set(left.scores["importance"].tolist()) <= set(given.tolist())
    entropy = torch.rand(32, generator=torch.Generator().manual_seed(6))
    both = VFlowOpt(keep=32, alpha=2.0)(tokens.with_scores(cls_attention=given, entropy=entropy), run(2))
    want = given.double() + 2 * entropy.double().view(2, 16).softmax(1).flatten()
    assert torch.allclose(both.scores["importance"].double(), want, atol=1e-6)
    with pytest.raises(UsageError, match="with_scores"):
        VFlowOpt(alpha=1.0)(tokens, run(2))


# ------------------------------------------------------------------------------------------------------ invariants


@pytest.mark.parametrize("bad", [{"cell": 0.5}, {"threshold": -1}, {"keep": 0}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        VFlowOpt(**bad)
