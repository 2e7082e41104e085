"""LRCP against numpy's SVD in float64."""

import numpy as np
import pytest
import torch

from tests.merge_films import film, run
from videoprune.errors import UsageError
from videoprune.merge.lrcp import LRCP, reconstruction_error


def spectrum(count, width, seed=0):
    """Rows with a decaying spectrum around a large mean."""
    generator = torch.Generator().manual_seed(seed)
    scale = 0.7 ** torch.arange(width)
    return torch.randn(count, width, generator=generator) * scale @ torch.randn(width, width, generator=generator) + 5


def slow(rows, rank):
    rows = rows.double().numpy()
    rows = rows - rows.mean(axis=0)
    kept = np.linalg.svd(rows, full_matrices=False)[2][:rank]
    return ((rows - rows @ kept.T @ kept) ** 2).sum(axis=1)


@pytest.mark.parametrize(("count", "width"), [(60, 12), (9, 20), (1, 5), (3, 3)])
@pytest.mark.parametrize("rank", [1, 4])
def test_reconstruction_error(count, width, rank):
    rows = spectrum(count, width)
    want = slow(rows, rank)
    assert np.allclose(
        reconstruction_error(rows, rank), want, atol=1e-4 * float((rows - rows.mean(0)).square().sum(1).max())
    )


def test_what_is_explained_least_stays_and_the_rest_may_join_it():
    tokens = film(4)
    score = slow(tokens.features, 2)
    stays = sorted(sorted(range(64), key=lambda row: -score[row])[:10])
    assert torch.equal(LRCP(keep=10, rank=2)(tokens, run(4)).features, tokens.features[stays])
    left = LRCP(keep=10, rank=2, merge=True)(tokens, run(4)).check()
    rows = tokens.features.double().numpy()
    scaled = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    groups = {row: [row] for row in stays}
    for row in set(range(64)) - set(stays):
        groups[max(stays, key=lambda kept: scaled[row] @ scaled[kept])].append(row)
    assert left.weight.tolist() == [len(groups[row]) for row in stays]
    assert np.allclose(left.features, [rows[groups[row]].mean(axis=0) for row in stays], atol=1e-5)


# ------------------------------------------------------------------------------------------------------ invariants


@pytest.mark.parametrize("bad", [{"rank": 0}, {"keep": 0}, {"positions": "new"}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        LRCP(**bad)
