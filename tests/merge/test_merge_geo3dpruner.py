"""Geo3DPruner against loops in float64."""

import dataclasses

import numpy as np
import pytest
import torch

from tests import merge_films
from tests.merge_films import run
from videoprune.errors import UsageError
from videoprune.merge.geo3dpruner import Geo3DPruner, attention_sums, voxel_order, voxels
from videoprune.tokens import VisualTokens


def film(frames, seed=0):
    tokens = merge_films.film(frames, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    return tokens.with_scores(points=torch.rand(len(tokens), 3, generator=generator) * 0.4 - 0.2)


def slow(rows, points, size, ratio, at_once, count):
    """Tokens kept, voxel by voxel."""
    rows = rows.double().numpy()
    scaled = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    looks = np.exp(scaled @ scaled.T / 0.1)
    looks = looks / looks.sum(axis=1, keepdims=True)
    cubes = {}
    for token, point in enumerate(points.tolist()):
        cubes.setdefault(tuple(int(np.floor(x / size)) for x in point), []).append(token)
    inside = {i: np.mean([looks[j][i] for j in members]) for members in cubes.values() for i in members}
    best = {key: sorted(m, key=lambda i: -inside[i])[: max(1, int(len(m) * ratio))] for key, m in cubes.items()}
    left, order = dict(best), []
    while left:
        gets = {
            one: sum(np.mean([sum(looks[j][i] for i in left[one]) for j in left[other]]) for other in left)
            for one in left
        }
        order += sorted(left, key=lambda one: -gets[one])[:at_once]
        left = {key: members for key, members in left.items() if key not in order}
    ranked = [i for key in order for i in best[key]]
    ranked += [i for key in order for i in sorted(cubes[key], key=lambda i: -inside[i]) if i not in best[key]]
    return sorted(ranked[:count])


@pytest.mark.parametrize("count", [2, 9, 30, 60])
@pytest.mark.parametrize("ratio", [0.5, 0.2])
def test_what_stays(count, ratio, monkeypatch):
    monkeypatch.setattr("videoprune.merge.geo3dpruner.BLOCK", 64 * 10)
    tokens = film(4, seed=count)
    left = Geo3DPruner(keep=count, ratio=ratio, at_once=3)(tokens, run(4)).check()
    want = slow(tokens.features, tokens.scores["points"], 0.1, ratio, 3, count)
    assert torch.equal(left.features, tokens.features[want])
    assert torch.equal(left.scores["points"], tokens.scores["points"][want])


def test_geometry_features_are_read_where_they_are():
    tokens = film(3)
    geometry = torch.randn(48, 9, generator=torch.Generator().manual_seed(9))
    left = Geo3DPruner(keep=10)(tokens.with_scores(geometry=geometry), run(3)).check()
    want = slow(geometry, tokens.scores["points"], 0.1, 0.5, 8, 10)
    assert torch.equal(left.features, tokens.features[want])


def test_voxels_are_cubes_of_the_lattice():
    points = torch.tensor([[0.0, 0.0, 0.0], [0.09, 0.0, 0.09], [-0.01, 0.0, 0.0], [0.11, 0.0, 0.0]])
    number = voxels(points, 0.1)
    assert number[0] == number[1]
    assert len(number.unique()) == 3


def test_one_token_and_one_voxel():
    inside, survives, between = attention_sums(torch.ones(4, 3), torch.zeros(4, dtype=torch.int64), 0.5)
    assert survives.tolist() == [True, True, False, False]
    assert torch.allclose(inside, torch.full((4,), 0.25))
    assert torch.allclose(between, torch.tensor([[0.5]]))
    assert voxel_order(between, 8).tolist() == [0]


def test_points_must_be_given():
    tokens = film(2)
    with pytest.raises(UsageError, match="with_scores"):
        Geo3DPruner()(VisualTokens.from_frames(tokens.features, tokens.frame_seconds, tokens.grid), run(2))
    with pytest.raises(UsageError, match="finite"):
        Geo3DPruner()(tokens.with_scores(points=torch.full((32, 3), torch.nan)), run(2))
    many = merge_films.film(1, (92, 92), rows=torch.zeros(8464, 2))
    with pytest.raises(UsageError, match="voxels"):
        Geo3DPruner()(many.with_scores(points=torch.arange(8464.0)[:, None].expand(-1, 3)), run(1))


# ------------------------------------------------------------------------------------------------------ invariants


@pytest.mark.parametrize("bad", [{"size": 0.0}, {"ratio": 0.0}, {"at_once": 0}, {"keep": 0}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        Geo3DPruner(**bad)


def test_a_still_camera_needs_no_points():
    given = film(4)
    tokens = dataclasses.replace(given, scores={})
    cells = torch.nn.functional.pad(tokens.cell.float() + 0.5, (0, 1))
    kept = Geo3DPruner(keep=10, still_camera=True)(tokens, run(4))
    wanted = Geo3DPruner(keep=10, size=1.0)(tokens.with_scores(points=cells), run(4))
    assert torch.equal(kept.frame, wanted.frame)
    assert torch.equal(kept.cell, wanted.cell)
    assert not torch.equal(Geo3DPruner(keep=10, still_camera=True)(given, run(4)).features, kept.features)  # points win
    with pytest.raises(UsageError, match="still_camera"):
        Geo3DPruner(keep=10)(tokens, run(4))
