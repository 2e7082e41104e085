import numpy as np
import pytest
import torch

from videoprune.ops import attention
from videoprune.ops.attention import (
    StreamedAttention,
    decay_weights,
    decayed_column_sum,
    keep_best,
    row_attention,
    row_vector_times_attention,
    thin_evenly,
)


def full(query, key, scale, last_key=None):
    """(H, R, S) float64 with repeated keys."""
    query, key = query.double().numpy(), key.double().numpy()
    key = np.repeat(key, len(query) // len(key), axis=0)
    logits = np.einsum("hrd,hsd->hrs", query, key) * scale
    if last_key is not None:
        logits[:, np.arange(key.shape[1])[None] > np.asarray(last_key)[:, None]] = -np.inf
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


@pytest.fixture(params=[2**24, 200], ids=["one chunk", "many chunks"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", request.param)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
def test_rows_and_column_sums(heads, kv_heads, chunk):
    torch.manual_seed(heads)
    query, key = torch.randn(heads, 9, 8), torch.randn(kv_heads, 31, 8)
    last = torch.tensor([0, 3, 3, 30, 12, 29, 1, 30, 7])
    np.testing.assert_allclose(row_attention(query, key, 0.3, last), full(query, key, 0.3, last), atol=1e-6)
    np.testing.assert_allclose(row_attention(query, key, 0.3, temperature=0.1), full(query, key, 3.0), atol=1e-5)
    rows = row_attention(query.bfloat16(), key.bfloat16(), 0.3)
    assert rows.dtype == torch.float32
    np.testing.assert_allclose(rows, full(query.bfloat16().float(), key.bfloat16().float(), 0.3), atol=1e-6)
    weights = decay_weights(9, 0.7)
    np.testing.assert_allclose(weights, 0.7 ** np.arange(8, -1, -1), rtol=1e-6)
    want = np.einsum("r,hrs->hs", weights.numpy(), full(query, key, 0.3, last)).reshape(kv_heads, -1, 31).sum(1)
    np.testing.assert_allclose(decayed_column_sum(query, key, weights, 0.3, last), want, atol=1e-5)
    tail = full(query, key, 0.3, np.arange(22, 31))
    want = np.einsum("r,hrs->hs", weights.numpy(), tail).reshape(kv_heads, -1, 31).sum(1)
    np.testing.assert_allclose(decayed_column_sum(query, key, weights, 0.3), want, atol=1e-5)


@pytest.mark.parametrize("hold", [0, 2**29])
@pytest.mark.parametrize("block", [None, 1, 7, 64])
def test_streamed_products(hold, block, chunk):
    torch.manual_seed(0)
    query, key, weights = torch.randn(6, 45, 8), torch.randn(2, 45, 8), torch.rand(6, 45)
    matrix = full(query, key, 3.0, np.arange(45))
    graph = StreamedAttention(query, key, 0.3, 0.1, block, hold)
    assert graph.hold == (hold > 0)
    got, want = weights, weights.double().numpy()
    for _ in range(3):
        got, want = graph.times(got), np.einsum("hr,hrs->hs", want, matrix)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    once = row_vector_times_attention(weights, query, key, 0.3, 0.1, block)
    np.testing.assert_allclose(once, np.einsum("hr,hrs->hs", weights.double().numpy(), matrix), rtol=1e-4, atol=1e-6)


def test_nothing_is_held_above_the_limits(monkeypatch):
    query, key = torch.zeros(2, 40, 4), torch.zeros(1, 40, 4)
    assert not StreamedAttention(query, key, 1.0, hold_bytes=1000).hold
    monkeypatch.setattr(attention, "HOLD_LENGTH", 39)
    assert not StreamedAttention(query, key, 1.0).hold


def test_held_blocks_stay_inside_their_limit():
    graph = StreamedAttention(torch.randn(2, 40, 4), torch.randn(1, 40, 4), 1.0, block=16, hold_bytes=4 * 2 * 40 * 28)
    graph.times(torch.ones(2, 40))
    assert graph.held
    assert sum(4 * held.numel() for held in graph.held.values()) <= 4 * 2 * 40 * 28


def test_keep_best_equals_sorting():
    torch.manual_seed(0)
    score = torch.randint(0, 5, (3, 20)).float()
    protected = torch.rand(3, 20) < 0.2
    for count in (0, 1, 9, 19, 20):
        got = keep_best(score, count, protected)
        for row in range(3):
            order = sorted(
                range(20),
                key=lambda i, r=row: (not protected[r, i], -score[r, i].item() if not protected[r, i] else 0, i),
            )
            assert got[row].tolist() == sorted(order[:count])


def test_thin_evenly():
    torch.manual_seed(0)
    for count in (0, 1, 4, 11, 99):
        free = torch.rand(2, 30) < 0.6
        chosen = thin_evenly(free, count)
        assert not (chosen & ~free).any()
        assert (chosen.sum(-1) == free.sum(-1).clamp(max=count)).all()
        for row in range(2):
            ranks = (free[row].cumsum(0) - 1)[chosen[row]]
            if len(ranks) > 2:
                assert (ranks.diff().max() - ranks.diff().min()) <= 1
