"""PlainMamba against a reading in float64, token by token, and its checkpoints by the authors' names."""

import math

import pytest
import torch
from torch.nn import functional

from videoprune.encode.random import Random
from videoprune.encode.ssm import SSM
from videoprune.errors import UsageError
from videoprune.models.plain_mamba import OFFICIAL, MambaShape, PlainMamba, Walk
from videoprune.models.plain_mamba_weights import load_official
from videoprune.ops.scan import paths

SMALL = MambaShape(12, 4, image=20, patch=4, state=3, kernel=3, dwconv=(1,))


def tower(shape=SMALL, seed=0, classes=None):
    torch.manual_seed(seed)
    made = PlainMamba(shape, classes).eval()
    for weight in made.parameters():  # nothing is near its start, so that nothing cancels
        weight.data += 0.1 * torch.randn_like(weight)
    return made


def slow_scan(mixer, x, delta, into, out, alive, order, move, quirk):
    """One path over the whole grid in float64: where a place is not alive its step size is 0."""
    rate, length = -torch.exp(mixer.A_log.double()), len(order)
    state, y = torch.zeros_like(rate), torch.zeros(length, x.shape[-1], dtype=torch.float64)
    for step, place in enumerate(order.tolist()):
        at = step if quirk else place  # the released code leaves all but x in raster order
        size = delta[at] * alive[place]
        entering = into[at] + mixer.direction_Bs.double()[move[step]]
        state = torch.exp(size[:, None] * rate) * state + (size * x[place])[:, None] * entering
        y[place] = state @ out[at] + mixer.D.double() * x[place]
    return y


def slow(model, pixels, kept):
    """(K, D) tokens of one picture; kept: block -> places that are alive behind it. Dropped places stay on the grid, masked."""
    shape, side = model.shape, model.shape.side
    hidden = functional.conv2d(
        pixels.double(), model.patch_embed.projection.weight.double(), model.patch_embed.projection.bias.double(), stride=4
    )[0].flatten(1).T + model.pos_embed[0].double()  # fmt: skip
    alive = torch.ones(side * side, dtype=torch.float64)
    outputs = []
    for number, block in enumerate(model.layers):
        m = block.mamba
        normed = functional.layer_norm(hidden, (shape.width,), block.norm.weight.double(), block.norm.bias.double())
        x, gate = (normed @ m.in_proj.weight.double().T + m.in_proj.bias.double()).chunk(2, dim=-1)
        grid = (x * alive[:, None]).T.reshape(1, -1, side, side)
        grid = functional.conv2d(
            grid, m.conv2d.weight.double(), m.conv2d.bias.double(), padding=shape.kernel // 2, groups=shape.inner
        )
        x = functional.silu(grid[0].flatten(1).T)
        low, into, out = (x @ m.x_proj.weight.double().T).split((shape.rank, shape.state, shape.state), dim=-1)
        delta = low @ m.dt_proj.weight.double().T + m.dt_proj.bias.double() * (2 if shape.quirk else 1)
        delta = functional.softplus(delta)
        y = sum(
            slow_scan(m, x, delta, into, out, alive, order, move, shape.quirk)
            for order, move in zip(*paths(side, side), strict=True)
        )
        outputs.append(y)
        hidden = hidden + (y * functional.silu(gate)) @ m.out_proj.weight.double().T + m.out_proj.bias.double()
        if block.dw is not None:
            conv, norm = block.dw[0], block.dw[1]
            grid = (hidden * alive[:, None]).T.reshape(1, -1, side, side)
            grid = functional.conv2d(grid, conv.weight.double(), padding=1, groups=shape.width)
            grid = (
                grid / math.sqrt(1 + norm.eps) * norm.weight.double()[:, None, None] + norm.bias.double()[:, None, None]
            )
            hidden = functional.gelu(grid)[0].flatten(1).T
        if number in kept:
            alive = torch.zeros_like(alive).index_fill(0, kept[number], 1)
    hidden = functional.layer_norm(hidden, (shape.width,), model.ln1.weight.double(), model.ln1.bias.double(), 1e-6)
    return hidden[alive > 0], outputs


@pytest.mark.parametrize("quirk", [False, True])
def test_tower_is_the_slow_one(quirk):
    model = tower(MambaShape(12, 3, image=20, patch=4, state=3, kernel=3, dwconv=(1,), quirk=quirk))
    pixels = torch.randn(2, 3, 20, 20)
    with torch.no_grad():
        out = model(pixels)
        for frame in range(2):
            expected, _ = slow(model, pixels[frame : frame + 1], {})
            torch.testing.assert_close(out.tokens[frame].double(), expected, rtol=1e-4, atol=1e-5)


def test_pruned_tower_is_the_whole_one_with_step_size_0_at_what_left():
    model, method = tower(), SSM(keep=0.3)
    pixels = torch.randn(3, 3, 20, 20)
    with torch.no_grad():
        out = model(pixels, [method])
    assert out.lengths == [25, 18, 13, 8]
    for frame in range(3):
        kept = {}
        for step, layer in enumerate(method.layers(4)):  # each choice on what the slow tower computes up to there
            _, outputs = slow(model, pixels[frame : frame + 1], kept)
            before = kept[layer - 1] if layer - 1 in kept else torch.arange(25)
            score = outputs[layer].clamp(min=0).mean(dim=-1)[before]
            best = sorted(score.argsort(descending=True)[: (18, 13, 8)[step]].tolist())
            kept[layer] = before[best]
        expected, _ = slow(model, pixels[frame : frame + 1], kept)
        assert out.unit[frame].tolist() == kept[2].tolist()
        torch.testing.assert_close(out.tokens[frame].double(), expected, rtol=1e-4, atol=1e-5)


def test_aligned_scan_is_the_full_scan_with_step_size_0():
    """The scan alone: all four paths, random survivors, against the same scan over the whole grid; within 1e-5."""
    mixer = tower().layers[0].mamba
    rng = torch.Generator().manual_seed(1)
    x, delta = torch.randn(6, 25, 24, generator=rng), torch.rand(6, 25, 24, generator=rng)
    into, out = torch.randn(2, 6, 25, 3, generator=rng)
    unit = torch.stack([torch.randperm(25, generator=rng)[:11].sort().values for _ in range(6)])
    there = torch.zeros(6, 25).scatter(1, unit, 1)[..., None]
    whole = Walk.over(torch.arange(25).expand(6, -1), (5, 5))

    def kept(tensor):
        return tensor.gather(1, unit[..., None].expand(-1, -1, tensor.shape[-1]))

    with torch.no_grad():
        full = mixer.scan(x, delta * there, into, out, whole)
        ours = mixer.scan(kept(x), kept(delta), kept(into), kept(out), Walk.over(unit, (5, 5)))
        strangers = mixer.scan(kept(x), kept(delta), kept(into), kept(out), Walk.over(unit, (5, 5), "packed"))
    assert float((ours - kept(full)).abs().max()) <= 1e-5
    assert float((strangers - kept(full)).abs().max()) > 1e-2


def test_frames_are_independent_and_nothing_pruned_is_the_identity():
    model, pixels = tower(), torch.randn(4, 3, 20, 20)
    with torch.no_grad():
        whole = model(pixels, [SSM(keep=0.5)])
        for frame in range(4):
            alone = model(pixels[frame : frame + 1], [SSM(keep=0.5)])
            assert torch.equal(alone.unit[0], whole.unit[frame])
            torch.testing.assert_close(alone.tokens[0], whole.tokens[frame], rtol=1e-5, atol=1e-6)
        assert torch.equal(model(pixels, [SSM(keep=1)]).tokens, model(pixels).tokens)
        assert torch.equal(model(pixels, scan="packed").tokens, model(pixels).tokens)  # nothing has left
    with pytest.raises(UsageError, match="scan: 'unsorted' is given"):
        model(pixels, scan="unsorted")


def test_other_methods_and_other_picture_sizes():
    model = tower()
    with torch.no_grad():
        drawn = model(torch.randn(2, 3, 20, 20), [Random(keep=7, mode="drop")])
        assert drawn.lengths == [25, 7, 7, 7]
        assert model(torch.randn(1, 3, 28, 12)).tokens.shape == (1, 21, 12)  # positions are resampled
    with pytest.raises(UsageError, match="has no attention"):
        model(torch.randn(2, 3, 20, 20), [Random(keep=7)])


def test_gradients_reach_every_weight():
    model = tower(classes=5)
    out = model(torch.randn(2, 3, 20, 20), [SSM(keep=0.5)])
    model.classify(out).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_flops_are_those_of_the_products():
    from videoprune.ops.counting import CountedFlops
    from videoprune.ops.scan import scan_flops

    shape = MambaShape(12, 2, image=20, patch=4, state=3, kernel=3)
    model = tower(shape)
    with torch.no_grad(), CountedFlops() as counted:
        out = model(torch.randn(3, 3, 20, 20))
    scans = 3 * 2 * 4 * scan_flops(25, 24, 3)
    assert out.cost.total - scans == pytest.approx(counted.total)


# ------------------------------------------------------------------------------------------------- official checkpoints


def official(width, blocks, convs, dwconv, classes=1000):
    """Names and shapes of an official classification checkpoint, written down from the authors' modules."""
    inner, rank, n = 2 * width, math.ceil(width / 16), 16
    bn = ("weight", "bias", "running_mean", "running_var")
    found = {"patch_embed.stem.0.weight": (64, 3, 7, 7)}
    found |= {f"patch_embed.stem.1.{part}": (64,) for part in bn} | {"patch_embed.stem.1.num_batches_tracked": ()}
    for number in range(convs):
        found[f"patch_embed.convs.{3 * number}.weight"] = (64, 64, 3, 3)
        found |= {f"patch_embed.convs.{3 * number + 1}.{part}": (64,) for part in bn}
        found[f"patch_embed.convs.{3 * number + 1}.num_batches_tracked"] = ()
    found |= {"patch_embed.projection.weight": (width, 64, 8, 8), "patch_embed.projection.bias": (width,)}
    found["pos_embed"] = (1, 196, width)
    for number in range(blocks):
        at = f"layers.{number}."
        found |= {f"{at}norm.weight": (width,), f"{at}norm.bias": (width,)}
        if number in dwconv:
            found[f"{at}dw.0.weight"] = (width, 1, 3, 3)
            found |= {f"{at}dw.1.{part}": (width,) for part in bn} | {f"{at}dw.1.num_batches_tracked": ()}
        at += "mamba."
        found |= {f"{at}A_log": (inner, n), f"{at}D": (inner,), f"{at}direction_Bs": (5, n)}
        found |= {f"{at}in_proj.weight": (2 * inner, width), f"{at}in_proj.bias": (2 * inner,)}
        found |= {f"{at}conv2d.weight": (inner, 1, 7, 7), f"{at}conv2d.bias": (inner,)}
        found |= {f"{at}x_proj.weight": (rank + 2 * n, inner)}
        found |= {f"{at}dt_proj.weight": (inner, rank), f"{at}dt_proj.bias": (inner,)}
        found |= {f"{at}out_proj.weight": (width, inner), f"{at}out_proj.bias": (width,)}
    found |= {"ln1.weight": (width,), "ln1.bias": (width,)}
    found = {f"backbone.{name}": size for name, size in found.items()}
    return found | {"head.fc.weight": (classes, width), "head.fc.bias": (classes,)}


def checkpoint(path, change=None):
    rng = torch.Generator().manual_seed(0)
    state = {
        name: torch.tensor(3) if name.endswith("tracked") else torch.rand(size, generator=rng) * 0.02 + 0.001
        for name, size in official(192, 24, 1, (0,), classes=10).items()
    }
    if change:
        change(state)
    torch.save({"meta": {"epoch": 300}, "state_dict": state}, path)
    return state


def test_synthetic_official_checkpoint_loads_exactly(tmp_path):
    state = checkpoint(tmp_path / "l1.pth")
    model = load_official(tmp_path / "l1.pth")
    assert model.shape == OFFICIAL["L1"]
    assert model.shape.quirk
    loaded = model.state_dict()
    names = {name.removeprefix("backbone.").replace("head.fc", "head"): name for name in state}
    assert loaded.keys() == names.keys()
    for ours, theirs in names.items():
        assert torch.equal(loaded[ours], state[theirs])
    with torch.no_grad():
        out = model(torch.randn(1, 3, 224, 224), [SSM()])
        assert torch.isfinite(model.classify(out)).all()
    assert out.lengths == [196] * 6 + [128] * 6 + [84] * 6 + [55] * 6


@pytest.mark.parametrize(("name", "sizes", "millions"), [
    ("L1", (192, 24, 1, (0,)), 7.3), ("L2", (384, 24, 2, ()), 25.7), ("L3", (448, 36, 2, ()), 50.5),
])  # fmt: skip
def test_official_names_and_sizes(name, sizes, millions):
    with torch.device("meta"):
        model = PlainMamba(OFFICIAL[name], 1000)
    ours = {f"backbone.{key}" if not key.startswith("head") else key.replace("head", "head.fc"): tuple(value.shape)
            for key, value in model.state_dict().items()}  # fmt: skip
    assert ours == official(*sizes)
    weights = {key: weight.numel() for key, weight in model.named_parameters() if not key.startswith("head")}
    assert sum(weights.values()) / 1e6 == pytest.approx(millions, abs=0.1)  # published without the classifier


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("backbone.layers.7.mamba.D"), "layers.7.mamba.D is missing"),
        (lambda state: state.update({"backbone.more": torch.zeros(2)}), "more is"),
        (lambda state: state.update({"backbone.ln1.bias": torch.zeros(7)}), "ln1.bias is"),
        (lambda state: state.update({"backbone.ln1.bias": torch.full((192,), torch.nan)}), "not finite"),
        (lambda state: state.pop("backbone.pos_embed"), "no pos_embed"),
        (lambda state: state.update({"backbone.pos_embed": torch.zeros(1, 196, 200)}), "width 200 and 24 blocks"),
    ],
)
def test_damaged_official_checkpoints_are_refused(tmp_path, change, said):
    checkpoint(tmp_path / "l1.pth", change)
    with pytest.raises(UsageError, match=said):
        load_official(tmp_path / "l1.pth")


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "text.pth").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, said in (
        ("text.pth", "can't be read"),
        ("gone.pth", "can't be read"),
        ("list.pth", "no weights by name"),
    ):
        with pytest.raises(UsageError, match=said):
            load_official(tmp_path / name)
