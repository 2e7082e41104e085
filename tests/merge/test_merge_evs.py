"""EVS against loops in float64."""

import numpy as np
import pytest
import torch

from tests.merge_films import film, run, still
from videoprune.errors import UsageError
from videoprune.merge.evs import EVS


def slow(tokens, count):
    """Rows kept, by a search for the same place in earlier frames."""
    score = []
    rows = tokens.features.double().numpy()
    for row in range(len(tokens)):
        past = [o for o in range(row) if torch.equal(tokens.cell[o], tokens.cell[row])]
        if past:
            a, b = rows[row], rows[past[-1]]
            score.append(1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
        else:
            score.append(255.0)
    return sorted(sorted(range(len(tokens)), key=lambda row: (-score[row], row))[:count])


@pytest.mark.parametrize("keep", [0.25, 0.5, 33, 4])
def test_the_tokens_that_changed_most(keep):
    method = EVS(keep=keep)
    for tokens in (film(5), still(5), film(5).keep(torch.cat((torch.arange(5, 16), torch.arange(22, 80))))):
        left = method(tokens, run(5))
        assert left.position.tolist() == tokens.position[slow(tokens, method.count(len(tokens)))].tolist()


def test_the_first_frame_comes_first():
    assert EVS(keep=16)(film(5), run(5)).frame.tolist() == [0] * 16


# ------------------------------------------------------------------------------------------------------ invariants


@pytest.mark.parametrize("bad", [{"keep": 0}, {"at_most": 0}, {"positions": "new"}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        EVS(**bad)
