"""The packed loop: stock with nothing dropped, a masked reading with units dropped, the right means with units merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from tests.models.test_tower import Chosen
from tests.tiny_qwen import qwen2_5_vl, qwen2_vl, qwen3_vl
from videoprune.method import EncodeMethod, TowerView
from videoprune.models.host import Sampling
from videoprune.models.load import load_host
from videoprune.models.packed_tower import PackedOutput
from videoprune.models.patches import patchify
from videoprune.models.qwen_vl import QwenVL
from videoprune.models.sample import rotate_half
from videoprune.registry import find
from videoprune.tokens import VisualTokens

MAKERS = {"qwen2-vl": qwen2_vl, "qwen2.5-vl": qwen2_5_vl, "qwen3-vl": qwen3_vl}
STEPS, GRID = 4, (3, 5)  # windows of 2x2 units: ragged at both edges
UNITS = GRID[0] * GRID[1]


@pytest.fixture(scope="module", params=MAKERS)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> QwenVL:
    loaded = load_host(MAKERS[request.param](tmp_path_factory.mktemp("models") / request.param), device="cpu")
    assert isinstance(loaded, QwenVL)
    assert loaded.family == request.param
    return loaded


@pytest.fixture(scope="module")
def pixels(host: QwenVL) -> Tensor:
    side = host.preprocess.factor
    shape = (2 * STEPS, 3, GRID[0] * side, GRID[1] * side)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def run(host: QwenVL, pixels: Tensor, methods: Sequence[EncodeMethod] = ()) -> PackedOutput:
    patches = patchify(pixels, host.preprocess.patch, 2, 2)
    shown = pixels.unflatten(0, (STEPS, 2)).mean(dim=1)
    return host.tower(patches, GRID, torch.arange(STEPS), lambda: shown, methods)


def stock_grid() -> Tensor:
    return torch.tensor([[STEPS, 2 * GRID[0], 2 * GRID[1]]])


@torch.no_grad()
def masked(
    host: QwenVL, pixels: Tensor, dead: Sequence[tuple[int, Tensor]] = ()
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """At full length in raster order, with masks: after block a (-1: before the first), units dead[a] (F*U,) bool are
    hidden from everyone.

    Returns the merged units (F*U, D), deepstack features, and the attention (heads, P, P) of every block.
    """
    tower: Any = host.model.model.visual
    grid = stock_grid()
    hidden = tower.patch_embed(patchify(pixels, host.preprocess.patch, 2, 2))
    if hasattr(tower, "pos_embed"):
        index, share = get_vision_interpolation_indices_and_weights(
            grid, tower.num_grid_per_side, "bilinear", True, spatial_merge_size=2
        )
        hidden = hidden + (tower.pos_embed(index) * share[:, :, None]).sum(1)
    cos, sin = (part[:, None] for part in tower.rotary_pos_emb(hidden, get_vision_position_ids(grid, 2)))
    frame = torch.arange(STEPS).repeat_interleave(4 * UNITS)
    window = frame
    if hasattr(tower, "window_size"):
        order, ends = get_vision_window_index(grid, 2, tower.window_size, tower.patch_size)
        numbers = torch.arange(len(ends) - 1).repeat_interleave(ends.diff())[::4]
        window = torch.empty_like(order).index_copy_(0, order, numbers).repeat_interleave(4)
    alive, deepstack, shares = torch.ones(STEPS * UNITS, dtype=torch.bool), [], []
    alive &= ~next((units for after, units in dead if after == -1), ~alive)
    for number, block in enumerate(tower.blocks):
        full = not hasattr(tower, "fullatt_block_indexes") or number in tower.fullatt_block_indexes
        belongs = frame if full else window
        sees = (belongs[:, None] == belongs[None]) & alive.repeat_interleave(4)[None]
        sees |= torch.eye(len(belongs), dtype=torch.bool)
        query, key, value = block.attn.qkv(block.norm1(hidden)).unflatten(-1, (3, 2, 16)).unbind(1)
        query, key = query * cos + rotate_half(query) * sin, key * cos + rotate_half(key) * sin
        share = torch.einsum("qhd,khd->hqk", query, key).div(16**0.5).masked_fill(~sees, -torch.inf).softmax(-1)
        shares.append(share)
        out = torch.einsum("hqk,khd->qhd", share, value).flatten(1)
        hidden = hidden + block.attn.proj(out)
        hidden = hidden + block.mlp(block.norm2(hidden))
        if number in getattr(tower, "deepstack_visual_indexes", ()):
            deepstack.append(tower.deepstack_merger_list[len(deepstack)](hidden))
        for after, units in dead:
            if after == number:
                alive &= ~units
    return tower.merger(hidden), deepstack, shares


def keeps(counts: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    generator = torch.Generator().manual_seed(2)
    return tuple(tuple(torch.randperm(UNITS, generator=generator)[:count].sort().values.tolist()) for count in counts)


@torch.no_grad()
def test_nothing_dropped_equals_stock(host: QwenVL, pixels: Tensor) -> None:
    out = run(host, pixels)
    stock = host.model.model.visual(patchify(pixels, host.preprocess.patch, 2, 2), grid_thw=stock_grid())
    torch.testing.assert_close(out.hidden.flatten(0, 1), stock.pooler_output, atol=1e-5, rtol=0)
    if host.family == "qwen3-vl":
        want = torch.stack(stock.deepstack_features, dim=1)
        assert out.deepstack is not None
        torch.testing.assert_close(out.deepstack.flatten(0, 1), want, atol=1e-5, rtol=0)
    else:
        assert out.deepstack is None
    torch.testing.assert_close(out.hidden.flatten(0, 1), masked(host, pixels)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("begin", [0, -1])
@pytest.mark.parametrize("counts", [(6,) * STEPS, (6, 1, 9, 3)], ids=["equal", "ragged"])
def test_dropped_units_equal_the_masked_oracle(
    counts: tuple[int, ...], begin: int, host: QwenVL, pixels: Tensor
) -> None:
    first = keeps([12] * STEPS)
    second = tuple(tuple(chosen[:count]) for chosen, count in zip(first, counts, strict=True))
    out = run(host, pixels, [Chosen(at=(begin,), keeps=first), Chosen(at=(2,), keeps=second)])
    dead = []
    for after, chosen_of in ((begin, first), (2, second)):
        gone = torch.ones(STEPS, UNITS, dtype=torch.bool)
        for row, chosen in enumerate(chosen_of):
            gone[row, list(chosen)] = False
        dead.append((after, gone.flatten()))
    want, deepstack, _ = masked(host, pixels, dead)
    alive = ~dead[1][1]
    torch.testing.assert_close(out.hidden.flatten(0, 1)[alive], want[alive], atol=1e-5, rtol=0)
    assert bool((out.hidden.flatten(0, 1)[~alive] == 0).all())
    assert [row.nonzero()[:, 0].tolist() for row in out.kept] == [list(chosen) for chosen in second]
    assert bool((out.absorbed_by[~out.kept] == -1).all())
    if out.deepstack is not None:
        torch.testing.assert_close(
            out.deepstack.flatten(0, 1)[alive], torch.stack(deepstack, dim=1)[alive], atol=1e-5, rtol=0
        )


@torch.no_grad()
def test_before_the_first_block_it_sees_what_enters_it(host: QwenVL, pixels: Tensor) -> None:
    views: list[tuple[TowerView, Tensor, Tensor]] = []

    @dataclass(frozen=True, kw_only=True)
    class Looks(Chosen):
        def plan(self, view: TowerView) -> None:
            views.append((view, view.keys(), view.cls_attention()))

    run(host, pixels, [Looks(at=(-1, 0))])
    (before, keys, received), (_, same, alike) = views
    torch.testing.assert_close(keys, same)
    torch.testing.assert_close(received, alike)
    column = torch.arange(2 * GRID[1]) // 2
    assert before.unit_of_patch is not None
    assert before.unit_of_patch.view(2 * GRID[0], -1)[5].tolist() == (2 * GRID[1] + column).tolist()


@torch.no_grad()
def test_absorbed_units_are_the_size_weighted_mean(host: QwenVL, pixels: Tensor) -> None:
    """After the last block: what the merger gets can be read off the dense blocks' output."""
    tower: Any = host.model.model.visual
    dense: list[Tensor] = []
    handle = tower.blocks[3].register_forward_hook(lambda _, __, out: dense.append(out))
    merged: list[Tensor] = []
    other = tower.merger.register_forward_pre_hook(lambda _, given: merged.append(given[0]))
    first, second = tuple((0, 5, 9) for _ in range(STEPS)), tuple((5, 9) for _ in range(STEPS))
    try:
        out = run(host, pixels, [Chosen(at=(3,), keeps=first, absorb=True), Chosen(at=(3,), keeps=second, absorb=True)])
    finally:
        handle.remove()
        other.remove()
    windows = host.tower.windows(GRID)
    order = torch.arange(UNITS) if windows is None else torch.argsort(windows, stable=True)
    units = torch.empty(STEPS, UNITS, 4, 32)
    units[:, order] = dense[0].view(STEPS, UNITS, 4, 32)
    left = merged[0].view(STEPS, 2, 4, 32)
    for frame in range(STEPS):
        # 12 others joined unit 0, which stands for 13 and joins unit 5
        others = [number for number in range(UNITS) if number != 9]
        torch.testing.assert_close(left[frame, 0], units[frame, others].mean(dim=0), atol=1e-5, rtol=0)
        torch.testing.assert_close(left[frame, 1], units[frame, 9], atol=1e-5, rtol=0)
        assert out.absorbed_by[frame].tolist() == [9 if number == 9 else 5 for number in range(UNITS)]
        torch.testing.assert_close(out.hidden[frame, 0], out.hidden[frame, 5])


def test_views_hold_unit_means_and_received_attention(host: QwenVL, pixels: Tensor) -> None:
    views: list[tuple[TowerView, Tensor, Tensor, Tensor]] = []

    @dataclass(frozen=True, kw_only=True)
    class Looks(Chosen):
        def plan(self, view: TowerView) -> None:
            views.append((view, view.keys(), view.cls_attention(), view.pixels()))

    run(host, pixels, [Looks(at=(2, 3))])
    _, _, shares = masked(host, pixels)
    for number, (view, keys, received, shown) in zip((2, 3), views, strict=True):
        assert view.frame.tolist() == list(range(STEPS))
        assert view.total == UNITS
        assert keys.shape == (STEPS, UNITS, 16)
        torch.testing.assert_close(shown, pixels.unflatten(0, (STEPS, 2)).mean(dim=1))
        # what the patches of a unit receive from all patches of their frame, mean over heads and rows
        each = shares[number].mean(dim=0).view(STEPS, 4 * UNITS, STEPS, UNITS, 4)
        for frame in range(STEPS):
            want = each[frame, :, frame].sum(dim=-1).mean(dim=0)
            torch.testing.assert_close(received[frame], want, atol=1e-5, rtol=0)
        torch.testing.assert_close(received.sum(dim=1), torch.ones(STEPS), atol=1e-4, rtol=0)


METHODS = {
    "sta": {"keep": 0.5, "restart": 2},
    "tome": {"keep": 0.4},
    "random": {"keep": 0.5},
    "uniform": {"keep": 6},
    "fastervlm": {"keep": 0.4},
    "visionzip": {"keep": 0.4},
    "lvtp": {"keep": 0.6},
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_drops_whole_units(name: str, host: QwenVL) -> None:
    images = np.random.default_rng(3).integers(0, 255, (7, 120, 120, 3), dtype=np.uint8)
    method = find("encode", name).load()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        encoded = host.encode(images, np.arange(7.0), 0, [method(**METHODS[name])])
    tokens = encoded.tokens.check()
    assert tokens.grid == (4, 4)
    assert tokens.frames == 4
    count = method(**METHODS[name]).count(16)
    assert torch.bincount(tokens.frame).tolist() == [count] * 4
    assert tokens.position.tolist() == [tokens.frame.tolist(), *tokens.cell.T.tolist()]
    assert encoded.cost.total == pytest.approx(counter.get_total_flops(), rel=0.02)
    whole = host.encode(images, np.arange(7.0), 0, [])
    same = host.encode(images, np.arange(7.0), 0, [method(**{**METHODS[name], "keep": 1})])
    torch.testing.assert_close(same.tokens.features, whole.tokens.features, atol=1e-6, rtol=0)
    assert torch.equal(same.tokens.owner, whole.tokens.owner)
    assert whole.cost.total == host.dense_encode_cost(4, (4, 4)).total


def test_chunks_change_nothing(host: QwenVL) -> None:
    images = np.random.default_rng(3).integers(0, 255, (11, 120, 120, 3), dtype=np.uint8)
    method, film = find("encode", "sta").load()(keep=0.5, restart=2), Sampling(11, 0.5)
    whole = host.encode(images, np.arange(11) / 2, 0, [method], film).tokens
    parts = [
        host.encode(images[first : first + 4], np.arange(first, min(first + 4, 11)) / 2, first, [method], film).tokens
        for first in (0, 4, 8)
    ]
    joined = VisualTokens.concat(parts)
    for name in ("owner", "position", "frame", "cell", "seconds", "frame_seconds", "weight"):
        assert torch.equal(getattr(joined, name), getattr(whole, name)), name
    torch.testing.assert_close(joined.features, whole.features, atol=1e-5, rtol=0)
    assert (joined.extent, joined.interval) == (whole.extent, whole.interval) == (6, 1.0)
    with pytest.raises(ValueError, match="whole steps"):
        host.encode(images[:2], np.arange(2.0), 1)
