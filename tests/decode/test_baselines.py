import itertools

import pytest
import torch

from tests.decode.fakes import KV_HEADS, checked, step_view, view
from videoprune.decode.random import Random
from videoprune.decode.uniform import Uniform
from videoprune.errors import UsageError
from videoprune.run import Events, Run

BOTH = pytest.mark.parametrize("method", [Random, Uniform])
TEXT = {*range(6), *range(30, 40)}


def after(method, seen, seed=0):
    return method.start(Run(Events.single(4), seed=seed), 28).after(seen)


@BOTH
@pytest.mark.parametrize(
    ("settings", "want"), [({}, 20), ({"keep": 0.75}, 30), ({"keep": 17}, 17), ({"keep": 3}, 16), ({"at_most": 18}, 18)]
)
def test_text_stays_and_the_budget_is_met(method, settings, want):
    index = checked(after(method(**settings), view()), 40)
    assert index.shape == (KV_HEADS, want)
    assert all(set(head.tolist()) >= TEXT for head in index)


@BOTH
def test_without_protection(method):
    for keep in (1 / 40, 5, 39):
        index = checked(after(method(keep=keep, protect_text=False), view()), 40)
        assert index.shape[1] == max(1, int(keep * 40 + 0.5)) if keep < 1 else keep
        assert (index[:, -1] == 39).all()


@BOTH
def test_nothing_to_do(method):
    seen = view()
    assert after(method(keep=40), seen) is None
    assert after(method(keep=None), seen) is None
    assert after(method(keep=2), view(length=6, visual=(3, 3))) is None
    assert after(method(), step_view(0, 1, seen.keys, seen.position, (6, 30), seen.query[:, -1:])) is None


def test_uniform_is_even():
    visual = [i for i in after(Uniform(keep=24), view()).index[0].tolist() if i not in TEXT]
    assert {b - a for a, b in itertools.pairwise(visual)} == {3}


def test_random_repeats_by_seed_and_layer():
    draws = [after(Random(), view(layer), seed).index for layer, seed in ((0, 0), (0, 0), (1, 0), (0, 1))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])


@BOTH
def test_refusals(method):
    for settings in ({"recent": -1}, {"keep": 0}, {"at_most": 0}):
        with pytest.raises(UsageError):
            method(**settings)
