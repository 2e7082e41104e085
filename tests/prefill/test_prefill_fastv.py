import numpy as np
import pytest
import torch

from tests.prefill.fakes import checked, ledger, run_with, view, walk
from videoprune.errors import UsageError
from videoprune.prefill.fastv import FastV

RUN = run_with([8], None)


def oracle(seen):
    """The last row's softmax in float64, head by head."""
    query, key = seen.query().double().numpy(), seen.key().double().numpy()
    score = np.zeros(len(seen.visual))
    for head in range(len(query)):
        logits = query[head, -1] @ key[head * len(key) // len(query)].T * seen.scale
        weight = np.exp(logits - logits.max())
        score += (weight / weight.sum())[seen.visual.numpy()] / len(query)
    return score


@pytest.mark.parametrize("behind", [5, 1, 0])
def test_keeps_what_the_last_row_attends_to(behind):
    seen = view(1, ledger(8), torch.arange(32), behind=behind)
    np.testing.assert_allclose(seen.last_row_attention(), oracle(seen), rtol=1e-5)
    kept = checked(FastV(keep=10).start(RUN, 28).after(seen), 32)
    assert kept.tolist() == sorted(np.argsort(-oracle(seen), kind="stable")[:10].tolist())


@pytest.mark.parametrize(("depth", "layer"), [(32, 1), (28, 1), (64, 3), (6, 0), (1, 0)])
def test_one_pruning_point(depth, layer):
    assert FastV().start(RUN, depth).at == {layer}
    assert walk(FastV(), RUN, depth, ledger(8))[depth - 1] == 16


@pytest.mark.parametrize(
    ("settings", "want"), [({"keep": 0.3}, 10), ({"keep": 5}, 5), ({"keep": 1}, 32), ({"keep": 1.0, "at_most": 3}, 3)]
)
def test_budgets(settings, want):
    assert walk(FastV(**settings), RUN, 28, ledger(8))[27] == want


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_token(count):
    assert FastV().start(RUN, 28).after(view(1, ledger(1), torch.arange(count))) is None


@pytest.mark.parametrize("settings", [{"layer": 0}, {"layer": 32}, {"layer": 2.0}, {"paper_depth": 0}, {"keep": 1.5}])
def test_refusals(settings):
    with pytest.raises(UsageError):
        FastV(**settings)
