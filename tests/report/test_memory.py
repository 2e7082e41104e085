"""Live bytes against sums by hand, free memory, and sizes as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from videoprune.errors import UsageError
from videoprune.report.footprint import Growth
from videoprune.report.memory import LiveBytes, _group_room, free_memory, parse_memory, peak_of


def test_live_bytes_counts_what_is_alive() -> None:
    outside = torch.ones(1000)
    with LiveBytes() as meter:
        a = outside * 2  # 4000
        b = a.view(10, 100)  # a view costs nothing
        c = torch.cat((a, a))  # + 8000
        del a, c  # the view still holds the first
        d = b + 1  # + 4000
    assert meter.peak == 12000
    assert meter.live == 8000
    del b, d
    assert meter.live == 0


def test_peak_of_a_layer_by_hand_on_meta() -> None:
    """Linear 8 -> 32, a copy by relu, linear 32 -> 8 on 100 rows of float32: the two inner tensors together are the peak."""
    first, second = torch.nn.Linear(8, 32, device="meta"), torch.nn.Linear(32, 8, device="meta")
    rows = torch.empty(100, 8, device="meta")
    peak, left = peak_of(lambda: second(first(rows).relu()))
    assert peak == 2 * 100 * 32 * 4
    assert left == 100 * 8 * 4


def test_fused_attention_holds_no_matrix() -> None:
    query = torch.empty(1, 2, 5000, 4, device="meta")
    peak, _ = peak_of(lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query))
    assert peak == query.nbytes


def test_growth_is_a_line() -> None:
    line = Growth.through((16, 32), (1000 + 16 * 7, 1000 + 32 * 7))
    assert line.at(1024) == 1000 + 1024 * 7
    assert line.at(1024, 2) == 1000 + 1024 * 7 // 2


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 * 2**30), ("80 GB", 80 * 10**9), ("512mib", 2**29), ("1.5GiB", 3 * 2**29), ("4096", 4096)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0", "24 parsecs", "nan", "1e99GiB"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="allowed is a size such as 24GiB"):
        parse_memory(text)


def test_a_control_group_bounds_what_is_free(tmp_path: Path) -> None:
    def group(limit: str) -> int | None:
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text("600")
        (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 200\n")
        return _group_room(tmp_path)

    assert group("1000\n") == 600
    assert group("max\n") is None
    assert group("100\n") == 0
    assert _group_room(tmp_path / "none") is None


def test_free_memory_of_this_machine() -> None:
    free = free_memory(torch.device("cpu"))
    assert free is None or 0 <= free < 2**50
