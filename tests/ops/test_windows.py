"""Dynamic programming against every partition there is."""

import itertools

import numpy as np
import pytest
import torch

from videoprune.ops.windows import best_windows, static_counts


def partitions(frames):
    for cuts in itertools.product((False, True), repeat=frames - 1):
        ends = [t for t, cut in enumerate(cuts) if cut] + [frames - 1]
        yield list(zip([0] + [end + 1 for end in ends[:-1]], ends, strict=True))


@pytest.mark.parametrize(("frames", "longest"), [(1, 1), (2, 2), (7, 7), (8, 3), (9, 1)])
@pytest.mark.parametrize("values", ["many", "few"])
def test_best_of_all_partitions(frames, longest, values):
    generator = torch.Generator().manual_seed(frames)
    value = torch.randint(0, 50 if values == "many" else 2, (frames, longest), generator=generator)
    allowed = [p for p in partitions(frames) if all(end - start < longest for start, end in p)]
    worth = [sum(int(value[end, end - start]) for start, end in p) for p in allowed]
    ties = [p for p, w in zip(allowed, worth, strict=True) if w == max(worth)]
    want = min(ties, key=lambda p: [end - start for start, end in reversed(p)])
    assert best_windows(value).tolist() == [list(window) for window in want]


@pytest.mark.parametrize(("frames", "longest"), [(1, 1), (1, 4), (9, 9), (9, 3), (6, 1)])
def test_static_counts(frames, longest):
    static = torch.rand(frames - 1, 5, generator=torch.Generator().manual_seed(3)) < 0.7
    got, table = static_counts(static, longest), static.numpy()
    for end, length in itertools.product(range(frames), range(1, longest + 1)):
        start = end - length + 1
        want = 0 if start < 0 else int(np.all(table[start:end], axis=0).sum())
        assert got[end, length - 1] == want
