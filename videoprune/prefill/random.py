"""Random: the baseline that every score has to beat, at FastV's place in the decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.layer_method import Kept, PrefillView
from videoprune.prefill._one_cut import OneCut
from videoprune.run import Run


def random_subset(total: int, count: int, generator: torch.Generator) -> Tensor:
    """(count,) int64 ascending, drawn from 0..total-1 without repeats."""
    return torch.randperm(total, generator=generator)[:count].sort().values


@dataclass(frozen=True, kw_only=True)
class Random(OneCut):
    """A random share of the visual tokens goes on; the draw depends on the run's seed and the layer alone.

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
        index = random_subset(len(view.visual), count, run.generator(view.layer))
        return Kept(index.to(view.visual.device))
