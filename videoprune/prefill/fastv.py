"""FastV: after the second layer half of the visual tokens leave, those that the prompt's last row attends to least."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count, check_range, scale_layers
from videoprune.method import Kept, PrefillMethod, PrefillState, PrefillView
from videoprune.ops.attention import keep_best
from videoprune.run import Run


def received_attention(probabilities: Tensor, visual: Tensor) -> Tensor:
    """Attention that falls on each visual token, mean over heads and rows: (H, R, S), (V,) -> (V,) float32."""
    return probabilities.float()[..., visual].mean(dim=(0, 1))


@dataclass(frozen=True, kw_only=True)
class FastV(PrefillMethod):
    """One cut by the last row's attention (arXiv 2403.06764).

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

    keep: float | int | None = 0.5
    layer: int = 2
    paper_depth: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("paper_depth", self.paper_depth)
        check_count("layer", self.layer)
        check_range("layer", self.layer, 1, self.paper_depth - 1)

    def start(self, run: Run, layers: int) -> PrefillState:
        """Fresh state with one pruning point."""
        return _State(self, max(1, scale_layers((self.layer,), self.paper_depth, layers)[0]))


class _State(PrefillState):
    def __init__(self, method: FastV, layer: int) -> None:
        self.method, self.at = method, frozenset({layer - 1})

    def after(self, view: PrefillView) -> Kept | None:
        total = len(view.visual)
        count = self.method.count(total)
        if count >= total:
            return None
        last = torch.full((1,), view.after.shape[0] - 1, device=view.visual.device)
        return Kept(keep_best(received_attention(view.attention(last), view.visual), count))
