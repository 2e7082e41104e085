"""The tower's loop: stock with nothing dropped, a masked reading with units dropped, the right means with units merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    InternVLVisionConfig,
    InternVLVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.tiny import VISION, spread
from videoprune.method import EncodeMethod, TowerPlan, TowerView
from videoprune.models.host import even_units
from videoprune.models.llava_onevision import LlavaOnevision
from videoprune.models.tower import DenseTower

FRAMES, SIDE = 5, 8


@dataclass(frozen=True, kw_only=True)
class Chosen(EncodeMethod):
    """Keeps given units; the others are absorbed by the frame's first kept one, or dropped."""

    paper = "test"
    at: tuple[int, ...] = (1,)
    keeps: tuple[tuple[int, ...], ...] = ()
    absorb: bool = False

    def layers(self, depth: int) -> Sequence[int]:
        return self.at

    def plan(self, view: TowerView) -> TowerPlan:
        keep = torch.zeros_like(view.valid)
        for row, number in enumerate(view.frame.tolist()):
            wanted = torch.tensor(self.keeps[number])
            keep[row] = (view.unit[row][:, None] == wanted[None]).any(dim=1) & view.valid[row]
        first = keep.int().argmax(dim=1, keepdim=True).expand_as(view.unit)
        return TowerPlan(keep, first if self.absorb else None)


def clip(side: int = SIDE) -> CLIPVisionModel:
    return spread(CLIPVisionModel(CLIPVisionConfig(image_size=14 * side, projection_dim=32, **VISION))).eval()


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(FRAMES, 3, 14 * SIDE, 14 * SIDE, generator=torch.Generator().manual_seed(1))


def keeps(counts: Sequence[int], units: int = 16) -> tuple[tuple[int, ...], ...]:
    generator = torch.Generator().manual_seed(2)
    return tuple(tuple(torch.randperm(units, generator=generator)[:count].sort().values.tolist()) for count in counts)


def masked(
    model: CLIPVisionModel, pixels: torch.Tensor, stop: int, dead: list[tuple[int, torch.Tensor]]
) -> torch.Tensor:
    """Full length with masks: after layer a (-1: before the first), patches dead[a] (F, N) bool are hidden from everyone."""
    model.set_attn_implementation("eager")
    hidden = model.pre_layrnorm(model.embeddings(pixels))
    gone = torch.zeros(hidden.shape[:2], dtype=torch.bool)
    gone[:, 1:] |= next((patches for after, patches in dead if after == -1), gone[:, 1:])
    for number, layer in enumerate(model.encoder.layers[:stop]):
        bias = torch.zeros(len(hidden), 1, 1, hidden.shape[1]).masked_fill(
            gone[:, None, None], torch.finfo(torch.float32).min
        )
        hidden = layer(hidden, bias)
        for after, patches in dead:
            if after == number:
                gone[:, 1:] |= patches
    model.set_attn_implementation("sdpa")
    return hidden


@torch.no_grad()
def test_nothing_dropped_equals_stock(pixels: torch.Tensor) -> None:
    model = clip()
    out = DenseTower(model, 3, even_units(SIDE, 2), True)(pixels, torch.arange(FRAMES))
    want = model(pixels, output_hidden_states=True).hidden_states[3]
    torch.testing.assert_close(out.hidden, want[:, 1:], atol=1e-6, rtol=0)
    torch.testing.assert_close(out.cls, want[:, 0], atol=1e-6, rtol=0)
    assert out.lengths == [(FRAMES, [65, 65, 65])]
    siglip = spread(SiglipVisionModel(SiglipVisionConfig(image_size=14 * SIDE, vision_use_head=False, **VISION))).eval()
    out = DenseTower(siglip, 4, even_units(SIDE, 2), False)(pixels, torch.arange(FRAMES))
    torch.testing.assert_close(
        out.hidden, siglip(pixels, output_hidden_states=True).hidden_states[-1], atol=1e-6, rtol=0
    )
    assert out.cls is None


@torch.no_grad()
@pytest.mark.parametrize("begin", [0, -1])
@pytest.mark.parametrize("counts", [(6,) * FRAMES, (6, 3, 9, 6, 1)], ids=["equal", "ragged"])
def test_dropped_units_equal_the_masked_oracle(counts: tuple[int, ...], begin: int, pixels: torch.Tensor) -> None:
    model, unit = clip(), even_units(SIDE, 2)
    first = keeps([12] * FRAMES)
    second = tuple(tuple(chosen[:count]) for chosen, count in zip(first, counts, strict=True))
    methods = [Chosen(at=(begin,), keeps=first), Chosen(at=(2,), keeps=second)]
    out = DenseTower(model, 4, unit, True)(pixels, torch.arange(FRAMES), methods)
    dead = [
        (after, torch.stack([(unit[:, None] != torch.tensor(chosen)[None]).all(dim=1) for chosen in chosen_of]))
        for after, chosen_of in ((begin, first), (2, second))
    ]
    want = masked(model, pixels, 4, dead)[:, 1:]
    alive = ~dead[1][1]
    torch.testing.assert_close(out.hidden[alive], want[alive], atol=1e-5, rtol=0)
    assert bool((out.hidden[~alive] == 0).all())
    assert [row.nonzero()[:, 0].tolist() for row in out.kept] == [list(chosen) for chosen in second]
    assert bool((out.absorbed_by[~out.kept] == -1).all())
    assert sum(count for count, _ in out.lengths) == FRAMES
    assert {rows[0] for _, rows in out.lengths} == {65 if begin == 0 else 49}


@torch.no_grad()
def test_a_view_before_the_first_layer_holds_what_enters_it(pixels: torch.Tensor) -> None:
    model, unit = clip(), even_units(SIDE, 2)
    method = Listens(at=(-1, 0), seen=[])
    views: list[TowerView] = []

    @dataclass(frozen=True, kw_only=True)
    class Looks(Chosen):
        def plan(self, view: TowerView) -> None:
            views.append(view)

    DenseTower(model, 2, unit, True)(pixels, torch.arange(FRAMES), [method, Looks(at=(-1,))])
    (before, keys), (after, same) = method.seen
    torch.testing.assert_close(before, after)
    torch.testing.assert_close(keys, same)
    entered = model.pre_layrnorm(model.embeddings(pixels))[:, 1:]
    assert views[0].layer == -1
    assert torch.equal(views[0].unit_of_patch, unit)
    torch.testing.assert_close(views[0].hidden[:, 3], entered[:, unit == 3].mean(dim=1), atol=1e-5, rtol=0)


@torch.no_grad()
def test_absorbed_units_are_the_size_weighted_mean(pixels: torch.Tensor) -> None:
    """One layer only: values can be read off the dense layer's output."""
    model, unit = clip(), even_units(SIDE, 2)
    dense = DenseTower(model, 1, unit, True)(pixels, torch.arange(FRAMES)).hidden
    first, second = tuple((0, 5, 9) for _ in range(FRAMES)), tuple((5, 9) for _ in range(FRAMES))
    methods = [Chosen(at=(0,), keeps=first, absorb=True), Chosen(at=(0,), keeps=second, absorb=True)]
    out = DenseTower(model, 1, unit, True)(pixels, torch.arange(FRAMES), methods)
    for frame in range(FRAMES):
        patches = [(unit == number).nonzero()[:, 0] for number in range(16)]
        for offset in range(4):
            # 13 others joined unit 0, which stands for 14 and joins unit 5
            others = [number for number in range(16) if number not in (5, 9)]
            mean = torch.stack([dense[frame, patches[number][offset]] for number in (*others, 5)]).mean(dim=0)
            torch.testing.assert_close(out.hidden[frame, patches[5][offset]], mean, atol=1e-5, rtol=0)
            torch.testing.assert_close(out.hidden[frame, patches[0][offset]], mean, atol=1e-5, rtol=0)  # unmerged
            torch.testing.assert_close(
                out.hidden[frame, patches[9][offset]], dense[frame, patches[9][offset]], atol=1e-5, rtol=0
            )
        assert out.absorbed_by[frame].tolist() == [9 if number == 9 else 5 for number in range(16)]


@torch.no_grad()
def test_views_hold_unit_means_and_cls_attention(pixels: torch.Tensor) -> None:
    model, unit = clip(), even_units(SIDE, 2)
    views: list[tuple[TowerView, torch.Tensor]] = []

    @dataclass(frozen=True, kw_only=True)
    class Looks(Chosen):
        def plan(self, view: TowerView) -> None:
            views.append((view, view.cls_attention()))

    DenseTower(model, 4, unit, True)(pixels, torch.arange(10, 10 + FRAMES), [Looks(at=(2,))])
    model.set_attn_implementation("eager")
    stock = model(pixels, output_hidden_states=True, output_attentions=True)
    entered, left = stock.hidden_states[2], stock.hidden_states[3]
    layer = model.encoder.layers[2]
    keys = layer.self_attn.k_proj(layer.layer_norm1(entered))[:, 1:].unflatten(-1, (2, 16)).mean(dim=-2)
    share = stock.attentions[2].mean(dim=1)[:, 0, 1:]
    assert [view.frame.tolist() for view, _ in views] == [[10 + number for number in range(FRAMES)]]
    view, cls_share = views[0]
    for row in range(FRAMES):
        for number in range(16):
            inside = unit == number
            torch.testing.assert_close(view.hidden[row, number], left[row, 1:][inside].mean(dim=0), atol=1e-5, rtol=0)
            torch.testing.assert_close(view.keys()[row, number], keys[row][inside].mean(dim=0), atol=1e-5, rtol=0)
            torch.testing.assert_close(cls_share[row, number], share[row][inside].sum(), atol=1e-6, rtol=0)


@dataclass(frozen=True, kw_only=True)
class Listens(Chosen):
    """Keeps everything and remembers what it saw."""

    seen: list[tuple[torch.Tensor, torch.Tensor]]

    def plan(self, view: TowerView) -> None:
        self.seen.append((view.cls_attention(), view.keys()))


@torch.no_grad()
def test_a_tower_without_cls_gives_what_units_receive(pixels: torch.Tensor) -> None:
    config = SiglipVisionConfig(image_size=14 * SIDE, vision_use_head=False, **VISION)
    siglip = spread(SiglipVisionModel(config)).eval()
    siglip.set_attn_implementation("eager")
    stock = siglip(pixels, output_attentions=True).attentions[1].mean(dim=(1, 2))  # (F, P) mean over heads and rows
    siglip.set_attn_implementation("sdpa")
    unit, method = even_units(SIDE, 2), Listens(seen=[])
    DenseTower(siglip, 4, unit, False)(pixels, torch.arange(FRAMES), [method])
    want = torch.zeros(FRAMES, 16).index_add_(1, unit, stock)
    torch.testing.assert_close(method.seen[0][0], want, atol=1e-6, rtol=0)
    torch.testing.assert_close(want.sum(dim=1), torch.ones(FRAMES))


def internvl(qk_norm: bool) -> InternVLVisionModel:
    kind = "rms_norm" if qk_norm else "layer_norm"
    config = InternVLVisionConfig(**VISION, image_size=14 * SIDE, use_qk_norm=qk_norm, norm_type=kind)
    return spread(InternVLVisionModel(config)).eval()


def by_hand(
    model: InternVLVisionModel, hidden: torch.Tensor, gone: torch.Tensor, number: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One layer on all rows, those `gone` (F, P) hidden from everyone: states, attention (F, H, P, P), keys (F, P, C)."""
    layer = model.encoder.layer[number]
    attention, normed = layer.attention, layer.layernorm_before(hidden)
    keys = attention.k_norm(attention.k_proj(normed))
    split = [
        rows.unflatten(-1, (2, 16)).transpose(1, 2)
        for rows in (attention.q_norm(attention.q_proj(normed)), keys, attention.v_proj(normed))
    ]
    logits = (split[0] @ split[1].transpose(-1, -2) / 4).masked_fill(gone[:, None, None], -torch.inf)
    share = logits.softmax(dim=-1)
    mixed = (share @ split[2]).transpose(1, 2).flatten(2)
    hidden = hidden + layer.lambda_1 * attention.projection_layer(mixed)
    return hidden + layer.lambda_2 * layer.mlp(layer.layernorm_after(hidden)), share, keys


@torch.no_grad()
@pytest.mark.parametrize("qk_norm", [False, True])
def test_internvls_tower_loses_units_of_2x2_patches(qk_norm: bool, pixels: torch.Tensor) -> None:
    model, unit = internvl(qk_norm), even_units(SIDE, 2)
    kept = keeps([4, 7, 4, 16, 1])
    listens, drops = Listens(at=(1,), seen=[]), Chosen(at=(1,), keeps=kept)
    hidden = model.embeddings(pixels)
    gone = torch.zeros(hidden.shape[:2], dtype=torch.bool)
    for number in range(4):
        hidden, share, keys = by_hand(model, hidden, gone, number)
        if number == 1:
            cls = torch.zeros(FRAMES, 16).index_add_(1, unit, share.mean(dim=1)[:, 0, 1:])
            mean = torch.zeros(FRAMES, 16, 16).index_add_(1, unit, keys[:, 1:].unflatten(-1, (2, 16)).mean(dim=-2)) / 4
            alive = torch.stack([torch.isin(unit, torch.tensor(units)) for units in kept])
            gone[:, 1:] = ~alive
    out = DenseTower(model, 4, unit, True)(pixels, torch.arange(FRAMES), [listens, drops])
    torch.testing.assert_close(out.hidden[alive], hidden[:, 1:][alive], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.cls, hidden[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(listens.seen[0][0], cls, atol=1e-6, rtol=0)
    torch.testing.assert_close(listens.seen[0][1], mean, atol=1e-5, rtol=0)
    assert torch.equal(out.kept, torch.stack([torch.isin(torch.arange(16), torch.tensor(units)) for units in kept]))


def test_units_of_an_odd_grid_partition_the_patches() -> None:
    """SigLIP's 27 x 27 patches, halved bilinearly to 14 x 14: each patch in one unit, each unit under its own cell."""
    host = object.__new__(LlavaOnevision)
    host.patch_side = 27
    unit = host.unit_of_patch().view(27, 27)
    assert sorted(unit.unique().tolist()) == list(range(196))
    # what a cell reads: the gradient of the bilinear cell with respect to the patches falls on its own unit at least by 90 %
    grid = torch.zeros(1, 1, 27, 27, requires_grad=True)
    pooled = torch.nn.functional.interpolate(grid, size=[14, 14], mode="bilinear").flatten()
    for cell in (0, 6, 7, 20, 97, 195):
        (weight,) = torch.autograd.grad(pooled[cell], grid, retain_graph=True)
        assert float(weight[0, 0][unit == cell].sum()) > 0.9
