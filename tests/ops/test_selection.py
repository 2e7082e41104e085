"""Choosing entries against sorting in plain Python, and the streamed sums against float64."""

import numpy as np
import pytest
import torch

from tests.ops.test_attention import full
from videoprune.ops.attention import StreamedAttention, best_per_group, decayed_column_sum, keep_best
from videoprune.ops.blocks import at_once


def test_blocks_grow_on_an_accelerator():
    assert at_once(10, torch.device("cpu")) == 10
    assert at_once(10, torch.device("cuda")) == 160


@pytest.mark.parametrize("seed", range(6))
def test_keep_best_is_a_sort(seed):
    generator = torch.Generator().manual_seed(seed)
    score = torch.randint(0, 4, (3, 40), generator=generator).float()  # many ties
    score[1, 5:9], score[2, 3] = -torch.inf, torch.inf
    for count in (1, 7, 20, 38, 39, 40):
        want = [sorted(sorted(range(40), key=lambda j, row=row: (-float(row[j]), j))[:count]) for row in score]
        if count == 39:  # of equally bad entries a step of decoding drops the last
            want = [sorted(sorted(range(40), key=lambda j, row=row: (-float(row[j]), j))[:39]) for row in score]
        assert keep_best(score, count).tolist() == want, count
    assert keep_best(score, 0).shape == (3, 0)


def test_what_is_no_number_ranks_first_as_in_a_sort():
    score = torch.tensor([1.0, torch.nan, 3.0, 2.0, torch.nan])
    assert keep_best(score, 3).tolist() == [1, 2, 4]
    assert keep_best(score, 1).tolist() == [1]


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("lengths", [[5, 5, 5, 5], [1, 0, 9, 3], [60, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
def test_segmented_top_k(lengths, ordered):
    generator = torch.Generator().manual_seed(len(lengths))
    group = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    if not ordered:
        group = group[torch.randperm(len(group), generator=generator)]
    score = torch.randint(0, 3, (len(group),), generator=generator).float()
    quota = torch.tensor([(3 * length) // 4 + number % 2 for number, length in enumerate(lengths)])
    want = []
    for number, count in enumerate(quota.tolist()):
        rows = [j for j in range(len(group)) if group[j] == number]
        want += sorted(rows, key=lambda j: (-float(score[j]), j))[:count]
    assert best_per_group(score, group, quota).tolist() == sorted(want)


@pytest.mark.parametrize("hold", [0, 2**29])
def test_the_last_rows_alone(hold):
    torch.manual_seed(3)
    query, key, weights = torch.randn(4, 9, 8), torch.randn(2, 31, 8), torch.rand(4, 9)
    matrix = full(query, key, 0.3, np.arange(22, 31))
    graph = StreamedAttention(query, key, 0.3, block=4, hold_bytes=hold)
    for _ in range(2):
        np.testing.assert_allclose(graph.times(weights), np.einsum("hr,hrs->hs", weights, matrix), rtol=1e-4, atol=1e-6)
    summed = np.einsum("r,hrs->hs", weights[0], matrix).reshape(2, 2, 31).sum(1)
    np.testing.assert_allclose(decayed_column_sum(query, key, weights[0], 0.3), summed, rtol=1e-4, atol=1e-6)
