"""HoliTom, inside the language model: one cut by the last row's attention, and the dropped are averaged into the kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count, check_range, scale_layers
from videoprune.method import Kept, PrefillMethod, PrefillState, PrefillView
from videoprune.ops.attention import CHUNK, keep_best
from videoprune.ops.similarity import unit
from videoprune.run import Run


def merge_into_kept(hidden: Tensor, index: Tensor) -> Kept:
    """Average every token with those that it absorbs: each dropped one goes to the kept one most like it, by cosine.

    Similarities are streamed by blocks of rows; of equally similar kept tokens the first absorbs. Sums run over rows
    sorted by who absorbs them, in the same order on every run.

    Args:
        hidden: (V, D). index: (K,) int64 ascending, the kept ones, at least one.
    """
    count = len(index)
    scaled = unit(hidden)
    kept = scaled[index].T
    step = max(1, CHUNK // count)
    slot = torch.cat([(part @ kept).argmax(dim=1) for part in scaled.split(step)])
    slot[index] = torch.arange(count, device=index.device)
    order = slot.argsort(stable=True)
    size = torch.zeros(count, dtype=torch.int64, device=index.device).index_add_(0, slot, torch.ones_like(slot))
    means = torch.segment_reduce(hidden[order].float(), "mean", lengths=size, unsafe=True)
    return Kept(index, means.to(hidden.dtype), slot)


@dataclass(frozen=True, kw_only=True)
class HoliTom(PrefillMethod):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("paper_depth", self.paper_depth)
        check_count("layer", self.layer)
        check_range("layer", self.layer, 1, self.paper_depth - 1)

    def start(self, run: Run, layers: int) -> PrefillState:
        """Fresh state with one pruning point."""
        return _State(self, max(1, scale_layers((self.layer,), self.paper_depth, layers)[0]))


class _State(PrefillState):
    def __init__(self, method: HoliTom, layer: int) -> None:
        self.method, self.at = method, frozenset({layer - 1})

    def after(self, view: PrefillView) -> Kept | None:
        total = len(view.visual)
        count = self.method.count(total)
        if count >= total:
            return None
        last = torch.full((1,), view.after.shape[0] - 1, device=view.visual.device)
        index = keep_best(view.attention(last)[..., view.visual].mean(dim=(0, 1)), count)
        return merge_into_kept(view.after[view.visual], index)
