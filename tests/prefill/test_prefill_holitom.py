import numpy as np
import pytest
import torch

from tests.prefill.fakes import checked, ledger, run_with, view, walk
from videoprune.errors import UsageError
from videoprune.prefill.holitom import HoliTom, merge_into_kept

RUN = run_with([8], None)


def oracle(hidden, index):
    """Token by token in float64: who absorbs each, and the means."""
    hidden = hidden.double().numpy()
    scaled = hidden / np.maximum(np.linalg.norm(hidden, axis=1, keepdims=True), 1e-12)
    index = index.tolist()
    slot = [
        index.index(place) if place in index else int(np.argmax([scaled[place] @ scaled[kept] for kept in index]))
        for place in range(len(hidden))
    ]
    return slot, np.array([hidden[np.array(slot) == entry].mean(0) for entry in range(len(index))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 7, 39])
def test_merging_equals_the_definition(dtype, count):
    generator = torch.Generator().manual_seed(count)
    hidden = torch.randn(40, 8, generator=generator).to(dtype)
    index = torch.randperm(40, generator=generator)[:count].sort().values
    got = merge_into_kept(hidden, index)
    slot, means = oracle(hidden, index)
    assert got.absorbed_by.tolist() == slot
    assert got.hidden.dtype == dtype
    np.testing.assert_allclose(got.hidden.double(), means, atol=1e-5 if dtype == torch.float32 else 2e-2)
    again = merge_into_kept(hidden, index)
    assert torch.equal(got.hidden, again.hidden)


def test_blocks_change_nothing(monkeypatch):
    hidden, index = torch.randn(40, 8), torch.arange(0, 40, 3)
    whole = merge_into_kept(hidden, index)
    monkeypatch.setattr("videoprune.ops.clustering.BLOCK", 50)
    parts = merge_into_kept(hidden, index)
    assert torch.equal(whole.absorbed_by, parts.absorbed_by)
    torch.testing.assert_close(whole.hidden, parts.hidden)


def test_black_and_copied_tokens():
    got = merge_into_kept(torch.zeros(6, 4), torch.tensor([1, 4]))
    assert got.absorbed_by.tolist() == [0, 0, 0, 0, 1, 0]
    assert got.hidden.abs().sum() == 0
    row = torch.randn(4)
    torch.testing.assert_close(merge_into_kept(row.repeat(6, 1), torch.tensor([1, 4])).hidden, row.repeat(2, 1))


@pytest.mark.parametrize("behind", [5, 0])
def test_keeps_what_the_last_row_attends_to(behind):
    seen = view(17, ledger(8), torch.arange(32), behind=behind)
    query, key = seen.query().double().numpy(), seen.key().double().numpy()
    score = np.zeros(32)
    for head in range(4):
        logits = query[head, -1] @ key[head // 2].T * seen.scale
        weight = np.exp(logits - logits.max())
        score += (weight / weight.sum())[seen.visual.numpy()]
    got = HoliTom(keep=10).start(RUN, 28).after(seen)
    assert checked(got, 32).tolist() == sorted(np.argsort(-score, kind="stable")[:10].tolist())
    np.testing.assert_allclose(got.hidden, oracle(seen.after[seen.visual], got.index)[1], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "want"), [({}, 16), ({"keep": 0.3}, 10), ({"keep": 5}, 5), ({"keep": 1}, 32), ({"at_most": 3}, 3)]
)
@pytest.mark.parametrize(("depth", "layer"), [(28, 17), (6, 3), (1, 0)])
def test_budgets(settings, want, depth, layer):
    if depth == 1:  # layer 18 of 28 has no counterpart: the rounding leaves the model
        with pytest.raises(UsageError):
            HoliTom(**settings).start(RUN, depth)
        return
    assert HoliTom(**settings).start(RUN, depth).at == {layer}
    assert walk(HoliTom(**settings), RUN, depth, ledger(8))[depth - 1] == want


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_token(count):
    assert HoliTom().start(RUN, 28).after(view(17, ledger(1), torch.arange(count))) is None


@pytest.mark.parametrize("settings", [{"layer": 0}, {"layer": 28}, {"layer": 2.0}, {"paper_depth": 0}, {"keep": 1.5}])
def test_refusals(settings):
    with pytest.raises(UsageError):
        HoliTom(**settings)
