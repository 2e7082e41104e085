"""The MLP of decoder layers on a long prompt, some rows at a time.

Rows do not meet in an MLP, and inside it each is several times as wide as the model: on all rows of a long prompt at once its
temporaries are the largest thing in memory beside the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

ROWS = 1024  # at a time: enough to keep an accelerator busy, few beside a long prompt


@contextmanager
def mlp_in_pieces(layers: Iterable[Any], rows: int = ROWS) -> Iterator[None]:
    """For the time of a `with`, the MLP of every layer takes at most `rows` rows at a time; shorter inputs run as before."""
    earlier: list[tuple[Any, Any]] = []
    try:
        for layer in layers:
            earlier.append((layer.mlp, layer.mlp.__dict__.get("forward")))  # accelerate may have put one there
            layer.mlp.forward = partial(_pieces, layer.mlp.forward, rows)
        yield
    finally:
        for mlp, forward in earlier:
            if forward is not None:
                mlp.forward = forward
            else:
                mlp.__dict__.pop("forward", None)


def _pieces(forward: Callable[[Tensor], Tensor], rows: int, hidden: Tensor) -> Tensor:
    """`forward` of hidden (B, S, D), along S."""
    if hidden.shape[1] <= rows:
        return forward(hidden)
    out = torch.empty_like(hidden)
    for start in range(0, hidden.shape[1], rows):
        out[:, start : start + rows] = forward(hidden[:, start : start + rows])
    return out
