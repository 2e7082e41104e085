"""ToMe against a reading one pair at a time."""

import numpy as np
import pytest
import torch

from videoprune.encode.tome import ToMe, merge_tokens, plan_merges
from videoprune.errors import UsageError
from videoprune.method import TowerView


def draw(frames, units, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(frames, units, width, generator=generator), torch.randint(
        1, 5, (frames, units), generator=generator
    )


def view(keys, sizes, step=0, depth=12, valid=None, total=None):
    frames, units = keys.shape[:2]
    return TowerView(
        layer=step,
        depth=depth,
        step=step,
        hidden=keys,
        keys=lambda: keys,
        unit=torch.arange(units).expand(frames, -1),
        valid=torch.ones(frames, units, dtype=torch.bool) if valid is None else valid,
        size=sizes,
        total=total or units,
        frame=torch.arange(frames),
        cls_attention=lambda: torch.zeros(frames, units),
        pixels=lambda: torch.zeros(frames, 3, 4, 4),
    )


def slow_merges(rows, sizes, left):
    """Members of each survivor, {survivor: [units]}, in float64 and loops."""
    groups = {place: [place] for place in range(len(rows))}
    while len(groups) > left:
        places = sorted(groups)
        mean = {p: np.average(rows[groups[p]], axis=0, weights=sizes[groups[p]]) for p in places}
        size = {p: np.linalg.norm(mean[p]) or 1.0 for p in places}
        best = {}
        for even in places[::2]:
            odds = places[1::2]
            if odds:
                near = {odd: mean[even] @ mean[odd] / size[even] / size[odd] for odd in odds}
                partner = max(odds, key=lambda odd, near=near: (near[odd], -odd))
                best[even] = (near[partner], partner)
        quota = min(len(places) // 2, len(places) - left)
        for even in sorted(best, key=lambda e: (-best[e][0], e))[:quota]:
            groups[best[even][1]] += groups.pop(even)
    return groups


@pytest.mark.parametrize(("units", "left"), [(9, 6), (8, 4), (10, 2), (13, 1), (7, 7), (1, 1), (2, 1)])
def test_merges_are_the_slow_ones(units, left):
    rows, sizes = draw(3, units, seed=units)
    features, merged = merge_tokens(rows, sizes, units - left)
    keep, into = plan_merges(rows, sizes, left)
    assert merged.sum(dim=1).tolist() == sizes.sum(dim=1).tolist()
    for frame in range(3):
        x, s = rows[frame].double().numpy(), sizes[frame].numpy()
        groups = slow_merges(x, s, left)
        assert keep[frame].nonzero()[:, 0].tolist() == sorted(groups)
        for slot, (place, members) in enumerate(sorted(groups.items())):
            assert (into[frame] == place).nonzero()[:, 0].tolist() == sorted(members)
            assert merged[frame, slot] == s[members].sum()
            np.testing.assert_allclose(
                features[frame, slot], np.average(x[members], axis=0, weights=s[members]), atol=1e-5
            )


@pytest.mark.parametrize("left", [1, 3, 5, 8])
def test_padding_changes_nothing(left):
    rows, sizes = draw(4, 9)
    counts = [9, 4, 0, 1]
    valid = torch.arange(9) < torch.tensor(counts)[:, None]
    keep, into = plan_merges(rows.masked_fill(~valid[..., None], 7.0), sizes, left, valid)
    assert keep.sum(dim=1).tolist() == [min(count, left) for count in counts]
    for frame, count in enumerate(counts):
        alone, where = plan_merges(rows[frame : frame + 1, :count], sizes[frame : frame + 1, :count], left)
        assert torch.equal(keep[frame, :count], alone[0])
        assert torch.equal(into[frame, :count], where[0])


def test_the_papers_schedule():
    assert ToMe().alive_after(576, 24)[-1] == 24  # 23 a layer
    assert ToMe(remove=8).alive_after(200, 24)[-1] == 8
    assert ToMe(remove=100).alive_after(10, 5) == [5, 3, 2, 1, 1]  # never more than half
    assert ToMe(keep=0.5).alive_after(100, 3) == [83, 66, 50]
    assert ToMe(at_most=4, remove=1).alive_after(10, 3) == [8, 6, 4]
    assert ToMe(at_most=9, remove=1).alive_after(10, 3) == [9, 8, 7]


@pytest.mark.parametrize(("keep", "left"), [(0.3, 6), (1, 20), (3, 3), (0.01, 1), (90, 20), (None, 1)])
@pytest.mark.parametrize("film", ["random", "black"])
def test_budget_is_exact_over_the_layers(keep, left, film):
    rows, _ = draw(2, 20)
    rows = rows if film == "random" else torch.zeros_like(rows)
    sizes = torch.ones(2, 20, dtype=torch.int64)
    method = ToMe(keep=keep, remove=8) if keep is None else ToMe(keep=keep)
    for step in range(12):
        plan = method.plan(view(rows, sizes, step, total=20))
        if plan is not None:
            assert bool(plan.keep.gather(1, plan.absorbed_by).all())
            rows, sizes = merge_tokens(rows, sizes, int((~plan.keep[0]).sum()))
    assert rows.shape[1] == left
    assert sizes.sum(dim=1).tolist() == [20, 20]
    assert (keep == 1) == method.identity


def test_half_precision_chunks_and_padding_in_a_plan():
    rows, sizes = draw(3, 12)
    rows = rows.bfloat16()
    valid = torch.ones(3, 12, dtype=torch.bool)
    valid[1, 5:] = False
    plan = ToMe(keep=0.5).plan(view(rows, sizes, 11, valid=valid))
    assert plan.keep.sum(dim=1).tolist() == [6, 5, 6]
    assert plan.absorbed_by[1, 5:].tolist() == [-1] * 7
    again = ToMe(keep=0.5).plan(view(rows[2:].float(), sizes[2:], 11))
    assert torch.equal(again.keep[0], plan.keep[2])
    assert torch.equal(again.absorbed_by[0], plan.absorbed_by[2])


@pytest.mark.parametrize("bad", [{"remove": -1}, {"remove": 3, "keep": 0.5}, {"keep": 0}, {"remove": 1.5}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        ToMe(**bad)
