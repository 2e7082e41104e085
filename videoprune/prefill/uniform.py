"""Uniform: evenly spaced survivors, the baseline without any score, at FastV's place in the decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.layer_method import Kept, PrefillView
from videoprune.prefill._one_cut import OneCut
from videoprune.run import Run


def evenly_spaced(total: int, count: int, device: torch.device | None = None) -> Tensor:
    """(count,) int64 ascending: the middles floor((i + 1/2) total/count) of `count` equal parts of 0..total-1."""
    return (2 * torch.arange(count, device=device) + 1) * total // (2 * max(count, 1))


@dataclass(frozen=True, kw_only=True)
class Uniform(OneCut):
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
    reads_text = False

    keep: float | int | None = 0.5
    layer: int = 2
    paper_depth: int = 28

    def choose(self, view: PrefillView, count: int, run: Run) -> Kept:
        return Kept(evenly_spaced(len(view.visual), count, view.visual.device))
