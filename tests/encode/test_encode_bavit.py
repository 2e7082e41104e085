"""BAViT against loops and float64; its learned part's file; the demo model under it."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from videoprune.encode._classifier import (
    ClassifierShape,
    TokenClassifier,
    boxes_to_masks,
    token_labels,
    token_loss,
)
from videoprune.encode.bavit import BAViT, foreground, unit_background
from videoprune.errors import UsageError
from videoprune.method import BEFORE, TowerView
from videoprune.models.host import even_units
from videoprune.trained import HostFacts, bind_fresh, save_part

FACTS = HostFacts("test", 0, 0, 0, 0, 0, 0, 0, (4, 4), "", patch=4, side=32, mean=(0.5,) * 3, std=(0.5,) * 3)


def bound(**options):
    method = BAViT(**{"width": 8, "heads": 2, **options})
    bind_fresh([method], FACTS, seed=3)
    for weight in method.part.parameters():
        weight.mul_(4)  # spreads the probabilities
    return method


def view(pixels, unit_of_patch=None, total=64, valid=None, unit=None):
    frames = len(pixels)
    unit = torch.arange(total).expand(frames, -1) if unit is None else unit
    return TowerView(
        layer=BEFORE,
        depth=4,
        step=0,
        hidden=torch.zeros(*unit.shape, 4),
        keys=lambda: torch.zeros(*unit.shape, 4),
        unit=unit,
        valid=torch.ones_like(unit, dtype=torch.bool) if valid is None else valid,
        size=torch.ones_like(unit),
        total=total,
        frame=torch.arange(frames),
        cls_attention=lambda: torch.zeros(unit.shape),
        pixels=lambda: pixels,
        unit_of_patch=unit_of_patch,
    )


def draw(frames=3, side=32, seed=0):
    return torch.randn(frames, 3, side, side, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------------ choosing


@pytest.mark.parametrize("threshold", [None, 0.35, 0.0, 1.0])
@pytest.mark.parametrize("count", [1, 5, 12])
@pytest.mark.parametrize("multiple", [1, 4])
def test_the_least_background_stays(threshold, count, multiple):
    generator = torch.Generator().manual_seed(1)
    background = (torch.rand(4, 12, generator=generator) * 10).round() / 10  # with ties
    counts = [12, 7, 2, 0]
    valid = torch.arange(12) < torch.tensor(counts)[:, None]
    keep = foreground(background, valid, count, threshold, multiple)
    for frame, units in enumerate(counts):
        order = sorted(range(units), key=lambda unit: (background[frame, unit].item(), unit))
        room = count
        if threshold is not None:
            good = sum(background[frame, unit].item() <= threshold for unit in range(units))
            room = min(count, math.ceil(max(1, good) / multiple) * multiple)
        assert keep[frame].nonzero()[:, 0].tolist() == sorted(order[:room])


def test_a_unit_is_as_foreground_as_its_most_foreground_patch():
    background = torch.rand(2, 64, generator=torch.Generator().manual_seed(2))
    unit = even_units(8, 2)
    found = unit_background(background, unit, 16)
    for frame in range(2):
        for number in range(16):
            assert found[frame, number] == background[frame][unit == number].min()
    assert torch.equal(unit_background(background, None, 64), background)
    with pytest.raises(UsageError, match="64 patches a frame where the tower has 36"):
        unit_background(background, even_units(6, 2), 9)


@pytest.mark.parametrize(("keep", "left"), [(0.5, 8), (3, 3), (0.01, 1), (99, 16)])
def test_budget(keep, left):
    plan = bound(keep=keep).plan(view(draw(), even_units(8, 2), 16))
    assert plan is None if left == 16 else plan.keep.sum(dim=1).tolist() == [left] * 3
    assert plan is None or plan.absorbed_by is None


def test_the_threshold_gives_every_frame_its_own_count():
    pixels, method = draw(6), bound()
    background = method.part(pixels).softmax(dim=-1)[..., 0].flatten(1)
    counts = (background <= 0.5).sum(dim=1).clamp(min=1).tolist()
    assert len(set(counts)) > 1
    assert method.plan(view(pixels)).keep.sum(dim=1).tolist() == counts
    capped = bound(at_most=5).plan(view(pixels)).keep.sum(dim=1).tolist()
    assert capped == [min(5, count) for count in counts]
    strict = bound(threshold=0).plan(view(pixels)).keep
    assert strict.sum(dim=1).tolist() == [1] * 6
    assert strict.int().argmax(dim=1).tolist() == background.argmin(dim=1).tolist()
    assert bound(threshold=1).plan(view(pixels)).keep.all()


def test_frames_alone_black_frames_half_precision_and_units_that_left():
    pixels, method = draw(4), bound(keep=9)
    whole = method.plan(view(pixels)).keep
    for frame in range(4):
        assert torch.equal(method.plan(view(pixels[frame : frame + 1])).keep[0], whole[frame])
    assert torch.equal(method.plan(view(pixels)).keep, whole)
    black = method.plan(view(torch.full_like(pixels, -1.0).bfloat16())).keep
    assert black.sum(dim=1).tolist() == [9] * 4
    assert bool((black == black[:1]).all())
    unit = torch.tensor([[2, 3, 11, 40, 63]]).expand(4, -1)
    valid = torch.arange(5) < torch.tensor([5, 4, 1, 0])[:, None]
    few = bound(keep=2).plan(view(pixels, unit=unit, valid=valid)).keep
    assert few.sum(dim=1).tolist() == [2, 2, 1, 0]
    score = method.part(pixels).softmax(dim=-1)[..., 0].flatten(1)[0, unit[0]]
    assert few[0].nonzero()[:, 0].tolist() == sorted(score.argsort()[:2].tolist())


def test_cells_of_another_models_grid():
    pixels, method = draw(5), bound(keep=0.25)
    score = method.part(pixels).softmax(dim=-1)[..., 0].flatten(1)
    best = [sorted(row.argsort()[:16].tolist()) for row in score]
    assert [row.nonzero()[:, 0].tolist() for row in method.cells(pixels, (8, 8))] == best
    coarse = method.cells(pixels, (4, 4))
    pooled = score.view(5, 4, 2, 4, 2).amin(dim=(2, 4)).flatten(1)
    assert [row.nonzero()[:, 0].tolist() for row in coarse] == [sorted(row.argsort()[:4].tolist()) for row in pooled]
    assert set((bound().cells(pixels, (8, 8), multiple=8).sum(dim=1) % 8).tolist()) == {0}


# --------------------------------------------------------------------------------------------------------- the network


def test_the_network_in_float64():
    torch.manual_seed(0)
    net = TokenClassifier(ClassifierShape(depth=2, width=8, heads=2, patch=4, grid=(3, 2)))
    pixels = torch.randn(2, 3, 12, 8)
    got = net(pixels).detach().numpy()
    w = {name: value.detach().double().numpy() for name, value in net.state_dict().items()}

    def norm(x, name):
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    for frame, picture in enumerate(pixels.double().numpy()):
        rows = []
        for row in range(3):
            for column in range(2):
                patch = picture[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                cell = (w["embed.weight"] * patch).sum(axis=(1, 2, 3)) + w["embed.bias"]
                rows.append(cell + w["position"][0, :, row, column])
        hidden = np.stack(rows)
        for layer in range(2):
            name = f"layers.{layer}"
            q, k, v = linear(norm(hidden, f"{name}.norm1"), f"{name}.qkv").reshape(6, 3, 2, 4).transpose(1, 2, 0, 3)
            logits = q @ k.transpose(0, 2, 1) / 2
            share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            hidden = hidden + linear((share @ v).transpose(1, 0, 2).reshape(6, 8), f"{name}.out")
            inner = linear(norm(hidden, f"{name}.norm2"), f"{name}.mlp.0")
            inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
            hidden = hidden + linear(inner, f"{name}.mlp.2")
        want = linear(norm(hidden, "norm"), "head").reshape(3, 2, 2)
        np.testing.assert_allclose(got[frame], want, atol=1e-5)


def test_other_grids_resample_the_positions():
    net = TokenClassifier(ClassifierShape(depth=1, width=8, heads=2, patch=4, grid=(2, 2)))
    assert net(torch.zeros(1, 3, 16, 26)).shape == (1, 4, 6, 2)  # two columns of pixels are no whole patch
    assert net(torch.zeros(1, 3, 4, 4)).shape == (1, 1, 1, 2)


def test_labels_and_loss():
    masks = torch.zeros(2, 9, 8, dtype=torch.bool)
    masks[0, 3, 4] = masks[1, 0:2, 0:3] = masks[1, 8, :] = True  # the last row is no whole patch
    assert token_labels(masks, 4).tolist() == [[[False, True], [False, False]], [[True, False], [False, False]]]
    assert token_labels(masks, 4, 0.25).nonzero().tolist() == [[1, 0, 0]]
    filled = boxes_to_masks([torch.tensor([[1.0, 0, 3, 2]]), torch.zeros(0, 4)], 4, 5)
    assert filled.nonzero().tolist() == [[0, 0, 1], [0, 0, 2], [0, 1, 1], [0, 1, 2]]
    logits = torch.randn(2, 2, 4, 2, generator=torch.Generator().manual_seed(5))
    labels = torch.zeros(2, 2, 4, dtype=torch.bool)
    labels[0, 0] = labels[1, 1, 2] = True
    weight = min(5, 11 / 5)
    each = [
        (weight if label else 1.0, -math.log(np.exp(row[int(label)]) / np.exp(row).sum()))
        for row, label in zip(logits.double().view(-1, 2).numpy(), labels.flatten().tolist(), strict=True)
    ]
    want = sum(scale * value for scale, value in each) / sum(scale for scale, _ in each)
    assert token_loss(logits, labels).item() == pytest.approx(want, rel=1e-5)
    assert torch.isfinite(token_loss(logits, torch.zeros_like(labels)))


# -------------------------------------------------------------------------------------------------------- its settings


@pytest.mark.parametrize(
    "bad",
    [{"threshold": 1.5}, {"threshold": 0.5, "keep": 0.5}, {"depth": 0}, {"width": 9}, {"heads": 0}, {"keep": 0}],
)
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        BAViT(**bad)


def test_it_acts_before_the_first_layer():
    assert BAViT().layers(12) == (BEFORE,)
    assert BAViT(keep=1).identity
    assert not BAViT().identity


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"patch": 8}, "patch 4"),
        ({"side": 64}, "side 32"),
        ({"mean": (0.1, 0.2, 0.3)}, "mean"),
        ({"digest": "other", "family": "other", "layers": 9}, None),
    ],
)
def test_weights_belong_to_a_patch_size_and_a_preprocessing(change, says, tmp_path):
    made = bound(keep=3)
    file = save_part(tmp_path / "part.safetensors", made.part, made, FACTS, {"seed": 0})
    loaded = BAViT(width=8, heads=2, keep=3, weights=str(file))
    other = dataclasses.replace(FACTS, **change)
    if says is None:
        loaded.bind(other)
        assert torch.equal(loaded.plan(view(draw())).keep, made.plan(view(draw())).keep)
        return
    with pytest.raises(UsageError, match=f"trained for another model .*{says}"):
        loaded.bind(other)


def test_bad_weights_files(tmp_path):
    made = bound()
    file = save_part(tmp_path / "part.safetensors", made.part, made, FACTS, {"seed": 0})
    with pytest.raises(UsageError, match="trained with depth 2, heads 2, width 8, and the recipe says depth 10"):
        BAViT(width=8, heads=2, depth=10, weights=str(file)).bind(FACTS)
    for name, content in {"cut": file.read_bytes()[:-9], "text": b"no weights", "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match="damaged"):
            BAViT(width=8, heads=2, weights=str(tmp_path / name)).bind(FACTS)
    with pytest.raises(UsageError, match="can't be read"):
        BAViT(weights=str(tmp_path / "nowhere")).bind(FACTS)
    with pytest.raises(UsageError, match="none ship for encode"):
        BAViT(depth=3).bind(FACTS)
    with pytest.raises(UsageError, match="no learned part yet"):
        BAViT().plan(view(draw()))
