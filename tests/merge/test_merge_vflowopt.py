"""VFlowOpt's first stage against loops in float64."""

import numpy as np
import pytest
import torch

from tests.merge_films import film, run, still
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


@pytest.mark.parametrize("keep", [0.25, 0.9, 1, 3])
@pytest.mark.parametrize("at_most", [None, 5])
@pytest.mark.parametrize(("lengths", "grid"), [((1,), (1, 1)), ((1,), (3, 3)), ((3, 4), (1, 1)), ((4, 1, 6), (3, 4))])
def test_budget_order_and_ledger(keep, at_most, lengths, grid):
    method = VFlowOpt(keep=keep, at_most=at_most)
    for tokens in (film(sum(lengths), grid), still(sum(lengths), grid)):
        left = method(tokens, run(*lengths)).check()
        wanted = method.count(len(tokens))
        assert left.count == wanted
        assert bool((left.frame.diff() >= 0).all())
        assert bool((left.frame * 1000 + left.cell[:, 0] * grid[1] + left.cell[:, 1]).diff().gt(0).all())
        again = method(tokens, run(*lengths))
        assert torch.equal(again.features, left.features)
        assert torch.equal(again.owner, left.owner)
        if wanted == len(tokens):
            assert torch.equal(left.features, tokens.features)


@pytest.mark.parametrize("settings", [{}, {"keep": 0.2}, {"at_most": 9}])
def test_black_repeated_half_precision_and_torn_films(settings):
    method = VFlowOpt(**settings)
    black, same = film(5, rows=torch.zeros(80, 6)), film(5, rows=torch.ones(80, 6))
    for tokens, value in ((black, 0.0), (same, 1.0)):
        left = method(tokens, run(2, 3)).check()
        assert torch.allclose(left.features, torch.full_like(left.features, value))
        assert 1 <= left.count <= method.count(80)
    half = method(film(5, dtype=torch.bfloat16), run(2, 3)).check()
    assert half.features.dtype == torch.bfloat16
    assert bool(torch.isfinite(half.features).all())
    torn = film(5).keep(torch.cat((torch.arange(3, 16), torch.tensor([20]), torch.arange(64, 80))))
    torn = torn.insert(torch.tensor([12, 13]), torch.full((2, 6), 9.0))
    left = method(torn, run(2, 3)).check()
    assert bool((left.features[left.weight == 0] == 9).all())
    assert int((left.weight == 0).sum()) == 2
    assert left.count <= method.count(30)


def test_positions():
    kept, moved = VFlowOpt(keep=6, positions="original"), VFlowOpt(keep=6, positions="compact")
    tokens = film(4)
    assert moved(tokens, run(4)).position.tolist() == list(range(6))
    assert (
        kept(tokens, run(4)).position.tolist()
        == (16 * kept(tokens, run(4)).frame + kept(tokens, run(4)).cell @ torch.tensor([4, 1])).tolist()
    )


@pytest.mark.parametrize("bad", [{"cell": 0.5}, {"threshold": -1}, {"keep": 0}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        VFlowOpt(**bad)
