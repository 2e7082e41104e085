"""Products that are counted as they run, and those that are added by hand."""

import pytest
import torch

from videoprune.models.sample import Sample
from videoprune.ops.attention import column_sum_flops, decay_weights, decayed_column_sum
from videoprune.ops.counting import CountedFlops


def test_products_are_counted_and_others_are_not():
    left, right = torch.ones(3, 4), torch.ones(4, 5)
    with CountedFlops() as counted:
        (left @ right).softmax(-1) + 1
    left @ right
    assert counted.total == 2 * 3 * 4 * 5
    with counted:
        torch.bmm(torch.ones(2, 3, 4), torch.ones(2, 4, 5))
    assert counted.total == 3 * 2 * 3 * 4 * 5


def test_a_pause_counts_by_hand_and_then_goes_on():
    left, right = torch.ones(3, 4), torch.ones(4, 5)
    counted = CountedFlops()
    with counted:
        with counted.paused() as same:
            left @ right
            same.total += 7
        left @ right
    assert counted.total == 7 + 120
    with counted.paused():  # nothing to pause
        left @ right
    left @ right
    assert counted.total == 127


@pytest.mark.parametrize(("rows", "length", "heads", "kv_heads"), [(90, 164, 6, 2), (1, 7, 4, 4), (700, 3000, 28, 4)])
def test_column_sums_count_what_they_compute(rows, length, heads, kv_heads):
    query, key = torch.randn(heads, rows, 16), torch.randn(kv_heads, length, 16)
    with CountedFlops() as counted:
        decayed_column_sum(query, key, decay_weights(rows, 0.95), 0.25)
    assert counted.total == column_sum_flops(query, key)


def test_the_loop_counts_what_methods_and_evidence_compute(monkeypatch):
    """With closed forms, and with every operation counted as it runs."""
    from tests.bench.test_speed import asked_of
    from videoprune.bench.shapes import shaped_host

    host = shaped_host("demo", 0, 0, torch.device("cpu"), torch.float32)
    asked = [
        asked_of(host, name) for name in ("demo", "metok-release", "prefill.fastv+decode={method: a2sf, keep: 0.5}")
    ]
    closed = [host.generate(each.prompt, each.session(), 3).trace.counted.total for each in asked]
    after = Sample.after

    def all_counted(self, *args):
        counted = self.session.trace.counted
        before = counted.total
        with CountedFlops() as running:
            out = after(self, *args)
        totals.append((counted.total - before, running.total))
        return out

    totals: list[tuple[float, float]] = []
    monkeypatch.setattr(Sample, "after", all_counted)
    again = [host.generate(each.prompt, each.session(), 3).trace.counted.total for each in asked]
    assert again == closed
    assert sum(total for total, _ in totals) > 0
    assert all(ours == seen for ours, seen in totals)
