"""LazyLLM's prefill stage against numpy's percentile in float64."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.prefill.fakes import checked, ledger, run_with, view, walk
from videoprune.errors import UsageError
from videoprune.prefill.lazyllm import LazyLLM, confidence

RUN = run_with([8], None)


@pytest.mark.parametrize("behind", [5, 1])
@pytest.mark.parametrize("percentile", [10, 30, 62.5, 95])
def test_what_lies_below_the_percentile_stops(behind: int, percentile: float) -> None:
    seen = view(9, ledger(8), torch.arange(32), behind=behind)
    query, key = seen.query().double().numpy(), seen.key().double().numpy()
    score = np.zeros(len(key[0]))
    for head in range(4):
        logits = query[head, -1] @ key[head // 2].T * seen.scale
        weight = np.exp(logits - logits.max())
        score += weight / weight.sum() / 4
    np.testing.assert_allclose(confidence(seen.attention(seen.last_row)[:, 0]), score, atol=1e-6)
    film = score[seen.visual.numpy()]
    kept = LazyLLM(layers=(10,), percentiles=(percentile,)).start(RUN, 32).after(seen)
    assert kept.parked
    assert kept.hidden is None
    assert checked(kept, 32).tolist() == (film >= np.percentile(film, percentile)).nonzero()[0].tolist()


def test_paper_schedule() -> None:
    """30 % of the tokens alive stop after 30, 60 and 90 % of 32 layers; both halves act before the same layers."""
    run = run_with([8], None)
    counts = walk(LazyLLM(), run, 32, ledger(4, 250))
    assert [counts[layer] for layer in (8, 9, 17, 18, 27, 28, 31)] == [1000, 700, 700, 490, 490, 343, 343]
    assert run.published["lazyllm.layers"] == (10, 19, 29)
    assert run.published["lazyllm.percentiles"] == (30, 30, 30)
    state = LazyLLM().start(run, 28)
    assert (state.at, state.parks) == ({8, 16, 24}, True)


@pytest.mark.parametrize(
    ("settings", "want"),
    [({"keep": 0.3}, 10), ({"keep": 5}, 5), ({"keep": 1}, 32), ({"keep": 0.9, "at_most": 7}, 7), ({"at_most": 3}, 3)],
)
@pytest.mark.parametrize("depth", [6, 8, 28, 32])
def test_the_last_point_meets_the_budget(settings: dict, want: int, depth: int) -> None:
    counts = list(walk(LazyLLM(**settings), RUN, depth, ledger(8)).values())
    assert counts[-1] == want
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_token(count: int) -> None:
    assert LazyLLM().start(RUN, 32).after(view(9, ledger(1), torch.arange(count))) is None


def test_equal_scores_half_precision_and_a_fresh_state() -> None:
    method, seen = LazyLLM(), view(9, ledger(8), torch.arange(32))
    alike = dataclasses.replace(seen, attention=lambda rows: torch.ones(4, len(rows), 40))
    assert method.start(RUN, 32).after(alike).index.tolist() == list(range(22))
    half = dataclasses.replace(seen, attention=lambda rows: seen.attention(rows).bfloat16())
    assert len(method.start(RUN, 32).after(half).index) == 22
    assert walk(method, RUN, 32, ledger(8))[31] == walk(method, RUN, 32, ledger(8))[31]
    assert walk(method, RUN, 32, ledger(4))[31] == 5  # 16, 11, 8, 5


def test_layers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="collide"):
        LazyLLM().start(RUN, 2)
    with pytest.raises(UsageError, match="at least 1"):
        LazyLLM(layers=(1, 10, 20)).start(RUN, 8)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"layers": (16, 8, 24)}, r"layers: \[16, 8, 24\] is given; allowed are ascending"),
        ({"layers": (0, 8, 16)}, "layers"),
        ({"layers": (8, 16, 32)}, r"1\.\.31"),
        ({"layers": ()}, "layers"),
        ({"layers": "abc"}, "layers: 'abc'"),
        ({"layers": (8, 16.5, 20)}, "layers"),
        ({"paper_depth": 0}, "paper_depth"),
        ({"percentiles": (30, 30)}, "percentiles: .* allowed are 3 numbers"),
        ({"percentiles": (30, 30, 100)}, "percentiles"),
        ({"percentiles": (30, -1, 30)}, "percentiles"),
        ({"percentiles": 30}, "percentiles: 30 is given"),
        ({"keep": -1}, "keep"),
        ({"positions": "compact"}, "positions: 'compact' is given; allowed is 'original'"),
    ],
)
def test_refusals(settings: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        LazyLLM(**settings)
