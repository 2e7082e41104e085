"""One row of `bench ops`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from videoprune.bench.machine import DenseLayer

Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
        name: as the table shows it.
        ours, theirs: one call each; `theirs` None where a baseline has no paper.
        needs: bytes that the transcription holds at once, estimated.
        flops, moved: what ours computes in matrix products, and reads and writes at the least; None counts the products
            of a call.
        saves: seconds of a dense prefill that the selection saves, from a dense layer's; None for primitives.
        repeats: how often a prefill makes a call like this one: pruning points, tower layers.
        excepted: why the 5 % bar does not hold for it.
    """

    name: str
    ours: Work
    theirs: Work | None
    needs: float = 0.0
    flops: float | None = None
    moved: float = 0.0
    saves: Callable[[DenseLayer], float] | None = None
    repeats: int = 1
    excepted: str = ""
