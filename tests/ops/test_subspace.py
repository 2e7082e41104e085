import numpy as np
import pytest
import torch

from videoprune.ops.subspace import principal_directions, unexplained


def rows_with_spectrum(count, width, rank, seed=0, batch=()):
    """Rows of `rank` strong directions plus weak noise, off the origin."""
    rng = np.random.default_rng(seed)
    strength = np.linspace(9, 3, rank)
    low = rng.standard_normal((*batch, count, rank)) * strength @ rng.standard_normal((*batch, rank, width))
    return low + 0.3 * rng.standard_normal((*batch, count, width)) + 5


@pytest.mark.parametrize(
    ("count", "width", "rank"), [(200, 40, 4), (30, 64, 8), (12, 12, 1), (50, 6, 6), (700, 300, 4)]
)
def test_directions_equal_the_decomposition(count, width, rank):
    rows = rows_with_spectrum(count, width, rank)
    got = principal_directions(torch.from_numpy(rows), rank)
    assert got.dtype == torch.float32
    centred = rows - rows.mean(0)
    want = np.linalg.svd(centred, full_matrices=False)[2][:rank]
    assert np.allclose(np.abs((want * got.numpy().T).sum(1)), 1, atol=1e-4)
    np.testing.assert_allclose(got.T @ got, np.eye(rank), atol=1e-5)
    left = (centred**2).sum(1) - ((centred @ want.T) ** 2).sum(1)
    scale = (centred**2).sum(1).max()
    np.testing.assert_allclose(unexplained(torch.from_numpy(rows), got), left, atol=2e-5 * scale)


def test_batches_are_independent_and_runs_repeat():
    rows = torch.from_numpy(rows_with_spectrum(60, 20, 3, batch=(4,)))
    got = principal_directions(rows, 3)
    assert torch.equal(got, principal_directions(rows, 3))
    for each in range(4):
        torch.testing.assert_close(got[each], principal_directions(rows[each], 3), atol=1e-4, rtol=1e-4)


def test_equal_rows_leave_nothing():
    rows = torch.ones(10, 8, dtype=torch.bfloat16)
    directions = principal_directions(rows, 2)
    assert torch.isfinite(directions).all()
    assert unexplained(rows, directions).tolist() == [0] * 10


@pytest.mark.parametrize("settings", [{"rank": 0}, {"rank": 9}, {"rank": 2, "iterations": 0}])
def test_refusals(settings):
    with pytest.raises(ValueError, match="is given"):
        principal_directions(torch.zeros(10, 8), **settings)
