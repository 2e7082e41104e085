"""FasterVLM against sorting one unit at a time."""

import pytest
import torch

from videoprune.encode.fastervlm import FasterVLM, most_attended
from videoprune.errors import UsageError
from videoprune.method import TowerView


def draw(frames, units, seed=0):
    return torch.randn(frames, units, generator=torch.Generator().manual_seed(seed)).softmax(dim=1)


def view(attention, valid=None, total=None):
    frames, units = attention.shape
    return TowerView(
        layer=11,
        depth=12,
        step=0,
        hidden=torch.zeros(frames, units, 4),
        keys=lambda: torch.zeros(frames, units, 4),
        unit=torch.arange(units).expand(frames, -1),
        valid=torch.ones(frames, units, dtype=torch.bool) if valid is None else valid,
        size=torch.ones(frames, units, dtype=torch.int64),
        total=total or units,
        frame=torch.arange(frames),
        cls_attention=lambda: attention,
        pixels=lambda: torch.zeros(frames, 3, 4, 4),
    )


def slow(attention, counts, count, shared):
    """Kept (frame, unit) pairs."""
    pairs = [(f, u) for f, units in enumerate(counts) for u in range(units)]
    order = sorted(pairs, key=lambda p: (-attention[p].item(), p))
    if not shared:
        return sorted(p for f in range(len(counts)) for p in [q for q in order if q[0] == f][:count])
    first = [next(q for q in order if q[0] == f) for f, units in enumerate(counts) if units]
    room = sum(min(units, count) for units in counts)
    return sorted((first + [q for q in order if q not in first])[:room])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("film", ["random", "black"])
def test_the_best_stay(shared, count, film):
    attention = draw(4, 8) if film == "random" else torch.full((4, 8), 0.125)
    counts = [8, 2, 8, 0]
    valid = torch.arange(8) < torch.tensor(counts)[:, None]
    keep = most_attended(attention.masked_fill(~valid, 9.0), count, valid, shared)
    assert [tuple(pair) for pair in keep.nonzero().tolist()] == slow(attention, counts, count, shared)


@pytest.mark.parametrize(("keep", "left"), [(0.25, 4), (5, 5), (0.01, 1)])
@pytest.mark.parametrize("form", ["image", "video"])
def test_budget(keep, left, form):
    plan = FasterVLM(keep=keep, form=form).plan(view(draw(8, 16)))
    assert int(plan.keep.sum()) == 8 * left
    assert int(plan.keep.sum(dim=1).min()) >= 1
    assert (form == "video") or set(plan.keep.sum(dim=1).tolist()) == {left}
    assert plan.absorbed_by is None
    one = FasterVLM(keep=keep, form=form).plan(view(draw(1, 16)))
    assert int(one.keep.sum()) == left


def test_nothing_to_do_and_the_layer():
    assert FasterVLM(keep=16).plan(view(draw(2, 16))) is None
    assert FasterVLM().plan(view(draw(2, 4), total=16)) is None
    assert FasterVLM(keep=1).identity
    assert FasterVLM().layers(23) == (22,)
    assert [FasterVLM(form=form).window for form in ("image", "video")] == [1, 8]


def test_a_frame_alone_decides_as_in_a_chunk():
    attention = draw(5, 16).bfloat16()
    chunk = FasterVLM().plan(view(attention)).keep
    assert all(torch.equal(FasterVLM().plan(view(attention[f : f + 1])).keep[0], chunk[f]) for f in range(5))


@pytest.mark.parametrize("bad", [{"form": "film"}, {"frames": 0}, {"keep": 2.5}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        FasterVLM(**bad)
