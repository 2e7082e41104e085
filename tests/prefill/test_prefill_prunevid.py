import numpy as np
import pytest
import torch

from tests.prefill.fakes import checked, ledger, run_with, view, walk
from videoprune.errors import UsageError
from videoprune.prefill.prunevid import PruneVid, strongest_attention

RUN = run_with([8], None)


def oracle(seen):
    """Head by head and row by row in float64."""
    query, key = seen.query().double().numpy(), seen.key().double().numpy()
    best = np.zeros(len(seen.visual))
    for head in range(len(query)):
        for row in seen.text_after.tolist() or [len(seen.after) - 1]:
            logits = query[head, row] @ key[head * len(key) // len(query), : row + 1].T * seen.scale
            weight = np.exp(logits - logits.max())
            best = np.maximum(best, (weight / weight.sum())[seen.visual.numpy()])
    return best


@pytest.mark.parametrize("behind", [20, 5, 1, 0])
def test_each_frame_keeps_its_best(behind):
    tokens = ledger(8)
    token = torch.tensor([0, 1, 2, 3, 4, 6, 7, 9, *range(16, 32)])  # frames of 4, 3, 1, 0, 4, 4, 4, 4 tokens
    seen = view(10, tokens, token, behind=behind)
    want = oracle(seen)
    np.testing.assert_allclose(strongest_attention(seen), want, rtol=1e-4)
    first, second = (checked(PruneVid(keep=12).start(RUN, 32).after(seen), 24) for _ in range(2))
    assert torch.equal(first, second)
    frame, kept = tokens.frame[token].numpy(), set(first.tolist())
    for number in range(8):
        members = np.flatnonzero(frame == number)
        chosen = [place for place in members if place in kept]
        assert abs(len(chosen) - len(members) / 2) < 1
        best = members[np.argsort(-want[members], kind="stable")]
        assert chosen == sorted(best[: len(chosen)].tolist())


@pytest.mark.parametrize(
    ("settings", "want"), [({}, 13), ({"keep": 0.3}, 10), ({"keep": 5}, 5), ({"keep": 1}, 32), ({"at_most": 3}, 3)]
)
@pytest.mark.parametrize(("depth", "layer"), [(6, 2), (28, 9), (32, 10), (1, 0)])
def test_budgets(settings, want, depth, layer):
    assert PruneVid(**settings).start(RUN, depth).at == {layer}
    assert walk(PruneVid(**settings), RUN, depth, ledger(8))[depth - 1] == want


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_token(count):
    assert PruneVid().start(RUN, 32).after(view(10, ledger(1), torch.arange(count))) is None


@pytest.mark.parametrize("settings", [{"layer": -1}, {"layer": 32}, {"layer": 2.0}, {"paper_depth": 0}, {"keep": 1.5}])
def test_refusals(settings):
    with pytest.raises(UsageError):
        PruneVid(**settings)
