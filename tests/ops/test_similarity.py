"""Cosines and distances against float64 numpy."""

import numpy as np
import pytest
import torch

from videoprune.ops import similarity
from videoprune.ops.similarity import adjacent_cosine, cosine, distance, inverse_norm, pair_cosine


def oracle(left, right):
    left, right = left.double().numpy(), right.double().numpy()
    sizes = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return np.where(sizes > 0, (left * right).sum(-1) / np.where(sizes > 0, sizes, 1), 0)


@pytest.fixture(params=[2**17, 10], ids=["one block", "many"])
def rows(request, monkeypatch):
    monkeypatch.setattr(similarity, "CHUNK", request.param)
    rows = torch.randn(23, 6, generator=torch.Generator().manual_seed(1))
    rows[4] = 0  # black
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_pairs(rows, dtype):
    rows = rows.to(dtype)
    left, right = torch.tensor([0, 4, 7, 7, 22]), torch.tensor([1, 5, 7, 4, 0])
    got = pair_cosine(rows, left, right)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, oracle(rows[left], rows[right]), atol=1e-6)
    whole = cosine(rows, rows)
    np.testing.assert_allclose(whole, oracle(rows[:, None], rows[None]), atol=1e-6)
    np.testing.assert_allclose(cosine(rows[:3], rows), whole[:3], atol=1e-6)


def test_neighbours(rows):
    np.testing.assert_allclose(adjacent_cosine(rows), oracle(rows[:-1], rows[1:]), atol=1e-6)
    film = rows[:20].view(5, 4, 6)
    np.testing.assert_allclose(adjacent_cosine(film), oracle(film[:-1], film[1:]), atol=1e-6)
    assert adjacent_cosine(film[:1]).shape == (0, 4)
    assert adjacent_cosine(rows[:1]).shape == (0,)


def test_lengths_and_distances(rows):
    want = np.linalg.norm(rows.double(), axis=1)
    np.testing.assert_allclose(inverse_norm(rows), np.where(want > 0, 1 / np.maximum(want, 1e-300), 0), rtol=1e-6)
    left, right = rows[None, :9], rows[None, 3:]
    want = np.linalg.norm((left[:, :, None] - right[:, None]).double().numpy(), axis=-1)
    np.testing.assert_allclose(distance(left, right), want, atol=2e-3)  # a distance of 0 is rounding, and its root
