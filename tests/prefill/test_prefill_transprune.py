import numpy as np
import pytest
import torch

from tests.prefill.fakes import checked, ledger, run_with, view, walk
from videoprune.errors import UsageError
from videoprune.prefill.transprune import MODULES, TransPrune, counts_towards, transition_variation

RUN = run_with([8], None)
NAMES = [name for module in MODULES for name in module]


def oracle(before, after):
    """Token by token in float64."""
    size = np.linalg.norm(after, axis=1) / np.linalg.norm(before, axis=1)
    cosine = (before * after).sum(1) / np.linalg.norm(after, axis=1) / np.linalg.norm(before, axis=1)
    weight = np.exp(1 - cosine)
    return size * weight / weight.sum()


def attention(seen):
    """Mean attention of the text rows on each visual token."""
    query, key = seen.query().double().numpy(), seen.key().double().numpy()
    rows = seen.text_after.tolist() or [len(seen.after) - 1]
    score = np.zeros(len(seen.visual))
    for head in range(len(query)):
        for row in rows:
            logits = query[head, row] @ key[head * len(key) // len(query), : row + 1].T * seen.scale
            weight = np.exp(logits - logits.max())
            score += (weight / weight.sum())[seen.visual.numpy()] / len(query) / len(rows)
    return score


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_variation_equals_the_definition(dtype):
    torch.manual_seed(0)
    before, after = torch.randn(5000, 16).to(dtype), torch.randn(5000, 16).to(dtype)
    got = transition_variation(before, after)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, oracle(before.double().numpy(), after.double().numpy()), rtol=1e-4)
    assert torch.isfinite(transition_variation(torch.zeros(3, 4), torch.zeros(3, 4))).all()


@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize("behind", [5, 1, 0])
def test_sums_what_the_layers_change_and_adds_attention(captured, behind):
    tokens, alpha = ledger(8), 0.3
    state = TransPrune(layers=(7, 9), shares=(0.75, 0.25), alpha=alpha).start(RUN, 32)
    assert state.at == {6, 7, 8}
    token, total = torch.arange(32), np.zeros(32)
    for layer in (6, 7, 8):
        seen = view(layer, tokens, token, behind=behind)
        pairs = [(seen.before / seen.before.square().mean(-1, keepdim=True).sqrt(), seen.after - seen.before)]
        if captured:
            seen.captured = {name: torch.randn(seen.after.shape) for name in NAMES}
            pairs = [(seen.captured[a], seen.captured[b]) for a, b in MODULES]
        for pair in pairs:
            total[token] += oracle(*(side.double().numpy() for side in pair))[seen.visual]
        kept = state.after(seen)
        if layer == 7:
            assert kept is None
            continue
        changed, attended = total[token], attention(seen)
        score = alpha * changed / changed.sum() + (1 - alpha) * attended / attended.sum()
        want = sorted(np.argsort(-score, kind="stable")[: 24 if layer == 6 else 8].tolist())
        assert checked(kept, len(token)).tolist() == want
        token = token[kept.index]


def test_paper_schedule():
    counts = walk(TransPrune(), RUN, 32, ledger(4, 144))
    assert [counts[layer] for layer in (5, 6, 7, 8, 10, 11, 31)] == [576, 504, 504, 360, 360, 72, 72]


@pytest.mark.parametrize(
    ("settings", "want"),
    [({"keep": 0.3}, 10), ({"keep": 5}, 5), ({"keep": 1}, 32), ({"keep": 0.9, "at_most": 7}, 7), ({"at_most": 3}, 3)],
)
@pytest.mark.parametrize("depth", [28, 32])
def test_the_last_point_meets_the_budget(settings, want, depth):
    counts = list(walk(TransPrune(**settings), RUN, depth, ledger(8)).values())
    assert counts[-1] == want
    assert counts == sorted(counts, reverse=True)


def test_counts_towards():
    assert counts_towards(576, (0.875, 0.625, 0.125), None) == [504, 360, 72]
    assert counts_towards(576, (0.875, 0.625, 0.125), 72) == [504, 360, 72]
    assert counts_towards(1, (0.5, 0.1), None) == [1, 1]
    assert counts_towards(0, (0.5, 0.1), None) == [0, 0]


def test_layers_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="collide"):
        TransPrune().start(RUN, 4)
    with pytest.raises(UsageError, match="at least 1"):
        TransPrune(layers=(1, 10, 20), first=0).start(RUN, 8)
    assert TransPrune().start(RUN, 8).points == [0, 1, 2]  # 7, 9, 12 of 32: rounded, two would fall on one
    assert TransPrune(layers=(2, 4), shares=(0.5, 0.2), first=1, paper_depth=8).start(RUN, 8).at == {1, 2, 3}


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_token(count):
    assert TransPrune().start(RUN, 32).after(view(6, ledger(1), torch.arange(count))) is None


def test_state_is_fresh_for_each_answer():
    method = TransPrune()
    assert walk(method, RUN, 32, ledger(8)) == walk(method, RUN, 32, ledger(8))
    assert walk(method, RUN, 32, ledger(4))[31] == 2


@pytest.mark.parametrize(
    "settings",
    [{"layers": (9, 7, 12)}, {"layers": (0, 9, 12)}, {"layers": (7, 9, 32)}, {"layers": ()}, {"first": 7}, {"alpha": 2},
     {"shares": (0.5, 0.2)}, {"shares": (0.5, 0.6, 0.1)}, {"shares": (1.0, 0.5, 0.1)}, {"keep": -1}],
)  # fmt: skip
def test_refusals(settings):
    with pytest.raises(UsageError):
        TransPrune(**settings)
