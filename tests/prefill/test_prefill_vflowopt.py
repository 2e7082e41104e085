import numpy as np
import pytest
import torch

from tests.prefill.fakes import checked, ledger, run_with, view, walk
from videoprune.errors import UsageError
from videoprune.prefill.vflowopt import VFlowOpt, counts_by_ratio

RUN = run_with([8], None)


def scored(frames, per_frame=4, dtype=torch.float32):
    score = torch.rand(frames * per_frame, generator=torch.Generator().manual_seed(2))
    return ledger(frames, per_frame).with_scores(importance=score.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_points_rank_by_the_importance_of_the_ledger(dtype):
    tokens, token = scored(8, dtype=dtype), torch.arange(32)
    state = VFlowOpt(ratios=(0.7, 0.4)).start(RUN, 28)
    assert state.at == {8, 17}
    for layer, count in ((8, 22), (17, 9)):
        score = tokens.scores["importance"][token].double().numpy()
        kept = checked(state.after(view(layer, tokens, token)), len(token))
        assert kept.tolist() == sorted(np.argsort(-score, kind="stable")[:count].tolist())
        token = token[kept]


def test_equal_importance_keeps_the_first():
    tokens = ledger(8).with_scores(importance=torch.ones(32))
    assert VFlowOpt(keep=5, layers=(9,), ratios=(0.5,)).start(RUN, 28).after(
        view(8, tokens, torch.arange(32))
    ).index.tolist() == [0, 1, 2, 3, 4]


def test_counts_by_ratio():
    assert counts_by_ratio(1000, (0.9833, 0.8773), None) == [983, 862]
    assert counts_by_ratio(1000, (0.5, 0.5), 250) == [500, 250]
    assert counts_by_ratio(1000, (1.0, 0.6011), 100) == [1000, 100]
    assert counts_by_ratio(1, (0.1, 0.1), None) == [1, 1]


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({}, 27),
        ({"keep": 0.3}, 10),
        ({"keep": 5}, 5),
        ({"keep": 1}, 32),
        ({"keep": 0.9, "at_most": 7}, 7),
        ({"at_most": 3}, 3),
    ],
)
@pytest.mark.parametrize("depth", [6, 28])
def test_the_last_point_meets_the_budget(settings, want, depth):
    counts = list(walk(VFlowOpt(**settings), RUN, depth, scored(8)).values())
    assert counts[-1] == want
    assert counts == sorted(counts, reverse=True)


def test_a_ledger_without_the_score_is_refused():
    with pytest.raises(UsageError, match="merge: vflowopt"):
        VFlowOpt().start(RUN, 28).after(view(8, ledger(8), torch.arange(32)))
    tokens = ledger(8).with_scores(other=torch.rand(32))
    assert len(VFlowOpt(score="other", keep=0.5).start(RUN, 28).after(view(17, tokens, torch.arange(32))).index) == 16


def test_layers_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="collide"):
        VFlowOpt().start(RUN, 1)


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_token(count):
    assert VFlowOpt().start(RUN, 28).after(view(8, scored(1), torch.arange(count))) is None


def test_state_is_fresh_for_each_answer():
    method = VFlowOpt(keep=0.25)
    assert walk(method, RUN, 28, scored(8))[27] == 8
    assert walk(method, RUN, 28, scored(4))[27] == 4


@pytest.mark.parametrize(
    "settings",
    [{"layers": (18, 9)}, {"layers": (0, 9)}, {"layers": (9, 28)}, {"ratios": (0.5,)}, {"ratios": (0.5, 0.0)},
     {"ratios": (1.0, 1.0), "keep": 0.5}, {"keep": -1}],
)  # fmt: skip
def test_refusals(settings):
    with pytest.raises(UsageError):
        VFlowOpt(**settings)
