"""STA against a reading one unit at a time, and the baselines of the tower."""

import itertools

import numpy as np
import pytest
import torch

from videoprune.encode.random import Random
from videoprune.encode.sta import STA, accumulate_and_drop, plan_drops
from videoprune.encode.uniform import Uniform
from videoprune.errors import UsageError
from videoprune.method import TowerView


def draw(frames, units, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(frames, units, 6, generator=generator), torch.randn(frames, units, 4, generator=generator)


def view(hidden, keys, step=0, depth=12, valid=None, frame=None, total=None):
    frames, units = hidden.shape[:2]
    layers = STA().layers(depth)
    return TowerView(
        layer=layers[step],
        depth=depth,
        step=step,
        hidden=hidden,
        keys=lambda: keys,
        unit=torch.arange(units).expand(frames, -1),
        valid=torch.ones(frames, units, dtype=torch.bool) if valid is None else valid,
        size=torch.ones(frames, units, dtype=torch.int64),
        total=total or units,
        frame=torch.arange(frames) if frame is None else frame,
        cls_attention=lambda: torch.zeros(frames, units),
        pixels=lambda: torch.zeros(frames, 3, 4, 4),
    )


def slow_sta(features, keys, drop, backward, temperature=1.0):
    """Kept units of each frame, in float64 and loops."""
    x, k = features.double().numpy(), keys.double().numpy()
    k = k / np.linalg.norm(k, axis=-1, keepdims=True)
    frames, units = x.shape[:2]
    visits = list(range(frames))[:: -1 if backward else 1]
    left, room = list(range(units)), units - drop
    while len(left) > room:
        evens, odds = left[::2], left[1::2]
        best = {e: max(k[visits[0], e] @ k[visits[0], o] for o in odds) for e in evens}
        gone = sorted(evens, key=lambda e: (-best[e], e))[: min(len(left) // 2, len(left) - room)]
        left = [u for u in left if u not in gone]
    kept = {visits[0]: left}
    carried = dict.fromkeys(range(units), 1.0)
    for before, now in itertools.pairwise(visits):
        received = dict.fromkeys(range(units), 0.0)
        for j, mass in carried.items():
            row = np.exp(k[now] @ k[before, j] / temperature)
            for i in range(units):
                received[i] += mass * row[i] / row.sum()
        size = np.abs(x[now]).sum(axis=1)
        scaled = (size - size.min()) / (size.max() - size.min())
        score = {i: received[i] * (1 - scaled[i]) for i in range(units)}
        kept[now] = sorted(sorted(score, key=lambda i: (score[i], i))[:room])
        total = sum(received[i] for i in kept[now])
        carried = {i: received[i] / total for i in kept[now]}
    return [kept[f] for f in range(frames)]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("frames", "units", "drop"), [(5, 9, 3), (4, 10, 5), (6, 12, 9), (1, 8, 7), (2, 5, 0)])
def test_plan_is_the_slow_one(frames, units, drop, backward):
    features, keys = draw(frames, units, seed=frames)
    keep, absorbed = plan_drops(features, keys, drop, backward, temperature=0.5)
    want = slow_sta(features, keys, drop, backward, temperature=0.5)
    assert [row.nonzero()[:, 0].tolist() for row in keep] == want
    scaled = torch.nn.functional.normalize(keys, dim=-1)
    for frame, kept in enumerate(want):
        for unit in range(units):
            assert absorbed[frame, unit] == max(
                kept, key=lambda other: float(scaled[frame, unit] @ scaled[frame, other])
            )


def test_reference_function_keeps_order_and_dtype():
    features, keys = draw(4, 9)
    got = accumulate_and_drop(features, keys, 4, True)
    want = slow_sta(features, keys, 4, True)
    assert torch.equal(got, torch.stack([features[f, kept] for f, kept in enumerate(want)]))
    assert accumulate_and_drop(features.bfloat16(), keys.bfloat16(), 4, False).dtype == torch.bfloat16


def test_padding_never_wins():
    features, keys = draw(4, 10)
    valid = torch.ones(4, 10, dtype=torch.bool)
    valid[0, 7:], valid[2, 3:] = False, False
    features[~valid], keys[~valid] = 99, 1
    keep, absorbed = plan_drops(features, keys, 5, False, valid=valid)
    assert keep.sum(dim=1).tolist() == [5, 5, 3, 5]
    assert not bool((keep & ~valid).any())
    assert bool((absorbed[~valid] == -1).all())
    assert bool(keep.gather(1, absorbed.clamp(min=0))[valid].all())
    features[~valid], keys[~valid] = -5, -3  # what stands in padding changes nothing
    again, _ = plan_drops(features, keys, 5, False, valid=valid)
    assert torch.equal(keep, again)


def test_a_frame_without_units_poisons_no_other():
    features, keys = draw(4, 8)
    valid = torch.ones(4, 8, dtype=torch.bool)
    valid[1] = False
    for backward in (False, True):
        keep, absorbed = plan_drops(features, keys, 3, backward, valid=valid)
        assert keep.sum(dim=1).tolist() == [5, 0, 5, 5]
        assert bool((absorbed[1] == -1).all())


def test_black_and_repeated_frames():
    keep, absorbed = plan_drops(torch.zeros(5, 8, 6), torch.zeros(5, 8, 4), 6, False)
    assert keep.sum(dim=1).tolist() == [2] * 5
    assert bool(keep.gather(1, absorbed).all())
    features, keys = draw(1, 8)
    keep, _ = plan_drops(features.repeat(6, 1, 1), keys.repeat(6, 1, 1), 3, False)
    assert keep.sum(dim=1).tolist() == [5] * 6


def test_the_papers_schedule():
    assert STA().alive_after(196, 3) == [132, 100, 84]  # 1056, 800, 672 of 1568
    assert STA(drop=96).alive_after(196, 3) == [100, 52, 28]  # 800, 416, 224
    assert STA(drop=48).alive_after(196, 3) == [148, 124, 112]  # 1184, 992, 896
    assert STA(at_most=40).alive_after(196, 3) == [144, 92, 40]
    assert STA().layers(24) == [0, 8, 16]
    assert [list(STA().layers(depth)) for depth in (1, 2, 3)] == [[0], [0, 1], [0, 1, 2]]


@pytest.mark.parametrize(("keep", "left"), [(0.7, 137), (0.01, 2), (1, 196), (0.5, 98), (7, 7), (500, 196)])
def test_budget_is_exact_over_the_stages(keep, left):
    method = STA(keep=keep)
    features, keys = draw(3, 196)
    for step in range(3):
        plan = method.plan(view(features, keys, step, total=196))
        if plan is not None:
            counts = plan.keep.sum(dim=1)
            assert int(counts.min()) == int(counts.max())
            index = plan.keep.nonzero()[:, 1].view(3, -1)
            features = features.gather(1, index[..., None].expand(-1, -1, 6))
            keys = keys.gather(1, index[..., None].expand(-1, -1, 4))
    assert features.shape[1] == left
    assert STA(keep=1).identity


def test_stage_equals_reference_function():
    features, keys = draw(6, 20)
    for step in range(3):
        plan = STA(keep=0.7, mode="drop").plan(view(features, keys, step))
        assert plan.absorbed_by is None
        alive = STA(keep=0.7).alive_after(20, 3)[step]
        got = features[plan.keep].view(6, alive, -1)
        assert torch.equal(got, accumulate_and_drop(features, keys, 20 - alive, step == 1))


@pytest.mark.parametrize(
    "method", [Random(keep=0.3), Uniform(keep=0.3), Random(keep=5, mode="drop"), Uniform(at_most=3)]
)
def test_baselines(method):
    features, keys = draw(4, 16)
    valid = torch.ones(4, 16, dtype=torch.bool)
    valid[1, 2:] = False
    plan = method.plan(view(features, keys, valid=valid))
    assert plan.keep.sum(dim=1).tolist() == [method.count(16), 2, method.count(16), method.count(16)]
    alone = method.plan(view(features[3:], keys[3:], frame=torch.tensor([3])))
    assert torch.equal(alone.keep[0], plan.keep[3])  # no chunk changes a draw
    if plan.absorbed_by is not None:
        assert bool(plan.keep.gather(1, plan.absorbed_by).all())
    assert method.plan(view(features[:, :2], keys[:, :2], total=16)) is None


def test_random_differs_by_frame_and_seed_and_is_even():
    features, keys = draw(400, 16)
    one, two = (Random(keep=4, seed=seed).plan(view(features, keys)).keep for seed in (0, 1))
    assert not torch.equal(one, two)
    assert not torch.equal(one[0], one[1])
    hits = one.sum(dim=0)
    assert int(hits.min()) > 60
    assert int(hits.max()) < 140


def test_uniform_is_spaced():
    features, keys = draw(1, 16)
    assert Uniform(keep=4).plan(view(features, keys)).keep[0].nonzero()[:, 0].tolist() == [1, 5, 9, 13]


@pytest.mark.parametrize(
    "bad", [{"drop": 3, "keep": 0.5}, {"drop": -1}, {"mode": "fold"}, {"restart": 0}, {"temperature": 0}, {"keep": 1.5}]
)
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        STA(**bad)


def test_a_drop_that_leaves_nothing_is_refused():
    with pytest.raises(UsageError, match="16 units"):
        STA(drop=10).alive_after(16, 3)
