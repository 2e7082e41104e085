"""The importance of scanned units, counts, and where the method may act."""

import math

import numpy as np
import pytest
import torch

from videoprune.encode.ssm import SSM, importance
from videoprune.errors import UsageError
from videoprune.method import TowerView
from videoprune.recipe import Recipe
from videoprune.stages import Stages


def view(output, depth=36, step=0, total=None):
    frames, units, _ = output.shape
    return TowerView(
        layer=0,
        depth=depth,
        step=step,
        hidden=output,
        keys=lambda: output,
        unit=torch.arange(units).expand(frames, -1),
        valid=torch.ones(frames, units, dtype=torch.bool),
        size=torch.ones(frames, units, dtype=torch.int64),
        total=total or units,
        frame=torch.arange(frames),
        cls_attention=lambda: output[..., 0],
        pixels=lambda: output,
        scan=lambda: output,
    )


def test_importance_by_hand():
    output = torch.tensor([[[1.0, -3.0], [2.0, 4.0], [-1.0, -1.0]]])
    assert importance(output).tolist() == [[0.5, 3.0, 0.0]]
    assert importance(output, "mean").tolist() == [[-1.0, 3.0, -1.0]]
    assert importance(output, "l1").tolist() == [[2.0, 3.0, 1.0]]
    assert importance(output, "l2")[0].tolist() == pytest.approx([math.sqrt(5), math.sqrt(10), 1.0])


@pytest.mark.parametrize("score", ["clipped", "mean", "l1", "l2"])
def test_plan_keeps_the_best_of_each_frame_in_order(score):
    output = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 20, 6))).float()
    plan = SSM(keep=9, blocks=(18,), score=score).plan(view(output))
    best = importance(output, score).double()
    assert plan.absorbed_by is None
    for frame in range(5):
        expected = sorted(range(20), key=lambda u, f=frame: (-float(best[f, u]), u))[:9]
        assert plan.keep[frame].nonzero()[:, 0].tolist() == sorted(expected)


@pytest.mark.parametrize(("depth", "layers"), [(36, [8, 17, 26]), (24, [5, 11, 17]), (4, [0, 1, 2])])
def test_it_acts_after_the_quarters(depth, layers):
    assert list(SSM().layers(depth)) == layers


def test_counts():
    assert SSM().alive_after(196, 3) == [128, 84, 55]  # 0.65, rounded up
    assert SSM(ratio=0.8).alive_after(196, 3) == [157, 126, 101]
    assert SSM(keep=0.3).alive_after(196, 3)[-1] == 59
    assert SSM(keep=40).alive_after(196, 3)[-1] == 40
    assert SSM(at_most=60).alive_after(196, 3) == [60, 60, 55]
    assert SSM(keep=1).alive_after(196, 3) == [196, 196, 196]
    assert SSM(keep=1).identity
    for keep in (0.1, 0.5, 0.9, 7):
        counts = SSM(keep=keep).alive_after(49, 3)
        assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(
    "options", [{"ratio": 0}, {"ratio": 1.1}, {"score": "max"}, {"blocks": ()}, {"blocks": (0,)}, {"keep": 0}]
)
def test_bad_options(options):
    with pytest.raises(UsageError, match="is given"):
        SSM(**options)


def test_a_shallow_tower_is_refused():
    with pytest.raises(UsageError, match="give `blocks` further apart"):
        SSM().layers(2)
    with pytest.raises(UsageError, match="before this tower's first block"):
        SSM(blocks=(9,)).layers(1)


def test_a_transformer_tower_is_refused_with_what_to_do():
    with pytest.raises(UsageError, match=r"encode\.ssm.*add scout: \{method: ssm\}"):
        Stages.of(Recipe.load({"encode": {"method": "ssm"}}))
    with pytest.raises(UsageError, match="no scan"):
        SSM(keep=0.5).plan(TowerView(**{**vars(view(torch.zeros(1, 4, 2))), "scan": None}))
    stages = Stages.of(Recipe.load({"scout": {"method": "ssm"}, "encode": [{"method": "ssm"}, {"method": "tome"}]}))
    assert [type(method).__name__ for method in stages.prune] == ["SSM"]
    assert [type(method).__name__ for method in stages.encode] == ["ToMe"]
