"""VisionZip against a reading one unit at a time."""

import numpy as np
import pytest
import torch

from videoprune.encode.visionzip import VisionZip, dominant_and_contextual
from videoprune.errors import UsageError
from videoprune.method import TowerView


def draw(frames, units, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(frames, units, generator=generator).softmax(dim=1), torch.randn(
        frames, units, 5, generator=generator
    )


def view(attention, keys, valid=None, total=None):
    frames, units = attention.shape
    return TowerView(
        layer=11,
        depth=12,
        step=0,
        hidden=keys,
        keys=lambda: keys,
        unit=torch.arange(units).expand(frames, -1),
        valid=torch.ones(frames, units, dtype=torch.bool) if valid is None else valid,
        size=torch.ones(frames, units, dtype=torch.int64),
        total=total or units,
        frame=torch.arange(frames),
        cls_attention=lambda: attention,
        pixels=lambda: torch.zeros(frames, 3, 4, 4),
    )


def slow(attention, keys, dominant, contextual):
    """Dominant units, contextual units, and {absorbed: target} of one frame in float64."""
    keys = keys.double().numpy()
    best = sorted(range(len(attention)), key=lambda u: (-attention[u].item(), u))[:dominant]
    rest = [u for u in range(len(attention)) if u not in best]
    targets = rest[:: max(1, len(rest) // contextual)][:contextual] if contextual else []

    def alike(a, b):
        size = np.linalg.norm(keys[a]) * np.linalg.norm(keys[b])
        return keys[a] @ keys[b] / size if size else 0.0

    into = {u: max(targets, key=lambda t, u=u: (alike(u, t), -t)) for u in rest if u not in targets and targets}
    return best, targets, into


@pytest.mark.parametrize(("dominant", "contextual"), [(3, 2), (0, 4), (5, 0), (1, 1), (9, 3), (2, 7)])
@pytest.mark.parametrize("film", ["random", "black"])
def test_plan_is_the_slow_one(dominant, contextual, film):
    attention, keys = draw(3, 17, seed=dominant)
    if film == "black":
        attention, keys = torch.full_like(attention, 1 / 17), torch.zeros_like(keys)
    keep, absorbed = dominant_and_contextual(attention, keys, dominant, contextual)
    for frame in range(3):
        best, targets, into = slow(attention[frame], keys[frame], dominant, contextual)
        assert keep[frame].nonzero()[:, 0].tolist() == sorted(best + targets)
        for unit in (~keep[frame]).nonzero()[:, 0].tolist():
            assert absorbed[frame, unit] == into.get(unit, -1)


def test_padding_changes_nothing():
    attention, keys = draw(4, 12)
    counts = [12, 7, 3, 0]
    valid = torch.arange(12) < torch.tensor(counts)[:, None]
    keep, absorbed = dominant_and_contextual(attention, keys, 3, 2, valid)
    assert keep.sum(dim=1).tolist() == [5, 5, 3, 0]
    assert not bool((keep & ~valid).any())
    assert bool((absorbed[~valid] == -1).all())
    alone, where = dominant_and_contextual(attention[1:2, :7], keys[1:2, :7], 3, 2)
    assert torch.equal(keep[1, :7], alone[0])
    assert torch.equal(absorbed[1, :7][~alone[0]], where[0][~alone[0]])


@pytest.mark.parametrize(
    ("settings", "units", "left"),
    [({}, 576, 64), ({}, 9, 1), ({"keep": 0.5}, 20, 10), ({"keep": 2}, 20, 2), ({"at_most": 30}, 576, 30)],
)
def test_budget(settings, units, left):
    attention, keys = draw(2, units)
    plan = VisionZip(**settings).plan(view(attention, keys.bfloat16()))
    assert plan.keep.sum(dim=1).tolist() == [left, left]
    merged = ~plan.keep & (plan.absorbed_by >= 0)
    assert bool(plan.keep.gather(1, plan.absorbed_by.clamp(min=0))[merged].all())
    if units == 576 and not settings:  # 54 dominant and 10 contextual
        best = attention.argsort(dim=1, descending=True)[:, :54]
        assert bool(plan.keep.gather(1, best).all())


def test_nothing_to_do():
    assert VisionZip(keep=1).identity
    assert VisionZip(keep=1).plan(view(*draw(2, 16))) is None
    assert VisionZip(keep=8).plan(view(*draw(2, 5), total=16)) is None
    assert VisionZip().layers(23) == (22,)


@pytest.mark.parametrize("bad", [{"contextual": 1.1}, {"contextual": -0.1}, {"keep": 0}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        VisionZip(**bad)
