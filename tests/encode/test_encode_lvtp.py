"""LVTP's scores against loops in float64."""

import numpy as np
import pytest
import torch

from videoprune.encode.lvtp import LVTP, edge_strength, tsallis_entropy
from videoprune.errors import UsageError
from videoprune.method import TowerView


def draw(frames, units, seed=0):
    generator = torch.Generator().manual_seed(seed)
    side = 4 * int(units**0.5)
    return torch.randn(frames, units, 5, generator=generator), torch.randn(frames, 3, side, side, generator=generator)


def view(keys, pixels, step=0, valid=None, unit=None, total=None):
    frames, units = keys.shape[:2]
    return TowerView(
        layer=3,
        depth=12,
        step=step,
        hidden=keys,
        keys=lambda: keys,
        unit=torch.arange(units).expand(frames, -1) if unit is None else unit,
        valid=torch.ones(frames, units, dtype=torch.bool) if valid is None else valid,
        size=torch.ones(frames, units, dtype=torch.int64),
        total=total or units,
        frame=torch.arange(frames),
        cls_attention=lambda: torch.zeros(frames, units),
        pixels=lambda: pixels,
    )


def slow_entropy(keys, q):
    keys = keys.double().numpy()
    logits = keys @ keys.T / np.sqrt(keys.shape[1])
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    return (1 - (share**q).sum(axis=1)) / (q - 1)


def slow_edges(pixels, side):
    grey = np.pad(pixels.double().numpy().mean(axis=0), 1, mode="edge")
    height, width = grey.shape[0] - 2, grey.shape[1] - 2
    slope = np.zeros((height, width))
    sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    for y in range(height):
        for x in range(width):
            patch = grey[y : y + 3, x : x + 3]
            slope[y, x] = np.hypot((patch * sobel).sum(), (patch * sobel.T).sum())
    return slope.reshape(side, height // side, side, width // side).mean(axis=(1, 3)).ravel()


def scaled(score):
    return (score - score.min()) / (score.max() - score.min())


@pytest.mark.parametrize("q", [0.5, 2, 3])
def test_entropy(q):
    keys, _ = draw(2, 9)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[1, 6:] = False
    got = tsallis_entropy(keys, q, valid)
    np.testing.assert_allclose(got[0], slow_entropy(keys[0], q), atol=1e-5)
    np.testing.assert_allclose(got[1, :6], slow_entropy(keys[1, :6], q), atol=1e-5)


def test_edges():
    _, pixels = draw(2, 9)
    for frame in range(2):
        np.testing.assert_allclose(edge_strength(pixels, (3, 3))[frame], slow_edges(pixels[frame], 3), rtol=1e-4)


@pytest.mark.parametrize("edge", [0.0, 0.5, 1.0])
def test_the_highest_scores_go_on(edge):
    keys, pixels = draw(3, 16)
    plan = LVTP(keep=4, edge=edge).plan(view(keys, pixels, step=1))
    for frame in range(3):
        entropy = np.mean([scaled(slow_entropy(keys[frame], q)) for q in (0.5, 2, 3)], axis=0)
        score = (1 - edge) * entropy + edge * scaled(slow_edges(pixels[frame], 4))
        assert plan.keep[frame].nonzero()[:, 0].tolist() == sorted(np.argsort(-score, kind="stable")[:4].tolist())
    assert bool(plan.keep.gather(1, plan.absorbed_by).all())
    assert LVTP(mode="drop").plan(view(keys, pixels)).absorbed_by is None


@pytest.mark.parametrize(("keep", "left"), [(0.5, [12, 8]), (3, [9, 3]), (1, [16, 16]), (0.01, [8, 1])])
def test_budget_and_layers(keep, left):
    method = LVTP(keep=keep)
    assert method.alive_after(16, 2) == left
    keys, pixels = draw(2, 16)
    keys, pixels = torch.zeros_like(keys).bfloat16(), torch.zeros_like(pixels).bfloat16()  # black
    plan = method.plan(view(keys, pixels))
    assert plan is None if left[0] == 16 else plan.keep.nonzero()[:, 1].tolist() == [*range(left[0])] * 2
    assert [method.layers(depth) for depth in (1, 2, 3, 24)] == [[0], [0], [0, 1], [7, 15]]
    assert method.identity == (keep == 1)


def test_padding_and_units_that_left():
    keys, pixels = draw(3, 16)
    valid = torch.arange(16) < torch.tensor([16, 5, 0])[:, None]
    plan = LVTP(keep=4).plan(view(keys, pixels, 1, valid))
    assert plan.keep.sum(dim=1).tolist() == [4, 4, 0]
    assert bool((plan.absorbed_by[~valid] == -1).all())
    unit = torch.tensor([[1, 4, 6, 7, 11, 15]])
    alone = LVTP(keep=4, edge=1.0).plan(view(keys[:1, :6], pixels[:1], 1, unit=unit, total=16))
    edges = slow_edges(pixels[0], 4)[unit[0].numpy()]
    assert alone.keep[0].nonzero()[:, 0].tolist() == sorted(np.argsort(-edges, kind="stable")[:4].tolist())


@pytest.mark.parametrize(
    "bad", [{"orders": [1]}, {"orders": []}, {"orders": "2"}, {"edge": 2}, {"mode": "x"}, {"keep": 0}]
)
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        LVTP(**bad)
    oblong = view(torch.zeros(1, 15, 5), torch.zeros(1, 3, 8, 8))
    with pytest.raises(UsageError, match="square"):
        LVTP().plan(oblong)
