"""DyCoke's temporal merging against loops in float64."""

import numpy as np
import pytest
import torch

from tests.merge_films import film, run
from videoprune.errors import UsageError
from videoprune.merge.dycoke import DyCoke, quotas


def like(tokens, row):
    frame = int(tokens.frame[row])
    past = frame - [4, 1, 2, 1][frame % 4]
    same = (tokens.frame == past) & (tokens.cell == tokens.cell[row]).all(dim=1)
    if past < 0 or not bool(same.any()):
        return -2.0
    a, b = tokens.features[row].double().numpy(), tokens.features[same][0].double().numpy()
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def test_the_papers_share_of_whole_windows():
    tokens = film(8, (5, 4))
    left = DyCoke()(tokens, run(8)).check()
    assert torch.bincount(left.frame).tolist() == [20, 6, 6, 6] * 2
    assert left.count / len(tokens) == pytest.approx(0.475)


@pytest.mark.parametrize("frames", [1, 2, 3, 6, 7])
def test_what_is_most_alike_leaves(frames):
    torn = torch.arange(frames * 16)
    torn = torn[torn % 11 != 5]
    for tokens in (film(frames), film(frames).keep(torn)):
        left = DyCoke(positions="original")(tokens, run(frames)).check()
        stays = []
        for frame in range(frames):
            rows = (tokens.frame == frame).nonzero()[:, 0].tolist()
            gone = 0 if frame % 4 == 0 else int(0.7 * len(rows) + 0.5)
            stays += sorted(sorted(rows, key=lambda row: (like(tokens, row), row))[: len(rows) - gone])
        assert left.position.tolist() == tokens.position[stays].tolist()


def test_quotas():
    counts, frames = torch.tensor([10, 10, 10, 10, 10]), torch.arange(5)
    assert quotas(counts, frames, 0.7, 32).tolist() == [10, 4, 4, 4, 10]
    assert quotas(counts, frames, 0.7, 15).tolist() == [8, 0, 0, 0, 7]
    assert quotas(counts, frames, 0.7, 50).tolist() == [10] * 5
    assert quotas(counts, frames, 1.0, None).tolist() == [10, 0, 0, 0, 10]


# ------------------------------------------------------------------------------------------------------ invariants


@pytest.mark.parametrize("bad", [{"drop": 1.5}, {"keep": 0}, {"positions": "new"}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        DyCoke(**bad)
