"""MLPs in pieces: the same values, few rows at a time, and the layers as they were afterwards."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from videoprune.models.pieces import mlp_in_pieces
from videoprune.report.memory import peak_of


class Wide(nn.Module):
    """An MLP as decoders have it, which notes how many rows it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 64), nn.Linear(64, 8)
        self.seen: list[int] = []

    def forward(self, hidden: Tensor) -> Tensor:
        self.seen.append(hidden.shape[1])
        out: Tensor = self.down(self.up(hidden).relu())
        return out


@pytest.fixture
def layer() -> SimpleNamespace:
    torch.manual_seed(0)
    return SimpleNamespace(mlp=Wide())


@pytest.mark.parametrize(("length", "pieces"), [(1, [1]), (10, [10]), (11, [10, 1]), (35, [10, 10, 10, 5])])
def test_values_and_pieces(layer: SimpleNamespace, length: int, pieces: list[int]) -> None:
    hidden = torch.randn(2, length, 8)
    with torch.no_grad():
        want = layer.mlp.down((layer.mlp.up(hidden)).relu())
        with mlp_in_pieces([layer], rows=10):
            got = layer.mlp(hidden)
    assert layer.mlp.seen == pieces
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


def test_hooks_see_the_whole_and_the_module_is_left_as_it_was(layer: SimpleNamespace) -> None:
    outputs: list[Tensor] = []
    layer.mlp.register_forward_hook(lambda module, given, out: outputs.append(out))
    with torch.no_grad(), mlp_in_pieces([layer], rows=10):
        layer.mlp(torch.randn(1, 25, 8))
    assert [tuple(out.shape) for out in outputs] == [(1, 25, 8)]
    assert "forward" not in layer.mlp.__dict__
    own = layer.mlp.forward = lambda hidden: hidden
    with pytest.raises(RuntimeError, match="stop"), mlp_in_pieces([layer]):
        raise RuntimeError("stop")
    assert layer.mlp.__dict__["forward"] is own


def test_memory_follows_the_pieces(layer: SimpleNamespace) -> None:
    hidden, mlp = torch.empty(1, 4000, 8, device="meta"), layer.mlp.to("meta")
    whole = peak_of(lambda: mlp(hidden))[0]
    with mlp_in_pieces([layer], rows=100):
        parts = peak_of(lambda: mlp(hidden))[0]
    inner, outer = 64 * 4, 8 * 4  # bytes a row
    assert whole >= 4000 * (inner + outer)
    assert parts <= 4000 * outer + 100 * (2 * inner + outer)
