import pytest
import torch

from tests.prefill.fakes import checked, ledger, run_with, view, walk
from videoprune.errors import UsageError
from videoprune.prefill.random import Random
from videoprune.prefill.uniform import Uniform, evenly_spaced

BOTH = pytest.mark.parametrize("method", [Random, Uniform])


@BOTH
@pytest.mark.parametrize(("depth", "layer"), [(28, 1), (56, 3), (8, 0), (6, 0), (4, 0), (1, 0)])
def test_one_pruning_point(method, depth, layer):
    run, tokens = run_with([8], None), ledger(8)
    assert method().start(run, depth).at == {layer}
    assert walk(method(), run, depth, tokens)[layer] == 16


@BOTH
@pytest.mark.parametrize(
    ("settings", "want"),
    [({"keep": 0.3}, 10), ({"keep": 5}, 5), ({"keep": 99}, 32), ({"at_most": 3}, 3), ({"keep": None}, 32)],
)
def test_budgets(method, settings, want):
    assert walk(method(**settings), run_with([8], None), 28, ledger(8))[27] == want


@BOTH
@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_token(method, count):
    assert method().start(run_with([1], None), 28).after(view(1, ledger(1), torch.arange(count))) is None


def test_evenly_spaced_middles():
    for total in range(1, 40):
        for count in range(1, total + 1):
            got = evenly_spaced(total, count)
            assert got.tolist() == [int((i + 0.5) * total / count + 1e-9) for i in range(count)]
            assert len(set(got.tolist())) == count
    assert evenly_spaced(8, 4).tolist() == [1, 3, 5, 7]


def test_random_repeats_by_seed_and_layer():
    def draw(seed, depth):
        state = Random().start(run_with([8], None, seed), depth)
        (layer,) = state.at
        return checked(state.after(view(layer, ledger(8), torch.arange(32))), 32).tolist()

    assert draw(0, 28) == draw(0, 28)
    assert draw(0, 28) != draw(1, 28)
    assert draw(0, 28) != draw(0, 56)


@BOTH
@pytest.mark.parametrize("settings", [{"layer": 0}, {"layer": 28}, {"layer": 2.0}, {"paper_depth": 0}, {"keep": 1.5}])
def test_refusals(method, settings):
    with pytest.raises(UsageError):
        method(**settings)
