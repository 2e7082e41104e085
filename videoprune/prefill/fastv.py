"""FastV: after the second layer half of the visual tokens leave, those that the prompt's last row attends to least."""

from __future__ import annotations

from dataclasses import dataclass

from videoprune.layer_method import Kept, PrefillView
from videoprune.ops.attention import keep_best
from videoprune.prefill._one_cut import OneCut
from videoprune.run import Run


@dataclass(frozen=True, kw_only=True)
class FastV(OneCut):
    """One cut by the last row's attention, mean over heads (arXiv 2403.06764).

    Args:
        keep: share or count that stays.
        layer: the tokens leave before this layer of `paper_depth`, by the attention of the layer in front of it; scaled,
            and never before layer 1.
        paper_depth: depth that `layer` is given for.
    """

    paper = "arXiv 2403.06764"
    scope = "video"
    needs_question = True
    fixed_count = True
    attention = "last row"
    multiplies = False

    keep: float | int | None = 0.5
    layer: int = 2
    paper_depth: int = 32

    def choose(self, view: PrefillView, count: int, run: Run) -> Kept:
        return Kept(keep_best(view.last_row_attention(), count))
