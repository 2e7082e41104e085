import math

import numpy as np
import pytest
import torch

from tests.prefill.fakes import checked, ledger, run_with, view, walk
from videoprune.errors import UsageError
from videoprune.ops.attention import apportion, best_per_group
from videoprune.prefill.metok import METok, budget_totals, paper_quota

LENGTHS = [3, 1, 5, 4]  # frames of 4 tokens


def film(key):
    run = run_with(LENGTHS, key)
    return run, ledger(13).with_events(run.events.frame_event)


def by_hand(seen, run, quota_of):
    """Loop over the events, float64: keep the best by the text rows' mean attention."""
    query, key = seen.query().double().numpy(), seen.key().double().numpy()
    score = np.zeros(len(seen.visual))
    for head in range(4):
        for row in seen.text_after.tolist():
            logits = query[head, row] @ key[head // 2, : row + 1].T * seen.scale
            weight = np.exp(logits - logits.max())
            score += (weight / weight.sum())[seen.visual.numpy()] / (4 * len(seen.text_after))
    event = seen.tokens.event[seen.token].numpy()
    kept = []
    for number in range(len(run.events)):
        members = np.flatnonzero(event == number)
        best = members[np.argsort(-score[members], kind="stable")]
        kept += best[: quota_of(number, len(members))].tolist()
    return sorted(kept)


def test_best_per_group_equals_a_loop():
    torch.manual_seed(0)
    for case in range(20):
        event = torch.randint(0, 5, (40,))
        score = torch.randint(0, 6, (40,)).float()  # many ties
        quota = torch.randint(0, 9, (5,))
        want = []
        for number in range(5):
            members = [i for i in range(40) if event[i] == number]
            want += sorted(members, key=lambda i: (-score[i].item(), i))[: int(quota[number])]
        assert best_per_group(score, event, quota).tolist() == sorted(want), case


def test_paper_quota_equals_the_formula():
    key = torch.tensor([True, False, True, False, True])
    length = torch.tensor([25, 25, 1, 1, 0])
    for point in range(3):
        want = []
        for size, is_key in zip(length.tolist(), key.tolist(), strict=True):
            least = min(1, size)
            if point == 2 or (not is_key and point == 1):
                want.append(0)
            else:
                want.append(max(least, math.ceil(0.76 * size if is_key else 0.76 * size / 2)))
        assert paper_quota(length, key, 0.76, point, 3).tolist() == want
    assert paper_quota(length, key, 0.76, 0, 3)[0] == 19  # not 20, as in float32


@pytest.mark.parametrize("key", [[0, 2], [1], None, []])
def test_keeps_the_best_of_each_event(key):
    run, tokens = film(key)
    method = METok()
    state = method.start(run, 28)
    assert state.at == {2, 9, 18}
    assert run.published["metok.layers"] == (3, 10, 19)
    token = torch.arange(len(tokens))
    keys = range(4) if key is None else key
    for point, layer in enumerate((2, 9)):
        seen = view(layer, tokens, token, seed=7)

        def quota(number, size, point=point):
            if number in keys:
                return max(1, math.ceil(0.76 * size))
            return max(1, math.ceil(0.76 * size / 2)) if point == 0 else 0

        want = by_hand(seen, run, quota)
        kept = state.after(seen)
        assert checked(kept, len(token)).tolist() == want
        token = token[kept.index]
    last = state.after(view(18, tokens, token))
    assert (last is None) if not len(token) else (len(last.index) == 0)


@pytest.mark.parametrize(("depth", "want"), [(28, (3, 10, 19)), (8, (1, 3, 5)), (6, (1, 2, 4))])
def test_layers_scale(depth, want):
    run, tokens = film([0])
    counts = walk(METok(), run, depth, tokens)
    assert run.published["metok.layers"] == want
    assert [counts[p - 1] < counts.get(p - 2, 52) for p in want] == [True] * 3
    assert counts[want[-1] - 1] == 0


def test_layers_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="at least 1"):
        METok().start(run_with([4], None), 4)
    with pytest.raises(UsageError, match="collide"):
        METok().start(run_with([4], None), 2)
    assert METok(layers=[7, 14, 21]).start(run_with([4], None), 4).at == {0, 1, 2}


@pytest.mark.parametrize("key", [[0, 2], [1], None, []])
@pytest.mark.parametrize("layers", [(3, 10, 19), (3, 10), (2, 6, 12, 19)])
@pytest.mark.parametrize("keep", [0.05, 0.25, 7, 0.6, 33, 0.95, 51, 1.0, 900])
def test_keep_is_met_exactly_before_the_last_point(key, layers, keep):
    run, tokens = film(key)
    method = METok(keep=keep, layers=layers)
    counts = walk(method, run, 28, tokens)
    assert counts[layers[-2] - 1] == method.count(len(tokens))
    assert counts[layers[-1] - 1] == 0
    alive = list(counts.values())
    assert alive == sorted(alive, reverse=True)


def test_keep_favours_key_events():
    run, tokens = film([0, 2])  # 32 tokens in key events, 20 in others
    state, token = METok(keep=20).start(run, 28), torch.arange(52)
    for layer in (2, 9):
        kept = state.after(view(layer, tokens, token))
        token = token[kept.index]
        if layer == 2:
            in_key = sum(int(event) in (0, 2) for event in tokens.event[token])
            share = (20 / 32) ** 0.5
            assert (in_key, len(token) - in_key) == (round(32 * share), round(20 * share / 2))
    events = tokens.event[token]
    assert torch.bincount(events, minlength=4).tolist() in ([8, 0, 12, 0], [7, 0, 13, 0])


def test_budget_totals():
    assert budget_totals(100, 100, 25, 3) == [(50, 25), (25, 0)]
    assert budget_totals(100, 100, 130, 3) == [(100, 50), (100, 30)]
    assert budget_totals(100, 100, 75, 2) == [(50, 25)]
    assert budget_totals(100, 100, 190, 2) == [(100, 90)]
    assert budget_totals(0, 40, 10, 3)[-1] == (0, 10)


def test_apportion():
    torch.manual_seed(1)
    for _ in range(50):
        size = torch.randint(0, 9, (6,))
        total = int(torch.randint(0, 60, ()))
        got = apportion(size, total)
        whole = min(total, int(size.sum()))
        assert got.sum() == whole
        assert (got <= size).all()
        assert ((got - size * whole / max(int(size.sum()), 1)).abs() < 1).all()


def test_at_most_cuts_the_paper_schedule():
    run, tokens = film([0, 2])
    free, capped = walk(METok(), run, 28, tokens), walk(METok(at_most=5), run, 28, tokens)
    assert capped[2] == free[2]
    assert free[9] > 5
    assert (capped[9], capped[18]) == (5, 0)


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_token(count):
    run, tokens = film([0])
    state = METok().start(run, 28)
    assert state.after(view(2, tokens, torch.arange(count))) is None
    last = state.after(view(18, tokens, torch.arange(count)))
    assert last is None if count == 0 else len(last.index) == 0


def test_without_segments_the_film_is_one_event():
    run = run_with([6], None)
    tokens = ledger(6)
    assert (tokens.event == -1).all()
    assert walk(METok(), run, 28, tokens)[2] == math.ceil(0.76 * 24)


def test_a_prompt_that_ends_in_the_film():
    run, tokens = film(None)
    assert METok().start(run, 28).after(view(2, tokens, torch.arange(52), behind=0)) is not None


@pytest.mark.parametrize(
    "settings",
    [{"layers": [3]}, {"layers": [10, 3]}, {"layers": [3, 3, 9]}, {"layers": [0, 3]}, {"layers": [3, 28]}, {"layers": "310"},
     {"layers": [1.5, 3]}, {"keep_key": 0}, {"keep_key": 1.1}, {"keep": -1}],
)  # fmt: skip
def test_refusals(settings):
    with pytest.raises(UsageError):
        METok(**settings)
