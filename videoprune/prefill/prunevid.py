"""PruneVid, last step: in one layer every frame keeps the tokens that some text token and head attends to most."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count, check_range, scale_layers
from videoprune.layer_method import Kept, PrefillMethod, PrefillState, PrefillView
from videoprune.ops.attention import apportion, best_per_group
from videoprune.run import Run


def strongest_attention(view: PrefillView) -> Tensor:
    """(V,) largest attention over heads and rows of the text behind the film, or of the last row where there is none."""
    return torch.stack([view.attention(part).amax((0, 1)) for part in view.question_rows]).amax(0)[view.visual]


@dataclass(frozen=True, kw_only=True)
class PruneVid(PrefillMethod):
    """One cut by the text's strongest attention, split over the frames in proportion (arXiv 2412.16117).

    Args:
        keep: share or count that stays; each frame keeps its part of it, by the largest remainders.
        layer: the tokens leave after this layer of `paper_depth`; scaled.
        paper_depth: depth that `layer` is given for.
    """

    paper = "arXiv 2412.16117"
    scope = "frame"
    needs_question = True
    fixed_count = True
    attention = "text rows"

    keep: float | int | None = 0.4
    layer: int = 10
    paper_depth: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("paper_depth", self.paper_depth)
        check_count("layer", self.layer, least=0)
        check_range("layer", self.layer, 0, self.paper_depth - 1)

    def start(self, run: Run, layers: int) -> PrefillState:
        """Fresh state with one pruning point."""
        return _State(self, scale_layers((self.layer,), self.paper_depth, layers)[0])


class _State(PrefillState):
    def __init__(self, method: PruneVid, layer: int) -> None:
        self.method, self.at = method, frozenset({layer})

    def after(self, view: PrefillView) -> Kept | None:
        total = len(view.visual)
        count = self.method.count(total)
        if count >= total:
            return None
        frame = view.tokens.frame[view.token]
        quota = apportion(torch.bincount(frame, minlength=view.tokens.frames), count)
        return Kept(best_per_group(strongest_attention(view), frame, quota))
