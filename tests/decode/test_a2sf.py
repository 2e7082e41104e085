import math

import numpy as np
import pytest
import torch

from tests.decode.fakes import KV_HEADS, WIDTH, checked, step_view, view
from videoprune.decode.a2sf import A2SF, accumulate_attention, rows_that_count
from videoprune.errors import UsageError
from videoprune.run import Events, Run

RUN = Run(Events.single(4))


def oracle(query, key, forgetting, rows=None):
    """The double sum in float64."""
    query, key = query.double().numpy(), key.double().numpy()
    heads, length, width = query.shape
    total = np.zeros((len(key), length))
    for head in range(heads):
        group = head * len(key) // heads
        for row in range(0 if rows is None else rows[0], length):
            logits = query[head, row] @ key[group, : row + 1].T / math.sqrt(width)
            weight = np.exp(logits - logits.max())
            total[group, : row + 1] += forgetting ** (length - 1 - row) * weight / weight.sum()
    return total


@pytest.mark.parametrize("forgetting", [0.0, 0.3, 0.8, 0.95, 1.0])
def test_scores_equal_the_definition(forgetting):
    torch.manual_seed(0)
    query, key = torch.randn(6, 50, 16), torch.randn(2, 50, 16)
    np.testing.assert_allclose(
        accumulate_attention(query, key, forgetting), oracle(query, key, forgetting), rtol=1e-4, atol=1e-6
    )
    if forgetting < 1:
        rows = max(0, 50 - rows_that_count(forgetting, 0.01))
        got = accumulate_attention(query, key, forgetting, epsilon=0.01)
        np.testing.assert_allclose(got, oracle(query, key, forgetting, [rows]), rtol=1e-4, atol=1e-6)


def test_rows_that_count():
    assert [rows_that_count(alpha, 0.01) for alpha in (0, 0.3, 0.95)] == [1, 4, 90]


@pytest.mark.parametrize("forgetting", [0.3, 0.95])
def test_prefill_keeps_the_best_and_the_recent(forgetting):
    seen = view(length=120, visual=(10, 100))
    index = checked(A2SF(forgetting=forgetting).start(RUN, 28).after(seen), 120)
    score = oracle(seen.query, seen.keys, forgetting, [max(0, 120 - rows_that_count(forgetting, 0.01))])
    for head in range(KV_HEADS):
        best = np.argsort(-score[head, :104], kind="stable")[:44]
        assert index[head].tolist() == sorted(best.tolist()) + list(range(104, 120))


@pytest.mark.parametrize(("keep", "want"), [(0.25, 10), (7, 7), (1, None), (0.01, 1), (90, None)])
@pytest.mark.parametrize("variant", ["prefill", "decode"])
def test_budget(keep, want, variant):
    kept = A2SF(keep=keep, variant=variant).start(RUN, 28).after(view())
    assert kept is None if want is None else checked(kept, 40).shape == (KV_HEADS, want)
    if want in (7, 1):  # less than `recent`: the last ones that fit
        assert kept.index[0].tolist() == list(range(40 - want, 40))


def test_protected_text_counts_within_the_budget():
    seen = view()  # text: 0..5 and 30..39
    index = checked(A2SF(keep=20, protect_text=True).start(RUN, 28).after(seen), 40)
    assert index.shape[1] == 20
    assert all({*range(6), *range(30, 40)} <= set(head.tolist()) for head in index)
    over = checked(A2SF(keep=5, protect_text=True).start(RUN, 28).after(seen), 40)
    assert over[0].tolist() == [*range(6), *range(30, 40)]


def test_prefill_variant_is_silent_afterwards():
    state, seen = A2SF().start(RUN, 28), view()
    state.after(seen)
    later = step_view(0, 1, seen.keys, seen.position, (6, 30), seen.query[:, -1:])
    assert state.after(later) is None


@pytest.mark.parametrize("protect", [False, True])
def test_decode_variant_evicts_the_lowest_each_step(protect):
    visual, forgetting, recent, budget = (6, 30), 0.6, 2, 24
    method = A2SF(
        variant="decode", forgetting=forgetting, recent=recent, keep=budget, epsilon=1e-9, protect_text=protect
    )
    states, seen = method.start(RUN, 28), view()
    generator = torch.Generator().manual_seed(5)
    index = checked(states.after(seen), 40)
    full = oracle(seen.query, seen.keys, forgetting)
    keys, position, query_heads = seen.keys, seen.position, 4
    score = np.stack([full[h, index[h].numpy()] for h in range(KV_HEADS)])
    for step in range(1, 9):
        keys = torch.cat(
            (
                keys.gather(1, index[..., None].expand(-1, -1, WIDTH)),
                torch.randn(KV_HEADS, 1, WIDTH, generator=generator),
            ),
            1,
        )
        position = torch.cat((position.gather(1, index), torch.full((KV_HEADS, 1), 39 + step)), 1)
        query = torch.randn(query_heads, 1, WIDTH, generator=generator)
        index = checked(states.after(step_view(0, step, keys, position, visual, query)), budget + 1)
        assert index.shape == (KV_HEADS, budget)
        score = forgetting * np.concatenate((score, np.zeros((KV_HEADS, 1))), 1)
        stay = []
        for head in range(query_heads):
            logits = query[head, 0].double().numpy() @ keys[head // 2].double().numpy().T / math.sqrt(WIDTH)
            weight = np.exp(logits - logits.max())
            score[head // 2] += weight / weight.sum()
        for head in range(KV_HEADS):
            where = position[head].numpy()
            free = np.arange(budget + 1) < budget + 1 - recent
            if protect:
                free &= ~((where < 6) | ((where >= 30) & (where < 40)))
            worst = min(np.flatnonzero(free), key=lambda i, h=head: (score[h, i], -i))
            stay.append(np.delete(np.arange(budget + 1), worst))
        assert index.tolist() == np.stack(stay).tolist()
        score = np.take_along_axis(score, np.stack(stay), 1)


def test_layers_and_answers_do_not_mix():
    method = A2SF(variant="decode", keep=10)
    one, two = method.start(RUN, 28), method.start(RUN, 28)
    first = one.after(view(layer=1)).index
    one.after(view(layer=2))
    assert torch.equal(first, two.after(view(layer=1)).index)
    assert 2 not in two.sums


@pytest.mark.parametrize(
    "settings",
    [
        {"forgetting": 1},
        {"forgetting": -0.1},
        {"epsilon": 0},
        {"recent": -1},
        {"variant": "both"},
        {"keep": 0},
        {"recent": 1.5},
    ],
)
def test_refusals(settings):
    with pytest.raises(UsageError):
        A2SF(**settings)
