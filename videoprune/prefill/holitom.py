"""HoliTom, inside the language model: one cut by the last row's attention, and the dropped are averaged into the kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.layer_method import Kept, PrefillView
from videoprune.ops.attention import keep_best
from videoprune.ops.clustering import nearest, slot_means
from videoprune.prefill._one_cut import OneCut
from videoprune.run import Run


def merge_into_kept(hidden: Tensor, index: Tensor) -> Kept:
    """Average every token with those that it absorbs: each dropped one goes to the kept one most like it, by cosine.

    Of equally similar kept tokens the first absorbs.

    Args:
        hidden: (V, D). index: (K,) int64 ascending, the kept ones, at least one.
    """
    count = len(index)
    dropped = torch.ones(len(hidden), dtype=torch.int8, device=index.device).index_fill_(0, index, 0)
    dropped = dropped.argsort(descending=True, stable=True)[: len(hidden) - count]
    slot = torch.empty(len(hidden), dtype=torch.int64, device=index.device)
    slot[dropped] = nearest(hidden[dropped], hidden[index])
    slot[index] = torch.arange(count, device=index.device)
    return Kept(index, slot_means(hidden, slot, count).to(hidden.dtype), slot)


@dataclass(frozen=True, kw_only=True)
class HoliTom(OneCut):
    """One cut with merging, deep in the language model (arXiv 2505.21334, its inner stage).

    Args:
        keep: share or count that stays.
        layer: the tokens leave before this layer of `paper_depth`, by the attention of the layer in front of it; scaled,
            and never before layer 1.
        paper_depth: depth that `layer` is given for.
    """

    paper = "arXiv 2505.21334"
    scope = "video"
    needs_question = True
    fixed_count = True
    attention = "last row"

    keep: float | int | None = 0.5
    layer: int = 18
    paper_depth: int = 28

    def choose(self, view: PrefillView, count: int, run: Run) -> Kept:
        return merge_into_kept(view.after[view.visual], keep_best(view.last_row_attention(), count))
