"""DPC-KNN events against loops in float64."""

import itertools

import numpy as np
import pytest
import torch

from videoprune.errors import UsageError
from videoprune.segment.dpc_knn import DPCKNN, cluster, contiguous


def slow_cluster(rows, clusters, neighbors):
    rows = rows.double().numpy()
    far = np.sqrt(((rows[:, None] - rows[None]) ** 2).sum(-1)) / np.sqrt(rows.shape[1])
    density = np.exp(-np.sort(far**2, axis=1)[:, :neighbors].mean(axis=1))
    apart = np.empty(len(rows))
    for i in range(len(rows)):
        denser = [j for j in range(len(rows)) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        apart[i] = far[i, denser].min() if denser else far.max()
    centres = sorted(np.argsort(-density * apart, kind="stable")[:clusters])
    labels = far[:, centres].argmin(axis=1)
    labels[centres] = range(clusters)
    return labels


def slow_events(labels):
    runs = [(label, len(list(group))) for label, group in itertools.groupby(labels)]
    events, event = [], -1
    for number, (label, length) in enumerate(runs):
        longest = max(size for other, size in runs if other == label)
        first = next(n for n, (other, size) in enumerate(runs) if other == label and size == longest)
        event += number == first
        events += [max(event, 0)] * length
    return events


@pytest.mark.parametrize(("points", "clusters", "neighbors"), [(20, 5, 7), (9, 9, 3), (12, 1, 50), (1, 1, 7)])
def test_clusters_are_the_slow_ones(points, clusters, neighbors):
    rows = torch.randn(points, 6, generator=torch.Generator().manual_seed(points))
    got, want = cluster(rows, clusters, neighbors).numpy(), slow_cluster(rows, clusters, neighbors)
    assert ((got[:, None] == got) == (want[:, None] == want)).all()


def test_runs_become_events():
    generator = torch.Generator().manual_seed(0)
    for frames in (1, 2, 7, 30):
        for _ in range(5):
            labels = torch.randint(0, max(1, frames // 3), (frames,), generator=generator)
            assert contiguous(labels).tolist() == slow_events(labels.tolist())


@pytest.mark.parametrize(
    ("frames", "settings", "events"), [(1, {}, 1), (3, {}, 1), (40, {}, 10), (9, {"events": 5}, 5)]
)
@pytest.mark.parametrize("kind", ["random", "black"])
def test_events(frames, settings, events, kind):
    film = torch.randn(frames, 8, generator=torch.Generator().manual_seed(1)) * (kind == "random")
    made = DPCKNN(**settings)(film)
    assert len(made) == events
    assert int(made.frames_each.min()) >= 1
    assert int(made.frames_each.sum()) == frames
    assert torch.equal(made.frame_event, DPCKNN(**settings)(film).frame_event)


def test_shots_are_found():
    film = torch.eye(3).repeat_interleave(4, dim=0) + 0.01 * torch.rand(
        12, 3, generator=torch.Generator().manual_seed(2)
    )
    assert DPCKNN(events=3, neighbors=3)(film).frame_event.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert DPCKNN(events=3, neighbors=3)(film.bfloat16()).frame_event.tolist() == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("bad", [{"share": 0}, {"events": 0}, {"neighbors": 0}, {"share": 1.5}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        DPCKNN(**bad)
