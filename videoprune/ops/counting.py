"""Count the matrix products of whatever runs inside a `with`, as torch's flop counter does but for a few operations only."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class CountedFlops(TorchDispatchMode):
    """FLOPs of the products inside the block, in `total`; re-entered, it goes on adding.

    What methods compute to score tokens has no closed form that every method would have to keep in step with its code,
    so it is counted; the model's own work is not run under this and is computed analytically.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += float(formula(*args, **(kwargs or {}), out_val=out))
        return out
