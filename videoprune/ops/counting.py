"""Count the matrix products of whatever runs inside a `with`, as torch's flop counter does but for a few operations only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

# the fused attention of a CPU, which torch's registry leaves out
_FUSED_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class CountedFlops(TorchDispatchMode):
    """FLOPs of the products inside the block, in `total`; re-entered, it goes on adding.

    What methods compute to score tokens has no closed form that every method would have to keep in step with its code,
    so it is counted; the model's own work is not run under this and is computed analytically.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0
        self.active = False

    def __enter__(self) -> CountedFlops:
        self.active = True
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self.active = False

    @contextmanager
    def paused(self) -> Iterator[CountedFlops]:
        """Inside the block, let operations run uncounted: what has a closed form is added to `total` by hand instead.

        Counting costs several times what a small operation does.
        """
        if not self.active:
            yield self
            return
        self.__exit__(None, None, None)
        try:
            yield self
        finally:
            self.__enter__()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch wraps `__torch_dispatch__` so that torch.compile leaves it alone, and imports its compiler for that: a second,
        and several times the cost of a small operation. Nothing is compiled inside these blocks."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if func._overloadpacket is _FUSED_ON_CPU:
            self.total += float(sdpa_flop_count(args[0].shape, args[1].shape, args[2].shape))
        elif formula is not None:
            self.total += float(formula(*args, **(kwargs or {}), out_val=out))
        return out
