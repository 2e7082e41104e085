"""Uniform: evenly spaced survivors, the baseline without any score, at FastV's place in the decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count, scale_layers
from videoprune.errors import UsageError
from videoprune.method import Kept, PrefillMethod, PrefillState, PrefillView
from videoprune.run import Run


def evenly_spaced(total: int, count: int, device: torch.device | None = None) -> Tensor:
    """(count,) int64 ascending: the middles floor((i + 1/2) total/count) of `count` equal parts of 0..total-1."""
    return (2 * torch.arange(count, device=device) + 1) * total // (2 * max(count, 1))


@dataclass(frozen=True, kw_only=True)
class Uniform(PrefillMethod):
    """An evenly spaced share of the visual tokens goes on.

    Args:
        keep: share or count that stays.
        layer: the tokens leave before this layer of `paper_depth`; scaled, and never before layer 1.
        paper_depth: depth that `layer` is given for.
    """

    paper = "baseline, no paper"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "none"

    keep: float | int | None = 0.5
    layer: int = 2
    paper_depth: int = 28

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("paper_depth", self.paper_depth)
        check_count("layer", self.layer)
        if self.layer >= self.paper_depth:
            raise UsageError(
                f"layer: {self.layer} is given; allowed is 1..{self.paper_depth - 1} (below `paper_depth`)"
            )

    def start(self, run: Run, layers: int) -> PrefillState:
        """Fresh state with one pruning point."""
        return _State(self, max(1, scale_layers((self.layer,), self.paper_depth, layers)[0]))


class _State(PrefillState):
    def __init__(self, method: Uniform, layer: int) -> None:
        self.method, self.at = method, frozenset({layer - 1})

    def after(self, view: PrefillView) -> Kept | None:
        total = len(view.visual)
        count = self.method.count(total)
        return None if count >= total else Kept(evenly_spaced(total, count, view.visual.device))
