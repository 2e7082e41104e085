import numpy as np
import pytest
import torch

from videoprune.errors import UsageError
from videoprune.ops import transport
from videoprune.ops.transport import cost_range, padded_groups, transport_row_sums


def oracle(cost, source, target, epsilon, iterations, finish):
    """Sinkhorn scaling with whole matrices in float64."""
    kernel, left = np.exp(-cost / epsilon), (source > 0).astype(float)
    for step in range(iterations):
        right = target / (kernel.T @ left)
        if finish == "rows" or step < iterations - 1:
            left = source / (kernel @ right)
    return (left[:, None] * kernel * right).sum(1)


@pytest.mark.parametrize("finish", ["cols", "rows"])
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("block", [3, 1000])
def test_row_sums_equal_the_definition(finish, iterations, block):
    rng = np.random.default_rng(iterations)
    cost, source, target = rng.random((4, 17, 11)), rng.random((4, 17)), rng.random((4, 11))
    source /= source.sum(1, keepdims=True)
    target /= target.sum(1, keepdims=True)
    held = torch.from_numpy(cost).float()
    got = transport_row_sums(
        lambda start, stop: held[..., start:stop],
        torch.from_numpy(source),
        torch.from_numpy(target),
        0.1,
        iterations,
        finish,
        block,
    )
    want = [oracle(*each, 0.1, iterations, finish) for each in zip(cost, source, target, strict=True)]
    np.testing.assert_allclose(got, want, rtol=1e-4)
    assert got.dtype == torch.float32
    if finish == "rows":  # the trap: the cost no longer matters
        np.testing.assert_allclose(got, source, rtol=1e-4)
    else:
        assert (got.amax(1) / got.amin(1)).min() > 1.1


def test_padding_takes_no_part():
    torch.manual_seed(0)
    cost, real = torch.rand(9, 9), torch.arange(9) < 6
    mass = torch.where(real, 1 / 6, 0.0)
    for iterations in (1, 3):
        got = transport_row_sums(lambda a, b: cost[:, a:b], mass, mass, 0.1, iterations)
        want = oracle(cost[:6, :6].double().numpy(), np.full(6, 1 / 6), np.full(6, 1 / 6), 0.1, iterations, "cols")
        np.testing.assert_allclose(got[:6], want, rtol=1e-4)
        assert got[6:].tolist() == [0, 0, 0]
    nothing = transport_row_sums(lambda a, b: cost[:, a:b], torch.zeros(9), torch.zeros(9), 0.1, 3)
    assert nothing.tolist() == [0] * 9


def test_sharp_costs_do_not_overflow():
    cost = torch.tensor([[0.0, 1e4], [1e4, 0.0]])
    mass = torch.tensor([0.5, 0.5])
    assert transport_row_sums(lambda a, b: cost[:, a:b], mass, mass, 1e-3, 3).tolist() == [0.5, 0.5]


def test_padded_groups():
    entry, valid, place = padded_groups(torch.tensor([0, 0, 2, 2, 2, 3]), 5)
    assert valid.tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert entry[valid].tolist() == list(range(6))
    assert place.tolist() == [0, 1, 0, 1, 2, 0]


@pytest.mark.parametrize("block", [2, 100])
def test_cost_range(block):
    torch.manual_seed(1)
    cost = torch.randn(3, 7, 7)
    valid = torch.arange(7) < torch.tensor([7, 4, 0])[:, None]
    low, high = cost_range(lambda a, b: cost[..., a:b], valid, block)
    for each, length in enumerate((7, 4)):
        part = cost[each, :length, :length]
        assert (low[each].item(), high[each].item()) == (part.min().item(), part.max().item())
    assert (low[2].item(), high[2].item()) == (0, 0)


def test_refuses_an_unknown_end():
    with pytest.raises(UsageError, match="'cols' and 'rows'"):
        transport_row_sums(lambda a, b: torch.zeros(1, 1), torch.ones(1), torch.ones(1), 0.1, 1, "both")


@pytest.mark.parametrize("finish", ["cols", "rows"])
@pytest.mark.parametrize("iterations", [1, 2, 7])
def test_scaling_and_logarithms_agree(finish, iterations, monkeypatch):
    generator = torch.Generator().manual_seed(iterations)
    cost = torch.rand(3, 9, 9, generator=generator)
    source, target = torch.rand(3, 9, generator=generator), torch.rand(3, 9, generator=generator)
    source[0, 2], target[1, 4] = 0, 0
    source[2], target[2] = 0, 0

    def sums() -> torch.Tensor:
        return transport_row_sums(lambda a, b: cost[..., a:b], source, target, 0.05, iterations, finish)

    scaled = sums()
    assert bool(torch.isfinite(scaled).all())
    monkeypatch.setattr(transport, "_scaled", lambda *_: pytest.fail("the range is too wide for it"))
    monkeypatch.setattr(transport, "SPREAD", 0.0)
    if iterations > 1:  # a single update of the columns is always scaled: compare it with many narrow blocks
        torch.testing.assert_close(scaled, sums(), rtol=1e-4, atol=1e-6)
    blocks = transport_row_sums(lambda a, b: cost[..., a:b], source, target, 0.05, iterations, finish, block=2)
    torch.testing.assert_close(scaled, blocks, rtol=1e-4, atol=1e-6)
