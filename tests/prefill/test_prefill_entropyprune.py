import numpy as np
import pytest
import torch

from tests.prefill.fakes import checked, ledger, run_with, view, walk
from videoprune.errors import UsageError
from videoprune.prefill.entropyprune import EntropyPrune, head_entropy

RUN = run_with([8], None)


def oracle(query, normalise=False):
    """Token by token, through the full covariance of width d in float64."""
    query, scores = query.double().numpy(), []
    for token in range(query.shape[1]):
        heads = query[:, token] - query[:, token].mean(0)
        spectrum = np.maximum(np.linalg.svd(heads, compute_uv=False) ** 2 / len(heads), 1e-10)
        spectrum = np.concatenate([spectrum, np.full(len(heads) - len(spectrum), 1e-10)])
        spectrum = spectrum / spectrum.sum() if normalise else spectrum
        scores.append(-(spectrum * np.log(spectrum)).sum() / np.log(len(heads)))
    return np.array(scores)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(("heads", "width"), [(4, 8), (14, 64), (8, 4)])
def test_entropy_equals_the_definition(heads, width, normalise):
    query = torch.randn(heads, 21, width, generator=torch.Generator().manual_seed(heads))
    got = head_entropy(query, normalise)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, oracle(query, normalise), rtol=1e-3, atol=1e-3)
    half = query.bfloat16()
    np.testing.assert_allclose(head_entropy(half, normalise), oracle(half.float(), normalise), rtol=1e-3, atol=1e-3)


def test_energy_counts_unless_normalised():
    query = torch.randn(8, 1, 16, generator=torch.Generator().manual_seed(0)).repeat(1, 2, 1)
    query[:, 1] *= 3
    assert head_entropy(query)[1] < head_entropy(query)[0]
    torch.testing.assert_close(head_entropy(query, True)[1], head_entropy(query, True)[0], rtol=1e-3, atol=1e-3)


def test_equal_heads_and_one_head():
    same = torch.ones(6, 5, 4)
    assert torch.isfinite(head_entropy(same, True)).all()
    assert torch.isfinite(head_entropy(same[:1])).all()


def test_keeps_the_most_diverse():
    seen = view(1, ledger(8), torch.arange(32))
    want = oracle(seen.query()[:, seen.visual])
    first, second = (checked(EntropyPrune(keep=9).start(RUN, 32).after(seen), 32) for _ in range(2))
    assert first.tolist() == sorted(np.argsort(-want, kind="stable")[:9].tolist())
    assert torch.equal(first, second)


def test_the_authors_count():
    state = EntropyPrune().start(RUN, 32)
    assert len(state.after(view(1, ledger(4, 144), torch.arange(576))).index) == 166


@pytest.mark.parametrize(
    ("settings", "want"),
    [({}, int((28 * 32 / 3 - 64) / 26)), ({"keep": 0.3}, 10), ({"keep": 5}, 5), ({"keep": 1}, 32), ({"at_most": 3}, 3)],
)
def test_budgets(settings, want):
    assert walk(EntropyPrune(**settings), RUN, 28, ledger(8))[27] == want


def test_an_average_that_is_spent_already_is_refused():
    with pytest.raises(UsageError, match="give more"):
        EntropyPrune(average=0.05).start(RUN, 32)
    with pytest.raises(UsageError, match="give more"):
        EntropyPrune().start(RUN, 1)
    assert EntropyPrune(average=0.05, keep=0.1).start(RUN, 32).at == {1}


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_token(count):
    assert EntropyPrune().start(RUN, 28).after(view(1, ledger(1), torch.arange(count))) is None


@pytest.mark.parametrize(
    "settings", [{"layer": 0}, {"layer": 32}, {"average": 0}, {"average": 1.1}, {"normalise": 1}, {"keep": 0}]
)
def test_refusals(settings):
    with pytest.raises(UsageError):
        EntropyPrune(**settings)
