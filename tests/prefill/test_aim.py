import itertools

import numpy as np
import pytest
import torch

from tests.prefill.fakes import checked, ledger, run_with, view, walk
from videoprune.errors import UsageError
from videoprune.prefill.aim import AIM, pagerank_importance

RUN = run_with([4, 4], None)


def oracle(query, key, temperature, iterations, scale):
    """The definition in float64 with whole matrices."""
    query, key = query.double().numpy(), key.double().numpy()
    heads, length, _ = query.shape
    flows = []
    for head in range(heads):
        logits = query[head] @ key[head * len(key) // heads].T * scale / temperature
        logits[np.triu_indices(length, 1)] = -np.inf
        weight = np.exp(logits - logits.max(1, keepdims=True))
        weight /= weight.sum(1, keepdims=True)
        flow = np.full(length, 1 / length)
        for _ in range(iterations):
            flow = flow @ weight
        flows.append(flow)
    return np.sqrt((np.array(flows) ** 2).mean(0))


@pytest.mark.parametrize(("heads", "kv_heads", "length"), [(4, 2, 33), (6, 2, 70), (1, 1, 1), (8, 8, 17)])
def test_importance_equals_the_definition(heads, kv_heads, length):
    torch.manual_seed(length)
    query, key = torch.randn(heads, length, 16), torch.randn(kv_heads, length, 16)
    got = pagerank_importance(query, key)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, oracle(query, key, 0.1, 5, 0.25), rtol=2e-4, atol=1e-7)
    got = pagerank_importance(query.bfloat16(), key.bfloat16(), temperature=0.7, iterations=2, scale=0.4)
    want = oracle(query.bfloat16().float(), key.bfloat16().float(), 0.7, 2, 0.4)
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-7)


def test_paper_schedule():
    counts = walk(AIM(), RUN, 28, ledger(8, 10))
    assert [counts[layer] for layer in range(13, 23)] == [80, 70, 60, 50, 40, 30, 20, 10, 0, 0]
    odd = walk(AIM(), RUN, 28, ledger(3, 14))
    assert [odd[layer] for layer in range(14, 22)] == [int(42 * (1 - step / 8)) for step in range(1, 9)]


@pytest.mark.parametrize(
    ("depth", "want"), [(8, {3: 40, 4: 20, 5: 0}), (6, {2: 40, 3: 20, 4: 0}), (4, {1: 40, 2: 0}), (2, {0: 40, 1: 0})]
)
def test_shallow_models_take_fewer_steps(depth, want):
    counts = walk(AIM(), RUN, depth, ledger(10))
    assert {layer: counts[layer] for layer in want} == want


@pytest.mark.parametrize("depth", [28, 8, 6, 4])
@pytest.mark.parametrize(
    ("settings", "final"),
    [({"keep": 0.3}, 12), ({"keep": 7}, 7), ({"keep": 0.5, "at_most": 9}, 9), ({"keep": 500}, 40)],
)
def test_keep_ends_at_the_budget_on_a_line(depth, settings, final):
    counts = list(walk(AIM(**settings), RUN, depth, ledger(10)).values())
    assert counts[-1] == final
    steps = [a - b for a, b in itertools.pairwise(counts) if a != b]
    assert not steps or max(steps) - min(steps) <= 1


def test_at_most_caps_the_last_point_that_keeps_any():
    counts = walk(AIM(at_most=3), RUN, 28, ledger(8, 10))
    assert (counts[19], counts[20], counts[21]) == (20, 3, 0)


def test_keeps_the_most_important_visual_tokens():
    tokens = ledger(8)
    seen = view(14, tokens, torch.arange(32))
    got = checked(AIM(keep=0.5).start(RUN, 28).after(seen), 32)
    importance = oracle(seen.query(), seen.key(), 0.1, 5, seen.scale)[3:35]
    assert got.tolist() == sorted(np.argsort(-importance, kind="stable")[:30].tolist())


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_token(count):
    state = AIM().start(RUN, 28)
    tokens = ledger(1)
    got = state.after(view(14, tokens, torch.arange(count)))
    assert got is None if count == 0 else len(got.index) == 0


def test_state_is_fresh_for_each_answer():
    method = AIM()
    assert walk(method, RUN, 28, ledger(8)) == walk(method, RUN, 28, ledger(8))
    assert walk(method, RUN, 28, ledger(4))[14] == 14


@pytest.mark.parametrize(
    "settings",
    [
        {"first": 22},
        {"last": 29},
        {"first": -1},
        {"temperature": 0},
        {"iterations": 0},
        {"first": 1.5},
        {"keep": 0},
        {"paper_depth": 0},
    ],
)
def test_refusals(settings):
    with pytest.raises(UsageError):
        AIM(**settings)
