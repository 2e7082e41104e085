"""Density peaks against loops in float64."""

import numpy as np
import pytest
import torch

from videoprune.ops import clustering
from videoprune.ops.clustering import cluster_groups, dpc_knn, equal_groups, nearest, peak_scores, slot_means


def slow(points, clusters, neighbors):
    """Labels and centres, one point at a time."""
    points = np.asarray(points, np.float64)
    count = len(points)
    apart = np.array([[np.linalg.norm(a - b) for b in points] for a in points]) / np.sqrt(points.shape[1])
    density = [np.exp(-np.mean(np.sort(apart[i])[:neighbors] ** 2)) for i in range(count)]
    score = []
    for i in range(count):
        denser = [j for j in range(count) if (density[j], -j) > (density[i], -i)]
        score.append(density[i] * (min(apart[i][j] for j in denser) if denser else apart.max()))
    centres = sorted(sorted(range(count), key=lambda i: (-score[i], i))[:clusters])
    labels = [centres.index(i) if i in centres else int(np.argmin(apart[i][centres])) for i in range(count)]
    return labels, centres, score


def points(count, seed=0, width=5):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("count", "clusters", "neighbors"), [(20, 4, 5), (31, 31, 3), (9, 1, 40), (2, 2, 1), (1, 1, 4)]
)
def test_clusters_are_the_brute_force_ones(count, clusters, neighbors):
    rows = points(count, count)
    labels, centres = dpc_knn(rows, clusters, neighbors)
    want_labels, want_centres, want_score = slow(rows, clusters, neighbors)
    assert centres.tolist() == want_centres
    assert labels.tolist() == want_labels
    if count > 1:
        assert np.allclose(peak_scores(rows[None], neighbors)[0].exp(), want_score, atol=1e-5)


def test_a_batch_is_its_entries_and_blocks_change_nothing(monkeypatch):
    rows = torch.stack([points(30, seed) for seed in range(3)])
    labels, centres = dpc_knn(rows, 6, 4)
    for entry in range(3):
        alone = dpc_knn(rows[entry], 6, 4)
        assert torch.equal(alone[0], labels[entry])
        assert torch.equal(alone[1], centres[entry])
    monkeypatch.setattr(clustering, "BLOCK", 700)
    streamed = dpc_knn(rows, 6, 4)
    assert torch.equal(streamed[0], labels)
    assert torch.equal(streamed[1], centres)


def test_copies_go_to_the_first():
    rows = points(4, width=896).repeat_interleave(3, dim=0) * 30 + 200  # a large common part costs digits
    labels, centres = dpc_knn(rows, 4, 3)
    assert centres.tolist() == [0, 3, 6, 9]
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    labels, centres = dpc_knn(torch.full((6, 8), 3.7), 3, 4)
    assert centres.tolist() == [0, 1, 2]
    assert labels.tolist() == [0, 1, 2, 0, 0, 0]


def test_far_points_do_not_underflow():
    labels, centres = dpc_knn(points(12, 3) * 1e4, 3, 4)
    want = slow((points(12, 3) * 1e4).double() / 1e4, 3, 4)
    assert len(set(centres.tolist())) == 3
    assert bool(torch.isfinite(peak_scores(points(12, 3)[None] * 1e4, 4)).all())
    assert len(want[1]) == len(labels.unique())


def test_half_precision_is_scored_in_float32():
    rows = points(25).bfloat16()
    assert dpc_knn(rows, 5, 4)[0].tolist() == dpc_knn(rows.float(), 5, 4)[0].tolist()
    assert peak_scores(rows[None], 4).dtype == torch.float32


def test_too_many_clusters_are_refused():
    with pytest.raises(ValueError, match=r"1\.\.3"):
        dpc_knn(points(3), 4, 2)


def test_groups_are_clustered_each_on_its_own():
    rows, group = points(60, 4), torch.arange(60) * 7 % 5
    group[10:25] = -1
    group[30:41] = 3
    sizes = torch.bincount(group[group >= 0], minlength=6)
    quota = torch.tensor([0, 3, 3, 4, int(sizes[4]), 0])
    into = cluster_groups(rows, group, quota, 4)
    assert into[10:25].tolist() == list(range(10, 25))
    for number in range(5):
        own = (group == number).nonzero()[:, 0]
        if quota[number] in (0, len(own)):
            assert torch.equal(into[own], own if quota[number] else torch.full_like(own, -1))
        else:
            labels, centres, _ = slow(rows[own], int(quota[number]), 4)
            assert into[own].tolist() == own[torch.tensor(centres)[labels]].tolist()


def test_equal_groups_hold_every_row_once():
    group = torch.tensor([3, 0, -1, 3, 5, 0, 1, 1, 1, 3])
    label = torch.tensor([1, 0, 0, 0, 0, 2])
    seen = {}
    for members, name in equal_groups(group, label):
        for rows in members.tolist():
            number = int(group[rows[0]])
            assert name == label[number]
            seen[number] = rows
    assert seen == {0: [1, 5], 1: [6, 7, 8], 3: [0, 3, 9], 5: [4]}
    assert [members.tolist() for members, _ in equal_groups(torch.tensor([1, 0, 0, 1]))] == [[[1, 2], [0, 3]]]
    assert not list(equal_groups(torch.tensor([-1, -1])))
    assert not list(equal_groups(torch.empty(0, dtype=torch.int64)))


def test_nearest_and_means(monkeypatch):
    rows, targets = points(30, 1), points(7, 2)
    monkeypatch.setattr(clustering, "BLOCK", 50)
    a, b = rows.double().numpy(), targets.double().numpy()
    like = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    assert nearest(rows, targets).tolist() == like.argmax(axis=1).tolist()
    assert nearest(rows[:0], targets).tolist() == []
    slot, weight = torch.arange(30) * 11 % 7, torch.rand(30, generator=torch.Generator().manual_seed(3))
    got, plain = slot_means(rows.bfloat16(), slot, 9, weight), slot_means(rows, slot, 9)
    a16, w = rows.bfloat16().double().numpy(), weight.double().numpy()
    for number in range(7):
        own = slot.numpy() == number
        assert np.allclose(got[number], (a16[own] * w[own, None]).sum(0) / w[own].sum(), atol=1e-5)
        assert np.allclose(plain[number], a[own].mean(0), atol=1e-5)
    assert bool((got[7:] == 0).all())
