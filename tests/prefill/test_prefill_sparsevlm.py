import numpy as np
import pytest
import torch

from tests.prefill.fakes import checked, ledger, run_with, view, walk
from videoprune.errors import UsageError
from videoprune.prefill.sparsevlm import SparseVLM, recycle, text_raters

RUN = run_with([8], None)


def softmax(logits):
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


def raters(seen):
    """Which text rows rate, in float64."""
    rows = seen.text_after.tolist() or [len(seen.after) - 1]
    before = seen.before.double().numpy()
    share = softmax(before[seen.visual] @ before[rows].T).mean(0)
    return [row for row, part in zip(rows, share, strict=True) if part > share.mean()] or rows


def rating(seen, rows):
    query, key = seen.query().double().numpy(), seen.key().double().numpy()
    score = np.zeros(len(seen.visual))
    for head in range(len(query)):
        for row in rows:
            logits = query[head, row] @ key[head * len(key) // len(query), : row + 1].T * seen.scale
            score += softmax(logits)[seen.visual.numpy()] / len(query) / len(rows)
    return score


@pytest.mark.parametrize("behind", [40, 5, 1, 0])
def test_raters_and_their_choice_equal_the_definition(behind):
    tokens = ledger(8)
    state = SparseVLM(keep=9, recycled=0).start(RUN, 32)
    first = view(0, tokens, torch.arange(32), behind=behind)
    rows = raters(first)
    assert state.after(first) is None
    got = text_raters(first.before[first.visual], first.before[first.text_after])
    if behind:
        assert first.text_after[got > 0].tolist() == rows
    seen = view(15, tokens, torch.arange(32), behind=behind)
    want = sorted(np.argsort(-rating(seen, rows), kind="stable")[:9].tolist())
    kept = state.after(seen)
    assert checked(kept, 32).tolist() == want
    assert kept.hidden is None


def test_equal_text_rates_as_one():
    assert text_raters(torch.randn(5, 4), torch.ones(3, 4)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recycled_rows_are_the_means_of_what_they_stand_for(dtype):
    generator = torch.Generator().manual_seed(4)
    hidden, score = torch.randn(60, 8, generator=generator).to(dtype), torch.rand(60, generator=generator)
    kept = score.argsort(descending=True)[:20].sort().values
    got = recycle(hidden, score, kept, 15, 3, 5)
    index = checked(got, 60)
    assert len(index) == 23
    others = [place for place in np.argsort(-score.numpy(), kind="stable").tolist() if place not in kept.tolist()][:15]
    alive = got.absorbed_by >= 0
    assert alive.nonzero()[:, 0].tolist() == sorted([*kept.tolist(), *others])
    for entry, place in enumerate(index.tolist()):
        members = (got.absorbed_by == entry).nonzero()[:, 0]
        assert place in members.tolist()
        assert place in kept.tolist() or set(members.tolist()) <= set(others)
        assert len(members) == 1 or place not in kept.tolist()
        want = hidden[members].double().mean(0)
        torch.testing.assert_close(
            got.hidden[entry].double(), want, rtol=1e-2, atol=1e-2 if dtype != torch.float32 else 1e-5
        )
    again = recycle(hidden, score, kept, 15, 3, 5)
    assert torch.equal(index, again.index)
    assert torch.equal(got.hidden, again.hidden)


def test_a_black_film_keeps_the_budget():
    score = torch.zeros(40)
    got = recycle(torch.zeros(40, 8), score, torch.arange(10), 20, 4, 5)
    assert len(checked(got, 40)) == 14
    assert got.hidden.abs().sum() == 0


def test_paper_schedule():
    counts = walk(SparseVLM(), RUN, 32, ledger(4, 144))
    assert [counts[layer] for layer in (1, 2, 5, 6, 14, 15, 31)] == [576, 300, 300, 200, 200, 110, 110]


@pytest.mark.parametrize(
    ("settings", "want"),
    [({"keep": 0.3}, 10), ({"keep": 5}, 5), ({"keep": 1}, 32), ({"keep": 0.9, "at_most": 1}, 1), ({"at_most": 3}, 3)],
)
@pytest.mark.parametrize("depth", [8, 28])
def test_the_last_point_meets_the_budget(settings, want, depth):
    counts = list(walk(SparseVLM(**settings), RUN, depth, ledger(8)).values())
    assert counts[-1] == want
    assert counts == sorted(counts, reverse=True)


def test_layers_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="collide"):
        SparseVLM().start(RUN, 2)


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_token(count):
    assert SparseVLM().start(RUN, 32).after(view(2, ledger(1), torch.arange(count))) is None


def test_state_is_fresh_for_each_answer():
    method = SparseVLM()
    assert walk(method, RUN, 32, ledger(8))[31] == 6
    assert walk(method, RUN, 32, ledger(4))[31] == 3


@pytest.mark.parametrize(
    "settings",
    [{"layers": (6, 2, 15)}, {"layers": (-1, 2, 5)}, {"layers": (2, 6, 32)}, {"shares": (0.5, 0.2)}, {"recycled": 2},
     {"shares": (0.5, 0.6, 0.1)}, {"per_cluster": 0}, {"neighbors": 0}, {"keep": -1}],
)  # fmt: skip
def test_refusals(settings):
    with pytest.raises(UsageError):
        SparseVLM(**settings)
