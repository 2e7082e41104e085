import numpy as np
import pytest
import torch

from tests.prefill.fakes import checked, ledger, run_with, view, walk
from videoprune.errors import UsageError
from videoprune.prefill.pyramiddrop import PyramidDrop

RUN = run_with([8], None)


@pytest.mark.parametrize("behind", [5, 0])
def test_keeps_what_the_last_row_attends_to(behind):
    seen = view(7, ledger(8), torch.arange(32), behind=behind)
    query, key = seen.query().double().numpy(), seen.key().double().numpy()
    score = np.zeros(32)
    for head in range(4):
        logits = query[head, -1] @ key[head // 2].T * seen.scale
        weight = np.exp(logits - logits.max())
        score += (weight / weight.sum())[seen.visual.numpy()]
    first, second = (checked(PyramidDrop().start(RUN, 32).after(seen), 32) for _ in range(2))
    assert first.tolist() == sorted(np.argsort(-score, kind="stable")[:16].tolist())
    assert torch.equal(first, second)


def test_paper_schedule():
    counts = walk(PyramidDrop(), RUN, 32, ledger(4, 144))
    assert [counts[layer] for layer in (6, 7, 14, 15, 22, 23, 31)] == [576, 288, 288, 144, 144, 72, 72]


@pytest.mark.parametrize(
    ("settings", "want"),
    [({"keep": 0.3}, 10), ({"keep": 5}, 5), ({"keep": 1}, 32), ({"keep": 0.9, "at_most": 7}, 7), ({"at_most": 3}, 3)],
)
@pytest.mark.parametrize("depth", [6, 8, 28, 32])
def test_the_last_point_meets_the_budget(settings, want, depth):
    counts = list(walk(PyramidDrop(**settings), RUN, depth, ledger(8)).values())
    assert counts[-1] == want
    assert counts == sorted(counts, reverse=True)


def test_layers_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="collide"):
        PyramidDrop().start(RUN, 2)
    with pytest.raises(UsageError, match="at least 1"):
        PyramidDrop(layers=(1, 10, 20)).start(RUN, 8)


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_token(count):
    assert PyramidDrop().start(RUN, 32).after(view(7, ledger(1), torch.arange(count))) is None


def test_state_is_fresh_for_each_answer():
    method = PyramidDrop()
    assert walk(method, RUN, 32, ledger(8))[31] == 4
    assert walk(method, RUN, 32, ledger(4))[31] == 2


@pytest.mark.parametrize(
    "settings",
    [{"layers": (16, 8, 24)}, {"layers": (0, 8, 16)}, {"layers": (8, 16, 32)}, {"layers": ()}, {"shares": (0.5, 0.2)},
     {"shares": (0.5, 0.6, 0.1)}, {"shares": (1.0, 0.5, 0.1)}, {"keep": -1}],
)  # fmt: skip
def test_refusals(settings):
    with pytest.raises(UsageError):
        PyramidDrop(**settings)
